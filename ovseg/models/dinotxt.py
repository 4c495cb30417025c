"""dino.txt: a text tower and two more blocks that give a frozen DINO backbone words.

Jose et al., "DINOv2 Meets Text: A Unified Framework for Image- and Pixel-Level Vision-Language Alignment", CVPR 2025; Simeoni et al.,
"DINOv3", 2025. Written from the published description of both; names of tensors are those of Meta's modules:

    backbone.*                 the DINO file: patch_embed.proj, cls_token, register_tokens (DINOv2) or storage_tokens (DINOv3),
                               pos_embed (DINOv2) or rope_embed.periods (DINOv3), blocks.<i>.*, norm
    visual_model.head.*        blocks.<i>.* (block_list.<i>.* in DINOv2's file), ln_final
    text_model.backbone.*      token_embedding, positional_embedding, blocks.<i>.*, ln_final
    text_model.head.*          linear_projection
    logit_scale                not needed

`merge_files` brings the published files to that layout. The names were read in Meta's code, not in the files, which need an
agreement (DINOv3) or could not be fetched; so loading is strict: another name is an error, never a wrong answer.

A text embedding has two halves. Upstream compares the first with the class token and the second with the patches, one by one for
segmentation and as their mean for classification, where both halves count together. Only the second half is a space that texts and
pixels share, so `encode_text` returns that one, and there is no embedding of whole images.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ovseg.errors import InvalidArgumentError, WeightsError
from ovseg.models.base import LayerScale, Mlp, Positions, load_strict, unit
from ovseg.models.clip_text import CONTEXT, VOCABULARY, build_clip_tokenizer
from ovseg.positions import Resize

REGISTERS = 4
_PREFIX = 1 + REGISTERS  # tokens before those of the patches
_PERIODS = "backbone.rope_embed.periods"
_ROPE_BASE = 100.0
Rotation = tuple[Tensor, Tensor]
"""Sines and cosines, (h w, channels of a head) each."""


@dataclass(frozen=True)
class Size:
    """Sizes of the towers.

    Attributes:
        patch: Side of a patch [px].
        rotary: Whether places are told by rotation (DINOv3) or by a table (DINOv2).
        eps: Of the norms of the backbone.
        grid: Cells of a side of the table; 0 without one.
        width: Channels of the backbone, which is also the size D of the space that patches and texts share.
        layers: Blocks of the backbone.
        heads: Heads of its attention.
        head_layers: Blocks that dino.txt adds.
        text_width: Channels of the text tower.
        text_layers: Its blocks.
        text_heads: Heads of its attention.
        vocabulary: Its tokens.
    """

    patch: int
    rotary: bool
    eps: float
    grid: int = 0
    width: int = 1024
    layers: int = 24
    heads: int = 16
    head_layers: int = 2
    text_width: int = 1280
    text_layers: int = 24
    text_heads: int = 20
    vocabulary: int = VOCABULARY


VARIANTS: Mapping[str, Size] = {
    "dinov3-l16": Size(patch=16, rotary=True, eps=1e-5),  # dinov3_vitl16_dinotxt_tet1280d20h24l
    "dinov2-l14": Size(patch=14, rotary=False, eps=1e-6, grid=37),  # dinov2_vitl14_reg4_dinotxt_tet1280d20h24l
}


def _rotate(x: Tensor, rotation: Rotation) -> Tensor:
    """Turn the patches of (B, heads, N, C) by their places, in float32 as upstream; other tokens have no place."""
    sin, cos = rotation
    patches = x[:, :, _PREFIX:].float()
    first, second = patches.chunk(2, dim=-1)
    turned = patches * cos + torch.cat([-second, first], -1) * sin
    return torch.cat([x[:, :, :_PREFIX], turned.to(x.dtype)], 2)


class Attention(nn.Module):
    """Multi-head self-attention."""

    def __init__(self, width: int, heads: int, bias: bool) -> None:
        super().__init__()
        self.heads = heads
        self.qkv = nn.Linear(width, 3 * width, bias=bias)
        self.proj = nn.Linear(width, width)

    def forward(self, x: Tensor, rotation: Rotation | None = None, causal: bool = False) -> Tensor:
        """Map (B, N, C) to the same shape."""
        q, k, v = self.qkv(x).unflatten(2, (3, self.heads, -1)).permute(2, 0, 3, 1, 4).unbind(0)  # (B, heads, N, C / heads) each
        if rotation is not None:
            q, k = _rotate(q, rotation), _rotate(k, rotation)
        mixed = F.scaled_dot_product_attention(q, k, v, is_causal=causal)
        y: Tensor = self.proj(mixed.transpose(1, 2).flatten(2))
        return y


class GatedMlp(nn.Module):
    """SwiGLU (Shazeer, 2020); two thirds of the usual hidden channels, rounded up to a multiple of 64."""

    def __init__(self, width: int) -> None:
        super().__init__()
        hidden = -(-int(4 * width * 2 / 3) // 64) * 64
        self.w1 = nn.Linear(width, hidden)
        self.w2 = nn.Linear(width, hidden)
        self.w3 = nn.Linear(hidden, width)

    def forward(self, x: Tensor) -> Tensor:
        """Map (..., C) to the same shape."""
        y: Tensor = self.w3(F.silu(self.w1(x)) * self.w2(x))
        return y


class Block(nn.Module):
    """A block of the backbone, or one that dino.txt adds (`gated`: SwiGLU and no bias before attention)."""

    def __init__(self, width: int, heads: int, gated: bool, eps: float) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(width, eps=eps)
        self.attn = Attention(width, heads, bias=not gated)
        self.ls1 = LayerScale(width)
        self.norm2 = nn.LayerNorm(width, eps=eps)
        self.mlp = GatedMlp(width) if gated else Mlp(width)
        self.ls2 = LayerScale(width)

    def forward(self, x: Tensor, rotation: Rotation | None = None) -> Tensor:
        """Map (B, N, C) to the same shape."""
        x = x + self.ls1(self.attn(self.norm1(x), rotation))
        y: Tensor = x + self.ls2(self.mlp(self.norm2(x)))
        return y


class TextBlock(nn.Module):
    """A block of the text tower."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.attention_norm = nn.LayerNorm(width)
        self.attention = Attention(width, heads, bias=False)
        self.ffn_norm = nn.LayerNorm(width)
        self.feed_forward = Mlp(width)

    def forward(self, x: Tensor) -> Tensor:
        """Map (N, T, C) to the same shape; no token sees those after it."""
        x = x + self.attention(self.attention_norm(x), causal=True)
        y: Tensor = x + self.feed_forward(self.ffn_norm(x))
        return y


