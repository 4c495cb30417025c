"""The losses of one image, by name and weight."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

import torch
import torch.nn.functional as F
from torch import Tensor

from ovseg.errors import InvalidArgumentError
from ovseg.learn import losses
from ovseg.learn.losses.affinity import LatticeAffinity, place_and_colour
from ovseg.learn.supervision import IGNORE

SUPERVISED = ("pce", "tags", "boxes")
"""Losses of what is known; each is on, with weight 1, where an image has such knowledge."""
REGULARISERS = ("crf", "potts", "entropy", "cluster", "graph", "keep")
"""Losses that need no labels; off unless a weight is given."""
LOSSES = (*SUPERVISED, *REGULARISERS)
_GRAPH_CELLS = 1024
"""Cells of the feature map that the graph joins at each step, drawn at random."""
_GRAPH_NEIGHBOURS = 8
_SCALE = 0.5
"""The regularisers look at the image at this part of the resolution of the labels, as published code does (rloss_scale)."""


@dataclass(frozen=True)
class Objective:
    """Which losses with which weights.

    Attributes:
        weights: Name of `LOSSES` -> weight; "pce", "tags" and "boxes" are 1 unless given, the others 0.
        sigma_xy: Distance of pixels that are near, for "crf" and "cluster" [px of the image as the network sees it].
        sigma_rgb: Difference of colours that is small, of 255, for "crf", "potts" and "cluster".
        pooling: How a tag looks at pixels; see `losses.pooled_logs`.
    """

    weights: Mapping[str, float] = field(default_factory=dict)
    sigma_xy: float = 8.0
    sigma_rgb: float = 10.0
    pooling: str = "rank"

    def __post_init__(self) -> None:
        """Check the names and the weights."""
        for name, weight in self.weights.items():
            if name not in LOSSES:
                raise InvalidArgumentError(f"There is no loss {name!r}. There are {', '.join(LOSSES)}.")
            if not 0 <= weight < float("inf"):
                raise InvalidArgumentError(f"The weight of {name!r} must be a number that is not negative; got {weight!r}.")
        if self.pooling not in losses.POOLINGS:
            raise InvalidArgumentError(f"pooling must be one of {', '.join(losses.POOLINGS)}; got {self.pooling!r}.")

    def weight(self, name: str) -> float:
        """Return the weight of a loss."""
        return self.weights.get(name, 1.0 if name in SUPERVISED else 0.0)

    @property
    def regularised(self) -> bool:
        """Whether any loss needs no labels."""
        return any(self.weight(name) > 0 for name in REGULARISERS)


@dataclass(frozen=True, eq=False)
class Seen:
    """One image as the losses see it.

    Attributes:
        colours: (1, 3, H, W) float32, range [0, 255], as the network sees it.
        labels: (1, H, W) int64, 255 where nothing is known.
        tags: (1, K) int64 or None.
        boxes: (n, 5) int64 [px of `colours`] or None.
    """

    colours: Tensor
    labels: Tensor
    tags: Tensor | None
    boxes: Tensor | None


def image_losses(
    objective: Objective, logits: Tensor, features: Tensor | None, seen: Seen, start: Tensor | None, regularised: bool, seed: int
) -> dict[str, Tensor]:
    """Compute the weighted losses of one image.

    Args:
        objective: Which losses.
        logits: (1, K, h, w) at the cells of the network.
        features: (1, D, h, w), L2-normalised; None where neither "graph" nor "keep" is on.
        seen: The image and what is known of it.
        start: (1, D, h, w) features before training, for "keep"; None where that is off.
        regularised: Whether the losses that need no labels are on yet.
        seed: Of the cells that "graph" joins.

    Returns:
        Name -> scalar, times its weight. A loss that does not apply is not there.
    """
    size = (seen.labels.shape[1], seen.labels.shape[2])
    found: dict[str, Tensor] = {}
    if (seen.labels != IGNORE).any() and objective.weight("pce") > 0:
        full = F.interpolate(logits, size, mode="bilinear", align_corners=False)
        found["pce"] = losses.partial_cross_entropy(full, seen.labels, IGNORE)
    cells = logits.softmax(1)
    if seen.tags is not None and objective.weight("tags") > 0:
        found["tags"] = losses.tag_loss(cells, seen.tags, objective.pooling)
    half = (max(1, round(size[0] * _SCALE)), max(1, round(size[1] * _SCALE)))
    needs_map = regularised and any(objective.weight(name) > 0 for name in ("crf", "potts", "cluster"))
    probabilities = None
    if needs_map or (seen.boxes is not None and objective.weight("boxes") > 0):
        probabilities = F.interpolate(logits, half, mode="bilinear", align_corners=False).softmax(1)
    if seen.boxes is not None and objective.weight("boxes") > 0 and probabilities is not None:
        found["boxes"] = losses.box_loss(probabilities, [_scaled(seen.boxes, size, half)])
    if regularised:
        found.update(_regularisers(objective, cells, features, probabilities, seen.colours, start, seed))
    return {name: objective.weight(name) * value for name, value in found.items()}


def _regularisers(
    objective: Objective,
    cells: Tensor,
    features: Tensor | None,
    probabilities: Tensor | None,
    colours: Tensor,
    start: Tensor | None,
    seed: int,
) -> dict[str, Tensor]:
    found: dict[str, Tensor] = {}
    if objective.weight("entropy") > 0:
        found["entropy"] = losses.entropy(cells)
    if probabilities is not None:
        small = F.interpolate(colours, probabilities.shape[-2:], mode="area")
        if objective.weight("crf") > 0 or objective.weight("cluster") > 0:
            sigma = objective.sigma_xy * small.shape[-1] / colours.shape[-1]
            affinity = [LatticeAffinity(place_and_colour(small[0], sigma, objective.sigma_rgb))]
            if objective.weight("crf") > 0:
                found["crf"] = losses.dense_crf(probabilities, affinity)
            if objective.weight("cluster") > 0:
                found["cluster"] = losses.normalized_cut(probabilities, affinity)
        if objective.weight("potts") > 0:
            found["potts"] = losses.pairwise(probabilities, small, sigma=objective.sigma_rgb)
    if objective.weight("graph") > 0 and features is not None:
        vectors, answers = features[0].flatten(1).T.detach(), cells[0].flatten(1).T
        order = torch.randperm(len(vectors), generator=torch.Generator().manual_seed(seed))[:_GRAPH_CELLS].to(vectors.device)
        edges, weights = losses.nearest_neighbours(vectors[order], min(_GRAPH_NEIGHBOURS, len(order) - 1))
        found["graph"] = losses.graph_smoothness(answers[order], edges, weights)
    if start is not None and features is not None:
        found["keep"] = 1 - (features * start).sum(1).mean()
    return found


def _scaled(boxes: Tensor, size: tuple[int, int], to: tuple[int, int]) -> Tensor:
    """Move boxes to another resolution; they grow to whole pixels."""
    down, across = to[0] / size[0], to[1] / size[1]
    factors = torch.tensor([down, across, down, across], dtype=torch.float64, device=boxes.device)
    corners = boxes[:, 1:] * factors
    limits = torch.tensor([to[0], to[1]], device=boxes.device)
    low = torch.minimum(corners[:, :2].floor().long(), limits - 1).clamp_min(0)
    high = torch.maximum(torch.minimum(corners[:, 2:].ceil().long(), limits), low + 1)
    return torch.cat([boxes[:, :1], low, high], 1)
