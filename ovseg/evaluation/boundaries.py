"""Boundary IoU: how well the edges of a label map lie.

Cheng, Girshick, Dollár, Berg and Kirillov, "Boundary IoU: Improving Object-Centric Image Segmentation Evaluation", CVPR 2021: the
intersection over union of the inner rims of a class in the truth and in the prediction. As with mIoU, intersections and unions are summed
over the dataset before they are divided. Other than there, the border of the image is no edge: nobody drew it.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ovseg.errors import InvalidArgumentError

WIDTH = 0.02
"""Width of the rims that the authors use, as a part of the image's diagonal: 12 pixels at 480 x 360."""


class BoundaryIou:
    """Counts the rims of K classes.

    Args:
        num_classes: K.
        width: Width of the rims, as a part of the image's diagonal; at least one pixel is taken.

    Raises:
        InvalidArgumentError: If the width is not in (0, 1].
    """

    def __init__(self, num_classes: int, width: float = WIDTH) -> None:
        if isinstance(width, bool) or not isinstance(width, (int, float)) or not 0 < width <= 1:
            raise InvalidArgumentError(f"The width of the rims is a part of the image's diagonal, in (0, 1]; got {width!r}.")
        self._width = float(width)
        self._both, self._true, self._found = np.zeros((3, num_classes), np.int64)

    def update(self, truth: NDArray[Any], predicted: NDArray[Any], *, ignore_index: int, undecided_index: int) -> None:
        """Count the pixels of one image.

        Args:
            truth: (H, W) integers in [0, K), or `ignore_index` where a pixel does not count; there is no edge to it.
            predicted: (H, W) integers in [0, K), or `undecided_index`.
            ignore_index: Value in the truth that is no class.
            undecided_index: Value in the prediction that is no class.
        """
        distance = max(1, round(self._width * math.hypot(*truth.shape)))
        judged, count = truth != ignore_index, len(self._both)
        true = _rims(truth, distance, ignore_index) & judged
        found = _rims(predicted, distance, None) & judged & (predicted != undecided_index)
        both = true & found & (truth == predicted)
        for total, labels, here in ((self._true, truth, true), (self._found, predicted, found), (self._both, truth, both)):
            total += np.bincount(labels[here].astype(np.intp), minlength=count)

    @property
    def iou(self) -> NDArray[np.float64]:
        """(K,) float64 percent; NaN for a class that has no edge."""
        union = self._true + self._found - self._both
        result = np.full(len(union), np.nan)
        np.divide(100.0 * self._both, union, out=result, where=union > 0)
        return result

    @property
    def mean(self) -> float:
        """Mean over the classes that have edges, in percent; NaN if none has."""
        iou = self.iou
        return float(np.nanmean(iou)) if np.isfinite(iou).any() else math.nan


def _rims(labels: NDArray[Any], distance: int, ignore_index: int | None) -> NDArray[np.bool_]:
    """Find the pixels from which another label is at most `distance` rows and columns away."""
    low = high = labels.astype(np.int32)
    if ignore_index is not None:
        ignored = labels == ignore_index
        low, high = np.where(ignored, np.iinfo(np.int32).max, low), np.where(ignored, -1, high)
    least, most = _extreme(low, distance, np.minimum), _extreme(high, distance, np.maximum)
    rims: NDArray[np.bool_] = (least != labels) | (most != labels)
    return rims


def _extreme(values: NDArray[np.int32], distance: int, choose: np.ufunc) -> NDArray[np.int32]:
    """Take the least or greatest value of the square of 2 `distance` + 1 pixels a side around each pixel, by doubling."""
    for _ in range(2):
        values = np.pad(values.T, ((distance, distance), (0, 0)), mode="edge")
        side, done = 2 * distance + 1, 1
        while done < side:
            step = min(done, side - done)
            values = choose(values[:-step], values[step:])
            done += step
    return values
