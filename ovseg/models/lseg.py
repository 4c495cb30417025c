"""LSeg: Li et al., "Language-driven Semantic Segmentation", ICLR 2022.

A vision transformer is read at four depths; DPT's decoder (Ranftl et al., "Vision Transformers for Dense Prediction", ICCV 2021)
fuses them to one vector for every second pixel, in the space of CLIP's text tower. The networks published with the paper's code
differ in the backbone, in the text tower and in whether a small shared convolution tidies the logits ("head blocks").

Modules are named as in the published checkpoints after "net.", with what the output does not need left away (`UNUSED`).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ovseg.errors import InvalidArgumentError
from ovseg.models.base import Mlp, Positions, load_strict, unit
from ovseg.models.clip_text import CLIPText, build_clip_tokenizer
from ovseg.positions import Resize

MULTIPLE = 32
"""Height and width of the input must be multiples of this."""
LOGIT_SCALE = 1 / 0.07
"""Multiplier of the cosine: a constant in the published code, never trained and not in the files."""
PREFIX = "net."
"""What the published checkpoints put before every name."""
UNUSED = (
    "clip_pretrained.visual.",  # CLIP's image tower
    "clip_pretrained.logit_scale",  # CLIP's own
    "pretrained.model.norm.",  # the blocks are read before the last norm
    "pretrained.model.head.",  # of ImageNet
    "scratch.refinenet4.resConfUnit1.",  # the coarsest level has nothing to fuse
    "criterion.",  # what training kept
    "train_accuracy.",
    "val_accuracy.",
    "val_iou.",
)
"""Beginnings of the names of published tensors that the output does not depend on."""

FEATURES = 256
"""Channels of the decoder."""


@dataclass(frozen=True)
class Variant:
    """What distinguishes one published network from another.

    Attributes:
        width: Channels of the vision transformer.
        heads: Heads of its attention.
        taps: Blocks after which it is read; the last is its last block.
        patch: Side of a patch [px].
        grid: Patches on each side of the image that its position embeddings were trained for.
        channels: Channels of the four levels.
        resamples: What brings each level from the patch grid to strides 4, 8, 16, 32: a factor, or -2 for half the size.
        text: Width, blocks, heads and embedding size of CLIP's text tower.
    """

    width: int
    heads: int
    taps: tuple[int, int, int, int]
    patch: int
    grid: int
    channels: tuple[int, int, int, int]
    resamples: tuple[int, int, int, int]
    text: tuple[int, int, int, int]


_VIT_L16 = {
    "width": 1024, "heads": 16, "taps": (5, 11, 17, 23), "patch": 16, "grid": 24,
    "channels": (256, 512, 1024, 1024), "resamples": (4, 2, 1, -2),
}  # fmt: skip
VARIANTS: Mapping[str, Variant] = {
    "clip_vitl16_384": Variant(**_VIT_L16, text=(512, 12, 8, 512)),  # type: ignore[arg-type]
    "clipRN50x16_vitl16_384": Variant(**_VIT_L16, text=(768, 12, 12, 768)),  # type: ignore[arg-type]
    "clip_vitb32_384": Variant(768, 12, (2, 5, 8, 11), 32, 12, (96, 192, 384, 768), (8, 4, 2, 1), (512, 12, 8, 512)),
}
"""The backbones by the names that the published code gives them; the text towers are those of CLIP ViT-B/32 and RN50x16."""

ACTIVATIONS: Mapping[str, Callable[[Tensor], Tensor]] = {"relu": F.relu, "lrelu": F.leaky_relu, "tanh": torch.tanh}
"""Activations between the passes of the head block."""
_DEFAULTS: Mapping[str, Any] = {"backbone": "clip_vitl16_384", "arch_option": 0, "block_depth": 0, "activation": "lrelu"}


# ------------------------------------------------------------------------------------------------------ vision transformer


class _Attention(nn.Module):
    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.qkv = nn.Linear(width, 3 * width)
        self.proj = nn.Linear(width, width)

    def forward(self, x: Tensor) -> Tensor:
        b, n, c = x.shape
        q, k, v = self.qkv(x).view(b, n, 3, self.heads, c // self.heads).permute(2, 0, 3, 1, 4).unbind(0)
        mixed = F.scaled_dot_product_attention(q, k, v)
        y: Tensor = self.proj(mixed.transpose(1, 2).reshape(b, n, c))
        return y


class _Block(nn.Module):
    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(width, eps=1e-6)
        self.attn = _Attention(width, heads)
        self.norm2 = nn.LayerNorm(width, eps=1e-6)
        self.mlp = Mlp(width)

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.attn(self.norm1(x))
        y: Tensor = x + self.mlp(self.norm2(x))
        return y


class _VisionTransformer(nn.Module):
    """A plain ViT (Dosovitskiy et al., ICLR 2021) that returns the tokens after some of its blocks."""

    def __init__(self, variant: Variant) -> None:
        super().__init__()
        width = variant.width
        self.patch_embed = nn.ModuleDict({"proj": nn.Conv2d(3, width, variant.patch, variant.patch)})
        self.cls_token = nn.Parameter(torch.randn(1, 1, width) * 0.02)
        self.pos_embed = nn.Parameter(torch.randn(1, 1 + variant.grid**2, width) * 0.02)
        self.blocks = nn.ModuleList(_Block(width, variant.heads) for _ in range(variant.taps[-1] + 1))
        self.taps = variant.taps
        self.grid = variant.grid

    def forward(self, pixel_values: Tensor, positions: Tensor | None = None) -> tuple[list[Tensor], tuple[int, int]]:
        """Map (B, 3, H, W), and the (h, w, C) position embeddings if they are given, to the tokens after the taps and to (h, w)."""
        patches = self.patch_embed["proj"](pixel_values)
        batch, width, h, w = patches.shape
        if positions is None:  # resized even to the grid that they have: the same numbers
            table = self.pos_embed[:, 1:].transpose(1, 2).reshape(1, width, self.grid, self.grid).float()
            positions = F.interpolate(table, (h, w), mode="bilinear", align_corners=False)[0].permute(1, 2, 0)
        first = (self.cls_token + self.pos_embed[:, :1]).expand(batch, -1, -1)
        x = torch.cat([first, patches.flatten(2).transpose(1, 2) + positions.to(patches.dtype).flatten(0, 1)], 1)
        found = []
        for i, block in enumerate(self.blocks):
            x = block(x)
            if i in self.taps:
                found.append(x)
        return found, (h, w)


class _Readout(nn.Module):
    """Mix the class token into every patch: GELU(W [patch, class] + b)."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.project = nn.ModuleList([nn.Linear(2 * width, width)])

    def forward(self, tokens: Tensor) -> Tensor:
        """Map (B, 1 + N, C) to (B, N, C)."""
        linear = cast(nn.Linear, self.project[0])
        of_patch, of_class = linear.weight.chunk(2, 1)  # what the class token adds is the same for all patches: multiply it once
        return F.gelu(F.linear(tokens[:, 1:], of_patch) + F.linear(tokens[:, :1], of_class, linear.bias))


