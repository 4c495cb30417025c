"""TIPSv2: a vision transformer and a text transformer whose patches and texts share one space without any projection.

Cao et al., "TIPSv2: Advancing Vision-Language Pretraining with Enhanced Patch-Text Alignment", CVPR 2026. The layers are those of
transformers (`Tipsv2VisionModel`, `Tipsv2TextModel`); the order in which they are called is written out here, because dense
features are read out in another way than the pooled ones:

    value     the last block passes on the values of its attention in place of their weighted sums, o = P(v); residual, layer
              scales and MLP stay. It is MaskCLIP's trick (Zhou et al., ECCV 2022) as Google's own evaluation uses it
              (github.com/google-deepmind/tips, pytorch/TIPS_zeroshot_segmentation.ipynb).
    vanilla   the last block as trained.

There are two global tokens: the first was trained with captions from the web, the second (stored as a register token) with synthetic
ones. Upstream classifies with the first.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ovseg.errors import InvalidArgumentError, InvalidLabelsError, MissingDependencyError, WeightsError
from ovseg.models.base import Positions, load_strict, unit
from ovseg.models.spm import read_byte_pairs
from ovseg.positions import Resize

PATCH = 14
"""Height and width of the input must be multiples of this, which is also the stride of the feature map [px]."""
CONTEXT = 64
"""Tokens that are read of a text."""
READOUTS = ("value", "vanilla")
_PREFIX = 2  # tokens before those of the patches: two global ones
_PAD = 0


@dataclass(frozen=True)
class Size:
    """Sizes of both towers.

    Attributes:
        width: Channels, which is also the size D of the shared space.
        layers: Blocks of the image tower.
        heads: Heads of every attention.
        hidden: Hidden channels of an MLP. A gated one has two thirds of them.
        text_layers: Blocks of the text tower.
        gated: Whether the MLPs of the image tower are SwiGLU.
        grid: Cells of a side of the table of position embeddings.
        vocabulary: Tokens of the text tower.
    """

    width: int
    layers: int
    heads: int
    hidden: int
    text_layers: int
    gated: bool = False
    grid: int = 32
    vocabulary: int = 32000


# Text towers: pytorch/run_text_encoder_inference.py of google-deepmind/tips. Image towers: the vit_*_patch14_reg1_tipsv2 of timm. The
# parameters add up to those that README.md there counts for the text towers (109.6, 183.9, 448.3 and 389.1 million).
VARIANTS: Mapping[str, Size] = {
    "b14": Size(width=768, layers=12, heads=12, hidden=3072, text_layers=12),
    "l14": Size(width=1024, layers=24, heads=16, hidden=4096, text_layers=12),
    "so400m14": Size(width=1152, layers=27, heads=16, hidden=4304, text_layers=27),
    "g14": Size(width=1536, layers=40, heads=24, hidden=6144, text_layers=12, gated=True),
}


class Tips(nn.Module):
    """Both towers of TIPSv2.

    Args:
        size: Sizes of the towers.
        readout: "value" or "vanilla".
    """

    def __init__(self, size: Size, readout: str = "value") -> None:
        super().__init__()
        try:
            from transformers import Tipsv2TextConfig, Tipsv2TextModel, Tipsv2VisionConfig, Tipsv2VisionModel
        except ImportError as error:
            raise MissingDependencyError(
                "TIPSv2 needs a version of transformers that has it: pip install -U 'ovseg[torch]'"
            ) from error
        vision = Tipsv2VisionConfig(
            hidden_size=size.width,
            num_hidden_layers=size.layers,
            num_attention_heads=size.heads,
            mlp_ratio=size.hidden / size.width,
            image_size=size.grid * PATCH,
            use_swiglu_ffn=size.gated,
        )
        text = Tipsv2TextConfig(
            vocab_size=size.vocabulary,
            hidden_size=size.width,
            intermediate_size=size.hidden,
            num_hidden_layers=size.text_layers,
            num_attention_heads=size.heads,
            max_position_embeddings=CONTEXT,
        )
        vision._attn_implementation = text._attn_implementation = "sdpa"  # takes the boolean mask of `encode_text`
        self.vision_model: Any = Tipsv2VisionModel(vision)
        self.text_model: Any = Tipsv2TextModel(text)
        self.size = size
        self.readout = readout

    def _embed(self, pixel_values: Tensor, positions: Tensor | None) -> Tensor:
        """Map (B, 3, H, W), and the (h, w, D) position embeddings if given, to tokens (B, 2 + h w, D)."""
        part = self.vision_model.embeddings
        cells = part.patch_embeddings.projection(pixel_values)  # (B, D, h, w)
        if positions is None:  # always resized: with the trained grid it changes nothing
            table = part.position_embeddings[:, 1:].unflatten(1, (self.size.grid, self.size.grid)).permute(0, 3, 1, 2)
            resized = F.interpolate(table.float(), cells.shape[-2:], mode="bilinear", antialias=True, align_corners=False)
            positions = resized[0].permute(1, 2, 0)
        patches = cells.flatten(2).mT + positions.to(cells.dtype).flatten(0, 1)
        batch = patches.shape[0]
        first = (part.cls_token + part.position_embeddings[:, :1]).expand(batch, -1, -1)
        return torch.cat([first, part.register_tokens.expand(batch, -1, -1), patches], 1)

    def _patches_by_value(self, x: Tensor) -> Tensor:
        """Map tokens before the last block, (B, 2 + h w, D), to patches behind it, (B, h w, D), every one seeing itself alone."""
        block = self.vision_model.encoder.layer[-1]
        x = x[:, _PREFIX:]
        x = x + block.layer_scale1(block.attention.o_proj(block.attention.v_proj(block.norm1(x))))
        y: Tensor = x + block.layer_scale2(block.mlp(block.norm2(x)))
        return y

    def position_table(self, whole: bool = False) -> Positions:
        """Return the position embeddings; those of whole images are resized alike."""
        table = self.vision_model.embeddings.position_embeddings[0, 1:].unflatten(0, (self.size.grid, self.size.grid))
        return Positions(table, PATCH, Resize("bilinear", antialias=True))

    def forward(self, pixel_values: Tensor, positions: Tensor | None = None) -> Tensor:
        """Compute the feature map.

        Args:
            pixel_values: (B, 3, H, W) in the module's dtype, RGB in [0, 1]; H and W multiples of 14.
            positions: (H / 14, W / 14, D) position embeddings; None to resize the model's own.

        Returns:
            (B, D, H / 14, W / 14) float32, L2-normalised over the channels.
        """
        *blocks, last = self.vision_model.encoder.layer
        x = self._embed(pixel_values, positions)
        for block in blocks:
            x = block(x)
        x = self._patches_by_value(x) if self.readout == "value" else last(x)[:, _PREFIX:]
        x = self.vision_model.layernorm(x).mT  # (B, D, h w)
        return unit(x.unflatten(2, (pixel_values.shape[2] // PATCH, pixel_values.shape[3] // PATCH)))

    def encode_global(self, pixel_values: Tensor, positions: Tensor | None = None) -> Tensor:
        """Embed whole images: the first global token of the network as trained.

        Args:
            pixel_values: (B, 3, H, W) in the module's dtype, RGB in [0, 1]; H and W multiples of 14.
            positions: (H / 14, W / 14, D) position embeddings; None to resize the model's own.

        Returns:
            (B, D), not normalised.
        """
        x = self._embed(pixel_values, positions)
        for block in self.vision_model.encoder.layer:
            x = block(x)
        y: Tensor = self.vision_model.layernorm(x[:, 0])
        return y

    def encode_text(self, input_ids: Tensor) -> Tensor:
        """Embed texts: the mean of the tokens that are no padding.

        Args:
            input_ids: (N, T) int64, T <= 64; 0 is padding, which no token sees.

        Returns:
            (N, D), not normalised.
        """
        seen = input_ids != _PAD  # (N, T)
        x = self.text_model.embeddings(input_ids)
        for block in self.text_model.encoder.layers:
            x = block(x, seen[:, None, None])
        x = self.text_model.final_layer_norm(x)
        weights = seen.to(x.dtype)[..., None]
        y: Tensor = (x * weights).sum(1) / weights.sum(1)
        return y


# Published name -> name in transformers, in this order. Google's files keep the names of github.com/google-deepmind/tips.
_RENAMED = {
    "vision_encoder": (
        (r"^patch_embed\.proj\.", "embeddings.patch_embeddings.projection."),
        (r"^(cls_token|mask_token|register_tokens)$", r"embeddings.\1"),
        (r"^pos_embed$", "embeddings.position_embeddings"),
        (r"^norm\.", "layernorm."),
        (r"^blocks\.", "encoder.layer."),
        (r"\.attn\.proj\.", ".attention.o_proj."),
        (r"\.ls([12])\.gamma$", r".layer_scale\1.lambda1"),
        (r"\.mlp\.c_fc\.", ".mlp.fc1."),
        (r"\.mlp\.c_proj\.", ".mlp.fc2."),
        (r"\.mlp\.w3\.", ".mlp.down_proj."),
    ),
    "text_encoder": (
        (r"^token_embedding\.", "embeddings.token_embedding."),
        (r"^ln_final\.", "final_layer_norm."),
        (r"^transformer\.resblocks\.", "encoder.layers."),
        (r"\.ln_([12])\.", r".layer_norm\1."),
        (r"\.attn\.out_proj\.", ".self_attn.out_proj."),
        (r"\.mlp\.c_fc\.", ".mlp.fc1."),
        (r"\.mlp\.c_proj\.", ".mlp.fc2."),
    ),
}
_PROJECTIONS = ("q_proj", "k_proj", "v_proj")
# Tensors that hold several matrices one above the other: published name -> parts.
_STACKED = (
    (re.compile(r"\.attn\.qkv\.(weight|bias)$"), ".attention.", _PROJECTIONS),
    (re.compile(r"\.attn\.in_proj_(weight|bias)$"), ".self_attn.", _PROJECTIONS),
    (re.compile(r"\.mlp\.w12\.(weight|bias)$"), ".mlp.", ("gate_proj", "up_proj")),
)


def _converted(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Bring published tensors to transformers' names: Google's layout is translated, transformers' own is left as it is."""
    converted: dict[str, Tensor] = {}
    for name, tensor in state.items():
        tower, _, rest = name.partition(".")
        if tower not in _RENAMED:
            converted[name] = tensor
            continue
        for pattern, replacement in _RENAMED[tower]:
            rest = re.sub(pattern, replacement, rest)
        prefix = tower.replace("encoder", "model")
        for stack, place, parts in _STACKED:
            found = stack.search(rest)
            if found and tensor.shape[0] % len(parts) == 0:
                stem = f"{prefix}.{rest[: found.start()]}{place}"
                converted |= {f"{stem}{part}.{found[1]}": t for part, t in zip(parts, tensor.chunk(len(parts)), strict=True)}
                break
        else:
            converted[f"{prefix}.{rest}"] = tensor
    return converted


