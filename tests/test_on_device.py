"""Label maps whose features stay on the device: what is done on a GPU, here on the CPU under the GPU's name."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

import ovseg
from ovseg.errors import BackendError, InvalidArgumentError, WeightsError
from ovseg.runtime.onnx import OnnxRuntime
from ovseg.segmenter import Segmenter

WORDS = ["sky", "grass", ("sand", "beach"), "rock"]


@pytest.fixture(scope="module", params=["onnx", "torch"])
def plain(request: pytest.FixtureRequest) -> Segmenter:
    pytest.importorskip({"onnx": "onnxruntime"}.get(request.param, request.param))
    return ovseg.load("mini", backend=request.param, device="cpu")


@pytest.fixture
def on_device(plain: Segmenter, monkeypatch: pytest.MonkeyPatch) -> Segmenter:
    """The same model; what is fetched from the device is a failure."""
    runtime = plain._model._runtime
    if isinstance(runtime, OnnxRuntime):
        monkeypatch.setattr(OnnxRuntime, "name", "onnx:cuda")
        monkeypatch.setattr(OnnxRuntime, "_place", "cpu")
    else:
        monkeypatch.setattr(runtime, "name", "torch:cuda")
    seg = Segmenter(plain.card, runtime, plain._model._text._tokenize)

    def fetch(values: Any) -> Any:
        raise AssertionError("features left the device")

    monkeypatch.setattr(seg._model, "_encode_image", fetch)
    return seg


@pytest.fixture(scope="module")
def scene() -> NDArray[np.uint8]:
    y, x = np.mgrid[:90, :130]
    return np.stack([2 * y, x, 255 - y - x], -1).astype(np.uint8)


def test_the_answer_is_the_same(plain: Segmenter, on_device: Segmenter, scene: NDArray[np.uint8]) -> None:
    for options in ({}, {"size": 160}, {"background": ["wall", "water"]}):
        found, expected = on_device.segment(scene, WORDS, **options), plain.segment(scene, WORDS, **options)  # type: ignore[arg-type]
        assert found.labels == expected.labels and found.segmentation.dtype == expected.segmentation.dtype
        assert (found.segmentation == expected.segmentation).mean() > 0.999
        assert found.image is not None
        np.testing.assert_array_equal(found.image, scene)


def test_batches_stay_there_too(plain: Segmenter, on_device: Segmenter, scene: NDArray[np.uint8]) -> None:
    shared = on_device.batched(4)
    shared._model._encode_image = on_device._model._encode_image
    found = shared.segment([scene, scene[::-1]], WORDS)
    for one, image in zip(found, (scene, scene[::-1]), strict=True):
        assert (one.segmentation == plain.segment(image, WORDS).segmentation).mean() > 0.999


@pytest.mark.parametrize("options", [{"scores": True}, {"confidence": True}, {"tags": ["sky"]}, {"window": "sliding"}, {"margin": 0.1}])
def test_what_needs_the_features_fetches_them(on_device: Segmenter, scene: NDArray[np.uint8], options: Any) -> None:
    with pytest.raises(AssertionError, match="left the device"):
        on_device.segment(scene, WORDS, **options)


def test_numbers_that_are_not_finite_are_refused(on_device: Segmenter, scene: NDArray[np.uint8], monkeypatch: pytest.MonkeyPatch) -> None:
    encode = on_device._model._encode_on_device
    monkeypatch.setattr(on_device._model, "_encode_on_device", lambda values: encode(values * np.float32("nan")))
    with pytest.raises(BackendError, match="not finite"):
        on_device.segment(scene, WORDS)


def test_features_of_another_size_are_refused(on_device: Segmenter, scene: NDArray[np.uint8], monkeypatch: pytest.MonkeyPatch) -> None:
    encode = on_device._model._encode_on_device
    monkeypatch.setattr(on_device._model, "_encode_on_device", lambda values: encode(values[:, :, 32:]))
    with pytest.raises(WeightsError, match="do not belong together"):
        on_device.segment(scene, WORDS)


def test_a_window_that_does_not_exist_is_refused(on_device: Segmenter, scene: NDArray[np.uint8]) -> None:
    with pytest.raises(InvalidArgumentError, match="window must be"):
        on_device.segment(scene, WORDS, window="whole image")
