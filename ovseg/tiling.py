"""Sliding windows over an image, blended on the feature grid."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float32]


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


def _ramp(cells: int) -> Floats:
    """Weights that fall linearly from the middle of a window to its borders, never to 0: (cells,) float32."""
    position = np.arange(cells) + 0.5
    ramp: Floats = np.minimum(position, cells - position).astype(np.float32)
    return ramp


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
            middle weigh most, which leaves no seams.

    Returns:
        (D, H / cell, W / cell) float32, L2-normalised over D.
    """
    height, width = pixel_values.shape[2:]
    tall, wide = min(window, height), min(window, width)
    places = list(windows((height, width), window, stride))
    shape = (tall // cell, wide // cell)
    weight = np.ones(shape, np.float32) if even else _ramp(shape[0])[:, None] * _ramp(shape[1])[None]
    total: Floats | None = None
    for start in range(0, len(places), batch):
        part = places[start : start + batch]
        cut = np.concatenate([pixel_values[:, :, top : top + tall, left : left + wide] for top, left in part])
        for (top, left), features in zip(part, encode(np.ascontiguousarray(cut)), strict=True):
            if total is None:
                total = np.zeros((len(features), height // cell, width // cell), np.float32)
            rows = slice(top // cell, (top + tall) // cell)
            columns = slice(left // cell, (left + wide) // cell)
            total[:, rows, columns] += features * weight
    if total is None:
        raise ValueError("an image has at least one window")
    total /= np.maximum(np.linalg.norm(total, axis=0), 1e-12)
    return total
