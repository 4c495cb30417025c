"""Small published networks used as teachers: an ImageNet classifier and two segmenters.

Each network is a pair of files: `NAME.npz` with the weights and `NAME.graph.json` that lists the layers in order (TensorFlow
"SAME" padding, batch norm folded, input RGB / 127.5 - 1). `TeacherNetwork` runs such a list; nothing else in ovseg needs it.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

CLASSIFIER = "mobilenet_v2_imagenet1k"
"""MobileNetV2 with the 1,001 ImageNet classes; class i + 1 is ImageNet index i."""
OBJECT_SEGMENTER = "deeplabv3_mobilenet_v2_voc21"
"""DeepLabv3 with the 21 classes of Pascal VOC."""
STREET_SEGMENTER = "deeplab_mobilenet_edgetpu_cityscapes19"
"""DeepLab with the 19 classes of Cityscapes."""

_ACTIVATIONS = {None: lambda x: x, "relu": F.relu, "relu6": F.relu6}


def _pad_same(x: Tensor, kernel: tuple[int, int], stride: int, dilation: int) -> Tensor:
    """Pad like TensorFlow's "SAME": the odd pixel goes to the bottom and to the right."""
    pads = []
    for size, k in zip(x.shape[-2:], kernel, strict=True):
        total = max((-(-size // stride) - 1) * stride + (k - 1) * dilation + 1 - size, 0)
        pads.append((total // 2, total - total // 2))
    (top, bottom), (left, right) = pads
    return F.pad(x, (left, right, top, bottom)) if top + bottom + left + right else x


class TeacherNetwork(nn.Module):
    """A frozen network read from a layer list; returns dense logits.

    Args:
        folder: Holds `NAME.npz` and `NAME.graph.json`.
        name: One of `CLASSIFIER`, `OBJECT_SEGMENTER`, `STREET_SEGMENTER`.
    """

    def __init__(self, folder: str | Path, name: str) -> None:
        super().__init__()
        graph = json.loads((Path(folder) / f"{name}.graph.json").read_text())
        self.input_id: int = graph["input"]
        # The tail (global mean of the classifier, last resizes, softmax, argmax) only serves whole-image answers.
        layers: list[dict[str, Any]] = graph["graph"]
        last = max(i for i, layer in enumerate(layers) if layer["op"] == "conv")
        self.layers = [layer for layer in layers[: last + 1] if layer["op"] != "mean"]
        with np.load(Path(folder) / f"{name}.npz") as weights:
            for layer in self.layers:
                for part in ("weight", "bias"):
                    if part in layer:
                        value = torch.from_numpy(weights[layer[part]].astype(np.float32))
                        self.register_buffer(layer[part].replace(".", "_"), value)
        self.aliases = {layer["output"]: layer["inputs"][0] for layer in layers if layer["op"] == "mean"}

    @torch.inference_mode()
    def forward(self, x: Tensor) -> Tensor:
        """Compute dense logits.

        Args:
            x: (B, 3, H, W) float32, RGB / 127.5 - 1.

        Returns:
            (B, C, h, w) float32 logits at stride 32 (classifier) or 16 (segmenters).
        """
        values: dict[int, Tensor] = {self.input_id: x}

        def value(index: int) -> Tensor:
            return values[self.aliases.get(index, index)]

        size = (0, 0)
        for layer in self.layers:
            first = value(layer["inputs"][0])
            op = layer["op"]
            if op in ("conv", "depthwise_conv"):
                weight = getattr(self, layer["weight"].replace(".", "_"))
                bias = getattr(self, layer["bias"].replace(".", "_"))
                stride, dilation = layer["stride"], layer["dilation"]
                padded = _pad_same(first, tuple(weight.shape[-2:]), stride, dilation)
                out = F.conv2d(padded, weight, bias, stride, 0, dilation, layer["groups"])
            elif op == "add":
                out = first + value(layer["inputs"][1])
            elif op == "avg_pool":
                size = (first.shape[-2], first.shape[-1])
                out = first.mean((-2, -1), keepdim=True)
            elif op in ("resize_bilinear", "tile"):
                out = first.expand(-1, -1, *size)
            elif op == "concat":
                out = torch.cat([value(i) for i in layer["inputs"] if i in values or i in self.aliases], 1)
            elif op == "quantize":
                out = first
            else:
                raise NotImplementedError(f"layer kind {op!r} in a teacher network")
            values[layer["output"]] = _ACTIVATIONS[layer.get("activation")](out)
        return out.float()
