"""A small picture of a scene, made from its rows as they pass by."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ovseg.scenes.raster import Scratch

SIDE = 2048
"""Longest side [px]."""


class Thumbnail:
    """Means over squares of pixels.

    Args:
        size: (H, W) of the scene [px].
        side: Longest side of the small picture [px].
    """

    def __init__(self, size: tuple[int, int], side: int = SIDE) -> None:
        self.step = max(1, -(-max(size) // side))
        self._size = size
        small = -(-size[0] // self.step), -(-size[1] // self.step)
        self._sums = np.zeros((*small, 3), np.uint32)

    def window(self, columns: slice) -> Callable[[int, int, NDArray[np.uint8]], None]:
        """Return what adds those columns of the parts that it is given."""

        def add(top: int, left: int, rgb: NDArray[np.uint8]) -> None:
            self.add(top, columns.start, rgb[:, columns.start - left : columns.stop - left])

        return add

    def add(self, top: int, left: int, rgb: NDArray[np.uint8]) -> None:
        """Add a part of the scene, (rows, columns, 3) uint8 RGB, that was not added before."""
        down, rows = self._edges(top, len(rgb))
        across, columns = self._edges(left, rgb.shape[1])
        sums = np.add.reduceat(np.add.reduceat(rgb, down, axis=0, dtype=np.uint32), across, axis=1)
        self._sums[rows, columns] += sums

    def _edges(self, start: int, length: int) -> tuple[NDArray[np.intp], slice]:
        first, last = start // self.step, (start + length - 1) // self.step
        edges = np.maximum(np.arange(first, last + 1) * self.step - start, 0)
        return edges, slice(first, last + 1)

    def picture(self) -> NDArray[np.uint8]:
        """Return (h, w, 3) uint8 RGB."""
        tall, wide = (
            np.minimum(np.arange(1, count + 1) * self.step, size) - np.arange(count) * self.step
            for count, size in zip(self._sums.shape, self._size, strict=False)
        )
        area = (tall[:, None] * wide).astype(np.uint32)[..., None]
        return ((self._sums + area // 2) // area).astype(np.uint8)

    def sample(self, values: Scratch) -> NDArray[Any]:
        """Take the number in the middle of each square: (h, w)."""
        height, width = self._size
        rows = np.minimum(np.arange(self._sums.shape[0]) * self.step + self.step // 2, height - 1)
        columns = np.minimum(np.arange(self._sums.shape[1]) * self.step + self.step // 2, width - 1)
        return np.stack([values.read(slice(row, row + 1))[0, columns] for row in rows.tolist()])
