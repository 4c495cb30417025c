"""How long a model takes and how much memory: by the number of labels, on this machine."""

from __future__ import annotations

import statistics
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from typing import Any

import numpy as np

from ovseg.errors import InvalidArgumentError
from ovseg.segmenter import Segmenter

_NOUNS = ("sky", "tree", "road", "car", "person", "building", "grass", "water", "dog", "chair", "table", "window", "mountain", "boat")
_KINDS = ("small", "large", "old", "new", "red", "green", "blue", "white", "dark", "wet", "broken", "wooden", "round", "distant")


@dataclass(frozen=True)
class BenchmarkResult:
    """What was measured. Seconds are medians.

    Attributes:
        model: Name of the model.
        device: Runtime and device.
        image_size: (height, width) of the image [px].
        megabytes: Size of the weights, as the card says.
        load_seconds: From the name to a segmenter that is ready.
        encode_seconds: An image's features; None for a model that has none.
        words_seconds: Number of labels -> reading those that were not read for the smaller numbers, with the model's own templates.
        segment_seconds: Number of labels -> a label map, words known already, image included.
        ask_seconds: Number of labels -> a label map from features; empty for a model that has none.
        peak_megabytes: Most memory that the process has had (resident set); None where the system does not tell.
    """

    model: str
    device: str
    image_size: tuple[int, int]
    megabytes: float
    load_seconds: float
    encode_seconds: float | None
    words_seconds: dict[int, float]
    segment_seconds: dict[int, float]
    ask_seconds: dict[int, float]
    peak_megabytes: float | None

    def as_dict(self) -> dict[str, Any]:
        """Return the fields, for JSON."""
        return asdict(self)

    def format_table(self) -> str:
        """Return what was measured as text."""
        height, width = self.image_size
        memory = "" if self.peak_megabytes is None else f", at most {self.peak_megabytes:.0f} MB of memory"
        lines = [
            f"{self.model} on {self.device}, {width} x {height} px: loaded in {self.load_seconds:.2f} s{memory}",
            f"{'labels':>8} {'words, once':>13} {'segment':>10} {'from features':>14}",
        ]
        for count, seconds in self.segment_seconds.items():
            ask = f"{self.ask_seconds[count]:.3f} s" if count in self.ask_seconds else "-"
            lines.append(f"{count:8d} {self.words_seconds[count]:11.3f} s {seconds:8.3f} s {ask:>14}")
        if self.encode_seconds is not None:
            lines.append(f"features of the image: {self.encode_seconds:.3f} s")
        return "\n".join(lines)


def words(count: int) -> list[str]:
    """Make up `count` different labels; the first ones are everyday words."""
    made = list(_NOUNS)
    number = 0
    while len(made) < count:
        made += [f"{kind} {noun}{f' {number}' if number else ''}" for kind in _KINDS for noun in _NOUNS]
        number += 1
    return made[:count]


def _median_seconds(action: Callable[[], object], repeats: int) -> float:
    seconds = []
    for _ in range(repeats):
        began = time.perf_counter()
        action()
        seconds.append(time.perf_counter() - began)
    return statistics.median(seconds)


def _peak_megabytes() -> float | None:
    try:
        import resource
    except ImportError:  # Windows
        return None
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak / (1e6 if sys.platform == "darwin" else 1e3)


def benchmark(
    load: Callable[[], Segmenter],
    image_size: tuple[int, int] = (480, 640),
    counts: Sequence[int] = (1, 10, 100),
    repeats: int = 3,
    size: int | str | None = None,
    window: str | None = None,
    templates: Any = None,
) -> BenchmarkResult:
    """Measure a model on an image of noise: its time does not depend on what it sees.

    Args:
        load: Makes the segmenter.
        image_size: (height, width) of the image [px].
        counts: Numbers of labels.
        repeats: How often each thing is measured; medians are kept. One run before them does not count.
        size: See `Segmenter.segment`.
        window: See `Segmenter.segment`.
        templates: See `Segmenter.segment`.
    """
    if repeats < 1 or not counts or min(counts) < 1 or min(image_size) < 1:
        raise InvalidArgumentError("A benchmark needs at least one repeat, one label and one pixel.")
    began = time.perf_counter()
    segmenter = load()
    load_seconds = time.perf_counter() - began
    image = np.random.default_rng(0).integers(0, 256, (*image_size, 3)).astype(np.uint8)
    options: dict[str, Any] = {"templates": templates}
    sizes: dict[str, Any] = {"size": size, "window": window}
    encode_seconds, features = None, None
    if not segmenter.card.conditional:
        features = segmenter.encode_image(image, **sizes)
        encode_seconds = _median_seconds(lambda: segmenter.encode_image(image, **sizes), repeats)
    first, whole, ask = {}, {}, {}
    for count in sorted(set(counts)):
        labels = words(count)

        def answer(source: Any, more: dict[str, Any], labels: list[str] = labels) -> object:
            return segmenter.segment(source, labels, **options, **more)

        began = time.perf_counter()
        if features is not None:
            segmenter.encode_text(labels, **options)
        first[count] = time.perf_counter() - began
        if features is not None:
            answer(features, {})
            ask[count] = _median_seconds(partial(answer, features, {}), repeats)
        else:
            answer(image, sizes)
        whole[count] = _median_seconds(partial(answer, image, sizes), repeats)
    return BenchmarkResult(
        segmenter.name, segmenter.device, image_size, segmenter.card.megabytes, load_seconds, encode_seconds, first, whole, ask,
        _peak_megabytes(),
    )  # fmt: skip
