"""Run a model with torch."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ovseg.errors import BackendError, InvalidArgumentError, MissingDependencyError
from ovseg.runtime.base import Floats, Runtime
from ovseg.runtime.replay import Replay
from ovseg.similarity import DEFAULT_BUDGET, Axis, Indices, Labels, first_equal

DTYPES = ("float32", "float16", "bfloat16")


def check_place(device: str | None, dtype: str | None) -> Any:
    """Return the device, or say what is wrong with it or with the precision.

    Args:
        device: A torch device, or None for CUDA, then MPS, then the CPU.
        dtype: One of `DTYPES`, or None.
    """
    try:
        import torch
    except ImportError as error:
        raise MissingDependencyError("The torch backend needs torch: pip install 'ovseg[torch]'") from error
    if dtype not in (None, *DTYPES):
        raise InvalidArgumentError(f"dtype must be one of {', '.join(DTYPES)}; got {dtype!r}.")
    if device is None:
        device = "cuda" if torch.cuda.is_available() else "mps" if torch.backends.mps.is_available() else "cpu"
    try:
        place = torch.device(device)
        torch.empty(1, device=place)
    except (RuntimeError, AssertionError, TypeError) as error:
        raise BackendError(f"torch cannot use the device {device!r}: {error}") from error
    return place


class _Placed:
    """A torch module on a device.

    Args:
        build: Returns the module with its weights.
        device: A torch device, or None for CUDA, then MPS, then the CPU.
        dtype: "float32", "float16" or "bfloat16"; None is float32.
        threads: Threads of an operator; None leaves torch's own choice.
        compile: Whether torch.compile makes kernels of the image network. The first image of a shape class then takes half a minute
            or more on a CPU (a few seconds where torch's cache, TORCHINDUCTOR_CACHE_DIR, has them already); in return a GPU starts
            far fewer kernels, and with two towers all of them at once where a shape of input comes again (`ovseg.runtime.replay`).
            On a CPU it gained at most a twelfth in float32.
    """

    def __init__(
        self, build: Callable[[], Any], device: str | None, dtype: str | None, threads: int | None, compile: bool = False
    ) -> None:
        self._device = check_place(device, dtype)
        import torch

        if threads is not None:
            torch.set_num_threads(threads)
        self._dtype = getattr(torch, dtype or "float32")
        module = build().eval().requires_grad_(False)
        self._module = module.to(self._device, self._dtype, memory_format=torch.channels_last)
        # dynamic: one compilation for all sizes; without it each new size of an image would be compiled anew
        self._forward: Callable[[Any], Any] = torch.compile(self._module, dynamic=True) if compile else self._module
        self.name = f"torch:{self._device.type}"

    @property
    def module(self) -> Any:
        """The torch module itself, in evaluation mode and without gradients, for those who train or explain it."""
        return self._module

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
        compile: See `_Placed`.
    """

    def __init__(
        self,
        build: Callable[[], Any],
        text: Runtime | None = None,
        device: str | None = None,
        dtype: str | None = None,
        threads: int | None = None,
        compile: bool = False,
    ) -> None:
        super().__init__(build, device, dtype, threads, compile)
        self._text = text
        if compile and self._device.type == "cuda":
            self._forward = Replay(self._forward)

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
        features: Floats = self._run("image tower", lambda: self._array(self._forward(self._pixels(pixel_values))))
        return features

    def encode_on_device(self, pixel_values: Floats) -> Any:
        """Map (B, 3, H, W) pixel values to a (B, D, h, w) float32 tensor of features, L2-normalised over D, that stays on the device."""
        return self._run("image tower", lambda: self._forward(self._pixels(pixel_values)).float())

    def is_finite(self, features: Any) -> bool:
        """Whether all numbers of a (D, h, w) tensor are finite; their sum says it, as vectors of length 1 cannot overflow."""
        return bool(features.sum().isfinite())

    def label_pixels(self, features: Any, axes: tuple[Axis, Axis], text: Floats, owner: Indices, scale: float) -> Labels:
        """Find the best label of every pixel on the device; see `device_label_map`. Features that are an array are copied there."""
        if isinstance(features, np.ndarray):
            features = self._tensor(np.ascontiguousarray(features))
        labels: Labels = self._run("label map", lambda: device_label_map(features, axes, text, owner, scale))
        return labels

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
        return self._run("image tower", lambda: self._forward(self._pixels(pixel_values)))

    def decode(self, state: Any, input_ids: NDArray[np.int64]) -> Floats:
        """Map (N, T) int64 token ids to (N, h, w) float32."""
        import torch

        ids = torch.from_numpy(input_ids).to(self._device)
        maps: Floats = self._run("decoder", lambda: self._array(self._module.decode(state, ids)))
        return maps


def device_label_map(
    features: Any, axes: tuple[Axis, Axis], text: Floats, owner: Indices, scale: float, budget: int = DEFAULT_BUDGET
) -> Labels:
    """Do what `similarity.label_map` does where the features are: only a byte or two for each pixel leave the device.

    All logits are interpolated, strip by strip: a GPU has the arithmetic, and looking for names that cannot win would keep it waiting.

    Args:
        features: (D, h, w) float32 tensor.
        axes: Where the rows and columns of pixels lie on the grid.
        text: (N, D) float32 embeddings of all names, L2-normalised.
        owner: (N,) the label that each name belongs to, not decreasing.
        scale: Multiplier of the cosine.
        budget: Bytes of working memory on the device; a strip has at least one row of pixels, whatever it needs.

    Returns:
        (H, W) indices of labels, of the smallest unsigned type that holds the number of labels; ties go to the first name.
    """
    import torch

    kind = np.min_scalar_type(int(owner[-1]) + 1)
    keep = first_equal(text) == np.arange(len(text))  # a product may give equal rows unequal logits, and a tie would be no tie
    device = features.device
    names = torch.from_numpy(np.ascontiguousarray(text[keep])).to(device)
    label = torch.from_numpy(owner[keep].astype(np.int32)).to(device)
    rows, columns = axes
    left, right = (torch.from_numpy(place).to(device) for place in (columns.low, columns.high))
    across = torch.from_numpy(columns.weight).to(device)
    w = features.shape[2]
    result = np.empty((len(rows.low), len(columns.low)), kind)
    step = budget // (4 * len(names) * (2 * w + 3 * len(columns.low)))
    # A strip of `step` rows of pixels needs at most as many rows of cells and one more, but where the image is smaller than the grid.
    for down, cells, y in rows.parts(max(2, step), max(1, step)):
        part = features[:, cells]
        logits = (names @ part.reshape(len(part), -1)).mul_(scale).reshape(len(names), -1, w)
        low, high, weight = (torch.from_numpy(values).to(device) for values in (y.low, y.high, y.weight))
        strip = torch.lerp(logits[:, low], logits[:, high], weight[:, None])
        strip = torch.lerp(strip[:, :, left], strip[:, :, right], across)
        result[down] = label[strip.argmax(0)].cpu().numpy()
    return result
