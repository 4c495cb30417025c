"""Sliding windows over an image, blended on the feature grid."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float32]

GAUSSIAN_PART = 8.0
"""Standard deviations in the length of a window."""


def window_starts(length: int, window: int, stride: int) -> list[int]:
    """Place windows on an axis so that they cover it; the last one ends where the axis ends.

    Args:
        length: Length of the axis [px].
        window: Length of a window [px].
        stride: Largest distance between the starts of neighbours [px].
    """
    if length <= window:
        return [0]
    return [*range(0, length - window, stride), length - window]


def axis_weights(starts: Sequence[int], window: int, even: bool = False) -> Floats:
    """Say how much each window on an axis counts in each of its cells; in every cell that windows cover, the weights sum to 1.

    A window weighs its cells by a Gaussian around its middle with a standard deviation of an eighth of the window, as nnU-Net does
    (Isensee et al., Nature Methods 2021). From one window to its neighbour the weight then passes over smoothly, well inside the
    overlap, and near the border of a window, where a network lacks context, another window speaks.

    Args:
        starts: (N,) first cell of each window, not decreasing.
        window: Cells of a window.
        even: Whether all windows that see a cell count the same there.

    Returns:
        (N, window) float32 in (0, 1].
    """
    if even:
        shape = np.ones(window)
    else:
        shape = np.exp(-0.5 * ((np.arange(window) + 0.5 - window / 2) / (window / GAUSSIAN_PART)) ** 2)
    place = np.asarray(starts)[:, None] + np.arange(window)
    weights = np.tile(shape, (len(place), 1))
    weights /= np.bincount(place.ravel(), weights.ravel())[place]
    return weights.astype(np.float32)


def windows(size: tuple[int, int], window: int, stride: int) -> Iterator[tuple[int, int]]:
    """Yield the (top, left) of every window [px]."""
    for top in window_starts(size[0], window, stride):
        for left in window_starts(size[1], window, stride):
            yield top, left


def encode_windows(
    pixel_values: Floats,
    encode: Callable[[Floats], Floats],
    window: int,
    stride: int,
    cell: int,
    batch: int = 4,
    even: bool = False,
) -> Floats:
    """Encode an image by overlapping windows and blend their features.

    Args:
        pixel_values: (1, 3, H, W) float32; H and W multiples of `cell`.
        encode: Maps (B, 3, H', W') to (B, D, H' / cell, W' / cell) features; H' and W' are `window`, or less where the image is smaller.
        window: Side of a window [px], a multiple of `cell`.
        stride: Distance between windows [px], a multiple of `cell`, at most `window`.
        cell: Input pixels per cell of the feature grid.
        batch: Windows encoded together.
        even: Whether all cells of a window weigh the same, as in the published evaluations of sliding windows; otherwise those in its
            middle weigh most (`axis_weights`), which leaves no seams.

    Returns:
        (D, H / cell, W / cell) float32, L2-normalised over D.
    """
    height, width = pixel_values.shape[2:]
    tall, wide = min(window, height), min(window, width)
    rows, columns = (
        dict(zip(starts, axis_weights([start // cell for start in starts], side // cell, even), strict=True))
        for starts, side in ((window_starts(height, window, stride), tall), (window_starts(width, window, stride), wide))
    )
    places = list(windows((height, width), window, stride))
    total: Floats | None = None
    for start in range(0, len(places), batch):
        part = places[start : start + batch]
        cut = np.concatenate([pixel_values[:, :, top : top + tall, left : left + wide] for top, left in part])
        for (top, left), features in zip(part, encode(np.ascontiguousarray(cut)), strict=True):
            if total is None:
                total = np.zeros((len(features), height // cell, width // cell), np.float32)
            part_of_total = total[:, top // cell : (top + tall) // cell, left // cell : (left + wide) // cell]
            part_of_total += features * rows[top][:, None] * columns[left]
    if total is None:
        raise ValueError("an image has at least one window")
    total /= np.maximum(np.linalg.norm(total, axis=0), 1e-12)
    return total
