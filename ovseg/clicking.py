"""Where to click next: where a hint would say most."""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float32]

MAX_CELLS = 96
"""Cells along the longer side that the map is reduced to."""
REACH = 0.06
"""How far a click is felt, as a part of the longer side: the standard deviation of the smoothing, and how far clicks keep apart."""


def place_click(entropy: Floats, taken: NDArray[np.bool_] | None = None) -> tuple[int, int]:
    """Choose the pixel around which the answer is most unsure, away from what was pointed at before.

    The entropy is smoothed (a Gaussian), so that the middle of an unsure region is chosen and not the seam between two sure ones.

    Args:
        entropy: (H, W) float32 in [0, 1].
        taken: (H, W) bool, pixels of earlier hints; or None.

    Returns:
        (x, y) [px].
    """
    height, width = entropy.shape
    side = max(1, math.ceil(max(height, width) / MAX_CELLS))
    unsure = _means(entropy, side)
    sigma = REACH * max(height, width) / side
    score = _smooth(_smooth(unsure, sigma).T, sigma).T
    if taken is not None and taken.any():
        rows, columns = np.nonzero(_means(taken.astype(np.float32), side) > 0)
        y, x = np.ogrid[: score.shape[0], : score.shape[1]]
        nearest = np.full(score.shape, np.inf)
        for row, column in zip(rows.tolist(), columns.tolist(), strict=True):
            np.minimum(nearest, (y - row) ** 2 + (x - column) ** 2, out=nearest)
        score = score * (1 - np.exp(-nearest / (2 * sigma**2)))
    best_row, best_column = divmod(int(score.argmax()), score.shape[1])
    return min(best_column * side + side // 2, width - 1), min(best_row * side + side // 2, height - 1)


def _means(values: Floats, side: int) -> Floats:
    """Average over cells of side x side pixels, those at the right and lower edge maybe smaller."""
    height, width = values.shape
    rows, columns = np.arange(0, height, side), np.arange(0, width, side)
    sums = np.add.reduceat(np.add.reduceat(values, rows, axis=0, dtype=np.float64), columns, axis=1)
    return np.asarray(sums / (np.diff(rows, append=height)[:, None] * np.diff(columns, append=width)), np.float32)


def _smooth(values: Floats, sigma: float) -> Floats:
    """Convolve the rows' direction with a Gaussian; beyond the edge is nothing, so that clicks stay off it."""
    count = len(values)
    apart = np.arange(count)[:, None] - np.arange(count)
    weights = np.exp(-(apart**2) / (2 * sigma**2))
    return np.asarray(weights @ values / weights.sum(1).max(), np.float32)
