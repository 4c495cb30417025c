"""Dense targets from teacher networks, averaged over scales, cached on disk.

For an image of any size a teacher gives probabilities on a grid of `GRID_STRIDE` pixels. Several input sizes see small and large
things; their mean is a better target than any of them.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from ovseg.learn.teachers import (
    CLASSIFIER,
    OBJECT_SEGMENTER,
    STREET_SEGMENTER,
    TeacherNetwork,
)

GRID_STRIDE = 16
"""Image pixels per cell of a stored target."""
KEPT_CLASSES = 10
"""ImageNet classes kept at each cell; the rest of the softmax is noise."""

_SCALES = {
    CLASSIFIER: (256, 448),
    OBJECT_SEGMENTER: (400,),
    STREET_SEGMENTER: (448,),
}


@dataclass(frozen=True)
class PseudoLabels:
    """What the teachers say about one image, on a grid of h x w cells.

    Attributes:
        image_class: (h, w, 10) int16, ImageNet indices, most probable first.
        image_prob: (h, w, 10) float16, their probabilities.
        objects: (21, h, w) float16, probabilities of the Pascal VOC classes (0 is "none of them").
        street: (19, h, w) float16, probabilities of the Cityscapes classes.
    """

    image_class: NDArray[np.int16]
    image_prob: NDArray[np.float16]
    objects: NDArray[np.float16]
    street: NDArray[np.float16]


class Teachers:
    """The three teachers with a cache folder.

    Args:
        weights: Folder with the teachers' files.
        cache: Folder for finished targets; one `.npz` for each image, named by the hash of its path.
    """

    def __init__(self, weights: Path, cache: Path) -> None:
        self.cache = cache
        cache.mkdir(parents=True, exist_ok=True)
        self.weights = weights
        self._networks: dict[str, TeacherNetwork] = {}

    def labels(self, path: Path, image: NDArray[np.uint8]) -> PseudoLabels:
        """Return the targets of an image, computing them the first time.

        Args:
            path: The image's path, the key of the cache.
            image: (H, W, 3) uint8 RGB.
        """
        file = self.cache / f"{hashlib.sha1(str(path.resolve()).encode()).hexdigest()[:20]}.npz"
        if not file.exists():
            values = self._compute(image)
            part = file.with_suffix(".part.npz")
            np.savez(part, **values)
            part.replace(file)
        with np.load(file) as stored:
            return PseudoLabels(**{key: stored[key] for key in stored.files})

    def _compute(self, image: NDArray[np.uint8]) -> dict[str, Any]:
        x = torch.from_numpy(image.copy()).permute(2, 0, 1)[None].float() / 127.5 - 1
        probability, index = self._probabilities(CLASSIFIER, x).topk(KEPT_CLASSES, dim=0)
        return {
            "image_class": index.permute(1, 2, 0).numpy().astype(np.int16),
            "image_prob": probability.permute(1, 2, 0).numpy().astype(np.float16),
            "objects": self._probabilities(OBJECT_SEGMENTER, x).numpy().astype(np.float16),
            "street": self._probabilities(STREET_SEGMENTER, x).numpy().astype(np.float16),
        }

    @torch.inference_mode()
    def _probabilities(self, name: str, x: Tensor) -> Tensor:
        """Mean softmax over scales: (C, h, w) float32."""
        if name not in self._networks:
            network = TeacherNetwork(self.weights, name).to(memory_format=torch.channels_last)
            self._networks[name] = network.eval()
        height, width = x.shape[-2:]
        grid = (max(1, round(height / GRID_STRIDE)), max(1, round(width / GRID_STRIDE)))
        total = torch.zeros(())
        for short in _SCALES[name]:
            scale = short / min(height, width)
            size = [max(32, round(side * scale / 32) * 32) for side in (height, width)]
            scaled = F.interpolate(x, size, mode="bilinear", antialias=True, align_corners=False)
            with torch.autocast("cpu", dtype=torch.bfloat16):
                logits = self._networks[name](scaled.contiguous(memory_format=torch.channels_last))
            if name == CLASSIFIER:
                logits = logits[:, 1:]
            p = logits.softmax(1)
            total = total + F.interpolate(p, grid, mode="bilinear", align_corners=False)[0]
        return total / total.sum(0, keepdim=True)
