"""The arithmetic of optimisation profiles: which shapes an engine is built for, and what the largest ones take. No TensorRT needed."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from ovseg.errors import InvalidArgumentError, WeightsError
from ovseg.registry import ModelCard

if TYPE_CHECKING:
    import onnx

Shape = tuple[int, ...]
Profile = tuple[Shape, Shape, Shape]
"""The least, the best and the largest shape of an input."""

LEAST, BEST, LARGEST = 224, 480, 1024
"""Heights and widths that an engine is built for unless its card or the user knows better [px]."""
PIXELS, TEXT, POSITIONS = "pixel_values", "text_embeddings", "positions"


@dataclass(frozen=True)
class Range:
    """From where to where a size may go, and where the engine is fastest.

    Attributes:
        least: Smallest value.
        best: The value to optimise for.
        largest: Largest value.
    """

    least: int
    best: int
    largest: int

    def __post_init__(self) -> None:
        """Refuse ranges out of order."""
        values = (self.least, self.best, self.largest)
        whole = all(isinstance(value, int) and not isinstance(value, bool) for value in values)
        if not whole or not 1 <= self.least <= self.best <= self.largest:
            raise InvalidArgumentError(f"A range is three positive numbers in order: least, best, largest; got {values}.")

    def rounded(self, multiple: int) -> Range:
        """Widen to multiples: the least goes down, the largest up, the best to the nearest."""
        least = max(self.least // multiple, 1) * multiple
        largest = -(-self.largest // multiple) * multiple
        return Range(least, min(max(round(self.best / multiple) * multiple, least), largest), largest)

    def __getitem__(self, place: int) -> int:
        """Take the least (0), best (1) or largest (2) value."""
        return (self.least, self.best, self.largest)[place]


@dataclass(frozen=True)
class Ranges:
    """What an engine is built for.

    Attributes:
        batch: Images at once.
        height: Of the network's input [px].
        width: Likewise.
        labels: Text embeddings; only the segmenter has them.
    """

    batch: Range
    height: Range
    width: Range
    labels: Range


def size_range(card: ModelCard) -> Range:
    """Choose heights and widths from what the card says of its input size.

    A model of one size gets that one; others 224 to 1,024 pixels with the card's own window or short side as the best, in multiples of
    the card's.
    """
    settings = card.preprocess
    multiple, square = int(settings.get("multiple", 32)), settings.get("square")
    if square is not None:
        return Range(int(square), int(square), int(square))
    best = int(card.window.get("size", settings.get("short_side", BEST)))
    return Range(min(LEAST, best), best, max(LARGEST, best)).rounded(multiple)


def check_multiples(size: Range, multiple: int, what: str) -> None:
    """Refuse sizes that the network cannot take.

    Args:
        size: Heights or widths.
        multiple: What they must be multiples of.
        what: "height" or "width", for the message.

    Raises:
        InvalidArgumentError: If one is no multiple; the message says the nearest range that works.
    """
    if any(value % multiple for value in (size.least, size.best, size.largest)):
        near = size.rounded(multiple)
        raise InvalidArgumentError(
            f"{what} must be in multiples of {multiple} for this model; got {size.least}, {size.best}, {size.largest}. "
            f"Nearest: {near.least},{near.best},{near.largest}."
        )


def graph_inputs(model: onnx.ModelProto) -> dict[str, tuple[int | str, ...]]:
    """Return the inputs of a graph: name -> dimensions, numbers or names; "" for a dimension that is neither."""
    weights = {tensor.name for tensor in model.graph.initializer}
    return {
        value.name: tuple(
            dim.dim_value if dim.HasField("dim_value") else dim.dim_param for dim in value.type.tensor_type.shape.dim
        )
        for value in model.graph.input
        if value.name not in weights
    }  # fmt: skip


def grid(size: tuple[int, int], patch: int) -> tuple[int, int]:
    """Return the (rows, columns) of patches of an image of (height, width) pixels."""
    return size[0] // patch, size[1] // patch


def covers(name: str, axis: int) -> bool:
    """Tell whether `profiles` knows an axis of an input."""
    known = {PIXELS: (0, 2, 3), TEXT: (0,)}
    return axis in known.get(name, (0, 1) if name.startswith(POSITIONS) else ())


def profiles(inputs: Mapping[str, tuple[int | str, ...]], ranges: Ranges, patches: Mapping[str, int]) -> dict[str, Profile]:
    """Work out the shapes of each input.

    pixel_values is (batch, 3, height, width). text_embeddings is (labels, D). An input whose name begins with `positions` is
    (height / patch, width / patch, D), so its shapes follow. Dimensions that the graph fixes stay, and the ranges must be just them.

    Args:
        inputs: As `graph_inputs` gives them.
        ranges: What to build for.
        patches: Input of positions -> pixels of a patch.

    Raises:
        InvalidArgumentError: The graph fixes a dimension to another number than the range.
        WeightsError: The graph has an input that is none of these.
    """
    found = {}
    for name, dims in inputs.items():
        shapes = []
        for place in range(3):
            wanted = _wanted(name, dims, ranges, patches, place)
            shapes.append(tuple(_length(name, dim, value) for dim, value in zip(dims, wanted, strict=True)))
        found[name] = (shapes[0], shapes[1], shapes[2])
    return found


def _wanted(name: str, dims: tuple[int | str, ...], ranges: Ranges, patches: Mapping[str, int], place: int) -> tuple[int | None, ...]:
    """Name a value for each axis; None where the graph must fix it."""
    if name == PIXELS and len(dims) == 4:
        return ranges.batch[place], None, ranges.height[place], ranges.width[place]
    if name == TEXT and len(dims) == 2:
        return ranges.labels[place], None
    if name.startswith(POSITIONS) and len(dims) == 3 and name in patches:
        rows, columns = grid((ranges.height[place], ranges.width[place]), patches[name])
        return rows, columns, None
    raise WeightsError(
        f"The graph has an input {name!r} with {len(dims)} dimensions that no profile is known for; expected {PIXELS} (B, 3, H, W), {TEXT} "
        f"(K, D), and {POSITIONS} (h, w, D) whose patch the card names. Export the model anew."
    )


def _length(name: str, dim: int | str, value: int | None) -> int:
    if isinstance(dim, int):
        if value is not None and value != dim:
            raise InvalidArgumentError(
                f"The graph fixes a dimension of {name} to {dim}, and the profile asks for {value}. Give that very number three times "
                "(--height N,N,N), or export the model with free dimensions."
            )
        return dim
    if value is None:
        raise WeightsError(f"{name} has a free dimension {dim!r} where a number was expected. Export the model anew.")
    return value


@dataclass(frozen=True)
class Memory:
    """An estimate of what a graph takes at one set of shapes, in bytes.

    Attributes:
        inputs: All inputs.
        outputs: All outputs.
        weights: All weights, as stored.
        activations: The most that is alive at once if every operator writes its result: TensorRT fuses, so it takes less, but also
            scratch memory of its own.
        unknown: Values whose shape could not be worked out; they are not counted.
    """

    inputs: int
    outputs: int
    weights: int
    activations: int
    unknown: int


def estimate_memory(model: onnx.ModelProto, shapes: Mapping[str, Shape]) -> Memory:
    """Estimate what a graph takes, by the shapes that follow from those of its inputs.

    Args:
        model: The graph, with or without weights; it is not changed.
        shapes: Input -> shape.
    """
    import onnx

    fixed = onnx.ModelProto()
    fixed.CopyFrom(model)
    for value in fixed.graph.input:
        for dim, length in zip(value.type.tensor_type.shape.dim, shapes.get(value.name, ()), strict=False):
            dim.Clear()
            dim.dim_value = length
    for value in fixed.graph.output:
        value.type.tensor_type.ClearField("shape")
    del fixed.graph.value_info[:]
    graph = onnx.shape_inference.infer_shapes(fixed, data_prop=True).graph
    weights = {tensor.name: int(np.prod(tensor.dims, dtype=np.int64)) * _bytes(tensor.data_type) for tensor in graph.initializer}
    sizes: dict[str, int] = {}
    for value in (*graph.input, *graph.value_info, *graph.output):
        kind = value.type.tensor_type
        dims = kind.shape.dim
        if kind.HasField("shape") and all(dim.HasField("dim_value") for dim in dims):
            sizes[value.name] = int(np.prod([dim.dim_value for dim in dims], dtype=np.int64)) * _bytes(kind.elem_type)
    inputs = [value.name for value in graph.input if value.name not in weights]
    outputs = [value.name for value in graph.output]
    stored = {name for name in weights} | {node.output[0] for node in graph.node if node.op_type == "Constant"}
    last = {name: place for place, node in enumerate(graph.node) for name in node.input}
    for node in graph.node:  # what is made of weights alone is worked out when the engine is built
        if all(name in stored for name in node.input if name):
            stored.update(node.output)
    alive = most = unknown = 0
    for place, node in enumerate(graph.node):
        made = [name for name in node.output if name and name not in stored and name not in outputs]
        unknown += sum(name not in sizes for name in made)
        alive += sum(sizes.get(name, 0) for name in made)
        most = max(most, alive)
        gone = {name for name in (*node.input, *made) if last.get(name, place) == place}
        alive -= sum(sizes.get(name, 0) for name in gone if name not in stored and name not in inputs and name not in outputs)
    unknown += sum(name not in sizes for name in outputs)
    return Memory(sum(sizes.get(n, 0) for n in inputs), sum(sizes.get(n, 0) for n in outputs), sum(weights.values()), most, unknown)


def _bytes(kind: int) -> int:
    from onnx import TensorProto, helper

    if kind in (TensorProto.UNDEFINED, TensorProto.STRING):
        return 0
    return max(int(np.dtype(helper.tensor_dtype_to_np_dtype(kind)).itemsize), 1)
