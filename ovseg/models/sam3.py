"""SAM 3: a detector that finds, for each prompt, every instance of it, its whole region, and whether it is there at all.

Carion et al., "SAM 3: Segment Anything with Concepts", 2025. The image tower runs once; for each prompt a DETR encoder and decoder, a mask
head and a presence head run on its pyramid. The three outputs of a prompt become one map as in Li et al., "SegEarth-OV3: Exploring SAM 3
for Open-Vocabulary Semantic Segmentation in Remote Sensing Images", 2025 (arXiv:2512.08730):

    score_i = sigmoid(logit_i) p        confidence of instance i; p is the sigmoid of the presence logit
    map     = max(max_i sigmoid(mask_i) score_i, sigmoid(semantic)) p        over the instances with score_i > confidence

The maps are made at the resolution of the masks, a 3.5th of the input's; the authors resize masks before they are joined. The networks are
those of transformers, so tensors carry the names of the published file. Boxes, points and video are left out.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from ovseg.errors import InvalidArgumentError, MissingDependencyError
from ovseg.models.base import load_strict
from ovseg.models.clip_text import build_clip_tokenizer

CONFIDENCE = 0.1
"""Instances of at most this score are left out; the setting of the authors' demo."""
CHUNK = 4
"""Prompts that go through the detector together: about 1.1 GB in float32."""
_CONTEXT = 32
_END = 49407
_DETECTOR = "detector_model."
_TRACKER = ("tracker_model.", "tracker_neck.")

State = tuple[Tensor, Tensor, Tensor, Tensor]


class Sam3(nn.Module):
    """One look at the image, then a map for each prompt.

    Args:
        network: transformers' `Sam3Model`.
        confidence: Instances of at most this score are left out, in [0, 1].
        chunk: Prompts that are decoded together.
    """

    def __init__(self, network: Any, confidence: float = CONFIDENCE, chunk: int = CHUNK) -> None:
        super().__init__()
        self.network = network
        self.confidence = confidence
        self.chunk = chunk

    def forward(self, pixel_values: Tensor) -> State:
        """Look at one image.

        Args:
            pixel_values: (1, 3, S, S), RGB / 127.5 - 1; S is 1008, and cells are 14 pixels.

        Returns:
            The pyramid with 4, 2 and 1 cells a patch, (1, 256, 288, 288) to (1, 256, 72, 72), and the position encoding of its coarsest
            level, (1, 256, 72, 72).

        Raises:
            InvalidArgumentError: If there are several images, or they have another size.
        """
        side = self.network.config.vision_config.backbone_config.image_size
        if pixel_values.shape[0] != 1 or tuple(pixel_values.shape[-2:]) != (side, side):
            raise InvalidArgumentError(
                f"SAM 3 takes one image of {side} x {side} pixels; got {tuple(pixel_values.shape)} pixel_values. Give it no size."
            )
        vision = self.network.get_vision_features(pixel_values)
        fine, middle, coarse = vision.fpn_hidden_states[:-1]  # the detector does not use the last level
        return fine, middle, coarse, vision.fpn_position_encoding[-2]

    def encode_text(self, input_ids: Tensor) -> tuple[Tensor, Tensor]:
        """Encode prompts: (N, 32) int64 token ids to a vector for each token (N, 32, 256), and which of them count (N, 32) bool."""
        ends = (input_ids == _END).long().cumsum(1)
        mask = (ends == 0) | ((ends == 1) & (input_ids == _END))  # up to the first end token, whatever the padding is
        tokens: Tensor = self.network.get_text_features(input_ids, attention_mask=mask.long()).pooler_output
        return tokens, mask

    def decode(self, state: State, input_ids: Tensor) -> Tensor:
        """Draw the maps of prompts.

        Args:
            state: What `forward` returned.
            input_ids: (N, 32) int64 token ids.

        Returns:
            (N, 288, 288) float32 scores in [0, 1], near 0 everywhere where the prompt is not in the image.
        """
        return torch.cat([self._maps(state, *self.encode_text(ids)) for ids in torch.split(input_ids, self.chunk)])

    def _maps(self, state: State, tokens: Tensor, mask: Tensor) -> Tensor:
        net, (fine, middle, coarse, positions) = self.network, state
        prompts = len(tokens)
        encoded = net.detr_encoder(
            vision_features=[coarse.expand(prompts, -1, -1, -1)],
            text_features=tokens,
            vision_pos_embeds=[positions.expand(prompts, -1, -1, -1)],
            text_mask=mask,
        )
        decoded = net.detr_decoder(
            vision_features=encoded.last_hidden_state,
            text_features=tokens,
            vision_pos_encoding=encoded.pos_embeds_flattened,
            text_mask=mask,
            spatial_shapes=encoded.spatial_shapes,
        )
        queries = decoded.intermediate_hidden_states[-1:]
        logits = net.dot_product_scoring(decoder_hidden_states=queries, text_features=tokens, text_mask=mask)[0, :, :, 0]
        masks = net.mask_decoder(
            decoder_queries=queries[0],
            backbone_features=[fine, middle, coarse],  # one image for all prompts: broadcast, never repeated
            encoder_hidden_states=encoded.last_hidden_state,
            prompt_features=tokens,
            prompt_mask=mask,
        )
        presence = decoded.presence_logits[-1].float().sigmoid()
        scores = logits.float().sigmoid() * presence
        scores = torch.where(scores > self.confidence, scores, 0)
        # One prompt at a time: its 200 masks in float32 are 66 MB.
        instances = torch.stack([(m.float().sigmoid() * s[:, None, None]).amax(0) for m, s in zip(masks.pred_masks, scores, strict=True)])
        regions: Tensor = masks.semantic_seg[:, 0].float().sigmoid()
        maps: Tensor = torch.maximum(instances, regions) * presence[:, :, None]
        return maps

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Sam3:
        """Move or convert the network; its positions are made anew, because in half precision neighbours would fall together."""
        super()._apply(fn, recurse)  # type: ignore[no-untyped-call]
        return self.restore_positions()

    def restore_positions(self) -> Sam3:
        """Fill the buffers that no file holds: indices of tokens, places and frequencies of the rotary embedding."""
        embeddings = self.network.text_encoder.text_model.embeddings
        table = embeddings.position_embedding.weight
        with torch.device(table.device):
            embeddings.position_ids = torch.arange(len(table))[None]
            for layer in self.network.vision_encoder.backbone.layers:
                layer.position_ids = layer.precompute_positions(layer.config, layer.window_size)
                frequencies, _ = layer.rotary_emb.compute_axial_rope_parameters(layer.config)
                layer.rotary_emb.inv_freq = frequencies
                layer.rotary_emb.original_inv_freq = frequencies.clone()
        return self


