from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from ovseg.errors import InvalidArgumentError, OvsegError
from ovseg.preprocess import MAX_UPSCALE, Preprocess

sides = st.one_of(st.integers(1, 70), st.integers(1, 3_000), st.integers(1, 200_000))
MODEL = Preprocess()


def picture(height: int, width: int, seed: int = 0) -> NDArray[np.uint8]:
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)


@given(sides, sides, st.sampled_from([None, 32, 100, 448, 1000, 8192, np.int64(64)]), st.sampled_from([14, 16, 32]))
@settings(max_examples=300, deadline=None)
def test_sizes_are_positive_multiples(height: int, width: int, size: Any, multiple: int) -> None:
    fitted = Preprocess(multiple=multiple).input_size((height, width), size)
    assert all(isinstance(side, int) and side >= multiple and side % multiple == 0 for side in fitted)


@given(sides, sides)
@settings(max_examples=300, deadline=None)
def test_the_policy_keeps_its_limits(height: int, width: int) -> None:
    fitted = MODEL.input_size((height, width))
    half = MODEL.multiple / 2
    assert min(fitted) <= MODEL.short_side
    assert math.prod(fitted) <= MODEL.max_area * 4 / 3
    for side, given_side in zip(fitted, (height, width), strict=True):
        assert side <= max(given_side * MAX_UPSCALE + half, MODEL.multiple)
    assert MODEL.input_size((width, height)) == fitted[::-1]


@given(st.integers(64, 3_000), st.floats(1, 8), st.sampled_from([None, 64, 333, 1024]))
@settings(max_examples=200, deadline=None)
def test_ordinary_images_keep_their_aspect(short: int, aspect: float, size: int | None) -> None:
    image_size = short, round(short * aspect)
    fitted = MODEL.input_size(image_size, size)
    scale = fitted[0] / short
    assert abs(fitted[1] - image_size[1] * scale) <= (1 + aspect) * MODEL.multiple / 2 + 1
    if size is not None:
        assert abs(fitted[0] - size) <= MODEL.multiple / 2


@pytest.mark.parametrize(
    ("image_size", "size", "expected"),
    [
        ((480, 640), None, (448, 608)),
        ((1080, 1920), None, (448, 800)),
        ((448, 448), None, (448, 448)),
        ((50, 50), None, (192, 192)),  # four times as large
        ((1, 1), None, (32, 32)),
        ((1, 20_000), None, (32, 12_544)),
        ((20_000, 1), None, (12_544, 32)),
        ((1, 20_000), 448, (32, 32_768)),
        ((480, 640), 224, (224, 288)),
        ((480, 641), "native", (480, 641)),
    ],
)
def test_sizes(image_size: tuple[int, int], size: int | str | None, expected: tuple[int, int]) -> None:
    assert MODEL.input_size(image_size, size) == expected


@pytest.mark.parametrize("size", [0, -1, 31, 8193, 10**9, 448.0, "448", "Native", "", True, False, (448, 448), math.nan, b"native"])
def test_other_sizes_are_refused(size: Any) -> None:
    with pytest.raises(InvalidArgumentError, match="size must be") as caught:
        MODEL.input_size((480, 640), size)
    assert repr(size) in str(caught.value)
    assert isinstance(caught.value, OvsegError) and isinstance(caught.value, ValueError)


