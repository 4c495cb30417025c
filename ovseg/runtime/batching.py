"""Dynamic batching: what several threads ask of a network at the same time goes through it together."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float32]
Run = Callable[[Floats], Any]


class DynamicBatching:
    """Calls a function that takes batches, for several threads as one.

    While one batch runs, calls gather; the next batch is the oldest of them and all that have its shape. Nothing waits for company: a call
    that comes alone runs alone, so that one thread gets the answers it would get without.

    Args:
        run: Maps a batch of (B, ...) values to (B, ...) values, or to a sequence of B things. It is called by one thread at a time.
        limit: Values in a batch at most; a call with more runs alone.
    """

    def __init__(self, run: Run, limit: int) -> None:
        self._run, self._limit = run, limit
        self._changed = threading.Condition()
        self._waiting: list[_Call] = []
        self._busy = False

    def __call__(self, values: Floats) -> Any:
        """Do what `run` does; an error that it raises for these values comes out here, and in no other call."""
        call = _Call(values)
        with self._changed:
            self._waiting.append(call)
            self._changed.wait_for(lambda: call.done or not self._busy)
            if call.done:
                return call.result()
            self._busy = True
        try:
            while not call.done:
                self._answer(self._take())
        finally:
            with self._changed:
                self._busy = False
                self._waiting = [other for other in self._waiting if other is not call]
                self._changed.notify_all()
        return call.result()

    def _take(self) -> list[_Call]:
        """Take the oldest call and those that can join it out of the queue."""
        batch: list[_Call] = []
        room = self._limit
        with self._changed:
            for call in self._waiting:
                if not batch or (call.values.shape[1:] == batch[0].values.shape[1:] and len(call.values) <= room):
                    batch.append(call)
                    room -= len(call.values)
            self._waiting = [call for call in self._waiting if call not in batch]
        return batch

    def _answer(self, batch: list[_Call]) -> None:
        try:
            self._run_together(batch)
        finally:  # an interrupt is this thread's alone: the others' calls go back, and another thread goes on with them
            with self._changed:
                self._waiting[:0] = [call for call in batch if not call.done]

    def _run_together(self, batch: list[_Call]) -> None:
        if len(batch) > 1:
            try:
                values = self._run(np.concatenate([call.values for call in batch]))
            except Exception:  # too much for the device, or one of them is at fault: each alone
                pass
            else:
                start = 0
                for call in batch:
                    part = values[start : start + len(call.values)]
                    call.answer = part.copy() if isinstance(part, np.ndarray) else part  # a view would keep the whole batch
                    start += len(call.values)
                return
        for call in batch:
            try:
                call.answer = self._run(call.values)
            except Exception as error:  # belongs to the thread that asked
                call.error = error


class _Call:
    """Values that a thread wants an answer to."""

    def __init__(self, values: Floats) -> None:
        self.values = values
        self.answer: Any = None
        self.error: Exception | None = None

    @property
    def done(self) -> bool:
        return self.answer is not None or self.error is not None

    def result(self) -> Any:
        if self.error is not None:
            raise self.error
        if self.answer is None:
            raise RuntimeError("A call returned before it was answered.")
        return self.answer
