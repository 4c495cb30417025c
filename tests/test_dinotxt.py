from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

torch = pytest.importorskip("torch")
timm = pytest.importorskip("timm")

from synthetic import synthetic_state_dict  # noqa: E402

from ovseg.errors import InvalidArgumentError, WeightsError  # noqa: E402
from ovseg.models import dinotxt  # noqa: E402
from ovseg.preprocess import Preprocess  # noqa: E402
from ovseg.registry import parse_card  # noqa: E402
from ovseg.templates import TEMPLATE_SETS  # noqa: E402

CUT = {"width": 128, "layers": 3, "heads": 2, "text_width": 96, "text_layers": 2, "text_heads": 4, "vocabulary": 70}
V3 = replace(dinotxt.VARIANTS["dinov3-l16"], **CUT)
V2 = replace(dinotxt.VARIANTS["dinov2-l14"], grid=8, **CUT)
CARDS = Path(__file__).parents[1] / "model_cards"
MASK = torch.cat([torch.ones(128), torch.zeros(128), torch.ones(128)])


def block_shapes(d: int, prefix: str, bias: bool) -> dict[str, tuple[int, ...]]:
    names = ("norm1.weight", "norm1.bias", "norm2.weight", "norm2.bias", "attn.proj.bias", "ls1.gamma", "ls2.gamma")
    shapes: dict[str, tuple[int, ...]] = {prefix + name: (d,) for name in names}
    shapes |= {f"{prefix}attn.qkv.weight": (3 * d, d), f"{prefix}attn.proj.weight": (d, d)}
    return shapes | ({f"{prefix}attn.qkv.bias": (3 * d,)} if bias else {})


def backbone_shapes(size: dinotxt.Size) -> dict[str, tuple[int, ...]]:
    """Names and shapes as Meta's vision_transformer.py makes them, without the two kinds of buffers of DINOv3."""
    d = size.width
    shapes: dict[str, tuple[int, ...]] = {"cls_token": (1, 1, d), "mask_token": (1, d), "norm.weight": (d,), "norm.bias": (d,)}
    shapes |= {"patch_embed.proj.weight": (d, 3, size.patch, size.patch), "patch_embed.proj.bias": (d,)}
    shapes["storage_tokens" if size.rotary else "register_tokens"] = (1, 4, d)
    if not size.rotary:
        shapes["pos_embed"] = (1, 1 + size.grid**2, d)
    for i in range(size.layers):
        shapes |= block_shapes(d, f"blocks.{i}.", bias=True)
        shapes |= {f"blocks.{i}.mlp.fc1.weight": (4 * d, d), f"blocks.{i}.mlp.fc1.bias": (4 * d,)}
        shapes |= {f"blocks.{i}.mlp.fc2.weight": (d, 4 * d), f"blocks.{i}.mlp.fc2.bias": (d,)}
    return shapes


def head_shapes(size: dinotxt.Size, blocks: str) -> dict[str, tuple[int, ...]]:
    d = size.width
    hidden = int(4 * d * 2 / 3)
    hidden += -hidden % 64
    shapes: dict[str, tuple[int, ...]] = {"ln_final.weight": (d,), "ln_final.bias": (d,)}
    for i in range(2):
        shapes |= block_shapes(d, f"{blocks}.{i}.", bias=False)
        for name in ("w1", "w2"):
            shapes |= {f"{blocks}.{i}.mlp.{name}.weight": (hidden, d), f"{blocks}.{i}.mlp.{name}.bias": (hidden,)}
        shapes |= {f"{blocks}.{i}.mlp.w3.weight": (d, hidden), f"{blocks}.{i}.mlp.w3.bias": (d,)}
    return shapes


def text_shapes(size: dinotxt.Size) -> dict[str, tuple[int, ...]]:
    d = size.text_width
    shapes: dict[str, tuple[int, ...]] = {
        "backbone.token_embedding.weight": (size.vocabulary, d),
        "backbone.positional_embedding": (77, d),
        "backbone.ln_final.weight": (d,),
        "backbone.ln_final.bias": (d,),
        "head.linear_projection.weight": (2 * size.width, d),
    }
    for i in range(size.text_layers):
        b = f"backbone.blocks.{i}."
        for norm in ("attention_norm", "ffn_norm"):
            shapes |= {f"{b}{norm}.weight": (d,), f"{b}{norm}.bias": (d,)}
        shapes |= {f"{b}attention.qkv.weight": (3 * d, d), f"{b}attention.proj.weight": (d, d), f"{b}attention.proj.bias": (d,)}
        shapes |= {f"{b}feed_forward.fc1.weight": (4 * d, d), f"{b}feed_forward.fc1.bias": (4 * d,)}
        shapes |= {f"{b}feed_forward.fc2.weight": (d, 4 * d), f"{b}feed_forward.fc2.bias": (d,)}
    return shapes


