"""Read and write safetensors files with numpy alone, for machines without torch.

The format: 8 bytes of length, a JSON header, then the tensors at the data_offsets that it names.
Source: https://huggingface.co/docs/safetensors/index#format.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from ovseg.errors import WeightsError

_KINDS = {
    "F32": "<f4", "F16": "<f2", "F64": "<f8", "I64": "<i8", "I32": "<i4", "I16": "<i2", "I8": "|i1", "U16": "<u2", "U8": "|u1",
}  # fmt: skip
_MAX_HEADER = 100_000_000  # bytes; the limit of safetensors itself
_NAMES = {np.dtype(kind).str: name for name, kind in _KINDS.items()}


class Entry(NamedTuple):
    """What a file says of one of its tensors.

    Attributes:
        dtype: The format's name of it, such as "F32".
        shape: Its size in every dimension.
        start: Where it begins [bytes].
        stop: Where it ends [bytes].
    """

    dtype: str
    shape: tuple[int, ...]
    start: int
    stop: int


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


def read_header(path: Path) -> dict[str, Entry]:
    """Read what a safetensors file says of its tensors, and compare that with the size of the file.

    Returns:
        Name -> what the tensor is and where in the file it lies.

    Raises:
        OSError: If the file cannot be read.
        ValueError: If it is cut short or no safetensors file.
    """
    size = path.stat().st_size
    with path.open("rb") as file:
        length = int.from_bytes(file.read(8), "little")
        if size < 8 or length > size - 8:
            raise ValueError(f"it has {size} bytes, fewer than its own header says, or is not a safetensors file")
        if length > _MAX_HEADER:
            raise ValueError(f"its header would take {length} bytes; safetensors allows {_MAX_HEADER}")
        text = file.read(length)
    try:
        entries = {}
        for name, said in json.loads(text).items():
            if name != "__metadata__":
                start, stop = said["data_offsets"]
                entries[name] = Entry(said["dtype"], tuple(map(int, said["shape"])), 8 + length + int(start), 8 + length + int(stop))
    except (ValueError, LookupError, TypeError, AttributeError, RecursionError, OverflowError) as error:
        raise ValueError("its header is not one of a safetensors file") from error
    expected = max((entry.stop for entry in entries.values()), default=8 + length)
    if size != expected:
        raise ValueError(f"it has {size} bytes, and its header speaks of {expected}")
    return entries


def read_tensors(path: Path) -> dict[str, NDArray[Any]]:
    """Read all arrays of a safetensors file; they can be read only.

    Raises:
        WeightsError: If the file cannot be read or is damaged.
    """
    try:
        entries = read_header(path)
        data = path.read_bytes()
        found = {}
        for name, (dtype, shape, start, stop) in entries.items():
            kind = np.dtype(_KINDS[dtype])
            if stop - start != math.prod(shape) * kind.itemsize:
                raise ValueError(f"{name} has {stop - start} bytes and the shape {shape}")
            found[name] = np.frombuffer(data, kind, math.prod(shape), start).reshape(shape)
    except (OSError, ValueError, LookupError, TypeError, AttributeError) as error:
        raise WeightsError(f"{path} cannot be read as safetensors: {error}. Copy or export the model anew.") from error
    return found
