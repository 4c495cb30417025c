"""Write small ONNX graphs without the `onnx` package: a few nodes, tensors and names, in the wire format of protocol buffers.

Fields are numbered as in onnx.proto of ONNX 1.16 (IR version 8).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import DTypeLike, NDArray

IR_VERSION = 8
OPSET = 18
_TYPES = {"float32": 1, "uint8": 2, "int8": 3, "int32": 6, "int64": 7}  # TensorProto.DataType


def write_graph(
    nodes: Sequence[tuple[str, Sequence[str], Sequence[str]]],
    tensors: Mapping[str, NDArray[Any]],
    inputs: Mapping[str, tuple[DTypeLike, int]],
    outputs: Mapping[str, tuple[DTypeLike, int]],
) -> bytes:
    """Write a graph of nodes without attributes.

    Args:
        nodes: (operator, its inputs, its outputs), in the order in which they run.
        tensors: Constants by their names.
        inputs: Inputs, their types and numbers of dimensions; sizes are left open.
        outputs: Likewise.

    Returns:
        An ONNX model, for `onnxruntime.InferenceSession`.
    """
    graph = b"".join([
        *(_field(1, b"".join([*_names(1, takes), *_names(2, gives), _field(4, kind)])) for kind, takes, gives in nodes),
        _field(2, "graph"),
        *(_field(5, _tensor(name, values)) for name, values in tensors.items()),
        *(_field(11, _value(name, *kind)) for name, kind in inputs.items()),
        *(_field(12, _value(name, *kind)) for name, kind in outputs.items()),
    ])  # fmt: skip
    return _field(1, IR_VERSION) + _field(7, graph) + _field(8, _field(2, OPSET))


def _names(number: int, names: Sequence[str]) -> Iterator[bytes]:
    return (_field(number, name) for name in names)


def _tensor(name: str, values: NDArray[Any]) -> bytes:
    sizes = b"".join(_field(1, size) for size in values.shape)
    little = values.astype(values.dtype.newbyteorder("<"), order="C", copy=False)
    return sizes + _field(2, _TYPES[values.dtype.name]) + _field(8, name) + _field(9, little.tobytes())


def _value(name: str, kind: DTypeLike, dimensions: int) -> bytes:
    shape = _field(1, b"") * dimensions
    return _field(1, name) + _field(2, _field(1, _field(1, _TYPES[np.dtype(kind).name]) + _field(2, shape)))


def _field(number: int, value: int | str | bytes) -> bytes:
    """Write one field: a number, or bytes with their length."""
    if isinstance(value, int):
        return _number(number << 3) + _number(value)
    payload = value.encode() if isinstance(value, str) else value
    return _number(number << 3 | 2) + _number(len(payload)) + payload


def _number(value: int) -> bytes:
    """Write a whole number, seven bits a byte, the low ones first."""
    parts = bytearray()
    while value > 127:
        parts.append(value & 127 | 128)
        value >>= 7
    return bytes([*parts, value])
