"""Position embeddings of a vision transformer for any grid, with numpy alone.

An exported graph takes them as an input: so it has no resize, which not every runtime computes alike (with low-pass TensorRT refuses
it, and onnxruntime has computed it wrongly on GPUs), and the same small function serves every runtime.

A resize is separable: positions[i, j] = sum over y, x of row[i, y] column[j, x] table[y, x], with (count, grid) weights for each axis.
Pixel centres of both grids lie at half numbers; samples beyond the border repeat it, or with low-pass are left out and the rest weighs
more. This is torch's `interpolate` with align_corners=False (ATen/native/UpSample.h and cpu/UpSampleKernel.cpp).
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from threading import Lock
from types import MappingProxyType
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ovseg.errors import WeightsError

Floats = NDArray[np.float32]
Doubles = NDArray[np.float64]

POSITIONS = MappingProxyType({"positions": "image", "positions_proxy": "proxy"})
"""Inputs of a graph that are position embeddings -> tensor of positions.safetensors that they are made of. A graph with two networks
takes both."""
_KEPT = 8
"""Grids whose positions are remembered: 14 x 14 cells of 768 channels take 0.6 MB."""


@dataclass(frozen=True)
class Resize:
    """How a table of position embeddings is brought to another grid.

    Attributes:
        mode: "bilinear" or "bicubic".
        antialias: Whether to low-pass where the grid shrinks, as PIL does. The cubic is Keys' with a = -0.5 then, else with a = -0.75.
        shift: Added to the number of cells of each axis in the scale, unless both are those of the table: some published code resizes as
            if the grid were 0.1 cells larger.
    """

    mode: str = "bilinear"
    antialias: bool = False
    shift: float = 0.0

    def __post_init__(self) -> None:
        """Refuse what is no resize."""
        if self.mode not in ("bilinear", "bicubic"):
            raise WeightsError(f"Position embeddings are resized 'bilinear' or 'bicubic'; got {self.mode!r}.")


def _kernel(mode: str, a: float, distance: Doubles) -> Doubles:
    """Weights of samples by their distance: a hat, or Keys' cubic convolution (IEEE Trans. ASSP 29, 1981)."""
    if mode == "bilinear":
        return np.clip(1 - distance, 0, None)
    near = ((a + 2) * distance - (a + 3)) * distance**2 + 1
    far = a * (((distance - 5) * distance + 8) * distance - 4)
    return np.where(distance <= 1, near, np.where(distance < 2, far, 0.0))


def axis_weights(count: int, grid: int, rule: Resize, span: float | None = None) -> Doubles:
    """Compute the weights of an axis.

    Args:
        count: Samples that are wanted.
        grid: Samples that there are.
        rule: How to resize.
        span: Samples as which the wanted ones count for the scale; None for `count`.

    Returns:
        (count, grid) float64; rows sum to 1.
    """
    scale = grid / (count if span is None else span)
    if rule.antialias:
        stretch, reach = max(scale, 1.0), 1 if rule.mode == "bilinear" else 2
        centre = scale * (np.arange(count) + 0.5)
        first = np.maximum((centre - reach * stretch + 0.5).astype(np.int64), 0)[:, None]
        last = np.minimum((centre + reach * stretch + 0.5).astype(np.int64), grid)[:, None]
        place = np.arange(grid)
        weights = _kernel(rule.mode, -0.5, np.abs(place + 0.5 - centre[:, None]) / stretch)
        weights *= (place >= first) & (place < last)
        weights /= weights.sum(1, keepdims=True)
        return weights
    centre = scale * (np.arange(count) + 0.5) - 0.5
    if rule.mode == "bilinear":
        centre = np.clip(centre, 0, grid - 1)
    weights = _kernel(rule.mode, -0.75, np.abs(np.arange(-2, grid + 2) - centre[:, None]))
    weights[:, 2] += weights[:, :2].sum(1)
    weights[:, -3] += weights[:, -2:].sum(1)
    return weights[:, 2:-2]


def resize(table: Floats, size: tuple[int, int], rule: Resize) -> Floats:
    """Bring a table of position embeddings to a grid.

    Args:
        table: (h, w, C) float32.
        size: (h', w') of the grid that is wanted.
        rule: How.

    Returns:
        (h', w', C) float32.
    """
    if table.shape[:2] == tuple(size):
        return table
    rows, columns = (axis_weights(count, grid, rule, count + rule.shift) for count, grid in zip(size, table.shape[:2], strict=True))
    narrow = np.tensordot(rows, table.astype(np.float64), (1, 0))  # (h', w, C)
    return np.tensordot(columns, narrow, (1, 1)).swapaxes(0, 1).astype(np.float32)


class PositionTable:
    """The position embeddings of an exported image tower. Threads may share it.

    Args:
        table: (h, w, C) float32, those that the model was trained with.
        patch: Input pixels per cell of the transformer's grid.
        rule: How they are resized.
    """

    def __init__(self, table: Floats, patch: int, rule: Resize) -> None:
        self.table, self.patch, self.rule = table, patch, rule
        self._kept: OrderedDict[tuple[int, int], Floats] = OrderedDict()
        self._lock = Lock()

    @classmethod
    def read(cls, table: NDArray[Any], facts: Mapping[str, Any]) -> PositionTable:
        """Make it of what an exported folder says.

        Args:
            table: (h, w, C) float32.
            facts: As `facts` gives them.

        Raises:
            WeightsError: If they do not fit.
        """
        try:
            patch = int(facts["patch"])
            rule = Resize(**{key: value for key, value in facts.items() if key != "patch"})
        except (KeyError, TypeError, ValueError) as error:
            raise WeightsError(f"The card does not say how position embeddings are resized ({error}). Export the model anew.") from error
        if table.ndim != 3 or table.dtype != np.float32 or patch < 1:
            raise WeightsError(f"Position embeddings must be (h, w, C) float32; got {table.shape} {table.dtype}. Export the model anew.")
        return cls(table, patch, rule)

    def facts(self) -> dict[str, Any]:
        """Say for a card what `read` needs beside the table."""
        return {"patch": self.patch, **asdict(self.rule)}

    def of_image(self, height: int, width: int) -> Floats:
        """Return the (h, w, C) float32 embeddings for an image of height x width pixels."""
        size = (height // self.patch, width // self.patch)
        with self._lock:
            found = self._kept.pop(size, None)
            if found is None:
                found = resize(self.table, size, self.rule)
            self._kept[size] = found
            while len(self._kept) > _KEPT:
                self._kept.popitem(last=False)
        return found



def read_tables(tensors: Mapping[str, NDArray[Any]], facts: Mapping[str, Any]) -> dict[str, PositionTable]:
    """Make the position embeddings of an exported folder.

    Args:
        tensors: What positions.safetensors holds: (h, w, C) float32.
        facts: The card's options; under the name of an input, what `PositionTable.facts` gave.

    Returns:
        Input of the graph -> what makes it.

    Raises:
        WeightsError: If they do not fit each other.
    """
    found = {name: PositionTable.read(tensors[key], facts[name]) for name, key in POSITIONS.items() if name in facts and key in tensors}
    if len(found) != len(tensors) or set(found) != facts.keys() & POSITIONS.keys() or not found:
        raise WeightsError("The position embeddings and the card do not fit each other. Export the model anew.")
    return found


def of_image(tables: Mapping[str, PositionTable], height: int, width: int) -> dict[str, Floats]:
    """Return the (h, w, C) float32 embeddings that the inputs of a graph get for an image of height x width pixels."""
    return {name: table.of_image(height, width) for name, table in tables.items()}