def _reassemble(width: int, channels: int, resample: int) -> nn.ModuleDict:
    """One level of DPT's reassembly; the keys are the places in the published sequence, whose others hold no tensors."""
    parts: dict[str, nn.Module] = {"0": _Readout(width), "3": nn.Conv2d(width, channels, 1)}
    if resample > 1:
        parts["4"] = nn.ConvTranspose2d(channels, channels, resample, resample)
    elif resample < 0:
        parts["4"] = nn.Conv2d(channels, channels, 3, -resample, padding=1)
    return nn.ModuleDict(parts)


class _Backbone(nn.Module):
    """The transformer and what makes four maps of it."""

    def __init__(self, variant: Variant) -> None:
        super().__init__()
        self.model = _VisionTransformer(variant)
        levels = [_reassemble(variant.width, *level) for level in zip(variant.channels, variant.resamples, strict=True)]
        self.act_postprocess1, self.act_postprocess2, self.act_postprocess3, self.act_postprocess4 = levels

    def forward(self, pixel_values: Tensor, positions: Tensor | None = None) -> list[Tensor]:
        """Map (B, 3, H, W) to four maps at strides 4, 8, 16, 32."""
        taps, (h, w) = self.model(pixel_values, positions)
        stages = (self.act_postprocess1, self.act_postprocess2, self.act_postprocess3, self.act_postprocess4)
        levels = []
        for tokens, parts in zip(taps, stages, strict=True):
            x = parts["0"](tokens)
            x = parts["3"](x.transpose(1, 2).reshape(x.shape[0], x.shape[2], h, w))
            levels.append(parts["4"](x) if "4" in parts else x)
        return levels


