"""The least time a network could take on this machine.

That is its operations at the measured rate of matrix products, or its bytes at the measured bandwidth, whichever takes longer (the
roofline model: Williams et al., 2009).
"""

from __future__ import annotations

import importlib
import math
import os
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

from ovseg.errors import MissingDependencyError
from ovseg.evaluation.benchmark import Spread, seconds_of
from ovseg.network import MODULES
from ovseg.preprocess import Preprocess
from ovseg.registry import ModelCard
from ovseg.tiling import windows

_SIDE = 1536
_DEVICE_SIDE = 8192
"""Side of the matrices that a GPU multiplies: a product takes it a millisecond, far longer than starting it."""
_WARM = 3
"""Runs of a network that do not count: torch.compile makes its kernels in the first, CUDA graphs are recorded in the second."""
_GEMM = f"""
import time, numpy
a, took = numpy.ones(({_SIDE}, {_SIDE}), "f"), []
for _ in range(4):
    began = time.perf_counter()
    a @ a
    took.append(time.perf_counter() - began)
print(min(took))
"""


@dataclass(frozen=True)
class Work:
    """What a network has to do for one image.

    Attributes:
        flops: Operations of matrix products, convolutions and attention; a multiplication and an addition are two.
        bytes: What these operations read and write, weights included. Everything else could be fused into them.
    """

    flops: float
    bytes: float

    def floor_seconds(self, machine: Machine) -> float:
        """Return the least time [s]."""
        return max(self.flops / machine.flops_per_second, self.bytes / machine.bytes_per_second)


@dataclass(frozen=True)
class Machine:
    """What a CPU can do with the threads it is given, or a GPU.

    Attributes:
        flops_per_second: Operations of a large matrix product or convolution, the best of the libraries at hand.
        bytes_per_second: Bytes read and written while a large array is copied.
        library: Which library was best.
    """

    flops_per_second: float
    bytes_per_second: float
    library: str


def measure_machine(threads: int) -> Machine:
    """Measure the rate of matrix products and the memory bandwidth of the CPU.

    Args:
        threads: Threads of a matrix product.
    """
    rates = {}
    flops = 2 * _SIDE**3
    variables = dict.fromkeys(("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"), str(threads))
    # NumPy's threads can only be chosen before it starts.
    done = subprocess.run([sys.executable, "-c", _GEMM], capture_output=True, text=True, check=False, env={**os.environ, **variables})
    if done.returncode == 0:
        rates["numpy"] = flops / float(done.stdout)
    rates.update(_torch_rates(flops))
    source = np.ones(1 << 26, np.float32)  # 256 MB: more than caches hold
    target = np.empty_like(source)
    copy = min(seconds_of(lambda: np.copyto(target, source)) for _ in range(4))
    best = max(rates, key=lambda name: rates[name])
    return Machine(rates[best], 2 * source.nbytes / copy, best)


