"""Pixel-adaptive mask refinement: scores flow to neighbours of like colour.

Araslanov and Roth, "Single-Stage Semantic Segmentation from Image Labels", CVPR 2020, section 4 and the published code: a score becomes the
mean of those of the eight neighbours at each of several distances, weighted by softmax(-mean_c |I_p - I_q| / (0.1 std_p)) over all of
them, std_p being the standard deviation of the colours around p; and this again and again.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from ovseg.refine.filters import Floats

DIRECTIONS = [(down, across) for down in (-1, 0, 1) for across in (-1, 0, 1) if (down, across) != (0, 0)]


@dataclass(frozen=True)
class Pamr:
    """Settings of PAMR.

    Attributes:
        dilations: Distances of the neighbours [px].
        iterations: How often scores flow.
    """

    dilations: tuple[int, ...] = (1, 2, 4, 8, 12, 24)
    iterations: int = 10

    def __call__(self, scores: Floats, image: Floats) -> Floats:
        """Refine scores.

        Args:
            scores: (K, H, W) float32.
            image: (3, H, W) float32 RGB; its unit does not matter.

        Returns:
            The like of `scores`.
        """
        weights = self._weights(image)
        for _ in range(self.iterations):
            result = np.zeros_like(scores)
            part = np.empty_like(scores)
            for weight, near in zip(weights, self._neighbours(scores), strict=True):
                result += np.multiply(weight, near, out=part)
            scores = result
        return scores

    def _neighbours(self, maps: Floats) -> Iterator[Floats]:
        """Yield (C, H, W) maps as seen from each neighbour; beyond the border, what is at the border."""
        reach = max(self.dilations)
        padded = np.pad(maps, ((0, 0), (reach, reach), (reach, reach)), mode="edge")
        height, width = maps.shape[1:]
        for distance in self.dilations:
            for down, across in DIRECTIONS:
                top, left = reach + down * distance, reach + across * distance
                yield padded[:, top : top + height, left : left + width]

    def _weights(self, image: Floats) -> Floats:
        """Compute the weight of every neighbour: (8 D, H, W) float32, summing to 1 over the first axis."""
        count = 9 * len(self.dilations)  # every distance counts the pixel itself again
        mean = len(self.dilations) * image
        for near in self._neighbours(image):
            mean += near
        mean /= count
        variance = len(self.dilations) * (image - mean) ** 2
        for near in self._neighbours(image):
            variance += (near - mean) ** 2
        deviation = np.sqrt(variance / (count - 1))
        scale = 1 / (3 * (np.float32(1e-8) + np.float32(0.1) * deviation))  # 3: the mean over colours
        weights = np.stack([-(np.abs(near - image) * scale).sum(0) for near in self._neighbours(image)])
        weights -= weights.max(0)
        np.exp(weights, out=weights)
        weights /= weights.sum(0)
        return weights