def detector_tensors(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Take the detector's tensors out of the published file, which also holds the tracker's; others stay, for a message to name."""
    kept = {name: value for name, value in state.items() if not name.startswith(_TRACKER)}
    return {name.removeprefix(_DETECTOR): value for name, value in kept.items()}


def assemble(config: Any, state: Mapping[str, Tensor] | None, confidence: float = CONFIDENCE) -> Sam3:
    """Build the network of a transformers `Sam3Config`, with weights or, for None, random ones."""
    from transformers import Sam3Model

    if state is None:
        return Sam3(Sam3Model(config), confidence)
    with torch.device("meta"):  # no time and memory for weights that are replaced at once
        network = Sam3Model(config)
    load_strict(network, detector_tensors(state), "SAM 3")
    return Sam3(network, confidence).restore_positions()


def build(options: Mapping[str, Any], state: Mapping[str, Tensor] | None) -> nn.Module:
    """Build SAM 3's detector.

    Args:
        options: {"confidence": 0.1}: instances of at most this score are left out.
        state: Tensors named as in model.safetensors of the hub's facebook/sam3; None for random weights.

    Raises:
        InvalidArgumentError: If the confidence is not in [0, 1].
        WeightsError: If tensors are missing, unknown, or of another shape.
    """
    try:
        from transformers import Sam3Config
    except ImportError as error:
        raise MissingDependencyError("SAM 3 needs transformers: pip install 'ovseg[torch]'") from error
    confidence = options.get("confidence", CONFIDENCE)
    if not isinstance(confidence, (int, float)) or not 0 <= confidence <= 1:
        raise InvalidArgumentError(f"confidence must be a number in [0, 1]; got {confidence!r}.")
    return assemble(Sam3Config(), state, confidence)


def build_tokenizer(options: Mapping[str, Any], files: Mapping[str, Path]) -> Callable[[Sequence[str]], list[list[int]]]:
    """Build CLIP's tokenizer: 32 ids, start and end tokens included, zeros after the end; longer texts are cut."""
    return build_clip_tokenizer(_CONTEXT)
