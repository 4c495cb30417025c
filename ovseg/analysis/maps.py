"""Label maps that are read by rows: results in memory, and what scenes of any size are written to."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ovseg.errors import InvalidArgumentError, InvalidImageError, MissingDependencyError, OvsegError
from ovseg.result import Segmentation

SCENES = (".tif", ".tiff", ".npy", ".zarr")
"""Formats that scenes alone are written to."""
_ROWS = 512  # rows are read in such numbers, or multiples: the side of the tiles of scenes
_PIXELS = 1 << 22  # pixels that are read at a time, at least a row of tiles
_MAX_PIXELS = 1 << 30  # of a map that is held in memory as a whole
_DESCRIPTION = 270  # TIFF tag

Rows = Callable[[int, int], NDArray[Any]]


@dataclass(frozen=True)
class LabelMap:
    """A label map that need not be in memory.

    Attributes:
        labels: K names; a name's place is its number.
        ignore_index: Number of the undecided pixels and of those without data.
        size: (H, W) [px].
        rows: Reads rows from one number up to another: (rows, W) uint8 or uint16.
        close: Closes what is open.
        result: The result that it was made of, or None.
    """

    labels: tuple[str, ...]
    ignore_index: int
    size: tuple[int, int]
    rows: Rows
    close: Callable[[], None] = lambda: None
    result: Segmentation | None = None

    @classmethod
    def of(cls, result: Segmentation) -> LabelMap:
        """Read a result in memory by rows."""
        height, width = result.segmentation.shape
        return cls(
            result.labels, result.ignore_index, (height, width), lambda start, stop: result.segmentation[start:stop], result=result
        )

    def strips(self) -> Iterator[tuple[slice, NDArray[Any]]]:
        """Yield rows and their labels, from the top.

        Raises:
            InvalidImageError: If a part cannot be read, or holds a number that no label has.
        """
        height, width = self.size
        step = max(_ROWS, _PIXELS // width // _ROWS * _ROWS)
        for start in range(0, height, step):
            stop = min(start + step, height)
            try:
                found = self.rows(start, stop)
            except OvsegError:
                raise
            except Exception as error:  # zarr answers damaged chunks with whatever its codecs say
                raise InvalidImageError(f"Rows {start} to {stop} of a label map cannot be read: {error}.") from error
            if self.result is None and ((found >= len(self.labels)) & (found != self.ignore_index)).any():
                raise InvalidImageError(f"A label map has {len(self.labels)} labels, but rows {start} to {stop} hold other numbers.")
            yield slice(start, stop), found

    def whole(self) -> Segmentation:
        """Hold the map in memory.

        Raises:
            InvalidArgumentError: If it has more than 2^30 pixels.
            InvalidImageError: If a part cannot be read.
        """
        if self.result is not None:
            return self.result
        height, width = self.size
        if height * width > _MAX_PIXELS:
            raise InvalidArgumentError(
                f"Regions need the whole map in memory, and {height} x {width} pixels are more than 2^30. Leave the regions out."
            )
        parts = [part for _, part in self.strips()]
        return Segmentation(np.concatenate(parts), self.labels, self.ignore_index)


def open_map(path: str | os.PathLike[str]) -> LabelMap:
    """Open a file that `Segmentation.save` or `segment_scene` wrote.

    Raises:
        InvalidImageError: If it cannot be read, or was not written by ovseg.
        MissingDependencyError: If it is .zarr, and zarr is not installed.
    """
    path = Path(os.path.expanduser(os.fspath(path)))
    opener = {".tif": _open_tiff, ".tiff": _open_tiff, ".npy": _open_npy, ".zarr": _open_zarr}.get(path.suffix.lower())
    return LabelMap.of(Segmentation.load(path)) if opener is None else opener(path)


def _open_tiff(path: Path) -> LabelMap:
    """Open a TIFF: what its numbers mean stands in its description, or else in the file beside it."""
    from ovseg.scenes.raster import NotReadHereError
    from ovseg.scenes.tiff import TiffFile

    file = _open(path)
    try:
        tiff = TiffFile(file, repr(str(path)))
        said = tiff.tags.get(_DESCRIPTION, (2, b""))[1].split(b"\0")[0]
        facts = _facts(said) or _facts_beside(path)
        if tiff.samples != 1:
            raise _strange(path, f"it has {tiff.samples} bands")
        return _checked(
            path, facts, (tiff.height, tiff.width), tiff.dtype,
            lambda start, stop: tiff.read(slice(start, stop), slice(0, tiff.width))[..., 0], file.close,
        )  # fmt: skip
    except NotReadHereError as error:
        file.close()
        raise _strange(path, str(error)) from error
    except BaseException:
        file.close()
        raise


def _open_npy(path: Path) -> LabelMap:
    facts = _facts_beside(path)
    try:
        array = np.load(path, mmap_mode="r", allow_pickle=False)
    except (OSError, ValueError) as error:
        raise InvalidImageError(f"Cannot load {str(path)!r}: {getattr(error, 'strerror', None) or error}.") from error
    return _checked(path, facts, array.shape, array.dtype, lambda start, stop: np.array(array[start:stop]))


def _open_zarr(path: Path) -> LabelMap:
    try:
        import zarr
    except ImportError as error:
        raise MissingDependencyError(f"Reading {str(path)!r} needs zarr: pip install 'ovseg[zarr]'.") from error
    try:
        array: Any = zarr.open_array(str(path), mode="r")
        facts = dict(array.attrs)
    except Exception as error:  # zarr has many kinds
        raise InvalidImageError(f"Cannot load {str(path)!r}: {error}.") from error
    return _checked(path, facts, tuple(array.shape), array.dtype, lambda start, stop: np.asarray(array[start:stop]))


def _open(path: Path) -> Any:
    try:
        return open(path, "rb")
    except OSError as error:
        raise InvalidImageError(f"Cannot load {str(path)!r}: {error.strerror or error}.") from error


def _facts(text: bytes) -> Mapping[str, Any]:
    """Read what a scene says of its numbers; nothing where the text is something else."""
    try:
        found = json.loads(text)
    except ValueError:
        return {}
    return found if isinstance(found, dict) and "labels" in found else {}


def _facts_beside(path: Path) -> Mapping[str, Any]:
    beside = path.with_suffix(".labels.json")
    try:
        return _facts(beside.read_bytes())
    except OSError:
        return {}


def _checked(
    path: Path, facts: Mapping[str, Any], shape: tuple[int, ...], dtype: Any, rows: Rows, close: Callable[[], None] = lambda: None
) -> LabelMap:
    """Refuse what no scene is written to."""
    labels, ignore_index = facts.get("labels"), facts.get("ignore_index")
    if not isinstance(labels, list) or not labels or not all(isinstance(label, str) for label in labels):
        raise _strange(path, "nothing says what its numbers mean")
    expected = (np.uint8, 255) if len(labels) <= 255 else (np.uint16, 65535)
    if len(shape) != 2 or 0 in shape or dtype != expected[0] or ignore_index != expected[1]:
        raise _strange(path, f"for {len(labels)} labels it holds {dtype} of shape {shape} with {ignore_index} for undecided")
    return LabelMap(tuple(labels), expected[1], (shape[0], shape[1]), rows, close)


def _strange(path: Path, why: str) -> InvalidImageError:
    return InvalidImageError(f"Cannot load {str(path)!r}: damaged, or not written by ovseg: {why}.")
