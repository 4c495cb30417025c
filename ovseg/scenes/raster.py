"""What can be read by parts: rows and columns of an image that need not fit into memory."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, BinaryIO, Literal

import numpy as np
from numpy.typing import NDArray

from ovseg.errors import OutputError

Values = NDArray[Any]
Order = Literal["<", ">"]
"""Byte order."""

COPY_BYTES = 16 << 20
"""Bytes that are copied at a time."""


class NotReadHereError(Exception):
    """Inside `scenes`: this reader does not know the kind of file; another may."""


@dataclass(frozen=True)
class Georeference:
    """Where on Earth a raster lies.

    Attributes:
        tags: The GeoTIFF tags of a TIFF as they stand in it: tag -> (type, bytes).
        order: Byte order of these bytes, "<" or ">".
        crs: Coordinate reference system, as rasterio has it; None where the tags say it.
        transform: Affine transform from pixels to coordinates, as rasterio has it.
    """

    tags: Mapping[int, tuple[int, bytes]] = field(default_factory=dict)
    order: Order = "<"
    crs: Any = None
    transform: Any = None


@dataclass(frozen=True)
class Raster:
    """An image that is read by parts.

    Attributes:
        size: (H, W) [px].
        bands: Number of bands.
        dtype: Type of the values that `read` gives.
        read: Maps rows and columns to their values, (rows, columns, bands).
        palette: (N, 3) uint8 colours where the values are indices.
        alpha: Index of the band that says how opaque a pixel is; None for none.
        by_custom: Whether `alpha` is what four bands usually mean, and nothing says so.
        inverted: Whether the least value is white.
        color: Whether the first three bands are red, green and blue.
        nodata: The value of pixels without data; None for none.
        georeference: Where it lies.
        sequential: Whether reading columns costs as much as reading the whole rows.
        close: Closes what is open.
    """

    size: tuple[int, int]
    bands: int
    dtype: np.dtype[Any]
    read: Callable[[slice, slice], Values]
    palette: NDArray[np.uint8] | None = None
    alpha: int | None = None
    by_custom: bool = False
    inverted: bool = False
    color: bool = False
    nodata: float | None = None
    georeference: Georeference = field(default_factory=Georeference)
    sequential: bool = False
    close: Callable[[], None] = lambda: None


class Scratch:
    """An array in a file without a name, which the system removes when the process ends, however it ends.

    Args:
        folder: Where the file is; the folder of the output, as the usual one for temporary files may be in memory.
        shape: (H, W) or (H, W, C).
        dtype: Type of the values.

    Raises:
        OutputError: If the disk has no room.
    """

    def __init__(self, folder: Path, shape: tuple[int, ...], dtype: np.dtype[Any]) -> None:
        self.shape, self.dtype, self._folder = shape, dtype, folder
        self._line = int(np.prod(shape[1:])) * dtype.itemsize
        self._pixel = self._line // shape[1]
        try:
            self._file: BinaryIO = tempfile.TemporaryFile(dir=folder)
            if hasattr(os, "posix_fallocate"):
                os.posix_fallocate(self._file.fileno(), 0, shape[0] * self._line)  # a full disk is told now, not after an hour
        except OSError as error:
            self.close()
            raise self._no_room(error) from error

    def write(self, rows: slice, columns: slice, values: Values) -> None:
        """Write (rows, columns[, C]) values of the array's type."""
        whole = columns.stop - columns.start == self.shape[1]
        try:
            if whole:
                self._file.seek(rows.start * self._line)
                self._file.write(np.ascontiguousarray(values).data)
                return
            for row, line in zip(range(rows.start, rows.stop), values, strict=True):
                self._file.seek(row * self._line + columns.start * self._pixel)
                self._file.write(np.ascontiguousarray(line).data)
        except OSError as error:
            raise self._no_room(error) from error

    def read(self, rows: slice, columns: slice | None = None) -> Values:
        """Read (rows, columns[, C]) values."""
        self._file.flush()
        columns = columns or slice(0, self.shape[1])
        found = np.empty((rows.stop - rows.start, columns.stop - columns.start, *self.shape[2:]), self.dtype)
        step = max(1, COPY_BYTES // max(self._line, 1))
        for start in range(rows.start, rows.stop, step):
            stop = min(start + step, rows.stop)
            self._file.seek(start * self._line)
            lines = np.frombuffer(self._file.read((stop - start) * self._line), self.dtype).reshape(stop - start, *self.shape[1:])
            found[start - rows.start : stop - rows.start] = lines[:, columns]
        return found

    def close(self) -> None:
        """Give the disk its room back."""
        if hasattr(self, "_file"):
            self._file.close()

    def _no_room(self, error: OSError) -> OutputError:
        need = int(np.prod(self.shape)) * self.dtype.itemsize / 1e6
        return OutputError(
            f"Cannot keep {need:.0f} MB of working data in {str(self._folder)!r}: {error.strerror or error}. "
            "The folder of the output needs that much room while a scene is worked on, and then room for the output."
        )


def rows_at_once(width: int, pixel_bytes: int) -> int:
    """Say how many rows to handle at a time."""
    return max(1, COPY_BYTES // max(1, width * pixel_bytes))
