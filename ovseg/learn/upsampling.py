"""Upsampling by transposed convolution, and when it is bilinear interpolation.

The smallest example: a tent (1/4 1/2 1/4; 1/2 1 1/2; 1/4 1/2 1/4) laid over each of 4 x 4 numbers, two pixels apart.

>>> import torch
>>> import torch.nn.functional as F
>>> from ovseg.learn.upsampling import tent
>>> x = torch.arange(16.0).reshape(1, 1, 4, 4)
>>> F.conv_transpose2d(x, tent(2, odd=True)[None, None], stride=2)[0, 0, 2]  # 9 x 9: the rim has no second neighbour and fades
tensor([1.0000, 2.0000, 2.5000, 3.0000, 3.5000, 4.0000, 4.5000, 5.0000, 2.5000])
>>> F.conv_transpose2d(x, tent(2, odd=True)[None, None], stride=2, padding=1)[0, 0, 0]  # 7 x 7: without the rim
tensor([0.0000, 0.5000, 1.0000, 1.5000, 2.0000, 2.5000, 3.0000])

Padding 1 cuts the rim off, and what is left is bilinear interpolation with aligned corners.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from ovseg.errors import InvalidArgumentError


def _check_factor(factor: int) -> None:
    if isinstance(factor, bool) or not isinstance(factor, int) or factor < 1:
        raise InvalidArgumentError(f"factor must be a positive whole number; got {factor!r}.")


def tent(factor: int, odd: bool) -> Tensor:
    """The kernel of bilinear interpolation by a whole factor f: 1 - |i - c| / f down times across.

    Args:
        factor: f, how many times as many pixels.
        odd: Whether the middle lies on a pixel: size 2 f - 1, for aligned corners. Otherwise the size is 2 f - (f mod 2), so that the
            middle lies where half-pixel centres need it.

    Returns:
        (n, n) float32, symmetric.
    """
    _check_factor(factor)
    size = 2 * factor - 1 if odd else 2 * factor - factor % 2
    line = 1 - (torch.arange(size) - (size - 1) / 2).abs() / factor
    return line[:, None] * line


def bilinear_kernel(factor: int) -> Tensor:
    """The kernel with which FCN upsamples: size 2 f - (f mod 2), weights 1 - |i - c| / f.

    Source: Long, Shelhamer and Darrell, "Fully Convolutional Networks for Semantic Segmentation", CVPR 2015.

    Args:
        factor: f, how many times as many pixels.

    Returns:
        (n, n) float32; for f = 2 (1 3 3 1) / 4 down times across.
    """
    return tent(factor, odd=False)


def upsample_transposed(x: Tensor, factor: int, align_corners: bool = False) -> Tensor:
    """Upsample by one transposed convolution of each channel; it equals bilinear interpolation everywhere.

    With aligned corners: the odd kernel, stride f, padding f - 1. The output has (h - 1) f + 1 rows and its corners are those of the input.
    With half-pixel centres: `bilinear_kernel`, stride f, padding ceil((f - 1) / 2) gives f h rows, right in the interior, where every
    output pixel has two neighbours; repeating the rim of the input once and cutting f more off makes it right at the rim, too.

    Args:
        x: (B, C, h, w).
        factor: f, how many times as many pixels.
        align_corners: Whether the outer pixels keep their place.

    Returns:
        (B, C, f h, f w), or (B, C, (h - 1) f + 1, (w - 1) f + 1) with aligned corners.
    """
    if x.ndim != 4:
        raise InvalidArgumentError(f"x must be (B, C, h, w); got {tuple(x.shape)}.")
    kernel = tent(factor, odd=align_corners).to(x)
    weight = kernel.expand(x.shape[1], 1, *kernel.shape)
    if align_corners:
        return F.conv_transpose2d(x, weight, stride=factor, padding=factor - 1, groups=x.shape[1])
    padding = factor // 2  # the ceiling of (f - 1) / 2
    padded = F.pad(x, (1, 1, 1, 1), mode="replicate")
    return F.conv_transpose2d(padded, weight, stride=factor, padding=padding + factor, groups=x.shape[1])
