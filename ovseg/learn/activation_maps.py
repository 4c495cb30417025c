"""Where a label is in an image, by what classifies it: class activation maps, gradient maps, and seeds made of them.

A class activation map needs features that are averaged and then classified by a linear layer: the layer can as well be applied to each
cell before the mean is taken. In a two-tower model the text embedding is that layer. A gradient map needs nothing but a derivative.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from ovseg.errors import InvalidArgumentError
from ovseg.features import ImageFeatures
from ovseg.segmenter import Images, Segmenter
from ovseg.vocabulary import Labels, Templates

SEED_LEVEL = 0.2
"""Cells of at least this part of the largest value of a map are seeds (Kolesnikov and Lampert, ECCV 2016)."""
IGNORE = 255

Floats = NDArray[np.float32]


def class_activation_map(features: Tensor, weights: Tensor, bias: Tensor | None = None) -> Tensor:
    """Class activation maps of a network that averages its features and classifies them by a linear layer.

    M_c(x, y) = sum_k w_ck f_k(x, y) + b_c; its mean over the cells is the logit of class c.
    Source: Zhou et al., "Learning Deep Features for Discriminative Localization", CVPR 2016.

    Args:
        features: (B, C, h, w) before the mean.
        weights: (K, C) of the linear layer.
        bias: (K,) of the linear layer, or None.

    Returns:
        (B, K, h, w).
    """
    maps = torch.einsum("bchw,kc->bkhw", features, weights)
    return maps if bias is None else maps + bias[:, None, None]


def text_activation_map(segmenter: Segmenter, image: Images, labels: Labels, *, templates: Templates = None) -> Floats:
    """Class activation maps of a two-tower model, for any labels.

    With f the dense features and t a label's embedding, the model's answer for the whole image is s <t, m> / |m|, where m is the mean of f
    and s the logit scale. So the map is s <t, f(x, y)> / |m|, and its mean is that logit.

    Args:
        segmenter: A model with features.
        image: An image, or its features.
        labels: As for `Segmenter.segment`; the embeddings of synonyms are averaged.
        templates: As for `Segmenter.segment`.

    Returns:
        (K, h, w) float32, over the cells that the image covers.

    Raises:
        UnsupportedOperationError: If the model answers label by label.
    """
    features = image if isinstance(image, ImageFeatures) else segmenter.encode_image(image)
    rows, columns = (max(1, round(cells)) for cells in features.extent)
    cells = features.embedding[:, :rows, :columns]
    text = segmenter.encode_text(labels, templates=templates)
    length = max(float(np.linalg.norm(cells.mean((1, 2)))), 1e-12)
    maps: Floats = (text @ cells.reshape(len(cells), -1)).reshape(-1, rows, columns) * np.float32(segmenter.card.logit_scale / length)
    return maps


def gradient_map(
    network: nn.Module, layer: nn.Module, pixel_values: Tensor, score: Callable[[Any], Tensor], grid: tuple[int, int] | None = None
) -> Tensor:
    """Grad-CAM: which cells of a layer speak for a score, ReLU(sum_k a_k A_k) with a_k the mean gradient of the score to channel k.

    After global average pooling and a linear layer it is ReLU of the class activation map (without bias), divided by the number of cells.
    Source: Selvaraju et al., "Grad-CAM", ICCV 2017.

    Args:
        network: Any network; its parameters need no gradients, and none are left behind.
        layer: One of its modules, whose output is (B, C, h, w), or tokens (B, N, C) with the class token, if there is one, first.
        pixel_values: (B, 3, H, W).
        score: Maps what the network returns to (B,), or to a number if B is 1: the logit of a class, the similarity to a text, ...
        grid: (h, w) of tokens; None if they are square.

    Returns:
        (B, h, w), not negative.

    Raises:
        InvalidArgumentError: If the layer takes no part, or its output has another shape.
    """
    kept: list[Tensor] = []

    def keep(module: nn.Module, inputs: Any, output: Any) -> Any:
        if not isinstance(output, Tensor):
            raise InvalidArgumentError(f"The layer must return one tensor; got {type(output).__name__}. Choose a module inside it.")
        kept.append(output if output.requires_grad else output.detach().requires_grad_())
        return kept[-1]

    handle = layer.register_forward_hook(keep)
    try:
        with torch.enable_grad():
            total = score(network(pixel_values)).sum()
    finally:
        handle.remove()
    if not kept:
        raise InvalidArgumentError("The layer took no part in the network's answer. Choose one of its own modules.")
    if not total.requires_grad:
        raise InvalidArgumentError("The score does not depend on the layer. Compute it from what the network returns.")
    (gradient,) = torch.autograd.grad(total, kept[-1], allow_unused=True)
    if gradient is None:
        raise InvalidArgumentError("The score does not depend on the layer. Choose a layer before it.")
    values, slope = (_as_map(part, grid) for part in (kept[-1].detach(), gradient))
    return (values * slope.mean((2, 3), keepdim=True)).sum(1).relu()


def _as_map(values: Tensor, grid: tuple[int, int] | None) -> Tensor:
    """Bring a layer's output to (B, C, h, w)."""
    if values.ndim == 4:
        return values
    if values.ndim != 3:
        raise InvalidArgumentError(f"The layer must return (B, C, h, w) or tokens (B, N, C); got {tuple(values.shape)}.")
    count = values.shape[1]
    side = int(count**0.5)
    h, w = grid if grid is not None else (side, side)
    if count not in (h * w, h * w + 1):
        raise InvalidArgumentError(f"{count} tokens are no grid of {h} x {w} cells. Give grid=(h, w).")
    return values[:, count - h * w :].transpose(1, 2).reshape(len(values), -1, h, w)


