from __future__ import annotations

from functools import cache
from typing import Any

import numpy as np
import onnxruntime
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from ovseg.runtime.onnx_label_map import DeviceFeatures, LabelMapper
from ovseg.runtime.torch import TorchRuntime, device_label_map
from ovseg.similarity import Grid, label_map


class Tower(nn.Module):
    """Strided convolution to unit vectors."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.conv = nn.Conv2d(3, 6, 4, 4)

    def forward(self, pixel_values: Tensor) -> Tensor:
        return nn.functional.normalize(self.conv(pixel_values).float(), dim=1)


@st.composite
def cases(draw: st.DrawFn) -> tuple[Grid, Any, Any]:
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    names, dim, h, w = (draw(st.integers(1, most)) for most in (30, 6, 7, 7))
    size = draw(st.integers(1, 24)), draw(st.integers(1, 24))
    corners = draw(st.sampled_from([None, 4]))
    extent = (float(h), float(w)) if corners else (draw(st.floats(0.3, h)), draw(st.floats(0.3, w)))
    embedding = rng.standard_normal((dim, h, w)).astype(np.float32)
    text = rng.standard_normal((names, dim)).astype(np.float32)
    text[rng.integers(0, names)] = text[0]  # a tie everywhere
    owner = np.cumsum(rng.integers(0, 2, names) * np.arange(names).clip(max=1)) if draw(st.booleans()) else np.arange(names)
    return Grid(embedding, size, extent, corners), text, owner


def by_torch(grid: Grid, *question: Any) -> Any:
    return device_label_map(torch.from_numpy(grid.embedding), grid.axes, *question)


@cache
def mapper() -> LabelMapper:
    return LabelMapper(onnxruntime.SessionOptions(), ["CPUExecutionProvider"], "cpu")


def by_onnx(grid: Grid, *question: Any) -> Any:
    batch = np.stack([grid.embedding[::-1], grid.embedding, -grid.embedding])
    return mapper().label_pixels(DeviceFeatures(onnxruntime.OrtValue.ortvalue_from_numpy(batch), 1), grid.axes, *question)


@pytest.mark.parametrize("find", [by_torch, by_onnx])
@given(cases(), st.sampled_from([1, 3_000, 1 << 20]))
@settings(max_examples=80, deadline=None)
def test_the_label_map_of_a_device_is_that_of_the_host_up_to_near_ties(find: Any, case: Any, budget: int) -> None:
    grid, text, owner = case
    found = find(grid, text, owner, 20.0, budget)
    expected = label_map(grid, text, owner, 20.0)
    assert found.dtype == expected.dtype and found.shape == expected.shape
    rows, columns = grid.axes
    logits = 20 * np.einsum("nd,dhw->nhw", text.astype(float), grid.embedding.astype(float))
    y, x = rows.weight[:, None].astype(float), columns.weight.astype(float)
    logits = (1 - y) * logits[:, rows.low] + y * logits[:, rows.high]
    logits = (1 - x) * logits[:, :, columns.low] + x * logits[:, :, columns.high]
    best = np.stack([logits[owner == label].max(0) for label in range(owner[-1] + 1)])
    mine, theirs = (np.take_along_axis(best, labels[None].astype(np.intp), 0) for labels in (found, expected))
    np.testing.assert_allclose(mine, theirs, atol=1e-3)
    assert np.array_equal(found, expected) or (found != expected).mean() < 0.2


def test_exact_ties_go_to_the_first_name() -> None:
    grid = Grid(np.ones((2, 3, 3), np.float32), (5, 5), (3.0, 3.0))
    text = np.array([[0.5, 0.5], [1, 0], [0, 1], [1, 0]], np.float32)
    for find in (by_torch, by_onnx):
        assert (find(grid, text, np.arange(4), 8.0) == 0).all()
        assert (find(grid, text[1:], np.arange(3), 8.0) == 0).all()


def test_many_labels_need_two_bytes() -> None:
    rng = np.random.default_rng(0)
    grid = Grid(rng.standard_normal((4, 3, 3)).astype(np.float32), (9, 9), (3.0, 3.0))
    text = rng.standard_normal((300, 4)).astype(np.float32)
    for find in (by_torch, by_onnx):
        found = find(grid, text, np.arange(300), 1.0)
        assert found.dtype == np.uint16
        np.testing.assert_array_equal(found, label_map(grid, text, np.arange(300), 1.0))


def test_what_is_not_finite_is_found_in_its_image_alone() -> None:
    batch = np.ones((3, 2, 4, 5), np.float32)
    batch[1, 1, 3, 4] = np.nan
    batch[2, 0, 0, 0] = -np.inf
    value = onnxruntime.OrtValue.ortvalue_from_numpy(batch)
    assert [mapper().is_finite(DeviceFeatures(value, index)) for index in range(3)] == [True, False, False]
    runtime = TorchRuntime(Tower, device="cpu")
    assert [runtime.is_finite(one) for one in torch.from_numpy(batch)] == [True, False, False]


def test_features_may_stay_on_the_device() -> None:
    runtime = TorchRuntime(Tower, device="cpu")
    values = np.random.default_rng(0).standard_normal((1, 3, 16, 24)).astype(np.float32)
    text = np.random.default_rng(1).standard_normal((9, 6)).astype(np.float32)
    on_device = runtime.encode_on_device(values)
    host = runtime.encode_image(values)
    np.testing.assert_array_equal(on_device.numpy(), host)
    grid = Grid(host[0], (16, 24), (4.0, 6.0))
    expected = label_map(grid, text, np.arange(9), 3.0)
    for features in (grid.embedding, on_device[0]):
        np.testing.assert_array_equal(runtime.label_pixels(features, grid.axes, text, np.arange(9), 3.0), expected)


@pytest.mark.parametrize("compile", [False, True])
def test_compile_is_asked_of_torch_only_when_wanted(compile: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[dict[str, Any]] = []

    def stand_in(module: nn.Module, **options: Any) -> Any:
        asked.append(options)
        return lambda values: module(values) * 1

    monkeypatch.setattr(torch, "compile", stand_in)
    runtime = TorchRuntime(Tower, device="cpu", compile=compile)
    assert asked == ([{"dynamic": True}] if compile else [])
    values = np.zeros((2, 3, 8, 12), np.float32)
    np.testing.assert_allclose(runtime.encode_image(values), TorchRuntime(Tower, device="cpu").encode_image(values))
