"""What hints are worth: a robot clicks where an answer is wrong, and the answers after so many clicks are scored.

    ovseg eval DATASET --hints 0,1,3,10

The robot knows the truth. It takes the largest connected region of one true label that is answered wrongly, and clicks in its middle: the
pixel that is deepest inside. Beside words with hints stand hints without words (all labels equally likely before the first hint), what the
robot's clicks would be worth if each set its whole region right and touched nothing else, and for the choice of where to click
`Segmentation.next_click` (`clicker="next"`) and chance (`"random"`).
"""

from __future__ import annotations

import os
import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ovseg.alike import View
from ovseg.correct import corrected
from ovseg.errors import InvalidArgumentError
from ovseg.evaluation.datasets import Dataset, without_rules
from ovseg.evaluation.evaluate import spread
from ovseg.evaluation.metrics import ConfusionMatrix
from ovseg.features import ImageFeatures
from ovseg.hints import Hints
from ovseg.marks import RADIUS
from ovseg.output.files import write_json
from ovseg.output.regions import region_map
from ovseg.segmenter import Segmenter
from ovseg.similarity import Grid
from ovseg.vocabulary import Templates

CLICKERS = ("robot", "next", "random")
AWAY = 20
"""Pixels farther than this from all hints count as "elsewhere"."""

LabelMap = NDArray[Any]


