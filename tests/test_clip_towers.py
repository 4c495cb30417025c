"""Dense features of open_clip's other towers against open_clip's and timm's own modules with the same weights."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ovseg.errors import InvalidArgumentError, UnsupportedOperationError
from ovseg.models.clip_towers import DenseTower, block_alone, pool_alone, rotary_angles, wrap_tower
from tests.synthetic import synthesise

open_clip = pytest.importorskip("open_clip")
timm = pytest.importorskip("timm")

TEXT = {"context_length": 12, "vocab_size": 64, "width": 32, "heads": 2, "layers": 1}
NARROW = {"embed_dim": 64, "num_heads": 4}


def _synthesise(model: nn.Module) -> None:
    """Give a model synthetic weights that keep signals alive through batch norms and layer scales."""
    synthesise(model)
    for name, value in model.named_parameters():
        if value.ndim > 1 and name.endswith("gamma"):
            value.data.fill_(0.5)
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.weight.data.copy_(1 + module.weight.data)


def _clip(name: str, pool: str, proj: str | None = None, dim: int = 64, size: int = 64, **changes: Any) -> Any:
    """Build open_clip's model around a cut-down timm trunk; `TimmModel` has no other way to pass settings to timm."""
    from open_clip import timm_model

    original = timm_model.timm.create_model

    def create(model: str, **settings: Any) -> nn.Module:
        built: nn.Module = original(model, **{**settings, **changes})
        return built

    vision = {"timm_model_name": name, "timm_pool": pool, "timm_proj": proj, "image_size": size}
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(timm_model.timm, "create_model", create)
        model = open_clip.CustomTextCLIP(dim, vision, TEXT)
    _synthesise(model)
    return model.eval()


def _siglip(grid: int = 4) -> Any:
    return _clip("vit_base_patch16_siglip_224", "map", "none", depth=2, img_size=16 * grid, **NARROW)


def _pe(grid: int = 4, **changes: Any) -> Any:
    settings = {"depth": 2, "img_size": 16 * grid, "ref_feat_shape": (4, 4), "attn_pool_num_heads": 4, **NARROW, **changes}
    return _clip("vit_pe_core_base_patch16_224", "map", dim=48, **settings)


def _eva02(grid: int = 4) -> Any:
    return _clip("eva02_base_patch16_clip_224", "token", dim=48, depth=2, img_size=16 * grid, **NARROW)


def _eva02_post_norm(grid: int = 4) -> Any:
    return _clip("eva02_enormous_patch14_clip_224", "token", dim=48, depth=2, mlp_ratio=2.0, img_size=14 * grid, **NARROW)


def _eva01(grid: int = 4) -> Any:
    return _clip("eva_giant_patch14_224", "token", dim=48, depth=2, mlp_ratio=2.0, img_size=14 * grid, **NARROW)


def _mobile_vit(grid: int = 4) -> Any:
    return _clip("vit_base_mci_224", "token", dim=48, depth=1, img_size=16 * grid)


def _plain_vit(grid: int = 4) -> Any:
    return _clip("vit_large_patch14_clip_224", "token", dim=48, depth=2, img_size=14 * grid, **NARROW)


def _vitamin(grid: int = 4) -> Any:
    return _clip("vitamin_small_224", "", "linear", dim=48, depth=2, img_size=16 * grid)


def _convnext(proj: str = "linear") -> Any:
    return _clip("convnext_base", "", proj, dim=48, depths=(1, 1, 1, 1), dims=(16, 24, 32, 40))


def _fastvit() -> Any:
    return _clip("fastvit_mci1", "avg", dim=48, layers=(1, 1, 1, 1), embed_dims=(16, 32, 64, 128))


def _resnet(size: int = 64) -> Any:
    model = open_clip.CLIP(32, {"layers": [1, 1, 1, 1], "width": 16, "image_size": size, "head_width": 32}, TEXT)
    _synthesise(model)
    return model.eval()


