from __future__ import annotations

import tracemalloc
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from ovseg.similarity import DEFAULT_BUDGET, FEW, Grid, _winners, label_map, score_strips

SCALE = 20.0
TOLERANCE = 1e-5 * SCALE  # float32 arithmetic against float64
BUDGETS = st.sampled_from([2_000, 20_000, 200_000, DEFAULT_BUDGET, 1 << 40])


def unit(array: NDArray[Any], axis: int) -> NDArray[np.float32]:
    return (array / np.linalg.norm(array, axis=axis, keepdims=True)).astype(np.float32)


def interpolation(pixels: int, cells: int, extent: float) -> NDArray[np.float64]:
    """Weights of the cells at each pixel, (pixels, cells), one pixel after the other."""
    matrix = np.zeros((pixels, cells))
    for pixel in range(pixels):
        position = min(max((pixel + 0.5) * extent / pixels - 0.5, 0.0), cells - 1.0)
        low = int(position)
        matrix[pixel, low] += 1 - (position - low)
        matrix[pixel, min(low + 1, cells - 1)] += position - low
    return matrix


def brute_logits(grid: Grid, text: NDArray[Any]) -> NDArray[np.float64]:
    """All logits of all names at all pixels, (N, H, W)."""
    logits = SCALE * np.einsum("nd,dhw->nhw", text.astype(np.float64), grid.embedding.astype(np.float64))
    (height, width), (h, w) = grid.image_size, logits.shape[1:]
    down, across = interpolation(height, h, grid.extent[0]), interpolation(width, w, grid.extent[1])
    return down @ logits @ across.T


def brute_labels(logits: NDArray[Any], owner: NDArray[np.intp]) -> NDArray[np.float64]:
    """The largest logit of the names of each label, (K, H, W)."""
    return np.stack([logits[owner == label].max(0) for label in range(owner[-1] + 1)])


def owners(rng: np.random.Generator, names: int, synonyms: bool) -> NDArray[np.intp]:
    return np.cumsum(rng.integers(0, 2, names) * np.arange(names).clip(max=1)) if synonyms else np.arange(names)


@st.composite
def cases(draw: st.DrawFn) -> tuple[Grid, NDArray[np.float32], NDArray[np.intp]]:
    """Draw features, text embeddings and owners; images larger and smaller than the grid, padded or not."""
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    names, dim = draw(st.integers(1, 40)), draw(st.integers(2, 12))
    h, w = draw(st.integers(1, 9)), draw(st.integers(1, 9))
    size = draw(st.integers(1, 20)), draw(st.integers(1, 20))
    padded = draw(st.booleans())
    extent = (draw(st.floats(0.25, h)), draw(st.floats(0.25, w))) if padded else (float(h), float(w))
    embedding = rng.standard_normal((dim, h, w)) + draw(st.sampled_from([0, 3])) * rng.standard_normal((dim, 1, 1))
    text = rng.standard_normal((names, dim)) * draw(st.sampled_from([0.1, 1])) + rng.standard_normal(dim)
    return Grid(unit(embedding, 0), size, extent), unit(text, 1), owners(rng, names, draw(st.booleans()))


@given(cases(), BUDGETS)
@settings(max_examples=60, deadline=None)
def test_label_map_is_the_argmax_of_all_upsampled_logits(case: Any, budget: int) -> None:
    grid, text, owner = case
    labels = brute_labels(brute_logits(grid, text), owner)
    found = label_map(grid, text, owner, SCALE, budget)
    assert found.shape == grid.image_size
    chosen = np.take_along_axis(labels, found[None].astype(np.intp), 0)[0]
    assert (chosen >= labels.max(0) - TOLERANCE).all()


@st.composite
def exact_cases(draw: st.DrawFn) -> tuple[Grid, NDArray[np.float32], NDArray[np.intp]]:
    """Draw small whole numbers and image sizes that make every weight a power of two: float32 makes no errors, ties are ties."""
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    names, dim = draw(st.integers(1, 40)), draw(st.integers(1, 4))
    h, w = draw(st.integers(1, 9)), draw(st.integers(1, 9))
    size = h * draw(st.sampled_from([1, 2, 4])), w * draw(st.sampled_from([1, 2, 4]))
    embedding = rng.integers(-2, 3, (dim, h, w)).astype(np.float32)
    text = rng.integers(-2, 3, (names, dim)).astype(np.float32)
    return Grid(embedding, size, (h, w)), text, owners(rng, names, draw(st.booleans()))


@given(exact_cases(), BUDGETS)
@settings(max_examples=60, deadline=None)
def test_ties_go_to_the_first_name_whatever_the_budget(case: Any, budget: int) -> None:
    grid, text, owner = case
    expected = owner[brute_logits(grid, text).argmax(0)]
    np.testing.assert_array_equal(label_map(grid, text, owner, SCALE, budget), expected)


