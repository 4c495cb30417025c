"""Graphs for images whose layers are int8, by onnxruntime's own tool and ranges that calibration images have.

QuantizeLinear and DequantizeLinear stand before both inputs of a layer ("QDQ"), int8 and symmetric throughout, as TensorRT takes no other;
weights have a scale for each output. Outputs stay float32: quantising them too gains no time and loses accuracy. Ranges are constants,
so that an image gives the same alone and in a batch, which ranges measured over a batch as the network runs would not.

Layers that no other layer comes before, and those that none comes after, stay float32, as does all that is no layer: norms, softmax,
products of activations (attention), the length of the features.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from ovseg.errors import BackendError, InvalidArgumentError
from ovseg.image import load_image
from ovseg.preprocess import Preprocess

if TYPE_CHECKING:
    import onnx

LAYERS = ("Conv", "ConvTranspose", "Gemm", "MatMul")
"""Operators that are layers where one of their inputs is stored."""
MOST_IMAGES = 100
"""Calibration images that are used; of more, evenly spaced ones are."""
_PICTURES = (".jpg", ".jpeg", ".png", ".webp", ".bmp", ".tif", ".tiff", ".gif", ".jp2", ".avif", ".ppm")

Feeds = Mapping[str, NDArray[Any]]


def calibration_images(folder: Path) -> list[Path]:
    """Find the images of a folder: at most `MOST_IMAGES`, evenly spaced in the order of their names.

    Raises:
        InvalidArgumentError: If it is no folder, or has none.
    """
    if not folder.is_dir():
        raise InvalidArgumentError(f"The calibration images are a folder; {str(folder)!r} is none.")
    found = sorted(path for path in folder.iterdir() if path.suffix.lower() in _PICTURES)
    if not found:
        raise InvalidArgumentError(f"{str(folder)!r} holds no images to calibrate with. Give a folder of 20 or more that look like yours.")
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


def layers(model: onnx.ModelProto) -> tuple[list[str], list[str]]:
    """Name the layers of a graph.

    Args:
        model: Its nodes have names.

    Returns:
        The layers between others, and those at the ends, which no other comes before or none comes after.
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
    ends = [node.name for node, reached in found if not reached or node.name in last]
    return [node.name for node, _ in found if node.name not in ends], ends


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
    from onnxruntime import quantization
    from tqdm import tqdm

    class Reader(quantization.CalibrationDataReader):  # type: ignore[misc]
        def __init__(self) -> None:
            self.left = iter(tqdm(feeds, "calibrating", count, unit="image", leave=False))

        def get_next(self) -> Feeds | None:
            return next(self.left, None)

    model = onnx.load(source, load_external_data=False)
    inner, _ = layers(model)
    if not inner:
        raise BackendError("The network has no layers between its first and its last to be int8. Export it in float32.")
    onnx.helper.set_model_props(model, {"onnx.quant.pre_process": "onnxruntime.quant"})  # or it advises on the root logger
    onnx.save(model, source)
    try:
        quantization.quantize_static(
            source, target, Reader(), quant_format=quantization.QuantFormat.QDQ, op_types_to_quantize=list(LAYERS), per_channel=True,
            activation_type=quantization.QuantType.QInt8, weight_type=quantization.QuantType.QInt8, nodes_to_quantize=inner,
            extra_options={
                "ActivationSymmetric": True, "WeightSymmetric": True, "QuantizeBias": False,
                "OpTypesToExcludeOutputQuantization": list(LAYERS),
            },
        )  # fmt: skip
    except Exception as error:  # it raises many kinds
        raise BackendError(f"onnxruntime cannot quantise the graph: {error}") from error
