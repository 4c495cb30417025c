"""Dense features of the CLIP image towers that are not open_clip's own ViT: SigLIP, PE, EVA, MobileCLIP, ViTamin, ConvNeXt, ResNet.

Such a tower ends in a pooling that was trained to meet the text. A dense feature is what that pooling makes of one cell alone, so that
the feature map lies in the text space without any training:

    "map"       attention pooling over one token. Its softmax over a single key is 1 whatever the query is, so token x becomes
                u + mlp(norm(u)) with u = P(V(x)) (SigLIP, SigLIP2, PE-Core).
    "maskclip"  the last attention replaced by "every cell sees only itself", v then output projection, with the residual and the MLP
                of the block (Zhou et al., "Extract Free Dense Labels from CLIP", ECCV 2022). Towers with a class token, and the
                attention pooling at the end of CLIP's ResNets.
    "vanilla"   cells as they come, each through the norm and the projection that the mean would go through (Yu et al., "Convolutions
                Die Hard" (FC-CLIP), NeurIPS 2023). Towers with average pooling, where it is what training averaged.

Position embeddings and rotary angles are made for the grid at hand, as timm does when a model is set to another input size.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ovseg.errors import InvalidArgumentError, UnsupportedOperationError
from ovseg.models.base import Positions, resize_positions, unit
from ovseg.models.clip_blocks import encode_text
from ovseg.positions import Resize

_EXAMPLES = "ViT-B-16, ViT-B-16-SigLIP2-512, PE-Core-B-16, EVA02-B-16, MobileCLIP2-B, ViTamin-B, convnext_large_d_320, RN50"


def pool_alone(pool: Any, x: Tensor) -> Tensor:
    """Apply attention pooling to every token as if it were the only one.

    Args:
        pool: timm's `AttentionPoolLatent`.
        x: (B, N, C) tokens after the last norm.

    Returns:
        (B, N, C').
    """
    width = pool.kv.out_features // 2
    u = pool.proj(F.linear(x, pool.kv.weight[width:], None if pool.kv.bias is None else pool.kv.bias[width:]))
    pooled: Tensor = u if pool.mlp is None else u + pool.mlp(pool.norm(u))
    return pooled


def attend_alone(attention: Any, x: Tensor) -> Tensor:
    """Apply self-attention of timm's ViT or EVA to every token as if it were the only one: its value, projected.

    Args:
        attention: The attention module.
        x: (B, N, C) tokens, normed as the block does.

    Returns:
        (B, N, C).
    """
    if attention.qkv is None:
        values = attention.v_proj(x)
    else:
        width = attention.qkv.out_features // 3
        bias = getattr(attention, "v_bias", None)  # EVA keeps the biases of q and v apart, because k has none
        if bias is None and attention.qkv.bias is not None:
            bias = attention.qkv.bias[2 * width :]
        values = F.linear(x, attention.qkv.weight[2 * width :], bias)
    projected: Tensor = attention.proj(attention.norm(values))
    return projected


def block_alone(block: Any, x: Tensor) -> Tensor:
    """Apply a whole transformer block to every token as if it were the only one.

    Args:
        block: A block of timm's ViT or EVA, with norms before (most) or after (EVA02-E) attention and MLP.
        x: (B, N, C) tokens.

    Returns:
        (B, N, C).
    """
    if type(block).__name__ == "EvaBlockPostNorm":
        x = x + block.norm1(attend_alone(block.attn, x))
        after: Tensor = x + block.norm2(block.mlp(x))
        return after
    first, second = getattr(block, "gamma_1", None), getattr(block, "gamma_2", None)  # EVA's layer scale; ls1 and ls2 are the ViT's
    attended = block.ls1(attend_alone(block.attn, block.norm1(x))) if hasattr(block, "ls1") else attend_alone(block.attn, block.norm1(x))
    x = x + (attended if first is None else first * attended)
    changed = block.ls2(block.mlp(block.norm2(x))) if hasattr(block, "ls2") else block.mlp(block.norm2(x))
    y: Tensor = x + (changed if second is None else second * changed)
    return y


def rotary_angles(rope: Any, grid: tuple[int, int], device: torch.device) -> Tensor:
    """Compute the sines and cosines of an axial rotary embedding for a grid of any size.

    Args:
        rope: timm's `RotaryEmbeddingCat`, read for its settings only: its own buffers belong to the grid of training.
        grid: (h, w) cells.
        device: Where the result is wanted.

    Returns:
        (h * w, 2 * d) float32: sines, then cosines, each angle twice in a row; d is the size of a head.
    """
    count = rope.dim // 4
    bands = 1.0 / float(rope.temperature) ** (torch.arange(count, device=device, dtype=torch.float32) / count)
    axes = [torch.arange(cells, device=device, dtype=torch.float32) + rope.grid_offset for cells in grid]
    if rope.ref_feat_shape is not None:  # positions are stretched to the grid of training
        axes = [axis / cells * of_training for axis, cells, of_training in zip(axes, grid, rope.ref_feat_shape, strict=True)]
    rows, columns = torch.meshgrid(axes[0], axes[1], indexing="ij")
    order = (columns, rows) if rope.grid_indexing == "xy" else (rows, columns)
    angles = torch.stack(order, dim=-1).reshape(-1, 2, 1) * bands  # (h * w, 2, d / 4)
    angles = angles.flatten(1).repeat_interleave(2, dim=-1)
    return torch.cat([angles.sin(), angles.cos()], dim=-1)


class DenseTower(nn.Module):
    """What the towers of this file share: the text tower is open_clip's.

    Args:
        model: open_clip's `CLIP` or `CustomTextCLIP`.
        readout: How the feature map is made.
    """

    def __init__(self, model: nn.Module, readout: str) -> None:
        super().__init__()
        self.clip: Any = model
        self.readout = readout

    def encode_text(self, input_ids: Tensor) -> Tensor:
        """Embed texts.

        Args:
            input_ids: (N, T) int64.

        Returns:
            (N, D), not normalised.
        """
        return encode_text(self.clip, input_ids)

    def encode_global(self, pixel_values: Tensor) -> Tensor:
        """Embed whole images as open_clip does.

        Args:
            pixel_values: (B, 3, H, W), normalised, of the size the tower was trained on.

        Returns:
            (B, D), not normalised.
        """
        embedded: Tensor = self.clip.visual(pixel_values)
        return embedded


class TransformerTower(DenseTower):
    """timm's `VisionTransformer` and `Eva` inside open_clip."""

    def position_table(self, whole: bool = False) -> Positions | None:
        """Return the position embeddings, which are resized alike for dense features and whole images; None for a tower without."""
        trunk = self.clip.visual.trunk
        if trunk.pos_embed is None:
            return None
        leading = 0 if trunk.no_embed_class else trunk.num_prefix_tokens
        grid = trunk.patch_embed.grid_size
        table = trunk.pos_embed[0, leading:].reshape(*grid, -1)
        return Positions(table, trunk.patch_embed.img_size[0] // grid[0], Resize("bicubic", antialias=True))

    def _tokens(self, pixel_values: Tensor, positions: Tensor | None) -> tuple[Tensor, Tensor | None, tuple[int, int]]:
        """Return (B, prefix + h * w, C) tokens before the first block, rotary angles if the tower has them, and (h, w)."""
        trunk = self.clip.visual.trunk
        embed = trunk.patch_embed
        patches = embed.proj(embed.backbone(pixel_values) if hasattr(embed, "backbone") else pixel_values)
        batch, grid = patches.shape[0], (patches.shape[-2], patches.shape[-1])
        x = patches.flatten(2).transpose(1, 2)
        if hasattr(embed, "norm"):
            x = embed.norm(x)
        learned = [token for token in (trunk.cls_token, trunk.reg_token) if token is not None]
        prefix = torch.cat(learned, dim=1) if learned else x.new_zeros(1, 0, x.shape[-1])
        if trunk.pos_embed is not None:
            leading = 0 if trunk.no_embed_class else trunk.num_prefix_tokens
            if positions is None:
                table = trunk.pos_embed[0, leading:].reshape(*embed.grid_size, -1)
                positions = resize_positions(table, grid, antialias=True)
            x = x + positions.to(x.dtype).flatten(0, 1)
            if leading:
                prefix = prefix + trunk.pos_embed[:, :leading]
        if learned:
            x = torch.cat([prefix.expand(batch, -1, -1), x], dim=1)
        rope = getattr(trunk, "rope", None)
        angles = None if rope is None else rotary_angles(rope, grid, x.device)
        return trunk.norm_pre(x), angles, grid

    def forward(self, pixel_values: Tensor, positions: Tensor | None = None) -> Tensor:
        """Compute the feature map.

        Args:
            pixel_values: (B, 3, H, W), normalised; H and W multiples of the stride.
            positions: (h, w, C) position embeddings; None to resize the model's own.

        Returns:
            (B, D, h, w) float32, L2-normalised over D.
        """
        visual = self.clip.visual
        trunk = visual.trunk
        x, angles, grid = self._tokens(pixel_values, positions)
        for block in trunk.blocks[:-1]:
            x = block(x) if angles is None else block(x, rope=angles)
        last = trunk.blocks[-1]
        if self.readout == "maskclip":
            x = block_alone(last, x[:, trunk.num_prefix_tokens :])
        else:
            x = (last(x) if angles is None else last(x, rope=angles))[:, trunk.num_prefix_tokens :]
        x = trunk.norm(x)
        if trunk.attn_pool is not None:
            x = pool_alone(trunk.attn_pool, x)
        x = visual.head(trunk.head(trunk.fc_norm(x)))
        return unit(x.transpose(1, 2).reshape(x.shape[0], -1, *grid))

    def encode_global(self, pixel_values: Tensor, positions: Tensor | None = None) -> Tensor:
        """Embed whole images as open_clip does, at any size.

        Args:
            pixel_values: (B, 3, H, W), normalised; H and W multiples of the stride.
            positions: (h, w, C) position embeddings; None to resize the model's own.

        Returns:
            (B, D), not normalised.
        """
        visual = self.clip.visual
        x, angles, _ = self._tokens(pixel_values, positions)
        for block in visual.trunk.blocks:
            x = block(x) if angles is None else block(x, rope=angles)
        embedded: Tensor = visual.head(visual.trunk.forward_head(visual.trunk.norm(x)))
        return embedded


class ConvTower(DenseTower):
    """timm's `ConvNeXt` and `FastVit` inside open_clip: average pooling, norm or none, projection."""

    def forward(self, pixel_values: Tensor) -> Tensor:
        """Compute the feature map.

        Args:
            pixel_values: (B, 3, H, W), normalised; H and W multiples of the stride.

        Returns:
            (B, D, h, w) float32, L2-normalised over D.
        """
        visual = self.clip.visual
        x = visual.trunk.forward_features(pixel_values)
        if hasattr(visual.trunk.head, "norm"):
            x = visual.trunk.head.norm(x)
        x = visual.head(visual.trunk.head.fc(x.permute(0, 2, 3, 1)))
        return unit(x.permute(0, 3, 1, 2))


class ResNetTower(DenseTower):
    """open_clip's `ModifiedResNet`: CLIP's RN50 and relatives, which end in attention pooling."""

    def forward(self, pixel_values: Tensor) -> Tensor:
        """Compute the feature map: value and output projection of the pooling in each cell, without position embeddings.

        Args:
            pixel_values: (B, 3, H, W), normalised; H and W multiples of 32.

        Returns:
            (B, D, H / 32, W / 32) float32, L2-normalised over D.
        """
        visual = self.clip.visual
        x = visual.stem(pixel_values)
        x = visual.layer4(visual.layer3(visual.layer2(visual.layer1(x))))
        x = visual.attnpool.c_proj(visual.attnpool.v_proj(x.permute(0, 2, 3, 1)))
        return unit(x.permute(0, 3, 1, 2))

    def encode_global(self, pixel_values: Tensor) -> Tensor:
        """Embed whole images as open_clip does.

        Args:
            pixel_values: (B, 3, H, W), normalised, of the size the tower was trained on: its pooling knows no other.

        Returns:
            (B, D), not normalised.
        """
        size = self.clip.visual.image_size
        if tuple(pixel_values.shape[-2:]) != (size, size):
            got = "x".join(str(side) for side in pixel_values.shape[-2:])
            raise InvalidArgumentError(f"This ResNet pools images of {size}x{size} pixels only; got {got}. Resize and crop the image.")
        return super().encode_global(pixel_values)


def _kind(visual: Any) -> tuple[type[DenseTower], tuple[str, ...]]:
    """Return the wrapper of an image tower and its read-outs, the usual one first; refuse towers that have none."""
    from open_clip.modified_resnet import ModifiedResNet
    from open_clip.timm_model import TimmModel
    from timm.models.convnext import ConvNeXt
    from timm.models.eva import Eva
    from timm.models.fastvit import FastVit
    from timm.models.vision_transformer import VisionTransformer

    if isinstance(visual, ModifiedResNet):
        return ResNetTower, ("maskclip",)
    trunk = visual.trunk if isinstance(visual, TimmModel) else visual
    if isinstance(trunk, (ConvNeXt, FastVit)) and not hasattr(visual.head, "pool"):
        return ConvTower, ("vanilla",)
    if isinstance(trunk, (VisionTransformer, Eva)) and not getattr(trunk, "rope_mixed", False):
        if trunk.attn_pool is not None:
            if type(trunk.attn_pool).__name__ == "AttentionPoolLatent" and trunk.attn_pool.pos_embed is None:
                return TransformerTower, ("map",)
        elif trunk.global_pool == "token":
            return TransformerTower, ("maskclip", "vanilla")
        elif trunk.global_pool == "avg":
            return TransformerTower, ("vanilla", "maskclip")
    raise UnsupportedOperationError(
        f"An image tower of the kind {type(trunk).__name__} has no dense features here: its pooling mixes the cells in a way that does not "
        f"apply to one of them. Take another tower, for example {_EXAMPLES}."
    )


def wrap_tower(model: nn.Module, readout: str = "auto") -> DenseTower:
    """Give a model of open_clip dense features.

    Args:
        model: open_clip's `CLIP` or `CustomTextCLIP` with an image tower other than its own `VisionTransformer`. It is not copied.
        readout: "map", "maskclip" or "vanilla"; "auto" for what suits the tower.

    Raises:
        UnsupportedOperationError: If the tower has no dense features.
        InvalidArgumentError: If the read-out has no meaning for the tower.
    """
    wrapper, readouts = _kind(model.visual)
    if readout == "auto":
        readout = readouts[0]
    if readout not in readouts:
        others = {
            "map": "SigLIP, SigLIP2 and PE-Core",
            "maskclip": "CLIP's ViTs and ResNets, EVA and MobileCLIP-B",
            "vanilla": "CLIP's ViTs, EVA, ConvNeXt, ViTamin and MobileCLIP",
        }
        have = others.get(readout, "CLIP's own ViTs (for example clip-vit-b16-openai), if any")
        raise InvalidArgumentError(
            f"The read-out {readout!r} has no meaning for this image tower; it has {' and '.join(map(repr, readouts))}. "
            f"Towers with {readout!r}: {have}."
        )
    return wrapper(model, readout)
