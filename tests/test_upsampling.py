"""Transposed convolution against a printed example and against interpolation."""

from __future__ import annotations

import doctest

import pytest

torch = pytest.importorskip("torch")
import torch.nn.functional as F  # noqa: E402

from ovseg.errors import InvalidArgumentError  # noqa: E402
from ovseg.learn import upsampling  # noqa: E402
from ovseg.learn.upsampling import bilinear_kernel, tent, upsample_transposed  # noqa: E402

# The 9 x 9 result of a lecture: (1/4 1/2 1/4; 1/2 1 1/2; 1/4 1/2 1/4), stride 2, laid over 0..15 in rows of four.
PRINTED = [
    [0, 0, 0.25, 0.5, 0.75, 1, 1.25, 1.5, 0.75],
    [0, 0, 0.5, 1, 1.5, 2, 2.5, 3, 1.5],
    [1, 2, 2.5, 3, 3.5, 4, 4.5, 5, 2.5],
    [2, 4, 4.5, 5, 5.5, 6, 6.5, 7, 3.5],
    [3, 6, 6.5, 7, 7.5, 8, 8.5, 9, 4.5],
    [4, 8, 8.5, 9, 9.5, 10, 10.5, 11, 5.5],
    [5, 10, 10.5, 11, 11.5, 12, 12.5, 13, 6.5],
    [6, 12, 12.5, 13, 13.5, 14, 14.5, 15, 7.5],
    [7, 6, 6.25, 6.5, 6.75, 7, 7.25, 7.5, 3.75],  # the first 7 is a misprint for 3
]


def _example() -> torch.Tensor:
    return torch.arange(16, dtype=torch.float64).reshape(1, 1, 4, 4)


def test_the_printed_example_but_for_its_misprint() -> None:
    kernel = tent(2, odd=True).double()
    assert kernel.tolist() == [[0.25, 0.5, 0.25], [0.5, 1, 0.5], [0.25, 0.5, 0.25]]
    got = F.conv_transpose2d(_example(), kernel[None, None], stride=2)[0, 0]
    differs = (got != torch.tensor(PRINTED, dtype=torch.float64)).nonzero().tolist()
    assert got.shape == (9, 9) and differs == [[8, 0]] and float(got[8, 0]) == 3


def test_padding_one_is_interpolation_with_aligned_corners() -> None:
    got = F.conv_transpose2d(_example(), tent(2, odd=True).double()[None, None], stride=2, padding=1)
    assert torch.equal(got[0, 0], torch.tensor(PRINTED, dtype=torch.float64)[1:8, 1:8])
    assert torch.equal(got, F.interpolate(_example(), size=(7, 7), mode="bilinear", align_corners=True))
    assert torch.equal(upsample_transposed(_example(), 2, align_corners=True), got)


@pytest.mark.parametrize("factor", range(1, 9))
@pytest.mark.parametrize("align_corners", [False, True])
@pytest.mark.parametrize("size", [(4, 5), (1, 3)])
def test_any_factor_is_bilinear_interpolation_everywhere(factor: int, align_corners: bool, size: tuple[int, int]) -> None:
    x = torch.randn(2, 3, *size, dtype=torch.float64, generator=torch.Generator().manual_seed(factor))
    if align_corners:
        expected = F.interpolate(x, size=[(n - 1) * factor + 1 for n in size], mode="bilinear", align_corners=True)
    else:
        expected = F.interpolate(x, scale_factor=factor, mode="bilinear", align_corners=False)
    torch.testing.assert_close(upsample_transposed(x, factor, align_corners), expected)


@pytest.mark.parametrize("factor", [2, 3, 4, 5])
def test_without_the_repeated_rim_the_interior_is_right_and_the_rim_is_not(factor: int) -> None:
    x = torch.rand(1, 1, 5, 5, dtype=torch.float64, generator=torch.Generator().manual_seed(0)) + 1
    kernel = bilinear_kernel(factor).double()
    assert len(kernel) == 2 * factor - factor % 2
    plain = F.conv_transpose2d(x, kernel[None, None], stride=factor, padding=-(-(factor - 1) // 2))
    expected = F.interpolate(x, scale_factor=factor, mode="bilinear", align_corners=False)
    assert plain.shape == expected.shape
    inner = slice(factor, -factor)
    torch.testing.assert_close(plain[..., inner, inner], expected[..., inner, inner])
    assert not torch.allclose(plain, expected)


def test_the_documented_example_runs() -> None:
    assert doctest.testmod(upsampling).failed == 0 < doctest.testmod(upsampling).attempted


@pytest.mark.parametrize("factor", [0, -1, 1.5, True, "2"])
def test_factors_that_make_no_sense_are_refused(factor: object) -> None:
    with pytest.raises(InvalidArgumentError, match="factor"):
        bilinear_kernel(factor)
    with pytest.raises(InvalidArgumentError, match="x must be"):
        upsample_transposed(torch.zeros(4, 4), 2)
