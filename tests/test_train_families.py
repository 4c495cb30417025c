"""Every family of models is trained. The networks are cut down and have random weights; their parts are those of the real ones."""

from __future__ import annotations

import copy
import dataclasses
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

import ovseg
from ovseg.registry import cards

torch = pytest.importorskip("torch")
pytest.importorskip("open_clip")

import test_clip_towers as towers  # noqa: E402
import test_radio  # noqa: E402
from safetensors.torch import save_file  # noqa: E402

from ovseg.learn.examples import read_examples  # noqa: E402
from ovseg.learn.train import LOG, Settings, train  # noqa: E402
from ovseg.learn.trainable import Trainable  # noqa: E402
from ovseg.models import dinotxt, lseg, radio, tips  # noqa: E402

MODELS: dict[str, tuple[int, Callable[[], Any] | None]] = {  # -> width of the shared space when cut down, the tower of open_clip
    "lseg-vit-b32": (384, None),
    "tipsv2-b14": (48, None),
    "dinotxt-dinov2-l14": (128, None),
    "radseg-c-radio-v3-b": (40, None),
    "siglip2-b16": (64, towers._siglip),
    "clip-pe-core-b16-meta": (48, towers._pe),
    "clip-convnext-large-d-320-laion2b-s29b-b131k-ft-soup": (48, towers._convnext),
}


@pytest.fixture
def model(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """Make a model small; its name."""
    name: str = request.param
    width, build = MODELS[name]
    card = dataclasses.replace(cards()[name], embed_dim=width, templates="none")
    monkeypatch.setattr("ovseg.loading.find_card", lambda _: card)
    small_lseg = lseg.Variant(32, 2, (0, 1, 2, 3), 16, 6, (8, 16, 32, 32), (4, 2, 1, -2), (32, 1, 2, 384))
    monkeypatch.setitem(lseg.VARIANTS, "clip_vitb32_384", small_lseg)
    monkeypatch.setitem(tips.VARIANTS, "b14", tips.Size(width=48, layers=2, heads=4, hidden=120, text_layers=2, grid=8, vocabulary=300))
    text = {"width": 128, "layers": 2, "heads": 2, "text_width": 32, "text_layers": 1, "text_heads": 2}
    monkeypatch.setitem(dinotxt.VARIANTS, "dinov2-l14", dataclasses.replace(dinotxt.VARIANTS["dinov2-l14"], **text, grid=8))
    monkeypatch.setitem(radio.VARIANTS, "c-radio_v3-b", test_radio.SMALL)
    monkeypatch.setitem(radio.TEXT_TOWERS, "siglip2", dataclasses.replace(test_radio.TEXT, embed_dim=width, vocabulary=300, context=64))
    monkeypatch.setattr(towers, "TEXT", {**towers.TEXT, "context_length": 77, "vocab_size": 300_000})
    if build is not None:
        monkeypatch.setattr("ovseg.models.dense_clip._build_clip", lambda plan: build())
    return name


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Two images of sky and grass, with full masks."""
    for name in ("images", "labels"):
        (tmp_path / "data" / name).mkdir(parents=True)
    (tmp_path / "data/labels.txt").write_text("sky\ngrass")
    for index in range(2):
        labels = np.zeros((96, 128), np.uint8)
        labels[40 + 16 * index :] = 1
        noise = np.random.default_rng(index).integers(-15, 16, (96, 128, 3))
        picture = np.array([(120, 180, 240), (60, 150, 50)])[labels] + noise
        Image.fromarray(picture.clip(0, 255).astype(np.uint8)).save(tmp_path / f"data/images/{index}.png")
        Image.fromarray(labels).save(tmp_path / f"data/labels/{index}.png")
    return tmp_path / "data"


@pytest.mark.parametrize("part", ["head", "all"])
@pytest.mark.parametrize("model", MODELS, indirect=True)
def test_it_learns_changes_what_it_should_and_is_the_same_when_loaded(model: str, part: str, folder: Path, tmp_path: Path) -> None:
    learner = Trainable(model, weights="random", part=part, device="cpu")
    before = copy.deepcopy(learner.network.state_dict())
    settings = Settings(steps=12, warmup=0, batch=2, size=96, save_every=4, rate=3e-3)
    train(learner, read_examples(folder), tmp_path / "out", settings, progress=False)
    losses = [json.loads(line)["pce"] for line in (tmp_path / "out" / LOG).read_text().splitlines()]
    assert losses[-1] < losses[0], losses

    changed = {name for name, value in learner.network.state_dict().items() if not torch.equal(value, before[name])}
    assert changed and changed <= set(learner.trained())
    assert not any("text" in name and "class_text" not in name for name in changed)
    save_file(learner.state(), tmp_path / "mine.safetensors")
    loaded = ovseg.load(model, weights=tmp_path / "mine.safetensors", backend="torch", device="cpu")
    image = folder / "images/0.png"
    assert np.array_equal(loaded.encode_image(image).embedding, learner.segmenter.encode_image(image).embedding)
