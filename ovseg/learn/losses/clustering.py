"""Losses of order higher than two: the pixels of a label should form a cluster.

Both need the kernel matrix only through S_k'KS_k and K1, so any `Affinity` serves and no N x N matrix is made: the permutohedral lattice
for place and colour, explicit or random features for anything else.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from ovseg.learn.losses.affinity import Affinity, quadratic_form, rows_of
from ovseg.learn.losses.checks import check_map


def kernel_kmeans(probabilities: Tensor, affinities: Sequence[Affinity], mask: Tensor | None = None) -> Tensor:
    """Kernel k-means of the soft labels: -sum_k S_k'KS_k / |S_k|, divided by the number of pixels.

    It equals the distances from the clusters' means, sum_k sum_p S_k[p] |phi(p) - mu_k|^2, up to a constant; with the linear kernel it is
    ordinary k-means.
    Source: Dhillon, Guan and Kulis, "Kernel k-means, Spectral Clustering and Normalized Cuts", KDD 2004; as a loss, Tang et al., CVPR 2018.

    Args:
        probabilities: (B, K, H, W), over K summing to 1.
        affinities: One for each image, of its H W pixels row by row.
        mask: (B, H, W) bool, the pixels that count; None for all.

    Returns:
        Scalar: the mean over the images.
    """
    probabilities = check_map(probabilities, "probabilities")
    results = []
    for (values, counts), affinity in zip(rows_of(probabilities, affinities, mask), affinities, strict=True):
        inside = quadratic_form(values, affinity)
        size = values.sum(0)
        results.append(-(inside / _positive(size)).sum() / counts.sum().clamp_min(1))
    return torch.stack(results).mean()


def normalized_cut(probabilities: Tensor, affinities: Sequence[Affinity], mask: Tensor | None = None) -> Tensor:
    """Normalised cut of the soft labels: sum_k S_k'K(1 - S_k) / (d'S_k), where d = K1 is how much affinity each pixel has.

    Source: Shi and Malik, "Normalized Cuts and Image Segmentation", PAMI 2000; as a loss, Tang et al., "Normalized Cut Loss for
    Weakly-supervised CNN Segmentation", CVPR 2018.

    Args:
        probabilities: (B, K, H, W), over K summing to 1.
        affinities: One for each image, of its H W pixels row by row.
        mask: (B, H, W) bool, the pixels that count; None for all.

    Returns:
        Scalar, the mean over the images, in [0, K]; a label that no pixel has adds 1.
    """
    probabilities = check_map(probabilities, "probabilities")
    results = []
    for (values, counts), affinity in zip(rows_of(probabilities, affinities, mask), affinities, strict=True):
        with torch.no_grad():
            degrees = affinity(counts) * counts
        inside = quadratic_form(values, affinity)
        volume = (values * degrees).sum(0)
        results.append((1 - inside / _positive(volume)).sum())
    return torch.stack(results).mean()


def _positive(size: Tensor) -> Tensor:
    """Keep the size of an empty label from dividing by 0."""
    return size.clamp_min(torch.finfo(size.dtype).tiny ** 0.5)
