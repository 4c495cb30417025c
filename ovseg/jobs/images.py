"""Which images of a folder a job is about, and where their results go."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from pathlib import Path

from ovseg.errors import InvalidArgumentError, InvalidImageError
from ovseg.image import IMAGE_SUFFIXES
from ovseg.jobs.writing import SUFFIX_OF
from ovseg.output.folders import check_folder


@dataclass(frozen=True)
class Item:
    """One image of a job.

    Attributes:
        name: Path below the folder, with "/" between its parts.
        outputs: Format -> path below the results' folder, with "/" between its parts.
    """

    name: str
    outputs: dict[str, str]


def find_images(folder: str | os.PathLike[str], *, recursive: bool = False, without: str | os.PathLike[str] | None = None) -> list[str]:
    """List the images of a folder by the suffix of their names.

    Hidden files and folders are left out (macOS leaves "._beach.jpg" beside "beach.jpg"); links to folders are not followed.

    Args:
        folder: The folder.
        recursive: Whether to look into the folders in it.
        without: A folder that is left out: the one the results go to.

    Returns:
        Paths below the folder, with "/" between their parts, in the order of their characters: the same on every machine.

    Raises:
        InvalidImageError: If the folder cannot be read.
    """
    root = os.fspath(folder)
    skipped = None if without is None else os.path.realpath(without)

    def fail(error: OSError) -> None:
        raise InvalidImageError(f"The folder {error.filename!r} cannot be read: {error.strerror}.") from error

    names = []
    for here, folders, files in os.walk(root, onerror=fail):
        folders[:] = [name for name in folders if not name.startswith(".") and os.path.realpath(os.path.join(here, name)) != skipped]
        if not recursive:
            folders.clear()
        for name in files:
            if not name.startswith(".") and os.path.splitext(name)[1].lower() in IMAGE_SUFFIXES:
                names.append(os.path.relpath(os.path.join(here, name), root).replace(os.sep, "/"))
    return sorted(names)


def plan(names: Sequence[str], formats: Sequence[str], reserved: Collection[str] = ()) -> list[Item]:
    """Decide what is written for each image.

    "sub/beach.jpg" becomes "sub/beach.png" and so on. Where two images would share a result ("beach.jpg" and "beach.tif"), or one would
    take a reserved name, all of these keep their suffix: "beach.jpg.png".

    Args:
        names: Images, as `find_images` lists them.
        formats: Keys of `SUFFIX_OF`.
        reserved: Names in the results' folder that are taken.
    """

    def target(stem: str, kind: str) -> str:
        return stem + SUFFIX_OF[kind]

    stems = {name: os.path.splitext(name)[0] for name in names}
    wanted = Counter(target(stems[name], kind).casefold() for name in names for kind in formats)
    wanted.update(name.casefold() for name in reserved)
    items = []
    for name in names:
        clash = any(wanted[target(stems[name], kind).casefold()] > 1 for kind in formats)
        items.append(Item(name, {kind: target(name if clash else stems[name], kind) for kind in formats}))
    return items


def check_targets(folder: str | os.PathLike[str], out: str | os.PathLike[str], items: Sequence[Item]) -> None:
    """Refuse to write over an image, or one file twice, or into what is no folder.

    Raises:
        InvalidArgumentError: If that would happen; the message names the image.
        OutputError: If a file has the name of the folder.
    """
    check_folder(Path(out))
    root, target = Path(os.path.realpath(folder)), Path(os.path.realpath(out))
    if root == target:
        raise InvalidArgumentError(f"The results would be among the images: choose another folder than {str(folder)!r} for them.")
    images = {os.path.join(root, item.name) for item in items}
    written: dict[str, str] = {}
    for item in items:
        for name in item.outputs.values():
            path = os.path.join(target, name)
            if path in images:
                raise InvalidArgumentError(f"The result of {item.name!r} would overwrite the image {path!r}. Choose another folder for it.")
            other = written.setdefault(path, item.name)
            if other != item.name:
                raise InvalidArgumentError(f"{name!r} would be written twice, for {other!r} and {item.name!r}. Rename one of them.")
