from __future__ import annotations

import struct
from pathlib import Path

import numpy as np
import pytest

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")
if not hasattr(transformers, "Tipsv2Model"):
    pytest.skip("this version of transformers has no TIPSv2", allow_module_level=True)

from synthetic import synthesise, synthetic_state_dict  # noqa: E402

from ovseg.errors import InvalidArgumentError, InvalidLabelsError, WeightsError  # noqa: E402
from ovseg.models import tips  # noqa: E402
from ovseg.preprocess import Preprocess  # noqa: E402
from ovseg.registry import parse_card  # noqa: E402
from ovseg.templates import TEMPLATE_SETS  # noqa: E402

SMALL = tips.Size(width=48, layers=3, heads=4, hidden=120, text_layers=2, grid=8, vocabulary=60)
GATED = tips.Size(width=48, layers=3, heads=4, hidden=192, text_layers=2, gated=True, grid=8, vocabulary=60)
CARDS = Path(__file__).parents[1] / "model_cards"


def published_shapes(size: tips.Size) -> dict[str, tuple[int, ...]]:
    """Names and shapes as in Google's files, written down from its image_encoder.py and text_encoder.py."""
    d, hidden = size.width, size.hidden
    shapes: dict[str, tuple[int, ...]] = {
        "cls_token": (1, 1, d),
        "mask_token": (1, d),
        "register_tokens": (1, 1, d),
        "pos_embed": (1, 1 + size.grid**2, d),
        "patch_embed.proj.weight": (d, 3, 14, 14),
        "patch_embed.proj.bias": (d,),
        "norm.weight": (d,),
        "norm.bias": (d,),
    }
    for i in range(size.layers):
        b = f"blocks.{i}."
        for norm in ("norm1", "norm2"):
            shapes |= {f"{b}{norm}.weight": (d,), f"{b}{norm}.bias": (d,)}
        shapes |= {f"{b}attn.qkv.weight": (3 * d, d), f"{b}attn.qkv.bias": (3 * d,)}
        shapes |= {f"{b}attn.proj.weight": (d, d), f"{b}attn.proj.bias": (d,), f"{b}ls1.gamma": (d,), f"{b}ls2.gamma": (d,)}
        if size.gated:
            inner = (int(hidden * 2 / 3) + 7) // 8 * 8
            shapes |= {f"{b}mlp.w12.weight": (2 * inner, d), f"{b}mlp.w12.bias": (2 * inner,)}
            shapes |= {f"{b}mlp.w3.weight": (d, inner), f"{b}mlp.w3.bias": (d,)}
        else:
            shapes |= {f"{b}mlp.fc1.weight": (hidden, d), f"{b}mlp.fc1.bias": (hidden,)}
            shapes |= {f"{b}mlp.fc2.weight": (d, hidden), f"{b}mlp.fc2.bias": (d,)}
    shapes = {f"vision_encoder.{name}": shape for name, shape in shapes.items()}
    t = "text_encoder."
    shapes |= {f"{t}token_embedding.weight": (size.vocabulary, d), f"{t}ln_final.weight": (d,), f"{t}ln_final.bias": (d,)}
    for i in range(size.text_layers):
        b = f"{t}transformer.resblocks.{i}."
        for norm in ("ln_1", "ln_2"):
            shapes |= {f"{b}{norm}.weight": (d,), f"{b}{norm}.bias": (d,)}
        shapes |= {f"{b}attn.in_proj_weight": (3 * d, d), f"{b}attn.in_proj_bias": (3 * d,)}
        shapes |= {f"{b}attn.out_proj.weight": (d, d), f"{b}attn.out_proj.bias": (d,)}
        shapes |= {f"{b}mlp.c_fc.weight": (hidden, d), f"{b}mlp.c_fc.bias": (hidden,)}
        shapes |= {f"{b}mlp.c_proj.weight": (d, hidden), f"{b}mlp.c_proj.bias": (d,)}
    return shapes


