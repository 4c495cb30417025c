from __future__ import annotations

import numpy as np
import pytest
from numpy.typing import NDArray

import ovseg


@pytest.fixture(scope="session")
def segmenter() -> ovseg.Segmenter:
    """The embedded model on the CPU, loaded once."""
    return ovseg.load("mini", device="cpu")


@pytest.fixture(scope="session")
def scene() -> NDArray[np.uint8]:
    """A made-up landscape, (96, 128, 3) uint8 RGB: sky over a meadow with a grey road and a red thing. Read-only."""
    noise = np.random.default_rng(7).integers(-12, 13, (96, 128, 3))
    picture = np.empty((96, 128, 3), np.int64)
    picture[:50] = np.linspace((90, 150, 230), (190, 215, 245), 50)[:, None]
    picture[50:] = (70, 140, 50)
    picture[70:, 50:78] = (110, 110, 115)
    picture[40:60, 90:112] = (190, 40, 35)
    result = np.clip(picture + noise, 0, 255).astype(np.uint8)
    result.setflags(write=False)
    return result
