"""The little of CUDA that running an engine needs: memory, one stream, graphs. Through cuda-bindings.

torch could do the same, but brings gigabytes to a machine that only runs an exported model; cuda-bindings is a few megabytes and links
CUDA's runtime statically. Not yet run on a GPU: the tests drive it with a stand-in that keeps "device" memory on the host.
"""

from __future__ import annotations

import ctypes
import os
import sys
import threading
import weakref
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import DTypeLike, NDArray

from ovseg.errors import BackendError, InvalidArgumentError, MissingDependencyError


def has_nvidia_gpu() -> bool:
    """Ask the driver, without loading CUDA's libraries, whether there is a GPU."""
    if sys.platform == "darwin":
        return False
    try:
        driver = ctypes.CDLL("nvcuda.dll" if os.name == "nt" else "libcuda.so.1")
        count = ctypes.c_int(0)
        return driver.cuInit(0) == 0 and driver.cuDeviceGetCount(ctypes.byref(count)) == 0 and count.value > 0
    except (OSError, AttributeError):
        return False


@dataclass(frozen=True)
class Gpu:
    """What an engine depends on.

    Attributes:
        name: "NVIDIA H200".
        compute_capability: "9.0".
        driver: Newest CUDA that the driver can run: "13.2".
    """

    name: str
    compute_capability: str
    driver: str


class Buffer:
    """Memory of the device or page-locked memory of the host; it is freed with the object.

    Args:
        pointer: Where it is.
        size: Its bytes.
        free: Frees a pointer.
    """

    def __init__(self, pointer: int, size: int, free: Callable[[int], Any]) -> None:
        self.pointer, self.size = pointer, size
        weakref.finalize(self, free, pointer).atexit = False  # the driver frees what is left when a process ends

    def array(self, shape: tuple[int, ...], dtype: DTypeLike) -> NDArray[Any]:
        """View page-locked memory as an array; it must not outlive the buffer."""
        raw = memoryview((ctypes.c_ubyte * self.size).from_address(self.pointer))
        return np.ndarray(shape, dtype, raw)


class Cuda:
    """A GPU, with one stream for everything that is done on it.

    Threads may share it as long as each holds `lock` while it uses the stream: what another put there would become part of a recording.

    Args:
        index: Which of the GPUs.

    Raises:
        MissingDependencyError: cuda-bindings is not installed.
        BackendError: No GPU answers.
    """

    def __init__(self, index: int = 0) -> None:
        try:
            from cuda.bindings import runtime
        except ImportError as error:
            raise MissingDependencyError(f"The tensorrt backend needs cuda-bindings 13 ({error}): pip install 'ovseg[tensorrt]'") from error
        self._api: Any = runtime
        self.index = index
        self.lock = threading.Lock()
        code, count = runtime.cudaGetDeviceCount()
        if code != runtime.cudaError_t.cudaSuccess or not count:
            why = f" ({code.name})" if code != runtime.cudaError_t.cudaSuccess else ""
            raise BackendError(
                f"No NVIDIA GPU answers on this machine{why}, and TensorRT runs on nothing else. Use the exported ONNX folder instead; "
                "it runs with onnxruntime on any machine."
            )
        if not 0 <= index < count:
            raise InvalidArgumentError(f"There is no GPU {index}: this machine has {count}, counted from 0.")
        self.enter()
        # A stream of our own: TensorRT synchronises the whole device around work on the default one, and graphs cannot be captured there.
        (self.stream,) = self._call("cudaStreamCreateWithFlags", runtime.cudaStreamNonBlocking)
        weakref.finalize(self, runtime.cudaStreamDestroy, self.stream).atexit = False

    def _call(self, name: str, *values: Any) -> tuple[Any, ...]:
        code, *results = getattr(self._api, name)(*values)
        if code != self._api.cudaError_t.cudaSuccess:
            raise BackendError(f"{name} failed on GPU {self.index}: {code.name}.")
        return tuple(results)

    def enter(self) -> None:
        """Make this GPU the one of the current thread."""
        self._call("cudaSetDevice", self.index)

    def describe(self) -> Gpu:
        """Say what GPU it is."""
        (properties,) = self._call("cudaGetDeviceProperties", self.index)
        (driver,) = self._call("cudaDriverGetVersion")
        name = properties.name.decode() if isinstance(properties.name, bytes) else str(properties.name)
        return Gpu(name.rstrip("\0"), f"{properties.major}.{properties.minor}", f"{driver // 1000}.{driver % 1000 // 10}")

    def device_buffer(self, size: int) -> Buffer:
        """Take memory of the device; aligned to 256 bytes at least, as CUDA promises."""
        (pointer,) = self._call("cudaMalloc", max(size, 1))
        return Buffer(int(pointer), size, self._api.cudaFree)

    def host_buffer(self, size: int) -> Buffer:
        """Take page-locked memory of the host, from and to which copies run at the full speed of the bus."""
        (pointer,) = self._call("cudaHostAlloc", max(size, 1), self._api.cudaHostAllocDefault)
        return Buffer(int(pointer), size, self._api.cudaFreeHost)

    def upload(self, host: Buffer, device: Buffer) -> None:
        """Copy to the device, in the stream."""
        self._call("cudaMemcpyAsync", device.pointer, host.pointer, host.size, self._api.cudaMemcpyKind.cudaMemcpyHostToDevice, self.stream)

    def download(self, device: Buffer, host: Buffer) -> None:
        """Copy to the host, in the stream."""
        self._call("cudaMemcpyAsync", host.pointer, device.pointer, host.size, self._api.cudaMemcpyKind.cudaMemcpyDeviceToHost, self.stream)

    def wait(self) -> None:
        """Wait until everything in the stream is done."""
        self._call("cudaStreamSynchronize", self.stream)

    def capture(self, work: Callable[[], None]) -> Callable[[], None]:
        """Record what `work` puts into the stream, without running it.

        Returns:
            What launches the recording; it holds it alive.

        Raises:
            BackendError: If it cannot be recorded.
        """
        # Thread-local: other threads may go on allocating while this one records.
        self._call("cudaStreamBeginCapture", self.stream, self._api.cudaStreamCaptureMode.cudaStreamCaptureModeThreadLocal)
        try:
            work()
        except BaseException:
            self._api.cudaStreamEndCapture(self.stream)  # in any case; what it says no longer matters
            raise
        (graph,) = self._call("cudaStreamEndCapture", self.stream)
        try:
            (ready,) = self._call("cudaGraphInstantiate", graph, 0)
        finally:
            self._api.cudaGraphDestroy(graph)

        def launch() -> None:
            self._call("cudaGraphLaunch", ready, self.stream)

        weakref.finalize(launch, self._api.cudaGraphExecDestroy, ready).atexit = False
        return launch
