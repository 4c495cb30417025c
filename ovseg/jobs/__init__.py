"""Whole folders, videos and several machines: the same question of very many images."""
