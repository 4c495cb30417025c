"""Fit a model's temperature on labelled images, and say what it does to the scores."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from ovseg.errors import DatasetError, InvalidArgumentError, UnsupportedOperationError
from ovseg.evaluation.calibration import Quality, change_temperature, fit_temperature
from ovseg.evaluation.datasets import Dataset, without_rules
from ovseg.evaluation.evaluate import spread
from ovseg.output.files import write_json
from ovseg.vocabulary import Templates, parse_templates

if TYPE_CHECKING:
    from ovseg.segmenter import Segmenter

PIXELS = 1000
"""Pixels that are drawn of each image."""
_SEED = 20170617
_MAX_BYTES = 256 << 20  # of scores that are kept of a dataset


@dataclass(frozen=True)
class CalibratedDataset:
    """The scores on one dataset.

    Attributes:
        dataset: Its name.
        images: Number of images.
        pixels: Number of pixels that were drawn from them.
        accuracy: Part of these that is right, in [0, 1]; no temperature changes it.
        own_temperature: What this dataset alone would take.
        before: With the model's temperature.
        after: With the fitted one.
    """

    dataset: str
    images: int
    pixels: int
    accuracy: float
    own_temperature: float
    before: Quality
    after: Quality


@dataclass(frozen=True)
class Calibration:
    """A fitted temperature and what it does.

    Attributes:
        model: Name of the model.
        temperature: The fitted one, for the card's field `temperature`.
        previous: The one in the card.
        fitted_on: Datasets that it was fitted on, each with the same weight.
        datasets: Where it was judged.
    """

    model: str
    temperature: float
    previous: float
    fitted_on: tuple[str, ...]
    datasets: tuple[CalibratedDataset, ...]

    def as_dict(self) -> dict[str, Any]:
        """Return all values, with the tables of reliability and coverage."""
        return asdict(self)

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write `as_dict` to a JSON file, which appears complete or not at all.

        Raises:
            OutputError: If the file cannot be written.
        """
        write_json(path, self.as_dict())

    def format_table(self) -> str:
        """Format the result as text to print: a line per dataset, and what thresholds would keep."""
        lines = [
            f"{self.model}: temperature {self.temperature:.4g} (was {self.previous:.4g}), fitted on {', '.join(self.fitted_on)}",
            "",
            f"{'dataset':20}  {'images':>6}  {'accuracy':>8}  {'score':>13}  {'ECE':>13}  {'NLL':>13}  {'AURC':>15}  {'own T':>6}",
        ]
        for one in self.datasets:
            old, new = one.before, one.after
            lines.append(
                f"{one.dataset:20}  {one.images:6}  {100 * one.accuracy:7.2f}%  {100 * old.mean_score:5.1f} > {100 * new.mean_score:4.1f}%"
                f"  {100 * old.ece:5.2f} > {100 * new.ece:5.2f}  {old.nll:5.3f} > {new.nll:5.3f}  {old.aurc:6.4f} > {new.aurc:6.4f}"
                f"  {one.own_temperature:6.3f}"
            )
        lines += ["", "accuracy of the surest pixels, with the fitted temperature (least score):"]
        steps = [choice.coverage for choice in self.datasets[0].after.selections][3::4]
        lines.append(f"{'dataset':20}" + "".join(f"  {100 * step:10.0f} %" for step in steps))
        for one in self.datasets:
            chosen = one.after.selections[3::4]
            lines.append(f"{one.dataset:20}" + "".join(f"  {100 * c.accuracy:5.1f} ({c.threshold:.2f})" for c in chosen))
        return "\n".join(lines)


