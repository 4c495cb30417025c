"""Segment all images of a folder; go on where a killed job stopped."""

from __future__ import annotations

import logging
import os
import sys
from collections.abc import Callable, Generator, Iterator, Sequence
from contextlib import closing
from functools import cached_property
from pathlib import Path
from typing import Any, Protocol, Unpack

from tqdm import tqdm

from ovseg.errors import InvalidArgumentError, InvalidImageError
from ovseg.jobs.images import Item, check_targets, find_images, plan
from ovseg.jobs.manifest import MANIFEST, Manifest, Record
from ovseg.jobs.overlap import in_order, share_cores
from ovseg.jobs.summary import KINDS, SUMMARIES, check_summary, total_coverage, write_summary
from ovseg.jobs.task import Loader, Task, clear_staging, fixed_labels, loader_of, stamp_of
from ovseg.jobs.writing import FORMATS
from ovseg.output.folders import make_folder
from ovseg.result import Segmentation
from ovseg.segmenter import DEFAULT_MODEL, Segmenter, SegmentOptions
from ovseg.vocabulary import Labels

logger = logging.getLogger(__name__)

ENGINES = ("threads", "ray")
_LOG_SECONDS = 10.0  # between two lines of progress in a file

Note = Callable[[Record], None]
Outcome = tuple[Record, Segmentation | None]


class Engine(Protocol):
    """What runs a task for many images."""

    def settings(self) -> dict[str, Any]:
        """Load the model, try the question, and return what decides the answers."""
        ...

    def outcomes(self, items: Sequence[Item], note: Note, *, keep: bool) -> Generator[Outcome, None, None]:
        """Do the task for each image: call `note` with its line as soon as it is done, then yield the line and, to `keep`, the result."""
        ...

    def close(self) -> None:
        """Give back what it holds."""
        ...


class Threads:
    """Runs a task in threads of this process, which share one model. The lines come in the order of the images.

    Args:
        task: What to do.
        model: The model, or what loads it.
        workers: Threads, or None for as many as there are cores, at most 8.
        threads: Threads that the network has in each; None to share the cores among them.
        batch: Images of one shape that go through the network together; see `Segmenter.batched`.
    """

    def __init__(
        self, task: Task, model: Segmenter | Loader, workers: int | None, threads: int | None, batch: int | None = None
    ) -> None:
        self._task, self._model, self._batch = task, model, batch
        self._workers, self._threads = share_cores(workers, threads)

    @cached_property
    def _segmenter(self) -> Segmenter:
        loaded = self._model if isinstance(self._model, Segmenter) else self._model(threads=self._threads)
        return loaded.batched(self._batch)

    def settings(self) -> dict[str, Any]:
        """Load the model, try the question, and return what decides the answers."""
        return self._task.settings(self._segmenter)

    def outcomes(self, items: Sequence[Item], note: Note, *, keep: bool) -> Generator[Outcome, None, None]:
        """Do the task for each image; reading, network and writing of different images overlap."""

        def do(item: Item) -> Outcome:
            record, result = self._task.do(self._segmenter, item)
            note(record)
            return record, result if keep else None

        yield from in_order(items, do, self._workers)

    def close(self) -> None:
        """Do nothing: threads end with the last image."""


