"""Blend the features of tiles into strips of one seamless feature map, from top to bottom, with a few rows in memory."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np

from ovseg.scenes.layout import Layout
from ovseg.tiling import Floats


@dataclass(frozen=True)
class Strip:
    """A finished part of the feature map.

    Attributes:
        rows: The rows of the grid that it is about [cells].
        columns: The columns that it is about [cells].
        top: First row that `embedding` holds: a few above `rows`, for interpolation.
        left: First column that it holds.
        embedding: (D, rows, columns) float32, L2-normalised over D; overwritten when the next strip is asked for.
    """

    rows: slice
    columns: slice
    top: int
    left: int
    embedding: Floats


def swath_cells(layout: Layout, depth: int, halo: int, budget: int) -> int:
    """Say how many columns of cells fit into a budget [bytes], of features of `depth` dimensions and what is made of them."""
    rows = layout.tile_cells[0] + 2 * halo
    return max(1, budget // (2 * 4 * depth * rows) - 2 * halo)


def blended(
    layout: Layout,
    swath: slice,
    halo: int,
    encode: Callable[[int, list[int]], Iterator[Floats | None]],
    depth: int,
    finish: Callable[[int, int, Floats], None] | None = None,
) -> Iterator[Strip]:
    """Encode the tiles that see a swath and blend their features.

    A cell's feature is the mean of the tiles' features by `layout.weights`, L2-normalised. As every tile is weighed by its place in the
    scene alone, swaths fit together as if they were one.

    Args:
        layout: Where the tiles lie.
        swath: Columns of the grid.
        halo: Cells around a strip that are given with it.
        encode: Maps a row and columns of tiles to the (D, tall, wide) float32 features of each, or to None where there is nothing to see.
        depth: D.
        finish: Is given each row when it is blended, its number, its first column and (D, columns) features to change in place.

    Yields:
        Strips from the top to the bottom of the grid.
    """
    height, width = layout.cells
    tall, wide = layout.tile_cells
    left, right = max(0, swath.start - halo), min(width, swath.stop + halo)
    down, across = layout.weights
    band = np.zeros((depth, min(height, tall + 2 * halo), right - left), np.float32)
    first = done = final = 0  # the row where the band begins; rows that were given away; rows that are normalised
    for i, top in enumerate(layout.tops):
        columns = layout.columns_of(swath, halo)
        for j, features in zip(columns, encode(i, columns), strict=True):
            if features is not None:
                start = layout.lefts[j]
                a, b = max(left, start), min(right, start + wide)
                weight = down[i][:, None] * across[j][a - start : b - start]
                band[:, top - first : top - first + tall, a - left : b - left] += features[:, :, a - start : b - start] * weight
        ready = layout.tops[i + 1] if i + 1 < len(layout.tops) else height
        for row in range(final, ready):  # one by one: a norm of all would need as much memory again
            line = band[:, row - first]
            line /= np.maximum(np.linalg.norm(line, axis=0), 1e-12)
            if finish is not None:
                finish(row, left, line)
        final = ready
        stop = height if ready == height else ready - halo
        if stop > done:
            above = max(0, done - halo)
            rows = slice(above - first, min(height, stop + halo) - first)
            yield Strip(slice(done, stop), swath, above, left, band[:, rows])
            done = stop
        keep = max(0, done - halo)
        if keep > first:
            count = min(top + tall, height) - keep
            for plane in band:  # one by one, for the same reason
                plane[:count] = plane[keep - first : keep - first + count].copy()
                plane[count:] = 0
            first = keep
