"""Graphs for images whose layers are int8, by onnxruntime's own tool and ranges that calibration images have.

QuantizeLinear and DequantizeLinear stand before both inputs of a layer ("QDQ"), int8 and symmetric throughout, as TensorRT takes no other;
weights have a scale for each output. Outputs stay float32: quantising them too gains no time and loses accuracy. Ranges are constants,
so that an image gives the same alone and in a batch, which ranges measured over a batch as the network runs would not.

Layers that no other layer comes before, and those that none comes after, stay float32, as does all that is no layer: norms, softmax,
products of activations (attention), the length of the features.
"""

from __future__ import annotations

import logging
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from ovseg.errors import BackendError, InvalidArgumentError
from ovseg.image import IMAGE_SUFFIXES, load_image
from ovseg.preprocess import Preprocess

if TYPE_CHECKING:
    import onnx

LAYERS = ("Conv", "ConvTranspose", "Gemm", "MatMul")
"""Operators that are layers where one of their inputs is stored."""
FEWEST_IMAGES = 20
"""Calibration images from which on nothing is said."""
MOST_IMAGES = 100
"""Calibration images that are used; of more, evenly spaced ones are."""

Feeds = Mapping[str, NDArray[Any]]

logger = logging.getLogger(__name__)


def calibration_images(folder: Path) -> list[Path]:
    """Find the images of a folder: at most `MOST_IMAGES`, evenly spaced in the order of their names.

    Raises:
        InvalidArgumentError: If it is no folder, or has none.
    """
    if not folder.is_dir():
        raise InvalidArgumentError(f"The calibration images are a folder; {str(folder)!r} is none.")
    found = sorted(path for path in folder.iterdir() if path.suffix.lower() in IMAGE_SUFFIXES)
    if not found:
        raise InvalidArgumentError(f"{str(folder)!r} holds no images to calibrate with. Give a folder of 20 or more that look like yours.")
    if len(found) < FEWEST_IMAGES:
        logger.warning("%s holds %d images: ranges of so few may miss what others have. Give 20 or more.", folder, len(found))
    count = min(len(found), MOST_IMAGES)
    return [found[(2 * i + 1) * len(found) // (2 * count)] for i in range(count)]


def dense_pixels(paths: Sequence[Path], preprocess: Preprocess) -> Iterator[NDArray[np.float32]]:
    """Read images as a segmenter does, one (1, 3, H, W) after the other."""
    for path in paths:
        image = load_image(path)
        yield preprocess.pixel_values(image, preprocess.input_size(image.shape[:2]))


def whole_pixels(paths: Sequence[Path], preprocess: Preprocess, classify: Mapping[str, Any]) -> Iterator[NDArray[np.float32]]:
    """Read images as a classifier does, one (1, 3, S, S) after the other."""
    for path in paths:
        yield preprocess.fitted(load_image(path), int(classify["size"]), str(classify["fit"]))


def inner_layers(model: onnx.ModelProto) -> list[str]:
    """Name the layers of a graph that stand between others.

    Args:
        model: Its nodes have names.

    Returns:
        All layers but those that no other comes before or none comes after.
    """
    stored = {tensor.name for tensor in model.graph.initializer}
    before: dict[str, bool] = {}  # value -> whether a layer was on the way to it
    found = []
    for node in model.graph.node:
        is_layer = node.op_type in LAYERS and len([name for name in node.input[:2] if name in stored]) == 1
        reached = any(before.get(name, False) for name in node.input)
        if is_layer:
            found.append((node, reached))
        before.update(dict.fromkeys(node.output, reached or is_layer))
    after: dict[str, bool] = {}  # value -> whether a layer is on the way from it
    last = set()
    marked = {node.name for node, _ in found}
    for node in reversed(model.graph.node):
        reached = any(after.get(name, False) for name in node.output)
        if node.name in marked and not reached:
            last.add(node.name)
        for name in node.input:
            after[name] = after.get(name, False) or reached or node.name in marked
    return [node.name for node, reached in found if reached and node.name not in last]


def value_ranges(source: Path, values: Sequence[str], feeds: Iterable[Feeds]) -> dict[str, tuple[NDArray[np.float32], NDArray[np.float32]]]:
    """Measure which numbers inner values of a graph take.

    One image at a time, and least and greatest of a value are taken as soon as it is there, so that it can be forgotten: memory is that of
    running the graph. onnxruntime's own calibration keeps all values of an image until its end, gigabytes with a large network, as nodes
    run by default in an order that begins at the outputs.

    Args:
        source: The graph.
        values: Names of float32 values.
        feeds: The inputs, one image after the other.

    Returns:
        Name -> least and greatest over all images, (1) float32 each.
    """
    import onnx
    import onnxruntime

    path = source.with_name(f"{source.stem}.ranges.onnx")  # beside the weights
    model = onnx.load(source, load_external_data=False)
    outputs = _reduce(model.graph, values)
    onnx.save(model, path)
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    options.execution_order = onnxruntime.ExecutionOrder.PRIORITY_BASED  # that of the file, so far as nodes are alike
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL  # fusing would lose values
    options.enable_cpu_mem_arena = False  # it keeps the memory of every size of image
    session = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    least, most = np.full(len(values), np.inf, np.float32), np.full(len(values), -np.inf, np.float32)
    for feed in feeds:
        found = np.array(session.run(outputs, dict(feed)), np.float32)
        least, most = np.fmin(least, found[::2]), np.fmax(most, found[1::2])
    return {name: (least[i : i + 1], most[i : i + 1]) for i, name in enumerate(values)}


def _reduce(graph: onnx.GraphProto, values: Sequence[str]) -> list[str]:
    """Make least and greatest of values the outputs of a graph, each right after what makes the value; return their names."""
    from onnx import TensorProto, helper

    steps = {
        name: [helper.make_node(f"Reduce{kind}", [name], [f"{name}.{kind}"], f"{name}.{kind}", keepdims=0) for kind in ("Min", "Max")]
        for name in values
    }
    nodes = [step for value in graph.input for step in steps.get(value.name, [])]
    for node in graph.node:
        nodes += [node, *(step for name in node.output for step in steps.get(name, []))]
    outputs = [step.output[0] for name in values for step in steps[name]]
    del graph.node[:], graph.output[:]
    graph.node.extend(nodes)
    graph.output.extend(helper.make_tensor_value_info(name, TensorProto.FLOAT, []) for name in outputs)
    return outputs


def quantise(source: Path, target: Path, feeds: Iterable[Feeds], count: int) -> None:
    """Make the layers of a graph int8.

    Args:
        source: The graph in float32.
        target: File to write.
        feeds: The inputs of the examples, each an image.
        count: How many there are.

    Raises:
        BackendError: If onnxruntime cannot do it.
    """
    import onnx
    from onnxruntime.quantization import QuantType
    from onnxruntime.quantization.calibrate import CalibrationMethod, TensorsData
    from onnxruntime.quantization.qdq_quantizer import QDQQuantizer
    from onnxruntime.quantization.quant_utils import load_model_with_shape_infer
    from tqdm import tqdm

    model = onnx.load(source, load_external_data=False)
    inner = inner_layers(model)
    if not inner:
        raise BackendError("The network has no layers between its first and its last to be int8. Export it in float32.")
    stored, names = {tensor.name for tensor in model.graph.initializer}, set(inner)
    inputs = [name for node in model.graph.node if node.name in names for name in node.input[:2] if name not in stored]
    del model
    try:
        ranges = value_ranges(source, list(dict.fromkeys(inputs)), tqdm(feeds, "calibrating", count, unit="image", leave=False))
        quantizer = QDQQuantizer(
            load_model_with_shape_infer(source), per_channel=True, reduce_range=False, weight_qType=QuantType.QInt8,
            activation_qType=QuantType.QInt8, tensors_range=TensorsData(CalibrationMethod.MinMax, ranges), nodes_to_quantize=inner,
            nodes_to_exclude=[], op_types_to_quantize=list(LAYERS),
            extra_options={
                "ActivationSymmetric": True, "WeightSymmetric": True, "QuantizeBias": False,
                "OpTypesToExcludeOutputQuantization": list(LAYERS),
            },
        )  # fmt: skip
        quantizer.quantize_model()
        quantizer.model.save_model_to_file(str(target))
    except Exception as error:  # it raises many kinds
        raise BackendError(f"onnxruntime cannot quantise the graph: {error}") from error
