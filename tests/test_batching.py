from __future__ import annotations

import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image
from random_towers import RandomTowers

import ovseg
from ovseg.errors import InvalidArgumentError
from ovseg.jobs.folder import segment_folder
from ovseg.runtime.batching import DynamicBatching

Floats = NDArray[np.float32]


class Network:
    """Doubles its values, slowly; says which batches it saw, and fails where a batch holds something negative or too much."""

    def __init__(self, room: int = 100) -> None:
        self.batches: list[tuple[int, ...]] = []
        self.open = threading.Event()
        self._room, self._inside = room, threading.Lock()

    def __call__(self, values: Floats) -> Floats:
        assert self._inside.acquire(blocking=False), "two threads at a time"
        try:
            self.open.wait(10)
            self.batches.append(values.shape)
            if len(values) > self._room or values.min() < 0:
                raise ValueError(f"cannot do {len(values)}, from {values.min()}")
            return 2 * values
        finally:
            self._inside.release()


def ask(together: DynamicBatching, network: Network, many: list[Floats]) -> list[Any]:
    """Let as many threads ask, the first before all others, which come in their order while the network is busy."""
    with ThreadPoolExecutor(len(many)) as pool:
        futures = []
        for number, values in enumerate(many):
            futures.append(pool.submit(together, values))
            until = time.monotonic() + 10
            while (len(together._waiting), together._busy) != (number, True) and time.monotonic() < until:
                time.sleep(0.001)
        network.open.set()
        return [future.exception(10) or future.result() for future in futures]


def values_of(*shape: int) -> Floats:
    return np.random.default_rng(sum(shape)).random(shape, dtype=np.float32)


def test_calls_that_wait_share_a_batch_by_shape_and_get_their_own_answers() -> None:
    network = Network()
    many = [values_of(1, 3, 4, 4), *(values_of(1, 3, 4, 4 + number % 2) for number in range(9)), values_of(2, 3, 4, 4)]
    answers = ask(DynamicBatching(network, 4), network, many)
    for values, answer in zip(many, answers, strict=True):
        np.testing.assert_array_equal(answer, 2 * values)
    assert network.batches == [(1, 3, 4, 4), (4, 3, 4, 4), (4, 3, 4, 5), (3, 3, 4, 4)]


def test_more_than_a_batch_in_one_call_runs_alone() -> None:
    network = Network()
    answers = ask(DynamicBatching(network, 2), network, [values_of(1, 2), values_of(5, 2), values_of(1, 2)])
    assert [len(answer) for answer in answers] == [1, 5, 1]
    assert network.batches == [(1, 2), (5, 2), (1, 2)]


def test_an_error_stays_with_the_call_that_made_it() -> None:
    network = Network()
    many = [values_of(1, 2), values_of(1, 2), -values_of(1, 2), values_of(1, 2)]
    answers = ask(DynamicBatching(network, 8), network, many)
    failed = answers.pop(2)
    for answer in answers:
        np.testing.assert_array_equal(answer, 2 * many[0])
    assert isinstance(failed, ValueError) and "cannot do 1" in str(failed)


def test_a_batch_that_is_too_much_for_the_device_is_done_one_by_one() -> None:
    network = Network(room=1)
    answers = ask(DynamicBatching(network, 8), network, [values_of(1, 2) for _ in range(4)])
    assert all(np.array_equal(answer, 2 * values_of(1, 2)) for answer in answers)
    assert network.batches == [(1, 2), (3, 2), (1, 2), (1, 2), (1, 2)]


@pytest.mark.parametrize("others", [0, 1, 4])
def test_an_interrupt_stops_the_thread_that_it_hits_and_no_other(others: int) -> None:
    network = Network()
    hits = [True]

    def run(values: Floats) -> Floats:
        answer = network(values)
        if len(network.batches) > 1 and hits and hits.pop():
            raise KeyboardInterrupt
        return answer

    many = [values_of(1, 2) for _ in range(2 + others)]
    answers = ask(DynamicBatching(run, 8), network, many)
    np.testing.assert_array_equal(answers[0], 2 * many[0])
    stopped = [answer for answer in answers if isinstance(answer, KeyboardInterrupt)]
    assert len(stopped) == 1
    for answer in answers[1:]:
        assert answer is stopped[0] or np.array_equal(answer, 2 * many[1])


def test_many_threads_again_and_again() -> None:
    network = Network()
    network.open.set()
    together = DynamicBatching(network, 5)
    many = [np.full((1, 1, 1 + number % 3), number, np.float32) for number in range(600)]
    with ThreadPoolExecutor(16) as pool:
        for values, answer in zip(many, pool.map(together, many), strict=True):
            np.testing.assert_array_equal(answer, 2 * values)
    assert max(shape[0] for shape in network.batches) <= 5


class SlowTowers(RandomTowers):
    """Features that only depend on the pixels, made so slowly that the images of other threads gather."""

    def __init__(self) -> None:
        super().__init__()
        self.batches: list[int] = []
        self._mix = self.random.standard_normal((384, 3)).astype(np.float32)

    def encode_image(self, pixel_values: Floats) -> Floats:
        self.batches.append(len(pixel_values))
        time.sleep(0.5 if len(self.batches) <= 2 else 0.05)  # the trial picture and the first: all other threads come, however busy it is
        mixture = np.einsum("dc,bchw->bdhw", self._mix, pixel_values[:, :, ::4, ::4])
        return mixture / np.linalg.norm(mixture, axis=1, keepdims=True)


def test_a_folder_job_batches_images_of_one_shape(segmenter: ovseg.Segmenter, tmp_path: Path, scene: NDArray[np.uint8]) -> None:
    (tmp_path / "photos").mkdir()
    for number in range(24):
        picture = np.roll(scene, number, axis=0)[: 48 if number % 3 else 64]
        Image.fromarray(picture).save(tmp_path / "photos" / f"{number:02}.png")
    maps, sizes = {}, {}
    for batch in (1, 4):
        towers = SlowTowers()
        slow = ovseg.Segmenter(segmenter.card, towers, segmenter._model._text._tokenize)
        job = segment_folder(tmp_path / "photos", ["sky", "grass"], model=slow, workers=6, size=32, batch=batch)
        maps[batch] = {path.name: result.segmentation for path, result in job}
        sizes[batch] = towers.batches
    assert set(sizes[1]) == {1} and max(sizes[4]) == 4 and sum(sizes[4]) == 25  # and the trial picture
    assert list(maps[1]) == list(maps[4]) == sorted(maps[1])
    for name, expected in maps[1].items():
        np.testing.assert_array_equal(maps[4][name], expected)


def test_what_cannot_be_batched_is_refused(segmenter: ovseg.Segmenter, tmp_path: Path) -> None:
    for wrong in (0, -1, 2.0, True, "4"):
        with pytest.raises(InvalidArgumentError, match="positive whole number"):
            segmenter.batched(wrong)  # type: ignore[arg-type]
    Image.new("RGB", (40, 40)).save(tmp_path / "a.png")
    with pytest.raises(InvalidArgumentError, match="one image at a time"):
        segment_folder(tmp_path, ["sky"], tmp_path / "out", batch=4).run(engine="ray", progress=False)
    with pytest.raises(InvalidArgumentError, match="positive whole number"):
        segment_folder(tmp_path, ["sky"], tmp_path / "out", model=segmenter, batch=0).run(progress=False)
    assert not (tmp_path / "out").exists()


def test_a_cpu_batches_nothing_unless_asked(segmenter: ovseg.Segmenter) -> None:
    assert segmenter.batched()._model is segmenter._model
    assert segmenter.batched(4).name == segmenter.name
