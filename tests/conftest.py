from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from hub_server import PROXIES, FakeHub, point_at, serving
from numpy.typing import NDArray

import ovseg

os.environ["OVSEG_CACHE"] = "off"  # tests leave the user's cache alone, also those that run other processes


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


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[FakeHub]:
    """An empty hub on this machine, which huggingface_hub takes for the real one, and an empty cache."""
    constants = pytest.importorskip("huggingface_hub").constants
    from huggingface_hub.utils import close_session

    for name in ["HF_TOKEN", "HUGGING_FACE_HUB_TOKEN", "HF_OIDC_RESOURCE", *PROXIES]:
        monkeypatch.delenv(name, raising=False)
    with serving() as server:
        point_at(server.endpoint, monkeypatch)
        monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
        monkeypatch.setattr(constants, "HF_TOKEN_PATH", str(tmp_path / "token"))
        monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
        yield server
    close_session()
