from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from ovseg.multiscale import SCALES, multiscale_logits, plan_views, resize_corners

Floats = NDArray[np.float32]


def network(crop: int) -> Callable[[Floats], Floats]:
    """Something that is neither linear, nor symmetric, nor the same everywhere in a crop."""
    generator = torch.Generator().manual_seed(3)
    kernel = torch.randn(4, 3, 3, 3, generator=generator)
    place = torch.randn(4, crop, crop, generator=generator)

    def logits_of(pixel_values: Floats) -> Floats:
        assert pixel_values.shape[1:] == (3, crop, crop)
        assert pixel_values.dtype == np.float32
        x = torch.from_numpy(np.ascontiguousarray(pixel_values))
        result: Floats = (F.conv2d(x, kernel, padding=1).tanh() * 3 + place).numpy()
        return result

    return logits_of


def slow(image: NDArray[np.uint8], logits_of: Callable[[Floats], Floats], scales: tuple[float, ...], base: int, crop: int) -> Tensor:
    """The description, step by step, in torch: no plan, pixel counts in dense maps, one crop and one side at a time."""

    def resize(x: Tensor, height: int, width: int) -> Tensor:
        return F.interpolate(x, (height, width), mode="bilinear", align_corners=True)

    def pad(x: Tensor) -> Tensor:
        return F.pad(x, (0, max(0, crop - x.shape[3]), 0, max(0, crop - x.shape[2])), value=-1)

    def both_sides(x: Tensor) -> Tensor:
        straight = torch.from_numpy(logits_of(x.numpy()))
        return straight + torch.from_numpy(logits_of(x.flip(3).numpy())).flip(3)

    x = torch.from_numpy(image).permute(2, 0, 1)[None] / 127.5 - 1
    full_height, full_width = image.shape[:2]
    result = torch.zeros(1, 4, full_height, full_width)
    for scale in scales:
        long = math.ceil(base * scale)
        if full_height > full_width:
            height, width = long, int(1.0 * full_width * long / full_height + 0.5)
        else:
            height, width = int(1.0 * full_height * long / full_width + 0.5), long
        scaled = resize(x, height, width)
        if long <= crop:
            logits = both_sides(pad(scaled))[:, :, :height, :width]
        else:
            padded = pad(scaled)
            total, seen = torch.zeros(1, 4, *padded.shape[2:]), torch.zeros(padded.shape[2:])
            top = 0
            while True:
                left = 0
                while True:
                    part = padded[:, :, top : top + crop, left : left + crop]
                    h, w = part.shape[2:]
                    total[:, :, top : top + h, left : left + w] += both_sides(pad(part))[:, :, :h, :w]
                    seen[top : top + h, left : left + w] += 1
                    if left + crop >= padded.shape[3]:
                        break
                    left += int(crop * 2 / 3)
                if top + crop >= padded.shape[2]:
                    break
                top += int(crop * 2 / 3)
            logits = (total / seen)[:, :, :height, :width]
        result += resize(logits, full_height, full_width)
    return result[0]


@pytest.mark.parametrize("size", [(40, 60), (75, 50), (64, 64), (20, 90), (33, 1)])
def test_equals_the_description(size: tuple[int, int]) -> None:
    image = np.random.default_rng(0).integers(0, 256, (*size, 3), dtype=np.uint8)
    logits_of = network(48)
    if size[1] == 1:
        expected = slow(image, logits_of, (0.75, 1.25), 52, 48)  # narrower ones have no pixel left in the description
        found = multiscale_logits(image, logits_of, base=52, crop=48, scales=(0.75, 1.25))
    else:
        expected = slow(image, logits_of, SCALES, 52, 48)
        found = multiscale_logits(image, logits_of, base=52, crop=48)
    assert found.dtype == np.float32
    np.testing.assert_allclose(found, expected.numpy(), atol=1e-4)


def test_constant_logits_stay_what_they_are() -> None:
    image = np.zeros((30, 70, 3), np.uint8)
    found = multiscale_logits(image, lambda x: np.ones((len(x), 2, 48, 48), np.float32), base=52, crop=48)
    np.testing.assert_allclose(found, np.full((2, 30, 70), 2 * len(SCALES)), rtol=1e-6)  # crops are averaged, sides and scales added
    alone = multiscale_logits(image, lambda x: np.ones((len(x), 2, 48, 48), np.float32), base=52, crop=48, flip=False)
    np.testing.assert_allclose(alone, np.full((2, 30, 70), len(SCALES)), rtol=1e-6)


def test_padding_has_the_value_of_black() -> None:
    seen: list[Floats] = []

    def logits_of(x: Floats) -> Floats:
        seen.append(np.array(x))
        return np.zeros((len(x), 1, 8, 8), np.float32)

    multiscale_logits(np.full((2, 4, 3), 255, np.uint8), logits_of, base=8, crop=8, scales=(1.0,))
    np.testing.assert_array_equal(seen[0][0, :, :4], 1)
    np.testing.assert_array_equal(seen[0][0, :, 4:], -1)
    mean, std = (0.4, 0.5, 0.6), (0.2, 0.3, 0.4)
    multiscale_logits(np.zeros((2, 4, 3), np.uint8), logits_of, base=8, crop=8, scales=(1.0,), mean=mean, std=std)
    np.testing.assert_allclose(seen[1][0], np.broadcast_to(-np.divide(mean, std)[:, None, None], (3, 8, 8)), rtol=1e-6)


def test_published_plan() -> None:
    """A photograph of 640 x 480 pixels at the published settings."""
    views = plan_views((480, 640))
    assert [view.size for view in views] == [(195, 260), (293, 390), (390, 520), (488, 650), (585, 780), (683, 910)]
    assert [view.canvas for view in views] == [(480, 480), (480, 480), (480, 520), (488, 650), (585, 780), (683, 910)]
    assert [len(view.boxes) for view in views] == [1, 1, 2, 4, 4, 6]
    assert views[2].boxes == ((0, 0, 480, 480), (0, 320, 480, 520))
    assert views[5].boxes[-1] == (320, 640, 683, 910)
    assert [view.size for view in plan_views((640, 480))] == [size[::-1] for size in (view.size for view in views)]


@pytest.mark.parametrize("size", [(1, 1000), (7, 3), (521, 521), (2000, 10)])
def test_crops_cover_the_canvas(size: tuple[int, int]) -> None:
    for view in plan_views(size):
        seen = np.zeros(view.canvas, bool)
        for top, left, bottom, right in view.boxes:
            assert 0 < bottom - top <= 480
            assert 0 < right - left <= 480
            seen[top:bottom, left:right] = True
        assert seen.all()
        assert min(view.size) >= 1


@pytest.mark.parametrize("shapes", [((5, 7), (9, 4)), ((1, 3), (4, 1)), ((6, 6), (6, 11)), ((50, 40), (7, 9))])
def test_resize_equals_torch(shapes: tuple[tuple[int, int], tuple[int, int]]) -> None:
    source, target = shapes
    maps = np.random.default_rng(1).standard_normal((3, *source)).astype(np.float32)
    kept = maps.copy()
    expected = F.interpolate(torch.from_numpy(maps)[None], target, mode="bilinear", align_corners=True)[0]
    np.testing.assert_allclose(resize_corners(maps, target), expected.numpy(), atol=1e-5)
    np.testing.assert_array_equal(maps, kept)
