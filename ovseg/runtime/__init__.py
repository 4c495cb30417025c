"""Runtimes: run a model's two towers on a device."""