TRANSFORMERS = {
    "siglip": _siglip, "pe": _pe, "eva02": _eva02, "eva02-post-norm": _eva02_post_norm, "eva01": _eva01, "mobile-vit": _mobile_vit,
    "plain-vit": _plain_vit, "vitamin": _vitamin,
}  # fmt: skip
TOWERS = {**TRANSFORMERS, "convnext": _convnext, "fastvit": _fastvit, "resnet": _resnet}


def _pixels(height: int, width: int, count: int = 1) -> Tensor:
    return torch.randn(count, 3, height, width, generator=torch.Generator().manual_seed(height * 1000 + width))


def _stride(model: Any) -> int:
    embed = getattr(getattr(model.visual, "trunk", None), "patch_embed", None)
    return 32 if embed is None else embed.feat_ratio()


@pytest.fixture(autouse=True)
def _no_grad() -> Any:
    with torch.no_grad():
        yield


@pytest.mark.parametrize("kind", TOWERS)
def test_shape_length_and_batch(kind: str) -> None:
    model = TOWERS[kind]()
    tower = wrap_tower(model)
    stride = _stride(model)
    pixels = _pixels(3 * stride, 5 * stride, 2)
    features = tower(pixels)
    assert features.shape[0] == 2 and features.shape[2:] == (3, 5) and features.dtype == torch.float32
    torch.testing.assert_close(features.norm(dim=1), torch.ones(2, 3, 5))
    torch.testing.assert_close(tower(pixels[1:]), features[1:], atol=1e-5, rtol=1e-4)
    ids = torch.randint(1, 60, (3, 12), generator=torch.Generator().manual_seed(0))
    texts = tower.encode_text(ids)
    assert texts.shape == (3, features.shape[1])
    torch.testing.assert_close(texts, model.encode_text(ids), atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("kind", TOWERS)
def test_cells_differ(kind: str) -> None:
    """Synthetic weights must not make the map constant, or the comparisons here would be empty."""
    model = TOWERS[kind]()
    stride = _stride(model)
    features = wrap_tower(model)(_pixels(4 * stride, 4 * stride))
    assert float(features.flatten(2).std(dim=2).mean()) > 1e-3


@pytest.mark.parametrize("kind", TOWERS)
def test_half_precision(kind: str) -> None:
    model = TOWERS[kind]()
    stride = _stride(model)
    pixels = _pixels(2 * stride, 3 * stride)
    expected = wrap_tower(model)(pixels)
    features = wrap_tower(model.bfloat16())(pixels.bfloat16())
    assert features.dtype == torch.float32
    assert float((features * expected).sum(1).min()) > 0.98


@pytest.mark.parametrize("kind", TOWERS)
def test_global_is_open_clips(kind: str) -> None:
    model = TOWERS[kind]()
    side = model.visual.trunk.patch_embed.img_size[0] if kind in TRANSFORMERS else 64
    pixels = _pixels(side, side, 2)
    torch.testing.assert_close(wrap_tower(model).encode_global(pixels), model.encode_image(pixels), atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("kind", TRANSFORMERS)
def test_tokens_are_timms_at_its_own_size(kind: str) -> None:
    """"vanilla" at the size of training: timm's `forward_features`, then its head on each token."""
    model = TRANSFORMERS[kind]()
    trunk = model.visual.trunk
    side = trunk.patch_embed.img_size[0]
    pixels = _pixels(side, side)
    tokens = trunk.forward_features(pixels)[:, trunk.num_prefix_tokens :]
    if trunk.attn_pool is not None:
        tokens = trunk.attn_pool(tokens.flatten(0, 1)[:, None])[None]  # upstream's own pooling of every token alone
    expected = F.normalize(model.visual.head(trunk.head(trunk.fc_norm(tokens))), dim=-1)
    features = wrap_tower(model, "map" if trunk.attn_pool is not None else "vanilla")(pixels)
    torch.testing.assert_close(features.flatten(2).transpose(1, 2), expected, atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("kind", TRANSFORMERS)
def test_other_sizes_are_timms_set_input_size(kind: str) -> None:
    """At 3 x 6 cells the pooled output is what timm gives after being set to that size: positions and rotary angles are right."""
    model = TRANSFORMERS[kind]()
    stride = _stride(model)
    size = (3 * stride, 6 * stride)
    pixels = _pixels(*size)
    result = wrap_tower(model).encode_global(pixels)
    model.visual.set_input_size(size)
    torch.testing.assert_close(result, model.encode_image(pixels), atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("build", [_siglip, lambda grid: _pe(grid, class_token=False)])
def test_map_of_one_cell_is_the_pooled_image(build: Any) -> None:
    """A grid of one cell and no class token: attention pooling sees one token, so the dense feature is the image's embedding."""
    model = build(1)
    pixels = _pixels(16, 16, 3)
    expected = F.normalize(model.encode_image(pixels), dim=-1)
    torch.testing.assert_close(wrap_tower(model)(pixels)[:, :, 0, 0], expected, atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("kind", ["eva02", "eva02-post-norm", "eva01", "mobile-vit", "plain-vit", "vitamin"])
def test_block_alone_is_the_block_on_one_token(kind: str) -> None:
    """A token whose attention sees only itself gets its own value: the block, run on sequences of length 1."""
    model = TRANSFORMERS[kind]()
    block = model.visual.trunk.blocks[-1]
    x = torch.randn(2, 5, block.norm1.weight.shape[0], generator=torch.Generator().manual_seed(3))
    expected = block(x.flatten(0, 1)[:, None]).reshape(x.shape)
    torch.testing.assert_close(block_alone(block, x), expected, atol=1e-5, rtol=1e-4)
    assert not torch.allclose(block(x), expected, atol=1e-3), "attention among the tokens must matter"


def test_maskclip_is_published_formula() -> None:
    """x + P(v), then the MLP with its residual, final norm and head: written out for timm's ViT."""
    model = _plain_vit()
    trunk = model.visual.trunk
    pixels = _pixels(56, 56)
    x = trunk.norm_pre(trunk._pos_embed(trunk.patch_embed(pixels)))
    x = trunk.blocks[0](x)[:, 1:]
    last = trunk.blocks[1]
    v = last.attn.qkv(last.norm1(x)).chunk(3, dim=-1)[2]
    x = x + last.attn.proj(v)
    x = x + last.mlp(last.norm2(x))
    expected = F.normalize(trunk.head(trunk.norm(x)), dim=-1)
    features = wrap_tower(model)(pixels)
    torch.testing.assert_close(features.flatten(2).transpose(1, 2), expected, atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("indexing", ["ij", "xy"])
@pytest.mark.parametrize("reference", [None, (14, 14)])
def test_rotary_angles_are_timms(indexing: str, reference: tuple[int, int] | None) -> None:
    from timm.layers import RotaryEmbeddingCat

    rope = RotaryEmbeddingCat(
        32, in_pixels=False, feat_shape=(14, 14), ref_feat_shape=reference, grid_offset=1.0, grid_indexing=indexing
    )
    torch.testing.assert_close(rotary_angles(rope, (14, 14), torch.device("cpu")), rope.get_embed(), atol=1e-5, rtol=1e-5)
    rope.update_feat_shape((3, 7))
    torch.testing.assert_close(rotary_angles(rope, (3, 7), torch.device("cpu")), rope.get_embed(), atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("proj", ["linear", "mlp"])
def test_convnext_of_one_cell_is_the_pooled_image(proj: str) -> None:
    """The mean over one cell is that cell, so norm and projection must give the image's embedding."""
    model = _convnext(proj)
    pixels = _pixels(32, 32, 2)
    expected = F.normalize(model.encode_image(pixels), dim=-1)
    torch.testing.assert_close(wrap_tower(model)(pixels)[:, :, 0, 0], expected, atol=1e-5, rtol=1e-4)


def test_fastvit_mean_of_cells_is_the_pooled_image() -> None:
    """Its head is linear after the mean: the mean of the dense features before normalisation is the image's embedding."""
    model = _fastvit()
    pixels = _pixels(64, 96)
    trunk = model.visual.trunk
    dense = trunk.head.fc(trunk.forward_features(pixels).permute(0, 2, 3, 1))
    torch.testing.assert_close(dense.mean((1, 2)), model.encode_image(pixels), atol=1e-5, rtol=1e-4)
    torch.testing.assert_close(wrap_tower(model)(pixels), F.normalize(dense.permute(0, 3, 1, 2), dim=1), atol=1e-5, rtol=1e-4)


def test_resnet_of_one_cell_without_positions_is_the_pooled_image() -> None:
    """One cell, positions zero: the mean token equals the cell, attention has one value to give, and pooling is c_proj(v_proj(x))."""
    model = _resnet(32)
    model.visual.attnpool.positional_embedding.zero_()
    pixels = _pixels(32, 32, 2)
    expected = F.normalize(model.encode_image(pixels), dim=-1)
    torch.testing.assert_close(wrap_tower(model)(pixels)[:, :, 0, 0], expected, atol=1e-5, rtol=1e-4)


def test_resnet_refuses_to_pool_other_sizes() -> None:
    with pytest.raises(InvalidArgumentError, match="64x64"):
        wrap_tower(_resnet()).encode_global(_pixels(64, 96))


def test_readouts_without_meaning_are_named() -> None:
    with pytest.raises(InvalidArgumentError, match="'maskclip'.*EVA"):
        wrap_tower(_siglip(), "maskclip")
    with pytest.raises(InvalidArgumentError, match="'map'.*SigLIP"):
        wrap_tower(_convnext(), "map")
    with pytest.raises(InvalidArgumentError, match="clip-vit-b16-openai"):
        wrap_tower(_resnet(), "naclip")


def test_towers_without_dense_features() -> None:
    vision = {"layers": 1, "width": 64, "patch_size": 16, "image_size": 32}
    with pytest.raises(UnsupportedOperationError, match="ViT-B-16-SigLIP2"):
        wrap_tower(open_clip.CLIP(32, vision, TEXT))  # open_clip's own ViT is another file's work
    model = _clip("resnet18", "abs_attn", "")
    with pytest.raises(UnsupportedOperationError, match="ResNet"):
        wrap_tower(model)


def test_exports_with_dynamic_size() -> None:
    for model in (_siglip(), _eva02(), _convnext()):
        tower = wrap_tower(model)
        height, width = (torch.export.Dim(side, min=2, max=64) for side in ("h", "w"))
        stride = _stride(model)
        program = torch.export.export(
            tower, (_pixels(3 * stride, 5 * stride),), dynamic_shapes=({2: stride * height, 3: stride * width},), strict=False
        )
        other = _pixels(7 * stride, 2 * stride)
        torch.testing.assert_close(program.module()(other), tower(other), atol=1e-5, rtol=1e-4)


class TestRealSize:
    """SigLIP2 ViT-B/16 at its published width and depth (the text tower is left out: its table of tokens is 0.8 GB)."""

    @pytest.fixture(scope="class")
    def tower(self) -> DenseTower:
        config = open_clip.get_model_config("ViT-B-16-SigLIP2")
        model = open_clip.CustomTextCLIP(config["embed_dim"], config["vision_cfg"], TEXT)
        with torch.no_grad():
            synthesise(model.visual)
        return wrap_tower(model.eval())

    def test_matches_open_clip(self, tower: Any) -> None:
        pixels = _pixels(224, 224)
        visual = tower.clip.visual
        torch.testing.assert_close(tower.encode_global(pixels), visual(pixels), atol=1e-4, rtol=1e-3)
        tokens = visual.trunk.forward_features(pixels)
        alone = visual.trunk.attn_pool(tokens[0, :, None])  # (196, 768): each of the 14 x 14 tokens pooled by upstream
        torch.testing.assert_close(tower(pixels)[0].flatten(1).T, F.normalize(alone, dim=-1), atol=1e-5, rtol=1e-3)
        torch.testing.assert_close(pool_alone(visual.trunk.attn_pool, tokens)[0], alone, atol=1e-4, rtol=1e-3)
        assert tower(_pixels(96, 160)).shape == (1, 768, 6, 10)
