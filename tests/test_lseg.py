"""The references in tests/golden were computed by the published code with weights made of their names (tests/synthetic.py)."""

from __future__ import annotations

import copy
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from synthetic import synthesise, synthetic_tensor
from torch import Tensor

from ovseg.errors import InvalidArgumentError, WeightsError
from ovseg.models import lseg

GOLDEN = Path(__file__).parent / "golden"
TINY = lseg.Variant(32, 2, (0, 1, 2, 3), 16, 6, (8, 16, 32, 32), (4, 2, 1, -2), (32, 1, 2, 16))
HEADS: dict[str, dict[str, Any]] = {
    "bottleneck": {"arch_option": 1, "block_depth": 2, "activation": "lrelu"},
    "depthwise": {"arch_option": 2, "block_depth": 1, "activation": "lrelu"},
}


def golden_state(name: str, known: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """All tensors of the published network; those that cannot matter are empty shells, and those of `known` are taken from there."""
    shapes = json.loads((GOLDEN / f"{name}.shapes.json").read_text())

    def tensor(key: str, shape: list[int]) -> Tensor:
        if key.removeprefix("net.").startswith(lseg.UNUSED):
            return torch.zeros(()).expand(shape)
        return known[key] if key in known and known[key].shape == torch.Size(shape) else synthetic_tensor(key, shape)

    return {key: tensor(key, shape) for key, shape in shapes.items()}


def pixel_values(image: NDArray[np.uint8]) -> Tensor:
    return torch.from_numpy(image).permute(2, 0, 1)[None] / 127.5 - 1


def check(network: lseg.LSeg, name: str) -> Tensor:
    """Compare embeddings with the reference; return our logits before the head blocks."""
    with np.load(GOLDEN / f"{name}.npz") as golden:
        pixels, labels = golden["image"], [str(label) for label in golden["labels"]]
        text, sample = torch.from_numpy(golden["text_embedding"]), torch.from_numpy(golden["pixel_embedding_sample"])
    ids = torch.tensor(lseg.build_tokenizer({}, {})(labels))
    embeddings = network.encode_text(ids)
    torch.testing.assert_close(embeddings, text, atol=1e-4, rtol=1e-4)
    features = network.forward_features(pixel_values(pixels))
    ours = features[0, :, ::16, ::16]
    assert (ours - sample).abs().max() <= 1e-4 * sample.abs().max()
    unit = network(pixel_values(pixels))
    torch.testing.assert_close(unit, F.normalize(features, dim=1), atol=1e-6, rtol=0)
    return lseg.LOGIT_SCALE * torch.einsum("bdhw,kd->bkhw", unit, F.normalize(embeddings))


def assert_published(logits: Tensor, name: str) -> None:
    with np.load(GOLDEN / f"{name}.npz") as golden:
        expected = torch.from_numpy(golden["logits"])
    full = F.interpolate(logits, scale_factor=2, mode="bilinear", align_corners=True)
    assert full.shape == expected.shape
    assert (full - expected).abs().max() <= 1e-3


@pytest.fixture(scope="module")
def base_state() -> dict[str, Tensor]:
    return golden_state("lseg_vitb32_bottleneck", {})


@pytest.fixture(scope="module")
def base(base_state: dict[str, Tensor]) -> lseg.LSeg:
    """The network on ViT-B/32."""
    network = lseg.build({"backbone": "clip_vitb32_384", **HEADS["bottleneck"]}, base_state)
    return network.eval().requires_grad_(False)


def tiny(arch_option: int = 0, depth: int = 1, activation: str = "lrelu") -> lseg.LSeg:
    network = lseg.LSegWithHeadBlocks(TINY, lseg.HeadBlock(arch_option == 1, depth, activation)) if arch_option else lseg.LSeg(TINY)
    synthesise(network)
    return network.eval().requires_grad_(False)


# -------------------------------------------------------------------------------------------------------------- references


def test_published_network(base_state: dict[str, Tensor]) -> None:
    state = golden_state("lseg_vitl16", base_state)
    network = lseg.build({"backbone": "clip_vitl16_384"}, state).eval().requires_grad_(False)
    assert_published(check(network, "lseg_vitl16"), "lseg_vitl16")


@pytest.mark.parametrize("kind", list(HEADS))
def test_published_head_blocks(kind: str, base: lseg.LSeg, base_state: dict[str, Tensor]) -> None:
    network = base
    if kind != "bottleneck":
        network = lseg.build({"backbone": "clip_vitb32_384", **HEADS[kind]}, base_state).eval().requires_grad_(False)
    assert isinstance(network, lseg.LSegWithHeadBlocks)
    logits = check(network, f"lseg_vitb32_{kind}")
    assert_published(network.refine_logits(logits), f"lseg_vitb32_{kind}")
    with pytest.raises(AssertionError):
        assert_published(logits, f"lseg_vitb32_{kind}")


def test_batch_equals_single_and_other_sizes(base: lseg.LSeg) -> None:
    images = torch.rand(2, 3, 96, 160, generator=torch.Generator().manual_seed(0)) * 2 - 1
    together = base(images)
    assert together.shape == (2, 512, 48, 80)
    assert together.dtype == torch.float32
    for image, expected in zip(images, together, strict=True):
        torch.testing.assert_close(base(image[None])[0], expected, atol=1e-5, rtol=0)


def test_bfloat16_stays_near(base: lseg.LSeg) -> None:
    images = torch.rand(1, 3, 96, 128, generator=torch.Generator().manual_seed(0)) * 2 - 1
    half = copy.deepcopy(base).bfloat16()
    features = half(images.bfloat16())
    assert features.dtype == torch.float32
    torch.testing.assert_close(features.norm(dim=1), torch.ones(1, 48, 64))
    assert torch.cosine_similarity(features, base(images)).min() > 0.99


# ------------------------------------------------------------------------------------------------------------- head blocks


@pytest.mark.parametrize("kind", [1, 2])
@pytest.mark.parametrize("depth", [0, 1, 3])
@pytest.mark.parametrize("activation", ["relu", "lrelu", "tanh"])
def test_head_blocks(kind: int, depth: int, activation: str) -> None:
    """Against a slow version written from the description."""
    network = tiny(kind, depth, activation)
    assert isinstance(network, lseg.LSegWithHeadBlocks)
    conv = network.state_dict()
    kernel, bias = (conv[f"scratch.head_block.depthwise.depthwise.{part}"] for part in ("weight", "bias"))
    logits = torch.randn(1, 5, 6, 7, generator=torch.Generator().manual_seed(1)) * 5
    expected = logits
    for step in range(max(depth, 1)):
        moved = torch.cat([F.conv2d(expected[:, k : k + 1], kernel, bias, padding=1) for k in range(5)], 1)
        if kind == 1:
            moved = moved + expected.max(1, keepdim=True).values
        if step < depth - 1:
            moved = {"relu": moved.clamp(min=0), "lrelu": torch.where(moved > 0, moved, 0.01 * moved), "tanh": moved.tanh()}[activation]
        expected = moved
    torch.testing.assert_close(network.refine_logits(logits), expected)
    channels_last = logits.contiguous(memory_format=torch.channels_last)
    torch.testing.assert_close(network.refine_logits(channels_last), expected)


def test_logits_of_a_half_precision_network_stay_float32() -> None:
    network = tiny(1, 2).bfloat16()
    assert isinstance(network, lseg.LSegWithHeadBlocks)
    assert network.refine_logits(torch.randn(1, 3, 4, 4)).dtype == torch.float32


def test_no_head_blocks_no_refinement() -> None:
    assert not hasattr(tiny(), "refine_logits")


# ----------------------------------------------------------------------------------------------------------------- weights


def test_prefix_and_unused_tensors(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lseg, "VARIANTS", {"clip_vitl16_384": TINY})
    network = tiny()
    state = network.state_dict()
    extra = {name: torch.zeros(3) for name in ("clip_pretrained.visual.proj", "pretrained.model.head.bias", "criterion.weight")}
    images = torch.rand(1, 3, 32, 64)
    for prefix in ("", "net."):
        again = lseg.build({}, {prefix + name: value for name, value in {**state, **extra}.items()}).eval()
        torch.testing.assert_close(again(images), network(images), atol=0, rtol=0)


def test_half_precision_tensors_become_float32(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lseg, "VARIANTS", {"clip_vitl16_384": TINY})
    network = lseg.build({}, {name: v.half() if v.is_floating_point() else v for name, v in tiny().state_dict().items()})
    assert {value.dtype for value in network.state_dict().values()} == {torch.float32, torch.int64}


def test_wrong_weights(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lseg, "VARIANTS", {"clip_vitl16_384": TINY})
    state = tiny().state_dict()
    with pytest.raises(WeightsError, match="scratch.head1.bias"):
        lseg.build({}, {name: value for name, value in state.items() if name != "scratch.head1.bias"})
    with pytest.raises(WeightsError, match="pretrained.layer1"):
        lseg.build({}, {**state, "pretrained.layer1": torch.zeros(1)})
    with pytest.raises(WeightsError, match="shape"):
        lseg.build({}, {**state, "scratch.head1.bias": torch.zeros(3)})
    with pytest.raises(WeightsError, match="head_block"):  # weights of a network with head blocks
        lseg.build({}, tiny(1).state_dict())


@pytest.mark.parametrize("backbone", list(lseg.VARIANTS))
@pytest.mark.parametrize("arch_option", [0, 1, 2])
def test_every_network_can_be_built_without_memory(backbone: str, arch_option: int) -> None:
    with torch.device("meta"):
        network = lseg.build({"backbone": backbone, "arch_option": arch_option}, None)
        features = network(torch.empty(2, 3, 64, 96))
    dim = 768 if backbone.startswith("clipRN50x16") else 512
    assert features.shape == (2, dim, 32, 48)
    assert network.clip_pretrained.text_projection.shape[1] == dim


def test_random_weights_give_finite_features(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lseg, "VARIANTS", {"clip_vitl16_384": TINY})
    network = lseg.build({}, None).eval().requires_grad_(False)
    assert torch.isfinite(network(torch.rand(1, 3, 64, 32))).all()
    text = network.encode_text(torch.tensor(lseg.build_tokenizer({}, {})(["sky", "grass"])))
    assert (text[0] - text[1]).norm() > 0


@pytest.mark.parametrize(
    "options",
    [{"backbone": "vitl16"}, {"arch_option": 3}, {"arch_option": True}, {"activation": "gelu"}, {"block_depth": -1}, {"block_depth": 1.5},
     {"readout": "naclip"}],
)  # fmt: skip
def test_unknown_options(options: dict[str, Any]) -> None:
    with pytest.raises(InvalidArgumentError, match=next(iter(options))):
        lseg.build(options, None)


def test_sizes_must_be_multiples() -> None:
    with pytest.raises(InvalidArgumentError, match="multiples of 32"):
        tiny()(torch.zeros(1, 3, 64, 80))


# ------------------------------------------------------------------------------------------------------------------ export


def test_graph_takes_any_size(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lseg, "FEATURES", 16)
    network = tiny()
    rows, columns = torch.export.Dim("rows", min=1), torch.export.Dim("columns", min=1)
    shapes = ({0: torch.export.Dim.DYNAMIC, 2: 32 * rows, 3: 32 * columns},)
    program = torch.export.export(network, (torch.rand(2, 3, 64, 128),), dynamic_shapes=shapes).module()
    for size in ((1, 3, 96, 96), (3, 3, 64, 160)):  # 96 is the size at which position embeddings stay as they are
        images = torch.rand(size)
        torch.testing.assert_close(program(images), network(images), atol=1e-5, rtol=1e-5)