class Backbone(nn.Module):
    """DINOv2 with registers, or DINOv3."""

    def __init__(self, size: Size) -> None:
        super().__init__()
        self.size = size
        self.patch_embed = nn.ModuleDict({"proj": nn.Conv2d(3, size.width, size.patch, size.patch)})
        self.cls_token = nn.Parameter(0.02 * torch.randn(1, 1, size.width))
        self.register_tokens = nn.Parameter(0.02 * torch.randn(1, REGISTERS, size.width))
        if size.grid:
            self.pos_embed = nn.Parameter(0.02 * torch.randn(1, 1 + size.grid**2, size.width))
        self.blocks = nn.ModuleList(Block(size.width, size.heads, False, size.eps) for _ in range(size.layers))
        self.norm = nn.LayerNorm(size.width, eps=size.eps)
        # Wave lengths of the rotation: numbers and no buffer, for half precision would shift every patch.
        quarter = size.width // size.heads // 4
        self.periods = tuple(_ROPE_BASE ** (i / quarter) for i in range(quarter))

    def _rotation(self, h: int, w: int, device: torch.device) -> Rotation:
        """Angles 2 pi c / period of the centres c of the patches, in [-1, 1] on either axis (DINOv3, section 3.2)."""
        y = (torch.arange(h, device=device) + 0.5) / h * 2 - 1
        x = (torch.arange(w, device=device) + 0.5) / w * 2 - 1
        places = torch.stack([y[:, None].expand(h, w), x[None].expand(h, w)], -1).flatten(0, 1)  # (h w, 2)
        periods = torch.tensor(self.periods, device=device)
        angles = (2 * math.pi * places[:, :, None] / periods).flatten(1).repeat(1, 2)  # (h w, channels of a head)
        return angles.sin(), angles.cos()

    def forward(self, pixel_values: Tensor, positions: Tensor | None = None) -> Tensor:
        """Map (B, 3, H, W), and a table's (h, w, C) if given, to normed tokens (B, 1 + 4 + h w, C): class, registers, patches by rows."""
        cells = self.patch_embed["proj"](pixel_values)  # (B, C, h, w)
        h, w = cells.shape[-2:]
        first: Tensor = self.cls_token
        rotation = None
        if self.size.grid:
            if positions is None:  # always resized: with the trained grid it changes nothing
                table = self.pos_embed[:, 1:].mT.reshape(1, -1, self.size.grid, self.size.grid)
                resized = F.interpolate(table.float(), (h, w), mode="bicubic", antialias=True, align_corners=False)
                positions = resized[0].permute(1, 2, 0)
            cells = cells + positions.to(cells.dtype).permute(2, 0, 1)
            first = first + self.pos_embed[:, :1]
        else:
            rotation = self._rotation(h, w, cells.device)
        batch = cells.shape[0]
        x = torch.cat([first.expand(batch, -1, -1), self.register_tokens.expand(batch, -1, -1), cells.flatten(2).mT], 1)
        for block in self.blocks:
            x = block(x, rotation)
        y: Tensor = self.norm(x)
        return y


