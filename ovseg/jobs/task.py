"""What a job does to one image; it can be sent to other processes."""

from __future__ import annotations

import dataclasses
import errno
import functools
import logging
import os
import secrets
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from ovseg.errors import InvalidArgumentError, OutputError, OvsegError
from ovseg.jobs.images import Item
from ovseg.jobs.manifest import Record
from ovseg.jobs.writing import write_result
from ovseg.output.folders import make_folder
from ovseg.output.render import count_pixels
from ovseg.result import Segmentation
from ovseg.segmenter import Segmenter, SegmentOptions, load
from ovseg.vocabulary import Labels, Vocabulary

logger = logging.getLogger(__name__)

STAGING = ".ovseg-job"
"""Folder in that of the results where files are while they are written."""

_NO_ROOM = (errno.ENOSPC, errno.EDQUOT, errno.EROFS)
_TRIAL = np.full((64, 64, 3), 128, np.uint8)

Loader = Callable[..., Segmenter]
"""Called with `threads=`, loads the model."""


@dataclass(frozen=True)
class Task:
    """The question, and where images and results are.

    Attributes:
        folder: Folder of the images.
        out: Folder of the results; None keeps them in memory.
        labels: The labels and their rules.
        options: Options of `Segmenter.segment`.
    """

    folder: Path
    out: Path | None
    labels: Vocabulary
    options: SegmentOptions

    def settings(self, segmenter: Segmenter) -> dict[str, Any]:
        """Ask a small grey picture, so that a wrong question is an error now, and return what decides the answers, as JSON has it."""
        names = segmenter.segment(_TRIAL, self.labels, **self.options).labels
        card = segmenter.card
        asked = {key: value for key, value in self.options.items() if value is not None and value is not False}
        model = {"name": card.name, "sha256": dict(card.sha256), "options": dict(card.options)}
        options = {key: plain(value) for key, value in asked.items()}
        return {"model": plain(model), "labels": plain(self.labels), "names": list(names), **options}

    def do(self, segmenter: Segmenter, item: Item) -> tuple[Record, Segmentation | None]:
        """Segment one image and write its results.

        Returns:
            The line for the manifest, and the result; with "error" in the line and no result where the image is at fault.

        Raises:
            OutputError: If there is no room for results.
        """
        path = self.folder / item.name
        record: Record = {"image": item.name, "stamp": stamp_of(path)}
        try:
            result = segmenter.segment(path, self.labels, **self.options)
            for kind, name in item.outputs.items():
                self._write(result, kind, name, item.name)
        except OvsegError as error:
            if isinstance(error.__cause__, OSError) and error.__cause__.errno in _NO_ROOM:
                raise
            return {**record, "error": str(error)}, None
        except Exception as error:  # one strange image must not end a long job
            logger.debug("%s", path, exc_info=True)
            return {**record, "error": f"{path}: {type(error).__name__}: {error}"}, None
        counts = count_pixels(result.segmentation, len(result.labels))
        found = [[int(index), int(counts[index])] for index in np.flatnonzero(counts)]
        height, width = result.segmentation.shape
        return {**record, "height": height, "width": width, "pixels": found, "outputs": item.outputs}, result

    def _write(self, result: Segmentation, kind: str, name: str, image: str) -> None:
        if self.out is None:
            return
        with placed(self.out, name) as staged:
            write_result(result, staged, kind, image)


@contextmanager
def placed(out: Path, name: str) -> Iterator[Path]:
    """Give a path to write to, from which the file moves to its place when it is complete.

    What a killed job leaves behind lies in one folder, `STAGING`, which the next start empties.

    Args:
        out: Folder of the results.
        name: Path of the file in it; folders are made.
    """
    target, staging = out / name, out / STAGING
    make_folder(target.parent)
    make_folder(staging)
    staged = staging / (secrets.token_hex(8) + target.suffix)
    try:
        yield staged
        os.replace(staged, target)
    except OSError as error:
        if isinstance(error, OutputError):
            raise
        raise OutputError(f"Cannot write {str(target)!r}: {error.strerror}.") from error
    finally:
        staged.unlink(missing_ok=True)


def clear_staging(out: Path) -> None:
    """Remove what a killed job left behind; only whoever holds the manifest may do that."""
    staging = out / STAGING
    if staging.is_dir():
        for path in staging.iterdir():
            path.unlink(missing_ok=True)
        staging.rmdir()


def stamp_of(path: Path) -> list[int] | None:
    """Return the size [bytes] and the time of change [ns] of a file, or None if there is none."""
    try:
        stat = path.stat()
    except OSError:
        return None
    return [stat.st_size, stat.st_mtime_ns]


def fixed_labels(labels: Labels) -> Vocabulary:
    """Read labels once: a file may change, and a generator can be read only once."""
    return Vocabulary.of(labels)


def loader_of(model: str | Path | Segmenter | Loader, device: str | None) -> Segmenter | Loader:
    """Turn a model's name into a function that loads it, with threads to be named later."""
    if isinstance(model, (str, Path)):
        return functools.partial(load, model, device=device)
    if device is not None:
        raise InvalidArgumentError(f"device={device!r} belongs to the name of a model; this one is loaded, or knows its device.")
    return model


def plain(value: Any) -> Any:
    """Put a setting into JSON's words, the same for the same setting; what a rule leaves open is left out, so that later kinds may come."""
    if isinstance(value, Mapping):
        return {str(key): plain(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [plain(item) for item in value]
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        fields = {field.name: plain(getattr(value, field.name)) for field in dataclasses.fields(value)}
        return {name: item for name, item in fields.items() if item not in (None, "", [], {})}
    if isinstance(value, (np.ndarray, np.generic)):
        return value.tolist()
    if value is None or isinstance(value, (str, int, float)):
        return value
    if callable(value):
        return f"{getattr(value, '__module__', '')}.{getattr(value, '__qualname__', repr(type(value)))}"
    return str(value)