def strong(state: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Scale up the layer scales, behind which mistakes in a block would hardly show, and biases."""
    return {name: 25 * value if name.endswith((".gamma", "qkv.bias")) else value for name, value in state.items()}


def published(size: dinotxt.Size) -> tuple[dict[str, torch.Tensor], ...]:
    """Meta's files with synthetic numbers: backbone and head (DINOv3), or backbone, vision head and text (DINOv2)."""
    backbone = strong(synthetic_state_dict(backbone_shapes(size)))
    text = synthetic_state_dict(text_shapes(size))
    if not size.rotary:
        return backbone, strong(synthetic_state_dict(head_shapes(size, "block_list"))), text
    backbone["rope_embed.periods"] = torch.tensor([100.0 ** (2 * i / 32) for i in range(16)])
    backbone |= {f"blocks.{i}.attn.qkv.bias_mask": MASK.clone() for i in range(size.layers)}
    head = strong(synthetic_state_dict(head_shapes(size, "blocks")))
    both = {f"visual_model.head.{name}": value for name, value in head.items()}
    return backbone, both | {f"text_model.{name}": value for name, value in text.items()} | {"logit_scale": torch.ones(1)}


@pytest.fixture(scope="module", params=[V3, V2], ids=["dinov3", "dinov2"])
def case(request):
    files = published(request.param)
    state = dinotxt.merge_files(*files)
    return dinotxt.assemble(request.param, state).eval(), files, state


def pixels(*shape: int) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(0))


@torch.no_grad()
@pytest.mark.parametrize("grid", [(8, 8), (5, 9), (11, 3)])
def test_backbone_is_timm(case, grid):
    """timm's network with the same file, which timm translates with its own key map."""
    module, files, _ = case
    size = module.size
    cut = {"embed_dim": size.width, "depth": size.layers, "num_heads": size.heads, "dynamic_img_size": True, "num_classes": 0}
    if size.rotary:
        from timm.models.eva import checkpoint_filter_fn

        reference = timm.create_model("vit_large_patch16_dinov3_qkvb", **cut)
    else:
        from timm.models.vision_transformer import checkpoint_filter_fn

        reference = timm.create_model("vit_large_patch14_reg4_dinov2", img_size=8 * 14, **cut)
    reference.load_state_dict(checkpoint_filter_fn(dict(files[0]), reference))
    x = pixels(2, 3, grid[0] * size.patch, grid[1] * size.patch)
    torch.testing.assert_close(module.backbone(x), reference.eval().forward_features(x), atol=2e-5, rtol=1e-5)


def norm_of(x: np.ndarray, w: dict[str, np.ndarray], name: str) -> np.ndarray:
    unit = (x - x.mean(-1, keepdims=True)) / np.sqrt(x.var(-1, keepdims=True) + 1e-5)
    return unit * w[f"{name}.weight"] + w[f"{name}.bias"]


