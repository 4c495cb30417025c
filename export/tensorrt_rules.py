"""What TensorRT's ONNX parser refuses, checked on a graph with the `onnx` package alone: no GPU and no TensorRT.

Source of the rules: onnx-tensorrt, docs/operators.md and onnxOpCheckers.cpp of TensorRT 10.15 (February 2026), the newest that could be
read; the documentation of the data types in the bindings of 11.4. 11.2 states the same range of opsets. What is not written down there
is reported as "unknown", not as right.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from ovseg.errors import MissingDependencyError, WeightsError

if TYPE_CHECKING:
    import onnx

OPSETS = (9, 24)
"""Least and largest opset of the parser."""
BF16_OPSET = 22
"""The opset from which convolutions take bfloat16."""
LARGEST_FILE = 2**31 - 1
"""Bytes of the largest protobuf message; larger models keep their weights beside the graph."""

SUPPORTED = frozenset(
    """
    Abs Acos Acosh Add And ArgMax ArgMin Asin Asinh Atan Atanh Attention AveragePool BatchNormalization BlackmanWindow Cast CastLike Ceil
    Celu Clip Concat Constant ConstantOfShape Conv ConvTranspose Cos Cosh CumSum DeformConv DepthToSpace DequantizeLinear Div Dropout
    Einsum Elu Equal Erf Exp Expand EyeLike Flatten Floor GRU Gather GatherElements GatherND Gelu Gemm GlobalAveragePool GlobalLpPool
    GlobalMaxPool Greater GreaterOrEqual GridSample GroupNormalization HammingWindow HannWindow HardSigmoid HardSwish Hardmax Identity If
    InstanceNormalization IsInf IsNaN LRN LSTM LayerNormalization LeakyRelu Less LessOrEqual Log LogSoftmax Loop LpNormalization LpPool
    MatMul Max MaxPool Mean MeanVarianceNormalization Min Mish Mod Mul Neg NonMaxSuppression NonZero Not OneHot Or PRelu Pad Pow
    QuantizeLinear RMSNormalization RNN RandomNormal RandomNormalLike RandomUniform RandomUniformLike Range Reciprocal ReduceL1 ReduceL2
    ReduceLogSum ReduceLogSumExp ReduceMax ReduceMean ReduceMin ReduceProd ReduceSum ReduceSumSquare Relu Reshape Resize ReverseSequence
    RoiAlign RotaryEmbedding Round STFT Scan Scatter ScatterElements ScatterND Selu Shape Shrink Sigmoid Sign Sin Sinh Size Slice Softmax
    Softplus Softsign SpaceToDepth Split Sqrt Squeeze Sub Sum Tan Tanh TensorScatter ThresholdedRelu Tile TopK Transpose Trilu Unsqueeze
    Upsample Where Xor
    """.split()
)
"""ONNX operators that the parser's table lists as supported."""

_CONSTANT_INPUTS = {
    **dict.fromkeys(
        ("ReduceL1", "ReduceL2", "ReduceLogSum", "ReduceLogSumExp", "ReduceMax", "ReduceMean", "ReduceMin", "ReduceProd", "ReduceSum",
         "ReduceSumSquare"), 1
    ),
    "CumSum": 1, "OneHot": 1, "Squeeze": 1, "Unsqueeze": 1,
}  # fmt: skip
"""Operators one of whose inputs must be known when the engine is built -> which."""
_ONE_OUTPUT = ("BatchNormalization", "LayerNormalization", "MaxPool")
_DATA_DEPENDENT = ("NonZero", "NonMaxSuppression")
_CONTROL_FLOW = ("If", "Loop", "Scan")
_COORDINATES = ("half_pixel", "pytorch_half_pixel", "tf_half_pixel_for_nn", "asymmetric", "align_corners")
_BORDER_TYPES = ("FLOAT", "FLOAT16", "INT32", "INT64", "UINT8", "BOOL")
_INNER_TYPES = (*_BORDER_TYPES, "BFLOAT16", "DOUBLE", "INT8", "INT4", "FLOAT8E4M3FN", "FLOAT4E2M1")
_MOST_TOPK = 3839

Severity = Literal["error", "unknown"]


@dataclass(frozen=True)
class Problem:
    """Something in a graph that TensorRT refuses, or may refuse.

    Attributes:
        rule: A word for the kind.
        where: The node, input or file.
        message: What is wrong and what to do.
        severity: "error" if it is refused for certain; "unknown" if nothing that was read says so.
    """

    rule: str
    where: str
    message: str
    severity: Severity = "error"

    def __str__(self) -> str:
        """Say it in a line."""
        return f"{self.severity}: {self.rule} at {self.where}: {self.message}"


