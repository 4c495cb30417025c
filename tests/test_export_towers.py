"""Exports of open_clip's towers that are not its own ViT. The networks are cut down; their graphs are those of the real ones."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import ovseg
from ovseg.loading import Request
from ovseg.network import RANDOM
from ovseg.registry import cards

pytest.importorskip("torch")
pytest.importorskip("onnx")
pytest.importorskip("onnxscript")
pytest.importorskip("open_clip")

import test_clip_towers as towers  # noqa: E402
from ovseg.export import check  # noqa: E402
from ovseg.export import onnx as export  # noqa: E402

CASES: dict[str, tuple[str, Callable[[], Any], int, int]] = {  # card, tower, width of the shared space, size of classified images
    "siglip2": ("siglip2-b16", towers._siglip, 64, 64),
    "pe": ("clip-pe-core-b16-meta", towers._pe, 48, 64),
    "convnext": ("clip-convnext-large-d-320-laion2b-s29b-b131k-ft-soup", towers._convnext, 48, 64),
}


@pytest.mark.parametrize("case", CASES)
def test_towers_export(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, case: str) -> None:
    name, build, dim, size = CASES[case]
    card = dataclasses.replace(cards()[name], embed_dim=dim, classify={**cards()[name].classify, "size": size}, templates="none")
    monkeypatch.setattr("ovseg.loading.find_card", lambda _: card)
    monkeypatch.setattr(towers, "TEXT", {**towers.TEXT, "context_length": 77, "vocab_size": 300_000})
    monkeypatch.setattr("ovseg.models.dense_clip._build_clip", lambda plan: build())
    report = export.export_onnx(name, tmp_path / "out", request=Request(weights=RANDOM), fused=True)
    assert report.measured.fused is not None and report.measured.whole is not None
    assert check.check_folder(tmp_path / "out").measured.agreement >= 0.999
    found = ovseg.load(tmp_path / "out", device="cpu").segment(np.zeros((80, 90, 3), np.uint8), ["sky", "sea"])
    assert found.segmentation.shape == (80, 90)
