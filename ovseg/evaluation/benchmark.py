"""How long a model takes and how much memory: by the number of labels, side by side with others, on this machine."""

from __future__ import annotations

import math
import statistics
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from ovseg.errors import InvalidArgumentError
from ovseg.segmenter import Segmenter

_KINDS = ("small", "large", "old", "new", "red", "green", "blue", "white", "dark", "wet", "broken", "wooden", "round", "distant")
MOST_RUNS = 5
"""How often a quick action runs in a round, so that its median is as certain as that of a slow one."""


@dataclass(frozen=True)
class Spread:
    """Several measurements of one thing.

    Attributes:
        minimum: The least.
        median: The middle one.
        maximum: The greatest.
        count: How many there were.
    """

    minimum: float
    median: float
    maximum: float
    count: int

    @classmethod
    def of(cls, values: Sequence[float]) -> Spread:
        """Sum up at least one measurement."""
        return cls(min(values), statistics.median(values), max(values), len(values))

    def format_seconds(self) -> str:
        """Return for example "36.1 ms (35.0 to 40.2)"; a single measurement without its spread."""
        factor, unit, digits = (1e3, "ms", 1) if self.median < 1 else (1.0, "s", 2)
        low, middle, high = (f"{factor * value:.{digits}f}" for value in (self.minimum, self.median, self.maximum))
        return f"{middle} {unit}" + (f" ({low} to {high})" if self.count > 1 else "")

    def format_ratio(self) -> str:
        """Return for example "36.1x (35.0 to 40.2)"."""
        return f"{self.median:.1f}x" + (f" ({self.minimum:.1f} to {self.maximum:.1f})" if self.count > 1 else "")


@dataclass(frozen=True)
class BenchmarkResult:
    """What was measured of one model. All times are seconds.

    Attributes:
        model: Name of the model.
        device: Runtime and device.
        image_size: (height, width) of the image [px].
        megabytes: Size of the weights, as the card says.
        load_seconds: From the name to a segmenter that is ready.
        encode_seconds: An image's features; None for a model that has none.
        words_seconds: Number of labels -> reading that many that were never read before, with the model's own templates if none are named.
        segment_seconds: Number of labels -> a label map, words known already, image included.
        ask_seconds: Number of labels -> a label map from features; empty for a model that has none.
        peak_megabytes: Most memory that the process has had (resident set), everything else in it included; None where the system does
            not tell.
        dtype: Precision of the network.
        random_weights: Whether the network knows nothing: it takes the time of the real one.
        skipped: Numbers of labels that were left out because they would have taken too long.
    """

    model: str
    device: str
    image_size: tuple[int, int]
    megabytes: float
    load_seconds: float
    encode_seconds: Spread | None
    words_seconds: dict[int, float]
    segment_seconds: dict[int, Spread]
    ask_seconds: dict[int, Spread]
    peak_megabytes: float | None
    dtype: str = "float32"
    random_weights: bool = False
    skipped: tuple[int, ...] = ()

    @property
    def title(self) -> str:
        """Model, device and precision in a line."""
        return f"{self.model}, {self.device}, {self.dtype}{', random weights' if self.random_weights else ''}"


@dataclass(frozen=True)
class Entry:
    """A model to be measured.

    Attributes:
        segmenter: The model.
        name: What it is called in the result.
        load_seconds: How long it took to load [s].
        dtype: Precision of the network.
        random_weights: Whether its weights are random.
    """

    segmenter: Segmenter
    name: str
    load_seconds: float
    dtype: str = "float32"
    random_weights: bool = False


@dataclass
class _Measured:
    entry: Entry
    features: Any = None
    words: dict[int, float] = field(default_factory=dict)
    labels: dict[int, list[str]] = field(default_factory=dict)
    skipped: list[int] = field(default_factory=list)


def words(count: int) -> list[str]:
    """Give `count` different labels: a thousand everyday nouns (`nouns.txt`), then kinds of them, then numbered kinds."""
    nouns = Path(__file__).with_name("nouns.txt").read_text("utf-8").split()
    made = list(nouns)
    number = 0
    while len(made) < count:
        made += [f"{kind} {noun}{f' {number}' if number else ''}" for kind in _KINDS for noun in nouns]
        number += 1
    return made[:count]


def picture(height: int, width: int) -> NDArray[np.uint8]:
    """Paint an image with large soft shapes and fine grain, the same for the same size: (height, width, 3) uint8 RGB.

    Noise alone would not do: how many labels come near to winning depends on what there is to see.
    """
    random = np.random.default_rng(0)
    rough = Image.fromarray(random.integers(0, 256, (9, 12, 3)).astype(np.uint8)).resize((width, height), Image.Resampling.BICUBIC)
    fine = Image.fromarray(random.integers(0, 256, (96, 128, 3)).astype(np.uint8)).resize((width, height), Image.Resampling.BICUBIC)
    return np.array(Image.blend(rough, fine, 0.25))


def seconds_of(action: Callable[[], object]) -> float:
    """Run an action and return how long it took."""
    began = time.perf_counter()
    action()
    return time.perf_counter() - began


