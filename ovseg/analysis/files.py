"""Finding and reading saved results in a folder, and writing what was counted in them."""

from __future__ import annotations

import csv
import io
import os
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

from ovseg.analysis.maps import SCENES, LabelMap, open_map
from ovseg.errors import InvalidImageError, MissingDependencyError
from ovseg.output.files import write_atomically

SUFFIXES = (".png", ".npz", ".json", *SCENES)
"""Formats that a result can be loaded from, the quickest to read first."""
_SUMMARY = "coco.json"
"""What `ovseg segment FOLDER` writes beside the results: all of them once more."""


def is_folder(path: str | os.PathLike[str]) -> bool:
    """Tell whether a path is a folder of results; a .zarr is one result."""
    return os.path.isdir(path) and not os.fspath(path).rstrip(os.sep).lower().endswith(".zarr")


def find_results(folder: str | os.PathLike[str]) -> dict[str, list[Path]]:
    """Find the files in a folder, and in the folders in it, that may hold results.

    Hidden files, overlays (`NAME.overlay.png`), summaries (`coco.json`) and what stands beside scenes (`NAME.labels.json`) are passed over.
    A result that was saved in several formats is one result.

    Args:
        folder: The folder, or one result.

    Returns:
        For each name (path below the folder without its suffix, with "/"), in alphabetical order, its files, the quickest to read first.

    Raises:
        InvalidImageError: If there is no such folder.
    """
    root = Path(os.path.expanduser(folder))
    if not is_folder(root):
        if root.exists() and root.suffix.lower() in SUFFIXES:
            return {root.stem: [root]}
        what = "is a file" if root.exists() else "does not exist"
        raise InvalidImageError(f"The folder {str(root)!r} {what}. Give the folder that results were saved in.")
    found: dict[str, list[Path]] = {}
    for path in _candidates(root):
        inside = path.relative_to(root)
        if path.suffix.lower() in SUFFIXES and not _is_passed_over(inside):
            found.setdefault(inside.with_suffix("").as_posix(), []).append(path)
    for paths in found.values():
        paths.sort(key=lambda path: SUFFIXES.index(path.suffix.lower()))
    return dict(sorted(found.items()))


def _candidates(root: Path) -> Iterator[Path]:
    """List the files in a folder and below, and the folders that are one result."""
    for here, folders, files in os.walk(root):
        results = [name for name in folders if not is_folder(os.path.join(here, name))]
        folders[:] = sorted(set(folders) - set(results))
        yield from (Path(here, name) for name in sorted([*results, *files]) if name in results or os.path.isfile(os.path.join(here, name)))


def _is_passed_over(path: Path) -> bool:
    if path.name == _SUMMARY or path.stem.endswith(".overlay") or path.name.endswith(".labels.json"):
        return True
    return any(part.startswith(".") for part in path.parts)


def first_readable(paths: Sequence[Path]) -> LabelMap:
    """Open the first of some files that holds a result.

    Raises:
        InvalidImageError: If none does: what is wrong with the first.
    """
    trouble: Exception | None = None
    for path in paths:
        try:
            return open_map(path)
        except (InvalidImageError, MissingDependencyError) as error:
            trouble = trouble or error
    raise InvalidImageError(str(trouble) if trouble else "There is no file to read.") from trouble


def write_csv(path: str | os.PathLike[str], header: Sequence[str], rows: Iterable[Sequence[object]]) -> None:
    """Write a table as comma-separated values, UTF-8, complete or not at all; None leaves a field empty."""
    text = io.StringIO(newline="")
    writer = csv.writer(text)
    writer.writerow(header)
    writer.writerows(rows)
    with write_atomically(path) as file:
        file.write(text.getvalue().encode("utf-8", "surrogateescape"))  # names of files need not be valid Unicode
