"""Folders that results go to."""

from __future__ import annotations

import os
from pathlib import Path

from ovseg.errors import OutputError


def make_folder(folder: Path) -> None:
    """Make a folder and those above it.

    Raises:
        OutputError: If it cannot be made.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except (FileExistsError, NotADirectoryError) as error:
        raise OutputError(_in_the_way(folder)) from error
    except OSError as error:
        raise OutputError(f"Cannot make the folder {str(folder)!r}: {error.strerror}.") from error


def check_folder(folder: Path) -> None:
    """Refuse, before any work, a folder that cannot be one because a file has its name or that of one above it.

    Raises:
        OutputError: If that is so; the message names the file.
    """
    if _file_at(folder) is not None:
        raise OutputError(_in_the_way(folder))


def _file_at(folder: Path) -> Path | None:
    """Find what is no folder where a folder is to be."""
    nearest = next((path for path in (folder, *folder.parents) if os.path.lexists(path)), None)
    return None if nearest is None or nearest.is_dir() else nearest


def _in_the_way(folder: Path) -> str:
    return (
        f"Cannot make the folder {str(folder)!r} for the results: {str(_file_at(folder) or folder)!r} exists and is no folder. "
        "Name another folder for them (-o), or move what is there away."
    )
