"""Dense CLIP against recorded outputs of the research code, against open_clip itself, and against loops in float64."""

from __future__ import annotations

import copy
import json
import math
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from synthetic import synthesise, synthetic_state_dict
from test_clip_readouts import attend_slowly, proxy_attention_slowly, resize_slowly

from ovseg.errors import InvalidArgumentError, UnsupportedOperationError, WeightsError
from ovseg.models.clip_blocks import research_positions
from ovseg.models.clip_proxy import ProxyEncoder, build_proxy, proxy_license, proxy_location
from ovseg.models.clip_readouts import READOUTS, WHOLE_BLOCK
from ovseg.models.dense_clip import DenseClip, build, build_tokenizer, grid_of, pixel_statistics, required_quick_gelu

open_clip = pytest.importorskip("open_clip")
timm = pytest.importorskip("timm")

Doubles = NDArray[np.float64]
GOLDEN = Path(__file__).parent / "golden"
MEAN, STD = (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)
TINY: dict[str, Any] = {
    "embed_dim": 12,
    "quick_gelu": True,
    "vision_cfg": {"image_size": 32, "layers": 2, "width": 32, "head_width": 16, "patch_size": 8},
    "text_cfg": {"context_length": 12, "vocab_size": 60, "width": 16, "heads": 2, "layers": 2},
}


def tiny(vision: dict[str, Any] | None = None, text: dict[str, Any] | None = None, **rest: Any) -> dict[str, Any]:
    config = copy.deepcopy(TINY) | rest
    config["vision_cfg"] |= vision or {}
    config["text_cfg"] |= text or {}
    return config


def with_weights(config: dict[str, Any], readout: str = "naclip") -> DenseClip:
    network = build({"config": config, "readout": readout}, None).eval().requires_grad_(False)
    assert isinstance(network, DenseClip)
    synthesise(network.clip)
    return network


def dino(patch: int = 16) -> Any:
    """A cut-down DINO of timm, with weights."""
    name = f"vit_small_patch{patch}_224.dino"
    vit = timm.create_model(name, depth=2, embed_dim=24, num_heads=2, num_classes=0, dynamic_img_size=True).eval().requires_grad_(False)
    synthesise(vit)
    return vit


def pixels(*shape: int) -> torch.Tensor:
    return torch.from_numpy(np.random.default_rng(0).standard_normal(shape).astype(np.float32))


def relative(result: torch.Tensor, expected: Any) -> float:
    expected = torch.as_tensor(expected)
    return float((result - expected).abs().max() / expected.abs().max())


# The published size: ViT-B/16.


@pytest.fixture(scope="module")
def base() -> DenseClip:
    """OpenAI's ViT-B/16 under the name that open_clip would build with the wrong activation."""
    shapes = json.loads((GOLDEN / "dense_clip_vitb16.shapes.json").read_text())
    network = build({"tower": "ViT-B-16", "pretrained": "openai", "readout": "naclip"}, synthetic_state_dict(shapes))
    assert isinstance(network, DenseClip)
    return network.eval().requires_grad_(False)


@pytest.mark.parametrize("image", ["square224", "wide160x208"])
def test_research_code_agrees(base: DenseClip, image: str) -> None:
    recorded = np.load(GOLDEN / "dense_clip_vitb16.npz")
    values = torch.from_numpy(recorded[f"{image}/image"]).permute(2, 0, 1) / 255
    values = ((values - torch.tensor(MEAN).view(3, 1, 1)) / torch.tensor(STD).view(3, 1, 1))[None]
    for readout in ("sclip", "naclip", "kk", "vanilla"):
        network = DenseClip(base.clip, readout)
        first, patches = network.forward_features(values)
        assert first is not None
        assert relative(first[0], recorded[f"{image}/{readout}/cls"]) < 1e-5
        assert relative(patches[0], recorded[f"{image}/{readout}/patches"]) < 1e-5
        if readout == "naclip":
            features = network(values)
            np.testing.assert_allclose(features.norm(dim=1), 1, atol=1e-5)
            assert relative(features, F.normalize(patches, dim=1)) < 1e-5


