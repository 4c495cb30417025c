"""Labels that do not flicker: averaging over time, until the scene changes."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import TypeGuard

import numpy as np
from numpy.typing import NDArray

from ovseg.errors import InvalidArgumentError
from ovseg.features import ImageFeatures

CUT = 0.5
"""A new scene begins where this part of the pixels, or more, changes its colour bin."""

_BINS = 8  # of each colour channel
_SAMPLES = 128  # rows and columns that are looked at


class Smoother:
    """An exponential average of the logits of all labels.

    Logits are linear in the features, so that it is the features that are averaged, whatever the number of labels:
    `mean += (1 - exp(-dt / seconds)) * (features - mean)`, a first-order low-pass filter with the time constant `seconds` for frames that
    are `dt` apart. Scores, thresholds, background and all else are then made of the averaged logits. Where frames disagree, the mean
    vector is shorter and the scores are less sure. At a cut, when time runs backwards, and when the size changes, it begins anew.

    Args:
        seconds: Time constant [s]; positive.
    """

    def __init__(self, seconds: float) -> None:
        if not is_seconds(seconds):
            raise InvalidArgumentError(f"smooth must be a positive number of seconds or None; got {seconds!r}.")
        self._seconds = seconds
        self._mean: NDArray[np.float32] | None = None
        self._colors: NDArray[np.float64] | None = None
        self._time = 0.0

    def update(self, features: ImageFeatures, time: float) -> ImageFeatures:
        """Take the features of the next frame, which hold its image, and return the average so far.

        Args:
            features: Of the frame.
            time: Of the frame [s].
        """
        colors = None if features.image is None else color_histogram(features.image)
        is_cut = colors is None or self._colors is None or changed(self._colors, colors) >= CUT
        mean, apart = self._mean, time - self._time
        if mean is None or is_cut or apart < 0 or mean.shape != features.embedding.shape:
            mean = features.embedding
        else:
            mean = mean + np.float32(1 - math.exp(-apart / self._seconds)) * (features.embedding - mean)
        self._mean, self._colors, self._time = mean, colors, time
        return replace(features, embedding=mean)


def is_seconds(value: object) -> TypeGuard[float]:
    """Tell a positive, finite number."""
    return isinstance(value, (int, float)) and not isinstance(value, bool) and 0 < value < math.inf


def color_histogram(pixels: NDArray[np.uint8]) -> NDArray[np.float64]:
    """Count the colours of a grid of pixels.

    Args:
        pixels: (H, W, 3) uint8 RGB.

    Returns:
        (512,) float64, 8 bins for each channel; sums to 1.
    """
    height, width = pixels.shape[:2]
    some = pixels[:: max(1, height // _SAMPLES), :: max(1, width // _SAMPLES)].reshape(-1, 3) // (256 // _BINS)
    bins = (some[:, 0].astype(np.intp) * _BINS + some[:, 1]) * _BINS + some[:, 2]
    return np.bincount(bins, minlength=_BINS**3) / len(bins)


def changed(before: NDArray[np.float64], after: NDArray[np.float64]) -> float:
    """Return the part of the pixels that changed their bin at least, in [0, 1]: half the sum of absolute differences."""
    return float(np.abs(before - after).sum() / 2)
