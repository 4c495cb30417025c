"""What every runtime offers."""

from __future__ import annotations

from typing import Protocol

import numpy as np
from numpy.typing import NDArray


class Runtime(Protocol):
    """The two towers of a model on a device."""

    @property
    def name(self) -> str:
        """Which runtime and device: "onnx:cpu", "torch:cuda"."""
        ...

    def encode_image(self, pixel_values: NDArray[np.float32]) -> NDArray[np.float32]:
        """Map (B, 3, H, W) pixel values to (B, D, h, w) float32 features, L2-normalised over D."""
        ...

    def encode_text(self, input_ids: NDArray[np.int64], attention_mask: NDArray[np.int64]) -> NDArray[np.float32]:
        """Map (B, T) token ids and mask to (B, D) float32 embeddings."""
        ...