def attention_of(x: np.ndarray, w: dict[str, np.ndarray], name: str, heads: int, causal: bool) -> np.ndarray:
    """Softmax attention, image by image and head by head."""
    b, n, d = x.shape
    q, k, v = np.split(x @ w[f"{name}.qkv.weight"].T, 3, axis=-1)
    out = np.zeros_like(x)
    for image in range(b):
        for head in range(heads):
            part = slice(head * d // heads, (head + 1) * d // heads)
            logits = q[image, :, part] @ k[image, :, part].T / np.sqrt(d / heads)
            if causal:
                logits[np.triu_indices(n, 1)] = -np.inf
            weights = np.exp(logits - logits.max(-1, keepdims=True))
            out[image, :, part] = weights / weights.sum(-1, keepdims=True) @ v[image, :, part]
    return out @ w[f"{name}.proj.weight"].T + w[f"{name}.proj.bias"]


def numpy_of(state: dict[str, torch.Tensor]) -> dict[str, np.ndarray]:
    return {name: value.double().numpy() for name, value in state.items()}


@torch.no_grad()
def test_features_are_the_formula(case):
    """The head in numpy on the backbone's tokens, from the published names."""
    module, files, _ = case
    size = module.size
    x = pixels(2, 3, 5 * size.patch, 7 * size.patch)
    prefix, blocks = ("visual_model.head.", "blocks") if size.rotary else ("", "block_list")
    w = numpy_of({name.removeprefix(prefix): value for name, value in files[1].items()})
    t = module.backbone(x).double().numpy()
    for i in range(2):
        b = f"{blocks}.{i}."
        t = t + attention_of(norm_of(t, w, f"{b}norm1"), w, f"{b}attn", size.heads, False) * w[f"{b}ls1.gamma"]
        y = norm_of(t, w, f"{b}norm2")
        gate, up = (y @ w[f"{b}mlp.{name}.weight"].T + w[f"{b}mlp.{name}.bias"] for name in ("w1", "w2"))
        y = (gate / (1 + np.exp(-gate)) * up) @ w[f"{b}mlp.w3.weight"].T + w[f"{b}mlp.w3.bias"]
        t = t + y * w[f"{b}ls2.gamma"]
    t = norm_of(t, w, "ln_final")[:, 5:]
    expected = (t / np.linalg.norm(t, axis=-1, keepdims=True)).transpose(0, 2, 1).reshape(2, size.width, 5, 7)
    got = module(x)
    assert got.dtype == torch.float32
    np.testing.assert_allclose(got.numpy(), expected, atol=2e-6)


@torch.no_grad()
def test_texts_are_the_formula(case):
    """The text tower in numpy: causal blocks, the state at the end mark, the second half of the projection."""
    from scipy.special import erf

    module, files, _ = case
    size = module.size
    prefix = "text_model." if size.rotary else ""
    w = numpy_of({name.removeprefix(prefix): value for name, value in files[-1].items() if name.startswith(prefix)})
    ids = torch.zeros(3, 77, dtype=torch.int64)
    for row, length in enumerate((1, 5, 20)):
        ids[row, : length + 2] = torch.tensor([68, *range(3, 3 + length), 69])
    t = w["backbone.token_embedding.weight"][ids.numpy()] + w["backbone.positional_embedding"]
    for i in range(size.text_layers):
        b = f"backbone.blocks.{i}."
        t = t + attention_of(norm_of(t, w, f"{b}attention_norm"), w, f"{b}attention", size.text_heads, True)
        y = norm_of(t, w, f"{b}ffn_norm") @ w[f"{b}feed_forward.fc1.weight"].T + w[f"{b}feed_forward.fc1.bias"]
        t = t + (y * 0.5 * (1 + erf(y / np.sqrt(2)))) @ w[f"{b}feed_forward.fc2.weight"].T + w[f"{b}feed_forward.fc2.bias"]
    t = norm_of(t, w, "backbone.ln_final") @ w["head.linear_projection.weight"].T
    expected = t[[0, 1, 2], [2, 6, 21], size.width :]
    np.testing.assert_allclose(module.encode_text(ids).numpy(), expected, atol=1e-5)
    np.testing.assert_allclose(module.encode_text(ids[1:2, :7]).numpy(), expected[1:2], atol=1e-5)


@torch.no_grad()
def test_batch_is_single_and_bfloat16_stays_near(case):
    module, _, state = case
    patch = module.size.patch
    x = pixels(2, 3, 6 * patch, 9 * patch)
    full = module(x)
    torch.testing.assert_close(full, torch.cat([module(image[None]) for image in x]), atol=3e-6, rtol=0)
    half = dinotxt.assemble(module.size, state).eval().to(torch.bfloat16)
    got = half(x.bfloat16())
    assert got.dtype == torch.float32
    assert (got * full).sum(1).min() > 0.99  # cosine of every cell
    torch.testing.assert_close(got.norm(dim=1), torch.ones(2, 6, 9), atol=1e-5, rtol=0)


@torch.no_grad()
def test_published_wave_lengths_and_masks_are_used():
    state = dinotxt.merge_files(*published(V3))
    x = pixels(1, 3, 80, 112)
    features = dinotxt.assemble(V3, state)(x)
    other = dinotxt.assemble(V3, {**state, "backbone.rope_embed.periods": state["backbone.rope_embed.periods"] * 1.5})(x)
    assert (features - other).abs().max() > 1e-3
    unmasked = {name: torch.ones(384) if name.endswith("bias_mask") else value for name, value in state.items()}
    assert (features - dinotxt.assemble(V3, unmasked)(x)).abs().max() > 1e-4
    assert torch.equal(features, dinotxt.assemble(V3, {**state, "backbone.mask_token": torch.zeros(1, 128)})(x))


@pytest.mark.parametrize("variant", dinotxt.VARIANTS)
def test_real_sizes(variant):
    """Names and shapes of the real networks, without memory; the backbones have as many parameters as timm's."""
    size = dinotxt.VARIANTS[variant]
    with torch.device("meta"):
        module = dinotxt.build({"variant": variant}, None)
        reference = timm.create_model("vit_large_patch16_dinov3_qkvb" if size.rotary else "vit_large_patch14_reg4_dinov2", num_classes=0)
    own = sum(p.numel() for p in module.backbone.parameters())
    unused = 24 * 1024 if size.rotary else 1024  # biases of keys; the place of the class token, which timm adds to it
    assert own - unused == sum(p.numel() for p in reference.parameters())
    prefixes = {"backbone.": backbone_shapes(size), "visual_model.head.": head_shapes(size, "blocks"), "text_model.": text_shapes(size)}
    shapes = {prefix + name: shape for prefix, part in prefixes.items() for name, shape in part.items()}
    shapes["backbone.register_tokens"] = shapes.pop("backbone.storage_tokens", (1, 4, 1024))
    del shapes["backbone.mask_token"]
    assert {name: tuple(value.shape) for name, value in module.state_dict().items()} == shapes
    np.testing.assert_allclose(module.backbone.periods, [100 ** (2 * i / 32) for i in range(16)])


def test_wrong_weights_are_refused(case):
    module, _, state = case
    size = module.size
    with pytest.raises(WeightsError, match="missing"):
        dinotxt.assemble(size, {k: v for k, v in state.items() if not k.endswith("linear_projection.weight")})
    with pytest.raises(WeightsError, match="unknown.*visual_model.backbone"):
        dinotxt.assemble(size, {**state, "visual_model.backbone.norm.bias": torch.zeros(128)})
    with pytest.raises(WeightsError, match="shape"):
        dinotxt.assemble(size, {**state, "backbone.norm.bias": torch.zeros(3)})
    with pytest.raises(WeightsError):
        dinotxt.assemble(V2 if size.rotary else V3, state)
    if size.rotary:
        for name in ("backbone.rope_embed.periods", "backbone.blocks.2.attn.qkv.bias_mask"):
            with pytest.raises(WeightsError, match=name):
                dinotxt.assemble(size, {k: v for k, v in state.items() if k != name})


def test_unknown_variants_are_refused():
    with pytest.raises(InvalidArgumentError, match="must be one of"):
        dinotxt.build({"variant": "dinov3-b16"}, None)


def test_tokenizer_is_clips():
    open_clip = pytest.importorskip("open_clip")
    texts = ["a photo of a cat", "A  Dog &amp; 3 sheep's", "word " * 100]
    assert dinotxt.build_tokenizer({}, {})(texts) == open_clip.tokenize(texts).tolist()


@pytest.mark.parametrize("variant", dinotxt.VARIANTS)
def test_cards_say_what_the_code_does(variant):
    path = CARDS / f"dinotxt-{variant}.md"
    card = parse_card(path.read_text("utf-8"), path.name)
    size = dinotxt.VARIANTS[variant]
    assert (card.name, card.family, card.embed_dim, card.stride) == (f"dinotxt-{variant}", "dinotxt", size.width, size.patch)
    assert card.options == {"variant": variant} and card.classify == {} and card.templates in TEMPLATE_SETS
    preprocess = Preprocess(**card.preprocess)
    assert preprocess.multiple == size.patch and preprocess.short_side % size.patch == 0
    assert all(value % size.patch == 0 for value in card.window.values())
    with torch.device("meta"):
        parameters = sum(p.numel() for p in dinotxt.build({"variant": variant}, None).parameters())
    assert card.megabytes == pytest.approx(4 * parameters / 1e6, rel=1e-3)
