"""The ViT of C-RADIOv3 in plain torch, with the parameter names of its torch.hub release, and RADSeg's attention in its last block.

Ranzinger et al., "AM-RADIO", CVPR 2024; Heinrich et al., "RADIOv2.5", CVPR 2025. A plain pre-norm ViT without a final norm, with several
summary tokens and registers, and with position embeddings for any size. RADSeg (Alama et al., arXiv:2511.19704): see `radio.py`.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ovseg.models.base import LayerScale, Mlp, resize_positions, unit

PATCH = 16
"""Input pixels per patch; height and width of the input are multiples of this."""
SHARPNESS = 10.0
"""Factor of the cosines in both of RADSeg's correlations: scra_scaling and scga_scaling of the published evaluation."""


@dataclass(frozen=True)
class Variant:
    """Sizes of a backbone.

    Attributes:
        width: Channels of a token.
        depth: Blocks.
        heads: Attention heads.
        layer_scale: Whether branches have a learned scale of each channel.
        align_corners: How position embeddings are resized, as in timm 1.0.31. All of C-RADIOv3 was released with True; the code
            beside the weights of L changed to False in July 2025, and copies of newer torch.hub code have False for all.
        grid: Side of the table of position embeddings.
        prefix: Tokens before the patches: one summary for each teacher, then registers.
    """

    width: int
    depth: int
    heads: int
    layer_scale: bool
    align_corners: bool
    grid: int = 128
    prefix: int = 8


VARIANTS = {
    "c-radio_v3-b": Variant(768, 12, 12, True, True),
    "c-radio_v3-l": Variant(1024, 24, 16, True, False),
    "c-radio_v3-h": Variant(1280, 32, 16, False, True),
}


class Conditioner(nn.Module):
    """Normalises pixel values in [0, 1], in float32."""

    def __init__(self) -> None:
        super().__init__()
        self.norm_mean: Tensor
        self.norm_std: Tensor
        self.register_buffer("norm_mean", torch.tensor([0.48145466, 0.4578275, 0.40821073]).view(3, 1, 1))  # OpenAI CLIP's
        self.register_buffer("norm_std", torch.tensor([0.26862954, 0.26130258, 0.27577711]).view(3, 1, 1))

    def forward(self, x: Tensor) -> Tensor:
        """Map (B, 3, H, W) in [0, 1] to the same shape."""
        return ((x.float() - self.norm_mean.float()) / self.norm_std.float()).to(x.dtype)


class SummaryTokens(nn.Module):
    """Learned tokens in front of the patches."""

    def __init__(self, variant: Variant) -> None:
        super().__init__()
        self.token = nn.Parameter(torch.randn(variant.prefix, variant.width) * variant.width**-0.5)


class PatchGenerator(nn.Module):
    """Pixels to tokens, with RADIO's position embeddings.

    Their table of 128 x 128 cells is resized to a square with the longer side of the patch grid; the grid takes its top-left part. Random
    crops of the table ("CPE") belong to training only.
    """

    def __init__(self, variant: Variant) -> None:
        super().__init__()
        self.variant = variant
        self.embedder = nn.Linear(3 * PATCH * PATCH, variant.width, bias=False)
        self.pos_embed = nn.Parameter(torch.randn(1, variant.grid**2, variant.width) * variant.width**-0.5)
        self.cls_token = SummaryTokens(variant)

    def forward(self, x: Tensor) -> Tensor:
        """Map (B, 3, H, W) to (B, prefix + H / 16 * W / 16, C)."""
        kernel = self.embedder.weight.reshape(-1, 3, PATCH, PATCH)
        patches = F.conv2d(x, kernel, stride=PATCH)
        h, w = patches.shape[-2:]
        side = cast(int, torch.sym_max(h, w))  # a symbol while exporting
        table = self.pos_embed.reshape(self.variant.grid, self.variant.grid, -1)
        positions = resize_positions(table, (side, side), "bilinear", align_corners=self.variant.align_corners)[:h, :w]
        tokens = patches.flatten(2).transpose(1, 2) + positions.reshape(1, h * w, -1)
        return torch.cat([self.cls_token.token.expand(len(x), -1, -1), tokens], 1)


def correlate(tokens: Tensor, values: Tensor, centre: bool) -> Tensor:
    """Average `values` by soft+ of the tokens' cosines; see `radio.py`. Both are (..., N, C)."""
    x = unit(tokens, -1)
    logits = x @ x.transpose(-1, -2)
    if centre:
        logits = logits - logits.mean((-2, -1), keepdim=True)
    logits = SHARPNESS * logits
    # the least number instead of minus infinity: a row that rounding puts below zero as a whole must not become NaN
    weights = logits.masked_fill(logits < 0, torch.finfo(logits.dtype).min).softmax(-1)
    return weights.to(values.dtype) @ values


class Attention(nn.Module):
    """Multi-head attention, plain or RADSeg's."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.qkv = nn.Linear(width, 3 * width)
        self.proj = nn.Linear(width, width)

    def _merge(self, x: Tensor) -> Tensor:
        y: Tensor = self.proj(x.transpose(1, 2).flatten(2))
        return y

    def forward(self, x: Tensor, recursive: bool) -> Tensor:
        """Map (B, N, C) to the same shape; `recursive` for SCRA."""
        b, n, c = x.shape
        q, k, v = self.qkv(x).reshape(b, n, 3, self.heads, c // self.heads).permute(2, 0, 3, 1, 4).unbind(0)
        y = self._merge(F.scaled_dot_product_attention(q, k, v))
        if not recursive:
            return y
        outputs = y.reshape(b, n, self.heads, c // self.heads).transpose(1, 2)
        return self._merge(correlate(outputs, v, centre=False))


class Block(nn.Module):
    """Attention and MLP, each behind a norm and around a shortcut."""

    def __init__(self, variant: Variant) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(variant.width, eps=1e-6)
        self.attn = Attention(variant.width, variant.heads)
        self.ls1 = LayerScale(variant.width, 1e-5) if variant.layer_scale else nn.Identity()
        self.norm2 = nn.LayerNorm(variant.width, eps=1e-6)
        self.mlp = Mlp(variant.width)
        self.ls2 = LayerScale(variant.width, 1e-5) if variant.layer_scale else nn.Identity()

    def forward(self, x: Tensor, recursive: bool = False) -> Tensor:
        """Map (B, N, C) to the same shape; `recursive` for SCRA."""
        x = x + self.ls1(self.attn(self.norm1(x), recursive))
        y: Tensor = x + self.ls2(self.mlp(self.norm2(x)))
        return y


class Backbone(nn.Module):
    """The ViT, without a final norm."""

    def __init__(self, variant: Variant) -> None:
        super().__init__()
        self.patch_generator = PatchGenerator(variant)
        self.blocks = nn.ModuleList(Block(variant) for _ in range(variant.depth))

    def forward(self, x: Tensor, recursive: bool) -> Tensor:
        """Map (B, 3, H, W), normalised, to (B, prefix + h * w, C); `recursive` for SCRA in the last block."""
        x = self.patch_generator(x)
        for i, block in enumerate(self.blocks, 1):
            x = block(x, recursive and i == len(self.blocks))
        return x
