"""The pairwise term of a grid: neighbours that look alike should be labelled alike."""

from __future__ import annotations

import torch
from torch import Tensor

from ovseg.learn.losses.checks import check_beside, check_choice, check_map, check_mask, check_positive

_NEAR = ((0, 1), (1, 0))
_DIAGONAL = ((1, 1), (1, -1))
_KNIGHT = ((1, 2), (2, 1), (1, -2), (2, -1))
NEIGHBOURHOODS = {4: _NEAR, 8: _NEAR + _DIAGONAL, 16: _NEAR + _DIAGONAL + _KNIGHT}
"""Number of neighbours -> steps (down, right) to half of them; the others are the way back, so each pair comes once."""
RELAXATIONS = ("quadratic", "bilinear")


def shifted(values: Tensor, step: tuple[int, int]) -> tuple[Tensor, Tensor]:
    """Cut a map so that each pixel of the first part has its neighbour at the same place of the second.

    Args:
        values: (..., H, W).
        step: (down, right) to the neighbour; down is not negative.

    Returns:
        Two views (..., H - down, W - |right|).
    """
    down, right = step
    height, width = values.shape[-2:]
    rows = max(height - down, 0)
    columns = max(width - abs(right), 0)
    left, start = max(right, 0), max(-right, 0)
    return values[..., :rows, start : start + columns], values[..., down : down + rows, left : left + columns]


def contrast_weights(image: Tensor, step: tuple[int, int], sigma: float) -> Tensor:
    """Weights of the pairs of a step: w_pq = exp(-|I_p - I_q|^2 / (2 sigma^2)).

    Source: Boykov and Jolly, "Interactive Graph Cuts", ICCV 2001.

    Args:
        image: (B, C, H, W) colours, of any range.
        step: (down, right) to the neighbour.
        sigma: Difference of colours that is small, in the unit of `image`.

    Returns:
        (B, H - down, W - |right|) in [0, 1].
    """
    here, there = shifted(image, step)
    return torch.exp(-(here - there).square().sum(1) / (2 * sigma * sigma))


def pairwise(
    probabilities: Tensor,
    image: Tensor,
    *,
    relaxation: str = "quadratic",
    neighbourhood: int = 8,
    sigma: float = 15.0,
    mask: Tensor | None = None,
    reduction: str = "mean",
) -> Tensor:
    """Pairwise term over the neighbours of a grid, with contrast weights; N holds each pair {p, q} once.

    "quadratic" is sum_{pq in N} w_pq |s_p - s_q|^2, convex in s. "bilinear" is the Potts model's relaxation S'W(1 - S), that is
    sum_{pq in N} w_pq (s_p (1 - s_q) + s_q (1 - s_p)). Both are 2 sum w_pq [s_p != s_q] where s is one-hot.
    Source: Tang et al., "On Regularized Losses for Weakly-supervised CNN Segmentation", ECCV 2018, section 2.

    Args:
        probabilities: (B, K, H, W), over K summing to 1.
        image: (B, C, H, W) colours; gradients do not flow into it.
        relaxation: "quadratic" or "bilinear".
        neighbourhood: 4, 8 or 16 neighbours.
        sigma: Difference of colours that is small, in the unit of `image`: 15 of 255.
        mask: (B, H, W) bool; pairs with a pixel outside it do not count. None for all.
        reduction: "mean" divides by the number of pixels (of the mask), "sum" does not.

    Returns:
        Scalar, not negative.
    """
    probabilities = check_map(probabilities, "probabilities")
    batch, _, height, width = probabilities.shape
    check_beside(image, (batch, -1, height, width), "image")
    check_choice(relaxation, RELAXATIONS, "relaxation")
    check_choice(reduction, ("mean", "sum"), "reduction")
    check_choice(str(neighbourhood), tuple(map(str, NEIGHBOURHOODS)), "neighbourhood")
    check_positive(sigma, "sigma")
    if mask is not None:
        check_mask(mask, (batch, height, width))
    total = probabilities.sum() * 0
    for step in NEIGHBOURHOODS[neighbourhood]:
        weights = contrast_weights(image.detach().to(probabilities.dtype), step, sigma)
        if mask is not None:
            inside, beside = shifted(mask, step)
            weights = weights * (inside & beside)
        here, there = shifted(probabilities, step)
        if relaxation == "quadratic":
            cost = (here - there).square().sum(1)
        else:
            cost = (here * (1 - there) + there * (1 - here)).sum(1)
        total = total + (weights * cost).sum()
    if reduction == "sum":
        return total
    return total / (mask.sum().clamp_min(1) if mask is not None else batch * height * width)
