from __future__ import annotations

import dataclasses
import importlib
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hub_server import FakeHub, Repo
from synthetic import synthesise

import ovseg
from ovseg.errors import InvalidArgumentError, MissingDependencyError, OvsegError, UnknownModelError, WeightsError
from ovseg.network import MODULES, RANDOM, read_safetensors
from ovseg.registry import ModelCard, cards

torch = pytest.importorskip("torch")

PUBLISHED = [card for card in cards().values() if not card.files]


@pytest.mark.parametrize("card", PUBLISHED, ids=lambda card: str(card.name))
def test_every_card_builds_and_says_what_is_built(card: ModelCard) -> None:
    """On the meta device: shapes without numbers."""
    module = importlib.import_module(f"ovseg.models.{MODULES[card.family]}")
    with torch.device("meta"):
        network = module.build(card.options, None).eval()
    size = sum(value.numel() for value in network.parameters()) * 4e-6
    assert size == pytest.approx(card.megabytes, rel=0.15)
    if card.conditional:
        assert callable(network.decode)
        return
    multiple = card.preprocess["multiple"]
    assert multiple % card.stride == 0
    pixels = torch.empty(2, 3, 2 * multiple, 3 * multiple, device="meta")
    with torch.inference_mode():
        features = network(pixels)
    assert features.shape == (2, card.embed_dim, 2 * multiple // card.stride, 3 * multiple // card.stride)
    assert features.dtype == torch.float32
    assert set(card.classify) <= {"size", "fit", "scale", "resample"}
    if card.classify:
        assert callable(network.encode_global)
    if card.window:
        assert card.window["size"] % multiple == card.window["stride"] % multiple == 0


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Weights that are nobody's."""
    from safetensors.torch import save_file

    path = tmp_path_factory.mktemp("weights") / "model.safetensors"
    save_file({"stem.weight": torch.zeros(3)}, path)
    return path


def test_tensors_of_several_files_are_put_together(small: Path, tmp_path: Path) -> None:
    from safetensors.torch import save_file

    save_file({"other": torch.ones(2)}, tmp_path / "other.safetensors")
    assert read_safetensors([small, tmp_path / "other.safetensors"]).keys() == {"stem.weight", "other"}
    with pytest.raises(WeightsError, match="another of the files"):
        read_safetensors([small, small])


@pytest.mark.parametrize(("content", "name", "message"), [
    (b"", "empty.safetensors", "cannot be read"),
    (b"\x10\0\0\0\0\0\0\0{}", "cut.safetensors", "cannot be read"),
    (None, "none.safetensors", "not there"),
    (b"x", "model.pt", "ovseg convert"),
])  # fmt: skip
def test_what_is_no_safetensors_file_is_refused(tmp_path: Path, content: bytes | None, name: str, message: str) -> None:
    path = tmp_path / name
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(WeightsError, match=message):
        read_safetensors([path])


@pytest.mark.parametrize(("model", "options", "kind", "message"), [
    ("mini", {"readout": "naclip"}, InvalidArgumentError, "no choice of readout"),
    ("mini", {"weights": "x.safetensors", "backend": "onnx"}, InvalidArgumentError, "leave out backend"),
    ("lseg-vit-l16", {}, WeightsError, "convert"),
    ("lseg-vit-l16", {"backend": "onnx"}, InvalidArgumentError, "export"),
    ("lseg-vit-l16", {"readout": "naclip"}, InvalidArgumentError, "no choice"),
    ("clip-vit-b16-openai", {"proxy": "vit_base_patch16_224.dino"}, InvalidArgumentError, "proxyclip"),
    ("clip-vit-b16-openal", {}, UnknownModelError, "clip-vit-b16-openai"),
    ("lseg-vit-l61", {}, UnknownModelError, "lseg-vit-l16"),
    ("local-dir:nowhere", {}, UnknownModelError, "nowhere"),
    ("owner/name", {}, UnknownModelError, "hf-hub:owner/name"),
])  # fmt: skip
def test_what_cannot_be_loaded_is_said(model: str, options: dict[str, Any], kind: type[OvsegError], message: str) -> None:
    with pytest.raises(kind, match=message):
        ovseg.load(model, **options)


def test_weights_of_another_model_are_named(small: Path) -> None:
    with pytest.raises(WeightsError, match="model.safetensors: .*missing"):
        ovseg.load("clip-vit-b32-openai", weights=small)


def test_a_network_with_random_weights_answers(monkeypatch: pytest.MonkeyPatch) -> None:
    import open_clip

    card = cards()["clip-vit-b32-openai"]
    small_tower = {"embed_dim": 32, "vision_cfg": {"image_size": 64, "layers": 2, "width": 64, "head_width": 32, "patch_size": 32},
                   "text_cfg": {"context_length": 77, "vocab_size": 49408, "width": 32, "heads": 2, "layers": 2}, "quick_gelu": True}
    assert open_clip.get_model_config(card.options["tower"]) is not None
    monkeypatch.setattr(open_clip, "get_model_config", lambda name: small_tower)
    monkeypatch.setattr("ovseg.loading.find_card", lambda name: dataclasses.replace(card, embed_dim=32))
    first, again = (ovseg.load(card.name, weights=RANDOM, device="cpu", threads=1) for _ in range(2))
    image = np.random.default_rng(0).integers(0, 256, (70, 90, 3)).astype(np.uint8)
    features = first.encode_image(image, size="native", window="whole")
    np.testing.assert_array_equal(features.embedding, again.encode_image(image, size="native", window="whole").embedding)
    np.testing.assert_allclose(np.linalg.norm(features.embedding, axis=0), 1, atol=1e-5)
    result = first.segment(image, ["sky", "sea"], templates="none")
    assert result.segmentation.shape == (70, 90)
    assert first.classify(image, ["sky", "sea"]).scores.sum() == pytest.approx(1)
    assert features.embedding.shape[0] == 32


TINY = {
    "embed_dim": 32, "quick_gelu": False,
    "vision_cfg": {"image_size": 32, "layers": 2, "width": 64, "head_width": 32, "patch_size": 16},
    "text_cfg": {"context_length": 77, "vocab_size": 49408, "width": 32, "heads": 2, "layers": 2},
}  # fmt: skip
PICTURE = np.random.default_rng(3).integers(0, 256, (50, 70, 3)).astype(np.uint8)


def saved(module: Any) -> bytes:
    from safetensors.torch import save

    return bytes(save({name: value.contiguous() for name, value in module.state_dict().items()}))


def test_a_repository_of_open_clip_loads(hub: FakeHub) -> None:
    import open_clip

    network = open_clip.CLIP(**TINY).eval()
    synthesise(network)
    config = {"model_cfg": TINY, "preprocess_cfg": {"mean": [0.5, 0.5, 0.5], "std": [0.5, 0.5, 0.5], "resize_mode": "squash"}}
    files = {"open_clip_config.json": json.dumps(config).encode(), "open_clip_model.safetensors": saved(network)}
    hub.repos["me/clip"] = Repo(files, license="mit")
    segmenter = ovseg.load("hf-hub:me/clip", device="cpu")
    assert (segmenter.name, segmenter.card.license, segmenter.card.options["readout"]) == ("hf-hub:me/clip", "mit", "naclip")
    assert segmenter.segment(PICTURE, ["sky", "sea"]).segmentation.shape == (50, 70)
    # classification is open_clip's
    with torch.inference_mode():
        transform = open_clip.image_transform(32, False, (0.5,) * 3, (0.5,) * 3, "squash", "bicubic")
        from PIL import Image

        image = network.encode_image(transform(Image.fromarray(PICTURE))[None], normalize=True)
        text = network.encode_text(open_clip.get_tokenizer("ViT-B-32")(["sky", "sea"]), normalize=True)
        expected = (100 * image @ text.T).softmax(1)[0].numpy()
    np.testing.assert_allclose(segmenter.classify(PICTURE, ["sky", "sea"], templates="none").scores, expected, atol=1e-3)


def test_a_repository_with_a_card_of_ovseg_loads(hub: FakeHub) -> None:
    from ovseg.registry import weights_folder

    mini = cards()["mini"]
    folder = weights_folder(mini)
    content = {name: (folder / name).read_bytes() for name in mini.files.values()}
    card = (Path(__file__).parents[1] / "model_cards" / "mini.md").read_bytes()
    hub.repos["me/mini"] = Repo({"card.md": card, **content})
    segmenter = ovseg.load("hf-hub:me/mini", device="cpu")
    first = ovseg.load("mini", device="cpu").segment(PICTURE, ["sky", "sea"])
    np.testing.assert_array_equal(segmenter.segment(PICTURE, ["sky", "sea"]).segmentation, first.segmentation)


def test_somebodys_training_of_a_known_architecture_loads(hub: FakeHub, monkeypatch: pytest.MonkeyPatch) -> None:
    """The card is found by the shapes of the tensors."""
    from ovseg import loading
    from ovseg.models import clipseg

    class Network(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.weight = torch.nn.Parameter(torch.zeros(3))

    built: list[str] = []

    def build(options: dict[str, Any], state: dict[str, Any] | None) -> Network:
        if options["variant"] != "rd64":
            raise WeightsError("of another model")
        assert state is not None and state.keys() == {"weight"}
        built.append(str(state["weight"].device))
        return Network()

    monkeypatch.setattr(clipseg, "build", build)
    hub.repos["me/seg"] = Repo({"config.json": b'{"model_type": "clipseg"}', "model.safetensors": saved(Network())})
    loaded = loading.load_model("hf-hub:me/seg", loading.Request(device="cpu"))
    assert built == ["meta", "cpu"]
    assert (loaded.card.name, loaded.card.family, loaded.card.scores) == ("hf-hub:me/seg", "clipseg", {})
    hub.repos["me/other"] = Repo({"config.json": b'{"model_type": "sam3"}', "model.safetensors": saved(Network())})
    with pytest.raises(WeightsError, match="of no model that ovseg knows"):
        ovseg.load("hf-hub:me/other")


@pytest.mark.parametrize("part", [
    {"text_cfg": {"hf_model_name": "somebody/code"}},
    {"vision_cfg": {"timm_model_name": "hf-hub:somebody/code", "patch_size": 16, "image_size": 32}},
    {"vision_cfg": 5},
])  # fmt: skip
def test_a_configuration_cannot_make_others_fetch_or_run_code(part: dict[str, Any]) -> None:
    from ovseg.models.dense_clip import build

    with pytest.raises(OvsegError, match="cannot be built"):
        build({"config": {**TINY, **part}, "readout": "auto"}, None)


@pytest.mark.parametrize("line", [
    'window: {"size": 224}', "stride: 0", 'sha256: {"a": 3}', 'activation: "tanh"', "threshold: 7", 'classify: {"size": 3, "fit": "bend"}',
    f"scores: {'[' * 100_000}",
])  # fmt: skip
def test_cards_with_values_that_cannot_be_right_are_refused(line: str) -> None:
    from ovseg.registry import parse_card

    text = (Path(__file__).parents[1] / "model_cards" / "mini.md").read_text("utf-8")
    key = line.partition(":")[0]
    lines = [old for old in text.split("\n") if not old.startswith(f"{key}:")]
    with pytest.raises(WeightsError):
        parse_card("\n".join([lines[0], line, *lines[1:]]), "card.md")


def test_headers_of_safetensors_have_a_limit(tmp_path: Path) -> None:
    from ovseg.integrity import file_problem

    path = tmp_path / "large.safetensors"
    with path.open("wb") as file:
        file.write((200_000_000).to_bytes(8, "little"))
        file.truncate(300_000_000)  # sparse
    assert "header would take" in file_problem(path)


def test_names_of_open_clip_without_open_clip(monkeypatch: pytest.MonkeyPatch) -> None:
    from ovseg import loading, network

    monkeypatch.setattr(network, "find_spec", lambda name: None)
    for call in (lambda: ovseg.load("clip-rn50-openai"), loading.clip_names):
        with pytest.raises(MissingDependencyError, match="open_clip"):
            call()