def assemble(size: Size, readout: str, state: Mapping[str, Tensor] | None) -> Tips:
    """Make the network and give it its weights.

    Args:
        size: Sizes of the towers.
        readout: "value" or "vanilla".
        state: Tensors named as in Google's files (vision_encoder.*, text_encoder.*) or as in transformers (vision_model.*, text_model.*);
            None for random weights.

    Raises:
        WeightsError: If tensors are missing, unknown or of another shape.
    """
    if state is None:
        return Tips(size, readout)
    with torch.device("meta"):  # random numbers for a billion parameters take a minute and would be overwritten
        module = Tips(size, readout)
    # The temperature is a constant of the card; only some files hold it.
    load_strict(module, _converted(state), "this TIPSv2", ignore=("temperature",))
    part = module.text_model.embeddings  # its buffers are no part of a file
    part.position_embedding.weights = part.position_embedding.get_embedding(CONTEXT, size.width)
    part.position_ids = torch.arange(CONTEXT)[None]
    return module


def build(options: Mapping[str, Any], state: Mapping[str, Tensor] | None) -> nn.Module:
    """Build a TIPSv2.

    Args:
        options: "variant": one of `VARIANTS`; "readout": one of `READOUTS`, "value" if not given.
        state: See `assemble`.

    Raises:
        InvalidArgumentError: If an option has no such value.
        WeightsError: If tensors are missing, unknown or of another shape.
    """
    variant, readout = str(options.get("variant")), options.get("readout", READOUTS[0])
    if variant not in VARIANTS:
        raise InvalidArgumentError(f"variant of TIPSv2 must be one of {', '.join(VARIANTS)}; got {variant!r}.")
    if readout not in READOUTS:
        raise InvalidArgumentError(f"readout of TIPSv2 must be one of {', '.join(READOUTS)}; got {readout!r}.")
    return assemble(VARIANTS[variant], readout, state)


