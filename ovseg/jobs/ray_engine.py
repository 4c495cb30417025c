"""Run a job as a Ray Data pipeline: on the machines of a cluster, with workers that may die.

Each worker is an actor that loads the model once. When one is killed, Ray starts another and gives it the image that was not finished. The
process that started the job alone writes the manifest; all machines must see the folders of images and results under the same paths.
"""

from __future__ import annotations

import json
import logging
import math
from collections.abc import Callable, Generator, Sequence
from typing import Any

from ovseg.errors import BackendError, InvalidArgumentError, MissingDependencyError
from ovseg.jobs.images import Item
from ovseg.jobs.manifest import Record
from ovseg.jobs.task import Loader, Task
from ovseg.result import Segmentation

logger = logging.getLogger(__name__)

_BLOCKS = 10_000
"""Parts that the images are cut into at most. With fewer images each is a part: no finished one is done again when a worker dies."""


def _ray() -> Any:
    try:
        import ray
        import ray.data
    except ImportError as error:
        raise MissingDependencyError("--engine ray needs Ray Data: pip install 'ovseg[ray]'.") from error
    return ray


class Worker:
    """An actor: the model, and what to do with it.

    Args:
        task: What to do.
        load: Loads the model.
        threads: Threads of the network.
    """

    def __init__(self, task: Task, load: Loader, threads: int) -> None:
        self._task, self._segmenter = task, load(threads=threads)

    def __call__(self, row: dict[str, Any]) -> dict[str, Any]:
        """Do one image: its name and planned results in, its line for the manifest out."""
        record, _ = self._task.do(self._segmenter, Item(row["name"], json.loads(row["outputs"])))
        return {"record": json.dumps(record)}


def _settings(task: Task, load: Loader, threads: int) -> dict[str, Any]:
    return task.settings(load(threads=threads))


class RayEngine:
    """Runs a task in actors of Ray: of the cluster that RAY_ADDRESS names, or of this machine.

    Args:
        task: What to do.
        load: Loads the model; must be picklable.
        workers: Actors at most; None for one on each GPU of the cluster, or else as many as its cores allow.
        threads: Threads of the network in each, and cores that it reserves; None for 1.
    """

    def __init__(self, task: Task, load: Loader, workers: int | None, threads: int | None) -> None:
        self._ray = _ray()
        self._task, self._load, self._threads = task, load, threads or 1
        self._started = not self._ray.is_initialized()
        if self._started:
            self._ray.init(logging_level="warning", log_to_driver=False)
        have = self._ray.cluster_resources()
        self._gpus = 1 if have.get("GPU", 0) >= 1 else 0
        room = int(min(have.get("CPU", 0) // self._threads, have["GPU"] if self._gpus else math.inf))
        if not room:
            self.close()
            raise InvalidArgumentError(f"threads={self._threads}, but all of Ray's machines together have {have.get('CPU', 0):g} cores.")
        self._workers = min(workers or room, room)  # more would wait for ever
        logger.info("Ray has %s; %d workers", have, self._workers)

    def settings(self) -> dict[str, Any]:
        """Load the model where workers do, try the question, and return what decides the answers."""
        remote = self._ray.remote(num_cpus=self._threads, num_gpus=self._gpus)(_settings)
        try:
            settings: dict[str, Any] = self._ray.get(remote.remote(self._task, self._load, self._threads))
        except self._ray.exceptions.RayTaskError as error:
            raise error.cause if isinstance(error.cause, Exception) else error from None
        return settings

    def outcomes(
        self, items: Sequence[Item], note: Callable[[Record], None], *, keep: bool
    ) -> Generator[tuple[Record, Segmentation | None], None, None]:
        """See `ovseg.jobs.folder.Engine`; the lines come in the order in which they are ready. Results are in files only."""
        if not items:
            return
        data = self._ray.data
        left = {item.name for item in items}
        table = [{"name": item.name, "outputs": json.dumps(item.outputs)} for item in items]
        dataset = data.from_items(table, override_num_blocks=min(len(items), _BLOCKS)).map(
            Worker,
            fn_constructor_args=(self._task, self._load, self._threads),
            compute=data.ActorPoolStrategy(size=min(self._workers, len(items))),
            num_cpus=self._threads,
            num_gpus=self._gpus,
        )
        dataset.context.enable_progress_bars = False
        for row in dataset.iter_rows():
            record: Record = json.loads(row["record"])
            left.discard(record["image"])
            note(record)
            yield record, None
        if left:
            raise BackendError(f"Ray ended without {len(left)} of {len(items)} images. Start the job again: it goes on with these.")

    def close(self) -> None:
        """Leave Ray as it was found."""
        if self._started:
            self._ray.shutdown()