def read_graph(path: Path) -> onnx.ModelProto:
    """Read a graph without the weights that are stored beside it.

    Raises:
        MissingDependencyError: The onnx package is not installed.
        WeightsError: The file is no ONNX graph.
    """
    try:
        import onnx
    except ImportError as error:
        raise MissingDependencyError("Reading ONNX graphs needs the onnx package: pip install onnx") from error
    try:
        model = onnx.load(str(path), load_external_data=False)
    except Exception as error:  # protobuf's exceptions are its own
        raise WeightsError(f"{path} is not an ONNX graph ({error}). Export the model anew.") from error
    return model


def opset_of(model: onnx.ModelProto) -> int:
    """Return the version of the ONNX operators that a graph uses; 0 if it does not say."""
    return next((int(entry.version) for entry in model.opset_import if entry.domain in ("", "ai.onnx")), 0)


def lint_graph(path: Path, covered: Callable[[str, int], bool] | None = None) -> list[Problem]:
    """List what TensorRT's parser will refuse in a graph.

    Args:
        path: The graph. Weights beside it are not read.
        covered: Tells whether a profile covers an axis of an input; None if every named one is.

    Returns:
        The problems, errors first; empty where none are known.
    """
    if path.stat().st_size > LARGEST_FILE:
        text = f"the file has {path.stat().st_size:,} bytes; protobuf reads at most {LARGEST_FILE:,}. Store the weights beside the graph."
        return [Problem("size", path.name, text)]
    graph = _Graph(read_graph(path), path)
    problems = [*graph.model_problems(), *graph.border_problems(covered)]
    for node in graph.nodes:
        problems += graph.node_problems(node)
    return sorted(problems, key=lambda problem: problem.severity != "error")


