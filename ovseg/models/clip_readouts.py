"""Read-outs: what the last block of a CLIP image tower attends to, so that its patches mean what they show.

CLIP trains the class token alone. In the last block a patch attends to far patches that serve the class token, so its own output says
little of its place. Every read-out replaces that one attention, needs no training, and leaves all earlier blocks as they are.

    name       attention A, output A v                       rest of the block   paper
    vanilla    softmax(s q k^T)                              kept                Radford et al., ICML 2021
    maskclip   1                                             kept                Zhou et al., "Extract Free Dense Labels", ECCV 2022
    sclip      softmax(s q q^T) + softmax(s k k^T)           kept                Wang et al., "SCLIP", ECCV 2024
    clearclip  softmax(s q q^T)                              dropped             Lan et al., "ClearCLIP", ECCV 2024
    kk         softmax(s k k^T)                              dropped             NACLIP without its window
    naclip     softmax(s k k^T + window)                     dropped             Hajimiri et al., "NACLIP", WACV 2025
    proxyclip  that of another network, see proxy_attention  dropped             Lan et al., "ProxyCLIP", ECCV 2024

s is 1 / sqrt(channels of a head). "Kept" is both residuals and the MLP around attention and its projection; "dropped" leaves
attention and projection alone.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from ovseg.errors import InvalidArgumentError
from ovseg.models.base import unit

READOUTS = ("vanilla", "maskclip", "sclip", "clearclip", "kk", "naclip", "proxyclip")
"""Every read-out."""
WHOLE_BLOCK = ("vanilla", "maskclip", "sclip")
"""The read-outs that keep residual and MLP of the last block."""
SIGMA = 5.0
"""NACLIP's standard deviation of the window, in patches (Hajimiri et al., section 4.1)."""
BETA = 1.2
"""ProxyCLIP's factor of the mean similarity (Lan et al., equation 7)."""
GAMMA = 3.0
"""ProxyCLIP's inverse temperature (Lan et al., equation 7)."""


def check_readout(readout: str) -> str:
    """Return `readout` if there is one of that name.

    Raises:
        InvalidArgumentError: If there is none.
    """
    if readout not in READOUTS:
        raise InvalidArgumentError(f"readout must be one of {', '.join(READOUTS)}; got {readout!r}.")
    return readout


def gaussian_window(size: tuple[int, int], sigma: float, like: Tensor) -> Tensor:
    """Return what NACLIP adds to the attention logits: exp(-d^2 / (2 sigma^2)), d the distance of two patches on the grid.

    Args:
        size: (h, w) of the patch grid.
        sigma: Standard deviation in patches.
        like: Any tensor; gives device and dtype.

    Returns:
        (1 + h w, 1 + h w), in (0, 1] between patches, 0 in the row and the column of the class token.
    """
    bells = []
    for length in size:
        place = torch.arange(length, device=like.device, dtype=torch.float32)
        bells.append(torch.exp(-((place[:, None] - place) ** 2) / (2 * sigma**2)))
    rows, columns = bells
    window = rows[:, None, :, None] * columns[None, :, None, :]  # (h, w, h, w): the exponential of a sum is a product
    count = size[0] * size[1]
    return F.pad(window.reshape(count, count), (1, 0, 1, 0)).to(like.dtype)


def attend(readout: str, q: Tensor, k: Tensor, v: Tensor, size: tuple[int, int], sigma: float = SIGMA) -> Tensor:
    """Mix the values of the last block as a read-out wants it.

    Args:
        readout: One of `READOUTS` but "proxyclip".
        q: (B, heads, 1 + h w, d) queries, the class token first.
        k: Keys of the same shape.
        v: Values of the same shape.
        size: (h, w) of the patch grid.
        sigma: Standard deviation of NACLIP's window, in patches.

    Returns:
        Mixed values of the shape of `v`, before the attention's output projection.
    """
    if readout == "vanilla":
        return F.scaled_dot_product_attention(q, k, v)
    if readout == "maskclip":
        return v
    if readout == "sclip":  # the rows of the sum add to 2, as published
        return F.scaled_dot_product_attention(q, q, v) + F.scaled_dot_product_attention(k, k, v)
    if readout == "clearclip":
        return F.scaled_dot_product_attention(q, q, v)
    if readout == "kk":
        return F.scaled_dot_product_attention(k, k, v)
    if readout == "naclip":
        return F.scaled_dot_product_attention(k, k, v, attn_mask=gaussian_window(size, sigma, k))
    raise InvalidArgumentError(f"readout must be one of {', '.join(READOUTS)} (proxyclip needs a proxy); got {readout!r}.")


def proxy_attention(features: Tensor, beta: float = BETA, gamma: float = GAMMA) -> Tensor:
    """Turn patch features of a vision network into ProxyCLIP's attention.

    With S the cosines of all pairs of patches of one image, A = softmax(gamma (S - beta mean(S))), negative logits left out (Lan et al.,
    equations 6 to 8). The mean is that of each image, so a batch gives what its images give alone. A patch always keeps itself: without
    that, an image of one colour, where every cosine is near the mean, would have rows with nothing in them.

    Args:
        features: (B, N, C) of the patches.
        beta: Factor of the mean.
        gamma: Inverse temperature.

    Returns:
        (B, N, N) float32, rows add to 1.
    """
    directions = unit(features, -1)
    cosines = directions @ directions.transpose(1, 2)
    logits = gamma * (cosines - beta * cosines.mean((1, 2), keepdim=True))
    place = torch.arange(features.shape[1], device=features.device)
    keep = (logits >= 0) | (place[:, None] == place)
    return logits.masked_fill(~keep, float("-inf")).softmax(-1)


def attend_by_proxy(v: Tensor, size: tuple[int, int], features: Tensor, beta: float = BETA, gamma: float = GAMMA) -> Tensor:
    """Mix values as the patches of another network resemble each other, on the grid of that network.

    Args:
        v: (B, heads, 1 + h w, d) values of the last block, the class token first (it is left out).
        size: (h, w) of the patch grid of `v`.
        features: (B, C, h', w') patch features of the other network for the same image.
        beta: Factor of the mean similarity.
        gamma: Inverse temperature.

    Returns:
        (B, heads, h' w', d) in the dtype of `v`.
    """
    batch, heads, _, width = v.shape
    grid = v[:, :, 1:].permute(0, 1, 3, 2).reshape(batch, heads * width, *size)
    grid = F.interpolate(grid.float(), features.shape[2:], mode="bilinear", align_corners=False)
    attention = proxy_attention(features.flatten(2).transpose(1, 2), beta, gamma)
    mixed = attention.to(v.dtype) @ grid.flatten(2).transpose(1, 2).to(v.dtype)  # (B, h' w', heads d): every head shares A
    return mixed.reshape(batch, -1, heads, width).transpose(1, 2)
