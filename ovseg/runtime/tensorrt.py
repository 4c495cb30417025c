"""Run a built engine with TensorRT 11: page-locked input and output, a CUDA graph for each shape.

Not yet run on a GPU. What is tested: everything around the engine, with stand-ins for TensorRT and CUDA that know only the names of the
published 11.4 bindings, hold "device" memory on the host, and compute with onnxruntime.
"""

from __future__ import annotations

import logging
import threading
from collections import OrderedDict
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ovseg.errors import BackendError, InvalidArgumentError, WeightsError
from ovseg.positions import PositionTable, of_image
from ovseg.runtime.base import Floats, Runtime
from ovseg.runtime.cuda import Buffer, Cuda
from ovseg.runtime.tensorrt_engine import EngineRecord, Shape, check_record, load_tensorrt, read_record, record_path

logger = logging.getLogger(__name__)

SHAPES = 4
"""Input shapes that are kept ready, each with its buffers and its graph."""
IMAGE, SEGMENTER = "image", "segmenter"
PIXELS, TEXT = "pixel_values", "text_embeddings"

# bfloat16 has no numpy type, and float64, int8 and the smaller ones no place at an engine's border.
_NUMPY = {"FLOAT": np.float32, "HALF": np.float16, "INT32": np.int32, "INT64": np.int64, "UINT8": np.uint8, "BOOL": np.bool_}


def make_logger(trt: Any) -> Any:
    """Make what TensorRT reports to, a `trt.ILogger`: our log. Its `said` holds the errors."""

    class Log(trt.ILogger):  # type: ignore[misc]  # TensorRT has no types
        def __init__(self) -> None:
            trt.ILogger.__init__(self)
            self.said: list[str] = []

        def log(self, severity: Any, msg: str) -> None:
            if severity in (trt.ILogger.INTERNAL_ERROR, trt.ILogger.ERROR):
                self.said.append(msg)
                logger.error("TensorRT: %s", msg)
            elif severity == trt.ILogger.WARNING:
                logger.warning("TensorRT: %s", msg)
            else:
                logger.debug("TensorRT: %s", msg)

    return Log()


def has_engine(folder: Path, part: str = IMAGE) -> bool:
    """Tell whether a folder holds an engine."""
    return record_path(folder, part).is_file()


class _Slot:
    """All that one combination of input shapes needs.

    An execution context of its own, because a graph belongs to the state of the context that it was captured from, and another shape
    changes that. Their scratch memory is shared: they run one after the other, in one stream.
    """

    def __init__(self, context: Any) -> None:
        self.context = context
        self.inputs: dict[str, tuple[Buffer, Buffer, NDArray[Any]]] = {}
        self.outputs: dict[str, tuple[Buffer, Buffer, NDArray[Any]]] = {}
        self.runs = 0
        self.launch: Callable[[], None] | None = None
        self.capturable = True


