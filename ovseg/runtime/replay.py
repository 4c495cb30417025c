"""CUDA graphs: what a network does on a GPU for one shape of input, recorded once and started by a single call.

For one image a network is hundreds of kernels, each of which takes less time to run than Python takes to start it. A recording starts all
of them at once, for inputs of the same shape at the same place in memory; so inputs are copied there, and what comes out is copied away.

Not yet measured on a GPU: `ovseg benchmark -m MODEL --backend torch --device cuda --compile` does it.
"""

from __future__ import annotations

import logging
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass
from threading import Lock
from typing import Any

MOST_SHAPES = 4
"""Shapes whose recordings are kept, those used last: each holds the memory of all that is computed on the way."""
MOST_SEEN = 1_000
"""Shapes that are remembered for having been seen once."""

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Recording:
    """What was recorded for one shape.

    Attributes:
        values: Where the input is read from.
        replay: Starts what was recorded.
        answer: Where the output is written to.
    """

    values: Any
    replay: Callable[[], object]
    answer: Any


def record(forward: Callable[[Any], Any], values: Any) -> Recording:
    """Record a network as a CUDA graph (as in torch's notes on CUDA semantics: once on a side stream beforehand, then for the record)."""
    import torch

    place = values.clone()
    side = torch.cuda.Stream(values.device)  # type: ignore[no-untyped-call, unused-ignore]
    here = torch.cuda.current_stream(values.device)
    side.wait_stream(here)
    with torch.cuda.stream(side):
        forward(place)
    here.wait_stream(side)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph, capture_error_mode="thread_local"):  # other threads may go on to allocate memory
        answer = forward(place)
    return Recording(place, graph.replay, answer)


class Replay:
    """A network whose kernels are recorded for the shapes that it meets again. Threads may share it; they take turns.

    A shape that is met for the first time is computed as usual: it may be the only one of its kind, and torch.compile makes its kernels
    then. Where a network cannot be recorded, that is logged and it runs as usual from then on.

    Args:
        forward: The network: a tensor to a tensor.
        record: Makes a recording.
    """

    def __init__(self, forward: Callable[[Any], Any], record: Callable[[Callable[[Any], Any], Any], Recording] = record) -> None:
        self._forward, self._record = forward, record
        self._recordings: OrderedDict[Any, Recording] = OrderedDict()
        self._seen: OrderedDict[Any, None] = OrderedDict()
        self._works = True
        self._lock = Lock()

    def __call__(self, values: Any) -> Any:
        """Compute the output for an input."""
        with self._lock:
            recording = self._recording_of(values) if self._works else None
            if recording is None:
                return self._forward(values)
            recording.values.copy_(values)
            recording.replay()
            return recording.answer.clone()

    def _recording_of(self, values: Any) -> Recording | None:
        key = tuple(values.shape), values.dtype
        if key in self._recordings:
            self._recordings.move_to_end(key)
            return self._recordings[key]
        if key not in self._seen:
            self._seen[key] = None
            if len(self._seen) > MOST_SEEN:
                self._seen.popitem(last=False)
            return None
        while len(self._recordings) >= MOST_SHAPES:  # before the next one, which needs its memory
            self._recordings.popitem(last=False)
        try:
            self._recordings[key] = self._record(self._forward, values)
        except RuntimeError as error:
            self._works = False
            self._recordings.clear()
            logger.warning("The network cannot be recorded as a CUDA graph and runs kernel by kernel: %s", error)
            return None
        return self._recordings[key]