def text_gradient_map(
    segmenter: Segmenter, network: nn.Module, layer: nn.Module, pixel_values: Tensor, labels: Labels, grid: tuple[int, int] | None = None
) -> Floats:
    """Grad-CAM of a two-tower model for any labels: the score is the cosine of the mean feature and the label's embedding.

    Args:
        segmenter: Gives the text embeddings.
        network: Its torch module, as `ovseg.learn.trainable.Trainable` has it.
        layer: See `gradient_map`.
        pixel_values: (1, 3, H, W), as the network sees the image.
        labels: As for `Segmenter.segment`.
        grid: See `gradient_map`.

    Returns:
        (K, h, w) float32, not negative.
    """
    text = torch.from_numpy(segmenter.encode_text(labels)).to(pixel_values.device)

    def similarity(features: Tensor, vector: Tensor) -> Tensor:
        return nn.functional.cosine_similarity(features.float().mean((2, 3)), vector[None], dim=1)

    maps = [gradient_map(network, layer, pixel_values, lambda f, t=one: similarity(f, t), grid)[0] for one in text]  # type: ignore[misc]
    stacked: Floats = torch.stack(maps).float().cpu().numpy()
    return stacked


def seeds_of_maps(
    maps: NDArray[np.floating[Any]], tags: Sequence[bool] | NDArray[np.bool_], level: float = SEED_LEVEL
) -> NDArray[np.uint8]:
    """Choose the pixels that activation maps are sure about.

    A label that is tagged claims the cells whose value is at least `level` times its largest. Where several claim a cell, the label with
    the fewest claims gets it, for large things can spare what small ones cannot.
    Source: Kolesnikov and Lampert, "Seed, Expand and Constrain", ECCV 2016.

    Args:
        maps: (K, h, w); values below 0 claim nothing.
        tags: (K,) whether the label is in the image.
        level: Part of the largest value, in (0, 1].

    Returns:
        (h, w) uint8 label indices, 255 where nobody claims or no label is tagged.
    """
    tagged = np.asarray(tags, bool)
    if maps.ndim != 3 or tagged.shape != (len(maps),) or len(maps) > IGNORE:
        raise InvalidArgumentError(f"maps must be (K, h, w) and tags (K,) with K at most {IGNORE}; got {maps.shape} and {tagged.shape}.")
    if not 0 < level <= 1:
        raise InvalidArgumentError(f"level must be in (0, 1]; got {level!r}.")
    largest = maps.max((1, 2), keepdims=True)
    claims = (maps >= level * largest) & (maps > 0) & tagged[:, None, None]
    seeds = np.full(maps.shape[1:], IGNORE, np.uint8)
    for label in np.argsort(-claims.sum((1, 2)), kind="stable"):  # the smallest claim is written last
        seeds[claims[label]] = label
    return seeds
