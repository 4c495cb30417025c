"""CLIPSeg: a small decoder over CLIP's image tower that draws one map for each prompt.

Lüddecke & Ecker, "Image Segmentation Using Text and Image Prompts", CVPR 2022. Three blocks of CLIP ViT-B/16 are tapped; a transformer
of three narrow blocks goes through them from the deepest, and the embedding of the prompt scales and shifts its first input (FiLM). What
does not depend on the prompt is the image state: the tapped activations, already reduced to the decoder's width. The networks are those
of transformers, so tensors carry the names of the published files; images may have any size in multiples of 16 here, not only 352 x 352.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from ovseg.errors import InvalidArgumentError, MissingDependencyError
from ovseg.models.base import load_strict, resize_positions
from ovseg.models.clip_text import build_clip_tokenizer

VARIANTS = {"rd16": (16, False), "rd64": (64, False), "rd64-refined": (64, True)}
"""Published checkpoint -> width of the decoder, and whether three convolutions draw the map in place of one."""
PATCH = 16
"""Height and width of the input are multiples of this [px]."""
CHUNK = 32
"""Prompts that go through the decoder together: about 0.2 GB at 352 x 352."""
_CONTEXT = 77
# Old files hold index buffers, which today's network computes.
_NOT_WEIGHTS = ("clip.text_model.embeddings.position_ids", "clip.vision_model.embeddings.position_ids")


class ClipSeg(nn.Module):
    """One look at the image, then a map for each prompt.

    Args:
        network: transformers' `CLIPSegForImageSegmentation`.
        chunk: Prompts that are decoded together.
    """

    def __init__(self, network: Any, chunk: int = CHUNK) -> None:
        super().__init__()
        self.network = network
        self.chunk = chunk

    def forward(self, pixel_values: Tensor) -> tuple[Tensor, Tensor]:
        """Look at one image.

        Args:
            pixel_values: (1, 3, H, W), normalised RGB; H and W multiples of 16.

        Returns:
            The reduced activations of the tapped blocks, deepest first: of the class token (L, 1, R), and of the patches
            (L, H / 16, W / 16, R).

        Raises:
            InvalidArgumentError: If there are several images, or their size is no multiple of 16.
        """
        batch, _, height, width = pixel_values.shape
        if batch != 1 or height % PATCH or width % PATCH:
            raise InvalidArgumentError(
                f"CLIPSeg takes one image, with height and width multiples of {PATCH}; got {tuple(pixel_values.shape)} pixel_values."
            )
        tower, decoder = self.network.clip.vision_model, self.network.decoder
        patches = tower.embeddings.patch_embedding(pixel_values)
        h, w = patches.shape[-2:]
        x = torch.cat([tower.embeddings.class_embedding.expand(1, 1, -1), patches.flatten(2).transpose(1, 2)], 1)
        x = tower.pre_layrnorm(x + self._positions(h, w))
        taps = []
        for i, block in enumerate(tower.encoder.layers[: max(self.network.extract_layers) + 1]):
            x = block(x, None)
            if i in self.network.extract_layers:
                taps.append(x)
        # `reduces[0]` belongs to the deepest tap.
        reduced = torch.cat([reduce(tap) for reduce, tap in zip(decoder.reduces, reversed(taps), strict=True)])
        return reduced[:, :1], reduced[:, 1:].reshape(len(taps), h, w, -1)

    def _positions(self, h: int, w: int) -> Tensor:
        table: Tensor = self.network.clip.vision_model.embeddings.position_embedding.weight
        side = int((len(table) - 1) ** 0.5)
        grid = resize_positions(table[1:].reshape(side, side, -1), (h, w))
        return torch.cat([table[:1], grid.flatten(0, 1)])

    def encode_text(self, input_ids: Tensor) -> Tensor:
        """Map (N, 77) int64 token ids to (N, 512) prompt embeddings, not normalised; what follows a text's end does not count."""
        clip = self.network.clip
        embeddings: Tensor = clip.text_projection(clip.text_model(input_ids).pooler_output)
        return embeddings

    def decode(self, state: tuple[Tensor, Tensor], input_ids: Tensor) -> Tensor:
        """Draw the maps of prompts.

        Args:
            state: What `forward` returned.
            input_ids: (N, 77) int64 token ids.

        Returns:
            (N, H, W) float32 logits; their sigmoid is the probability that a pixel belongs to the prompt.
        """
        return torch.cat([self._maps(state, self.encode_text(ids)).float() for ids in torch.split(input_ids, self.chunk)])

    def _maps(self, state: tuple[Tensor, Tensor], prompts: Tensor) -> Tensor:
        decoder, patches = self.network.decoder, state[1]
        activations = torch.cat([state[0], patches.flatten(1, 2)], 1)
        x = torch.zeros_like(activations[:1])
        for i, block in enumerate(decoder.layers):
            x = x + activations[i]
            if i == decoder.conditional_layer:
                x = decoder.film_mul(prompts)[:, None] * x + decoder.film_add(prompts)[:, None]
            x = block(x, None)
        grid = x[:, 1:].transpose(1, 2).reshape(len(x), -1, patches.shape[1], patches.shape[2])
        maps: Tensor = decoder.transposed_convolution(grid)
        return maps[:, 0]

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> ClipSeg:
        """Move or convert the network, and count its positions on the new device."""
        super()._apply(fn, recurse)  # type: ignore[no-untyped-call]
        return self.restore_positions()

    def restore_positions(self) -> ClipSeg:
        """Fill the buffers that no file holds."""
        for tower in (self.network.clip.text_model, self.network.clip.vision_model):
            table = tower.embeddings.position_embedding.weight
            tower.embeddings.position_ids = torch.arange(len(table), device=table.device)[None]
        return self


def assemble(config: Any, state: Mapping[str, Tensor] | None) -> ClipSeg:
    """Build the network of a transformers `CLIPSegConfig`, with weights or, for None, random ones."""
    from transformers import CLIPSegForImageSegmentation

    if state is None:
        return ClipSeg(CLIPSegForImageSegmentation(config))
    with torch.device("meta"):  # no time and memory for weights that are replaced at once
        network = CLIPSegForImageSegmentation(config)
    load_strict(network, state, "CLIPSeg", _NOT_WEIGHTS)
    return ClipSeg(network).restore_positions()


def build(options: Mapping[str, Any], state: Mapping[str, Tensor] | None) -> nn.Module:
    """Build a published CLIPSeg.

    Args:
        options: {"variant": "rd64-refined"}, one of `VARIANTS`.
        state: Tensors named as in the hub's CIDAS/clipseg-* files; None for random weights.

    Raises:
        InvalidArgumentError: If there is no such variant.
        WeightsError: If tensors are missing, unknown, or of another shape.
    """
    try:
        from transformers import CLIPSegConfig
    except ImportError as error:
        raise MissingDependencyError("CLIPSeg needs transformers: pip install 'ovseg[torch]'") from error
    variant = options.get("variant", "rd64-refined")
    if variant not in VARIANTS:
        raise InvalidArgumentError(f"variant must be one of {', '.join(VARIANTS)}; got {variant!r}.")
    width, refined = VARIANTS[variant]
    config = CLIPSegConfig(reduce_dim=width, use_complex_transposed_convolution=refined, vision_config={"patch_size": PATCH})
    return assemble(config, state)


def build_tokenizer(options: Mapping[str, Any], files: Mapping[str, Path]) -> Callable[[Sequence[str]], list[list[int]]]:
    """Build CLIP's tokenizer: 77 ids, start and end tokens included, zeros after the end; longer texts are cut."""
    return build_clip_tokenizer(_CONTEXT)
