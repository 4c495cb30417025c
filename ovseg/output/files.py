"""Writing files so that a reader never sees half of one."""

from __future__ import annotations

import json
import math
import os
import secrets
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO

from ovseg.errors import InvalidArgumentError, OutputError

if TYPE_CHECKING:
    from PIL.Image import Image

PICTURES = {".png": "PNG", ".jpg": "JPEG", ".jpeg": "JPEG", ".webp": "WEBP"}
"""What a picture can be written as: suffix -> Pillow's name."""


def check_overwrites(inputs: Iterable[Any], targets: Iterable[str | os.PathLike[str]]) -> None:
    """Refuse to write over what is read, also by another name of it (links).

    Args:
        inputs: What is read; what is no path of a file (arrays, URLs, None) does not count.
        targets: What is going to be written.

    Raises:
        InvalidArgumentError: If that would happen; the message names both.
    """
    read: dict[tuple[int, int] | None, Any] = {key: source for source in inputs if (key := _identity(source)) is not None}
    for target in targets:
        source = read.get(_identity(target))
        if source is not None:
            raise InvalidArgumentError(
                f"{os.fspath(target)!r} would be written over its input {os.fspath(source)!r}. Choose another name for the result (-o)."
            )


def _identity(path: Any) -> tuple[int, int] | None:
    """Tell files from each other: device and number; None if there is no such file."""
    if not isinstance(path, (str, os.PathLike)):
        return None
    try:
        found = os.stat(os.path.expanduser(path))
    except (OSError, ValueError):  # a name may be too long, or hold a null character
        return None
    return found.st_dev, found.st_ino


@contextmanager
def write_atomically(path: str | os.PathLike[str]) -> Iterator[BinaryIO]:
    """Open a file for writing that appears under its name only when it is complete.

    The bytes go to a temporary file in the same folder, which then takes the place of `path`. When
    anything fails, the temporary file is removed and an existing file stays as it was. The file
    gets the permissions of any new file; a symbolic link is followed.

    Args:
        path: The file to write; its folder must exist.

    Yields:
        The open file, binary and seekable.

    Raises:
        OutputError: If the file cannot be written.
    """
    try:
        target = Path(os.path.realpath(path))
        check_target(target, path)
        temporary = target.with_name(f".ovseg-{secrets.token_hex(8)}.tmp")
        # Not tempfile: its files are private to the user, whatever the umask says.
        flags = os.O_RDWR | os.O_CREAT | os.O_EXCL | getattr(os, "O_BINARY", 0)
        descriptor = os.open(temporary, flags, 0o666)
    except OutputError:
        raise
    except (OSError, ValueError) as error:  # a name may be too long, or hold a null character
        raise _explain(path, error) from error
    try:
        with os.fdopen(descriptor, "w+b") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, target)
    except BaseException as error:
        temporary.unlink(missing_ok=True)
        if isinstance(error, OSError) and not isinstance(error, OutputError):
            raise _explain(path, error) from error
        raise


def write_json(path: str | os.PathLike[str], document: Any) -> None:
    """Write a JSON file, UTF-8, complete or not at all.

    Args:
        path: Where to.
        document: What JSON can hold; NaN becomes null.

    Raises:
        OutputError: If it cannot be written.
    """
    text = json.dumps(without_nan(document), ensure_ascii=False, indent=1, allow_nan=False)
    with write_atomically(path) as file:
        file.write(f"{text}\n".encode("utf-8", "backslashreplace"))  # names of files need not be valid Unicode: JSON escapes them so


def without_nan(value: Any) -> Any:
    """Put None in the place of NaN, which JSON does not know, in a value and in all that is in it."""
    if isinstance(value, float) and math.isnan(value):
        return None
    if isinstance(value, dict):
        return {key: without_nan(item) for key, item in value.items()}
    if isinstance(value, tuple | list):
        return [without_nan(item) for item in value]
    return value


def write_picture(path: Path, picture: Image) -> None:
    """Write a picture in the format of its suffix, a key of `PICTURES`, complete or not at all.

    Raises:
        OutputError: If it cannot be written.
    """
    try:
        with write_atomically(path) as file:
            picture.save(file, PICTURES[path.suffix.lower()])
    except ValueError as error:  # WebP takes at most 16,383 pixels a side
        raise OutputError(f"Cannot write {str(path)!r}: {error}.") from error


def _explain(path: str | os.PathLike[str], error: Exception) -> OutputError:
    reason = getattr(error, "strerror", None) or error
    return OutputError(f"Cannot write {os.fspath(path)!r}: {reason}.")


def check_target(target: Path, path: str | os.PathLike[str]) -> None:
    """Refuse a name under which no file can be written; for those who would learn of it only after long work.

    Args:
        target: The file.
        path: Its name as the user gave it.

    Raises:
        OutputError: If it is a folder, a device, or in a folder that does not exist.
    """
    name = os.fspath(path)
    if target.is_dir():
        raise OutputError(f"Cannot write {name!r}: it is a folder; give the name of a file in it.")
    if target.exists() and not target.is_file():
        # Replacing a device or a pipe would destroy it.
        raise OutputError(f"Cannot write {name!r}: it exists and is not a regular file.")
    if not target.parent.is_dir():
        raise OutputError(
            f"Cannot write {name!r}: the folder {str(target.parent)!r} does not exist; "
            "create it first."
        )
