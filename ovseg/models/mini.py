"""The image tower of `mini`: MobileNetV2, a light pyramid and a read-out of ImageNet classes, all in the text space.

The idea is LSeg's (Li et al., "Language-driven Semantic Segmentation", ICLR 2022): every pixel gets a vector that can be compared
with text embeddings. Two branches make that vector:

    read-out   softmax over the 1,000 ImageNet classes at stride 32, times a matrix that starts as the text embeddings of their
               names: sum_c p(c) text(c). It knows many things coarsely.
    pyramid    strides 32 to 4 fused top-down: fine shapes, and everything that is no ImageNet class (sky, road, wall ...).

A learned gate decides, in cells of 8 pixels, how much of the coarse part to keep. The mean vector of all training pixels is
subtracted at the end: without that, words that lie near the mean would win everywhere, and rare words never. Convolutions carry
biases and no batch norm (folded in the starting network), so the state dict, the ONNX graph and the trained network hold the same
tensors.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ovseg.models.base import load_strict

EMBED_DIM = 384
"""Size of the shared space, that of all-MiniLM-L6-v2."""
STRIDE = 32
"""Height and width of the input must be multiples of this."""
OUTPUT_STRIDE = 4
"""Input pixels per cell of the feature map."""

# (expansion, channels, blocks, stride) of MobileNetV2: Sandler et al., CVPR 2018, table 2.
_STAGES = ((1, 16, 1, 1), (6, 24, 2, 2), (6, 32, 3, 2), (6, 64, 4, 2), (6, 96, 3, 1), (6, 160, 3, 2), (6, 320, 1, 1))
_TAPS = {1: 24, 2: 32, 4: 96, 6: 320}  # stages whose outputs the pyramid reads, at strides 4, 8, 16, 32


class SameConv(nn.Conv2d):
    """3x3 convolution with TensorFlow's "SAME" padding for even input sizes: at stride 2 the pad is on the right and bottom."""

    def __init__(self, inputs: int, outputs: int, stride: int = 1, groups: int = 1) -> None:
        super().__init__(inputs, outputs, 3, stride, padding=1 if stride == 1 else 0, groups=groups)

    def forward(self, x: Tensor) -> Tensor:
        """Convolve (B, C, H, W) to (B, C', H / stride, W / stride)."""
        return super().forward(F.pad(x, (0, 1, 0, 1)) if self.stride[0] == 2 else x)


class InvertedResidual(nn.Module):
    """Expand, filter each channel, project back; with a shortcut where the shape stays."""

    def __init__(self, inputs: int, outputs: int, stride: int, expansion: int) -> None:
        super().__init__()
        hidden = inputs * expansion
        self.expand = nn.Conv2d(inputs, hidden, 1) if expansion > 1 else None
        self.depthwise = SameConv(hidden, hidden, stride, groups=hidden)
        self.project = nn.Conv2d(hidden, outputs, 1)
        self.shortcut = stride == 1 and inputs == outputs

    def forward(self, x: Tensor) -> Tensor:
        """Map (B, inputs, H, W) to (B, outputs, H / stride, W / stride)."""
        wide = x if self.expand is None else F.relu6(self.expand(x))
        y: Tensor = self.project(F.relu6(self.depthwise(wide)))
        return x + y if self.shortcut else y


