"""Semi-supervised learning on a graph of nearest neighbours, over any features."""

from __future__ import annotations

import torch
from torch import Tensor

from ovseg.errors import InvalidArgumentError
from ovseg.learn.losses.checks import check_beside, check_choice, check_positive, widened

_ROWS = 2048  # distances of so many points to all others are held at a time


def nearest_neighbours(features: Tensor, count: int = 10, sigma: float | None = None) -> tuple[Tensor, Tensor]:
    """Join every point with its nearest neighbours, with weights w_ij = exp(-|f_i - f_j|^2 / (2 sigma^2)).

    Args:
        features: (N, D), of any kind; scale them to length 1 for cosines.
        count: Neighbours of each point.
        sigma: Distance that is small; None for the mean distance of joined points.

    Returns:
        (2, E) the two points of every edge, each pair once, and (E,) its weight.
    """
    check_beside(features, (-1, -1), "features")
    points = len(features)
    if not 1 <= count < points:
        raise InvalidArgumentError(f"count must be at least 1 and less than the {points} points; got {count}.")
    features = widened(features.detach())
    ends, distances = [], []
    for start in range(0, points, _ROWS):
        apart = torch.cdist(features[start : start + _ROWS], features)
        apart[torch.arange(len(apart)), torch.arange(start, start + len(apart))] = float("inf")  # nobody is its own neighbour
        near, who = apart.topk(count, largest=False)
        distances.append(near.flatten())
        ends.append(who.flatten())
    first = torch.arange(points, device=features.device).repeat_interleave(count)
    second, apart = torch.cat(ends), torch.cat(distances)
    low, high = torch.minimum(first, second), torch.maximum(first, second)
    _, place = torch.unique(low * points + high, return_inverse=True)
    kept = torch.full((int(place.max()) + 1,), len(place), device=place.device).scatter_reduce(
        0, place, torch.arange(len(place), device=place.device), "amin"
    )  # the first time that a pair comes
    edges, apart = torch.stack([low[kept], high[kept]]), apart[kept]
    if sigma is None:
        sigma = max(float(apart.mean()), 1e-12)
    check_positive(sigma, "sigma")
    return edges, torch.exp(-apart.square() / (2 * sigma * sigma))


def graph_smoothness(values: Tensor, edges: Tensor, weights: Tensor, reduction: str = "mean") -> Tensor:
    """Sum of w_ij |f_i - f_j|^2 over the edges: joined points should be answered alike.

    Source: Zhu, Ghahramani and Lafferty, "Semi-Supervised Learning Using Gaussian Fields and Harmonic Functions", ICML 2003; with networks,
    Weston et al., "Deep Learning via Semi-supervised Embedding", 2012.

    Args:
        values: (N, C) answers, such as probabilities.
        edges: (2, E) indices of points.
        weights: (E,), not negative.
        reduction: "mean" divides by the sum of the weights, "sum" does not.

    Returns:
        Scalar, not negative.
    """
    check_choice(reduction, ("mean", "sum"), "reduction")
    check_beside(edges, (2, -1), "edges")
    check_beside(weights, (edges.shape[1],), "weights")
    if edges.numel() and not 0 <= int(edges.min()) <= int(edges.max()) < len(values):
        raise InvalidArgumentError(f"edges must be indices in [0, {len(values)}); got {int(edges.min())} to {int(edges.max())}.")
    values = widened(values)
    cost = (weights * (values[edges[0]] - values[edges[1]]).square().sum(1)).sum()
    return cost if reduction == "sum" else cost / weights.sum().clamp_min(torch.finfo(values.dtype).tiny)
