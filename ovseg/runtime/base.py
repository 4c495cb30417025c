"""What every runtime offers."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Protocol, runtime_checkable

import numpy as np
from numpy.typing import NDArray

from ovseg.similarity import Axis, Indices, Labels

Floats = NDArray[np.float32]


class Runtime(Protocol):
    """The two towers of a model on a device."""

    @property
    def name(self) -> str:
        """Which runtime and device: "onnx:cpu", "torch:cuda"."""
        ...

    @property
    def encode_global(self) -> Callable[[Floats], Floats] | None:
        """Maps (B, 3, H, W) pixel values to (B, D) embeddings of whole images; None where the network has no such output."""
        ...

    @property
    def refine_logits(self) -> Callable[[Floats], Floats] | None:
        """Maps (1, K, h, w) logits of all names to as many; None where the logits are final."""
        ...

    def encode_image(self, pixel_values: Floats) -> Floats:
        """Map (B, 3, H, W) pixel values to (B, D, h, w) float32 features, L2-normalised over D."""
        ...

    def encode_text(self, input_ids: NDArray[np.int64], attention_mask: NDArray[np.int64]) -> Floats:
        """Map (B, T) token ids and mask to (B, D) float32 embeddings."""
        ...


class ConditionalRuntime(Protocol):
    """A network that looks at an image once and then answers prompt by prompt."""

    @property
    def name(self) -> str:
        """Which runtime and device: "torch:cuda"."""
        ...

    def look(self, pixel_values: Floats) -> Any:
        """Map (1, 3, H, W) pixel values to what `decode` needs of the image; it stays on the device."""
        ...

    def decode(self, state: Any, input_ids: NDArray[np.int64]) -> Floats:
        """Map (N, T) token ids to (N, h, w) float32, a map for each prompt."""
        ...


@runtime_checkable
class OnDevice(Protocol):
    """A runtime that can leave features on its device and make a label map of them there: only a byte or two a pixel come back."""

    @property
    def name(self) -> str:
        """Which runtime and device."""
        ...

    def encode_on_device(self, pixel_values: Floats) -> Any:
        """Map (B, 3, H, W) pixel values to a sequence of B features, L2-normalised over D, that stay on the device.

        Each has a `shape`, (D, h, w).
        """
        ...

    def is_finite(self, features: Any) -> bool:
        """Whether all numbers of an image's features are finite."""
        ...

    def label_pixels(self, features: Any, axes: tuple[Axis, Axis], text: Floats, owner: Indices, scale: float) -> Labels:
        """Do what `similarity.label_map` does.

        Args:
            features: (D, h, w), on the device or an array.
            axes: Where the rows and columns of pixels lie on the grid.
            text: (N, D) float32 embeddings of all names, L2-normalised.
            owner: (N,) the label that each name belongs to, not decreasing.
            scale: Multiplier of the cosine.
        """
        ...