@dataclass(frozen=True)
class HintsResult:
    """How answers got better with hints. Percent, or None where nothing was measured.

    Attributes:
        model: Name of the model.
        dataset: Name of the dataset.
        images: Number of images.
        clicker: Who chose where to click.
        clicks: Numbers of clicks per image.
        mean_iou: mIoU of words with hints after so many clicks.
        pixel_accuracy: Likewise, part of the pixels that are right.
        elsewhere: Change of that part on pixels more than `AWAY` px from all hints, in points.
        without_words: mIoU of hints alone.
        whole_regions: mIoU if each click of the robot set right all of the region that it is in, and nothing else.
        seconds: Mean time of an answer with hints [s], the encoding of the image left out; of the processor, all threads together.
    """

    model: str
    dataset: str
    images: int
    clicker: str
    clicks: tuple[int, ...]
    mean_iou: tuple[float, ...]
    pixel_accuracy: tuple[float, ...]
    elsewhere: tuple[float | None, ...]
    without_words: tuple[float | None, ...]
    whole_regions: tuple[float | None, ...]
    seconds: float

    def as_dict(self) -> dict[str, Any]:
        """Return all values as JSON has them."""
        return asdict(self)

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write `as_dict` to a JSON file."""
        write_json(path, self.as_dict())

    def format_table(self) -> str:
        """Format the result as text to print: a line for each number of clicks."""
        lines = [f"{self.model} on {self.dataset}, {self.images} images, clicks by {self.clicker}, in percent", ""]
        lines.append("clicks    mIoU  (gain)  pixel acc.  change elsewhere  mIoU without words  if whole regions were set right")
        for i, count in enumerate(self.clicks):
            gain = self.mean_iou[i] - self.mean_iou[0] if self.clicks[0] == 0 else float("nan")
            others = (self.elsewhere[i], self.without_words[i], self.whole_regions[i])
            rest, alone, whole = ("-" if value is None else f"{value:.2f}" for value in others)
            ours = f"{count:6}  {self.mean_iou[i]:6.2f}  {gain:+6.2f}  {self.pixel_accuracy[i]:10.2f}"
            lines.append(f"{ours}  {rest:>16}  {alone:>18}  {whole:>30}")
        return "\n".join([*lines, "", f"{1000 * self.seconds:.0f} ms of processor time an answer"])


def largest_error(truth: LabelMap, predicted: LabelMap, ignore_index: int) -> NDArray[np.bool_] | None:
    """Find the largest connected region of one true label that is answered wrongly: (H, W); None if all is right.

    Args:
        truth: (H, W) labels, or `ignore_index`.
        predicted: (H, W) labels.
        ignore_index: Pixels of the truth that do not count.
    """
    wrong = (truth != predicted) & (truth != ignore_index)
    if not wrong.any():
        return None
    regions = region_map(np.where(wrong, truth, ignore_index).astype(truth.dtype), ignore_index)
    return np.asarray(regions == 0)  # the largest comes first


def next_error(truth: LabelMap, predicted: LabelMap, ignore_index: int) -> tuple[int, int, int] | None:
    """Find the middle of the largest region that is answered wrongly: (x, y, its true label); None if all is right. See `largest_error`."""
    region = largest_error(truth, predicted, ignore_index)
    if region is None:
        return None
    rows, columns = np.nonzero(region)
    top, left = int(rows.min()), int(columns.min())
    y, x = _deepest(region[top : rows.max() + 1, left : columns.max() + 1])
    return left + x, top + y, int(truth[top + y, left + x])


def _deepest(inside: NDArray[np.bool_]) -> tuple[int, int]:
    """Find the pixel that erosion reaches last; among several the one nearest to their mean."""
    now, diagonal = np.pad(inside, 1), False
    while now.any():
        last, diagonal = now, not diagonal  # crosses and squares in turn: nearly round
        now = last.copy()
        now[1:] &= last[:-1]
        now[:-1] &= last[1:]
        wide = now if diagonal else last
        now = now & np.pad(wide[:, :-1], ((0, 0), (1, 0))) & np.pad(wide[:, 1:], ((0, 0), (0, 1)))
    y, x = np.nonzero(last)
    nearest = int(((y - y.mean()) ** 2 + (x - x.mean()) ** 2).argmin())
    return int(y[nearest]) - 1, int(x[nearest]) - 1


def evaluate_hints(
    segmenter: Segmenter,
    dataset: Dataset,
    clicks: Sequence[int] = (0, 1, 3, 10),
    *,
    clicker: str = "robot",
    words: bool = True,
    templates: Templates = None,
    limit: int | None = None,
    progress: bool = True,
) -> HintsResult:
    """Let a robot click on the images of a dataset and score the answers.

    Args:
        segmenter: The model; it must have features.
        dataset: The labelled images.
        clicks: After how many clicks an image's answer is scored; increasing.
        clicker: "robot" clicks into the largest error, "next" where `next_click` says, "random" anywhere (seeded by the image's place).
        words: Whether to measure hints without words, too: that takes twice the time.
        templates: As for `Segmenter.segment`.
        limit: Use so many images, evenly spread; None uses all.
        progress: Whether to show a progress bar on stderr.

    Raises:
        InvalidArgumentError: If `clicks` is not increasing, or there is no such clicker.
        InvalidLabelsError: If the dataset's vocabulary says more than words.
    """
    without_rules(dataset, "A robot that clicks")
    from tqdm import tqdm

    counts = tuple(clicks)
    if not counts or any(type(n) is not int or n < 0 for n in counts) or list(counts) != sorted(set(counts)):
        raise InvalidArgumentError(f"hints must be increasing whole numbers such as 0,1,3,10; got {clicks!r}.")
    if clicker not in CLICKERS:
        raise InvalidArgumentError(f"clicker must be one of {', '.join(CLICKERS)}; got {clicker!r}.")
    score = _Score(len(dataset.labels), counts, dataset.ignore_index)
    alone = _Score(len(dataset.labels), counts, dataset.ignore_index)
    whole = {n: ConfusionMatrix(len(dataset.labels)) for n in counts}
    chosen = [dataset.samples[i] for i in spread(len(dataset), limit)]
    seconds, answers = 0.0, 0
    for place, sample in enumerate(tqdm(chosen, dataset.name, unit="image", disable=not progress)):
        image, truth = sample.load()
        features = segmenter.encode_image(image)

        def with_words(hints: Hints, features: ImageFeatures = features) -> tuple[LabelMap, NDArray[np.float32] | None]:
            nonlocal seconds, answers
            start = time.process_time()
            result = segmenter.segment(
                features, dataset.labels, templates=templates, hints=hints if len(hints) else None, confidence=clicker == "next"
            )
            if len(hints):
                seconds, answers = seconds + time.process_time() - start, answers + 1
            return result.segmentation, result.entropy

        def without_words(
            hints: Hints, features: ImageFeatures = features, kind: np.dtype[Any] = truth.dtype
        ) -> tuple[LabelMap, NDArray[np.float32] | None]:
            if not len(hints):
                return np.zeros(features.image_size, kind), None
            seeds = hints.seeds(features.image_size, dataset.labels)
            view = View.make(features.image_size, features.image, Grid(features.embedding, features.image_size, features.extent))
            scores = np.full((len(dataset.labels), *view.cells.size), 1 / len(dataset.labels), np.float32)
            return corrected(scores, view.cells, seeds, view).label_map().astype(kind), None

        for answer, where in ((with_words, score), (without_words, alone)) if words else ((with_words, score),):
            for n, (hints, predicted) in enumerate(_session(answer, truth, dataset, clicker, place, counts[-1])):
                if n in counts:
                    where.add(n, truth, predicted, hints)
                if n == 0 and where is score:
                    first = predicted
        if clicker == "robot":
            for n, better in enumerate(_whole_regions(truth, first, dataset.ignore_index, counts[-1])):
                if n in counts:
                    whole[n].update(truth, better, ignore_index=dataset.ignore_index, undecided_index=np.iinfo(np.uint16).max)
    return HintsResult(
        segmenter.name, dataset.name, len(chosen), clicker, counts,
        tuple(score.matrices[n].mean_iou for n in counts),
        tuple(score.matrices[n].pixel_accuracy for n in counts),
        tuple(score.elsewhere(n) for n in counts),
        tuple(alone.matrices[n].mean_iou if words and n else None for n in counts),
        tuple(whole[n].mean_iou if clicker == "robot" else None for n in counts),
        seconds / max(1, answers),
    )  # fmt: skip


def _whole_regions(truth: LabelMap, predicted: LabelMap, ignore_index: int, last: int) -> Iterator[LabelMap]:
    """Yield the answer after 0, 1, 2, ... of the largest wrong regions were set right."""
    yield predicted
    for _ in range(last):
        region = largest_error(truth, predicted, ignore_index)
        if region is not None:
            predicted = np.where(region, truth, predicted)
        yield predicted


def _session(
    answer: Any, truth: LabelMap, dataset: Dataset, clicker: str, seed: int, last: int
) -> Iterator[tuple[Hints, LabelMap]]:
    """Yield the hints so far and the answer to them, after 0, 1, 2, ... clicks."""
    from ovseg.clicking import place_click

    chance = np.random.default_rng(seed)
    hints = Hints()
    predicted, entropy = answer(hints)
    yield hints, predicted
    known = truth != dataset.ignore_index
    for _ in range(last):
        spot: tuple[int, int, int] | None
        if clicker == "robot":
            spot = next_error(truth, predicted, dataset.ignore_index)
        else:
            if clicker == "next" and entropy is not None:
                taken = np.zeros(truth.size, bool)
                taken[hints.seeds(truth.shape, dataset.labels).pixels] = True
                x, y = place_click(entropy, taken.reshape(truth.shape))
            else:
                x, y = int(chance.integers(truth.shape[1])), int(chance.integers(truth.shape[0]))
            if not known[y, x]:  # a person would click beside it
                rows, columns = np.nonzero(known)
                if not len(rows):
                    return
                nearest = int(((rows - y) ** 2 + (columns - x) ** 2).argmin())
                y, x = int(rows[nearest]), int(columns[nearest])
            spot = (x, y, int(truth[y, x]))
        if spot is not None:
            x, y, label = spot
            rows, columns = np.ogrid[: truth.shape[0], : truth.shape[1]]  # what a person paints at the edge of a thing stays on the thing
            mask = ((rows - y) ** 2 + (columns - x) ** 2 <= RADIUS**2) & (truth == label)
            hints += Hints.scribbles({dataset.labels[label][0]: mask})
            predicted, entropy = answer(hints)
        yield hints, predicted


class _Score:
    """Counts right and wrong pixels after so many clicks, all images together."""

    def __init__(self, labels: int, counts: Sequence[int], ignore_index: int) -> None:
        self.matrices = {n: ConfusionMatrix(labels) for n in counts}
        self._ignore_index = ignore_index
        self._away = {n: [0, 0, 0] for n in counts}
        self._first: LabelMap | None = None

    def add(self, n: int, truth: LabelMap, predicted: LabelMap, hints: Hints) -> None:
        self.matrices[n].update(truth, predicted, ignore_index=self._ignore_index, undecided_index=np.iinfo(np.uint16).max)
        if n == 0:
            self._first = predicted
        elif self._first is not None:
            away = (truth != self._ignore_index) & ~_grown(hints, truth.shape)
            for i, right in enumerate((self._first == truth, predicted == truth, np.ones_like(away))):
                self._away[n][i] += int(np.count_nonzero(right & away))

    def elsewhere(self, n: int) -> float | None:
        before, after, pixels = self._away[n]
        return 100 * (after - before) / pixels if pixels else None


def _grown(hints: Hints, size: tuple[int, ...]) -> NDArray[np.bool_]:
    """Draw all pixels at most `AWAY` from a hint (in rows and columns)."""
    mask = np.zeros(size, bool)
    for mark in hints.marks:
        rows, columns = np.nonzero(mark.mask((size[0], size[1])))
        mask[max(0, rows.min() - AWAY) : rows.max() + AWAY + 1, max(0, columns.min() - AWAY) : columns.max() + AWAY + 1] = True
    return mask
