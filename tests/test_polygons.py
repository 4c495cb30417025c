"""Polygons against brute force: filled back, they are the mask; one per connected region."""

from __future__ import annotations

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import array_shapes, arrays
from numpy.typing import NDArray

from ovseg.output.polygons import Polygon, signed_area, trace_polygons

MAPS = arrays(
    np.uint8,
    array_shapes(min_dims=2, max_dims=2, max_side=9),
    elements=st.sampled_from([0, 1, 2, 255]),
)


def is_inside(x: float, y: float, rings: list[NDArray[np.int32]]) -> bool:
    """Even-odd rule: cross edges with a ray to the right."""
    inside = False
    for ring in rings:
        for (x1, y1), (x2, y2) in zip(
            ring.tolist(), np.roll(ring, -1, axis=0).tolist(), strict=True
        ):
            if (y1 > y) != (y2 > y) and x < x1 + (y - y1) * (x2 - x1) / (y2 - y1):
                inside = not inside
    return inside


def fill(polygons: list[Polygon], size: tuple[int, ...]) -> NDArray[np.bool_]:
    rings = [ring for polygon in polygons for ring in (polygon.exterior, *polygon.interiors)]
    return np.array(
        [[is_inside(x + 0.5, y + 0.5, rings) for x in range(size[1])] for y in range(size[0])]
    )


def count_regions(mask: NDArray[np.bool_]) -> int:
    """Count 4-connected regions by flood fill."""
    left = set(zip(*(axis.tolist() for axis in np.nonzero(mask)), strict=True))
    regions = 0
    while left:
        regions += 1
        border = [left.pop()]
        while border:
            y, x = border.pop()
            for neighbour in ((y - 1, x), (y + 1, x), (y, x - 1), (y, x + 1)):
                if neighbour in left:
                    left.remove(neighbour)
                    border.append(neighbour)
    return regions


def check(segmentation: NDArray[np.uint8], num_labels: int) -> None:
    traced = trace_polygons(segmentation, num_labels)
    assert len(traced) == num_labels
    for label, polygons in enumerate(traced):
        mask = segmentation == label
        np.testing.assert_array_equal(fill(polygons, mask.shape), mask)
        assert len(polygons) == count_regions(mask)
        for polygon in polygons:
            alone = fill([polygon], mask.shape)
            assert count_regions(alone) == 1
            holes = [signed_area(ring) for ring in polygon.interiors]
            assert signed_area(polygon.exterior) > 0 and all(area < 0 for area in holes)
            assert signed_area(polygon.exterior) + sum(holes) == alone.sum()
            for ring in (polygon.exterior, *polygon.interiors):
                assert ring.dtype == np.int32 and ring.shape[0] >= 4 and ring.shape[1] == 2
                assert len(np.unique(ring, axis=0)) == len(ring), "a ring visits a corner twice"
                steps = np.roll(ring, -1, axis=0) - ring
                assert ((steps == 0).sum(axis=1) == 1).all(), "edges follow the pixels"
                turns = (steps[:, 0] == 0) != (np.roll(steps, -1, axis=0)[:, 0] == 0)
                assert turns.all(), "only corners are listed"


@settings(max_examples=200, deadline=None)
@given(MAPS)
def test_filled_back_they_are_the_mask(segmentation: NDArray[np.uint8]) -> None:
    check(segmentation, 3)


def test_one_pixel() -> None:
    ((polygon,),) = trace_polygons(np.zeros((1, 1), np.uint8), 1)
    # Clockwise on the screen, from the top-left corner.
    np.testing.assert_array_equal(polygon.exterior, [(0, 0), (1, 0), (1, 1), (0, 1)])
    assert polygon.interiors == ()


def test_coordinates_are_x_y() -> None:
    segmentation = np.full((3, 5), 255, np.uint8)
    segmentation[1, 2:4] = 0
    ((polygon,),) = trace_polygons(segmentation, 1)
    np.testing.assert_array_equal(polygon.exterior, [(2, 1), (4, 1), (4, 2), (2, 2)])


def test_hole_with_an_island() -> None:
    segmentation = np.zeros((7, 7), np.uint8)
    segmentation[1:6, 1:6] = 1
    segmentation[3, 3] = 0
    outer, island = trace_polygons(segmentation, 2)[0]
    assert len(outer.interiors) == 1 and island.interiors == ()
    np.testing.assert_array_equal(outer.interiors[0], [(1, 1), (1, 6), (6, 6), (6, 1)])
    np.testing.assert_array_equal(island.exterior, [(3, 3), (4, 3), (4, 4), (3, 4)])


def test_corners_do_not_connect() -> None:
    first, second = trace_polygons(np.array([[0, 1], [1, 0]], np.uint8), 2)
    assert len(first) == len(second) == 2


def test_outline_that_touches_itself_becomes_outline_and_hole() -> None:
    # The outside reaches the middle only across a corner.
    segmentation = np.array([[1, 0, 0], [0, 1, 0], [0, 0, 0]], np.uint8)
    ((polygon,), _) = trace_polygons(segmentation, 2)
    assert len(polygon.exterior) == 6 and len(polygon.interiors) == 1
    check(segmentation, 2)


def test_holes_that_touch_are_two() -> None:
    segmentation = np.zeros((4, 4), np.uint8)
    segmentation[1, 1] = segmentation[2, 2] = 1
    (polygon,) = trace_polygons(segmentation, 2)[0]
    assert [len(ring) for ring in polygon.interiors] == [4, 4]
    check(segmentation, 2)


def test_nothing_there() -> None:
    assert trace_polygons(np.full((4, 3), 255, np.uint8), 2) == [[], []]
    assert trace_polygons(np.full((4, 3), 65535, np.uint16), 2) == [[], []]


def test_uint16_labels() -> None:
    segmentation = np.array([[299, 299, 7], [65535, 0, 7]], np.uint16)
    traced = trace_polygons(segmentation, 300)
    assert [i for i, polygons in enumerate(traced) if polygons] == [0, 7, 299]
    np.testing.assert_array_equal(traced[7][0].exterior, [(2, 0), (3, 0), (3, 2), (2, 2)])


def test_large_map_with_deep_nesting() -> None:
    # Squares in squares: every label has holes with islands with holes.
    side = 400
    y, x = np.mgrid[:side, :side]
    rings = np.minimum.reduce([y, x, side - 1 - y, side - 1 - x]) // 2
    traced = trace_polygons((rings % 2).astype(np.uint8), 2)
    assert [len(polygons) for polygons in traced] == [50, 50]
    for polygons in traced:
        for polygon in polygons:
            assert len(polygon.exterior) == 4 and len(polygon.interiors) <= 1
    innermost = traced[1][-1]
    assert innermost.interiors == () and signed_area(innermost.exterior) == 16


def test_input_is_left_alone() -> None:
    segmentation = np.array([[0, 255], [1, 0]], np.uint8)
    before = segmentation.copy()
    segmentation.flags.writeable = False
    trace_polygons(segmentation, 2)
    np.testing.assert_array_equal(segmentation, before)