class Separable(nn.Module):
    """Residual 3x3 depthwise and 1x1 convolution."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.depthwise = SameConv(channels, channels, groups=channels)
        self.pointwise = nn.Conv2d(channels, channels, 1)

    def forward(self, x: Tensor) -> Tensor:
        """Map (B, C, h, w) to the same shape."""
        y: Tensor = self.pointwise(F.relu(self.depthwise(x)))
        return x + y


def _double(x: Tensor) -> Tensor:
    return F.interpolate(x, scale_factor=2.0, mode="bilinear", align_corners=False)


class MiniNetwork(nn.Module):
    """Pixels to a dense map of text-space vectors.

    Args:
        width: Channels of the pyramid.
        coarse_width: Channels of the pyramid at strides 16 and 32.
    """

    def __init__(self, width: int = 128, coarse_width: int = 192) -> None:
        super().__init__()
        self.stem = SameConv(3, 32, 2)
        stages, channels = [], 32
        for expansion, outputs, count, stride in _STAGES:
            blocks = []
            for i in range(count):
                blocks.append(InvertedResidual(channels, outputs, stride if i == 0 else 1, expansion))
                channels = outputs
            stages.append(nn.Sequential(*blocks))
        self.stages = nn.ModuleList(stages)
        self.head = nn.Conv2d(320, 1280, 1)
        self.classifier = nn.Conv2d(1280, 1000, 1)
        self.class_text = nn.Conv2d(1000, EMBED_DIM, 1, bias=False)

        self.lateral32 = nn.Conv2d(_TAPS[6], coarse_width, 1)
        self.lateral16 = nn.Conv2d(_TAPS[4], coarse_width, 1)
        self.lateral8 = nn.Conv2d(_TAPS[2], width, 1)
        self.lateral4 = nn.Conv2d(_TAPS[1], width, 1)
        self.context = nn.Conv2d(_TAPS[6], coarse_width, 1)
        self.narrow = nn.Conv2d(coarse_width, width, 1)
        self.refine32 = nn.Sequential(Separable(coarse_width), Separable(coarse_width))
        self.refine16 = nn.Sequential(Separable(coarse_width), Separable(coarse_width))
        self.refine8 = nn.Sequential(Separable(width), Separable(width))
        self.refine4 = nn.Sequential(Separable(width), Separable(width))
        self.coarse_text = nn.Conv2d(coarse_width, EMBED_DIM, 1)
        self.fine_text = nn.Conv2d(width, EMBED_DIM, 1)
        self.gate = nn.Conv2d(width, 1, 1)
        self.mean: Tensor
        self.register_buffer("mean", torch.zeros(EMBED_DIM, 1, 1))

    def backbone(self, pixel_values: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
        """Compute what the pyramid reads.

        Args:
            pixel_values: (B, 3, H, W) float32, RGB / 127.5 - 1; H and W multiples of 32.

        Returns:
            Outputs of the stages at strides 4, 8, 16 and 32, and (B, 1000, H / 32, W / 32) ImageNet logits.
        """
        x = F.relu6(self.stem(pixel_values))
        taps = []
        for i, stage in enumerate(self.stages):
            x = stage(x)
            if i in _TAPS:
                taps.append(x)
        fine, middle, coarse, last = taps
        return fine, middle, coarse, last, self.classifier(F.relu6(self.head(x)))

    def pyramid(self, fine: Tensor, middle: Tensor, coarse: Tensor, last: Tensor, classes: Tensor) -> Tensor:
        """Compute vectors before normalisation, (B, 384, H / 4, W / 4), of what `backbone` returns."""
        readout = self.class_text(classes.softmax(1))  # (B, D, H / 32, W / 32)

        p32 = self.lateral32(last) + self.context(last.mean((-2, -1), keepdim=True))
        p32 = self.refine32(p32)
        p16 = self.refine16(F.relu(self.lateral16(coarse) + _double(p32)))
        p8 = self.refine8(F.relu(self.lateral8(middle) + _double(self.narrow(p16))))
        p4 = self.refine4(F.relu(self.lateral4(fine) + _double(p8)))

        blurred = self.coarse_text(p16) + _double(readout)  # (B, D, H / 16, W / 16)
        gated = 2 * torch.sigmoid(self.gate(p8)) * _double(blurred)  # (B, D, H / 8, W / 8)
        vectors: Tensor = self.fine_text(p4) + _double(gated)
        return vectors

    def normalised(self, vectors: Tensor) -> Tensor:
        """Scale vectors to length 1, subtract the mean of training, and scale again: (B, 384, h, w) float32."""
        features = F.normalize(vectors.float(), dim=1)  # lengths overflow in half precision
        return F.normalize(features - self.mean.float(), dim=1)

    def forward_features(self, pixel_values: Tensor) -> tuple[Tensor, Tensor]:
        """Compute the feature map and the ImageNet logits behind it.

        Args:
            pixel_values: (B, 3, H, W) float32, RGB / 127.5 - 1; H and W multiples of 32.

        Returns:
            (B, 384, H / 4, W / 4) vectors before normalisation, and (B, 1000, H / 32, W / 32) ImageNet logits.
        """
        taps = self.backbone(pixel_values)
        return self.pyramid(*taps), taps[-1]

    def forward(self, pixel_values: Tensor) -> Tensor:
        """Compute the feature map.

        Args:
            pixel_values: (B, 3, H, W) float32, RGB / 127.5 - 1; H and W multiples of 32.

        Returns:
            (B, 384, H / 4, W / 4) float32, L2-normalised over the channels.
        """
        return self.normalised(self.forward_features(pixel_values)[0])


def build(options: Mapping[str, Any], state: Mapping[str, Tensor] | None) -> MiniNetwork:
    """Make the image tower; the text tower stays in onnxruntime, which runs the same small file everywhere.

    Args:
        options: Not used: there is one `mini`.
        state: Tensors as in the safetensors file; None for random ones.
    """
    network = MiniNetwork()
    if state is not None:
        load_strict(network, state, "mini")
    return network
