"""C-RADIOv3, and RADSeg's way of reading it: dense features in the space of SigLIP 2.

RADIO (Ranzinger et al., CVPR 2024; Heinrich et al., CVPR 2025, arXiv:2412.07679) is a ViT that imitates several teachers at once. One
small MLP per teacher, the adaptor, maps its summary token into that teacher's space. RADSeg (Alama et al., arXiv:2511.19704) applies
the summary adaptor of SigLIP 2 to every patch, and mends the patches by two self-correlations. Notation: cos(X, X) are the cosines
of all pairs of tokens, P the output projection of the last block's attention, q, k, v its inputs of one head,
soft+(S) = softmax over the entries of a row that are not negative.

    SCRA    O = P(softmax(q k^T / sqrt(d)) v), split into heads again;   attention = P(soft+(10 cos(O, O)) v)
            in place of the last block's attention, all tokens; the rest of the block stays
    windows of 336 px every 224 px see the image apart; their patches are averaged where they overlap
    SCGA    F <- soft+(10 (cos(F, F) - mean cos(F, F))) F, over the patches of the whole image

The published code takes the mean of SCGA over the batch; here it is the image's own, so that a batch changes nothing. It also resizes
images to multiples of the stride, and small ones up to a window; here any multiple of 16 is read as it is.

Tensors have the names of the released torch.hub checkpoint: `base_model.*`, `input_conditioner.*`, `_heads.<adaptor>.*` and, if there
is one, `_feature_normalizer.*`; the text tower's are `text_model.*`, as in Hugging Face's SigLIP 2. The backbone may also be given as in
NVIDIA's safetensors (`radio_model.*`), which have no adaptors. The names of the v3 adaptors and their sizes come from public code
that reads these checkpoints, not from the files, so sizes are taken from the tensors and loading is strict.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from ovseg.errors import InvalidArgumentError, WeightsError
from ovseg.models.base import load_strict, unit
from ovseg.models.radio_vit import PATCH, VARIANTS, Backbone, Conditioner, Variant, correlate
from ovseg.models.siglip_text import TextConfig, TextTower, siglip_tokenizer
from ovseg.tiling import window_starts

READOUTS = ("radseg", "vanilla")
TEXT_TOWERS = {"siglip2": TextConfig(1152), "siglip2-g": TextConfig(1536)}
"""Adaptor -> text tower of its space: SigLIP 2 so400m (naflex) and giant-opt. They differ in the head only."""
_WINDOW, _WINDOW_STRIDE = 336, 224  # slide_crop and slide_stride of the published evaluation
_WINDOWS_AT_ONCE = 16  # bounds the memory of large images

_UNUSED = ("_feature_projections.", "_loss_states.", "_intermediate_feature_normalizer.", "adaloss", "lean_in_expected_losses",
           "weight_balance_mask", "base_model.reg_token", "summary_idxs", "vision_model.", "logit_scale", "logit_bias")  # fmt: skip


@dataclass(frozen=True)
class HeadConfig:
    """Sizes of an adaptor. The defaults are C-RADIOv4-H's, for random weights; published weights bring their own."""

    embed_dim: int
    hidden: int = 1520
    blocks: int = 2


class Adaptor(nn.Module):
    """RADIO's "MLP2": fc1; x + Linear(GELU(norm(x))) a few times; Linear(GELU(norm(x)))."""

    def __init__(self, width: int, config: HeadConfig) -> None:
        super().__init__()
        self.fc1 = nn.Linear(width, config.hidden)
        self.blocks = nn.ModuleList(_layer(config.hidden, config.hidden) for _ in range(config.blocks))
        self.final = _layer(config.hidden, config.embed_dim)

    def forward(self, x: Tensor) -> Tensor:
        """Map (..., C) to (..., D)."""
        x = self.fc1(x)
        for block in self.blocks:
            x = x + block(x)
        y: Tensor = self.final(x)
        return y


def _layer(inputs: int, outputs: int) -> nn.Sequential:
    return nn.Sequential(nn.LayerNorm(inputs), nn.GELU(), nn.Linear(inputs, outputs))


