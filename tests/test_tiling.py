from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from ovseg.tiling import axis_weights, encode_windows, window_starts

CELL = 4
Floats = NDArray[np.float32]
MATRIX = np.random.default_rng(0).standard_normal((5, 3)).astype(np.float32)
sides = st.integers(1, 12).map(lambda n: 32 * n)


def encode_cells(pixels: Floats) -> Floats:
    """Encode each cell by its own pixels alone."""
    batch, _, height, width = pixels.shape
    cells = pixels.reshape(batch, 3, height // CELL, CELL, width // CELL, CELL).mean((3, 5))
    features = np.einsum("dc,bchw->bdhw", MATRIX, cells)
    return np.asarray(features / np.linalg.norm(features, axis=1, keepdims=True), np.float32)


@st.composite
def layouts(draw: st.DrawFn) -> tuple[int, int]:
    """Draw a window and a stride, multiples of 32, of windows that meet or overlap."""
    window = draw(st.integers(1, 8))
    return 32 * window, 32 * draw(st.integers(1, window))


@given(st.integers(1, 500), layouts())
@settings(deadline=None)
def test_windows_cover_the_axis_and_the_last_ends_with_it(length: int, layout: tuple[int, int]) -> None:
    window, stride = layout
    starts = window_starts(length, window, stride)
    assert starts[0] == 0
    assert starts == sorted(set(starts))
    covered = {place for start in starts for place in range(start, min(start + window, length))}
    assert covered == set(range(length))
    if length > window:
        assert starts[-1] + window == length
        assert all(b - a <= stride for a, b in zip(starts, starts[1:], strict=False))
    else:
        assert starts == [0]


@given(sides, sides, layouts(), st.integers(1, 5), st.integers(0, 2**32 - 1))
@settings(max_examples=25, deadline=None)
def test_windows_give_what_the_whole_gives_where_cells_are_independent(
    height: int, width: int, layout: tuple[int, int], batch: int, seed: int
) -> None:
    pixels = np.random.default_rng(seed).standard_normal((1, 3, height, width)).astype(np.float32)
    shapes = []

    def encode(part: Floats) -> Floats:
        shapes.append(part.shape)
        assert part.flags.c_contiguous
        return encode_cells(part)

    found = encode_windows(pixels, encode, *layout, CELL, batch)
    assert found.dtype == np.float32
    np.testing.assert_allclose(found, encode_cells(pixels)[0], atol=1e-5)
    expected = (min(height, layout[0]), min(width, layout[0]))
    assert all(shape[0] <= batch and shape[2:] == expected for shape in shapes)


@given(sides, sides, layouts())
@settings(max_examples=25, deadline=None)
def test_a_constant_stays_constant(height: int, width: int, layout: tuple[int, int]) -> None:
    vector = np.array([0.6, 0.0, -0.8], np.float32)

    def encode(part: Floats) -> Floats:
        cells = (len(part), 3, part.shape[2] // CELL, part.shape[3] // CELL)
        return np.broadcast_to(vector[:, None, None], cells)

    found = encode_windows(np.zeros((1, 3, height, width), np.float32), encode, *layout, CELL)
    np.testing.assert_allclose(found, np.broadcast_to(vector[:, None, None], found.shape), atol=1e-6)


@pytest.mark.parametrize("axis", [0, 1])
def test_overlaps_are_blended_by_the_distance_to_the_border(axis: int) -> None:
    shape: list[Any] = [16, 16]
    shape[axis] = 24
    calls = iter(np.eye(2, dtype=np.float32))

    def encode(part: Floats) -> Floats:
        return np.broadcast_to(next(calls)[None, :, None, None], (1, 2, 4, 4))

    found = encode_windows(np.zeros((1, 3, *shape), np.float32), encode, 16, 8, CELL, batch=1)
    near, far = (np.exp(-0.5 * (distance / 0.5) ** 2) for distance in (0.5, 1.5))  # a window of 4 cells has a deviation of 4 / 8
    line = np.array([[1, 1, near, far, 0, 0], [0, 0, far, near, 1, 1]])
    line /= np.linalg.norm(line, axis=0)
    expected = np.broadcast_to(line[:, :, None] if axis == 0 else line[:, None], found.shape)
    np.testing.assert_allclose(found, expected, atol=1e-6)


@given(st.integers(1, 200), st.integers(1, 40), st.integers(1, 40), st.booleans())
def test_the_weights_of_all_windows_sum_to_one(length: int, window: int, stride: int, even: bool) -> None:
    window = min(window, length)
    starts = window_starts(length, window, min(stride, window))
    weights = axis_weights(starts, window, even)
    total = np.zeros(length)
    for start, own in zip(starts, weights, strict=True):
        total[start : start + window] += own
    np.testing.assert_allclose(total, 1, atol=1e-5)
    assert (weights > 0).all()


def test_a_window_passes_over_to_the_next_without_a_step() -> None:
    """With the overlap of a quarter, no cell weighs more than a few percent more or less than its neighbour."""
    starts = window_starts(512, 128, 96)
    own = np.zeros((len(starts), 512))
    for row, start, weights in zip(own, starts, axis_weights(starts, 128), strict=True):
        row[start : start + 128] = weights
    assert np.abs(np.diff(own, axis=1)).max() < 0.1  # the greatest slope of the passage
    borders = [start for start in starts[1:]] + [start + 128 for start in starts[:-1]]
    assert max(np.abs(own[:, place] - own[:, place - 1]).max() for place in borders) < 0.004  # where a window begins or ends
    even = axis_weights(starts, 128, even=True)
    assert even.min() == 0.5  # where these step from 1 to 1/2


def test_opposite_features_that_cancel_give_no_nan() -> None:
    signs = iter([1.0, -1.0])

    def encode(part: Floats) -> Floats:
        return np.full((1, 1, part.shape[2] // CELL, part.shape[3] // CELL), next(signs), np.float32)

    found = encode_windows(np.zeros((1, 3, 4, 16), np.float32), encode, 12, 4, CELL, batch=1)
    assert np.isfinite(found).all()


def test_even_windows_are_the_mean_of_all_that_see_a_cell() -> None:
    """The published way: with words, the mean of features is the mean of cosines."""
    rng = np.random.default_rng(8)
    values = rng.standard_normal((1, 3, 48, 80)).astype(np.float32)

    def encode(part: NDArray[np.float32]) -> NDArray[np.float32]:
        centred = part - part.mean((2, 3), keepdims=True)  # a cell depends on its window
        cells = centred.reshape(len(part), 3, part.shape[2] // 8, 8, part.shape[3] // 8, 8).mean((3, 5))
        return (cells / np.linalg.norm(cells, axis=1, keepdims=True)).astype(np.float32)

    found = encode_windows(values, encode, 32, 16, 8, even=True)
    total, count = np.zeros((3, 6, 10)), np.zeros((6, 10))
    for top in (0, 16):
        for left in (0, 16, 32, 48):
            place = slice(top // 8, top // 8 + 4), slice(left // 8, left // 8 + 4)
            total[:, *place] += encode(values[:, :, top : top + 32, left : left + 32])[0]
            count[place] += 1
    expected = total / count
    np.testing.assert_allclose(found, expected / np.linalg.norm(expected, axis=0), atol=1e-5)
