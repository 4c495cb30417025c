"""Ranges, multiples, shapes that follow, and the estimate of memory."""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

onnx = pytest.importorskip("onnx")
from onnx import helper  # noqa: E402
from ovseg.export.tensorrt_profiles import (  # noqa: E402
    Range,
    Ranges,
    check_multiples,
    estimate_memory,
    graph_inputs,
    profiles,
    size_range,
)
from small_graphs import graph, image_graph, segmenter_graph, value  # noqa: E402

from ovseg.errors import InvalidArgumentError, WeightsError  # noqa: E402
from ovseg.registry import cards, find_card  # noqa: E402

RANGES = Ranges(Range(1, 2, 4), Range(16, 32, 64), Range(24, 48, 96), Range(1, 5, 300))


@pytest.mark.parametrize("values", [(0, 1, 2), (3, 2, 4), (1, 5, 4), (1, 2, True), (1, 1.5, 2), (-1, 1, 1)])
def test_ranges_are_positive_numbers_in_order(values: tuple[Any, Any, Any]) -> None:
    with pytest.raises(InvalidArgumentError, match="least, best, largest"):
        Range(*values)


@given(st.lists(st.integers(1, 5000), min_size=3, max_size=3), st.integers(1, 64))
def test_rounding_widens_to_multiples(numbers: list[int], multiple: int) -> None:
    exact = Range(*sorted(numbers))
    near = exact.rounded(multiple)
    assert all(near[place] % multiple == 0 for place in range(3))
    assert near.least <= max(exact.least, multiple)
    assert exact.largest <= near.largest < exact.largest + multiple
    assert abs(near.best - exact.best) <= multiple
    check_multiples(near, multiple, "height")
    assert near.rounded(multiple) == near


def test_what_is_no_multiple_is_refused_with_what_would_work() -> None:
    with pytest.raises(InvalidArgumentError, match=r"height must be in multiples of 14.*Nearest: 224,476,1036"):
        check_multiples(Range(224, 480, 1024), 14, "height")


def test_every_card_gets_a_range_that_its_network_takes() -> None:
    for card in cards().values():
        size = size_range(card)
        check_multiples(size, card.preprocess.get("multiple", 32), "height")
        assert size.least <= card.window.get("size", size.best) <= size.largest
    square = dataclasses.replace(find_card("mini"), preprocess={"square": 352, "multiple": 16})
    assert size_range(square) == Range(352, 352, 352)


def test_shapes_follow_from_the_ranges() -> None:
    assert profiles(graph_inputs(segmenter_graph()), RANGES, {"positions": 8}) == {
        "pixel_values": ((1, 3, 16, 24), (2, 3, 32, 48), (4, 3, 64, 96)),
        "positions": ((2, 3, 6), (4, 6, 6), (8, 12, 6)),
        "text_embeddings": ((1, 6), (5, 6), (300, 6)),
    }


@given(st.integers(1, 30), st.integers(0, 30), st.integers(0, 30), st.integers(1, 30))
def test_positions_of_any_image_in_the_range_lie_in_their_profile(least: int, more: int, yet_more: int, width: int) -> None:
    height = Range(8 * least, 8 * (least + more), 8 * (least + more + yet_more))
    found = profiles(graph_inputs(image_graph()), dataclasses.replace(RANGES, height=height), {"positions": 8})
    low, _, high = found["positions"]
    for rows in range(height.least // 8, height.largest // 8 + 1, max(1, yet_more)):
        assert low[0] <= rows <= high[0]
    assert all(a <= b <= c for shapes in found.values() for a, b, c in zip(*shapes, strict=True))


def test_dimensions_that_the_graph_fixes() -> None:
    inputs: dict[str, tuple[int | str, ...]] = {"pixel_values": ("B", 3, 32, "W")}
    with pytest.raises(InvalidArgumentError, match="fixes a dimension of pixel_values to 32"):
        profiles(inputs, RANGES, {})
    fixed = dataclasses.replace(RANGES, height=Range(32, 32, 32))
    assert profiles(inputs, fixed, {})["pixel_values"] == ((1, 3, 32, 24), (2, 3, 32, 48), (4, 3, 32, 96))


@pytest.mark.parametrize(
    "inputs", [{"mask": ("B", 4)}, {"pixel_values": ("B", 3)}, {"positions": ("h", "w", 6)}, {"text_embeddings": ("K", "D")}]
)
def test_inputs_that_nobody_knows(inputs: dict[str, tuple[int | str, ...]]) -> None:
    with pytest.raises(WeightsError):
        profiles(inputs, RANGES, {})


def test_memory_of_a_chain_is_its_two_largest_neighbours() -> None:
    nodes = [
        helper.make_node("Relu", ["x"], ["a"]),  # 4 N bytes each
        helper.make_node("Concat", ["a", "a"], ["b"], axis=1),
        helper.make_node("Relu", ["b"], ["c"]),
        helper.make_node("ReduceMax", ["c", "axes"], ["y"], keepdims=0),
    ]
    weights = {"axes": np.int64([1])}
    model = graph(nodes, [value("x", ["N", 10])], [value("y", ["N"])], weights)
    found = estimate_memory(model, {"x": (7, 10)})
    assert (found.inputs, found.outputs, found.weights, found.unknown) == (280, 28, 8, 0)
    assert found.activations == 2 * 560  # b and c; a is done with by then, the output counts by itself
    assert model.graph.input[0].type.tensor_type.shape.dim[0].dim_param == "N"


def test_memory_grows_with_the_shapes_and_says_what_it_cannot_tell() -> None:
    model = image_graph()
    shapes = {"pixel_values": (2, 3, 32, 48), "positions": (4, 6, 6)}
    found = estimate_memory(model, shapes)
    assert (found.inputs, found.outputs, found.weights) == (4 * 2 * 3 * 32 * 48 + 4 * 4 * 6 * 6, 4 * 2 * 6 * 4 * 6, 4 * 6 * 3 * 64)
    assert found.unknown == 0
    nodes = [helper.make_node("NonZero", ["x"], ["m"]), helper.make_node("Relu", ["m"], ["y"])]
    assert estimate_memory(graph(nodes, [value("x", ["N"])], [value("y", None)]), {"x": (5,)}).unknown == 2