@given(cases(), BUDGETS, st.data())
@settings(max_examples=40, deadline=None)
def test_the_first_of_equal_names_wins(case: Any, budget: int, data: st.DataObject) -> None:
    grid, text, _ = case
    picks = data.draw(st.lists(st.integers(0, len(text) - 1), min_size=1, max_size=40))
    text, owner = text[picks], np.arange(len(picks))
    first = np.array([picks.index(pick) for pick in picks])
    found = label_map(grid, text, owner, SCALE, budget)
    assert (first[found] == found).all()
    for rows, scores in score_strips(grid, text, owner, SCALE, budget):
        best = scores.argmax(0)
        assert (first[best] == best).all()
        assert rows.stop - rows.start == len(best)
        np.testing.assert_array_equal(scores, scores[first])


def test_equal_rows_count_as_equal_in_long_products() -> None:
    """A matrix product of many terms gives equal rows unequal last bits; the label map must not show that."""
    rng = np.random.default_rng(0)
    for names in range(2, 40):
        text = unit(rng.standard_normal((names, 384)), 1)
        text[-1] = text[0]
        grid = Grid(unit(text[0][:, None, None] + rng.standard_normal((384, 5, 7)) * 0.02, 0), (20, 28), (5, 7))
        assert (label_map(grid, text, np.arange(names), SCALE) == 0).all()
        for _, scores in score_strips(grid, text, np.arange(names), SCALE):
            np.testing.assert_array_equal(scores[0], scores[-1])


@given(cases(), BUDGETS)
@settings(max_examples=50, deadline=None)
def test_scores_are_the_softmax_over_labels(case: Any, budget: int) -> None:
    grid, text, owner = case
    labels = brute_labels(brute_logits(grid, text), owner)
    expected = np.exp(labels - labels.max(0))
    expected /= expected.sum(0)
    row = 0
    for rows, scores in score_strips(grid, text, owner, SCALE, budget):
        assert rows.start == row and rows.stop > row
        assert scores.dtype == np.float32
        np.testing.assert_allclose(scores, expected[:, rows], atol=1e-4)
        np.testing.assert_allclose(scores.sum(0), 1, atol=1e-5)
        row = rows.stop
    assert row == grid.image_size[0]


@pytest.mark.parametrize("candidates", [1, 2, 3, FEW, FEW + 1, 40])
def test_few_and_many_candidates_give_the_same_winner(candidates: int) -> None:
    rng = np.random.default_rng(candidates)
    logits = rng.integers(-1, 2, (30, 60)).astype(np.float32)  # nearly all pixels have ties
    corners, names = rng.integers(0, 30, (4, 12)), np.sort(rng.permuted(np.tile(np.arange(60), (12, 1)), axis=1)[:, :candidates], axis=1)
    here, weights = rng.integers(0, 12, 500), rng.integers(0, 3, (4, 500)).astype(np.float32)
    value = np.einsum("cpn,cp->pn", logits[corners[:, here, None], names[here]], weights)
    expected = names[here, value.argmax(1)]
    assert np.array_equal(_winners(logits, corners, names, here, weights), expected)


def test_no_budget_at_all_is_enough() -> None:
    rng = np.random.default_rng(5)
    grid = Grid(unit(rng.standard_normal((4, 3, 4)), 0), (7, 6), (3, 4))
    text, owner = unit(rng.standard_normal((9, 4)), 1), np.arange(9)
    found = label_map(grid, text, owner, SCALE, 0)
    np.testing.assert_array_equal(found, brute_logits(grid, text).argmax(0))
    assert sum(len(scores[0]) for _, scores in score_strips(grid, text, owner, SCALE, 0)) == 7


@pytest.mark.parametrize("size", [(3, 5), (8, 6), (37, 50), (128, 96)])
def test_agrees_with_torch(size: tuple[int, int]) -> None:
    torch = pytest.importorskip("torch")
    rng = np.random.default_rng(1)
    grid = Grid(unit(rng.standard_normal((16, 8, 6)), 0), size, (8, 6))
    text = unit(rng.standard_normal((12, 16)), 1)
    logits = SCALE * torch.einsum("nd,dhw->nhw", torch.from_numpy(text), torch.from_numpy(grid.embedding))
    logits = torch.nn.functional.interpolate(logits[None], size, mode="bilinear", align_corners=False)[0]
    np.testing.assert_array_equal(label_map(grid, text, np.arange(12), SCALE), logits.argmax(0).numpy())
    scores = np.concatenate([part for _, part in score_strips(grid, text, np.arange(12), SCALE, 20_000)], 1)
    np.testing.assert_allclose(scores, logits.softmax(0).numpy(), atol=1e-5)


def test_padded_input_is_cropped() -> None:
    torch = pytest.importorskip("torch")
    rng = np.random.default_rng(2)
    embedding, text = unit(rng.standard_normal((8, 6, 5)), 0), unit(rng.standard_normal((7, 8)), 1)
    logits = torch.einsum("nd,dhw->nhw", torch.from_numpy(text), torch.from_numpy(embedding))
    whole = torch.nn.functional.interpolate(logits[None], (24, 20), mode="bilinear", align_corners=False)[0].argmax(0)
    found = label_map(Grid(embedding, (18, 10), (4.5, 2.5)), text, np.arange(7), SCALE)
    np.testing.assert_array_equal(found, whole[:18, :10].numpy())


