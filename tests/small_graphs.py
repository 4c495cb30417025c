"""Small ONNX graphs in the layout of an exported folder, and such a folder."""

from __future__ import annotations

import dataclasses
import hashlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper
from ovseg.export.checkpoints import card_text

from ovseg.registry import find_card

DIM, PATCH = 6, 8


def graph(
    nodes: Sequence[onnx.NodeProto],
    inputs: Sequence[onnx.ValueInfoProto],
    outputs: Sequence[onnx.ValueInfoProto],
    weights: dict[str, NDArray[Any]] | None = None,
    opset: int = 18,
) -> onnx.ModelProto:
    tensors = [numpy_helper.from_array(np.asarray(value), name) for name, value in (weights or {}).items()]
    content = helper.make_graph(nodes, "small", inputs, outputs, tensors)
    return helper.make_model(content, opset_imports=[helper.make_opsetid("", opset)], ir_version=10)


def value(name: str, dims: Sequence[int | str | None] | None, kind: int = TensorProto.FLOAT) -> onnx.ValueInfoProto:
    return helper.make_tensor_value_info(name, kind, dims)


def _tower(positions: bool) -> tuple[list[onnx.NodeProto], list[onnx.ValueInfoProto], dict[str, NDArray[Any]]]:
    weights = {"kernel": np.random.default_rng(3).standard_normal((DIM, 3, PATCH, PATCH)).astype(np.float32)}
    nodes = [helper.make_node("Conv", ["pixel_values", "kernel"], ["cells"], "patches", strides=[PATCH, PATCH])]
    inputs = [value("pixel_values", ["B", 3, "H", "W"])]
    if positions:
        inputs.append(value("positions", ["h", "w", DIM]))
        nodes.append(helper.make_node("Transpose", ["positions"], ["channels_first"], perm=[2, 0, 1]))
        nodes.append(helper.make_node("Add", ["cells", "channels_first"], ["features"]))
    else:
        nodes.append(helper.make_node("Relu", ["cells"], ["features"]))
    return nodes, inputs, weights


def image_graph(positions: bool = True) -> onnx.ModelProto:
    """Patches, plus positions: pixel_values (B, 3, H, W), positions (h, w, 6) -> features (B, 6, h, w)."""
    nodes, inputs, weights = _tower(positions)
    return graph(nodes, inputs, [value("features", ["B", DIM, "h", "w"])], weights)


def segmenter_graph() -> onnx.ModelProto:
    """The same with text_embeddings (K, 6) -> segmentation (B, h, w) int32."""
    nodes, inputs, weights = _tower(True)
    nodes += [
        helper.make_node("Transpose", ["features"], ["rows"], perm=[0, 2, 3, 1]),
        helper.make_node("Transpose", ["text_embeddings"], ["columns"], perm=[1, 0]),
        helper.make_node("MatMul", ["rows", "columns"], ["logits"]),
        helper.make_node("ArgMax", ["logits"], ["best"], axis=3, keepdims=0),
        helper.make_node("Cast", ["best"], ["segmentation"], to=TensorProto.INT32),
    ]
    inputs.append(value("text_embeddings", ["K", DIM]))
    return graph(nodes, inputs, [value("segmentation", ["B", "h", "w"], TensorProto.INT32)], weights)


def exported_folder(folder: Path, positions: bool = True) -> Path:
    """Write a folder like those of `ovseg export onnx`; its weights lie beside the image graph."""
    folder.mkdir(parents=True)
    onnx.save_model(
        image_graph(positions), folder / "image.onnx", save_as_external_data=True, location="image.onnx.data", size_threshold=0
    )
    onnx.save_model(segmenter_graph(), folder / "segmenter.onnx")
    onnx.save_model(image_graph(False), folder / "text.onnx")  # any graph: nobody runs it
    (folder / "tokenizer.json").write_text("{}")
    files = {
        "image": "image.onnx", "image_weights": "image.onnx.data", "segmenter": "segmenter.onnx", "text": "text.onnx",
        "tokenizer": "tokenizer.json",
    }  # fmt: skip
    card = dataclasses.replace(
        find_card("mini"), name="small", embed_dim=DIM, stride=PATCH, files=files,
        sha256={name: hashlib.sha256((folder / name).read_bytes()).hexdigest() for name in files.values()},
        preprocess={"short_side": 32, "max_area": 4096, "multiple": PATCH}, options={"positions": {"patch": PATCH}},
    )  # fmt: skip
    (folder / "card.md").write_text(card_text(card), "utf-8")
    return folder
