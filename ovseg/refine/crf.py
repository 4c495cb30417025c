"""The dense conditional random field, solved by mean field.

Kraehenbuehl and Koltun, "Efficient Inference in Fully Connected CRFs with Gaussian Edge Potentials", NIPS 2011. Every pair of pixels p, q
of different labels costs (Potts)

    appearance exp(-|x_p - x_q|^2 / 2 reach^2 - |I_p - I_q|^2 / 2 colour^2) + smoothness exp(-|x_p - x_q|^2 / 2 near^2)

with each of the two kernels K in its symmetric normalisation D^(-1/2) K D^(-1/2), D being its row sums, as in the published code of the
authors; so the weights do not depend on the size of the image. One step of mean field is Q <- softmax(log p + sum_m w_m K_m Q).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from ovseg.lattice import Lattice
from ovseg.refine.filters import Floats, gaussian_sum

TINY = np.float32(1e-30)
"""Least probability of a label: its logarithm is finite."""


@dataclass(frozen=True)
class Crf:
    """Settings of the dense CRF.

    Attributes:
        appearance: Weight of pairs of like colour.
        reach: Standard deviation of their distance [px].
        colour: Standard deviation of their difference in colour, of RGB in [0, 1].
        smoothness: Weight of near pairs, whatever their colour.
        near: Standard deviation of their distance [px].
        iterations: Steps of mean field.
    """

    appearance: float
    reach: float
    colour: float
    smoothness: float
    near: float
    iterations: int

    def __call__(self, scores: Floats, image: Floats) -> Floats:
        """Refine scores.

        Args:
            scores: (K, H, W) float32, at each pixel the probabilities of labels.
            image: (3, H, W) float32 RGB in [0, 1].

        Returns:
            The like of `scores`.
        """
        kernels = [kernel for kernel in (self._alike(image), self._close(image.shape[1:])) if kernel is not None]
        unary = np.log(np.maximum(scores, TINY))
        result = scores
        for _ in range(self.iterations):
            logits = unary.copy()
            for kernel in kernels:
                logits += kernel(result)
            logits -= logits.max(0)
            np.exp(logits, out=logits)
            logits /= logits.sum(0)
            result = logits
        return result

    def _alike(self, image: Floats) -> Callable[[Floats], Floats] | None:
        """Make the appearance kernel, weighted and normalised."""
        if self.appearance == 0:
            return None
        _, height, width = image.shape
        features = np.empty((5, height, width), np.float32)
        features[0] = np.arange(width) / self.reach
        features[1] = (np.arange(height) / self.reach)[:, None]
        features[2:] = image / np.float32(self.colour)
        lattice = Lattice.build(features.reshape(5, -1).T)

        def total(maps: Floats) -> Floats:
            flat = maps.reshape(len(maps), -1)
            return lattice.filter(flat.T, "symmetric").T.reshape(maps.shape)

        return _normalised(total, (height, width), self.appearance)

    def _close(self, size: tuple[int, ...]) -> Callable[[Floats], Floats] | None:
        """Make the smoothness kernel, weighted and normalised."""
        if self.smoothness == 0:
            return None
        return _normalised(lambda maps: gaussian_sum(maps, self.near), size, self.smoothness)


def _normalised(total: Callable[[Floats], Floats], size: tuple[int, ...], weight: float) -> Callable[[Floats], Floats]:
    """Turn a filter K into weight D^(-1/2) K D^(-1/2), D being its row sums."""
    share = np.asarray(1 / np.sqrt(np.maximum(total(np.ones((1, *size), np.float32)), TINY)), np.float32)

    def normalised(maps: Floats) -> Floats:
        result = total(maps * share)
        result *= np.float32(weight) * share
        return result

    return normalised