class _Graph:
    """A graph with what its rules need to look up."""

    def __init__(self, model: onnx.ModelProto, path: Path) -> None:
        import onnx

        self.model, self.path = model, path
        self.names: Mapping[int, str] = {value: key for key, value in onnx.TensorProto.DataType.items()}
        self.functions = {(function.domain, function.name) for function in model.functions}
        self.opset = opset_of(model)
        self.nodes = list(_walk(model.graph.node)) + [node for function in model.functions for node in _walk(function.node)]
        self.tensors = {tensor.name: tensor for graph in _graphs(model) for tensor in graph.initializer}
        self.constants = {node.output[0]: node for node in self.nodes if node.op_type == "Constant"}
        self.makers = {name: node for node in self.nodes for name in node.output}
        self.types = self._types()

    def _types(self) -> dict[str, str]:
        """Find the element types of values as far as shape inference can tell."""
        import onnx

        try:
            inferred = onnx.shape_inference.infer_shapes(self.model)
        except Exception:  # a graph that it cannot follow is checked without
            inferred = self.model
        types = {name: self.names[tensor.data_type] for name, tensor in self.tensors.items()}
        for graph in _graphs(inferred):
            for value in (*graph.input, *graph.value_info, *graph.output):
                types[value.name] = self.names[value.type.tensor_type.elem_type]
        return types

    def model_problems(self) -> Iterator[Problem]:
        """Check what concerns the whole: opset, stored tensors."""
        least, largest = OPSETS
        if not least <= self.opset <= largest:
            text = f"the parser reads opsets {least} to {largest}; this is {self.opset}. Export with --opset 18."
            yield Problem("opset", self.path.name, text)
        halves = [name for name, kind in self.types.items() if kind == "BFLOAT16"]
        if halves and self.opset < BF16_OPSET:
            text = f"bfloat16 needs opset {BF16_OPSET}, as Conv takes it only from there; this is {self.opset}. Export with --opset 23."
            yield Problem("bfloat16", halves[0], text)
        folder = self.path.parent.resolve()
        for name in sorted({entry.value for tensor in self.tensors.values() for entry in tensor.external_data if entry.key == "location"}):
            file = (folder / name).resolve()
            if not file.is_relative_to(folder):
                yield Problem("weights", name, "weights must lie in the folder of the graph.")
            elif not file.is_file():
                yield Problem("weights", name, "the file with the weights is missing. Copy or export the model anew.")
        for name, tensor in self.tensors.items():
            kind = self.names[tensor.data_type]
            if kind not in _INNER_TYPES:
                yield Problem("type", name, f"TensorRT has no {kind}.")

    def border_problems(self, covered: Callable[[str, int], bool] | None) -> Iterator[Problem]:
        """Check inputs and outputs: types, names of dynamic dimensions, a batch that is fixed at the far end."""
        graph = self.model.graph
        inputs = [value for value in graph.input if value.name not in self.tensors]
        for value in (*inputs, *graph.output):
            kind = self.names[value.type.tensor_type.elem_type]
            if kind not in _BORDER_TYPES:
                yield Problem("type", value.name, f"inputs and outputs are {', '.join(_BORDER_TYPES)}; got {kind}. Cast inside the graph.")
        batches = set()
        for value in inputs:
            for axis, dim in enumerate(value.type.tensor_type.shape.dim):
                if dim.HasField("dim_value"):
                    continue
                if not dim.dim_param:
                    yield Problem("dimension", value.name, f"axis {axis} is neither a number nor named. Export with named dimensions.")
                elif covered is not None and not covered(value.name, axis):
                    yield Problem("dimension", value.name, f"no profile covers axis {axis} ({dim.dim_param}).")
                if axis == 0 and value.name == "pixel_values":
                    batches.add(dim.dim_param)
        for value in graph.output:
            dims = value.type.tensor_type.shape.dim
            if batches and dims and dims[0].dim_value == 1:
                yield Problem("batch", value.name, "the batch is 1 here and free at the input: exported with an example batch of 1. Use 2.")

    def _attributes(self, node: onnx.NodeProto) -> dict[str, Any]:
        from onnx import helper

        return {entry.name: helper.get_attribute_value(entry) for entry in node.attribute if not entry.ref_attr_name}

    def _constant(self, name: str) -> bool:
        return name in self.tensors or name in self.constants

    def _value(self, name: str) -> np.ndarray[Any, Any] | None:
        """Return a constant that is stored in the graph itself."""
        from onnx import numpy_helper

        tensor = self.tensors.get(name)
        if tensor is None and name in self.constants:
            value = self._attributes(self.constants[name])
            tensor = value.get("value")
            if tensor is None:
                return np.asarray(next(iter(value.values()))) if value else None
        if tensor is None or tensor.external_data:
            return None
        return np.asarray(numpy_helper.to_array(tensor))

    def node_problems(self, node: onnx.NodeProto) -> Iterator[Problem]:
        """Check a node."""
        kind = node.op_type
        where = f"{kind} {node.name!r}" if node.name else f"{kind} -> {', '.join(node.output)}"
        if (node.domain, kind) in self.functions:
            return  # the nodes of the function are checked themselves
        if node.domain not in ("", "ai.onnx"):
            yield Problem("operator", where, f"the parser knows no operator of the domain {node.domain!r} without a plugin.")
            return
        if kind not in SUPPORTED:
            yield Problem("operator", where, "the parser's table has no such operator, or says that it is not supported.")
            return
        attributes = self._attributes(node)
        for rule, message, severity in self._details(node, kind, attributes):
            yield Problem(rule, where, message, severity)
        place = _CONSTANT_INPUTS.get(kind)
        if place is not None and len(node.input) > place and node.input[place] and not self._constant(node.input[place]):
            yield Problem("constant", where, f"its input {place} must be a constant, not computed from others.")
        if kind in _ONE_OUTPUT and any(node.output[1:]):
            yield Problem("outputs", where, "only its first output is supported.")
        if kind in _DATA_DEPENDENT:
            yield Problem("data-dependent", where, "the shape of its output depends on values: buffers and CUDA graphs need it before.")
        if kind in _CONTROL_FLOW:
            yield Problem("control-flow", where, "whether it can be part of a CUDA graph is not written down.", "unknown")
        yield from self._uint8(node, where)

    def _uint8(self, node: onnx.NodeProto, where: str) -> Iterator[Problem]:
        """Check that uint8 is nowhere but at the border, and is cast from and to floats there."""
        border = {value.name for value in (*self.model.graph.input, *self.model.graph.output)}
        for name in node.output:
            if self.types.get(name) == "UINT8" and name not in border and name not in self.constants:
                yield Problem("uint8", where, f"{name} is uint8, which only inputs and outputs of the network may be.")
        if node.op_type == "Cast" and node.output and self.types.get(node.output[0]) == "UINT8":
            source = self.types.get(node.input[0])
            if source is None:
                yield Problem("uint8", where, "it casts to uint8 from an unknown type; float32 and float16 work.", "unknown")
            elif source not in ("FLOAT", "FLOAT16"):
                text = f"TensorRT casts to uint8 from float32 and float16 only, not from {source}. Cast to float32 first."
                yield Problem("uint8", where, text)
        elif node.op_type != "Cast" and any(self.types.get(name) == "UINT8" and name in border for name in node.input):
            yield Problem("uint8", where, "a uint8 input must be cast to a float first.")

    def _details(self, node: onnx.NodeProto, kind: str, given: Mapping[str, Any]) -> Iterator[tuple[str, str, Severity]]:
        """Check what is special to an operator."""
        if kind == "Resize":
            yield from self._resize(node, given)
        elif kind == "Attention":
            if given.get("softcap", 0.0) != 0.0 or "softmax_precision" in given:
                yield "attention", "softcap and softmax_precision are not supported.", "error"
            if any(node.input[4:7]) or any(node.output[1:]):
                yield "attention", "past keys and values, and outputs beyond the first, are not supported.", "error"
        elif kind in ("AveragePool", "MaxPool", "LpPool"):
            if any(step != 1 for step in given.get("dilations", ())):
                yield "pooling", "dilations other than 1 are not supported.", "error"
        elif kind == "BatchNormalization" and given.get("training_mode", 0):
            yield "training", "training_mode=1 is not supported: export the module in eval().", "error"
        elif kind == "ScatterND" and given.get("reduction", b"none") != b"none":
            yield "scatter", f"reduction={_text(given['reduction'])} is not supported.", "error"
        elif kind == "TopK":
            most = self._value(node.input[1]) if len(node.input) > 1 else None
            if not given.get("sorted", 1):
                yield "topk", "sorted=0 is not supported.", "error"
            if most is not None and int(most.reshape(-1)[0]) > _MOST_TOPK:
                yield "topk", f"K must be at most {_MOST_TOPK}; got {int(most.reshape(-1)[0])}.", "error"
        elif kind == "Constant" and given.keys() & {"sparse_value", "value_string", "value_strings"}:
            yield "constant", "sparse and text constants are not supported.", "error"
        elif kind in ("QuantizeLinear", "DequantizeLinear") and len(node.input) > 2 and node.input[2]:
            zero = self._value(node.input[2])
            if self.types.get(node.input[2]) == "UINT8":
                yield "quantisation", "it is uint8; TensorRT quantises to int8, int4, fp8 or fp4. Quantise activations to int8.", "error"
            elif zero is None:
                yield "quantisation", "its zero point must be 0, and cannot be read here.", "unknown"
            elif np.any(zero != 0):
                yield "quantisation", "its zero point is not 0. Quantise symmetrically.", "error"
        elif kind == "Cast":
            target = self.names.get(int(given.get("to", 0)), "?")
            if target not in _INNER_TYPES:
                yield "type", f"it casts to {target}, which TensorRT does not have.", "error"

    def _resize(self, node: onnx.NodeProto, given: Mapping[str, Any]) -> Iterator[tuple[str, str, Severity]]:
        mode = _text(given.get("mode", b"nearest"))
        coordinates = _text(given.get("coordinate_transformation_mode", b"half_pixel"))
        nearest = _text(given.get("nearest_mode", b"round_prefer_floor"))
        if given.get("antialias", 0):
            yield "antialias", "an antialiased Resize is refused. Compute position embeddings outside the graph.", "error"
        if coordinates not in _COORDINATES:
            yield "resize", f"the coordinates {coordinates} are not supported; {', '.join(_COORDINATES)} are.", "error"
        if coordinates == "tf_half_pixel_for_nn" and nearest != "round_prefer_floor":
            yield "resize", f"tf_half_pixel_for_nn goes with round_prefer_floor only, not {nearest}.", "error"
        if _text(given.get("keep_aspect_ratio_policy", b"stretch")) != "stretch":
            yield "resize", "keep_aspect_ratio_policy must be stretch.", "error"
        if mode == "cubic":
            yield "resize", "cubic is let through by the parser's check, but its table lists only nearest and linear.", "unknown"
        elif mode not in ("nearest", "linear"):
            yield "resize", f"the mode {mode} does not exist.", "error"
        axes = list(given.get("axes", ()))
        scales = node.input[2] if len(node.input) > 2 else ""
        if scales and not self._constant(scales) and axes and axes != list(range(len(axes))):
            yield "resize", "computed scales need axes 0, 1, 2, ...", "error"


def _text(value: Any) -> str:
    return value.decode() if isinstance(value, bytes) else str(value)


def _walk(nodes: Sequence[onnx.NodeProto]) -> Iterator[onnx.NodeProto]:
    """Yield nodes, and those of the graphs inside them."""
    for node in nodes:
        yield node
        for entry in node.attribute:
            for graph in (*([entry.g] if entry.HasField("g") else []), *entry.graphs):
                yield from _walk(graph.node)


def _graphs(model: onnx.ModelProto) -> Iterator[onnx.GraphProto]:
    """Yield the graph of a model, and those inside its nodes."""
    yield model.graph
    for node in _walk(model.graph.node):
        for entry in node.attribute:
            yield from (*([entry.g] if entry.HasField("g") else []), *entry.graphs)