class VisionHead(nn.Module):
    """What dino.txt adds to the image tower."""

    def __init__(self, size: Size) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(Block(size.width, size.heads, True, 1e-5) for _ in range(size.head_layers))
        self.ln_final = nn.LayerNorm(size.width)

    def forward(self, x: Tensor) -> Tensor:
        """Map (B, N, C) to the same shape; places are not told again."""
        for block in self.blocks:
            x = block(x)
        y: Tensor = self.ln_final(x)
        return y


class TextBackbone(nn.Module):
    """Token ids to the state of the token that ends each text."""

    def __init__(self, size: Size) -> None:
        super().__init__()
        self.token_embedding = nn.Embedding(size.vocabulary, size.text_width)
        self.positional_embedding = nn.Parameter(0.01 * torch.randn(CONTEXT, size.text_width))
        self.blocks = nn.ModuleList(TextBlock(size.text_width, size.text_heads) for _ in range(size.text_layers))
        self.ln_final = nn.LayerNorm(size.text_width)

    def forward(self, input_ids: Tensor) -> Tensor:
        """Map (N, T) int64 to (N, C). The end has the largest id of all."""
        end = input_ids.argmax(-1)  # (N,)
        if not torch.compiler.is_compiling():  # no token sees those after it; a graph keeps the full length
            input_ids = input_ids[:, : int(end.max()) + 1]
        x = self.token_embedding(input_ids) + self.positional_embedding[: input_ids.shape[1]]
        for block in self.blocks:
            x = block(x)
        y: Tensor = self.ln_final(x[torch.arange(x.shape[0], device=x.device), end])
        return y