# ------------------------------------------------------------------------------------------------------------------ decoder


def _double(x: Tensor) -> Tensor:
    return F.interpolate(x, scale_factor=2.0, mode="bilinear", align_corners=True)


class _ResidualUnit(nn.Module):
    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(channels, channels, 3, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(channels)
        self.conv2 = nn.Conv2d(channels, channels, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(channels)

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.bn1(self.conv1(F.relu(x)))
        y = self.bn2(self.conv2(F.relu(y)))
        return x + y


class _Fusion(nn.Module):
    """Take in a finer level, refine, and double the size.

    The published network doubles and then applies `out_conv`. A 1x1 convolution and an interpolation, whose weights add up to 1,
    may change places; this way the convolution sees a quarter of the cells.
    """

    def __init__(self, channels: int, skip: bool = True) -> None:
        super().__init__()
        self.resConfUnit1 = _ResidualUnit(channels) if skip else None
        self.resConfUnit2 = _ResidualUnit(channels)
        self.out_conv = nn.Conv2d(channels, channels, 1)

    def refine(self, x: Tensor, skip: Tensor | None = None) -> Tensor:
        """Map (B, C, h, w), and a level of that shape, to the same shape: what is yet to be doubled."""
        if self.resConfUnit1 is not None and skip is not None:
            x = x + self.resConfUnit1(skip)
        y: Tensor = self.out_conv(self.resConfUnit2(x))
        return y

    def forward(self, x: Tensor, skip: Tensor | None = None) -> Tensor:
        """Map (B, C, h, w), and a level of that shape, to (B, C, 2h, 2w)."""
        return _double(self.refine(x, skip))


class _SharedConv(nn.Module):
    """One 3x3 kernel for every map on its own: (B, K, h, w) to the same shape, in the dtype of the maps."""

    def __init__(self) -> None:
        super().__init__()
        self.depthwise = nn.Conv2d(1, 1, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        conv = self.depthwise
        bias = None if conv.bias is None else conv.bias.to(x.dtype)
        return F.conv2d(x.reshape(-1, 1, *x.shape[2:]), conv.weight.to(x.dtype), bias, padding=1).reshape(x.shape)


class HeadBlock(nn.Module):
    """A convolution that all labels share, repeated with the same weights.

    Args:
        bottleneck: Whether every pass adds the largest logit of the pixel (`arch_option` 1) or not ("depthwise", 2).
        depth: Passes; 0 counts as 1. The last has no activation.
        activation: A key of `ACTIVATIONS`.
    """

    def __init__(self, bottleneck: bool, depth: int, activation: str) -> None:
        super().__init__()
        self.depthwise = _SharedConv()
        self.bottleneck = bottleneck
        self.passes = max(depth, 1)  # the published loop runs depth - 1 times and once more
        self.activation = ACTIVATIONS[activation]

    def forward(self, x: Tensor) -> Tensor:
        """Map (B, K, h, w) logits to as many."""
        for i in range(self.passes):
            y = self.depthwise(x)
            if self.bottleneck:
                y = y + x.amax(1, keepdim=True)
            x = y if i == self.passes - 1 else self.activation(y)
        return x


class _Decoder(nn.Module):
    """DPT's decoder, from four levels to one map."""

    def __init__(self, variant: Variant) -> None:
        super().__init__()
        narrow = [nn.Conv2d(channels, FEATURES, 3, padding=1, bias=False) for channels in variant.channels]
        self.layer1_rn, self.layer2_rn, self.layer3_rn, self.layer4_rn = narrow
        self.refinenet1, self.refinenet2, self.refinenet3 = (_Fusion(FEATURES) for _ in range(3))
        self.refinenet4 = _Fusion(FEATURES, skip=False)
        self.head1 = nn.Conv2d(FEATURES, variant.text[3], 1)

    def path(self, levels: Sequence[Tensor]) -> Tensor:
        """Map levels at strides 4, 8, 16, 32 to (B, 256, H / 4, W / 4), which `head1` and then a doubling bring to the features."""
        path = self.refinenet4(self.layer4_rn(levels[3]))
        path = self.refinenet3(path, self.layer3_rn(levels[2]))
        path = self.refinenet2(path, self.layer2_rn(levels[1]))
        return self.refinenet1.refine(path, self.layer1_rn(levels[0]))

    def forward(self, levels: Sequence[Tensor]) -> Tensor:
        """Map levels at strides 4, 8, 16, 32 to (B, D, H / 2, W / 2), not normalised."""
        return _double(self.head1(self.path(levels)))  # in this order for the reason given at `_Fusion`


# ------------------------------------------------------------------------------------------------------------------ network


class LSeg(nn.Module):
    """Both towers of LSeg.

    Args:
        variant: Backbone and text tower.
    """

    def __init__(self, variant: Variant) -> None:
        super().__init__()
        self.clip_pretrained = CLIPText(*variant.text)
        self.pretrained = _Backbone(variant)
        self.scratch = _Decoder(variant)

    def forward_features(self, pixel_values: Tensor, positions: Tensor | None = None) -> Tensor:
        """Compute the feature map before normalisation.

        Args:
            pixel_values: (B, 3, H, W), RGB / 127.5 - 1, of the module's dtype; H and W multiples of 32.
            positions: (H / patch, W / patch, C) position embeddings; None to resize the model's own.

        Returns:
            (B, D, H / 2, W / 2) of the module's dtype.
        """
        if not torch.compiler.is_compiling() and any(side % MULTIPLE for side in pixel_values.shape[2:]):
            raise InvalidArgumentError(
                f"LSeg needs height and width to be multiples of {MULTIPLE}; got {tuple(pixel_values.shape[2:])}. Pad the image."
            )
        features: Tensor = self.scratch(self.pretrained(pixel_values, positions))
        return features

    def forward(self, pixel_values: Tensor, positions: Tensor | None = None) -> Tensor:
        """Compute the feature map.

        Args:
            pixel_values: (B, 3, H, W), RGB / 127.5 - 1, of the module's dtype; H and W multiples of 32.
            positions: (H / patch, W / patch, C) position embeddings; None to resize the model's own.

        Returns:
            (B, D, H / 2, W / 2) float32, L2-normalised over D. The outer cells lie on the outer pixels (align_corners).
        """
        return unit(self.forward_features(pixel_values, positions))

    def position_table(self, whole: bool = False) -> Positions:
        """Return the position embeddings; those of whole images are the same."""
        vit = self.pretrained.model
        patch = cast(nn.Conv2d, vit.patch_embed["proj"]).stride[0]
        return Positions(vit.pos_embed[0, 1:].view(vit.grid, vit.grid, -1), patch, Resize("bilinear"))

    def before_projection(self, pixel_values: Tensor, positions: Tensor | None = None) -> Tensor:
        """Map (B, 3, H, W) to (B, C, H / 4, W / 4): what `projection` and then `after_projection` make the features of."""
        return self.scratch.path(self.pretrained(pixel_values, positions))

    def projection(self) -> tuple[Tensor, Tensor | None]:
        """Return the last linear map, (D, C) and (D)."""
        return self.scratch.head1.weight[:, :, 0, 0], self.scratch.head1.bias

    def after_projection(self, x: Tensor) -> Tensor:
        """Map (B, any, H / 4, W / 4) to (B, any, H / 2, W / 2), linearly and each channel alone."""
        return _double(x)

    def encode_text(self, input_ids: Tensor) -> Tensor:
        """Map (N, 77) int64 token ids to (N, D) text embeddings, not normalised."""
        embeddings: Tensor = self.clip_pretrained(input_ids)
        return embeddings


class LSegWithHeadBlocks(LSeg):
    """LSeg whose logits go through a small convolution.

    Args:
        variant: Backbone and text tower.
        head_block: The convolution.
    """

    def __init__(self, variant: Variant, head_block: HeadBlock) -> None:
        super().__init__(variant)
        self.scratch.head_block = head_block

    def refine_logits(self, logits: Tensor) -> Tensor:
        """Apply the head blocks.

        Args:
            logits: (B, K, h, w) `LOGIT_SCALE` times the cosine, on the grid of the feature map, of all K labels: the bottleneck
                block compares them.

        Returns:
            (B, K, h, w) of the same dtype, to be enlarged to the image with align_corners and not scaled any more.
        """
        refined: Tensor = cast(HeadBlock, self.scratch.head_block)(logits)
        return refined


def check_options(options: Mapping[str, Any]) -> dict[str, Any]:
    """Check the options of a network and fill in the defaults of the published code.

    Args:
        options: "backbone" (a key of `VARIANTS`), "arch_option" (0, 1, 2), "block_depth" and "activation" (a key of `ACTIVATIONS`).

    Raises:
        InvalidArgumentError: If a name or value is unknown.
    """
    unknown = sorted(set(options) - set(_DEFAULTS))
    if unknown:
        raise InvalidArgumentError(f"LSeg has no option {unknown[0]!r}; it has {', '.join(_DEFAULTS)}.")
    full = {**_DEFAULTS, **options}
    for key, known in (("backbone", tuple(VARIANTS)), ("arch_option", (0, 1, 2)), ("activation", tuple(ACTIVATIONS))):
        if full[key] not in known or isinstance(full[key], bool):
            raise InvalidArgumentError(f"{key} of LSeg must be one of {', '.join(map(str, known))}; got {full[key]!r}.")
    depth = full["block_depth"]
    if isinstance(depth, bool) or not isinstance(depth, int) or depth < 0:
        raise InvalidArgumentError(f"block_depth of LSeg must be a whole number, 0 or more; got {depth!r}.")
    return full


def build(options: Mapping[str, Any], state: Mapping[str, Tensor] | None) -> LSeg:
    """Build the network.

    Args:
        options: See `check_options`.
        state: Published tensors, with or without "net." before their names; None for random ones. Tensors in `UNUSED` may be there.

    Raises:
        InvalidArgumentError: If an option is unknown.
        WeightsError: If tensors are missing, unknown, or of another shape.
    """
    full = check_options(options)

    def network() -> LSeg:
        variant, arch_option = VARIANTS[full["backbone"]], full["arch_option"]
        if arch_option == 0:
            return LSeg(variant)
        return LSegWithHeadBlocks(variant, HeadBlock(arch_option == 1, full["block_depth"], full["activation"]))

    if state is None:
        return network()
    with torch.device("meta"):  # the published tensors take the places of the network's, which need no memory then
        module = network()
    load_strict(module, {name.removeprefix(PREFIX): value for name, value in state.items()}, f"LSeg ({full['backbone']})", UNUSED)
    return module


def build_tokenizer(options: Mapping[str, Any], files: Mapping[str, Path]) -> Callable[[Sequence[str]], list[list[int]]]:
    """Return CLIP's tokenizer: N texts to N lists of 77 ids. It needs neither options nor files."""
    return build_clip_tokenizer()
