"""Export both towers of `mini`: `python -m ovseg.export.mini --weights mini.pt --out FOLDER`.

The image tower's weights are stored once, as float16 in safetensors; the ONNX graph points into that file. The text tower's weights
are stored as int8 with a scale for each row, inside its graph, and become float32 again when the graph is loaded: no instruction
set changes the answer. Export ends with a check of both against torch and writes nothing if it fails.
"""

from __future__ import annotations

import argparse
import json
import logging
import shutil
import struct
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from ovseg.export.graph_passes import fast_lengths

from ovseg.errors import BackendError

if TYPE_CHECKING:
    import onnx
    import torch

logger = logging.getLogger(__name__)

OPSET = 18
IMAGE_TOLERANCE = 1e-4
"""Largest difference between the features of torch and of onnxruntime; they have length 1."""
TEXT_COSINE = 0.995
"""Least cosine between the int8 and the float32 text tower."""
_PROBES = ("sky", "a photo of a golden retriever", "the wheel of a red sports car in the rain", "crane (bird)", "grass")


def external_tensors(path: Path) -> dict[str, tuple[int, int]]:
    """Return where the tensors of a safetensors file lie: name -> (offset, length) in bytes."""
    with path.open("rb") as file:
        size = struct.unpack("<Q", file.read(8))[0]
        header: dict[str, Any] = json.loads(file.read(size))
    return {
        name: (8 + size + entry["data_offsets"][0], entry["data_offsets"][1] - entry["data_offsets"][0])
        for name, entry in header.items()
        if name != "__metadata__"
    }


def strip_notes(model: onnx.ModelProto) -> None:
    """Remove what the exporter notes on the side: shapes of inner values, and stack traces with the paths of this machine."""
    graph = model.graph
    del graph.value_info[:]
    for part in (model, graph, *graph.node, *graph.input, *graph.output, *graph.initializer):
        part.ClearField("doc_string")
        del part.metadata_props[:]


def point_to_file(model: onnx.ModelProto, weights: Path) -> None:
    """Replace the float32 initializers of a graph by a cast of the float16 tensors in a safetensors file."""
    from onnx import TensorProto, helper

    places = external_tensors(weights)
    casts = []
    for tensor in list(model.graph.initializer):
        if tensor.name not in places:
            continue
        offset, length = places.pop(tensor.name)
        half = TensorProto(name=f"{tensor.name}.half", data_type=TensorProto.FLOAT16, dims=tensor.dims)
        half.data_location = TensorProto.EXTERNAL
        for key, value in (("location", weights.name), ("offset", str(offset)), ("length", str(length))):
            half.external_data.add(key=key, value=value)
        model.graph.initializer.remove(tensor)
        model.graph.initializer.append(half)
        casts.append(helper.make_node("Cast", [half.name], [tensor.name], to=TensorProto.FLOAT))
    if places:
        raise BackendError(f"The graph lost these weights, so it cannot share the file: {', '.join(sorted(places))}.")
    for node in reversed(casts):
        model.graph.node.insert(0, node)


def quantise_weights(model: onnx.ModelProto, smallest: int = 10_000) -> None:
    """Store the large float32 matrices of a graph as int8 with one scale for each output (or each token).

    Args:
        model: Changed in place.
        smallest: Tensors with fewer elements stay as they are.
    """
    from onnx import TensorProto, helper, numpy_helper

    graph = model.graph
    lookups = {node.input[0]: node for node in graph.node if node.op_type == "Gather"}
    front = []
    for tensor in list(graph.initializer):
        if tensor.data_type != TensorProto.FLOAT or int(np.prod(tensor.dims)) < smallest:
            continue
        values, name = numpy_helper.to_array(tensor), tensor.name
        scale = np.abs(values).max(axis=1 if name in lookups else 0, keepdims=True) / 127
        scale = np.where(scale == 0, 1, scale).astype(np.float32)
        codes = np.clip(np.rint(values / scale), -127, 127).astype(np.int8)
        graph.initializer.remove(tensor)
        graph.initializer.extend([numpy_helper.from_array(codes, f"{name}.int8"), numpy_helper.from_array(scale, f"{name}.scale")])
        if name in lookups:  # take the rows first, then scale them
            node = lookups[name]
            rows = node.output[0]
            node.input[0], node.output[0] = f"{name}.int8", f"{rows}.int8"
            after = [
                helper.make_node("Gather", [f"{name}.scale", node.input[1]], [f"{rows}.scale"]),
                helper.make_node("Cast", [f"{rows}.int8"], [f"{rows}.float"], to=TensorProto.FLOAT),
                helper.make_node("Mul", [f"{rows}.float", f"{rows}.scale"], [rows]),
            ]
            place = list(graph.node).index(node) + 1
            for i, extra in enumerate(after):
                graph.node.insert(place + i, extra)
        else:
            front.append(helper.make_node("Cast", [f"{name}.int8"], [f"{name}.float"], to=TensorProto.FLOAT))
            front.append(helper.make_node("Mul", [f"{name}.float", f"{name}.scale"], [name]))
    for node in reversed(front):
        graph.node.insert(0, node)


