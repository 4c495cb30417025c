"""Label maps by onnxruntime, from features that stay in the memory of its device: only a byte or two for each pixel leave it.

Not yet measured on a GPU (`ovseg benchmark -m FOLDER --device cuda` does it); the tests run the same graph on the CPU.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ovseg.onnx_writer import write_graph
from ovseg.similarity import DEFAULT_BUDGET, Axis, Floats, Indices, Labels, first_equal


@dataclass(frozen=True)
class DeviceFeatures:
    """The features of one image.

    Attributes:
        batch: (B, D, h, w) float32 `onnxruntime.OrtValue`.
        index: Which image of the batch.
    """

    batch: Any
    index: int

    @property
    def shape(self) -> tuple[int, ...]:
        """(D, h, w)."""
        return tuple(self.batch.shape()[1:])


class LabelMapper:
    """Finds the best label of every pixel where the features are.

    As in `ovseg.runtime.torch.device_label_map`, all logits are interpolated, strip by strip. To interpolate is to multiply by matrices
    with two numbers in a row (ONNX has no Resize that starts between two cells).

    Args:
        options: `onnxruntime.SessionOptions`.
        providers: Execution providers, as onnxruntime takes them.
        place: "cuda" or "cpu".
    """

    def __init__(self, options: Any, providers: list[Any], place: str) -> None:
        import onnxruntime

        self._place = place
        self._value = onnxruntime.OrtValue.ortvalue_from_numpy
        whole, real = np.int64, np.float32
        graph = write_graph(
            [
                ("Slice", ["features", "start", "stop", "axes"], ["part"]),
                ("Reshape", ["part", "cells_shape"], ["cells"]),
                ("MatMul", ["text", "cells"], ["products"]),
                ("Reshape", ["products", "logits_shape"], ["logits"]),
                ("MatMul", ["down", "logits"], ["rows"]),
                ("MatMul", ["rows", "across"], ["pixels"]),
                ("ArgMax", ["pixels"], ["best"]),  # over the names; ties to the first
                ("Gather", ["label", "best"], ["segmentation"]),
            ],
            {"axes": np.array([0, 2], np.int64)},
            {
                "features": (real, 4), "start": (whole, 1), "stop": (whole, 1), "cells_shape": (whole, 1), "logits_shape": (whole, 1),
                "text": (real, 2), "down": (real, 2), "across": (real, 2), "label": (np.int32, 1),
            },
            {"segmentation": (np.int32, 3)},
        )  # fmt: skip
        self._session = onnxruntime.InferenceSession(graph, options, providers=providers)
        total = write_graph(
            [("Slice", ["features", "start", "stop", "axes"], ["part"]), ("ReduceSum", ["part"], ["total"])],
            {"axes": np.array([0], np.int64)},
            {"features": (real, 4), "start": (whole, 1), "stop": (whole, 1)},
            {"total": (real, 4)},
        )
        self._total = onnxruntime.InferenceSession(total, options, providers=providers)

    def is_finite(self, features: DeviceFeatures) -> bool:
        """Whether all numbers are finite; their sum says it, as vectors of length 1 cannot overflow."""
        feeds = {"start": _whole(features.index), "stop": _whole(features.index + 1)}
        return bool(np.isfinite(self._run(self._total, features, feeds)).all())

    def put(self, embedding: Floats) -> DeviceFeatures:
        """Copy (D, h, w) float32 features to the device."""
        return DeviceFeatures(self._value(np.ascontiguousarray(embedding)[None], self._place, 0), 0)

    def label_pixels(
        self, features: DeviceFeatures, axes: tuple[Axis, Axis], text: Floats, owner: Indices, scale: float, budget: int = DEFAULT_BUDGET
    ) -> Labels:
        """Find the best label of every pixel; see `device_label_map`."""
        keep = first_equal(text) == np.arange(len(text))  # a product may give equal rows unequal logits, and a tie would be no tie
        (size, _, w), (rows, columns), names = features.shape, axes, int(keep.sum())
        held = {
            "text": self._value(text[keep] * np.float32(scale), self._place, 0),
            "across": self._value(np.ascontiguousarray(_matrix(columns, w).T), self._place, 0),
            "label": self._value(owner[keep].astype(np.int32), self._place, 0),
        }
        result = np.empty((len(rows.low), len(columns.low)), np.min_scalar_type(int(owner[-1]) + 1))
        step = budget // (4 * names * (2 * w + 3 * len(columns.low)))
        for down, cells, y in rows.parts(max(2, step), max(1, step)):
            high = cells.stop - cells.start
            feeds = {
                **held,
                "start": _whole(features.index, cells.start),
                "stop": _whole(features.index + 1, cells.stop),
                "cells_shape": _whole(size, high * w),
                "logits_shape": _whole(names, high, w),
                "down": _matrix(y, high),
            }
            result[down] = self._run(self._session, features, feeds)[0]
        return result

    def _run(self, session: Any, features: DeviceFeatures, feeds: dict[str, Any]) -> NDArray[Any]:
        binding = session.io_binding()
        binding.bind_ortvalue_input("features", features.batch)
        for name, value in feeds.items():
            (binding.bind_cpu_input if isinstance(value, np.ndarray) else binding.bind_ortvalue_input)(name, value)
        binding.bind_output(session.get_outputs()[0].name)
        session.run_with_iobinding(binding)
        found: NDArray[Any] = binding.copy_outputs_to_cpu()[0]
        return found


def _whole(*numbers: int) -> NDArray[np.int64]:
    return np.array(numbers, np.int64)


def _matrix(axis: Axis, cells: int) -> Floats:
    """Write an axis as the (pixels, cells) float32 matrix that interpolates."""
    matrix = np.zeros((len(axis.low), cells), np.float32)
    pixel = np.arange(len(axis.low))
    matrix[pixel, axis.low] = 1 - axis.weight
    matrix[pixel, axis.high] += axis.weight  # the last cell is its own neighbour
    return matrix