def upstream_config(size: tips.Size) -> transformers.Tipsv2Config:
    return transformers.Tipsv2Config(
        vision_config={
            "hidden_size": size.width,
            "num_hidden_layers": size.layers,
            "num_attention_heads": size.heads,
            "mlp_ratio": size.hidden / size.width,
            "image_size": 14 * size.grid,
            "use_swiglu_ffn": size.gated,
        },
        text_config={
            "hidden_size": size.width,
            "intermediate_size": size.hidden,
            "num_hidden_layers": size.text_layers,
            "num_attention_heads": size.heads,
            "vocab_size": size.vocabulary,
        },
    )


def strong(state: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Scale up the layer scales, behind which mistakes in a block would hardly show."""
    return {name: 25 * value if name.endswith((".gamma", ".lambda1")) else value for name, value in state.items()}


def pixels(*shape: int) -> torch.Tensor:
    return torch.rand(shape, generator=torch.Generator().manual_seed(0))


@pytest.fixture(scope="module", params=[SMALL, GATED], ids=["mlp", "gated"])
def both(request, tmp_path_factory):
    """Ours from published tensors, and transformers' model that read the same file with its own key map."""
    from safetensors.torch import save_file

    state = strong(synthetic_state_dict(published_shapes(request.param)))
    folder = tmp_path_factory.mktemp("tips")
    save_file(state, folder / "model.safetensors", metadata={"format": "pt"})
    config = upstream_config(request.param)
    config.save_pretrained(folder)
    reference, report = transformers.Tipsv2Model.from_pretrained(folder, output_loading_info=True)
    assert not report["unexpected_keys"] and set(report["missing_keys"]) <= {"temperature"}
    ours = {readout: tips.assemble(request.param, readout, state).eval() for readout in tips.READOUTS}
    return ours, reference.eval(), state


@torch.no_grad()
@pytest.mark.parametrize("shape", [(2, 3, 112, 112), (2, 3, 70, 126), (1, 3, 14, 154)])
def test_vanilla_is_transformers(both, shape):
    ours, reference, _ = both
    x = pixels(*shape)
    tokens = reference.get_image_features(x).last_hidden_state[:, 2:]
    expected = torch.nn.functional.normalize(tokens, dim=-1).mT.unflatten(2, (shape[2] // 14, shape[3] // 14))
    got = ours["vanilla"](x)
    assert got.dtype == torch.float32
    torch.testing.assert_close(got, expected, atol=2e-6, rtol=0)


@torch.no_grad()
def test_global_token_is_the_one_transformers_classifies_with(both):
    ours, reference, _ = both
    x = pixels(2, 3, 98, 126)
    ids = torch.randint(1, 60, (3, 5), generator=torch.Generator().manual_seed(1))
    for module in ours.values():  # the read-out of patches must not touch it
        torch.testing.assert_close(module.encode_global(x), reference.get_image_features(x).pooler_output, atol=5e-6, rtol=1e-5)
    out = reference(input_ids=ids, pixel_values=x, attention_mask=torch.ones_like(ids))
    unit = torch.nn.functional.normalize(ours["value"].encode_global(x), dim=1)
    torch.testing.assert_close(unit, out.image_embeds, atol=2e-6, rtol=0)


def norm_of(x: np.ndarray, scale: np.ndarray, shift: np.ndarray) -> np.ndarray:
    return (x - x.mean(-1, keepdims=True)) / np.sqrt(x.var(-1, keepdims=True) + 1e-6) * scale + shift


@torch.no_grad()
def test_value_readout_is_the_formula(both):
    """The last block with attention replaced by its values, in numpy from the published tensors (fused qkv, w12)."""
    from scipy.special import erf

    ours, reference, state = both
    x = pixels(2, 3, 70, 126)
    hidden = reference.vision_model.embeddings(x)
    layers = reference.vision_model.encoder.layer
    for layer in layers[:-1]:
        hidden = layer(hidden)
    b = f"vision_encoder.blocks.{len(layers) - 1}."
    w = {name.removeprefix(b): value.double().numpy() for name, value in state.items() if name.startswith(b)}
    t = hidden.double().numpy()
    d = t.shape[-1]
    v = norm_of(t, w["norm1.weight"], w["norm1.bias"]) @ w["attn.qkv.weight"][2 * d :].T + w["attn.qkv.bias"][2 * d :]
    t = t + (v @ w["attn.proj.weight"].T + w["attn.proj.bias"]) * w["ls1.gamma"]
    y = norm_of(t, w["norm2.weight"], w["norm2.bias"])
    if "mlp.w12.weight" in w:
        gate, up = np.split(y @ w["mlp.w12.weight"].T + w["mlp.w12.bias"], 2, axis=-1)
        y = (gate / (1 + np.exp(-gate)) * up) @ w["mlp.w3.weight"].T + w["mlp.w3.bias"]
    else:
        y = y @ w["mlp.fc1.weight"].T + w["mlp.fc1.bias"]
        y = (y * 0.5 * (1 + erf(y / np.sqrt(2)))) @ w["mlp.fc2.weight"].T + w["mlp.fc2.bias"]
    t = t + y * w["ls2.gamma"]
    t = norm_of(t, state["vision_encoder.norm.weight"].numpy(), state["vision_encoder.norm.bias"].numpy())[:, 2:]
    expected = (t / np.linalg.norm(t, axis=-1, keepdims=True)).transpose(0, 2, 1).reshape(2, d, 5, 9)
    got = ours["value"](x)
    np.testing.assert_allclose(got.numpy(), expected, atol=2e-6)
    assert (got - ours["vanilla"](x)).abs().max() > 1e-3


@torch.no_grad()
def test_text_is_transformers_whatever_the_padding(both):
    ours, reference, _ = both
    lengths = (1, 4, 9)
    ids = torch.zeros(3, 64, dtype=torch.int64)
    for row, length in enumerate(lengths):
        ids[row, :length] = torch.randint(1, 60, (length,), generator=torch.Generator().manual_seed(row))
    expected = reference.get_text_features(ids, attention_mask=(ids != 0).long()).pooler_output
    module = ours["value"]
    torch.testing.assert_close(module.encode_text(ids), expected, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(module.encode_text(ids[:, :9]), expected, atol=1e-5, rtol=1e-5)
    alone = torch.cat([module.encode_text(ids[i : i + 1, :length]) for i, length in enumerate(lengths)])
    torch.testing.assert_close(alone, expected, atol=1e-5, rtol=1e-5)


@torch.no_grad()
def test_text_positions_are_sinusoids(both):
    """Upstream's formula: sines of position / 10000^(i / (D / 2 - 1)), then cosines; embeddings times the root of D."""
    ours, _, state = both
    d = 48
    angle = np.arange(5)[:, None] / 10000 ** (np.arange(d // 2) / (d // 2 - 1))
    table = state["text_encoder.token_embedding.weight"].numpy()
    expected = table[[7, 8, 9, 1, 2]] * np.sqrt(d) + np.concatenate([np.sin(angle), np.cos(angle)], 1)
    got = ours["value"].text_model.embeddings(torch.tensor([[7, 8, 9, 1, 2]]))[0]
    np.testing.assert_allclose(got.numpy(), expected, atol=1e-6)


@torch.no_grad()
def test_batch_is_single(both):
    ours, _, _ = both
    x = pixels(3, 3, 70, 98)
    for module in ours.values():
        for call in (module, module.encode_global):
            torch.testing.assert_close(call(x), torch.cat([call(image[None]) for image in x]), atol=3e-6, rtol=1e-5)


@torch.no_grad()
def test_bfloat16_stays_near(both):
    ours, _, state = both
    x = pixels(1, 3, 70, 98)
    size = ours["value"].size
    for readout, module in ours.items():
        half = tips.assemble(size, readout, state).eval().to(torch.bfloat16)
        got = half(x.bfloat16())
        assert got.dtype == torch.float32
        assert (got * module(x)).sum(1).min() > 0.995  # cosine of every cell
        torch.testing.assert_close(got.norm(dim=1), torch.ones(1, 5, 7), atol=1e-5, rtol=0)
    ids = torch.tensor([[5, 6, 7, 0]])
    assert torch.cosine_similarity(half.encode_text(ids).float(), module.encode_text(ids)).min() > 0.995


@torch.no_grad()
def test_real_size():
    """The published b14 against transformers' own defaults, which are those of google/tipsv2-b14."""
    reference = transformers.Tipsv2VisionModel(transformers.Tipsv2VisionConfig()).eval()
    vision = strong(synthesise(reference))
    reference.load_state_dict(vision)
    state = {f"vision_model.{name}": value for name, value in vision.items()}
    with torch.device("meta"):
        text = transformers.Tipsv2TextModel(transformers.Tipsv2TextConfig())
    state |= {f"text_model.{name}": torch.zeros(value.shape) for name, value in text.state_dict().items()}
    module = tips.build({"variant": "b14", "readout": "vanilla"}, state).eval()
    x = pixels(1, 3, 98, 126)
    out = reference(x)
    expected = torch.nn.functional.normalize(out.last_hidden_state[:, 2:], dim=-1).mT.unflatten(2, (7, 9))
    torch.testing.assert_close(module(x), expected, atol=2e-6, rtol=0)
    torch.testing.assert_close(module.encode_global(x), out.pooler_output, atol=2e-5, rtol=1e-5)


# Millions of parameters: text towers from README.md of google-deepmind/tips; both towers as others count the files (MTEB).
@pytest.mark.parametrize(
    ("variant", "text", "total"), [("b14", 109.6, 195.9), ("l14", 183.9, 487.9), ("so400m14", 448.3, 861.7), ("g14", 389.1, 1525)]
)
def test_every_variant_builds_without_memory(variant, text, total):
    with torch.device("meta"):
        module = tips.build({"variant": variant}, None)
    assert module.readout == "value"
    assert all(p.is_meta for p in module.parameters())
    count = sum(p.numel() for p in module.text_model.parameters()) / 1e6
    assert count == pytest.approx(text, abs=0.06)
    assert sum(p.numel() for p in module.parameters()) / 1e6 == pytest.approx(total, abs=0.2)
    shapes = {name: torch.empty(shape, device="meta") for name, shape in published_shapes(tips.VARIANTS[variant]).items()}
    assert {name: v.shape for name, v in tips._converted(shapes).items()} == {name: v.shape for name, v in module.state_dict().items()}


def test_wrong_weights_are_refused():
    state = synthetic_state_dict(published_shapes(SMALL))
    tips.assemble(SMALL, "value", {**state, "temperature": torch.tensor(0.005)})
    with pytest.raises(WeightsError, match="missing"):
        tips.assemble(SMALL, "value", {k: v for k, v in state.items() if k != "vision_encoder.blocks.1.ls1.gamma"})
    with pytest.raises(WeightsError, match="unknown.*surprise"):
        tips.assemble(SMALL, "value", {**state, "vision_encoder.surprise": torch.zeros(1)})
    with pytest.raises(WeightsError, match="shape"):
        tips.assemble(SMALL, "value", {**state, "text_encoder.ln_final.bias": torch.zeros(3)})
    with pytest.raises(WeightsError):
        tips.build({"variant": "b14"}, state)


@pytest.mark.parametrize("options", [{}, {"variant": "s14"}, {"variant": "b14", "readout": "naclip"}])
def test_unknown_options_are_refused(options):
    with pytest.raises(InvalidArgumentError, match="must be one of"):
        tips.build(options, None)


# --- tokenizer ---


def field(number: int, value: bytes | int | float) -> bytes:
    """One field of a protocol buffer with a small number."""
    if isinstance(value, float):
        return bytes([number << 3 | 5]) + struct.pack("<f", value)
    if isinstance(value, int):
        return varint(number << 3) + varint(value)
    return varint(number << 3 | 2) + varint(len(value)) + value


def varint(value: int) -> bytes:
    out = b""
    while value >= 128:
        out += bytes([value & 127 | 128])
        value >>= 7
    return out + bytes([value])


PIECES = ["ca", "at", "▁a", "cat", "▁cat", "ph", "oto", "ot", "▁ph", "▁photo", *"▁acteoph.s"]


def sentencepiece_file(path: Path, model_type: int = 2) -> Path:
    content = b"".join(
        field(1, field(1, text.encode()) + field(2, 0.0) + field(3, kind)) for text, kind in (("<pad>", 3), ("<unk>", 2), ("<s>", 3))
    )
    content += b"".join(field(1, field(1, text.encode()) + field(2, -float(i))) for i, text in enumerate(PIECES))
    content += field(2, field(3, model_type) + field(40, 1)) + field(3, field(1, b"identity"))
    path.write_bytes(content)
    return path


def brute_force(text: str) -> list[int]:
    """SentencePiece's algorithm as its paper says it: join the neighbours with the best score, the leftmost first."""
    ids: list[int] = []
    for word in text.lower().split():
        parts = list("▁" + word)
        while True:
            pairs = [(PIECES.index(a + b), i) for i, (a, b) in enumerate(zip(parts, parts[1:], strict=False)) if a + b in PIECES]
            if not pairs:
                break
            at = min(pairs)[1]
            parts[at : at + 2] = [parts[at] + parts[at + 1]]
        ids += [PIECES.index(part) + 3 if part in PIECES else 1 for part in parts]
    return ids


def test_tokenizer_reads_sentencepiece(tmp_path):
    tokenize = tips.build_tokenizer({}, {"tokenizer": sentencepiece_file(tmp_path / "tokenizer.model")})
    texts = ["a photo of cats.", "A  Photo of\ta CAT", "pca tocat", "taco cat", "photo photos atcat"]
    assert tokenize(texts) == [[i for i in brute_force(t)] for t in texts]
    assert tokenize(["zz cat"])[0].count(1) == 1  # one unknown for a run of them
    assert tokenize([]) == []
    assert len(tokenize(["cat " * 100])[0]) == 64
    with pytest.raises(InvalidLabelsError, match="no word"):
        tokenize(["  "])


def test_tokenizer_json_is_the_same(tmp_path):
    from ovseg.models.spm import read_byte_pairs

    model = sentencepiece_file(tmp_path / "tokenizer.model")
    tokenizer = read_byte_pairs(model.read_bytes(), "test")
    tokenizer.enable_padding(length=64, pad_id=0, pad_token="<pad>")
    tokenizer.enable_truncation(3)
    tokenizer.save(str(tmp_path / "tokenizer.json"))
    texts = ["a photo of cats.", "taco cat"]
    expected = tips.build_tokenizer({}, {"tokenizer": model})(texts)
    assert tips.build_tokenizer({}, {"tokenizer": tmp_path / "tokenizer.json"})(texts) == expected


@pytest.mark.parametrize("content", [b"", b"{}", b"<html>not found</html>", b"\x0a\xff"])
def test_damaged_tokenizers_are_refused(tmp_path, content):
    path = tmp_path / "tokenizer.model"
    path.write_bytes(content)
    with pytest.raises(WeightsError, match="tokenizer.model"):
        tips.build_tokenizer({}, {"tokenizer": path})


def test_unigram_models_are_refused(tmp_path):
    with pytest.raises(WeightsError, match="byte pairs"):
        tips.build_tokenizer({}, {"tokenizer": sentencepiece_file(tmp_path / "tokenizer.model", model_type=1)})


# --- cards ---


@pytest.mark.parametrize("variant", tips.VARIANTS)
def test_cards_say_what_the_code_does(variant):
    path = CARDS / f"tipsv2-{variant}.md"
    card = parse_card(path.read_text("utf-8"), path.name)
    size = tips.VARIANTS[variant]
    assert (card.name, card.family, card.embed_dim, card.stride) == (f"tipsv2-{variant}", "tips", size.width, tips.PATCH)
    assert card.options["variant"] == variant and card.options["readout"] in tips.READOUTS
    assert card.logit_scale == pytest.approx(1 / transformers.Tipsv2Config().temperature_init_value, rel=1e-4)
    assert len(TEMPLATE_SETS[card.templates].templates) == 9
    preprocess = Preprocess(**card.preprocess)
    assert preprocess.multiple == tips.PATCH and preprocess.short_side % tips.PATCH == 0
    assert card.window["size"] % tips.PATCH == card.window["stride"] % tips.PATCH == card.classify["size"] % tips.PATCH == 0
    parameters = sum(np.prod(shape) for shape in published_shapes(size).values())
    assert card.megabytes == pytest.approx(4 * parameters / 1e6, rel=1e-3)
