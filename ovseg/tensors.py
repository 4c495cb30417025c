"""Read and write safetensors files with numpy alone, for machines without torch.

The format: 8 bytes of length, a JSON header, then the tensors at the data_offsets that it names.
Source: https://huggingface.co/docs/safetensors/index#format.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ovseg.errors import WeightsError

_KINDS = {
    "F32": "<f4", "F16": "<f2", "F64": "<f8", "I64": "<i8", "I32": "<i4", "I16": "<i2", "I8": "|i1", "U16": "<u2", "U8": "|u1",
}  # fmt: skip
_NAMES = {np.dtype(kind).str: name for name, kind in _KINDS.items()}


def write_tensors(path: Path, tensors: Mapping[str, NDArray[Any]]) -> None:
    """Write arrays to a safetensors file; the same arrays always give the same bytes."""
    header, parts, at = {}, [], 0
    for name, array in tensors.items():
        part = np.ascontiguousarray(array, array.dtype.newbyteorder("<"))
        header[name] = {"dtype": _NAMES[part.dtype.str], "shape": list(array.shape), "data_offsets": [at, at + part.nbytes]}
        parts.append(part)
        at += part.nbytes
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)  # tensors begin at a multiple of 8
    with path.open("wb") as file:
        file.write(len(text).to_bytes(8, "little") + text)
        for part in parts:
            file.write(part.tobytes())


def read_tensors(path: Path) -> dict[str, NDArray[Any]]:
    """Read all arrays of a safetensors file; they can be read only.

    Raises:
        WeightsError: If the file cannot be read or is damaged.
    """
    try:
        data = path.read_bytes()
        size = int.from_bytes(data[:8], "little")
        header = json.loads(data[8 : 8 + size])
        found = {}
        for name, entry in header.items():
            if name == "__metadata__":
                continue
            kind, shape, (start, stop) = np.dtype(_KINDS[entry["dtype"]]), entry["shape"], entry["data_offsets"]
            if stop - start != math.prod(shape) * kind.itemsize:
                raise ValueError(f"{name} has {stop - start} bytes and the shape {shape}")
            found[name] = np.frombuffer(data, kind, math.prod(shape), 8 + size + start).reshape(shape)
    except (OSError, ValueError, LookupError, TypeError, AttributeError) as error:
        raise WeightsError(f"{path} cannot be read as safetensors: {error}. Copy or export the model anew.") from error
    return found