@pytest.mark.parametrize(("labels", "dtype"), [(255, np.uint8), (256, np.uint16), (65_535, np.uint16), (65_536, np.uint32)])
def test_the_last_of_many_labels_can_win(labels: int, dtype: type) -> None:
    angle = np.linspace(0, 1, labels)
    text = np.stack([np.cos(angle), np.sin(angle)], 1).astype(np.float32)
    grid = Grid(np.ascontiguousarray(text[[-1, 0]].T[:, None]), (1, 2), (1, 2))
    found = label_map(grid, text, np.arange(labels), SCALE)
    assert found.dtype == dtype
    assert found[0, 0] > labels - 300  # neighbours are as near as float32 can tell
    assert found[0, 1] < 300


@pytest.mark.parametrize(
    ("names", "cells", "size", "budget"),
    [
        (2_000, (15, 20), (60, 80), 4 << 20),
        (1_000, (2, 2), (60, 60), 8 << 20),  # every name may win at every pixel
        (2_000, (2, 300), (4, 300), 8 << 20),  # two rows of cells are too many
        (2_000, (1, 1), (300, 300), 8 << 20),
        (3, (20, 30), (1_500, 1_000), 8 << 20),  # pixels
        (300, (60, 50), (10, 10), 8 << 20),  # a grid larger than the image
    ],
)
def test_memory_stays_within_the_budget(names: int, cells: tuple[int, int], size: tuple[int, int], budget: int) -> None:
    rng = np.random.default_rng(3)
    grid = Grid(unit(rng.standard_normal((16, *cells)), 0), size, cells)
    text = unit(rng.standard_normal((names, 16)), 1)
    owner = np.arange(names)
    label_map(Grid(grid.embedding, (2, 2), cells), text[:2], owner[:2], SCALE)  # imports and caches of NumPy
    tracemalloc.start()
    try:
        found = label_map(grid, text, owner, SCALE, budget)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak <= budget + found.nbytes + (1 << 20)


def test_memory_of_scores_stays_within_the_budget() -> None:
    rng = np.random.default_rng(4)
    grid = Grid(unit(rng.standard_normal((16, 60, 40)), 0), (400, 150), (60, 40))
    text, budget = unit(rng.standard_normal((200, 16)), 1), 8 << 20
    tracemalloc.start()
    try:
        strips = sum(1 for _ in score_strips(grid, text, np.arange(200), SCALE, budget))
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert strips > 1
    assert peak <= budget


@pytest.mark.parametrize("stride", [1, 2, 4])
def test_aligned_corners_agree_with_torch(stride: int) -> None:
    torch = pytest.importorskip("torch")
    rng = np.random.default_rng(5)
    embedding, text = unit(rng.standard_normal((8, 6, 5)), 0), unit(rng.standard_normal((7, 8)), 1)
    logits = torch.einsum("nd,dhw->nhw", torch.from_numpy(text), torch.from_numpy(embedding))[None]
    size = (6 * stride, 5 * stride)
    whole = torch.nn.functional.interpolate(logits, size, mode="bilinear", align_corners=True)[0]
    # at the network's own size, and cropped where the input was padded
    for (height, width), extent in ((size, (6, 5)), ((5 * stride, 3 * stride), (5, 3))):
        grid = Grid(embedding, (height, width), extent, stride)
        scores = np.concatenate([part for _, part in score_strips(grid, text, np.arange(7), 1.0, 500, "none")], 1)
        np.testing.assert_allclose(scores, whole[:, :height, :width].numpy(), atol=1e-5)
        np.testing.assert_array_equal(label_map(grid, text, np.arange(7), 1.0), scores.argmax(0))
    # and where the image is larger than the input: a second bilinear step that keeps the corners
    found = np.concatenate([part for _, part in score_strips(Grid(embedding, (61, 47), (6, 5), stride), text, np.arange(7), 1.0,
                                                             activation="none")], 1)
    np.testing.assert_allclose(found[:, [0, 0, -1, -1], [0, -1, 0, -1]], logits[0].numpy()[:, [0, 0, -1, -1], [0, -1, 0, -1]], atol=1e-5)


def test_activations_are_what_they_are_called() -> None:
    rng = np.random.default_rng(6)
    maps = rng.standard_normal((5, 4, 6)).astype(np.float32) * 30
    grid, names, owner = Grid(maps, (9, 13), (4, 6)), np.eye(5, dtype=np.float32), np.array([0, 0, 1, 2, 2])
    found = {kind: np.concatenate([part for _, part in score_strips(grid, names, owner, 1.0, 900, kind)], 1)
             for kind in ("none", "sigmoid", "softmax")}
    expected = brute_labels(brute_logits(grid, names) / SCALE, owner)
    np.testing.assert_allclose(found["none"], expected, atol=1e-4)
    np.testing.assert_allclose(found["sigmoid"], 1 / (1 + np.exp(-expected)), atol=1e-5)
    powers = np.exp(expected - expected.max(0))
    np.testing.assert_allclose(found["softmax"], powers / powers.sum(0), atol=1e-4)
