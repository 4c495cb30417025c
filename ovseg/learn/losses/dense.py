"""The pairwise term over all pairs of pixels: the dense CRF as a loss, in linear time and memory."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from ovseg.learn.losses.affinity import Affinity, quadratic_form, rows_of
from ovseg.learn.losses.checks import check_choice, check_map
from ovseg.learn.losses.pairwise import RELAXATIONS


def dense_crf(
    probabilities: Tensor,
    affinities: Sequence[Affinity],
    *,
    relaxation: str = "bilinear",
    mask: Tensor | None = None,
    reduction: str = "mean",
) -> Tensor:
    """Pairwise term over all pairs of pixels: pixels near each other and of like colour should be labelled alike.

    "bilinear" is the Potts model's relaxation sum_k S_k'K(1 - S_k), the one that published code descends; "quadratic" is
    sum_{p, q} k_pq |s_p - s_q|^2 / 2, in which each pair counts once, too. They are equal where s is one-hot. Pairs of a pixel with
    itself are in the sum: they add nothing to the quadratic form, and a pull towards one-hot to the bilinear one.
    Source: Tang et al., "On Regularized Losses for Weakly-supervised CNN Segmentation", ECCV 2018, whose code has -S'KS, the same up to a
    constant.

    Args:
        probabilities: (B, K, H, W), over K summing to 1.
        affinities: One for each image, of its H W pixels row by row; see `image_affinities`.
        relaxation: "bilinear" or "quadratic".
        mask: (B, H, W) bool; pairs with a pixel outside it do not count. None for all.
        reduction: "mean" divides by the sum of all affinities, so that the value is the part of the affinity that is cut, in [0, 1], at
            any resolution, and takes the mean over the images; "sum" does neither.

    Returns:
        Scalar, not negative.
    """
    probabilities = check_map(probabilities, "probabilities")
    check_choice(relaxation, RELAXATIONS, "relaxation")
    check_choice(reduction, ("mean", "sum"), "reduction")
    results = []
    for (values, counts), affinity in zip(rows_of(probabilities, affinities, mask), affinities, strict=True):
        with torch.no_grad():
            degrees = affinity(counts) * counts  # how much affinity each pixel has to all that count
        inside = quadratic_form(values, affinity).sum()
        if relaxation == "bilinear":
            cut = (values * degrees).sum() - inside
        else:
            cut = (values.square() * degrees).sum() - inside
        results.append(cut if reduction == "sum" else cut / degrees.sum().clamp_min(torch.finfo(values.dtype).tiny))
    total = torch.stack(results)
    return total.sum() if reduction == "sum" else total.mean()