class DinoTxt(nn.Module):
    """Both towers of dino.txt.

    Args:
        size: Sizes of the towers.
    """

    def __init__(self, size: Size) -> None:
        super().__init__()
        self.size = size
        self.backbone = Backbone(size)
        self.visual_model = nn.ModuleDict({"head": VisionHead(size)})
        projection = nn.Linear(size.text_width, 2 * size.width, bias=False)
        self.text_model = nn.ModuleDict(
            {"backbone": TextBackbone(size), "head": nn.ModuleDict({"linear_projection": projection})}
        )

    def position_table(self, whole: bool = False) -> Positions | None:
        """Return the position embeddings of DINOv2; None for DINOv3, which rotates."""
        grid = self.size.grid
        if not grid:
            return None
        return Positions(self.backbone.pos_embed[0, 1:].view(grid, grid, -1), self.size.patch, Resize("bicubic", antialias=True))

    def forward(self, pixel_values: Tensor, positions: Tensor | None = None) -> Tensor:
        """Compute the feature map.

        Args:
            pixel_values: (B, 3, H, W) in the module's dtype, normalised like ImageNet; H and W multiples of the patch.
            positions: (h, w, C) position embeddings; None to resize the model's own.

        Returns:
            (B, D, h, w) float32, L2-normalised over the channels.
        """
        tokens = self.visual_model["head"](self.backbone(pixel_values, positions))
        patch = self.size.patch
        return unit(tokens[:, _PREFIX:].mT.unflatten(2, (pixel_values.shape[2] // patch, pixel_values.shape[3] // patch)))

    def encode_text(self, input_ids: Tensor) -> Tensor:
        """Embed texts in the space of the patches: the second half of upstream's embedding.

        Args:
            input_ids: (N, T) int64, T <= 77, from CLIP's tokenizer.

        Returns:
            (N, D), not normalised.
        """
        both: Tensor = self.text_model["head"]["linear_projection"](self.text_model["backbone"](input_ids))  # type: ignore[index]
        return both[:, self.size.width :]


def merge_files(
    backbone: Mapping[str, Tensor], head: Mapping[str, Tensor], text: Mapping[str, Tensor] | None = None
) -> dict[str, Tensor]:
    """Join Meta's files into the one layout that `build` reads.

    Args:
        backbone: Tensors of the DINO file (dinov3_vitl16_pretrain_lvd1689m-*.pth, dinov2_vitl14_reg4_pretrain.pth).
        head: Those of dinov3_vitl16_dinotxt_vision_head_and_text_encoder-*.pth, or of DINOv2's *_vision_head.pth.
        text: Those of DINOv2's *_text_encoder.pth; None for DINOv3, whose file above holds both.

    Returns:
        Name -> tensor, to be saved as safetensors.
    """
    merged = {f"backbone.{name}": tensor for name, tensor in backbone.items()}
    if text is None:
        return merged | dict(head)
    merged |= {f"visual_model.head.{name}": tensor for name, tensor in head.items()}
    return merged | {f"text_model.{name}": tensor for name, tensor in text.items()}


def _converted(state: Mapping[str, Tensor], size: Size) -> tuple[dict[str, Tensor], tuple[float, ...]]:
    """Bring published tensors to the names above: one name for registers and blocks, biases with their mask, wave lengths apart."""
    found = {
        name.replace("backbone.storage_tokens", "backbone.register_tokens").replace("head.block_list.", "head.blocks."): tensor
        for name, tensor in state.items()
    }
    if not size.rotary:
        return found, ()
    biases = [f"backbone.blocks.{i}.attn.qkv.bias" for i in range(size.layers)]
    lacking = [name for name in (_PERIODS, *biases, *(f"{name}_mask" for name in biases)) if name not in found]
    if lacking or found[_PERIODS].numel() * 4 != size.width // size.heads:
        raise WeightsError(
            f"These are not weights of this dino.txt: {lacking[0] if lacking else _PERIODS} is missing or has another size. "
            "Join the files of the very model with `ovseg convert dinotxt`."
        )
    periods = tuple(float(value) for value in found.pop(_PERIODS))
    for name in biases:  # keys have no bias: the mask is 0 there
        found[name] = found[name] * found.pop(f"{name}_mask").to(found[name].dtype)
    return found, periods


def assemble(size: Size, state: Mapping[str, Tensor] | None) -> DinoTxt:
    """Make the network and give it its weights.

    Args:
        size: Sizes of the towers.
        state: Tensors of Meta's files as `merge_files` joins them; None for random weights.

    Raises:
        WeightsError: If tensors are missing, unknown or of another shape.
    """
    if state is None:
        return DinoTxt(size)
    converted, periods = _converted(state, size)
    with torch.device("meta"):  # random numbers for close to a billion parameters take a minute and would be overwritten
        module = DinoTxt(size)
    load_strict(module, converted, "this dino.txt", ignore=("logit_scale", "backbone.mask_token"))
    if size.rotary:
        module.backbone.periods = periods
    return module


def build(options: Mapping[str, Any], state: Mapping[str, Tensor] | None) -> nn.Module:
    """Build a dino.txt.

    Args:
        options: "variant": one of `VARIANTS`.
        state: See `assemble`.

    Raises:
        InvalidArgumentError: If there is no such variant.
        WeightsError: If tensors are missing, unknown or of another shape.
    """
    variant = str(options.get("variant"))
    if variant not in VARIANTS:
        raise InvalidArgumentError(f"variant of dino.txt must be one of {', '.join(VARIANTS)}; got {variant!r}.")
    return assemble(VARIANTS[variant], state)


def build_tokenizer(options: Mapping[str, Any], files: Mapping[str, Path]) -> Callable[[Sequence[str]], list[list[int]]]:
    """Return CLIP's tokenizer, 77 ids for each text; neither options nor files are needed."""
    return build_clip_tokenizer()