def test_open_clip_agrees_at_the_published_size(base: DenseClip) -> None:
    values = pixels(1, 3, 224, 224)
    upstream = base.clip.encode_image(values)
    assert relative(base.encode_global(values), upstream) < 1e-5
    first, _ = DenseClip(base.clip, "vanilla").forward_features(values)
    assert first is not None
    assert relative(first, upstream) < 1e-5

    ids = open_clip.get_tokenizer("ViT-B-16")(["a dog", "a photo of the large red house behind the hill"])
    assert relative(base.encode_text(ids), base.clip.encode_text(ids)) < 1e-5


def test_half_precision_stays_near(base: DenseClip) -> None:
    values = pixels(1, 3, 96, 128)
    exact = base(values)
    rounded = copy.deepcopy(base).to(torch.bfloat16)(values.to(torch.bfloat16))
    assert rounded.dtype == torch.float32
    assert float((exact * rounded).sum(1).min()) > 0.999  # cosine of every patch; bfloat16 has 8 bits


# Small towers, every read-out.


def norm(x: Doubles, layer: Any) -> Doubles:
    if isinstance(layer, torch.nn.Identity):
        return x
    centred = x - x.mean(-1, keepdims=True)
    centred /= np.sqrt((centred**2).mean(-1, keepdims=True) + layer.eps)
    return centred * layer.weight.double().numpy() + layer.bias.double().numpy()


def affine(x: Doubles, weight: Any, bias: Any) -> Doubles:
    return x @ weight.double().numpy().T + bias.double().numpy()


def feed_forward(x: Doubles, block: Any, quick: bool) -> Doubles:
    x = affine(x, block.mlp.c_fc.weight, block.mlp.c_fc.bias)
    x = x / (1 + np.exp(-1.702 * x)) if quick else x * 0.5 * (1 + np.vectorize(math.erf)(x / math.sqrt(2)))
    return affine(x, block.mlp.c_proj.weight, block.mlp.c_proj.bias)


def scale_of(layer: Any) -> Any:
    return layer.gamma.double().numpy() if hasattr(layer, "gamma") else 1.0


