from __future__ import annotations

import argparse
import dataclasses
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from synthetic import synthesise, synthetic_state_dict
from torch import Tensor

from ovseg.errors import InvalidArgumentError, OutputError, WeightsError
from ovseg.models import radio
from ovseg.models.radio import HeadConfig, Radio
from ovseg.models.radio_vit import VARIANTS, Backbone, Variant, correlate
from ovseg.models.siglip_text import TextConfig, TextTower, canonicalize, siglip_tokenizer
from ovseg.tiling import window_starts

SMALL = Variant(width=48, depth=2, heads=4, layer_scale=True, align_corners=True, grid=24)
HEAD = HeadConfig(embed_dim=20, hidden=32, blocks=2)
TEXT = TextConfig(embed_dim=20, width=24, layers=2, heads=3, hidden=40, vocabulary=60, context=9)


def shapes(module: torch.nn.Module) -> dict[str, tuple[int, ...]]:
    return {name: tuple(value.shape) for name, value in module.state_dict().items()}


def lively(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """Layer scales of order 1 instead of synthetic 0.02, or the blocks would hardly change anything."""
    return {name: value * 50 if name.endswith("gamma") else value for name, value in state.items()}


def small(readout: str = "radseg", variant: Variant = SMALL, **more: Any) -> tuple[Radio, dict[str, Tensor]]:
    network = Radio(variant, "siglip2", HEAD, TEXT, readout, **more)
    state = lively(synthetic_state_dict(shapes(network)))
    state["input_conditioner.norm_mean"] = torch.tensor([0.5, 0.4, 0.3]).view(3, 1, 1)
    state["input_conditioner.norm_std"] = torch.tensor([0.3, 0.2, 0.25]).view(3, 1, 1)
    network.load_state_dict(state)
    return network.eval().requires_grad_(False), state


def pixels(height: int, width: int, batch: int = 1) -> Tensor:
    return torch.rand(batch, 3, height, width, generator=torch.Generator().manual_seed(height + width))


@pytest.mark.parametrize("name", list(VARIANTS))
def test_backbone_equals_timm(name: str) -> None:
    """At full width; B at full depth, the others cut to two blocks."""
    timm = pytest.importorskip("timm")
    variant = VARIANTS[name] if name == "c-radio_v3-b" else dataclasses.replace(VARIANTS[name], depth=2)
    size = {"b": "base", "l": "large", "h": "huge"}[name[-1]]
    upstream = timm.create_model(f"naflexvit_{size}_patch16_radio_v3", depth=variant.depth).eval().requires_grad_(False)
    ours = Backbone(variant).eval().requires_grad_(False)
    state = lively(synthetic_state_dict(shapes(ours)))
    ours.load_state_dict(state)
    published = {f"radio_model.model.{name.replace('.gamma', '.grandma')}": value for name, value in state.items()}
    from timm.models.naflexvit import checkpoint_filter_fn

    upstream.load_state_dict(checkpoint_filter_fn(published, upstream))
    x = pixels(96, 128) * 4 - 2
    expected = upstream.forward_features(x)
    got = ours(x, recursive=False)
    assert got.shape == expected.shape == (1, 8 + 48, variant.width)
    assert (got - expected).abs().max() < 1e-4 * expected.abs().max()


def test_backbone_equals_transformers() -> None:
    """The native class has no aligned corners; its layer scales are `lambda1`."""
    transformers = pytest.importorskip("transformers")
    network, state = small("vanilla", dataclasses.replace(SMALL, align_corners=False))
    config = transformers.RadioConfig(
        hidden_size=48, num_hidden_layers=2, num_attention_heads=4, max_img_size=24 * 16, num_cls_tokens=4, num_registers=4
    )
    upstream = transformers.RadioModel(config).eval().requires_grad_(False)
    theirs = {"summary_idxs": upstream.summary_idxs}
    for name, value in state.items():
        if not name.startswith(("base_model", "input_conditioner")):
            continue
        name = name.removeprefix("base_model.").replace("blocks", "encoder.layer")
        name = name.replace("patch_generator.embedder", "embeddings.patch_projection")
        name = name.replace("patch_generator.pos_embed", "embeddings.position_embedding")
        name = name.replace("patch_generator.cls_token.token", "embeddings.cls_register_token").replace("attn.proj", "attention.o_proj")
        name = name.replace("ls1.gamma", "layer_scale1.lambda1").replace("ls2.gamma", "layer_scale2.lambda1")
        if "attn.qkv" in name:
            for part, chunk in zip("qkv", value.chunk(3), strict=True):
                theirs[name.replace("attn.qkv", f"attention.{part}_proj")] = chunk
        else:
            theirs[name] = value
    upstream.load_state_dict(theirs)
    x = pixels(80, 144, 2)
    expected = upstream(x)
    got = network.base_model(network.input_conditioner(x), recursive=False)
    assert (got - expected.last_hidden_state).abs().max() < 1e-4
    patches = network._patches(x, recursive=False).flatten(1, 2)
    assert (patches - expected.features).abs().max() < 1e-4


def gelu(x: np.ndarray) -> np.ndarray:
    from math import erf

    return x * 0.5 * (1 + np.vectorize(erf)(x / np.sqrt(2)))


def norm(x: np.ndarray, weight: np.ndarray, bias: np.ndarray, eps: float) -> np.ndarray:
    return (x - x.mean(-1, keepdims=True)) / np.sqrt(x.var(-1, keepdims=True) + eps) * weight + bias


def brute_adaptor(x: np.ndarray, state: dict[str, np.ndarray]) -> np.ndarray:
    def step(x: np.ndarray, prefix: str) -> np.ndarray:
        x = gelu(norm(x, state[f"{prefix}.0.weight"], state[f"{prefix}.0.bias"], 1e-5))
        return x @ state[f"{prefix}.2.weight"].T + state[f"{prefix}.2.bias"]

    x = x @ state["fc1.weight"].T + state["fc1.bias"]
    for i in range(2):
        x = x + step(x, f"blocks.{i}")
    return step(x, "final")


def soft_positive(logits: np.ndarray) -> np.ndarray:
    weights = np.where(logits < 0, 0, np.exp(logits))
    return weights / weights.sum(-1, keepdims=True)


def cosines(x: np.ndarray) -> np.ndarray:
    x = x / np.linalg.norm(x, axis=-1, keepdims=True)
    return x @ x.T


def as_numpy(state: dict[str, Tensor], prefix: str) -> dict[str, np.ndarray]:
    return {name.removeprefix(prefix): value.double().numpy() for name, value in state.items() if name.startswith(prefix)}


def test_adaptor_equals_brute_force() -> None:
    network, state = small()
    x = torch.randn(7, 48, generator=torch.Generator().manual_seed(1))
    expected = brute_adaptor(x.double().numpy(), as_numpy(state, "_heads.siglip2."))
    assert np.abs(network._heads["siglip2"](x).numpy() - expected).max() < 1e-5


def brute_last_block(x: np.ndarray, state: dict[str, np.ndarray]) -> np.ndarray:
    """One image's tokens (N, 48) through the last block with SCRA, head by head."""
    y = norm(x, state["norm1.weight"], state["norm1.bias"], 1e-6) @ state["attn.qkv.weight"].T + state["attn.qkv.bias"]
    q, k, v = (y[:, i * 48 : (i + 1) * 48] for i in range(3))
    heads = [slice(i * 12, (i + 1) * 12) for i in range(4)]

    def project(parts: list[np.ndarray]) -> np.ndarray:
        return np.concatenate(parts, 1) @ state["attn.proj.weight"].T + state["attn.proj.bias"]

    plain = []
    for part in heads:
        logits = np.exp(q[:, part] @ k[:, part].T / np.sqrt(12))
        plain.append(logits / logits.sum(1, keepdims=True) @ v[:, part])
    first = project(plain)
    second = project([soft_positive(10 * cosines(first[:, part])) @ v[:, part] for part in heads])
    x = x + second * state["ls1.gamma"]
    y = norm(x, state["norm2.weight"], state["norm2.bias"], 1e-6) @ state["mlp.fc1.weight"].T + state["mlp.fc1.bias"]
    return x + (gelu(y) @ state["mlp.fc2.weight"].T + state["mlp.fc2.bias"]) * state["ls2.gamma"]


def test_radseg_equals_brute_force() -> None:
    """Windows, SCRA, SCGA and adaptor in float64 numpy; the first block and the embedding are torch's, which other tests check."""
    network, state = small()
    x = pixels(352, 592)  # 22 x 37 cells: rows of windows from 0 and 1, columns from 0, 14 and 16
    last = as_numpy(state, "base_model.blocks.1.")
    total, count = np.zeros((22, 37, 48)), np.zeros((22, 37, 1))
    for top in (0, 1):
        for left in (0, 14, 16):
            crop = x[:, :, top * 16 : top * 16 + 336, left * 16 : left * 16 + 336]
            tokens = network.base_model.patch_generator(network.input_conditioner(crop))
            tokens = network.base_model.blocks[0](tokens)[0].double().numpy()
            inside = slice(top, top + 21), slice(left, left + 21)
            total[inside] += brute_last_block(tokens, last)[8:].reshape(21, 21, 48)
            count[inside] += 1
    assert count.min() == 1 and count.max() == 6
    patches = (total / count).reshape(-1, 48)
    similar = cosines(patches)
    patches = soft_positive(10 * (similar - similar.mean())) @ patches
    expected = brute_adaptor(patches, as_numpy(state, "_heads.siglip2."))
    expected /= np.linalg.norm(expected, axis=-1, keepdims=True)
    got = network(x)
    assert got.dtype == torch.float32 and got.shape == (1, 20, 22, 37)
    assert np.abs(got[0].flatten(1).T.numpy() - expected).max() < 1e-4
    vanilla, _ = small("vanilla")
    assert np.abs(vanilla(x)[0].flatten(1).T.numpy() - expected).max() > 1e-2


def test_windows_cover_every_cell() -> None:
    for size in range(16, 1500, 16):
        starts = window_starts(size, min(336, size), 224)
        covered = np.zeros(size, bool)
        for start in starts:
            assert start >= 0 and start + min(336, size) <= size and start % 16 == 0
            covered[start : start + 336] = True
        assert covered.all() and len(starts) == max(0, -(-(size - 336) // 224)) + 1


@pytest.mark.parametrize("readout", radio.READOUTS)
def test_batch_is_single_and_length_one(readout: str) -> None:
    network, _ = small(readout)
    x = pixels(112, 352, 3)
    features = network(x)
    assert features.shape == (3, 20, 7, 22)
    torch.testing.assert_close(features.norm(dim=1), torch.ones(3, 7, 22))
    for i in range(3):
        torch.testing.assert_close(network(x[i : i + 1])[0], features[i], atol=2e-5, rtol=0)


def test_uniform_image_stays_finite() -> None:
    """All cosines are 1 then, and rounding may put them below their mean."""
    same = torch.randn(1, 1, 48, generator=torch.Generator().manual_seed(2)).expand(1, 300, 48).contiguous()
    torch.testing.assert_close(correlate(same, same, centre=True), same)
    network, _ = small()
    assert network(torch.full((1, 3, 64, 64), 0.5)).isfinite().all()


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision(dtype: torch.dtype) -> None:
    network, _ = small()
    x = pixels(64, 96)
    expected = network(x)
    got = network.to(dtype)(x.to(dtype))
    assert got.dtype == torch.float32
    assert (got * expected).sum(1).min() > 0.98


def test_feature_normalizer_is_used_where_it_is() -> None:
    plain, state = small("vanilla")
    network, _ = small("vanilla", normalizer=True)
    mean, tx = torch.randn(48), torch.randn(48, 48) / 7
    network.load_state_dict({**state, "_feature_normalizer.mean": mean, "_feature_normalizer.tx": tx})
    x = pixels(32, 48)
    expected = torch.einsum("bhwc,dc->bhwd", plain._patches(x, False) - mean, tx)
    torch.testing.assert_close(network._patches(x, False), expected, atol=1e-5, rtol=1e-5)


def test_global_embedding_is_the_adaptor_on_its_summary() -> None:
    assert small()[0].encode_global is None
    network, state = small(summary_token=1)
    x = pixels(32, 48, 2)
    tokens = network.base_model(network.input_conditioner(x), recursive=False)[:, 1].double().numpy()
    assert network.encode_global is not None
    assert np.abs(network.encode_global(x).numpy() - brute_adaptor(tokens, as_numpy(state, "_heads.siglip2."))).max() < 1e-5


@pytest.mark.parametrize("kind", ["Siglip", "Siglip2"])
def test_text_tower_equals_transformers(kind: str) -> None:
    transformers = pytest.importorskip("transformers")
    config = getattr(transformers, f"{kind}TextConfig")(
        vocab_size=60, hidden_size=24, intermediate_size=40, num_hidden_layers=2, num_attention_heads=3, max_position_embeddings=9,
        projection_size=20, pad_token_id=0, bos_token_id=2, eos_token_id=1,
    )  # fmt: skip
    upstream = getattr(transformers, f"{kind}TextModel")(config).eval().requires_grad_(False)
    ours = TextTower(TEXT).eval().requires_grad_(False)
    state = synthesise(ours)
    names = {name.removeprefix("text_model."): name for name in upstream.state_dict()}
    upstream.load_state_dict({names[name]: value for name, value in state.items()})
    ids = torch.tensor([[5, 9, 41, 1, 0, 0, 0, 0, 0], [7, 1, 0, 0, 0, 0, 0, 0, 0], [3, 4, 5, 6, 7, 8, 9, 10, 1]])
    torch.testing.assert_close(ours(ids), upstream(ids).pooler_output, atol=1e-5, rtol=1e-5)


def test_text_sizes_are_those_of_open_clip() -> None:
    open_clip = pytest.importorskip("open_clip")
    for adaptor, name in (("siglip2", "ViT-SO400M-16-SigLIP2-384"), ("siglip2-g", "ViT-gopt-16-SigLIP2-384")):
        theirs, ours = open_clip.get_model_config(name), radio.TEXT_TOWERS[adaptor]
        text = theirs["text_cfg"]
        assert theirs["embed_dim"] == ours.embed_dim
        assert (text["width"], text["layers"], text["heads"]) == (ours.width, ours.layers, ours.heads)
        assert (text["vocab_size"], text["context_length"], int(text["width"] * text["mlp_ratio"])) == (256000, 64, ours.hidden)


def write_tokenizer(folder: Path) -> Path:
    from tokenizers import Tokenizer, models, pre_tokenizers

    words = ["<pad>", "<eos>", "<bos>", "<unk>", "a", "crane", "bird", "red", "traffic", "light"]
    tokenizer = Tokenizer(models.WordLevel({word: i for i, word in enumerate(words)}, "<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.save(str(folder / "tokenizer.json"))
    return folder / "tokenizer.json"


def test_tokenizer(tmp_path: Path) -> None:
    tokenize = siglip_tokenizer(write_tokenizer(tmp_path), context=6)
    assert tokenize(["Crane (bird)", "a red_traffic-light a red crane", ""]) == [
        [5, 6, 1, 0, 0, 0],
        [4, 7, 3, 4, 7, 1],  # "trafficlight" is unknown: hyphens vanish without a space, as in training
        [1, 0, 0, 0, 0, 0],
    ]
    with pytest.raises(WeightsError, match="no tokenizer"):
        siglip_tokenizer(tmp_path / "none.json")


def test_canonicalize_equals_open_clip() -> None:
    pytest.importorskip("open_clip")
    from open_clip.tokenizer import canonicalize_text

    for text in ("A photo of a Golden_Retriever!", "  crane   (bird) ", "it's 5 o'clock: go...", "naïve Straße"):
        assert canonicalize(text) == canonicalize_text(text)


@pytest.mark.parametrize("variant", list(VARIANTS))
@pytest.mark.parametrize(("adaptor", "readout"), list(zip(radio.TEXT_TOWERS, radio.READOUTS, strict=True)))
def test_all_variants_build_on_meta(variant: str, adaptor: str, readout: str) -> None:
    with torch.device("meta"):
        network = radio.build({"variant": variant, "adaptor": adaptor, "readout": readout}, None)
        dim = radio.TEXT_TOWERS[adaptor].embed_dim
        assert network.readout == readout
        assert network(torch.empty(2, 3, 352, 480)).shape == (2, dim, 22, 30)
        assert network.encode_text(torch.zeros(3, 64, dtype=torch.int64)).shape == (3, dim)


def test_size_of_the_smallest_is_the_papers() -> None:
    """RADSeg's paper counts 105 million parameters for backbone and adaptor of its base model."""
    with torch.device("meta"):
        network = radio.build({}, None)
    count = sum(p.numel() for part in (network.base_model, network._heads) for p in part.parameters())
    assert int(count / 1e6) == 105


def test_unknown_options_are_refused() -> None:
    for options in ({"variant": "c-radio_v9"}, {"adaptor": "clip"}, {"readout": "nacl"}, {"summary_token": 8}, {"summary_token": "1"}):
        with pytest.raises(InvalidArgumentError, match=next(iter(options))):
            radio.build(options, None)


@pytest.fixture
def tiny(monkeypatch: pytest.MonkeyPatch) -> None:
    """Cut the first variant and its text tower down, so that files of it are small."""
    monkeypatch.setitem(VARIANTS, "c-radio_v3-b", SMALL)
    monkeypatch.setitem(radio.TEXT_TOWERS, "siglip2", TEXT)


def hub_state(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """What public code reports of the released file: fp16, with adaptors of other teachers and leftovers of training."""
    image = {name: value.half() for name, value in state.items() if not name.startswith("text_model.")}
    extra = ("_heads.clip.fc1.weight", "_feature_projections.siglip2.fc1.weight", "_loss_states.0.mean", "adaloss.x", "weight_balance_mask",
             "base_model.reg_token", "lean_in_expected_losses")  # fmt: skip
    return image | {name: torch.zeros(3) for name in extra}


@pytest.mark.usefixtures("tiny")
def test_published_layouts_load_strictly() -> None:
    network, state = small()
    x = pixels(48, 64)
    torch.testing.assert_close(radio.build({}, state)(x), network(x))
    text = {name: value for name, value in state.items() if name.startswith("text_model.")}
    hub = hub_state(state) | text | {"vision_model.x": torch.zeros(1), "logit_scale": torch.zeros(1), "logit_bias": torch.zeros(1)}
    loaded = radio.build({"summary_token": 2}, hub)
    assert (loaded(x) * network(x)).sum(1).min() > 0.999
    assert all(p.dtype == torch.float32 for p in loaded.parameters())
    nvidia = {
        (f"radio_model.model.{name.removeprefix('base_model.').replace('.gamma', '.grandma')}" if name.startswith("base_model.")
         else f"radio_model.{name}" if name.startswith("input_conditioner.") else name): value
        for name, value in state.items()
    }  # fmt: skip
    torch.testing.assert_close(radio.build({}, nvidia)(x), network(x))
    backbone = {name: value for name, value in nvidia.items() if name.startswith("radio_model.")}
    with pytest.raises(WeightsError, match="no adaptor 'siglip2'.*they have none"):
        radio.build({}, backbone)
    with pytest.raises(WeightsError, match="1 tensors are missing .base_model.blocks.1.ls2.gamma"):
        radio.build({}, {name: value for name, value in state.items() if name != "base_model.blocks.1.ls2.gamma"})
    with pytest.raises(WeightsError, match="1 are unknown .base_model.norm.weight"):
        radio.build({}, state | {"base_model.norm.weight": torch.zeros(48)})
    wide = state | {"_heads.siglip2.final.2.weight": torch.zeros(21, 32)}
    with pytest.raises(WeightsError, match="21 outputs, expected 20"):
        radio.build({}, wide)


def test_adaptor_sizes_come_from_the_tensors() -> None:
    network = Radio(SMALL, "siglip2", HeadConfig(20, 12, 3), TEXT)
    state = synthetic_state_dict(shapes(network))
    loaded = radio.load(state, SMALL, "siglip2", TEXT, "vanilla", None, "a test")
    assert loaded._heads["siglip2"].fc1.out_features == 12 and len(loaded._heads["siglip2"].blocks) == 3


class Opaque:
    """Something a pickle may hold that is more than data."""


def write_sources(folder: Path, state: dict[str, Tensor], args: Any, numbered: bool = False) -> tuple[Path, Path]:
    from safetensors.torch import save_file

    hub = hub_state(state) | {"leftover_of_training": torch.zeros(1)}
    if numbered:
        hub = {name.replace("_heads.siglip2.", "_heads.1.").replace("_heads.clip.", "_heads.0."): value for name, value in hub.items()}
    torch.save({"state_dict": hub, "args": args, "epoch": 3}, folder / "hub.pth.tar")
    text = folder / "text"
    text.mkdir()
    tensors = {name: value for name, value in state.items() if name.startswith("text_model.")}
    first = {name: value for name, value in tensors.items() if "layers.0" in name}
    save_file(first | {"vision_model.x": torch.zeros(1)}, text / "model-00001-of-00002.safetensors")
    save_file({name: value for name, value in tensors.items() if name not in first}, text / "model-00002-of-00002.safetensors")
    write_tokenizer(text)
    return folder / "hub.pth.tar", text


TEACHERS = [{"name": "clip"}, {"name": "siglip2", "use_summary": True}, {"name": "dino_v2"}, {"name": "sam", "use_summary": False}]


@pytest.mark.usefixtures("tiny")
@pytest.mark.parametrize("numbered", [False, True])
def test_conversion(tmp_path: Path, numbered: bool) -> None:
    from ovseg.export.radio import convert_radio
    from safetensors.torch import load_file

    from ovseg.hub import read_folder

    network, state = small()
    checkpoint, text = write_sources(tmp_path, state, argparse.Namespace(teachers=TEACHERS, lr=0.1), numbered)
    convert_radio(checkpoint, text, tmp_path / "out")
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == ["card.md", "model.safetensors", "tokenizer.json"]
    card, files = read_folder(tmp_path / "out")
    assert card.options == {"variant": "c-radio_v3-b", "adaptor": "siglip2", "readout": "radseg", "summary_token": 1}
    assert (card.family, card.embed_dim, card.source, card.classify["size"]) == ("radio", 20, {}, 512)
    assert card.license == "nvidia-open-model-license" and "RADSeg" in card.text
    loaded = radio.build(card.options, load_file(files["weights"]))
    x = pixels(48, 64)
    assert (loaded(x) * network(x)).sum(1).min() > 0.999
    assert loaded.encode_global is not None
    assert radio.build_tokenizer(card.options, files)(["a crane"])[0][:4] == [4, 5, 1, 0]
    with pytest.raises(OutputError, match="is not empty"):
        convert_radio(checkpoint, text, tmp_path / "out")


@pytest.mark.usefixtures("tiny")
def test_conversion_refuses_code_and_what_does_not_fit(tmp_path: Path) -> None:
    from ovseg.export.radio import convert_radio

    _, state = small()
    args = argparse.Namespace(teachers=TEACHERS, other=Opaque())
    checkpoint, text = write_sources(tmp_path, state, args)
    with pytest.raises(WeightsError, match="Opaque.*allow_pickle=True"):
        convert_radio(checkpoint, text, tmp_path / "out")
    convert_radio(checkpoint, text, tmp_path / "trusted", allow_pickle=True)
    with pytest.raises(WeightsError, match="no adaptor 'siglip2-g'; it has clip, siglip2, dino_v2, sam"):
        convert_radio(checkpoint, text, tmp_path / "out", "siglip2-g", allow_pickle=True)
    with pytest.raises(WeightsError, match="is not there"):
        convert_radio(tmp_path / "none.pth", text, tmp_path / "out")
    (tmp_path / "junk.pth").write_bytes(b"junk")
    with pytest.raises(WeightsError, match=r"junk\.pth"):
        convert_radio(tmp_path / "junk.pth", text, tmp_path / "out")
    (text / "tokenizer.json").unlink()
    with pytest.raises(WeightsError, match=r"tokenizer\.json"):
        convert_radio(checkpoint, text, tmp_path / "out", allow_pickle=True)
    assert not (tmp_path / "out").exists()
    assert not [path for path in tmp_path.iterdir() if path.name.startswith(".")]
