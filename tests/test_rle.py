"""COCO run lengths against a hand-made vector, brute force and pycocotools."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import array_shapes, arrays
from numpy.typing import NDArray

from ovseg.errors import InvalidArgumentError
from ovseg.output.rle import decode_rle, encode_rle, find_runs

MASKS = arrays(bool, array_shapes(min_dims=2, max_dims=2, max_side=30))
MAPS = arrays(
    np.uint8,
    array_shapes(min_dims=2, max_dims=2, max_side=12),
    elements=st.sampled_from([0, 1, 2, 255]),
)


def count_runs(mask: NDArray[np.bool_]) -> list[int]:
    """Runs pixel by pixel: down each column, columns left to right, first run outside."""
    counts, inside = [0], False
    for column in range(mask.shape[1]):
        for row in range(mask.shape[0]):
            if bool(mask[row, column]) != inside:
                inside = not inside
                counts.append(0)
            counts[-1] += 1
    return counts


def test_hand_computed_vector() -> None:
    mask = np.zeros((5, 4), bool)
    mask[1:4, 1:3] = True
    # Columns: 5 outside; 1 outside, 3 in, 1 out; 1 out, 3 in, 1 out; 5 out -> 6 3 2 3 6.
    # Stored: 6, 3, 2, 3 - 3 = 0, 6 - 2 = 4, each one character 48 + value.
    assert encode_rle(mask) == {"size": [5, 4], "counts": "63204"}


def test_hand_computed_long_and_negative_values() -> None:
    flat = np.zeros(1000, bool)
    flat[500:520] = True  # 500 20
    flat[530:533] = True  # 10 3
    mask = flat.reshape(1, 1000)  # one row: columns are single pixels; last run 467
    # 500 = 0b01111_10100: 20 + 32 = 52 -> "d", 15 with the top bit 0 -> "?"
    # 20 = 0b10100 looks negative, so a group 0 follows: 20 + 32 -> "d", 0 -> "0"
    # 10 -> ":";  3 - 20 = -17 = ...11110_1111: 15 + 32 -> "_", 31 -> "O"
    # 467 - 10 = 457 = 0b01110_01001: 9 + 32 -> "Y", 14 -> ">"
    assert encode_rle(mask) == {"size": [1, 1000], "counts": "d?d0:_OY>"}


@pytest.mark.parametrize(
    ("mask", "counts"),
    [
        (np.zeros((2, 3), bool), "6"),
        (np.ones((2, 3), bool), "06"),
        (np.array([[True]]), "01"),
        (np.array([[True, False]]), "011"),
    ],
)
def test_edge_cases(mask: NDArray[np.bool_], counts: str) -> None:
    assert encode_rle(mask)["counts"] == counts
    np.testing.assert_array_equal(decode_rle(encode_rle(mask)), mask)


@settings(max_examples=150, deadline=None)
@given(MASKS)
def test_round_trip_and_runs(mask: NDArray[np.bool_]) -> None:
    rle = encode_rle(mask)
    np.testing.assert_array_equal(decode_rle(rle), mask)
    plain = {"size": rle["size"], "counts": count_runs(mask)}
    np.testing.assert_array_equal(decode_rle(plain), mask)
    np.testing.assert_array_equal(decode_rle({**rle, "counts": rle["counts"].encode()}), mask)


@settings(max_examples=100, deadline=None)
@given(MASKS)
def test_like_pycocotools(mask: NDArray[np.bool_]) -> None:
    coco = pytest.importorskip("pycocotools.mask")
    theirs = coco.encode(np.asfortranarray(mask.astype(np.uint8)))
    assert encode_rle(mask) == {"size": theirs["size"], "counts": theirs["counts"].decode()}
    np.testing.assert_array_equal(coco.decode(encode_rle(mask)), mask)


def test_large_mask() -> None:
    mask = np.zeros((2000, 3000), bool)
    mask[0, 0] = mask[500:1500, 200:2500] = True
    np.testing.assert_array_equal(decode_rle(encode_rle(mask)), mask)


@settings(max_examples=100, deadline=None)
@given(MAPS)
def test_runs_of_all_labels(segmentation: NDArray[np.uint8]) -> None:
    runs = find_runs(segmentation, 3)
    assert len(runs) == 3
    for label, run in enumerate(runs):
        mask = segmentation == label
        assert run.to_rle() == encode_rle(mask)
        assert run.area() == mask.sum()
        rows, columns = np.nonzero(mask)
        if len(rows):
            x, y, width, height = run.box()
            assert (x, y) == (columns.min(), rows.min())
            assert (x + width, y + height) == (columns.max() + 1, rows.max() + 1)
        else:
            assert run.box() == (0, 0, 0, 0)


@pytest.mark.parametrize(
    "rle",
    [
        {},
        {"size": [2, 3]},
        {"size": [2], "counts": "6"},
        {"size": "ab", "counts": "6"},
        {"size": [2, 3], "counts": "7"},
        {"size": [2, 3], "counts": ""},
        {"size": [2, 3], "counts": "\x10"},
        {"size": [2, 3], "counts": "é"},
        {"size": [2, 3], "counts": "6P"},
        {"size": [2, 3], "counts": "P" * 20 + "0"},
        {"size": [2, 3], "counts": [7, -1]},
        {"size": [2, 3], "counts": [[6]]},
        {"size": [2, 3], "counts": [1 << 80]},
        {"size": [2, 3], "counts": [1 << 62, 1 << 62, 1 << 62, 1 << 62, 6]},
        {"size": [2, 3], "counts": None},
        {"size": [-2, -3], "counts": [6]},
    ],
)
def test_damaged_run_lengths(rle: dict[str, Any]) -> None:
    with pytest.raises(InvalidArgumentError, match="size"):
        decode_rle(rle)