def dense_slowly(network: DenseClip, values: torch.Tensor, readout: str, quick: bool, proxied: Doubles | None = None) -> Doubles:
    """One image (3, H, W) to (tokens, D), straight from the definition of a vision transformer."""
    visual = network.clip.visual
    patch, image = visual.patch_size[0], values.double().numpy()
    size = (image.shape[1] // patch, image.shape[2] // patch)
    kernel = visual.conv1.weight.double().numpy()
    rows = []
    for i in range(size[0]):
        for j in range(size[1]):
            cut = image[:, i * patch : (i + 1) * patch, j * patch : (j + 1) * patch]
            rows.append([float((cut * kernel[c]).sum()) for c in range(len(kernel))])
    table = visual.positional_embedding.double()
    grid = table[1:].T.reshape(1, -1, *visual.grid_size)
    if size != tuple(visual.grid_size):  # as NACLIP's code calls it
        factors = [(n + 0.1) / g for n, g in zip(size, visual.grid_size, strict=True)]
        grid = F.interpolate(grid, scale_factor=factors, mode="bicubic", align_corners=False, recompute_scale_factor=False)
    first = visual.class_embedding.double() + table[0]
    x = np.concatenate([first.numpy()[None], np.array(rows) + grid[0].flatten(1).T.numpy()])
    x = norm(x, visual.ln_pre)
    heads = visual.transformer.resblocks[0].attn.num_heads
    for index, block in enumerate(visual.transformer.resblocks):
        mode = readout if index == len(visual.transformer.resblocks) - 1 else "vanilla"
        joint = affine(norm(x, block.ln_1), block.attn.in_proj_weight, block.attn.in_proj_bias)
        q, k, v = np.split(joint, 3, axis=1)
        parts = []
        for qh, kh, vh in zip(*(np.split(part, heads, axis=1) for part in (q, k, v)), strict=True):
            if mode == "proxyclip":
                assert proxied is not None  # (h', w', C)
                attention = proxy_attention_slowly(proxied.reshape(-1, proxied.shape[2]), 1.2, 3.0)
                parts.append(attention @ resize_slowly(vh[1:].reshape(*size, -1), proxied.shape[:2]).reshape(-1, vh.shape[1]))
            else:
                parts.append(attend_slowly(mode, qh, kh, vh, size, 5.0))
        mixed = affine(np.concatenate(parts, axis=1), block.attn.out_proj.weight, block.attn.out_proj.bias) * scale_of(block.ls_1)
        if mode in WHOLE_BLOCK:
            x = x + mixed
            x = x + scale_of(block.ls_2) * feed_forward(norm(x, block.ln_2), block, quick)
        else:
            x = mixed
    return norm(x, visual.ln_post) @ visual.proj.double().numpy()


CLIPA = {"no_ln_pre": True, "pool_type": "avg", "final_ln_after_pool": True}


@pytest.mark.parametrize("readout", [name for name in READOUTS if name != "proxyclip"])
@pytest.mark.parametrize("config", [tiny(), tiny({"ls_init_value": 0.1} | CLIPA, quick_gelu=False)], ids=["openai", "clipa"])
def test_towers_equal_loops(config: dict[str, Any], readout: str) -> None:
    network = with_weights(config, readout)
    values = pixels(2, 3, 24, 48)
    first, patches = network.forward_features(values)
    assert first is not None
    for image in range(2):
        expected = dense_slowly(network, values[image], readout, config["quick_gelu"])
        assert relative(first[image], expected[0]) < 1e-5
        assert relative(patches[image], expected[1:].T.reshape(12, 3, 6)) < 1e-5


@pytest.mark.parametrize(("patch", "size"), [(16, (32, 48)), (8, (32, 48)), (16, (24, 56))], ids=["same", "finer", "between"])
def test_proxyclip_equals_loops(patch: int, size: tuple[int, int]) -> None:
    clip, vit = with_weights(tiny()).clip, dino(patch)
    network = DenseClip(clip, "proxyclip", ProxyEncoder(vit, MEAN, STD)).eval().requires_grad_(False)
    values = pixels(2, 3, *size)
    first, patches = network.forward_features(values)
    assert first is None
    assert network.stride == patch
    grid = tuple(round(side / patch) for side in size)
    assert tuple(patches.shape) == (2, 12, *grid)
    rgb = values.double() * torch.tensor(STD).view(3, 1, 1) + torch.tensor(MEAN).view(3, 1, 1)
    ours = (rgb - torch.tensor((0.485, 0.456, 0.406)).view(3, 1, 1)) / torch.tensor((0.229, 0.224, 0.225)).view(3, 1, 1)
    ours = F.interpolate(ours, tuple(side * patch for side in grid), mode="bilinear", align_corners=False)
    seen = copy.deepcopy(vit).double().forward_features(ours)[:, 1:].reshape(2, *grid, -1).numpy()
    for image in range(2):
        expected = dense_slowly(network, values[image], "proxyclip", True, seen[image])
        assert relative(patches[image], expected.T.reshape(12, *grid)) < 1e-5


@pytest.mark.parametrize(
    ("name", "prefix"), [("vit_small_patch14_reg4_dinov2.lvd142m", 5), ("vit_small_patch16_dinov3.lvd1689m", 5)], ids=["dinov2", "dinov3"]
)
def test_other_proxies_lose_their_extra_tokens(name: str, prefix: int) -> None:
    vit = timm.create_model(name, depth=1, num_classes=0, dynamic_img_size=True).eval().requires_grad_(False)
    encoder = ProxyEncoder(vit, vit.pretrained_cfg["mean"], vit.pretrained_cfg["std"])
    side = encoder.patch_size[0]
    values = pixels(1, 3, 3 * side, 4 * side)
    tokens = vit.forward_features(values)
    assert tokens.shape[1] == prefix + 12
    features = encoder(values)
    assert features.shape[2:] == (3, 4)
    for cell in range(12):
        torch.testing.assert_close(features[0, :, cell // 4, cell % 4], tokens[0, prefix + cell], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("readout", READOUTS)
def test_batches_give_what_their_images_give_alone(readout: str) -> None:
    network = with_weights(tiny())
    proxy = ProxyEncoder(dino(), MEAN, STD) if readout == "proxyclip" else None
    network = DenseClip(network.clip, readout, proxy).eval().requires_grad_(False)
    values = pixels(3, 3, 32, 64)
    values[1] *= 0.1
    together = network(values)
    assert together.dtype == torch.float32
    for i in range(3):
        torch.testing.assert_close(network(values[i : i + 1])[0], together[i], rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(network.encode_global(values[1:2])[0], network.encode_global(values)[1])


def test_read_outs_differ() -> None:
    clip = with_weights(tiny()).clip
    maps = [DenseClip(clip, readout)(pixels(1, 3, 32, 64)) for readout in READOUTS if readout != "proxyclip"]
    for i, one in enumerate(maps):
        assert all((one - other).abs().max() > 1e-3 for other in maps[:i])


@pytest.mark.parametrize("config", [tiny(), tiny(CLIPA)], ids=["token", "mean"])
@pytest.mark.parametrize("size", [(32, 32), (48, 64), (24, 16)])
def test_global_embedding_is_open_clips_at_any_size(config: dict[str, Any], size: tuple[int, int]) -> None:
    network = with_weights(config)
    upstream = open_clip.CLIP(**(config | {"vision_cfg": config["vision_cfg"] | {"image_size": size}})).eval()  # what force_image_size does
    state = network.clip.state_dict()
    open_clip.model.resize_pos_embed(state, upstream)
    upstream.load_state_dict(state)
    values = pixels(2, 3, *size)
    assert relative(network.encode_global(values), upstream.encode_image(values).detach()) < 1e-5


@pytest.mark.parametrize("size", [(4, 4), (10, 13), (3, 4), (1, 2), (40, 4)])
@pytest.mark.parametrize("grid", [(4, 4), (14, 14), (1, 1)])
def test_positions_are_resized_as_the_research_code_does(size: tuple[int, int], grid: tuple[int, int]) -> None:
    table = torch.from_numpy(np.random.default_rng(1).standard_normal((*grid, 3)).astype(np.float32))
    result = research_positions(table, size)
    if size == grid:
        assert torch.equal(result, table)
        assert torch.equal(research_positions(table.bfloat16(), size), table.bfloat16())
        return
    factors = [(n + 0.1) / g for n, g in zip(size, grid, strict=True)]
    expected = F.interpolate(table.permute(2, 0, 1)[None], scale_factor=factors, mode="bicubic", recompute_scale_factor=False)
    torch.testing.assert_close(result, expected[0].permute(1, 2, 0), rtol=1e-4, atol=2e-5)


def test_graph_has_free_height_and_width() -> None:
    clip = with_weights(tiny()).clip
    networks = [DenseClip(clip, "naclip"), DenseClip(clip, "proxyclip", ProxyEncoder(dino(), MEAN, STD))]
    rows, columns = torch.export.Dim("rows", min=2, max=64), torch.export.Dim("columns", min=2, max=64)
    for network in networks:
        graph = torch.export.export(network.eval(), (pixels(2, 3, 48, 64),), dynamic_shapes=({2: 8 * rows, 3: 8 * columns},)).module()
        for size in ((32, 32), (40, 72)):  # the first is the grid of training
            values = pixels(2, 3, *size)
            torch.testing.assert_close(graph(values), network(values), rtol=1e-5, atol=1e-6)


# Texts.


@pytest.mark.parametrize(
    ("text", "custom"),
    [
        ({}, False),
        ({}, True),
        ({"pool_type": "eos", "eos_id": 2}, False),
        ({"pool_type": "eos", "eos_id": 2, "proj_bias": True}, True),
        ({"pool_type": "last", "no_causal_mask": True}, False),
    ],
    ids=["openai", "custom", "worldwide", "custom-eos", "clipa"],
)
def test_texts_equal_open_clips(text: dict[str, Any], custom: bool) -> None:
    network = with_weights(tiny(text=text, custom_text=custom))
    end = 2 if text else 59
    ids = torch.zeros(3, 12, dtype=torch.int64)
    for row, length in enumerate((2, 5, 3)):
        ids[row, 0] = 58 if end == 59 else 3
        ids[row, 1:length] = torch.arange(10, 9 + length)
        ids[row, length] = end
    assert relative(network.encode_text(ids), network.clip.encode_text(ids)) < 1e-5


def test_texts_end_at_the_last_word() -> None:
    network, lengths = with_weights(tiny()), []
    network.clip.ln_final.weight.data *= 3  # a weight that the blocks do not touch
    first = network.clip.transformer.resblocks[0]
    forward = first.ln_1.forward
    first.ln_1.forward = lambda x: lengths.append(x.shape[1]) or forward(x)  # type: ignore[func-returns-value]
    ids = torch.zeros(2, 12, dtype=torch.int64)
    ids[0, :3], ids[1, :5] = torch.tensor([58, 7, 59]), torch.tensor([58, 7, 8, 9, 59])
    network.encode_text(ids)
    assert lengths == [5]


# Which weights, which activation.


def has_quick_gelu(network: Any) -> bool:
    return any(type(module).__name__ == "QuickGELU" for module in network.modules())


def test_the_weights_choose_the_activation() -> None:
    assert required_quick_gelu("ViT-B-16", "openai")
    assert required_quick_gelu("ViT-B-16-quickgelu", "openai")
    assert not required_quick_gelu("ViT-B-16", "laion2b_s34b_b88k")
    assert required_quick_gelu("ViT-B-16-quickgelu")
    assert not required_quick_gelu("ViT-B-16")
    with torch.device("meta"):
        assert has_quick_gelu(build({"tower": "ViT-B-32", "pretrained": "openai"}, None))
        assert not has_quick_gelu(build({"tower": "ViT-B-32", "pretrained": "laion2b_e16"}, None))


def test_every_published_pair_gets_the_activation_of_its_weights() -> None:
    for tower, tag in open_clip.list_pretrained():
        published = bool(open_clip.get_pretrained_cfg(tower, tag).get("quick_gelu", False))
        expected = published or tower == "roberta-ViT-B-32"  # open_clip's table forgets what the tower says
        assert required_quick_gelu(tower, tag) == expected, (tower, tag)


def test_pairs_that_do_not_exist_are_refused() -> None:
    with pytest.raises(InvalidArgumentError, match="laion2b_s34b_b88k.*openai"):  # of GELU, under a name of QuickGELU
        required_quick_gelu("ViT-B-16-quickgelu", "laion2b_s34b_b88k")
    with pytest.raises(InvalidArgumentError, match="'ViT-B-16'"):
        required_quick_gelu("ViT-B16")
    with pytest.raises(InvalidArgumentError, match="openai"):
        build({"tower": "ViT-B-16", "pretrained": "nobody"}, None)


def test_pixel_statistics_are_those_of_the_weights() -> None:
    assert pixel_statistics("ViT-B-16", "openai") == (MEAN, STD)
    assert pixel_statistics("ViT-L-14-CLIPA", "datacomp1b")[0] == (0.485, 0.456, 0.406)


# Published files.


def state_of(config: dict[str, Any]) -> dict[str, torch.Tensor]:
    return synthetic_state_dict({name: tuple(value.shape) for name, value in open_clip.CLIP(**config).state_dict().items()})


def test_layouts_of_published_files() -> None:
    state, config, values = state_of(tiny()), tiny(), pixels(1, 3, 32, 40)
    ids = torch.tensor([[58, 5, 59, 0, 0]])
    expected = build({"config": config}, state)(values)
    openai = state | {"input_resolution": torch.tensor(32), "context_length": torch.tensor(12), "vocab_size": torch.tensor(60)}
    text = {"text_projection", "positional_embedding", "token_embedding.weight"}
    nested = {f"text.{k}" if k in text or k.startswith(("transformer.", "ln_final.")) else k: v for k, v in state.items()}
    for given, custom in [
        (openai, False),
        ({f"module.{name}": value for name, value in state.items()}, False),
        (nested, False),
        (nested, True),
        (state, True),
        (state | {"logit_scale": state["logit_scale"].reshape(1)}, False),
    ]:
        network = build({"config": config | {"custom_text": custom}}, given)
        torch.testing.assert_close(network(values), expected, rtol=0, atol=0)
        # The mask of the text tower is in no file.
        torch.testing.assert_close(network.encode_text(ids), build({"config": config}, state).encode_text(ids), rtol=0, atol=0)
        whole = torch.nn.functional.pad(ids, (0, 7))
        torch.testing.assert_close(network.clip.encode_text(whole), network.encode_text(whole), rtol=1e-4, atol=1e-5)


def test_half_precision_files_become_float32() -> None:
    state = {name: value.half() for name, value in state_of(tiny()).items()}
    network = build({"config": tiny()}, state)
    assert {parameter.dtype for parameter in network.parameters()} == {torch.float32}
    rounded = build({"config": tiny()}, {name: value.float() for name, value in state.items()})
    torch.testing.assert_close(network(pixels(1, 3, 32, 40)), rounded(pixels(1, 3, 32, 40)), rtol=0, atol=0)


def test_wrong_files_are_named() -> None:
    state = state_of(tiny())
    del state["visual.proj"]
    with pytest.raises(WeightsError, match="1 tensors are missing .visual.proj"):
        build({"config": tiny()}, state)
    with pytest.raises(WeightsError, match="1 are unknown .visual.extra"):
        build({"config": tiny()}, state_of(tiny()) | {"visual.extra": torch.zeros(1)})
    with pytest.raises(WeightsError, match="visual.positional_embedding has the shape .26, 32., expected .17, 32."):
        build({"config": tiny()}, state_of(tiny({"image_size": 40})))


def test_a_proxy_comes_with_its_tensors() -> None:
    vit = build_proxy("vit_small_patch16_224.dino", MEAN, STD).vit
    tensors = synthetic_state_dict({name: tuple(value.shape) for name, value in vit.state_dict().items()})
    state = state_of(tiny()) | {f"proxy.{name}": value for name, value in tensors.items()}
    options = {"config": tiny(), "readout": "proxyclip", "proxy": "vit_small_patch16_224.dino"}
    network = build(options, state)
    assert isinstance(network, DenseClip) and network.proxy is not None
    assert torch.equal(network.proxy.vit.blocks[11].mlp.fc2.weight, tensors["blocks.11.mlp.fc2.weight"])
    assert network.eval()(pixels(1, 3, 32, 48)).shape == (1, 12, 2, 3)
    with pytest.raises(WeightsError, match="proxy vit_small_patch16_224.dino: 1 tensors are missing .norm.bias"):
        build(options, {name: value for name, value in state.items() if name != "proxy.norm.bias"})


def test_cells_are_those_of_the_proxy() -> None:
    tower = {"tower": "ViT-L-14", "pretrained": "openai"}
    assert grid_of(tower) == (14, 14)
    assert grid_of(tower | {"readout": "proxyclip"}) == (16, 112)
    assert grid_of(tower | {"readout": "proxyclip", "proxy": "vit_base_patch8_224.dino"}) == (8, 56)  # the paper's pair and its 56


def test_proxies_that_cannot_be() -> None:
    for name in ("nothing", "vit_small_patch16_224.nobody"):
        with pytest.raises(InvalidArgumentError, match=re.escape(repr(name))):
            build_proxy(name, MEAN, STD)
    with torch.device("meta"), pytest.raises(UnsupportedOperationError, match="vit_base"):
        build_proxy("resnet18", MEAN, STD)
    with pytest.raises(InvalidArgumentError, match="belong together"):
        DenseClip(build({"config": tiny()}, None).clip, "proxyclip")
    assert proxy_license("vit_base_patch8_224.dino") == "apache-2.0" and proxy_license("vit_base_patch8_224.nobody") is None
    assert proxy_location("vit_base_patch8_224.dino") == ("timm/vit_base_patch8_224.dino", "model.safetensors")
    with pytest.raises(InvalidArgumentError, match="nobody"):
        proxy_location("vit_base_patch8_224.nobody")


# Names of open_clip.


@pytest.mark.parametrize(
    ("tower", "pretrained", "dim"),
    [
        ("ViT-B-32", "laion2b_s34b_b79k", 512),
        ("ViT-L-14-336", "openai", 768),
        ("ViT-L-14-CLIPA", "datacomp1b", 768),
        ("ViT-H-14-378-quickgelu", "dfn5b", 1024),
        ("ViT-H-14-worldwide", "metaclip2_worldwide", 1024),
        ("ViT-bigG-14", "laion2b_s39b_b160k", 1280),
    ],
)
def test_published_towers_are_built_without_memory(tower: str, pretrained: str, dim: int) -> None:
    with torch.device("meta"):
        network = build({"tower": tower, "pretrained": pretrained}, None)
        assert isinstance(network, DenseClip)
        assert network.readout == "naclip"
        patch = network.stride
        assert network(torch.zeros(2, 3, 2 * patch, 3 * patch)).shape == (2, dim, 2, 3)
        assert network.encode_text(torch.zeros(2, network.clip.context_length, dtype=torch.int64)).shape == (2, dim)


def test_towers_without_dense_features_are_refused() -> None:
    with torch.device("meta"):
        with pytest.raises(UnsupportedOperationError, match="ViT-B-32"):
            build({"tower": "coca_ViT-B-32", "pretrained": "laion2b_s13b_b90k"}, None)
        with pytest.raises(UnsupportedOperationError, match="ViT-B-16-quickgelu"):
            build({"config": tiny({"attentional_pool": True, "attn_pooler_heads": 4})}, None)
        with pytest.raises(UnsupportedOperationError, match="ViT-B-16-quickgelu"):
            build({"config": tiny({"qk_norm": True})}, None)
        with pytest.raises(UnsupportedOperationError, match="proxyclip"):
            build({"tower": "ViT-B-16-SigLIP", "readout": "proxyclip"}, None)
        with pytest.raises(InvalidArgumentError, match="naclip"):
            build({"tower": "ViT-B-16", "readout": "sharpclip"}, None)


def test_other_towers_go_to_their_own_file() -> None:
    with torch.device("meta"):
        network = build({"tower": "ViT-B-16-SigLIP", "pretrained": "webli"}, None)
    assert not isinstance(network, DenseClip)
    assert hasattr(network, "encode_text") and hasattr(network, "encode_global")


# Tokenizers.


def test_clips_own_tokenizer_needs_no_file() -> None:
    texts = ["a photo of a Dog", "grass & trees", "word " * 100]
    assert build_tokenizer({"tower": "ViT-B-16"}, {})(texts) == open_clip.get_tokenizer("ViT-B-16")(texts).tolist()
    with pytest.raises(WeightsError, match="facebook/xlm-v-base"):
        build_tokenizer({"tower": "ViT-H-14-worldwide"}, {})


@pytest.mark.parametrize("config_beside", [True, False])
def test_tokenizers_from_files_equal_open_clips(tmp_path: Path, config_beside: bool) -> None:
    from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors
    from transformers import PreTrainedTokenizerFast

    words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "a", "photo", "of", "dog", ","]
    plain = Tokenizer(models.WordLevel({word: index for index, word in enumerate(words)}, unk_token="[UNK]"))
    plain.normalizer = normalizers.Lowercase()
    plain.pre_tokenizer = pre_tokenizers.Whitespace()
    plain.post_processor = processors.TemplateProcessing("[CLS] $A [SEP]", special_tokens=[("[CLS]", 2), ("[SEP]", 3)])
    hub = PreTrainedTokenizerFast(tokenizer_object=plain, pad_token="[PAD]", sep_token="[SEP]", unk_token="[UNK]", cls_token="[CLS]")
    hub.save_pretrained(tmp_path)
    texts = ["A photo  of a dog", "dog, dog, cat", "a " * 50]
    ours = {"tower": "ViT-L-14-CLIPA", "pretrained": "datacomp1b"}
    upstream = open_clip.tokenizer.HFTokenizer(str(tmp_path), context_length=32, strip_sep_token=True)(texts).tolist()
    if not config_beside:
        (tmp_path / "tokenizer_config.json").unlink()
    assert build_tokenizer(ours, {"tokenizer": tmp_path / "tokenizer.json"})(texts) == upstream
    (tmp_path / "tokenizer.json").write_text("{")
    with pytest.raises(WeightsError, match="cannot be read"):
        build_tokenizer(ours, {"tokenizer": tmp_path / "tokenizer.json"})
