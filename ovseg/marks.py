"""One thing that was pointed at in an image, and its pixels.

Points are (x, y), x to the right and y down, on the grid of pixel corners: (0, 0) is the top-left corner of the image, (W, H) the
bottom-right one, and the pixel in column c and row r covers c <= x < c + 1, r <= y < r + 1. These are the coordinates of
`Segmentation.to_polygons`; whole numbers are columns and rows.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from ovseg.errors import InvalidArgumentError
from ovseg.output.rle import decode_rle

RADIUS = 3.0
"""Radius of a click and half the width of a stroke [px]."""
BOX_WEIGHT = 0.1
"""How much a pixel in the middle of a box counts, beside 1 for one that was painted: a box holds other things too."""
BOX_MIDDLE = 0.5
"""Part of a box's height and width that the ellipse of its seeds has."""
KINDS = ("scribble", "click", "box", "polygon", "tag")

Points = tuple[tuple[float, float], ...]
Bools = NDArray[np.bool_]


@dataclass(frozen=True, slots=True)
class Mark:
    """One thing that was pointed at.

    Attributes:
        kind: One of `KINDS`.
        label: The word.
        points: (x, y) of a click, of the corners of a stroke or polygon, or of two opposite corners of a box.
        radius: Of a click, and half the width of a stroke [px].
        painted: Height, width and compressed run lengths (COCO) of a stroke that was painted as pixels; then there are no points.
    """

    kind: str
    label: str
    points: Points = ()
    radius: float = RADIUS
    painted: tuple[int, int, str] | None = None

    @property
    def weight(self) -> float:
        """How much its pixels count, in (0, 1]."""
        return BOX_WEIGHT if self.kind == "box" else 1.0

    def mask(self, image_size: tuple[int, int]) -> Bools:
        """Draw the pixels it speaks of: (H, W) bool; at least one, but for a tag.

        Raises:
            InvalidArgumentError: If it does not lie in an image of this size.
        """
        if self.kind == "tag":
            return np.zeros(image_size, bool)
        if self.painted is not None:
            if self.painted[:2] != tuple(image_size):
                raise InvalidArgumentError(
                    f"The strokes of {self.label!r} were painted on an image of (height, width) = {self.painted[:2]}; this one has "
                    f"{tuple(image_size)}. Paint them on an image of that size."
                )
            return decode_rle({"size": self.painted[:2], "counts": self.painted[2]})
        self._check_inside(image_size)
        points = np.array(self.points, np.float64)
        if self.kind == "box":
            return _ellipse(points, image_size)
        mask = np.zeros(image_size, bool)
        if self.kind == "polygon":
            mask = _filled(points, image_size)
            if not mask.any():  # so thin that it holds the centre of no pixel
                _draw_strokes(mask, np.concatenate([points, points[:1]]), 0.5)
        else:
            _draw_strokes(mask, points, self.radius)
        return mask

    def _check_inside(self, image_size: tuple[int, int]) -> None:
        height, width = image_size
        edge = self.kind in ("box", "polygon")  # their corners may lie on the right and lower edge
        for x, y in self.points:
            if not (0 <= x <= width and 0 <= y <= height) or (not edge and (x == width or y == height)):
                raise InvalidArgumentError(
                    f"A {self.kind} of {self.label!r} has the point (x, y) = ({x:g}, {y:g}), which is outside the image of {width} x "
                    f"{height} pixels. Points are pixels of the image as it is, not of a copy at another size."
                )


def _draw_strokes(mask: Bools, points: NDArray[np.float64], radius: float) -> None:
    """Set the pixels whose centre is at most `radius` from the line through the centres of the pixels of `points`; at least those."""
    height, width = mask.shape
    centres = np.minimum(np.floor(points), (width - 1, height - 1)) + 0.5
    ends = centres[1:] if len(centres) > 1 else centres
    for start, end in zip(centres, ends, strict=False):
        low = np.maximum(np.floor(np.minimum(start, end) - radius - 0.5), 0).astype(int)
        high = np.ceil(np.maximum(start, end) + radius + 0.5).astype(int)
        box = mask[low[1] : high[1], low[0] : high[0]]
        y, x = np.ogrid[low[1] : low[1] + box.shape[0], low[0] : low[0] + box.shape[1]]
        x, y = x + 0.5 - start[0], y + 0.5 - start[1]
        (dx, dy), length = end - start, float(((end - start) ** 2).sum())
        along = np.clip((x * dx + y * dy) / length, 0, 1) if length else 0.0
        box |= (x - along * dx) ** 2 + (y - along * dy) ** 2 <= radius**2 + 1e-9
    column, row = np.floor(centres).astype(int).T
    mask[row, column] = True


def _filled(points: NDArray[np.float64], image_size: tuple[int, int]) -> Bools:
    """Fill a polygon by the even-odd rule: an edge flips all pixels whose centre is to the right of it."""
    height, width = image_size
    flips = np.zeros((height, width + 1), np.int64)
    for (x0, y0), (x1, y1) in zip(points, np.roll(points, -1, axis=0), strict=True):
        if y0 == y1:
            continue
        rows = np.arange(math.ceil(min(y0, y1) - 0.5), math.ceil(max(y0, y1) - 0.5))
        cross = x0 + (rows + 0.5 - y0) * ((x1 - x0) / (y1 - y0))
        flips[rows, np.clip(np.ceil(cross - 0.5), 0, width).astype(int)] += 1
    return np.asarray(np.cumsum(flips, axis=1)[:, :width] % 2 == 1)


def _ellipse(corners: NDArray[np.float64], image_size: tuple[int, int]) -> Bools:
    """Draw an ellipse in the middle of a box; at least the pixel in its middle."""
    (left, top), (right, bottom) = corners
    x, y = (left + right) / 2, (top + bottom) / 2
    rows, columns = np.ogrid[: image_size[0], : image_size[1]]
    across, down = (columns + 0.5 - x) / ((right - left) / 2 * BOX_MIDDLE), (rows + 0.5 - y) / ((bottom - top) / 2 * BOX_MIDDLE)
    mask = np.asarray(across**2 + down**2 <= 1)
    mask[min(int(y), image_size[0] - 1), min(int(x), image_size[1] - 1)] = True
    return mask
