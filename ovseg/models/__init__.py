"""Architectures: one file for each family. They need torch and know nothing of each other."""