class Normalizer(nn.Module):
    """A fixed rotation of the patches that some RADIO checkpoints have: (x - mean) T^t."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.mean: Tensor
        self.tx: Tensor
        self.register_buffer("mean", torch.zeros(width))
        self.register_buffer("tx", torch.eye(width))

    def forward(self, x: Tensor) -> Tensor:
        """Map (B, N, C) to the same shape."""
        return (x - self.mean) @ self.tx.T


class Radio(nn.Module):
    """C-RADIO with an adaptor and the text tower of the adaptor's space.

    Args:
        variant: Sizes of the backbone.
        adaptor: Name of the adaptor.
        head: Sizes of the adaptor.
        text: Sizes of the text tower.
        readout: One of `READOUTS`: "radseg", or "vanilla" for the adaptor on the plain patches of the whole image.
        summary_token: Which of the first tokens is the adaptor's summary; None where that is unknown.
        normalizer: Whether the checkpoint has a feature normaliser.
    """

    def __init__(
        self,
        variant: Variant,
        adaptor: str,
        head: HeadConfig,
        text: TextConfig,
        readout: str = "radseg",
        summary_token: int | None = None,
        normalizer: bool = False,
    ) -> None:
        super().__init__()
        self.input_conditioner = Conditioner()
        self.base_model = Backbone(variant)
        self._heads = nn.ModuleDict({adaptor: Adaptor(variant.width, head)})
        self._feature_normalizer = Normalizer(variant.width) if normalizer else nn.Identity()
        self.text_model = TextTower(text)
        self.readout = readout
        self.summary_token = summary_token
        self.prefix = variant.prefix
        self.adaptor = adaptor

    def _patches(self, pixel_values: Tensor, recursive: bool) -> Tensor:
        """Map (B, 3, H, W) in [0, 1] to the backbone's patches, (B, h, w, C)."""
        tokens = self.base_model(self.input_conditioner(pixel_values), recursive)[:, self.prefix :]
        h, w = pixel_values.shape[-2] // PATCH, pixel_values.shape[-1] // PATCH
        patches: Tensor = self._feature_normalizer(tokens).reshape(len(pixel_values), h, w, -1)
        return patches

    def _windows(self, pixel_values: Tensor) -> Tensor:
        """Map (B, 3, H, W) in [0, 1] to the patches of windows, averaged where they overlap, (B, h, w, C)."""
        b, _, height, width = pixel_values.shape
        rows, columns = min(_WINDOW, height), min(_WINDOW, width)
        corners = [(y, x) for y in window_starts(height, rows, _WINDOW_STRIDE) for x in window_starts(width, columns, _WINDOW_STRIDE)]
        if len(corners) == 1:
            return self._patches(pixel_values, recursive=True)
        h, w = height // PATCH, width // PATCH
        total = pixel_values.new_zeros(b, h, w, self.base_model.patch_generator.variant.width)
        count = pixel_values.new_zeros(h, w, 1)
        for first in range(0, len(corners), _WINDOWS_AT_ONCE):
            part = corners[first : first + _WINDOWS_AT_ONCE]
            crops = torch.cat([pixel_values[:, :, y : y + rows, x : x + columns] for y, x in part])
            for (y, x), patches in zip(part, torch.split(self._patches(crops, recursive=True), b), strict=True):
                inside = (slice(y // PATCH, (y + rows) // PATCH), slice(x // PATCH, (x + columns) // PATCH))
                total[:, inside[0], inside[1]] += patches
                count[inside] += 1
        return total / count

    def forward(self, pixel_values: Tensor) -> Tensor:
        """Compute the feature map.

        Args:
            pixel_values: (B, 3, H, W) in [0, 1]; H and W multiples of 16.

        Returns:
            (B, D, H / 16, W / 16) float32, L2-normalised over the channels.
        """
        patches = self._windows(pixel_values) if self.readout == "radseg" else self._patches(pixel_values, recursive=False)
        b, h, w, _ = patches.shape
        tokens = patches.flatten(1, 2)
        if self.readout == "radseg":
            tokens = correlate(tokens, tokens, centre=True)
        features = self._heads[self.adaptor](tokens)
        return unit(features.transpose(1, 2).reshape(b, -1, h, w))

    @property
    def encode_global(self) -> Callable[[Tensor], Tensor] | None:
        """Maps (B, 3, H, W) in [0, 1] to the adaptor's summaries (B, D), not normalised; None where its token is unknown."""
        return None if self.summary_token is None else self._summary

    def _summary(self, pixel_values: Tensor) -> Tensor:
        tokens = self.base_model(self.input_conditioner(pixel_values), recursive=False)
        summary: Tensor = self._heads[self.adaptor](tokens[:, self.summary_token])
        return summary

    def encode_text(self, input_ids: Tensor) -> Tensor:
        """Map (N, 64) int64 token ids to (N, D), not normalised."""
        embeddings: Tensor = self.text_model(input_ids)
        return embeddings


def _choose(options: Mapping[str, Any], key: str, default: str, known: Sequence[str]) -> str:
    value = options.get(key, default)
    if value not in known:
        raise InvalidArgumentError(f"{key} must be one of {', '.join(known)}; got {value!r}.")
    return str(value)


def published_name(name: str) -> str:
    """Translate a tensor's name from NVIDIA's safetensors to torch.hub's; other names stay."""
    name = name.removeprefix("module.").removeprefix("radio_model.")
    name = "base_model." + name.removeprefix("model.") if name.startswith("model.") else name
    return name.replace(".grandma", ".gamma")  # so it is called there


def is_used(name: str, adaptor: str) -> bool:
    """Tell whether a tensor of a published file is part of the network with this adaptor."""
    return name.startswith(f"_heads.{adaptor}.") if name.startswith("_heads.") else not name.startswith(_UNUSED)


def head_config(state: Mapping[str, Tensor], adaptor: str) -> HeadConfig:
    """Read the sizes of an adaptor from its tensors."""
    prefix = f"_heads.{adaptor}."
    first, last = state.get(f"{prefix}fc1.weight"), state.get(f"{prefix}final.2.weight")
    if first is None or last is None:
        known = sorted({name.split(".")[1] for name in state if name.startswith("_heads.")})
        raise WeightsError(
            f"The weights have no adaptor {adaptor!r} ({prefix}fc1 and {prefix}final); they have {', '.join(known) or 'none'}. "
            "Convert the torch.hub checkpoint with ovseg.export.radio.convert_radio: NVIDIA's safetensors have no adaptors."
        )
    blocks = {name.removeprefix(f"{prefix}blocks.").split(".")[0] for name in state if name.startswith(f"{prefix}blocks.")}
    return HeadConfig(last.shape[0], first.shape[0], len(blocks))


def build(options: Mapping[str, Any], state: Mapping[str, Tensor] | None) -> Radio:
    """Build the model of a card.

    Args:
        options: "variant": one of `VARIANTS`; "adaptor": one of `TEXT_TOWERS`; "readout": one of `READOUTS`;
            "summary_token": place of the adaptor's summary among the first tokens, if known.
        state: Published tensors of image and text together, or None for random weights.

    Raises:
        InvalidArgumentError: If an option has an unknown value.
        WeightsError: If tensors are missing, unknown, or of another shape.
    """
    variant = _choose(options, "variant", "c-radio_v3-b", tuple(VARIANTS))
    adaptor = _choose(options, "adaptor", "siglip2", tuple(TEXT_TOWERS))
    readout = _choose(options, "readout", "radseg", READOUTS)
    text = TEXT_TOWERS[adaptor]
    summary = options.get("summary_token")
    if summary is not None and (not isinstance(summary, int) or not 0 <= summary < VARIANTS[variant].prefix):
        raise InvalidArgumentError(f"summary_token must be a whole number from 0 to {VARIANTS[variant].prefix - 1}; got {summary!r}.")
    if state is None:
        return Radio(VARIANTS[variant], adaptor, HeadConfig(text.embed_dim), text, readout, summary)
    return load(state, VARIANTS[variant], adaptor, text, readout, summary, f"{variant} with the adaptor {adaptor}")


def load(
    state: Mapping[str, Tensor], variant: Variant, adaptor: str, text: TextConfig, readout: str, summary_token: int | None, origin: str
) -> Radio:
    """Build a model of any size with published tensors; `origin` is for messages, the rest as in `Radio`."""
    named = {published_name(name): value for name, value in state.items()}
    given = {name: value for name, value in named.items() if is_used(name, adaptor)}
    head = head_config(named, adaptor)
    if head.embed_dim != text.embed_dim:
        raise WeightsError(
            f"The adaptor {adaptor!r} in these weights has {head.embed_dim} outputs, expected {text.embed_dim}: "
            "it belongs to another text tower. Give the checkpoint of this very model."
        )
    with torch.device("meta"):
        network = Radio(variant, adaptor, head, text, readout, summary_token, "_feature_normalizer.mean" in given)
    load_strict(network, given, origin)
    return network


def build_tokenizer(options: Mapping[str, Any], files: Mapping[str, Path]) -> Callable[[Sequence[str]], list[list[int]]]:
    """Return the tokenizer of SigLIP 2, from the file of the role "tokenizer"."""
    if "tokenizer" not in files:
        raise WeightsError("SigLIP 2's tokenizer.json is missing from the weights. Add it to the folder.")
    return siglip_tokenizer(files["tokenizer"])
