from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from numpy.typing import NDArray
from scipy import ndimage
from skimage import data, measure

from ovseg.errors import InvalidArgumentError
from ovseg.output.regions import find_regions, region_map
from ovseg.result import Segmentation

LABELS = ("a", "b", "c")

maps = hnp.arrays(
    np.uint8, st.tuples(st.integers(1, 12), st.integers(1, 12)), elements=st.sampled_from([0, 1, 2, 255])
)


def structure(connectivity: int) -> NDArray[Any]:
    return np.ones((3, 3)) if connectivity == 8 else ndimage.generate_binary_structure(2, 1)


@settings(max_examples=300, deadline=None)
@given(maps, st.sampled_from([4, 8]))
def test_the_same_regions_as_scipy(segmentation: NDArray[np.uint8], connectivity: int) -> None:
    places = region_map(segmentation, 3, connectivity=connectivity)
    assert ((places == -1) == (segmentation == 255)).all()
    found = find_regions(segmentation, LABELS, connectivity=connectivity)
    seen = 0
    for index, label in enumerate(LABELS):
        numbers, count = ndimage.label(segmentation == index, structure(connectivity))
        for number in range(1, count + 1):
            (place,) = np.unique(places[numbers == number])
            assert (places == place).sum() == (numbers == number).sum() == found[place].pixels
            assert found[place].label == label
        seen += count
    assert seen == len(found)
    sizes = [region.pixels for region in found]
    assert sizes == sorted(sizes, reverse=True)


@pytest.mark.parametrize("connectivity", [4, 8])
def test_boxes_centroids_and_scores_as_skimage(connectivity: int) -> None:
    photo = data.astronaut()[::4, ::4]
    segmentation = np.minimum(photo[..., 0] // 64, 3).astype(np.uint8)
    segmentation[segmentation == 3] = 255
    scores = np.random.default_rng(0).random((3, *segmentation.shape), np.float32)
    result = Segmentation(segmentation, LABELS, 255, scores=scores)
    found = result.regions(connectivity=connectivity)
    places = result.region_map(connectivity=connectivity)
    assert len(found) > 100
    expected = {p.label - 1: p for p in measure.regionprops(places + 1)}
    assert len(expected) == len(found)
    for place, region in enumerate(found):
        one = expected[place]
        top, left, bottom, right = one.bbox
        assert region.pixels == one.area
        assert region.box == (left, top, right - left, bottom - top)
        y, x = one.centroid
        assert region.centroid == pytest.approx((x + 0.5, y + 0.5))
        own = scores[LABELS.index(region.label)][places == place]
        assert region.mean_score == pytest.approx(own.mean(dtype=np.float64), rel=1e-5)
        assert region.area is None


def test_a_spiral_is_one_region() -> None:
    side = 41
    spiral = np.ones((side, side), np.uint8)
    top, left, bottom, right = 0, 0, side - 1, side - 1
    while top <= bottom and left <= right:  # a path one pixel wide, walls one pixel wide
        spiral[top, left : right + 1] = 0
        spiral[top : bottom + 1, right] = 0
        spiral[bottom, left : right + 1] = 0
        spiral[top + 2 : bottom + 1, left] = 0
        if top + 2 <= bottom and left + 1 <= right:
            spiral[top + 2, left : left + 2] = 0
        top, left, bottom, right = top + 2, left + 2, bottom - 2, right - 2
    expected = sum(ndimage.label(spiral == i)[1] for i in (0, 1))
    found = find_regions(spiral, ("path", "wall"))
    assert len(found) == expected
    assert found[0].pixels == max(
        np.bincount(ndimage.label(spiral == i)[0].ravel())[1:].max() for i in (0, 1)
    )


def test_size_on_the_ground() -> None:
    segmentation = np.array([[0, 0, 1], [2, 0, 1]], np.uint8)
    result = Segmentation(segmentation, LABELS, 255)
    assert result.areas() == {"a": 3, "b": 2, "c": 1}
    assert result.areas(0.5) == {"a": 0.75, "b": 0.5, "c": 0.25}
    assert result.areas(pixel_size=(2, 3)) == {"a": 18, "b": 12, "c": 6}
    assert [region.area for region in result.regions(pixel_size=10)] == [300, 200, 100]
    assert [region.mean_score for region in result.regions()] == [None, None, None]


def test_confidence_gives_the_scores_too() -> None:
    segmentation = np.array([[0, 0, 255], [1, 1, 255]], np.uint8)
    confidence = np.array([[0.5, 1, 0], [0.25, 0.75, 0]], np.float32)
    result = Segmentation(segmentation, LABELS, 255, confidence=confidence)
    assert [region.mean_score for region in result.regions()] == [0.75, 0.5]


def test_small_regions_are_left_out_of_list_and_map() -> None:
    segmentation = np.array([[0, 1, 0, 0], [0, 255, 0, 0]], np.uint8)
    result = Segmentation(segmentation, LABELS, 255)
    found = result.regions(min_pixels=2)
    assert [(region.label, region.pixels) for region in found] == [("a", 4), ("a", 2)]
    assert result.region_map(min_pixels=2).tolist() == [[1, -1, 0, 0], [1, -1, 0, 0]]
    assert result.regions(min_pixels=5) == []
    assert (result.region_map(min_pixels=5) == -1).all()


def test_nothing_decided() -> None:
    result = Segmentation(np.full((3, 4), 255, np.uint8), LABELS, 255)
    assert result.regions() == []
    assert (result.region_map() == -1).all()


@pytest.mark.parametrize(
    "options",
    [
        {"min_pixels": 0},
        {"min_pixels": 1.5},
        {"min_pixels": True},
        {"connectivity": 6},
        {"pixel_size": 0},
        {"pixel_size": -1},
        {"pixel_size": float("nan")},
        {"pixel_size": "1"},
        {"pixel_size": (1, 2, 3)},
        {"pixel_size": (1, float("inf"))},
        {"pixel_size": True},
    ],
)
def test_wrong_options(options: dict[str, Any]) -> None:
    result = Segmentation(np.zeros((2, 2), np.uint8), LABELS, 255)
    with pytest.raises(InvalidArgumentError):
        result.regions(**options)