def _torch_rates(flops: int) -> dict[str, float]:
    try:
        import torch
        import torch.nn.functional as F
    except ImportError:
        return {}
    a = torch.ones(_SIDE, _SIDE)
    image, kernel = torch.ones(1, _SIDE, 32, _SIDE // 32), torch.ones(_SIDE, _SIDE, 1, 1)
    image = image.contiguous(memory_format=torch.channels_last)
    with torch.inference_mode():
        product = min(seconds_of(lambda: a @ a) for _ in range(4))
        convolution = min(seconds_of(lambda: F.conv2d(image, kernel)) for _ in range(4))
    return {"torch": flops / product, "torch, convolution": flops / convolution}


def measure_device(device: str, dtype: str, side: int = _DEVICE_SIDE) -> Machine:
    """Measure the rate of matrix products and the memory bandwidth of a GPU, with torch.

    Args:
        device: A torch device.
        dtype: "float32", "float16" or "bfloat16".
        side: Side of the matrices; the array that is copied has four times as many numbers.
    """
    import torch

    kind = getattr(torch, dtype)
    a, target = torch.ones(side, side, device=device, dtype=kind), torch.empty(4, side, side, device=device, dtype=kind)
    source = torch.ones_like(target)
    wait = _waiter(device)

    def seconds(action: Callable[[], object]) -> float:
        def whole() -> None:
            action()
            wait()

        return min(seconds_of(whole) for _ in range(6))

    with torch.inference_mode():
        product, copy = seconds(lambda: a @ a), seconds(lambda: target.copy_(source))
    return Machine(2 * side**3 / product, 2 * source.nbytes / copy, f"torch, {dtype}")


def time_network(card: ModelCard, device: str, dtype: str, compile: bool, shape: tuple[int, int, int], repeats: int) -> Spread:
    """Time a model's image network on a device, from pixels in the memory of the host to features in that of the device.

    Args:
        card: The model's card. The weights are random.
        device: A torch device.
        dtype: "float32", "float16" or "bfloat16".
        compile: See `ovseg.load`.
        shape: How many inputs at once, and their (height, width) [px].
        repeats: How often it is measured, after runs that do not count.
    """
    from ovseg.runtime.torch import TorchRuntime

    network = importlib.import_module(f"ovseg.models.{MODULES[card.family]}")
    runtime = TorchRuntime(lambda: network.build(card.options, None), device=device, dtype=dtype, compile=compile)
    count, height, width = shape
    values, wait = np.random.default_rng(0).standard_normal((count, 3, height, width)).astype(np.float32), _waiter(device)

    def whole() -> None:
        runtime.encode_on_device(values)
        wait()

    for _ in range(_WARM):
        whole()
    return Spread.of([seconds_of(whole) for _ in range(repeats)])


def _waiter(device: str) -> Callable[[], object]:
    """Return what waits until a device has done all that it was told."""
    import torch

    return torch.cuda.synchronize if torch.device(device).type == "cuda" else lambda: None


def measure_work(
    card: ModelCard, image_size: tuple[int, int], size: int | str | None = None, window: str | None = None, *,
    batch: int | None = None, dtype: str = "float32",
) -> Work:  # fmt: skip
    """Count the operations and bytes of a model's image network, without running it.

    Args:
        card: The model's card.
        image_size: (height, width) of the image [px].
        size: See `Segmenter.segment`.
        window: See `Segmenter.segment`.
        batch: How many inputs of the network at once to count; None for all windows of one image, one after the other.
        dtype: Precision of the network.

    Raises:
        MissingDependencyError: torch is not installed.
    """
    try:
        import torch
        from torch.utils._python_dispatch import TorchDispatchMode
        from torch.utils._pytree import tree_leaves
        from torch.utils.flop_counter import FlopCounterMode, flop_registry
    except ImportError as error:
        raise MissingDependencyError("Counting operations needs torch: pip install 'ovseg[torch]'") from error

    class Bytes(TorchDispatchMode):  # type: ignore[no-untyped-call]
        total = 0

        def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            out = func(*args, **(kwargs or {}))
            if func._overloadpacket in flop_registry:
                self.total += sum(x.numel() * x.element_size() for x in tree_leaves((args, kwargs, out)) if isinstance(x, torch.Tensor))
            return out

    shape, times = network_input(card, image_size, size, window)
    with torch.device("meta"):
        network = importlib.import_module(f"ovseg.models.{MODULES[card.family]}").build(card.options, None).eval()
        values = torch.empty(batch or 1, 3, *shape)
    with torch.no_grad(), FlopCounterMode(display=False) as counter, Bytes() as moved:  # type: ignore[no-untyped-call]
        network(values)
    times = times if batch is None else 1
    return Work(float(times * counter.get_total_flops()), float(times * moved.total) * getattr(torch, dtype).itemsize / 4)


def network_input(
    card: ModelCard, image_size: tuple[int, int], size: int | str | None = None, window: str | None = None
) -> tuple[tuple[int, int], int]:
    """Return the (height, width) that the network sees [px], and how often it looks."""
    preprocess = Preprocess(**card.preprocess)
    fitted = preprocess.input_size(image_size, size)
    height, width = (math.ceil(side / preprocess.multiple) * preprocess.multiple for side in fitted)
    if not card.window or window == "whole":
        return (height, width), 1
    side, step = card.window["size"], card.window["stride"]
    return (min(side, height), min(side, width)), sum(1 for _ in windows((height, width), side, step))
