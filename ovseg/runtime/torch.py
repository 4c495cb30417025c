"""Run a model with torch."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ovseg.errors import BackendError, InvalidArgumentError, MissingDependencyError
from ovseg.runtime.base import Floats, Runtime

DTYPES = ("float32", "float16", "bfloat16")


class _Placed:
    """A torch module on a device.

    Args:
        build: Returns the module with its weights.
        device: A torch device, or None for CUDA, then MPS, then the CPU.
        dtype: "float32", "float16" or "bfloat16"; None is float32.
        threads: Threads of an operator; None leaves torch's own choice.
    """

    def __init__(self, build: Callable[[], Any], device: str | None, dtype: str | None, threads: int | None) -> None:
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
        self.name = f"torch:{self._device.type}"

    def _tensor(self, array: NDArray[Any]) -> Any:
        import torch

        return torch.from_numpy(array).to(self._device)

    def _pixels(self, pixel_values: Floats) -> Any:
        import torch

        return self._tensor(pixel_values).to(self._dtype).contiguous(memory_format=torch.channels_last)

    def _run(self, part: str, function: Callable[[], Any]) -> Any:
        import torch

        try:
            with torch.inference_mode():
                return function()
        except RuntimeError as error:  # out of memory, for one
            raise BackendError(f"torch failed in the {part} on {self._device}: {error}") from error

    @staticmethod
    def _array(tensor: Any) -> Floats:
        array: Floats = tensor.float().cpu().contiguous().numpy()
        return array


class TorchRuntime(_Placed):
    """A torch module with two towers.

    Args:
        build: Returns the module with its weights; see `ovseg.models.base`.
        text: Runs the text tower instead of the module's own; None for the module's own.
        device: See `_Placed`.
        dtype: See `_Placed`.
        threads: See `_Placed`.
    """

    def __init__(
        self,
        build: Callable[[], Any],
        text: Runtime | None = None,
        device: str | None = None,
        dtype: str | None = None,
        threads: int | None = None,
    ) -> None:
        super().__init__(build, device, dtype, threads)
        self._text = text

    @property
    def encode_global(self) -> Callable[[Floats], Floats] | None:
        """Maps (B, 3, H, W) float32 pixel values to (B, D) float32 embeddings of whole images; or None."""
        module = getattr(self._module, "encode_global", None)
        if module is None:
            return None
        return lambda pixel_values: self._run("image tower", lambda: self._array(module(self._pixels(pixel_values))))

    @property
    def refine_logits(self) -> Callable[[Floats], Floats] | None:
        """Maps (1, K, h, w) float32 logits to as many; or None."""
        module = getattr(self._module, "refine_logits", None)
        if module is None:
            return None
        return lambda logits: self._run("head", lambda: self._array(module(self._tensor(logits))))

    def encode_image(self, pixel_values: Floats) -> Floats:
        """Map (B, 3, H, W) float32 pixel values to (B, D, h, w) float32 features."""
        features: Floats = self._run("image tower", lambda: self._array(self._module(self._pixels(pixel_values))))
        return features

    def encode_text(self, input_ids: NDArray[np.int64], attention_mask: NDArray[np.int64]) -> Floats:
        """Map (B, T) int64 token ids and mask to (B, D) float32 embeddings."""
        if self._text is not None:
            return self._text.encode_text(input_ids, attention_mask)
        import torch

        ids = torch.from_numpy(input_ids).to(self._device)
        embeddings: Floats = self._run("text tower", lambda: self._array(self._module.encode_text(ids)))
        return embeddings


class TorchConditionalRuntime(_Placed):
    """A torch module that answers prompt by prompt."""

    def look(self, pixel_values: Floats) -> Any:
        """Map (1, 3, H, W) float32 pixel values to what `decode` needs of the image."""
        return self._run("image tower", lambda: self._module(self._pixels(pixel_values)))

    def decode(self, state: Any, input_ids: NDArray[np.int64]) -> Floats:
        """Map (N, T) int64 token ids to (N, h, w) float32."""
        import torch

        ids = torch.from_numpy(input_ids).to(self._device)
        maps: Floats = self._run("decoder", lambda: self._array(self._module.decode(state, ids)))
        return maps
