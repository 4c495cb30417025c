"""Run a model with onnxruntime: no torch needed."""

from __future__ import annotations

import contextlib
import io
import logging
import threading
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ovseg.errors import BackendError, InvalidArgumentError, MissingDependencyError, WeightsError
from ovseg.positions import PositionTable, of_image
from ovseg.runtime.cuda import has_nvidia_gpu
from ovseg.runtime.onnx_label_map import DeviceFeatures, LabelMapper
from ovseg.similarity import Axis, Indices, Labels

logger = logging.getLogger(__name__)

_DISTRIBUTIONS = ("onnxruntime", "onnxruntime-gpu")
_PRINTING = threading.Lock()

Floats = NDArray[np.float32]


def check_installation() -> None:
    """Refuse a machine that has both builds of onnxruntime: they overwrite each other's files."""
    from importlib.metadata import PackageNotFoundError, version
    from importlib.util import find_spec

    found = []
    for name in _DISTRIBUTIONS:
        try:
            version(name)
        except PackageNotFoundError:
            continue
        found.append(name)
    if len(found) > 1:
        raise MissingDependencyError(
            "Both onnxruntime and onnxruntime-gpu are installed; they overwrite each other's files and the GPU may be "
            "lost. Keep one: pip uninstall -y onnxruntime onnxruntime-gpu && pip install onnxruntime-gpu (or onnxruntime, which is "
            "smaller, where there is no NVIDIA GPU)."
        )
    if not found and find_spec("onnxruntime") is None:  # other builds have names of their own
        raise MissingDependencyError("onnxruntime is missing: pip install onnxruntime (or onnxruntime-gpu).")


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Log what onnxruntime prints, such as the GPU libraries that it misses: stdout belongs to the caller.

    One thread at a time, as stdout is that of the process: two would give it back in the wrong order, and it would stay redirected.
    """
    said = io.StringIO()
    with _PRINTING, contextlib.redirect_stdout(said):
        yield
    if said.getvalue():
        logger.info("%s", said.getvalue().strip())


class OnnxRuntime:
    """The ONNX graphs of a model in onnxruntime. Each is loaded when it is first needed.

    Args:
        image: The image tower: `pixel_values` -> `features`.
        text: The text tower: `input_ids`, `attention_mask` -> `text_embeddings`.
        device: "cpu"; "cuda", an error where it does not work; or None for the GPU if it works, else the CPU.
        threads: Threads of an operator; None for all cores.
        more: Further graphs by their roles: "global" (`pixel_values` -> `image_embeddings`), "head" (`logits` -> `refined`) and "segmenter"
            (`pixel_values`, `text_embeddings` -> `segmentation`).
        positions: Makes the position embeddings that the graphs for images take beside the pixels, by the names of these inputs; None
            where they take none.
    """

    def __init__(
        self,
        image: Path,
        text: Path,
        device: str | None = None,
        threads: int | None = None,
        *,
        more: Mapping[str, Path] | None = None,
        positions: Mapping[str, PositionTable] | None = None,
    ) -> None:
        check_installation()
        if device not in (None, "cpu", "cuda"):
            raise InvalidArgumentError(f"device must be 'cpu', 'cuda' or None with the onnx backend; got {device!r}.")
        if threads is not None and (isinstance(threads, bool) or not isinstance(threads, int) or threads < 1):
            raise InvalidArgumentError(f"threads must be a positive number or None; got {threads!r}.")
        self._paths = {"image": image, "text": text, **(more or {})}
        self._positions = positions or {}
        self._device, self._threads = device, threads
        self._sessions: dict[str, Any] = {}
        self._labels: LabelMapper | None = None
        self._lock = threading.Lock()
        self._providers = self._choose(device)

    @property
    def name(self) -> str:
        """Which device: "onnx:cpu" or "onnx:cuda"."""
        return "onnx:cuda" if self._providers[0] == "CUDAExecutionProvider" else "onnx:cpu"

    @property
    def encode_global(self) -> Callable[[Floats], Floats] | None:
        """Maps (B, 3, S, S) float32 pixel values to (B, D) float32 embeddings of whole images; None where no graph does."""
        if "global" not in self._paths:
            return None
        return lambda pixel_values: self._run("global", {"pixel_values": pixel_values})

    @property
    def refine_logits(self) -> Callable[[Floats], Floats] | None:
        """Maps (1, K, h, w) float32 logits to as many; None where the logits are final."""
        if "head" not in self._paths:
            return None
        return lambda logits: self._run("head", {"logits": logits})

    @property
    def label_map(self) -> Callable[..., NDArray[np.int32]] | None:
        """Maps (B, 3, H, W) pixel values and (K, D) text embeddings to (B, H, W) int32 indices of the best text; None without a segmenter.

        A segmenter that was exported for fixed words takes the pixel values alone.
        """
        if "segmenter" not in self._paths:
            return None
        return self._label_map

    def _label_map(self, pixel_values: Floats, text_embeddings: Floats | None = None) -> NDArray[np.int32]:
        feeds = {**self._pixels(pixel_values), **({} if text_embeddings is None else {"text_embeddings": text_embeddings})}
        labels: NDArray[np.int32] = self._run("segmenter", feeds)
        return labels

    def _pixels(self, pixel_values: Floats) -> dict[str, NDArray[Any]]:
        """Return what a graph for images of any size takes."""
        return {"pixel_values": pixel_values, **of_image(self._positions, *pixel_values.shape[2:])}

    @staticmethod
    def _choose(device: str | None) -> list[str]:
        import onnxruntime

        available = onnxruntime.get_available_providers()
        if device != "cpu" and "CUDAExecutionProvider" in available and has_nvidia_gpu():
            return ["CUDAExecutionProvider", "CPUExecutionProvider"]
        if device == "cuda":
            if "CUDAExecutionProvider" in available:
                raise BackendError("device='cuda' was asked for, but no NVIDIA GPU answers. Use device='cpu', or see to its driver.")
            raise BackendError(
                "device='cuda' was asked for, but this build of onnxruntime has no CUDA. Use device='cpu', or put the other build in its "
                "place: pip uninstall -y onnxruntime && pip install onnxruntime-gpu"
            )
        return ["CPUExecutionProvider"]

    def _session(self, part: str) -> Any:
        with self._lock:  # threads that share a segmenter load a tower once
            if part not in self._sessions:
                self._sessions[part] = self._load(part)
            return self._sessions[part]

    def _load(self, part: str) -> Any:
        import onnxruntime

        options = self._options()
        wants_gpu = self.name == "onnx:cuda"
        try:
            with _quiet() if wants_gpu else contextlib.nullcontext():
                if wants_gpu and hasattr(onnxruntime, "preload_dlls"):
                    onnxruntime.preload_dlls()
                session = onnxruntime.InferenceSession(str(self._paths[part]), options, providers=self._provider_options())
        except Exception as error:  # onnxruntime's exceptions share no base class
            raise WeightsError(f"onnxruntime cannot load {self._paths[part]}: {error}") from error
        used = session.get_providers()
        if used[0] != self._providers[0]:
            trouble = "onnxruntime found a GPU but fell back to the CPU: CUDA or cuDNN 9 cannot be loaded."
            if self._device == "cuda":
                raise BackendError(
                    f"{trouble} Install them (pip install 'onnxruntime-gpu[cuda,cudnn]') or use device='cpu'."
                )
            logger.warning("%s The CPU is used; device='cpu' avoids this message.", trouble)
            self._providers = used
        logger.info("the %s graph runs on %s", part, used[0])
        return session

    def _options(self) -> Any:
        import onnxruntime

        options = onnxruntime.SessionOptions()
        options.log_severity_level = 3
        options.add_session_config_entry("session.force_spinning_stop", "1")  # its idle threads would take cores from what comes next
        if self._threads is not None:
            options.intra_op_num_threads = self._threads
        return options

    def _provider_options(self) -> list[Any]:
        """Say how the providers run: float32 shall be float32, where CUDA's default are mantissas of 10 bits in products."""
        return [(name, {"use_tf32": "0"}) if name == "CUDAExecutionProvider" else name for name in self._providers]

    def _run(self, part: str, feeds: dict[str, NDArray[Any]]) -> Any:
        session = self._session(part)
        try:
            output = session.run(None, feeds)[0]
        except Exception as error:  # as above
            raise BackendError(f"onnxruntime failed in the {part} graph: {error}") from error
        return output

    def encode_image(self, pixel_values: Floats) -> Floats:
        """Map (B, 3, H, W) float32 pixel values to (B, D, h, w) float32 features."""
        features: Floats = self._run("image", self._pixels(pixel_values))
        return features

    def encode_on_device(self, pixel_values: Floats) -> list[DeviceFeatures]:
        """Map (B, 3, H, W) float32 pixel values to the features of each image, which stay in the memory of the device."""
        session = self._session("image")
        feeds = {name: np.ascontiguousarray(value) for name, value in self._pixels(pixel_values).items()}  # read where they lie, to the end
        try:
            binding = session.io_binding()
            for name, value in feeds.items():
                binding.bind_cpu_input(name, value)
            binding.bind_output(session.get_outputs()[0].name, self._place)
            session.run_with_iobinding(binding)
        except Exception as error:  # as above
            raise BackendError(f"onnxruntime failed in the image graph: {error}") from error
        batch = binding.get_outputs()[0]
        return [DeviceFeatures(batch, index) for index in range(len(pixel_values))]

    def is_finite(self, features: DeviceFeatures) -> bool:
        """Whether all numbers are finite."""
        return self._mapper().is_finite(features)

    def label_pixels(
        self, features: DeviceFeatures | Floats, axes: tuple[Axis, Axis], text: Floats, owner: Indices, scale: float
    ) -> Labels:
        """Find the best label of every pixel on the device. Features that are an array are copied there."""
        mapper = self._mapper()
        try:
            held = mapper.put(features) if isinstance(features, np.ndarray) else features
            return mapper.label_pixels(held, axes, text, owner, scale)
        except Exception as error:  # as above
            raise BackendError(f"onnxruntime failed in the label map: {error}") from error

    def _mapper(self) -> LabelMapper:
        with self._lock:
            if self._labels is None:
                self._labels = LabelMapper(self._options(), self._provider_options(), self._place)
            return self._labels

    @property
    def _place(self) -> str:
        return "cuda" if self.name == "onnx:cuda" else "cpu"

    def encode_text(self, input_ids: NDArray[np.int64], attention_mask: NDArray[np.int64]) -> Floats:
        """Map (B, T) int64 token ids and mask to (B, D) float32 embeddings."""
        embeddings: Floats = self._run("text", {"input_ids": input_ids, "attention_mask": attention_mask})
        return embeddings
