from __future__ import annotations

import logging
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest

torch = pytest.importorskip("torch")

from ovseg.runtime.replay import MOST_SHAPES, Recording, Replay, record  # noqa: E402


class Recorder:
    """Records as a GPU does, in that a replay reads and writes the same memory again and again and calls nothing else."""

    def __init__(self) -> None:
        self.recorded: list[tuple[int, ...]] = []

    def __call__(self, forward: Callable[[Any], Any], values: Any) -> Recording:
        self.recorded.append(tuple(values.shape))
        place = values.clone()
        answer = forward(place)
        return Recording(place, lambda: answer.copy_(place * 2), answer)


def test_a_shape_is_recorded_when_it_comes_again_and_answers_are_not_overwritten() -> None:
    calls: list[tuple[int, ...]] = []

    def double(values: Any) -> Any:
        calls.append(tuple(values.shape))
        return values * 2

    recorder = Recorder()
    network = Replay(double, recorder)
    inputs = [torch.full((1, 3, 4, 4), float(i)) for i in range(5)]
    answers = [network(values) for values in inputs]
    assert recorder.recorded == [(1, 3, 4, 4)] and len(calls) == 2  # as usual, then for the record
    for values, answer in zip(inputs, answers, strict=True):
        torch.testing.assert_close(answer, values * 2)


def test_few_shapes_are_kept() -> None:
    recorder = Recorder()
    network = Replay(lambda values: values * 2, recorder)
    sizes = range(1, MOST_SHAPES + 2)
    for _ in range(2):
        for size in sizes:
            network(torch.ones(size))
    assert [shape[0] for shape in recorder.recorded] == list(sizes)
    network(torch.ones(2))  # still there
    network(torch.ones(1))  # gave way to the last
    assert [shape[0] for shape in recorder.recorded] == [*sizes, 1]
    network(torch.ones(2))
    assert len(recorder.recorded) == len(sizes) + 1
    assert torch.equal(network(torch.ones(2, dtype=torch.float64)), torch.full((2,), 2.0, dtype=torch.float64))


def test_what_cannot_be_recorded_runs_as_usual(caplog: pytest.LogCaptureFixture) -> None:
    def refuse(forward: Callable[[Any], Any], values: Any) -> Recording:
        raise RuntimeError("operation not permitted when stream is capturing")

    network = Replay(lambda values: values * 2, refuse)
    with caplog.at_level(logging.WARNING, "ovseg"):
        for _ in range(4):
            assert torch.equal(network(torch.ones(3)), torch.full((3,), 2.0))
    assert [record.levelname for record in caplog.records] == ["WARNING"] and "not permitted" in caplog.text


def test_threads_get_their_own_answers() -> None:
    network = Replay(lambda values: values * 2, Recorder())
    inputs = [torch.full((64, 64), float(i)) for i in range(200)]
    with ThreadPoolExecutor(8) as pool:
        for values, answer in zip(inputs, pool.map(network, inputs), strict=True):
            assert torch.equal(answer, values * 2)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="records on a GPU")
def test_a_recording_on_a_gpu_computes_what_the_network_does() -> None:
    module = torch.nn.Conv2d(3, 8, 3, device="cuda")
    network = Replay(module, record)
    with torch.inference_mode():
        for i in range(5):
            values = torch.randn(1, 3, 16, 16 + i % 2, device="cuda")
            torch.testing.assert_close(network(values), module(values))
