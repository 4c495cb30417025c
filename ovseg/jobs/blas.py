"""Keep NumPy's matrix products to the thread that asks for them, while several threads ask."""

from __future__ import annotations

import ctypes
import logging
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from threading import Lock
from typing import Any

import numpy as np

logger = logging.getLogger(__name__)

_lock = Lock()
_held: list[int] = []
"""For each holder that is under way, the number of threads to go back to: that of before the first one."""


@contextmanager
def single_threaded() -> Iterator[None]:
    """Let OpenBLAS, which the wheels of NumPy bring, use one thread.

    With a worker on each core, its own threads only get in their way: they spin while they wait for each other. The number holds for the
    whole process; the last to leave sets it back. Nothing happens where NumPy has another library.
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