def calibrate(
    segmenter: Segmenter,
    datasets: Sequence[Dataset],
    *,
    fit_on: Sequence[Dataset] | None = None,
    templates: Templates = None,
    window: Any = None,
    size: Any = None,
    limit: int | None = None,
    pixels: int = PIXELS,
    progress: bool = True,
) -> Calibration:
    """Fit one temperature for some datasets, and judge it.

    The scores are those that `segment(scores=True)` gives at the image's own pixels; of each image a number of pixels is drawn, always the
    same ones. The temperature makes their true labels most likely; each dataset that it is fitted on has the same weight.

    Args:
        segmenter: The model; its scores must be a softmax.
        datasets: Where to judge.
        fit_on: Where to fit: images that the model was not trained on, or the temperature comes out too low. None fits on the first half
            of the images of each of `datasets`, by name, and judges on the second.
        templates: Passed to `segment`, as are `window` and `size`.
        window: Whether to segment images whole or in windows.
        size: Size at which images are segmented.
        limit: Use so many images of each dataset, evenly spread; None uses all.
        pixels: Pixels that are drawn of each image, at most.
        progress: Whether to show progress bars on stderr.

    Returns:
        The temperature and the quality of the scores with the old one and with this one.

    Raises:
        UnsupportedOperationError: If the model's scores are no softmax.
        DatasetError: If an image or label file is at fault, or no pixel is labelled.
        InvalidArgumentError: If an option is outside its range, or there is only one image to fit and to judge on.
        InvalidLabelsError: If a dataset's vocabulary says more than words.
    """
    for dataset in (*datasets, *(fit_on or ())):
        without_rules(dataset, "Calibration")
    if segmenter.card.activation != "softmax":
        raise UnsupportedOperationError(
            f"A temperature is for scores that are a softmax over the labels; {segmenter.name!r} scores each label by itself "
            f"(activation {segmenter.card.activation!r})."
        )
    if isinstance(pixels, bool) or not isinstance(pixels, int) or pixels < 1:
        raise InvalidArgumentError(f"pixels must be a positive integer; got {pixels!r}.")
    if templates is not None:
        templates = parse_templates(templates)  # a generator could be read only once
    chosen = {dataset: spread(len(dataset), limit) for dataset in (*datasets, *(fit_on or ()))}
    if fit_on is None:
        small = next((dataset.name for dataset in datasets if len(chosen[dataset]) < 2), None)
        if small is not None:
            raise InvalidArgumentError(f"Half of the images are to fit on, half to judge on, but of {small!r} there is one. Give fit_on.")
        fitting = [(dataset, chosen[dataset][: len(chosen[dataset]) // 2]) for dataset in datasets]
        judging = [(dataset, chosen[dataset][len(chosen[dataset]) // 2 :]) for dataset in datasets]
    else:
        fitting = [(dataset, chosen[dataset]) for dataset in fit_on]
        judging = [(dataset, chosen[dataset]) for dataset in datasets]

    def draw(dataset: Dataset, indices: Sequence[int]) -> _Drawn:
        return _draw(segmenter, dataset, indices, templates, window, size, pixels, progress)

    samples = [draw(*part) for part in fitting]
    factor = fit_temperature([(sample.scores, sample.truth) for sample in samples])
    previous = segmenter.card.temperature
    judged = []
    for dataset, indices in judging:
        drawn = samples[fitting.index((dataset, indices))] if (dataset, indices) in fitting else draw(dataset, indices)
        judged.append(
            CalibratedDataset(
                dataset.name,
                drawn.images,
                len(drawn.truth),
                float((drawn.scores.argmax(1) == drawn.truth).mean()),
                previous * fit_temperature([(drawn.scores, drawn.truth)]),
                Quality.of(drawn.scores, drawn.truth, previous),
                Quality.of(change_temperature(drawn.scores, factor), drawn.truth, previous * factor),
            )
        )
    part = "first half of " if fit_on is None else ""
    return Calibration(segmenter.name, previous * factor, previous, tuple(part + dataset.name for dataset, _ in fitting), tuple(judged))


@dataclass(frozen=True)
class _Drawn:
    """(N, K) scores and (N,) true labels of pixels, and the number of images that they are from."""

    scores: NDArray[np.float32]
    truth: NDArray[np.intp]
    images: int


def _draw(
    segmenter: Segmenter,
    dataset: Dataset,
    chosen: Sequence[int],
    templates: Templates,
    window: Any,
    size: Any,
    pixels: int,
    progress: bool,
) -> _Drawn:
    """Segment some images of a dataset and keep the scores of some labelled pixels of each."""
    from tqdm import tqdm

    each = min(pixels, max(1, _MAX_BYTES // (4 * len(dataset.labels) * len(chosen))))
    kept: list[NDArray[np.float32]] = []
    truths: list[NDArray[np.intp]] = []
    for i in tqdm(chosen, dataset.name, unit="image", disable=not progress):
        image, truth = dataset.samples[i].load()
        labelled = np.flatnonzero(truth != dataset.ignore_index)
        if not len(labelled):
            continue
        random = np.random.default_rng((_SEED, i))
        places = np.sort(random.choice(labelled, min(each, len(labelled)), replace=False))
        scores = segmenter.segment(image, dataset.labels, templates=templates, window=window, size=size, scores=True).scores
        if scores is None:
            raise UnsupportedOperationError(f"{segmenter.name!r} gives no scores.")
        kept.append(np.ascontiguousarray(scores.reshape(len(scores), -1)[:, places].T))
        truths.append(truth.reshape(-1)[places].astype(np.intp))
    if not kept:
        raise DatasetError(f"No pixel of {dataset.name!r} is labelled: all are to be ignored.")
    return _Drawn(np.concatenate(kept), np.concatenate(truths), len(kept))
