from __future__ import annotations

from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from ovseg import similarity
from ovseg.features import largest_norm
from ovseg.onnx_writer import write_graph
from ovseg.screen import Screen, _text_levels, neighbours
from ovseg.similarity import Grid, label_map

Floats = NDArray[np.float32]


@st.composite
def cases(draw: st.DrawFn) -> tuple[Floats, Floats]:
    """Features (D, rows, columns) and embeddings (N, D): noise, things near each other, small whole numbers with ties, nothing."""
    random = np.random.default_rng(draw(st.integers(0, 2**31)))
    size, names = draw(st.integers(1, 40)), draw(st.integers(1, 60))
    rows, columns = draw(st.integers(1, 7)), draw(st.integers(1, 7))
    kind = draw(st.sampled_from(("noise", "near", "whole", "nothing", "outlier")))
    features, text = random.standard_normal((size, rows, columns)), random.standard_normal((names, size))
    if kind == "near":
        text = text[:1] + 1e-3 * text
    elif kind == "whole":
        features, text = np.rint(features), np.rint(text)
    elif kind == "nothing":
        features = np.zeros_like(features)
    elif kind == "outlier":
        features[0, 0, 0], text[0, 0] = 300, -300
    return features.astype(np.float32), text.astype(np.float32)


@settings(deadline=None, max_examples=150)
@given(cases())
def test_no_name_that_wins_somewhere_is_left_out(case: tuple[Floats, Floats]) -> None:
    features, text = case
    size, rows, columns = features.shape
    found = Screen(text).names(features.reshape(size, -1), columns, largest_norm(features))
    assert list(found) == sorted(set(found.tolist()))
    logits = text.astype(np.float64) @ features.reshape(size, -1)
    winners = set()
    corners = neighbours(rows * columns, columns)
    for y in np.linspace(0, 1, 6):
        for x in np.linspace(0, 1, 6):
            weights = ((1 - y) * (1 - x), (1 - y) * x, y * (1 - x), y * x)
            between = sum(weight * logits[:, corner] for weight, corner in zip(weights, corners, strict=True))
            winners |= set(between.argmax(0).tolist())
    assert winners <= set(found.tolist())


@settings(deadline=None, max_examples=100)
@given(cases(), st.sampled_from((1, 4000, 256 << 20)))
def test_a_label_map_is_the_same_with_it(case: tuple[Floats, Floats], budget: int) -> None:
    features, text = case
    grid = Grid(features, (3 * features.shape[1] + 1, 4 * features.shape[2]), features.shape[1:])
    owner = np.arange(len(text))
    expected = label_map(grid, text, owner, 7.0, budget)
    before, similarity.FEWEST = similarity.FEWEST, 1
    try:
        found = label_map(grid, text, owner, 7.0, budget)
    finally:
        similarity.FEWEST = before
    values = similarity.upsampled(similarity.name_logits(grid, text, 7.0, slice(None), slice(None)), *grid.axes)
    tolerance = 1e-5 * np.abs(values).max()
    for found_map in (found, expected):  # where two names are equal but for rounding, either may win
        won = np.take_along_axis(values, found_map[None].astype(int), 0)[0]
        assert (won >= values.max(0) - tolerance).all()


def test_of_a_thousand_distinct_names_few_are_left() -> None:
    random = np.random.default_rng(5)
    text = random.standard_normal((1000, 256)).astype(np.float32)
    text /= np.linalg.norm(text, axis=1, keepdims=True)
    features = np.repeat(text[:4], 30, axis=0).T + 0.02 * random.standard_normal((256, 120)).astype(np.float32)
    found = Screen(text).names(features, 30, largest_norm(features[:, None]))
    assert set(range(4)) <= set(found.tolist())
    assert len(found) < 20


def test_the_integers_of_this_processor_do_not_overflow() -> None:
    assert _text_levels() in (63, 127)
    random = np.random.default_rng(1)
    text = random.choice([-1, 1], (40, 64)).astype(np.float32)
    screen = Screen(text)
    features = random.choice([0, 1], (64, 50)).astype(np.float32)
    counts, step = screen._product.run(None, {"features": features})
    assert step == np.float32(1 / 255)
    expected = 255 * features.T.astype(np.int64) @ np.rint((text - text.mean(0)) / np.float32(screen._step)).astype(np.int64).T
    np.testing.assert_array_equal(counts, expected)


@pytest.mark.parametrize("kind", [np.float32, np.uint8, np.int8, np.int32, np.int64])
def test_graphs_are_what_the_onnx_package_reads(kind: Any) -> None:
    table = np.arange(300).reshape(2, 150).astype(kind)
    model = write_graph([("Identity", ["table"], ["same"]), ("Transpose", ["same"], ["out"])], {"table": table}, {}, {"out": (kind, 2)})
    read = onnx.load_model_from_string(model)
    onnx.checker.check_model(read)
    np.testing.assert_array_equal(onnx.numpy_helper.to_array(read.graph.initializer[0]), table)
    session = onnxruntime.InferenceSession(model, providers=["CPUExecutionProvider"])
    np.testing.assert_array_equal(session.run(None, {})[0], table.T)


@pytest.mark.parametrize("kind", ["own", "view", "frozen view"])
def test_names_that_change_where_they_lie_are_not_taken_for_those_before(kind: str) -> None:
    random = np.random.default_rng(4)
    base = random.standard_normal((600, 16)).astype(np.float32)
    text = base if kind == "own" else base[:]
    if kind == "frozen view":
        text.flags.writeable = False
    grid = Grid(random.standard_normal((16, 5, 6)).astype(np.float32), (20, 24), (5, 6))
    first = label_map(grid, text, np.arange(600), 3.0)
    base[:] = base[::-1].copy()
    np.testing.assert_array_equal(label_map(grid, text, np.arange(600), 3.0), 599 - first)