def test_values_are_exact() -> None:
    ramp = np.repeat(np.arange(256, dtype=np.uint8), 32 * 32 // 256 * 3).reshape(32, 32, 3)
    plain = MODEL.pixel_values(ramp, (32, 32))
    assert plain.shape == (1, 3, 32, 32) and plain.dtype == np.float32 and plain.flags.c_contiguous
    np.testing.assert_array_equal(plain[0].transpose(1, 2, 0), (ramp.astype(np.float32) - 127.5) / np.float32(127.5))
    assert plain.min() == -1 and plain.max() == 1

    mean, std = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
    image = picture(64, 32)
    found = Preprocess(mean=mean, std=std).pixel_values(image, (64, 32))
    expected = (image / 255 - np.array(mean)) / np.array(std)
    np.testing.assert_allclose(found[0].transpose(1, 2, 0), expected, atol=1e-6)


def test_settings_of_a_card_may_be_lists() -> None:
    image = picture(32, 32)
    found = Preprocess(mean=[0.1, 0.2, 0.3], std=[1, 1, 1]).pixel_values(image, (32, 32))  # type: ignore[arg-type]
    np.testing.assert_array_equal(found, Preprocess(mean=(0.1, 0.2, 0.3), std=(1, 1, 1)).pixel_values(image, (32, 32)))


@pytest.mark.parametrize("image_size", [(1, 1), (1, 40), (33, 64), (31, 65), (64, 96)])
def test_native_pixels_are_padded_by_the_last_ones(image_size: tuple[int, int]) -> None:
    image = picture(*image_size)
    size = MODEL.input_size(image_size, "native")
    found = MODEL.pixel_values(image, size)[0]
    padded = tuple(-(-side // 32) * 32 for side in image_size)
    assert found.shape == (3, *padded)
    for channel in range(3):
        for y in range(padded[0]):
            for x in (0, image_size[1] - 1, padded[1] - 1):
                pixel = float(image[min(y, image_size[0] - 1), min(x, image_size[1] - 1), channel])
                assert found[channel, y, x] == np.float32((pixel - 127.5) / 127.5)


@pytest.mark.parametrize("image_size", [(64, 64), (150, 90), (20, 30), (128, 300)])
def test_resizing_agrees_with_torch(image_size: tuple[int, int]) -> None:
    torch = pytest.importorskip("torch")
    image, size = picture(*image_size), (64, 96)
    found = MODEL.pixel_values(image, size)
    x = torch.from_numpy(image).permute(2, 0, 1)[None].float()
    expected = torch.nn.functional.interpolate(x, size, mode="bilinear", antialias=True, align_corners=False) / 127.5 - 1
    np.testing.assert_allclose(found, expected.numpy(), atol=1.01 / 127.5)  # Pillow rounds to whole levels


def test_large_images_are_reduced_smoothly() -> None:
    y, x = np.mgrid[:1000, :1500]
    waves = 127.5 + 100 * np.sin(x / 200)[..., None] * np.cos(y / 150)[..., None] * np.ones(3)
    image = np.rint(waves).astype(np.uint8)
    found = MODEL.pixel_values(image, (64, 96))
    assert found.shape == (1, 3, 64, 96)
    rows, columns = (np.arange(64) + 0.5) * 1000 / 64 - 0.5, (np.arange(96) + 0.5) * 1500 / 96 - 0.5
    expected = (100 * np.sin(columns / 200) * np.cos(rows / 150)[:, None]) / 127.5
    np.testing.assert_allclose(found[0, 0], expected, atol=0.02)


def test_the_image_stays_as_it_is() -> None:
    image = picture(40, 50)
    image.setflags(write=False)
    before = image.copy()
    MODEL.pixel_values(image, (40, 50))
    MODEL.pixel_values(image[::2, ::-1], (32, 32))
    np.testing.assert_array_equal(image, before)


@pytest.mark.parametrize("size", [(60, 90), (91, 40), (224, 224), (1, 300), (500, 7)])
@pytest.mark.parametrize("fit", ["crop", "squash"])
def test_classification_sees_what_open_clip_shows(size: tuple[int, int], fit: str) -> None:
    open_clip = pytest.importorskip("open_clip")
    from PIL import Image

    mean, std = open_clip.OPENAI_DATASET_MEAN, open_clip.OPENAI_DATASET_STD
    mode = {"crop": "shortest", "squash": "squash"}[fit]
    transform = open_clip.image_transform(56, is_train=False, mean=mean, std=std, resize_mode=mode, interpolation="bicubic")
    image = picture(*size)
    found = Preprocess(mean, std, multiple=14, resample="bicubic").fitted(image, 56, fit)
    assert found.shape == (1, 3, 56, 56)
    if max(size) < 8 * min(size) or fit == "squash":
        np.testing.assert_allclose(found[0], transform(Image.fromarray(image)).numpy(), atol=1e-5)


def test_a_network_that_sees_squares() -> None:
    model = Preprocess(multiple=32, square=352)
    assert model.input_size((100, 900)) == (352, 352)
    assert model.input_size((100, 900), 200) == (192, 192)
    assert model.pixel_values(picture(30, 70), (352, 352)).shape == (1, 3, 352, 352)
    with pytest.raises(InvalidArgumentError, match="squares only"):
        model.input_size((100, 900), "native")


def test_cards_with_another_filter_are_refused() -> None:
    with pytest.raises(InvalidArgumentError, match="resample"):
        Preprocess(resample="lanczos")
