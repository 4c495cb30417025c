"""Rows of a scene at the size at which the network sees it, read once from top to bottom."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from ovseg.scenes.layout import Layout
from ovseg.scenes.pixels import Pixels

CHUNK_PIXELS = 1 << 22
"""Pixels of the scene that are read at a time, or one row of cells."""

_FILTERS = {"bilinear": (Image.Resampling.BILINEAR, 1), "bicubic": (Image.Resampling.BICUBIC, 2)}  # filter, reach [px]


@dataclass(frozen=True)
class _Chunk:
    """Some rows of cells.

    Attributes:
        first: First row of cells.
        rgb: (rows * stride, columns * stride, 3) uint8 as the network sees them; fewer where the scene ends.
        gaps: (rows, columns) bits of the scene's pixels that have no data, packed along the columns; None where all have.
        filled: (rows of cells, columns of cells) bool, whether a cell has any data.
    """

    first: int
    rgb: NDArray[np.uint8]
    gaps: NDArray[np.uint8] | None
    filled: NDArray[np.bool_]

    @property
    def stop(self) -> int:
        return self.first + len(self.filled)


class Rows:
    """Rows of some columns of a scene.

    Args:
        pixels: The scene.
        layout: Its cells.
        columns: Which columns of cells are read.
        stride: Pixels that the network sees for a cell.
        resample: How pixels are resized: "bilinear" or "bicubic".
        seen: Is told of new pixels of the scene: their first row and column, and (rows, columns, 3) uint8 RGB.
    """

    def __init__(
        self,
        pixels: Pixels,
        layout: Layout,
        columns: slice,
        stride: int,
        resample: str,
        seen: Callable[[int, int, NDArray[np.uint8]], None] | None = None,
    ) -> None:
        self._pixels, self._layout, self._columns, self._stride, self._seen = pixels, layout, columns, stride, seen
        self._filter, reach = _FILTERS[resample]
        self._same = layout.cell == stride
        self._reach = 0 if self._same else int(np.ceil(reach * max(layout.cell / stride, 1))) + 1
        self._chunks: list[_Chunk] = []
        wide = layout.pixels(1, columns.start, columns.stop)
        self._step = max(1, CHUNK_PIXELS // (layout.cell * (wide.stop - wide.start)))

    def need(self, first: int, stop: int) -> None:
        """Have some rows of cells ready, and forget all that are above them."""
        self._chunks = [chunk for chunk in self._chunks if chunk.stop > first]
        start = self._chunks[-1].stop if self._chunks else first
        stop = min(stop, -(-self._layout.size[0] // self._layout.cell))
        while start < stop:
            self._chunks.append(self._read(start, min(start + self._step, stop)))
            start = self._chunks[-1].stop

    def tile(self, rows: slice, columns: slice) -> NDArray[np.uint8] | None:
        """Return what the network sees of some cells, (rows, columns, 3) uint8 RGB, or None where nothing has data."""
        across = slice(columns.start - self._columns.start, columns.stop - self._columns.start)
        inside = slice(across.start * self._stride, across.stop * self._stride)
        parts, filled = [], False
        for chunk, part in self._within(rows):
            parts.append(chunk.rgb[part.start * self._stride : part.stop * self._stride, inside])
            filled |= bool(chunk.filled[part, across].any())
        return np.concatenate(parts) if filled else None

    def gaps(self, rows: slice, columns: slice) -> NDArray[np.bool_] | None:
        """Return which pixels of some cells have no data, (rows, columns) bool, or None where all have."""
        wide, x = self._layout.pixels(1, self._columns.start, self._columns.stop), self._layout.pixels(1, columns.start, columns.stop)
        parts, found = [], False
        for chunk, part in self._within(rows):
            y = self._layout.pixels(0, chunk.first + part.start, chunk.first + part.stop)
            if chunk.gaps is None:
                parts.append(np.zeros((y.stop - y.start, x.stop - x.start), bool))
                continue
            found = True
            top = y.start - chunk.first * self._layout.cell
            bits = np.unpackbits(chunk.gaps[top : top + y.stop - y.start], axis=1, count=wide.stop - wide.start)
            parts.append(bits[:, x.start - wide.start : x.stop - wide.start].astype(bool))
        return np.concatenate(parts) if found else None

    def _within(self, rows: slice) -> list[tuple[_Chunk, slice]]:
        found = []
        for chunk in self._chunks:
            start, stop = max(rows.start, chunk.first), min(rows.stop, chunk.stop)
            if start < stop:
                found.append((chunk, slice(start - chunk.first, stop - chunk.first)))
        return found

    def _read(self, first: int, stop: int) -> _Chunk:
        layout = self._layout
        inner = layout.pixels(0, first, stop), layout.pixels(1, self._columns.start, self._columns.stop)
        y, x = (
            slice(max(0, part.start - self._reach), min(length, part.stop + self._reach))
            for part, length in zip(inner, layout.size, strict=True)
        )
        rgb, valid = self._pixels.read(y, x)
        own = tuple(slice(part.start - around.start, part.stop - around.start) for part, around in zip(inner, (y, x), strict=True))
        if self._seen is not None:
            self._seen(inner[0].start, inner[1].start, rgb[own])
        across = -(-(inner[1].stop - inner[1].start) // layout.cell)
        gaps, filled = None, np.ones((stop - first, across), bool)
        if valid is not None and not valid[own].all():
            gaps = np.packbits(~valid[own], axis=1)
            down = np.arange(stop - first) * layout.cell
            filled = np.logical_or.reduceat(np.logical_or.reduceat(valid[own], down, 0), np.arange(across) * layout.cell, 1)
        if not self._same:
            rgb = self._resized(rgb, own, (stop - first, across))
        return _Chunk(first, rgb, gaps, filled)

    def _resized(self, image: NDArray[np.uint8], own: tuple[slice, ...], cells: tuple[int, int]) -> NDArray[np.uint8]:
        """Resize a part as if the whole scene had been resized: the filter looks at the pixels around it."""
        cell = self._layout.cell
        bottom, right = (part.start + count * cell for part, count in zip(own, cells, strict=True))
        missing = max(0, bottom - len(image)), max(0, right - image.shape[1])  # the last cells may reach beyond the scene
        if any(missing):
            image = np.pad(image, ((0, missing[0]), (0, missing[1]), (0, 0)), mode="edge")
        size = cells[1] * self._stride, cells[0] * self._stride
        picture = Image.fromarray(np.ascontiguousarray(image))
        return np.asarray(picture.resize(size, self._filter, box=(own[1].start, own[0].start, right, bottom)))
