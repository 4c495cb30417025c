"""Where to click next."""

from __future__ import annotations

import numpy as np
import pytest

from ovseg.clicking import place_click
from ovseg.errors import InvalidArgumentError
from ovseg.hints import Hints
from ovseg.result import Segmentation


def test_the_middle_of_the_unsure_region():
    entropy = np.zeros((200, 300), np.float32)
    entropy[60:120, 180:260] = 0.9
    entropy[:, 90:92] = 1.0  # a seam between two sure regions
    x, y = place_click(entropy)
    assert abs(x - 220) < 12 and abs(y - 90) < 12


def test_another_region_after_a_hint():
    entropy = np.zeros((200, 300), np.float32)
    entropy[60:120, 180:260] = 0.9
    entropy[60:110, 20:80] = 0.8
    taken = np.zeros((200, 300), bool)
    taken[88:92, 218:222] = True
    x, y = place_click(entropy, taken)
    assert x < 90 and 50 < y < 120


@pytest.mark.parametrize("size", [(1, 1), (1, 50), (700, 3), (97, 101)])
def test_any_size_gives_a_pixel_inside(size):
    x, y = place_click(np.random.default_rng(0).random(size).astype(np.float32))
    assert 0 <= x < size[1] and 0 <= y < size[0]


def test_from_a_result():
    entropy = np.zeros((60, 80), np.float32)
    entropy[10:30, 50:70] = 1
    result = Segmentation(np.zeros((60, 80), np.uint8), ("a", "b"), 255, entropy=entropy)
    x, y = result.next_click()
    assert 50 <= x < 70 and 10 <= y < 30
    assert result.next_click(Hints.clicks({"a": (x, y)})) != (x, y)
    with pytest.raises(InvalidArgumentError, match="confidence=True"):
        Segmentation(np.zeros((60, 80), np.uint8), ("a", "b"), 255).next_click()