def interleave(actions: Mapping[str, Callable[[], object]], rounds: int, warm: bool = True) -> dict[str, list[float]]:
    """Run several actions in turns, so that whatever else the machine does hits all of them alike.

    Args:
        actions: Name -> what to run. An action that is quicker than the slowest runs up to `MOST_RUNS` times in a round.
        rounds: How often each has its turn.
        warm: Whether each runs once before, uncounted. Without that none runs more than once in a round.

    Returns:
        Name -> its median of each round [s].
    """
    first = {name: seconds_of(action) for name, action in actions.items()} if warm else dict.fromkeys(actions, 1.0)
    slowest = max(first.values(), default=0.0)
    runs = {name: max(1, min(MOST_RUNS, int(slowest / max(took, 1e-9)))) for name, took in first.items()}
    found: dict[str, list[float]] = {name: [] for name in actions}
    for _ in range(rounds):
        for name, action in actions.items():
            found[name].append(statistics.median(seconds_of(action) for _ in range(runs[name])))
    return found


def peak_megabytes() -> float | None:
    """Return the most resident memory that this process has had [MB]; None where the system does not tell.

    On Linux not from getrusage: its maximum is handed on to child processes, which then seem as large as their parent.
    """
    status = Path("/proc/self/status")
    if status.is_file():
        for line in status.read_text().splitlines():
            if line.startswith("VmHWM:"):
                return int(line.split()[1]) * 1024 / 1e6
    try:
        import resource
    except ImportError:  # Windows
        return None
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak / 1e6 if sys.platform == "darwin" else peak * 1024 / 1e6


def compare(
    entries: Sequence[Entry],
    image_size: tuple[int, int] = (480, 640),
    counts: Sequence[int] = (1, 10, 100),
    repeats: int = 3,
    size: int | str | None = None,
    window: str | None = None,
    templates: Any = None,
    limit: float = math.inf,
) -> list[BenchmarkResult]:
    """Measure models in turns, in one process.

    Args:
        entries: The models.
        image_size: (height, width) of the image [px].
        counts: Numbers of labels.
        repeats: How often each thing is measured. One run before them does not count.
        size: See `Segmenter.segment`.
        window: See `Segmenter.segment`.
        templates: See `Segmenter.segment`.
        limit: A number of labels is left out where reading them, or one answer, would take longer than this [s].
    """
    counts = sorted(set(counts))
    if repeats < 1 or not counts or min(counts) < 1 or min(image_size) < 1:
        raise InvalidArgumentError("A benchmark needs at least one repeat, one label and one pixel.")
    image = picture(*image_size)
    sizes: dict[str, Any] = {"size": size, "window": window}
    actions: dict[str, Callable[[], object]] = {}
    models = []
    for number, entry in enumerate(entries):
        segmenter, model = entry.segmenter, _Measured(entry)
        models.append(model)
        if not segmenter.card.conditional:
            model.features = segmenter.encode_image(image, **sizes)
            actions[f"{number} encode"] = _encode(segmenter, image, sizes)
        _read_words(model, counts, image, sizes, templates, limit)
        for count, labels in model.labels.items():
            actions[f"{number} segment {count}"] = _answer(segmenter, image, labels, {"templates": templates, **sizes})
            if model.features is not None:
                actions[f"{number} ask {count}"] = _answer(segmenter, model.features, labels, {"templates": templates})
    found = {name: Spread.of(seconds) for name, seconds in interleave(actions, repeats).items()}
    peak = peak_megabytes()
    return [
        BenchmarkResult(
            model.entry.name,
            model.entry.segmenter.device,
            image_size,
            model.entry.segmenter.card.megabytes,
            model.entry.load_seconds,
            found.get(f"{number} encode"),
            model.words,
            {count: found[f"{number} segment {count}"] for count in model.labels},
            {count: found[f"{number} ask {count}"] for count in model.labels if f"{number} ask {count}" in found},
            peak,
            model.entry.dtype,
            model.entry.random_weights,
            tuple(model.skipped),
        )
        for number, model in enumerate(models)
    ]


def _encode(segmenter: Segmenter, image: NDArray[np.uint8], sizes: Mapping[str, Any]) -> Callable[[], object]:
    return lambda: segmenter.encode_image(image, **sizes)


def _answer(segmenter: Segmenter, source: Any, labels: list[str], options: Mapping[str, Any]) -> Callable[[], object]:
    return lambda: segmenter.segment(source, labels, **options)


def _read_words(
    model: _Measured, counts: Sequence[int], image: NDArray[np.uint8], sizes: Mapping[str, Any], templates: Any, limit: float
) -> None:
    """Read each number of labels; none of them was read for a smaller number."""
    everything = words(sum(counts) + 1)
    segmenter, used = model.entry.segmenter, 1
    conditional = segmenter.card.conditional

    def read(labels: list[str]) -> object:
        if conditional:  # it reads them anew for every image
            return segmenter.segment(image, labels, templates=templates, **sizes)
        return segmenter.encode_text(labels, templates=templates)

    read(everything[:1])  # the first text loads the tower
    rate = 0.0
    for count in counts:
        if rate * count > limit:
            model.skipped.append(count)
            continue
        labels = everything[used : used + count]
        used += count
        took = seconds_of(lambda labels=labels: read(labels))  # type: ignore[misc]
        rate = took / count
        model.words[count], model.labels[count] = 0.0 if conditional else took, labels
