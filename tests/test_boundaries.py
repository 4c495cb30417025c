"""Boundary IoU against scikit-image's erosion, class by class."""

from __future__ import annotations

import math

import numpy as np
import pytest
from skimage.morphology import erosion

from ovseg.errors import InvalidArgumentError
from ovseg.evaluation.boundaries import BoundaryIou


def rim(mask: np.ndarray, distance: int) -> np.ndarray:
    """The pixels of a mask that erosion by a square takes away; the border of the image takes nothing."""
    padded = np.pad(mask, distance, mode="edge")
    square = np.ones((2 * distance + 1,) * 2, bool)
    return mask & ~erosion(padded, square)[distance:-distance, distance:-distance]


@pytest.mark.parametrize("width", [0.02, 0.05, 0.2])
def test_equals_erosion(width):
    random = np.random.default_rng(0)
    coarse = random.integers(0, 4, (3, 6, 8))
    truths = np.kron(coarse, np.ones((8, 8), int)).astype(np.uint8)
    guesses = np.roll(truths, 2, axis=2)
    guesses[:, :9, :9] = 3
    metric, counts = BoundaryIou(5, width), np.zeros((2, 5))
    distance = max(1, round(width * math.hypot(48, 64)))
    for truth, guess in zip(truths, guesses, strict=True):
        metric.update(truth, guess, ignore_index=255, undecided_index=255)
        for k in range(5):
            one, other = rim(truth == k, distance), rim(guess == k, distance)
            counts[:, k] += (one & other).sum(), (one | other).sum()
    np.testing.assert_allclose(metric.iou[:4], 100 * counts[0, :4] / counts[1, :4])
    assert np.isnan(metric.iou[4])
    assert metric.mean == pytest.approx(np.mean(metric.iou[:4]))


def test_perfect_and_nothing():
    truth = np.zeros((20, 20), np.uint8)
    metric = BoundaryIou(2, 0.05)
    metric.update(truth, truth, ignore_index=255, undecided_index=255)
    assert math.isnan(metric.mean)  # no edge anywhere
    truth[:, 10:] = 1
    metric.update(truth, truth, ignore_index=255, undecided_index=255)
    assert metric.mean == 100


def test_ignored_pixels_are_no_edge_and_do_not_count():
    truth = np.zeros((20, 20), np.uint8)
    truth[:, 10:] = 255
    guess = np.zeros((20, 20), np.uint8)
    guess[:, 15:] = 1
    metric = BoundaryIou(2, 0.05)
    metric.update(truth, guess, ignore_index=255, undecided_index=9)
    assert math.isnan(metric.mean)


def test_undecided_pixels_are_of_no_class():
    truth = np.zeros((20, 20), np.uint8)
    truth[:, 10:] = 1
    guess = truth.copy()
    guess[:, 10:] = 255
    metric = BoundaryIou(2, 0.05)
    metric.update(truth, guess, ignore_index=255, undecided_index=255)
    np.testing.assert_allclose(metric.iou, [100, 0])


@pytest.mark.parametrize("width", [0, -0.1, 1.1, math.nan, True, "2%"])
def test_refuses_widths(width):
    with pytest.raises(InvalidArgumentError, match="diagonal"):
        BoundaryIou(2, width)
