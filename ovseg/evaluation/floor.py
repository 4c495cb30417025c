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
from dataclasses import dataclass
from typing import Any

import numpy as np

from ovseg.errors import MissingDependencyError
from ovseg.evaluation.benchmark import seconds_of
from ovseg.loading import MODULES
from ovseg.preprocess import Preprocess
from ovseg.registry import ModelCard
from ovseg.tiling import windows

_SIDE = 1536
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
        bytes: What these operations read and write, weights included, in float32. Everything else could be fused into them.
    """

    flops: float
    bytes: float

    def floor_seconds(self, machine: Machine) -> float:
        """Return the least time [s]."""
        return max(self.flops / machine.flops_per_second, self.bytes / machine.bytes_per_second)


@dataclass(frozen=True)
class Machine:
    """What this machine can do with the threads it is given.

    Attributes:
        flops_per_second: Operations of a large float32 matrix product or convolution, the best of the libraries at hand.
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


def measure_work(card: ModelCard, image_size: tuple[int, int], size: int | str | None = None, window: str | None = None) -> Work:
    """Count the operations and bytes of a model's image network, without running it.

    Args:
        card: The model's card.
        image_size: (height, width) of the image [px].
        size: See `Segmenter.segment`.
        window: See `Segmenter.segment`.

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
        values = torch.empty(1, 3, *shape)
    with torch.no_grad(), FlopCounterMode(display=False) as counter, Bytes() as moved:  # type: ignore[no-untyped-call]
        network(values)
    return Work(float(times * counter.get_total_flops()), float(times * moved.total))


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
