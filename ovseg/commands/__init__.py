"""The commands of the command line that fill files of their own, and what commands share. With `cli.py`, the only modules that print."""
