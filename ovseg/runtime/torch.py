"""Run a model's image tower with torch. Its text tower stays in onnxruntime, which runs the same small file everywhere."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ovseg.errors import BackendError, InvalidArgumentError, MissingDependencyError, WeightsError
from ovseg.runtime.base import Runtime

DTYPES = ("float32", "float16", "bfloat16")


class TorchRuntime:
    """A torch module as the image tower.

    Args:
        build: Returns the module with its weights; maps (B, 3, H, W) to (B, D, h, w).
        text: The runtime of the text tower.
        device: A torch device, or None for CUDA, then MPS, then the CPU.
        dtype: "float32", "float16" or "bfloat16"; None is float32.
        threads: Threads of an operator; None leaves torch's own choice.
    """

    def __init__(
        self,
        build: Callable[[], Any],
        text: Runtime,
        device: str | None = None,
        dtype: str | None = None,
        threads: int | None = None,
    ) -> None:
        try:
            import torch
        except ImportError as error:
            raise MissingDependencyError("The torch backend needs torch: pip install 'ovseg[torch]'") from error
        if dtype not in (None, *DTYPES):
            raise InvalidArgumentError(f"dtype must be one of {', '.join(DTYPES)}; got {dtype!r}.")
        if device is None:
            device = "cuda" if torch.cuda.is_available() else "mps" if torch.backends.mps.is_available() else "cpu"
        try:
            self._device = torch.device(device)
            torch.empty(1, device=self._device)
        except (RuntimeError, AssertionError, TypeError) as error:
            raise BackendError(f"torch cannot use the device {device!r}: {error}") from error
        if threads is not None:
            torch.set_num_threads(threads)
        self._dtype = getattr(torch, dtype or "float32")
        module = build().eval().requires_grad_(False)
        self._module = module.to(self._device, self._dtype, memory_format=torch.channels_last)
        self._text = text
        self.name = f"torch:{self._device.type}"

    def encode_image(self, pixel_values: NDArray[np.float32]) -> NDArray[np.float32]:
        """Map (B, 3, H, W) float32 pixel values to (B, D, h, w) float32 features."""
        import torch

        try:
            with torch.inference_mode():
                x = torch.from_numpy(pixel_values).to(self._device, self._dtype)
                features = self._module(x.contiguous(memory_format=torch.channels_last)).float()
                output: NDArray[np.float32] = features.cpu().contiguous().numpy()
        except RuntimeError as error:  # out of memory, for one
            raise BackendError(f"torch failed in the image tower on {self._device}: {error}") from error
        return output

    def encode_text(self, input_ids: NDArray[np.int64], attention_mask: NDArray[np.int64]) -> NDArray[np.float32]:
        """Map (B, T) int64 token ids and mask to (B, D) float32 embeddings."""
        return self._text.encode_text(input_ids, attention_mask)


def build_mini(weights: Path) -> Any:
    """Build the image tower of `mini` from its safetensors."""
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    from ovseg.models.mini import MiniNetwork

    network = MiniNetwork()
    try:
        network.load_state_dict({key: value.float() for key, value in load_file(weights).items()})
    except (OSError, SafetensorError, RuntimeError) as error:  # unreadable; damaged; other tensors than the network has
        raise WeightsError(f"The weights {weights} are damaged or of another model: {error}") from error
    return network


BUILDERS: dict[str, Callable[[Path], Any]] = {"mini": build_mini}
"""Family of a model -> what builds its image tower."""
