"""LSeg's evaluation: one image at several sizes, by overlapping crops and mirrored, and the sum of all logits.

It follows `LSeg_MultiEvalModule` of the published code (additional_utils/models.py), with which the paper's tables were made, down
to its rounding and padding. It runs the network some forty times on an ordinary photograph.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

SCALES = (0.5, 0.75, 1.0, 1.25, 1.5, 1.75)
"""The published scales. For Cityscapes: 0.75 to 2.25, with a base of 2048 and crops of 768."""
BASE = 520
"""Long side of the image at scale 1 [px]."""
CROP = 480
"""Side of a crop [px]."""

Floats = NDArray[np.float32]


@dataclass(frozen=True)
class View:
    """The image at one scale, and the crops that cover it.

    Attributes:
        size: (height, width) of the image [px].
        canvas: (height, width) with the padding at the bottom and the right [px].
        boxes: (top, left, bottom, right) of each crop of the canvas [px]. Those at the bottom and the right may be smaller than a
            crop; they are padded to one.
    """

    size: tuple[int, int]
    canvas: tuple[int, int]
    boxes: tuple[tuple[int, int, int, int], ...]


def plan_views(image_size: tuple[int, int], scales: Sequence[float] = SCALES, base: int = BASE, crop: int = CROP) -> list[View]:
    """Say at which sizes and by which crops an image is looked at.

    Args:
        image_size: (H, W) of the image [px].
        scales: The long side becomes `base` times each of these.
        base: Long side at scale 1 [px].
        crop: Side of a crop [px]. Neighbours start two thirds of it apart.

    Returns:
        One view for each scale.
    """
    height, width = image_size
    stride = int(crop * (2 / 3))
    views = []
    for scale in scales:
        long = math.ceil(base * scale)
        if height > width:
            size = (long, max(1, int(width * long / height + 0.5)))
        else:
            size = (max(1, int(height * long / width + 0.5)), long)
        canvas = (max(size[0], crop), max(size[1], crop))
        rows, columns = (range(0, math.ceil((side - crop) / stride) * stride + 1, stride) for side in canvas)
        boxes = tuple((y, x, min(y + crop, canvas[0]), min(x + crop, canvas[1])) for y in rows for x in columns)
        views.append(View(size, canvas, boxes))
    return views


def resize_corners(maps: Floats, size: tuple[int, int]) -> Floats:
    """Resize maps bilinearly so that the outer pixels keep their places (torch: align_corners=True), without low-pass.

    Args:
        maps: (C, h, w) float32.
        size: (height, width) that is wanted.

    Returns:
        (C, height, width) float32.
    """
    for axis, target in ((1, size[0]), (2, size[1])):
        source = maps.shape[axis]
        if source == target:
            continue
        position = np.arange(target, dtype=np.float32) * np.float32((source - 1) / max(target - 1, 1))  # float32 like torch's
        low = np.minimum(position.astype(np.intp), source - 1)
        weight = position - low.astype(np.float32)
        first = maps.take(low, axis)
        step = maps.take(np.minimum(low + 1, source - 1), axis)
        step -= first
        step *= weight[:, None] if axis == 1 else weight
        first += step
        maps = first
    return maps


def multiscale_logits(
    image: NDArray[np.uint8],
    logits_of: Callable[[Floats], Floats],
    *,
    mean: tuple[float, float, float] = (0.5, 0.5, 0.5),
    std: tuple[float, float, float] = (0.5, 0.5, 0.5),
    scales: Sequence[float] = SCALES,
    base: int = BASE,
    crop: int = CROP,
    flip: bool = True,
) -> Floats:
    """Sum the logits of an image over scales, crops and mirror images.

    Where a network's logits are cosines of its features, without anything after them, the sum may as well be made of features:
    resizing and adding are linear.

    Args:
        image: (H, W, 3) uint8 RGB.
        logits_of: Maps (B, 3, crop, crop) float32 pixel values to (B, K, crop, crop) float32 logits, before softmax.
        mean: RGB mean, subtracted after scaling to [0, 1].
        std: RGB standard deviation, divided by.
        scales: See `plan_views`.
        base: See `plan_views`.
        crop: See `plan_views`.
        flip: Whether each crop is also looked at mirrored and its logits, mirrored back, are added.

    Returns:
        (K, H, W) float32: the sum over the scales and the two sides, the mean where crops overlap.
    """
    values = np.ascontiguousarray(image.transpose(2, 0, 1)).astype(np.float32) / np.float32(255)
    shift, gain = (np.asarray(numbers, np.float32)[:, None, None] for numbers in (mean, std))
    values = (values - shift) / gain
    black = -shift / gain  # the value of the padding
    image_size = image.shape[0], image.shape[1]
    total: Floats | None = None
    for view in plan_views(image_size, scales, base, crop):
        canvas = np.broadcast_to(black, (3, *view.canvas)).copy()
        canvas[:, : view.size[0], : view.size[1]] = resize_corners(values, view.size)
        logits = resize_corners(_view_logits(canvas, view, logits_of, black, crop, flip), image_size)
        if total is None:
            total = logits
        else:
            total += logits
    if total is None:
        raise ValueError("there is at least one scale")
    return total


def _view_logits(canvas: Floats, view: View, logits_of: Callable[[Floats], Floats], black: Floats, crop: int, flip: bool) -> Floats:
    """Average the logits of the crops of one view: (K, height, width) float32, without the padding."""
    total: Floats | None = None
    count = np.zeros(view.canvas, np.float32)
    for top, left, bottom, right in view.boxes:
        part = np.broadcast_to(black, (3, crop, crop)).copy()
        part[:, : bottom - top, : right - left] = canvas[:, top:bottom, left:right]
        both = logits_of(np.stack([part, part[:, :, ::-1]] if flip else [part]))
        logits = both[0] + both[1][:, :, ::-1] if flip else both[0]
        if total is None:
            total = np.zeros((len(logits), *view.canvas), np.float32)
        total[:, top:bottom, left:right] += logits[:, : bottom - top, : right - left]
        count[top:bottom, left:right] += 1
    if total is None:
        raise ValueError("a view has at least one crop")
    height, width = view.size
    total /= count
    return np.ascontiguousarray(total[:, :height, :width])