def build_tokenizer(options: Mapping[str, Any], files: Mapping[str, Path]) -> Callable[[Sequence[str]], list[list[int]]]:
    """Make the tokenizer: lower case, SentencePiece, no marks of start or end, at most 64 tokens.

    Args:
        options: Not needed.
        files: "tokenizer": SentencePiece's tokenizer.model, as published, or a tokenizer.json.

    Returns:
        A function from N texts to N lists of ids, not padded; 0 is the id to pad with.

    Raises:
        WeightsError: If the file is no tokenizer.
    """
    path = files["tokenizer"]
    data = path.read_bytes()
    if data.lstrip()[:1] == b"{":
        from tokenizers import Tokenizer

        try:
            tokenizer = Tokenizer.from_buffer(data)
        except Exception as error:  # the package raises nothing narrower
            raise WeightsError(f"{path} is no tokenizer ({error}). Download it again.") from error
        tokenizer.no_padding()
        tokenizer.no_truncation()
    else:
        tokenizer = read_byte_pairs(data, str(path))

    def tokenize(texts: Sequence[str]) -> list[list[int]]:
        rows = []
        for text in texts:
            ids: list[int] = tokenizer.encode(text.lower(), add_special_tokens=False).ids[:CONTEXT]
            if not ids:
                raise InvalidLabelsError(f"The text {text!r} has no word that the model could read. Give a name.")
            rows.append(ids)
        return rows

    return tokenize
