"""Share the cores: threads of ours, and none of NumPy's beside them.

OpenBLAS, which the wheels of NumPy bring, has threads of its own. They spin for some time after each product of matrices, and take a core
from whatever comes next, such as the network. So work is cut into parts here, and each product stays in the thread that asks for it.
"""

from __future__ import annotations

import ctypes
import logging
import os
import threading
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import Any, TypeVar

import numpy as np

Thing = TypeVar("Thing")
Made = TypeVar("Made")

logger = logging.getLogger(__name__)

MOST_THREADS = 8
"""Threads at most: more of them mostly wait for the interpreter."""

_lock = threading.Lock()
_here = threading.local()
_held: list[int] = []
"""For each holder that is under way, the number of threads to go back to: that of before the first one."""


def cores() -> int:
    """Count the CPU cores that this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def worker_threads(count: int) -> ThreadPoolExecutor:
    """Make threads that share the cores: what they ask of `in_threads` they do themselves."""
    return ThreadPoolExecutor(count, "ovseg", initializer=_become_worker)


def _become_worker() -> None:
    _here.worker = True


def threads_here() -> int:
    """Count the threads that `in_threads` would use if it were called by this thread."""
    return 1 if getattr(_here, "worker", False) else min(cores(), MOST_THREADS)


def in_threads(make: Callable[[Thing], Made], things: Sequence[Thing]) -> list[Made]:
    """Apply a function to things, on all cores unless the caller shares them with others already.

    Args:
        make: The work, which should be heavy enough to pay for a thread (0.1 ms) and leave the interpreter alone for most of its time.
        things: What to work on.

    Returns:
        What `make` returned, in the order of the things.
    """
    count = min(threads_here(), len(things))
    if count <= 1:
        return [make(thing) for thing in things]
    todo = deque(enumerate(things))
    made: dict[int, Made] = {}

    def work() -> None:
        while todo:
            try:
                place, thing = todo.popleft()
            except IndexError:  # another thread was quicker
                return
            try:
                made[place] = make(thing)
            except BaseException:
                todo.clear()
                raise

    with single_threaded(), worker_threads(count - 1) as pool:
        others = [pool.submit(work) for _ in range(count - 1)]
        _become_worker()
        try:
            work()
        finally:
            _here.worker = False
        for other in others:
            other.result()
    return [made[place] for place in range(len(things))]


@contextmanager
def single_threaded() -> Iterator[None]:
    """Let OpenBLAS use one thread. The number holds for the whole process; the last to leave sets it back.

    Nothing happens where NumPy has another library.
    """
    functions = _functions()
    if functions is None:
        yield
        return
    get, put = functions
    with _lock:
        _held.append(_held[0] if _held else get())
        put(1)
    try:
        yield
    finally:
        with _lock:
            before = _held.pop()
            if not _held:
                put(before)


@cache
def _functions() -> tuple[Any, Any] | None:
    """Find the functions that tell and set the number of threads."""
    folder = Path(np.__file__).parent
    for path in (*folder.parent.glob("numpy.libs/*openblas*"), *folder.glob(".dylibs/*openblas*")):
        try:
            library = ctypes.CDLL(str(path))
        except OSError:
            continue
        for prefix, suffix in (("scipy_", "64_"), ("scipy_", ""), ("", "64_"), ("", "")):
            get = getattr(library, f"{prefix}openblas_get_num_threads{suffix}", None)
            put = getattr(library, f"{prefix}openblas_set_num_threads{suffix}", None)
            if get is not None and put is not None:
                get.restype, put.argtypes, put.restype = ctypes.c_int, [ctypes.c_int], None
                return get, put
    logger.debug("NumPy has no OpenBLAS whose threads could be set")
    return None