class FolderJob:
    """A question of all images of a folder; see `segment_folder`, which makes one.

    Iterating, or `run`, does the work. Both can be repeated: with a folder for the results, only what is not done yet is done.

    Attributes:
        out: Folder of the results, or None.
        images: Names of all images, in the order in which they are done.
        kept: How many of them were done before.
        done: How many were segmented by the last iteration or run.
        failed: Name -> what is wrong with it.
        coverage: Label -> its part of the pixels of all images, in [0, 1], and "(undecided)"; after a run.
        summaries: Files that were written for all images together.
    """

    def __init__(
        self,
        task: Task,
        model: Segmenter | Loader,
        *,
        workers: int | None = None,
        threads: int | None = None,
        batch: int | None = None,
        formats: Sequence[str] = ("png",),
        summary: Sequence[str] = ("csv",),
        recursive: bool = False,
        restart: bool = False,
        strict: bool = False,
    ) -> None:
        for kind in formats:
            if kind not in FORMATS:
                raise InvalidArgumentError(f"formats must be of {', '.join(FORMATS)}; got {kind!r}.")
        for kind in summary:
            if kind not in KINDS:
                raise InvalidArgumentError(f"summary must be of {', '.join(KINDS)}; got {kind!r}.")
        self._task, self._model = task, model
        self._workers, self._threads = share_cores(workers, threads) if isinstance(model, Segmenter) else (workers, threads)
        self._batch = batch
        self._formats, self._summary = tuple(dict.fromkeys(formats)), tuple(dict.fromkeys(summary))
        self._restart, self._strict = restart, strict
        self.out = task.out
        if not task.folder.is_dir():
            raise InvalidImageError(f"There is no folder {str(task.folder)!r}.")
        self.images = find_images(task.folder, recursive=recursive, without=task.out)
        if not self.images:
            deeper = "" if recursive else "; --recursive (recursive=True) also looks into the folders in it"
            raise InvalidImageError(f"There is no image in {str(task.folder)!r}{deeper}.")
        self._items = plan(self.images, self._formats if task.out is not None else (), (MANIFEST, *SUMMARIES.values()))
        if task.out is not None:
            check_targets(task.folder, task.out, self._items)
            check_summary(self._summary, self._formats)
        self.kept = self.done = 0
        self.failed: dict[str, str] = {}
        self.coverage: dict[str, float] = {}
        self.summaries: list[Path] = []

    def __iter__(self) -> Iterator[tuple[Path, Segmentation]]:
        """Yield path and result of each image that is segmented now, in the order of `images`; bad ones are logged and left out."""
        threads = Threads(self._task, self._model, self._workers, self._threads, self._batch)
        for record, result in self._work(threads, logger.warning, False, keep=True):
            if result is not None:
                yield self._task.folder / record["image"], result

    def run(self, *, engine: str = "threads", progress: bool = True, tell: Callable[[str], object] = logger.warning) -> FolderJob:
        """Do what is not done yet, write the results, and then the summary.

        Args:
            engine: "threads" of this process, or "ray": a Ray Data pipeline on the machines of a Ray cluster, which all must see both
                folders under the same paths.
            progress: Whether to show a progress bar on stderr.
            tell: Called with a sentence for each image that cannot be segmented.

        Returns:
            Itself, with the counts.

        Raises:
            OutputError: If results cannot be written, or another process works on the folder of the results.
            InvalidArgumentError: If the question cannot be asked, or the folder holds the results of another one.
            InvalidImageError: With `strict`, if an image cannot be segmented.
        """
        if self.out is None:
            raise InvalidArgumentError("run() needs a folder for the results: segment_folder(folder, labels, out).")
        with closing(self._engine(engine)) as worker:
            for _ in self._work(worker, tell, progress, keep=False):
                pass
        return self

    def _engine(self, name: str) -> Engine:
        if name == "threads":
            return Threads(self._task, self._model, self._workers, self._threads, self._batch)
        if name != "ray":
            raise InvalidArgumentError(f"engine must be of {', '.join(ENGINES)}; got {name!r}.")
        from ovseg.jobs.ray_engine import RayEngine

        if self._batch is not None:
            raise InvalidArgumentError("engine='ray' has workers that see one image at a time: batch is for threads.")
        if isinstance(self._model, Segmenter):
            raise InvalidArgumentError("engine='ray' loads the model in its workers: give its name, or functools.partial(ovseg.load, ...).")
        return RayEngine(self._task, self._model, self._workers, self._threads)

    def _work(self, engine: Engine, tell: Callable[[str], object], progress: bool, *, keep: bool) -> Generator[Outcome, None, None]:
        self.kept = self.done = 0
        self.failed = {}
        settings = engine.settings()
        if self.out is None:
            yield from self._do(engine, self._items, lambda record: None, tell, progress, keep=keep)
            return
        make_folder(self.out)
        with closing(Manifest(self.out, settings, restart=self._restart)) as manifest:
            self._restart = False  # a second iteration goes on
            clear_staging(self.out)
            looking = tqdm(self._items, "looking", unit="image", delay=2, leave=False, disable=not progress)
            todo = [item for item in looking if not manifest.is_done(item, stamp_of(self._task.folder / item.name))]
            self.kept = len(self._items) - len(todo)
            yield from self._do(engine, todo, manifest.add, tell, progress, keep=keep)
            self.coverage = total_coverage(manifest, self.images, settings["names"])
            self.summaries = write_summary(self.out, manifest, self.images, settings["names"], self._summary, progress=progress)
            clear_staging(self.out)

    def _do(
        self, engine: Engine, items: Sequence[Item], note: Note, tell: Callable[[str], object], progress: bool, *, keep: bool
    ) -> Generator[Outcome, None, None]:
        with (
            closing(engine.outcomes(items, note, keep=keep)) as outcomes,
            tqdm(
                total=len(self._items), initial=self.kept, unit="image", disable=not progress, dynamic_ncols=True,
                mininterval=0.1 if sys.stderr.isatty() else _LOG_SECONDS,
            ) as bar,
        ):
            for record, result in outcomes:
                bar.update()
                if "error" in record:
                    self.failed[record["image"]] = record["error"]
                    if self._strict:
                        raise InvalidImageError(record["error"])
                    tell(record["error"])
                    bar.set_postfix(failed=len(self.failed))
                else:
                    self.done += 1
                yield record, result


