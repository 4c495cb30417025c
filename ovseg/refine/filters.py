"""Linear filters over maps, in a time that is linear in their pixels."""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float32]


def shrink(maps: NDArray[np.generic], step: int) -> Floats:
    """Average blocks of `step` x `step` pixels; those at the lower and right border may be smaller.

    Args:
        maps: (..., H, W) numbers.
        step: Side of a block [px], at least 1.

    Returns:
        (..., ceil(H / step), ceil(W / step)) float32.
    """
    if step == 1:
        return np.ascontiguousarray(maps, np.float32)
    height, width = maps.shape[-2:]
    rows, columns = np.arange(0, height, step), np.arange(0, width, step)
    sums = np.add.reduceat(maps, columns, axis=-1, dtype=np.float32)
    sums = np.add.reduceat(sums, rows, axis=-2)
    counts = np.minimum(step, height - rows)[:, None] * np.minimum(step, width - columns)
    result: Floats = sums / counts.astype(np.float32)
    return result


def box_mean(maps: Floats, radius: int) -> Floats:
    """Average over squares of 2 `radius` + 1 pixels a side, cut off at the border.

    Args:
        maps: (..., H, W) float32.
        radius: At least 0 [px].

    Returns:
        The like.
    """
    side = 2 * radius + 1
    for axis in (-1, -2):
        width = [(0, 0)] * maps.ndim
        width[axis] = (radius + 1, radius)
        total = np.cumsum(np.pad(maps, width), axis, dtype=np.float64)  # float64: sums are subtracted from each other
        place = np.arange(maps.shape[axis])
        share = 1 / (np.minimum(place + radius + 1, len(place)) - np.maximum(place - radius, 0))
        if axis == -1:
            maps = ((total[..., side:] - total[..., :-side]) * share).astype(np.float32)
        else:
            maps = ((total[..., side:, :] - total[..., :-side, :]) * share[:, None]).astype(np.float32)
    return maps


def gaussian_sum(maps: Floats, deviation: float) -> Floats:
    """Sum over exp(-distance^2 / (2 deviation^2)), with nothing beyond the border and beyond four deviations.

    Args:
        maps: (..., H, W) float32.
        deviation: More than 0 [px].

    Returns:
        The like.
    """
    reach = math.ceil(4 * deviation)
    weight = np.exp(-(np.arange(reach + 1) ** 2) / (2 * deviation**2)).astype(np.float32)
    for axis in (-1, -2):
        length = maps.shape[axis]
        total = maps.copy()
        for shift in range(1, min(reach, length - 1) + 1):
            part = maps * weight[shift]
            if axis == -1:
                total[..., shift:] += part[..., :-shift]
                total[..., :-shift] += part[..., shift:]
            else:
                total[..., shift:, :] += part[..., :-shift, :]
                total[..., :-shift, :] += part[..., shift:, :]
        maps = total
    return maps
