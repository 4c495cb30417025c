"""The guided filter: inside every small window, scores are a linear function of the colour.

He, Sun and Tang, "Guided Image Filtering", ECCV 2010 and TPAMI 2013, with a colour guide; and its fast form, He and Sun, "Fast Guided
Filter", arXiv 1505.00996: the functions are found on a smaller image and applied to the full one, so that this also enlarges scores along
the edges of an image.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from ovseg.refine.filters import Floats, box_mean
from ovseg.similarity import Axis, upsampled


@dataclass(frozen=True)
class Guided:
    """Settings of the guided filter.

    Attributes:
        radius: Of the windows, which are squares [px].
        epsilon: Windows whose colours have a smaller variance than this become flat; of colours in [0, 1].
    """

    radius: float
    epsilon: float

    def functions(self, scores: Floats, image: Floats) -> Floats:
        """Find the linear function of every pixel: the mean of those of the windows that hold it.

        In a window, a = (Cov(I) + epsilon 1)^-1 Cov(I, p) and b = mean(p) - a mean(I), the ridge regression of p on the colour I.

        Args:
            scores: p, (K, H, W) float32.
            image: I, (3, H, W) float32 in [0, 1].

        Returns:
            (4, K, H, W) float32: three slopes and the constant.
        """
        radius = max(1, round(self.radius))
        mean_colour = box_mean(image, radius)
        covariance = np.empty((*image.shape[1:], 3, 3))
        for i in range(3):
            for j in range(i, 3):
                product = box_mean(image[i] * image[j], radius) - mean_colour[i] * mean_colour[j]
                covariance[..., i, j] = covariance[..., j, i] = product
        covariance += self.epsilon * np.eye(3)
        inverse = np.linalg.inv(covariance).transpose(2, 3, 0, 1).astype(np.float32)
        result = np.empty((4, *scores.shape), np.float32)
        for k, score in enumerate(scores):
            mean = box_mean(score, radius)
            together = box_mean(image * score, radius) - mean_colour * mean
            slopes = (inverse * together).sum(1)
            result[:, k] = box_mean(np.concatenate([slopes, (mean - (slopes * mean_colour).sum(0))[None]]), radius)
        return result


def applied(functions: Floats, image: NDArray[np.uint8], step: int, rows: slice = slice(None)) -> Floats:
    """Apply linear functions of the colour to rows of a full image.

    Args:
        functions: (4, K, h, w) float32 from `Guided.functions`, of the image shrunk by `step`.
        image: (H, W, 3) uint8 RGB.
        step: Pixels of the image per pixel of the functions.
        rows: The R rows that are wanted.

    Returns:
        (K, R, W) float32.
    """
    height, width = image.shape[:2]
    count, (h, w) = functions.shape[1], functions.shape[2:]
    down, columns = Axis.make(height, h, height / step), Axis.make(width, w, width / step)
    down = Axis(down.low[rows], down.high[rows], down.weight[rows])
    colour = image[rows].transpose(2, 0, 1).astype(np.float32) / np.float32(255)
    result = np.empty((count, *colour.shape[1:]), np.float32)
    for k in range(count):
        red, green, blue, constant = functions[:, k, rows] if step == 1 else upsampled(functions[:, k], down, columns)
        np.multiply(red, colour[0], out=result[k])
        result[k] += green * colour[1]
        result[k] += blue * colour[2]
        result[k] += constant
    return result
