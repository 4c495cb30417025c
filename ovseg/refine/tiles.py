"""Overlapping tiles, and the labels that matter in each: what keeps the memory bounded."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from ovseg.refine.filters import Floats


def tiles(size: tuple[int, int], side: int, overlap: int) -> Iterator[tuple[slice, slice, Floats]]:
    """Cut an image into overlapping tiles.

    Args:
        size: (H, W) of the image [px].
        side: Largest side of a tile [px].
        overlap: How much neighbours share [px], at least 1 and less than half of `side`.

    Yields:
        Rows, columns, and (rows, columns) float32 weights in (0, 1]: at each pixel those of all tiles sum to 1.
    """
    down, across = (_runs(length, side, overlap) for length in size)
    for rows, tall in down:
        for columns, wide in across:
            yield rows, columns, tall[:, None] * wide


def _runs(length: int, side: int, overlap: int) -> list[tuple[slice, Floats]]:
    """Cut one axis; weights rise and fall linearly where runs overlap."""
    starts = [0, *range(side - overlap, length - overlap, side - overlap)]
    runs = []
    for start in starts:
        stop = min(start + side, length)
        weight = np.ones(stop - start, np.float32)
        ramp = (np.arange(overlap, dtype=np.float32) + 0.5) / overlap
        if start > 0:
            weight[:overlap] = ramp
        if stop < length:
            weight[-overlap:] -= ramp
        runs.append((slice(start, stop), weight))
    return runs


def labels_that_matter(scores: Floats, ratio: float, most: int) -> list[int]:
    """Find the labels that come near the best one somewhere.

    Args:
        scores: (K, H, W) float32.
        ratio: Part of the best score at a pixel that a label must have at one pixel at least.
        most: If there are more, those with the largest sum.

    Returns:
        Indices, increasing.
    """
    least = scores.max(0) * np.float32(ratio)
    found = [k for k, score in enumerate(scores) if (score >= least).any()]
    if len(found) > most:
        found = sorted(sorted(found, key=lambda k: -float(scores[k].sum()))[:most])
    return found
