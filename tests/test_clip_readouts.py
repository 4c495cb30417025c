"""Read-outs against loops over heads and tokens in float64, written from the papers' formulas."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from ovseg.errors import InvalidArgumentError
from ovseg.models.clip_readouts import READOUTS, WHOLE_BLOCK, attend, attend_by_proxy, check_readout, gaussian_window, proxy_attention

Doubles = NDArray[np.float64]
SIZE = (3, 5)
TOKENS = 1 + SIZE[0] * SIZE[1]


def softmax(row: Doubles) -> Doubles:
    weights = np.exp(row - row.max())
    return weights / weights.sum()


def window(i: int, j: int, size: tuple[int, int], sigma: float) -> float:
    if i == 0 or j == 0:
        return 0.0
    (y, x), (v, u) = divmod(i - 1, size[1]), divmod(j - 1, size[1])
    return math.exp(-((y - v) ** 2 + (x - u) ** 2) / (2 * sigma**2))


def attend_slowly(readout: str, q: Doubles, k: Doubles, v: Doubles, size: tuple[int, int], sigma: float) -> Doubles:
    """One head: (T, d) each."""
    count, width = v.shape
    scale = 1 / math.sqrt(width)
    out = np.zeros_like(v)
    for i in range(count):
        qk, qq, kk, added = (np.zeros(count) for _ in range(4))
        for j in range(count):
            qk[j], qq[j], kk[j] = scale * q[i] @ k[j], scale * q[i] @ q[j], scale * k[i] @ k[j]
            added[j] = window(i, j, size, sigma)
        weights = {
            "vanilla": softmax(qk),
            "maskclip": np.eye(count)[i],
            "sclip": softmax(qq) + softmax(kk),
            "clearclip": softmax(qq),
            "kk": softmax(kk),
            "naclip": softmax(kk + added),
        }[readout]
        for j in range(count):
            out[i] += weights[j] * v[j]
    return out


def draw(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.from_numpy(np.random.default_rng(seed).standard_normal(shape))


@pytest.mark.parametrize("readout", [name for name in READOUTS if name != "proxyclip"])
def test_attend_equals_loops(readout: str) -> None:
    q, k, v = (2 * draw(2, 3, TOKENS, 4, seed=seed) for seed in range(3))
    result = attend(readout, q, k, v, SIZE, sigma=1.5)
    for image in range(2):
        for head in range(3):
            expected = attend_slowly(readout, *(part[image, head].numpy() for part in (q, k, v)), SIZE, 1.5)
            np.testing.assert_allclose(result[image, head], expected, atol=1e-6)  # the window is made in float32


def test_window_is_that_of_the_formula() -> None:
    result = gaussian_window(SIZE, 5.0, torch.zeros((), dtype=torch.float64))
    expected = [[window(i, j, SIZE, 5.0) for j in range(TOKENS)] for i in range(TOKENS)]
    np.testing.assert_allclose(result, expected, atol=1e-7)
    assert gaussian_window((1, 1), 5.0, torch.zeros(())).tolist() == [[0, 0], [0, 1]]


def test_window_takes_the_dtype_of_the_keys() -> None:
    assert gaussian_window((2, 2), 5.0, torch.zeros((), dtype=torch.bfloat16)).dtype == torch.bfloat16


def proxy_attention_slowly(features: Doubles, beta: float, gamma: float) -> Doubles:
    """One image: (N, C)."""
    count = len(features)
    cosines = np.zeros((count, count))
    for i in range(count):
        for j in range(count):
            lengths = np.linalg.norm(features[i]) * np.linalg.norm(features[j])
            cosines[i, j] = features[i] @ features[j] / lengths
    logits = gamma * (cosines - beta * cosines.mean())
    logits[logits < 0] = -np.inf
    return np.stack([softmax(row) for row in logits])


def test_proxy_attention_equals_loops_for_each_image() -> None:
    features = draw(3, 12, 6) + torch.tensor([0.0, 0.5, 1.0], dtype=torch.float64)[:, None, None]
    result = proxy_attention(features, beta=1.2, gamma=3.0)
    for image in range(3):
        np.testing.assert_allclose(result[image], proxy_attention_slowly(features[image].numpy(), 1.2, 3.0), atol=1e-6)
    assert (result == 0).any()  # something was left out


def test_every_patch_of_one_colour_keeps_itself() -> None:
    result = proxy_attention(torch.ones(1, 6, 4))
    np.testing.assert_allclose(result[0], np.eye(6))


def resize_slowly(grid: Doubles, size: tuple[int, int]) -> Doubles:
    """Bilinear, half-pixel centres, borders repeat: (h, w, C) to (h', w', C)."""
    out = np.zeros((*size, grid.shape[2]))
    for i in range(size[0]):
        for j in range(size[1]):
            y = min(max((i + 0.5) * grid.shape[0] / size[0] - 0.5, 0), grid.shape[0] - 1)
            x = min(max((j + 0.5) * grid.shape[1] / size[1] - 0.5, 0), grid.shape[1] - 1)
            for row in range(grid.shape[0]):
                for column in range(grid.shape[1]):
                    out[i, j] += max(0, 1 - abs(y - row)) * max(0, 1 - abs(x - column)) * grid[row, column]
    return out


@pytest.mark.parametrize("proxy_size", [(6, 9), (2, 3), SIZE])
def test_values_move_to_the_grid_of_the_proxy(proxy_size: tuple[int, int]) -> None:
    v, features = draw(2, 3, TOKENS, 4), draw(2, 7, *proxy_size, seed=1)
    result = attend_by_proxy(v, SIZE, features)
    assert result.shape == (2, 3, proxy_size[0] * proxy_size[1], 4)
    for image in range(2):
        attention = proxy_attention_slowly(features[image].flatten(1).T.numpy(), 1.2, 3.0)
        for head in range(3):
            grid = v[image, head, 1:].reshape(*SIZE, 4).numpy()
            np.testing.assert_allclose(result[image, head], attention @ resize_slowly(grid, proxy_size).reshape(-1, 4), atol=1e-6)


def test_unknown_readouts_are_refused() -> None:
    assert all(check_readout(name) == name for name in READOUTS)
    assert set(WHOLE_BLOCK) < set(READOUTS)
    with pytest.raises(InvalidArgumentError, match="naclip"):
        check_readout("sharpclip")
    with pytest.raises(InvalidArgumentError, match="needs a proxy"):
        attend("proxyclip", *(draw(1, 1, 2, 2) for _ in range(3)), (1, 1))
