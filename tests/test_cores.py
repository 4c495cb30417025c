from __future__ import annotations

import threading
import time

import numpy as np
import pytest

from ovseg import cores
from ovseg.similarity import Grid, label_map


def test_in_threads_keeps_the_order_and_uses_the_cores() -> None:
    seen = set()

    def square(number: int) -> int:
        seen.add(threading.get_ident())
        time.sleep(0.002)
        return number * number

    assert cores.in_threads(square, range(40)) == [number * number for number in range(40)]
    assert len(seen) == min(cores.cores(), cores.MOST_THREADS)


def test_a_worker_does_what_it_asks_for_itself() -> None:
    def outer(_: int) -> tuple[int, set[int]]:
        inner = cores.in_threads(lambda _: threading.get_ident(), range(6))
        return threading.get_ident(), set(inner)

    with cores.worker_threads(2) as pool:
        for own, inner in pool.map(outer, range(4)):
            assert inner == {own}
    assert cores.threads_here() == min(cores.cores(), cores.MOST_THREADS)


def test_one_thing_stays_in_the_thread_that_asks() -> None:
    assert cores.in_threads(lambda _: threading.get_ident(), [1]) == [threading.get_ident()]
    assert cores.in_threads(lambda thing: thing, []) == []


def test_an_error_comes_out_and_blas_gets_its_threads_back() -> None:
    functions = cores._functions()
    before = functions and functions[0]()
    try:
        cores.in_threads(lambda number: 1 // number, [1, 0, 2])
    except ZeroDivisionError:
        pass
    else:
        raise AssertionError("no error")
    assert (functions and functions[0]()) == before
    assert cores.threads_here() == min(cores.cores(), cores.MOST_THREADS)


def test_after_an_error_nothing_new_is_begun() -> None:
    done = []

    def work(number: int) -> None:
        if number == 0:
            raise ValueError
        time.sleep(0.02)
        done.append(number)

    with pytest.raises(ValueError):
        cores.in_threads(work, range(50))
    assert len(done) < 10


def test_a_label_map_is_the_same_with_one_thread_and_many() -> None:
    random = np.random.default_rng(3)
    text = random.standard_normal((50, 16)).astype(np.float32)
    grid = Grid(random.standard_normal((16, 31, 17)).astype(np.float32), (120, 65), (30.5, 16.2))
    owner = np.arange(50)
    many = label_map(grid, text, owner, 10.0)
    with cores.worker_threads(1) as pool:
        one = pool.submit(label_map, grid, text, owner, 10.0).result()
    assert (many == one).mean() > 0.9999  # another cut may change the last bit of a product