def export_image(state: dict[str, torch.Tensor], out: Path) -> float:
    """Write `image.safetensors` and `image.onnx`.

    Args:
        state: The trained state dict of `MiniNetwork`.
        out: Folder to write to.

    Returns:
        The largest difference between torch and onnxruntime over three sizes.
    """
    import onnx
    import onnxruntime
    import torch
    from safetensors.torch import save_file

    from ovseg.models.mini import build
    from ovseg.network import read_safetensors

    weights = out / "image.safetensors"
    save_file({name: value.half().contiguous() for name, value in state.items()}, weights)
    network = build({}, read_safetensors([weights])).eval()
    dynamic = torch.export.Dim.DYNAMIC
    program = torch.onnx.export(
        network,
        (torch.randn(2, 3, 96, 128),),
        dynamo=True,
        opset_version=OPSET,
        dynamic_shapes=({0: dynamic, 2: 32 * torch.export.Dim("rows", min=1), 3: 32 * torch.export.Dim("columns", min=1)},),
        input_names=["pixel_values"],
        output_names=["features"],
        external_data=False,
        verbose=False,
    )
    model = program.model_proto  # type: ignore[union-attr]
    fast_lengths(model)
    strip_notes(model)
    point_to_file(model, weights)
    onnx.save(model, out / "image.onnx")
    session = onnxruntime.InferenceSession(str(out / "image.onnx"), providers=["CPUExecutionProvider"])
    worst = 0.0
    for batch, height, width in ((1, 32, 32), (3, 160, 96), (2, 352, 480)):
        pixels = torch.rand(batch, 3, height, width) * 2 - 1
        with torch.inference_mode():
            expected = network(pixels).numpy()
        found = session.run(None, {"pixel_values": pixels.numpy()})[0]
        worst = float(np.maximum(worst, np.abs(expected - found).max()))  # lets NaN through, unlike max()
    return worst


def export_text(out: Path) -> float:
    """Write `text.onnx` and `tokenizer.json`.

    Args:
        out: Folder to write to.

    Returns:
        The least cosine between the exported and the original embeddings of a few texts.
    """
    import onnx
    import torch

    from ovseg.file_tokenizer import file_tokenizer
    from ovseg.learn.minilm import SentenceEncoder, model_folder, sentence_encoder
    from ovseg.runtime.onnx import OnnxRuntime
    from ovseg.text import TextTower

    network = SentenceEncoder()
    ids = torch.randint(1000, 2000, (2, 7))
    mask = torch.ones_like(ids)
    mask[1, 5:] = 0
    dynamic = torch.export.Dim.DYNAMIC
    program = torch.onnx.export(
        network,
        (ids, mask),
        dynamo=True,
        opset_version=OPSET,
        dynamic_shapes=({0: dynamic, 1: dynamic}, {0: dynamic, 1: dynamic}),
        input_names=["input_ids", "attention_mask"],
        output_names=["text_embeddings"],
        external_data=False,
        verbose=False,
    )
    model = program.model_proto  # type: ignore[union-attr]
    strip_notes(model)
    quantise_weights(model)
    onnx.checker.check_model(model)
    onnx.save(model, out / "text.onnx")
    tokenizer = load_tokenizer(model_folder() / "tokenizer.json")
    tokenizer.save(str(out / "tokenizer.json"), pretty=False)
    runtime = OnnxRuntime(out / "image.onnx", out / "text.onnx", "cpu")
    found = TextTower(file_tokenizer(out / "tokenizer.json"), runtime.encode_text).embed(_PROBES)
    return float((found * sentence_encoder()(_PROBES)).sum(1).min())


def load_tokenizer(path: Path) -> Any:
    """Read the original tokenizer, without its padding and with room for 256 tokens."""
    from tokenizers import Tokenizer

    tokenizer = Tokenizer.from_file(str(path))
    tokenizer.no_padding()
    tokenizer.enable_truncation(256)
    return tokenizer


def export(weights: Path, out: Path) -> dict[str, float]:
    """Export `mini` to a folder.

    Args:
        weights: The `mini.pt` that training wrote, or a checkpoint.
        out: Folder to write to; its files are replaced only when all checks pass.

    Returns:
        What the checks measured.

    Raises:
        BackendError: If an exported tower differs from the original.
    """
    import torch

    state = torch.load(weights, weights_only=True, map_location="cpu")
    state = state.get("average", state)
    with tempfile.TemporaryDirectory() as name:
        part = Path(name)
        report = {"image_max_abs_difference": export_image(state, part), "text_min_cosine": export_text(part)}
        if not (report["image_max_abs_difference"] <= IMAGE_TOLERANCE and report["text_min_cosine"] >= TEXT_COSINE):  # nor NaN
            raise BackendError(f"The exported towers differ from the originals: {report}. Nothing was written.")
        out.mkdir(parents=True, exist_ok=True)
        for file in sorted(part.iterdir()):
            shutil.copyfile(file, out / file.name)
    return report


def main() -> None:
    """Parse the command line and export."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n\n")[0])
    parser.add_argument("--weights", type=Path, required=True)
    parser.add_argument("--out", type=Path, required=True)
    args = parser.parse_args()
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    logger.info("%s", export(args.weights, args.out))


if __name__ == "__main__":
    main()
