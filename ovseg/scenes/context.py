"""A coarse look at a scene as a whole, for what tiles are too small to show."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from ovseg.features import ImageFeatures
from ovseg.scenes.layout import Layout
from ovseg.scenes.pixels import Pixels
from ovseg.scenes.raster import rows_at_once
from ovseg.scenes.thumbnail import Thumbnail
from ovseg.segmenter import Segmenter
from ovseg.similarity import Axis
from ovseg.tiling import Floats

SIDE = 2048
"""Longest side of what is looked at, before the model fits it to its own size [px]."""


@dataclass(frozen=True)
class Context:
    """Features of the whole scene, added to those of its tiles.

    Attributes:
        features: Of the scene, reduced.
        layout: The cells of the scene.
        weight: How much they count beside the tiles', whose weight is 1.
    """

    features: ImageFeatures
    layout: Layout
    weight: float

    @classmethod
    def of(cls, segmenter: Segmenter, pixels: Pixels, layout: Layout, weight: float) -> Context:
        """Look at a scene by its own policy for images that it sees whole."""
        height, width = pixels.size
        small = Thumbnail(pixels.size, SIDE)
        step = rows_at_once(width, 3)
        for top in range(0, height, step):
            small.add(top, 0, pixels.read(slice(top, min(top + step, height)), slice(0, width))[0])
        return cls(segmenter.encode_image(small.picture()), layout, weight)

    def add(self, row: int, left: int, line: Floats) -> None:
        """Add to the features of a row of cells from `left` on, (D, columns) float32, in place, and scale them to unit length again."""
        down, across = (
            Axis.make(self.layout.cells[axis], self.features.embedding.shape[axis + 1], self._extent(axis)) for axis in (0, 1)
        )
        columns = slice(left, left + line.shape[1])
        low, high, weight = across.low[columns], across.high[columns], across.weight[columns]
        upper, lower = self.features.embedding[:, down.low[row]], self.features.embedding[:, down.high[row]]
        coarse = upper + (lower - upper) * down.weight[row]  # (D, w) of the coarse grid
        line += np.float32(self.weight) * (coarse[:, low] + (coarse[:, high] - coarse[:, low]) * weight)
        line /= np.maximum(np.linalg.norm(line, axis=0), 1e-12)

    def _extent(self, axis: int) -> float:
        """Say how many coarse cells the padded grid of the scene would cover."""
        covered = self.layout.size[axis] / self.layout.cell
        return self.features.extent[axis] * self.layout.cells[axis] / covered
