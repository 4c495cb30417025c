"""Do the same to many things at once, in their order and in bounded memory."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future
from contextlib import nullcontext
from typing import TypeVar

from ovseg.cores import MOST_THREADS, cores, single_threaded, worker_threads
from ovseg.errors import InvalidArgumentError

Thing = TypeVar("Thing")
Made = TypeVar("Made")


def share_cores(workers: int | None, threads: int | None) -> tuple[int, int]:
    """Decide how many workers there are, and how many threads the network has in each.

    A network hardly gains from a second thread what a second image gains, so workers come first.

    Args:
        workers: What the user asks for, or None.
        threads: What the user asks for, or None.

    Returns:
        Workers and threads.

    Raises:
        InvalidArgumentError: If one is not a positive whole number.
    """
    for name, value in (("workers", workers), ("threads", threads)):
        if value is not None and (isinstance(value, bool) or not isinstance(value, int) or value < 1):
            raise InvalidArgumentError(f"{name} must be a positive whole number or None; got {value!r}.")
    if workers is None:
        workers = min(MOST_THREADS, max(1, cores() // (threads or 1)))
    return workers, threads or max(1, cores() // workers)


def in_order(things: Iterable[Thing], make: Callable[[Thing], Made], workers: int) -> Iterator[Made]:
    """Apply a function to things in threads, and give what it makes in the order of the things.

    At most twice as many things as workers are under way or waiting to be taken, so that memory does not grow with their number, and one
    slow thing does not make the others wait at once. `things` is read by the thread that iterates.

    Args:
        things: What to work on; read no further ahead than that.
        make: The work. An exception in it comes out where its thing would have come.
        workers: Threads.

    Yields:
        What `make` returned.
    """
    with single_threaded() if workers > 1 else nullcontext(), worker_threads(workers) as pool:
        waiting: deque[Future[Made]] = deque()
        try:
            for thing in things:
                waiting.append(pool.submit(make, thing))
                if len(waiting) == 2 * workers:
                    yield waiting.popleft().result()
            while waiting:
                yield waiting.popleft().result()
        finally:
            for future in waiting:
                future.cancel()
