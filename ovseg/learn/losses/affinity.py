"""Which pixels look alike: symmetric matrices of N x N affinities that are never written down, only applied.

The dense pairwise term and the clustering losses need a matrix K only through products K v. Three ways to have them:

    LatticeAffinity   Gaussian of a few features (place and colour), filtered on the permutohedral lattice: O(N). The way for images.
    FeatureAffinity   K = F F' of explicit features: O(N F). Any features; Gaussians of many dimensions by `random_features`.
    ExactAffinity     the Gaussian itself, N x N, for small N: what the other two are compared with.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, Protocol

import torch
import torch.nn.functional as F
from torch import Tensor

from ovseg.errors import InvalidArgumentError
from ovseg.lattice import Lattice
from ovseg.learn.losses.checks import check_beside, check_mask, check_positive

MAX_EXACT = 8192
"""Most points of an `ExactAffinity`: 256 MB of float32."""


class Affinity(Protocol):
    """A symmetric matrix K of N x N affinities."""

    def __call__(self, values: Tensor) -> Tensor:
        """Map (N, C) to K times it, (N, C) of the same type."""
        ...


class LatticeAffinity:
    """The Gaussian exp(-|f_p - f_q|^2 / 2) as the permutohedral lattice has it: symmetric, and linear in N in time and memory.

    Splat, blur and slice are weighted sums of rows; the blur is the mean of its two orders, so that K is symmetric to the last bit that
    matters and the gradient of v'Kv is 2 K v.
    Source: Adams, Baek and Davis, "Fast High-Dimensional Filtering Using the Permutohedral Lattice", Eurographics 2010.

    Args:
        features: (N, d), each divided by its standard deviation.
    """

    def __init__(self, features: Tensor) -> None:
        lattice = Lattice.build(features.detach().float().cpu().numpy())
        place = features.device
        vertices, weights = torch.from_numpy(lattice.vertices), torch.from_numpy(lattice.weights)
        order = vertices.flatten().argsort()
        count = torch.bincount(vertices.flatten(), minlength=lattice.size)
        self._size, self._scale = lattice.size, lattice.scale
        self._vertices, self._weights = vertices.to(place), weights.to(place)  # (N, d + 1)
        self._points, self._shares = (order // vertices.shape[1]).to(place), weights.flatten()[order].to(place)  # sorted by vertex
        self._starts = (count.cumsum(0) - count).to(place)
        self._sides = torch.from_numpy(lattice.neighbours).permute(0, 2, 1).contiguous().to(place)

    def __call__(self, values: Tensor) -> Tensor:
        """Map (N, C) to K times it."""
        _check_points(values, len(self._vertices))
        kind = values.dtype if values.dtype == torch.float64 else torch.float32
        with torch.autocast(values.device.type, enabled=False):
            table = values.new_zeros((self._size + 1, values.shape[1]), dtype=kind)  # the last row is every missing neighbour
            given = values.detach().to(kind).contiguous()
            table[:-1] = F.embedding_bag(self._points, given, self._starts, mode="sum", per_sample_weights=self._shares.to(kind))
            both = (_blurred(table, self._sides) + _blurred(table, self._sides.flip(0))) * (0.5 * self._scale)
            return F.embedding_bag(self._vertices, both, mode="sum", per_sample_weights=self._weights.to(kind)).to(values.dtype)


def _blurred(table: Tensor, sides: Tensor) -> Tensor:
    """Blur (M + 1, C) by (1/2, 1, 1/2) along each direction of (d + 1, 2, M) neighbours; the last row stays 0."""
    table = table.clone()
    for before, after in sides:
        table[:-1] += (table[before] + table[after]) * 0.5
    return table


def _check_points(values: Tensor, points: int) -> None:
    """Refuse values of other points than those that the affinity was made of."""
    if len(values) != points:
        raise InvalidArgumentError(
            f"The affinity was made of {points} pixels, the map has {len(values)}. Bring image and map to one size before."
        )


class FeatureAffinity:
    """The linear kernel K = F F' of explicit features.

    Args:
        features: (N, F).
    """

    def __init__(self, features: Tensor) -> None:
        self._features = features.detach()

    def __call__(self, values: Tensor) -> Tensor:
        """Map (N, C) to K times it."""
        _check_points(values, len(self._features))
        features = self._features.to(values.dtype)
        return features @ (features.T @ values.detach())


class ExactAffinity:
    """The Gaussian exp(-|f_p - f_q|^2 / 2) as a matrix: O(N^2), for tests and small N.

    Args:
        features: (N, d), each divided by its standard deviation; N at most `MAX_EXACT`.
    """

    def __init__(self, features: Tensor) -> None:
        if len(features) > MAX_EXACT:
            raise InvalidArgumentError(
                f"The exact matrix of {len(features)} points is too large (at most {MAX_EXACT}). Use LatticeAffinity or random_features."
            )
        features = features.detach()
        distances = (features[:, None] - features[None]).square().sum(2) if len(features) <= 1024 else torch.cdist(features, features) ** 2
        self._matrix = torch.exp(-0.5 * distances)

    def __call__(self, values: Tensor) -> Tensor:
        """Map (N, C) to K times it."""
        _check_points(values, len(self._matrix))
        return self._matrix.to(values.dtype) @ values.detach()


def random_features(features: Tensor, count: int = 256, seed: int = 0) -> Tensor:
    """Random Fourier features z with z_p'z_q close to exp(-|f_p - f_q|^2 / 2): the error falls as 1 / sqrt(count).

    Source: Rahimi and Recht, "Random Features for Large-Scale Kernel Machines", NIPS 2007.

    Args:
        features: (N, d), each divided by its standard deviation.
        count: Number of random directions.
        seed: Of the directions.

    Returns:
        (N, 2 count), of length 1: for `FeatureAffinity`.
    """
    if count < 1:
        raise InvalidArgumentError(f"count must be at least 1; got {count}.")
    directions = torch.randn((features.shape[1], count), generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    angles = features.detach() @ directions.to(features)
    return torch.cat([angles.cos(), angles.sin()], 1) / math.sqrt(count)


def place_and_colour(image: Tensor, sigma_xy: float = 100.0, sigma_rgb: float = 15.0) -> Tensor:
    """The features of the dense CRF: place and colour of every pixel, each divided by its standard deviation.

    Source: Krähenbühl and Koltun, "Efficient Inference in Fully Connected CRFs with Gaussian Edge Potentials", NIPS 2011; the defaults are
    those of Tang et al., ECCV 2018.

    Args:
        image: (C, H, W) colours.
        sigma_xy: Distance of pixels that are near [px].
        sigma_rgb: Difference of colours that is small, in the unit of `image`: 15 of 255.

    Returns:
        (H W, 2 + C), row by row.
    """
    check_positive(sigma_xy, "sigma_xy")
    check_positive(sigma_rgb, "sigma_rgb")
    check_beside(image, (-1, -1, -1), "image")
    height, width = image.shape[1:]
    kind: dict[str, Any] = {"dtype": image.dtype if image.is_floating_point() else torch.float32, "device": image.device}
    rows, columns = torch.meshgrid(torch.arange(height, **kind), torch.arange(width, **kind), indexing="ij")
    place = torch.stack([rows, columns]) / sigma_xy
    return torch.cat([place, image.detach().to(kind["dtype"]) / sigma_rgb]).flatten(1).T


def image_affinities(images: Tensor, sigma_xy: float = 100.0, sigma_rgb: float = 15.0) -> list[LatticeAffinity]:
    """One affinity of place and colour for each image of a batch.

    Args:
        images: (B, C, H, W) colours, range [0, 255].
        sigma_xy: Distance of pixels that are near [px].
        sigma_rgb: Difference of colours that is small, in the unit of `images`.
    """
    return [LatticeAffinity(place_and_colour(image, sigma_xy, sigma_rgb)) for image in images]


class _Form(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, values: Tensor, affinity: Affinity) -> Tensor:
        product = affinity(values)
        ctx.save_for_backward(product)
        return (values * product).sum(0)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None]:
        (product,) = ctx.saved_tensors
        return 2 * product * gradients[0], None


def quadratic_form(values: Tensor, affinity: Affinity) -> Tensor:
    """Compute v'Kv of each column v. K is symmetric, so the product that the value needs is the gradient too: K is applied once.

    Args:
        values: (N, C).
        affinity: K.

    Returns:
        (C,).
    """
    result: Tensor = _Form.apply(values, affinity)
    return result


def rows_of(probabilities: Tensor, affinities: Sequence[Affinity], mask: Tensor | None) -> list[tuple[Tensor, Tensor]]:
    """Cut a batch into what the dense losses look at.

    Args:
        probabilities: (B, K, H, W).
        affinities: One for each image.
        mask: (B, H, W) bool, the pixels that count; None for all.

    Returns:
        For each image its (N, K) probabilities, 0 outside the mask, and the (N, 1) mask as numbers.
    """
    batch, _, height, width = probabilities.shape
    if len(affinities) != batch:
        raise InvalidArgumentError(f"There must be one affinity for each of the {batch} images; got {len(affinities)}.")
    if mask is None:
        mask = torch.ones((batch, height, width), dtype=torch.bool, device=probabilities.device)
    check_mask(mask, (batch, height, width))
    parts = []
    for one, inside in zip(probabilities, mask, strict=True):
        counts = inside.flatten()[:, None].to(probabilities.dtype)
        parts.append((one.flatten(1).T * counts, counts))
    return parts
