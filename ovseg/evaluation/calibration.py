"""Whether scores are probabilities one can bet on: temperature, calibration error, accuracy against coverage.

Here a score is what a pixel's label got, and it is calibrated when, of all pixels with score p, a part p is right. One number mends most of
it: softmax(logits / T) with the temperature T that makes the labels of held-out pixels most likely (Guo et al., "On calibration of modern
neural networks", 2017). T does not change which label is best.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ovseg.errors import InvalidArgumentError

BINS = 15
"""Bins of the reliability diagram and of the calibration error, of equal width; the usual number (Guo et al., 2017)."""
LIMITS = (1e-2, 1e2)
"""Range of a fitted temperature, against that of the scores: where every pixel is right, the best one would be 0."""
STEPS = tuple(i / 20 for i in range(1, 21))
"""Coverages that are reported."""

_TINY = np.float32(1e-37)  # scores below underflow to 0
_CHUNK = 1 << 16  # pixels at a time
_ITERATIONS = 100

Scores = NDArray[np.float32]
Doubles = NDArray[np.float64]


def change_temperature(scores: Scores, factor: float) -> Doubles:
    """Compute the scores that a temperature higher by a factor would give.

    As scores are softmax(z), and the softmax of log(softmax(z)) / f is that of z / f, the logits themselves are not needed.

    Args:
        scores: (N, K) float32; each row sums to 1.
        factor: f, positive.

    Returns:
        (N, K) float64; each row sums to 1.
    """
    logits = np.log(np.maximum(scores, _TINY)).astype(np.float64) / factor
    logits -= logits.max(1, keepdims=True)
    np.exp(logits, out=logits)
    logits /= logits.sum(1, keepdims=True)
    return logits


def negative_log_likelihood(scores: NDArray[Any], truth: NDArray[np.intp]) -> float:
    """Return the mean of -log(score of the true label) [nats].

    Args:
        scores: (N, K); each row sums to 1.
        truth: (N,) index of the true label.
    """
    return float(-np.log(np.maximum(scores[np.arange(len(truth)), truth], _TINY)).mean(dtype=np.float64))


def fit_temperature(samples: list[tuple[Scores, NDArray[np.intp]]]) -> float:
    """Find the factor of the temperature that makes the true labels most likely.

    The negative log-likelihood of softmax(z b) is convex in b = 1 / T: its derivative is the mean of E[z] - z_true, its second
    derivative the mean variance of z, both under softmax(z b). Newton's method finds the root, held between bounds that close in.

    Args:
        samples: For each dataset (N, K) float32 scores and (N,) true labels. Each dataset weighs the same, whatever its size.

    Returns:
        The factor by which to multiply the temperature that the scores were made with, within `LIMITS`.

    Raises:
        InvalidArgumentError: If there are no samples, or scores and labels do not fit together.
    """
    if not samples or any(len(scores) != len(truth) or not len(truth) for scores, truth in samples):
        raise InvalidArgumentError("Fitting a temperature takes at least one labelled pixel of each dataset, and scores for each of them.")
    low, high = 1 / LIMITS[1], 1 / LIMITS[0]
    at = 1.0
    for _ in range(_ITERATIONS):
        slope, curve = (sum(part) / len(samples) for part in zip(*(_derivatives(*sample, at) for sample in samples), strict=True))
        if slope > 0:
            high = at
        else:
            low = at
        step = at - slope / curve if curve > 0 else 0.0
        following = step if low < step < high else (low * high) ** 0.5
        if abs(following - at) <= 1e-9 * at:
            break
        at = following
    return min(max(1 / at, LIMITS[0]), LIMITS[1])


def _derivatives(scores: Scores, truth: NDArray[np.intp], inverse: float) -> tuple[float, float]:
    """Compute the first and second derivative of the mean negative log-likelihood by the inverse temperature."""
    slope = curve = 0.0
    for part in _chunks(len(truth)):
        logits = np.log(np.maximum(scores[part], _TINY)).astype(np.float64)
        chance = change_temperature(scores[part], 1 / inverse)
        mean = (chance * logits).sum(1)
        slope += float((mean - logits[np.arange(len(logits)), truth[part]]).sum())
        curve += float((chance * (logits - mean[:, None]) ** 2).sum())
    return slope / len(truth), curve / len(truth)


def _chunks(count: int) -> Iterator[slice]:
    return (slice(start, start + _CHUNK) for start in range(0, count, _CHUNK))


@dataclass(frozen=True)
class Bin:
    """A bar of the reliability diagram.

    Attributes:
        low: Scores above this (or equal, in the first bin)
        high: and up to this.
        pixels: How many pixels have such a score.
        confidence: Their mean score; the middle of the bin where there are none.
        accuracy: Part of them that is right; 0 where there are none.
    """

    low: float
    high: float
    pixels: int
    confidence: float
    accuracy: float


def reliability(confidence: NDArray[Any], correct: NDArray[np.bool_], bins: int = BINS) -> list[Bin]:
    """Sort pixels into bins by their score and compare it with how often they are right.

    Args:
        confidence: (N,) score of each pixel's label, in [0, 1].
        correct: (N,) whether the label is right.
        bins: How many bins of equal width.
    """
    place = np.clip(np.ceil(np.asarray(confidence, np.float64) * bins).astype(np.intp) - 1, 0, bins - 1)
    counts = np.bincount(place, minlength=bins)
    score = np.bincount(place, weights=confidence, minlength=bins) / np.maximum(counts, 1)
    right = np.bincount(place, weights=correct, minlength=bins) / np.maximum(counts, 1)
    return [
        Bin(i / bins, (i + 1) / bins, int(counts[i]), float(score[i]) if counts[i] else (i + 0.5) / bins, float(right[i]))
        for i in range(bins)
    ]


def expected_calibration_error(table: list[Bin]) -> float:
    """Return the mean distance of score and accuracy over the bins, weighted by their pixels, in [0, 1] (Naeini et al., 2015)."""
    total = sum(entry.pixels for entry in table)
    return sum(entry.pixels * abs(entry.accuracy - entry.confidence) for entry in table) / total


@dataclass(frozen=True)
class Selection:
    """What is left when only the surest pixels are answered.

    Attributes:
        coverage: Part of the pixels that are answered.
        threshold: Least score among them.
        accuracy: Part of them that is right.
    """

    coverage: float
    threshold: float
    accuracy: float


def selective_errors(confidence: NDArray[Any], correct: NDArray[np.bool_]) -> tuple[NDArray[Any], Doubles]:
    """Sort pixels by score and compute the part that is wrong of the n surest, for every n.

    Pixels with the same score have no order; each counts as their mean, as if they were shuffled.

    Args:
        confidence: (N,) score of each pixel's label.
        correct: (N,) whether the label is right.

    Returns:
        (N,) scores from the highest to the lowest, and (N,) errors of the first 1, 2, ... N of them, in [0, 1].
    """
    order = np.argsort(-confidence, kind="stable")
    ordered = confidence[order]
    wrong = 1.0 - correct[order]
    first = np.flatnonzero(np.diff(ordered, prepend=np.inf))
    length = np.diff(first, append=len(ordered))
    wrong = np.repeat(np.add.reduceat(wrong, first) / length, length)
    return ordered, np.cumsum(wrong) / np.arange(1, len(wrong) + 1)


def area_under_risk(errors: Doubles) -> float:
    """Return the area under error against coverage (AURC): the mean of `selective_errors` (Geifman et al., 2019); 0 is best."""
    return float(errors.mean())


def selections(ordered: NDArray[Any], errors: Doubles) -> list[Selection]:
    """Read accuracy and threshold off `selective_errors` at the coverages of `STEPS`."""
    chosen = []
    for step in STEPS:
        last = max(1, round(step * len(ordered))) - 1
        chosen.append(Selection(step, float(ordered[last]), 1 - float(errors[last])))
    return chosen


@dataclass(frozen=True)
class Quality:
    """How good scores are as probabilities.

    Attributes:
        temperature: What they were made with.
        nll: Negative log-likelihood of the true labels [nats].
        ece: Expected calibration error, in [0, 1].
        aurc: Area under error against coverage, in [0, 1].
        mean_score: Mean score of the pixels' labels; above the accuracy means too sure.
        bins: The reliability diagram.
        selections: Accuracy against coverage.
    """

    temperature: float
    nll: float
    ece: float
    aurc: float
    mean_score: float
    bins: list[Bin]
    selections: list[Selection]

    @classmethod
    def of(cls, scores: NDArray[Any], truth: NDArray[np.intp], temperature: float) -> Quality:
        """Judge (N, K) scores by the (N,) true labels."""
        confidence, correct = scores.max(1), scores.argmax(1) == truth
        ordered, errors = selective_errors(confidence, correct)
        table = reliability(confidence, correct)
        return cls(
            temperature,
            negative_log_likelihood(scores, truth),
            expected_calibration_error(table),
            area_under_risk(errors),
            float(confidence.mean(dtype=np.float64)),
            table,
            selections(ordered, errors),
        )