class Engine:
    """A built engine on a GPU. Threads may share it: it answers one at a time.

    Args:
        folder: The folder of the engine.
        part: "image" or "segmenter".
        cuda: The GPU.

    Raises:
        MissingDependencyError: TensorRT 11 is not there.
        BackendError: The engine is for another GPU or version.
        WeightsError: The files are incomplete or damaged.
    """

    def __init__(self, folder: Path, part: str, cuda: Cuda) -> None:
        self._trt = load_tensorrt()
        self.record: EngineRecord = read_record(folder, part)
        check_record(self.record, folder, self._trt.__version__, cuda.describe())
        self._cuda = cuda
        self._slots: OrderedDict[tuple[tuple[str, Shape], ...], _Slot] = OrderedDict()
        self._log = make_logger(self._trt)  # TensorRT does not keep it alive
        self._runtime = self._trt.Runtime(self._log)
        if self.record.version_compatible:  # such an engine brings the runtime of its own version along, which is host code
            self._runtime.engine_host_code_allowed = True
        self._engine = self._runtime.deserialize_cuda_engine((folder / self.record.engine).read_bytes())
        if self._engine is None:
            raise WeightsError(f"TensorRT cannot read {folder / self.record.engine}: {self._why()} Build it again.")
        self._dtypes: dict[str, Any] = {}
        modes = {}
        for i in range(self._engine.num_io_tensors):
            name = self._engine.get_tensor_name(i)
            kind = self._engine.get_tensor_dtype(name).name
            if kind not in _NUMPY:
                raise BackendError(f"{name!r} of the {part} engine is {kind}, which cannot be exchanged; export the graph with float32.")
            self._dtypes[name], modes[name] = np.dtype(_NUMPY[kind]), self._engine.get_tensor_mode(name)
        self.inputs = tuple(name for name, mode in modes.items() if mode == self._trt.TensorIOMode.INPUT)
        self.outputs = tuple(name for name, mode in modes.items() if mode == self._trt.TensorIOMode.OUTPUT)
        self._scratch_size = int(self._engine.device_memory_size_v2)
        self._scratch = cuda.device_buffer(self._scratch_size)

    def _why(self) -> str:
        return f"{self._log.said[-1].rstrip('.')}." if self._log.said else "it gave no reason."

    def run(self, feeds: Mapping[str, NDArray[Any]]) -> dict[str, NDArray[Any]]:
        """Compute.

        Args:
            feeds: Input -> array, of any type that converts to the engine's.

        Returns:
            Output -> array of its own.

        Raises:
            InvalidArgumentError: If a shape lies outside what the engine was built for.
            BackendError: If TensorRT or CUDA fails.
        """
        if feeds.keys() != set(self.inputs):
            raise BackendError(f"The {self.record.part} engine takes {', '.join(self.inputs)}; got {', '.join(feeds)}.")
        self._check_shapes({name: array.shape for name, array in feeds.items()})
        with self._cuda.lock:
            self._cuda.enter()
            slot = self._slot(feeds)
            for name, (_, _, view) in slot.inputs.items():
                np.copyto(view, feeds[name], casting="unsafe")
            self._launch(slot)
            self._cuda.wait()
            return {name: view.copy() for name, (_, _, view) in slot.outputs.items()}

    def _check_shapes(self, shapes: Mapping[str, Shape]) -> None:
        for name, shape in shapes.items():
            least, _, largest = self.record.profiles[name]
            fits = len(shape) == len(least) and all(a <= n <= b for a, n, b in zip(least, shape, largest, strict=True))
            if not fits:
                raise InvalidArgumentError(
                    f"The {self.record.part} engine was built for {name} from {_by(least)} to {_by(largest)}; got {_by(shape)}. Choose "
                    "another size, or build the engine for a wider range (--batch, --height, --width, --labels)."
                )

    def _slot(self, feeds: Mapping[str, NDArray[Any]]) -> _Slot:
        key = tuple((name, feeds[name].shape) for name in self.inputs)
        slot = self._slots.pop(key, None)
        if slot is None:
            while len(self._slots) >= SHAPES:
                self._slots.popitem(last=False)  # nothing of it is running: every run is waited for
            slot = self._prepare(feeds)
        self._slots[key] = slot
        return slot

    def _prepare(self, feeds: Mapping[str, NDArray[Any]]) -> _Slot:
        context = self._engine.create_execution_context(self._trt.ExecutionContextAllocationStrategy.USER_MANAGED)
        if context is None:
            raise BackendError(f"TensorRT made no execution context: {self._why()}")
        context.set_device_memory(self._scratch.pointer, self._scratch_size)
        slot = _Slot(context)
        for name in self.inputs:
            shape = feeds[name].shape
            if not context.set_input_shape(name, shape):
                raise BackendError(f"TensorRT refused {name} of {_by(shape)}: {self._why()}")
            slot.inputs[name] = self._bind(context, name, shape)
        if missing := context.infer_shapes():
            raise BackendError(f"TensorRT cannot tell the shapes that follow from the input; it lacks {', '.join(missing)}.")
        for name in self.outputs:
            shape = tuple(int(n) for n in context.get_tensor_shape(name))
            if min(shape, default=0) < 0:
                raise BackendError(f"The shape of {name} depends on the pixels, so it cannot be run. Export the graph without NonZero.")
            slot.outputs[name] = self._bind(context, name, shape)
        return slot

    def _bind(self, context: Any, name: str, shape: Shape) -> tuple[Buffer, Buffer, NDArray[Any]]:
        dtype = self._dtypes[name]
        size = int(np.prod(shape, dtype=np.int64)) * dtype.itemsize
        host, device = self._cuda.host_buffer(size), self._cuda.device_buffer(size)
        if not context.set_tensor_address(name, device.pointer):
            raise BackendError(f"TensorRT refused the memory of {name}: {self._why()}")
        return host, device, host.array(shape, dtype)

    def _enqueue(self, slot: _Slot) -> None:
        for host, device, _ in slot.inputs.values():
            self._cuda.upload(host, device)
        if not slot.context.execute_async_v3(self._cuda.stream):
            raise BackendError(f"TensorRT failed in the {self.record.part} engine: {self._why()}")
        for host, device, _ in slot.outputs.values():
            self._cuda.download(device, host)

    def _launch(self, slot: _Slot) -> None:
        """Run a shape: the first time as it is, from the second time as a graph.

        TensorRT sets itself up in the first run, which a graph must not contain; and a shape that comes once is not worth a graph.
        """
        slot.runs += 1
        if slot.runs > 1 and slot.launch is None and slot.capturable:
            try:
                slot.launch = self._cuda.capture(lambda: self._enqueue(slot))
            except BackendError as error:  # loops and other control flow cannot be captured
                slot.capturable = False
                logger.info("The %s engine runs without a CUDA graph: %s", self.record.part, error)
        if slot.launch is not None:
            slot.launch()
        else:
            self._enqueue(slot)