def segment_folder(
    folder: str | os.PathLike[str],
    labels: Labels,
    out: str | os.PathLike[str] | None = None,
    *,
    model: str | Path | Segmenter | Loader = DEFAULT_MODEL,
    device: str | None = None,
    workers: int | None = None,
    threads: int | None = None,
    batch: int | None = None,
    formats: Sequence[str] = ("png",),
    summary: Sequence[str] = ("csv",),
    recursive: bool = False,
    restart: bool = False,
    strict: bool = False,
    **options: Unpack[SegmentOptions],
) -> FolderJob:
    """Segment all images of a folder, several at a time, and go on where an earlier job was stopped.

    Nothing happens before the job is iterated over, which gives path and result of each image, or `run`:

        for path, result in ovseg.segment_folder("photos", ["sky", "sea"]): ...
        ovseg.segment_folder("photos", ["sky", "sea"], "maps").run()

    With a folder for the results, each image's results are written as soon as it is done, and so is a line of `manifest.jsonl` there. A job
    that is started again, after whatever end, leaves out what is done: the image is as it was, and the results are there. A folder with the
    results of another question (model, labels, options) is refused.

    Args:
        folder: Folder of the images, told by the suffixes of their names; hidden ones are left out.
        labels: As for `segment`.
        out: Folder for the results; None writes nothing.
        model: A name of `list_models()`, a loaded one, or a function that loads one and takes `threads`, such as
            `functools.partial(ovseg.load, "mini", backend="torch")`.
        device: "cpu", "cuda" or None, with a name.
        workers: Images at a time; None for as many as there are cores, at most 8. At most twice as many are in memory.
        threads: Threads of the network for each; None to share the cores among the workers. A loaded model keeps its own.
        batch: Images of one shape that go through the network together at most, as the workers come by them; None for 8 on a GPU and 1 on
            a CPU, where batches are slower. Not for Ray, whose workers see one image at a time.
        formats: What to write: "png", "json", "npz" and "geojson" as `Segmentation.save`, "overlay" for a picture.
        summary: What to write at the end: "csv" and "parquet", a table of the labels' coverage (`coverage.csv`, ...), and "coco", one
            file of all masks (`coco.json`).
        recursive: Whether to look into the folders in the folder; the results get the same folders.
        restart: Whether to do everything anew, and with another question if need be.
        strict: Whether the first image that cannot be segmented is an error. Otherwise it is left out, and tried again next time.
        options: As for `segment`.

    Returns:
        The job.

    Raises:
        InvalidImageError: If there is no such folder, or no image in it.
        InvalidArgumentError: If an option is outside its range, or a result would overwrite an image.
    """
    task = Task(
        Path(os.path.abspath(os.path.expanduser(folder))),
        None if out is None else Path(os.path.abspath(os.path.expanduser(out))),
        fixed_labels(labels),
        options,
    )
    return FolderJob(
        task, loader_of(model, device), workers=workers, threads=threads, batch=batch, formats=formats, summary=summary,
        recursive=recursive, restart=restart, strict=strict,
    )  # fmt: skip