def _by(shape: Shape) -> str:
    return " x ".join(map(str, shape))


class TensorRTRuntime:
    """A model whose image tower is a TensorRT engine; all else runs elsewhere: words are embedded once and kept.

    Args:
        folder: A folder that `ovseg export tensorrt` wrote.
        others: Runs the text tower, and what else the model has but engines: the embedding of whole images, the head.
        positions: Makes the position embeddings that the engines take beside the pixels, by the names of these inputs; None where they take
            none.

    Raises:
        MissingDependencyError: TensorRT 11 or cuda-bindings is not installed.
        BackendError: There is no GPU, or the engine is for another.
        WeightsError: The folder is incomplete or damaged.
    """

    def __init__(self, folder: Path, others: Runtime, positions: Mapping[str, PositionTable] | None = None) -> None:
        load_tensorrt()  # what is missing is said before a GPU is asked for
        self._folder, self._others, self._positions = folder, others, positions or {}
        self._cuda = Cuda()
        self._image = self._open(IMAGE)
        self._segmenter: Engine | None = None
        self._lock = threading.Lock()

    def _open(self, part: str) -> Engine:
        engine = Engine(self._folder, part, self._cuda)
        needed = {PIXELS, *self._positions}
        if set(engine.inputs) - {TEXT} != needed or (part == IMAGE and TEXT in engine.inputs) or len(engine.outputs) != 1:
            raise WeightsError(
                f"The {part} engine maps {', '.join(engine.inputs)} to {', '.join(engine.outputs)}, and the card speaks of "
                f"{', '.join(sorted(needed))} and one output. Export the model and build the engine anew."
            )
        return engine

    @property
    def name(self) -> str:
        """Which runtime and device: "tensorrt:cuda"."""
        return "tensorrt:cuda"

    @property
    def encode_global(self) -> Callable[[Floats], Floats] | None:
        """Maps (B, 3, S, S) float32 pixel values to (B, D) float32 embeddings of whole images; or None."""
        return self._others.encode_global

    @property
    def refine_logits(self) -> Callable[[Floats], Floats] | None:
        """Maps (1, K, h, w) float32 logits to as many; None where the logits are final."""
        return self._others.refine_logits

    @property
    def label_map(self) -> Callable[..., NDArray[np.int32]] | None:
        """Maps (B, 3, H, W) pixel values and (K, D) text embeddings to (B, H, W) int32 indices of the best text; None without a segmenter.

        All of it happens on the GPU, and only the indices come back. A segmenter for fixed words takes the pixel values alone.
        """
        return self._label_map if has_engine(self._folder, SEGMENTER) else None

    def encode_image(self, pixel_values: Floats) -> Floats:
        """Map (B, 3, H, W) float32 pixel values to (B, D, h, w) float32 features.

        A batch larger than the engine's is run in parts.
        """
        return self._batches(self._image, pixel_values, {}).astype(np.float32, copy=False)

    def encode_text(self, input_ids: NDArray[np.int64], attention_mask: NDArray[np.int64]) -> Floats:
        """Map (B, T) int64 token ids and mask to (B, D) float32 embeddings."""
        return self._others.encode_text(input_ids, attention_mask)

    def _label_map(self, pixel_values: Floats, text_embeddings: Floats | None = None) -> NDArray[np.int32]:
        with self._lock:
            if self._segmenter is None:
                self._segmenter = self._open(SEGMENTER)
        given = {} if text_embeddings is None else {TEXT: text_embeddings}
        return self._batches(self._segmenter, pixel_values, given).astype(np.int32, copy=False)

    def _batches(self, engine: Engine, pixel_values: Floats, others: Mapping[str, NDArray[Any]]) -> NDArray[Any]:
        feeds = {**others, **of_image(self._positions, *pixel_values.shape[2:])}
        most = engine.record.profiles[PIXELS][2][0]
        parts = [
            engine.run({PIXELS: pixel_values[start : start + most], **feeds})[engine.outputs[0]]
            for start in range(0, max(len(pixel_values), 1), most)
        ]
        return parts[0] if len(parts) == 1 else np.concatenate(parts)
