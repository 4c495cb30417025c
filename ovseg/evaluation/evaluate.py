"""Run a segmenter over a labelled dataset and score it."""

from __future__ import annotations

import math
import os
import time
from collections.abc import Sequence
from dataclasses import dataclass, fields, replace
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
from numpy.typing import NDArray

from ovseg.errors import InvalidArgumentError
from ovseg.evaluation.boundaries import BoundaryIou
from ovseg.evaluation.datasets import Dataset
from ovseg.evaluation.metrics import ConfusionMatrix
from ovseg.output.files import without_nan, write_json
from ovseg.prompts import fold
from ovseg.vocabulary import Label, Labels, Templates, TemplateSet, parse_labels, parse_templates

if TYPE_CHECKING:
    from ovseg.result import Segmentation


class SupportsSegment(Protocol):
    """What is used of a segmenter."""

    @property
    def name(self) -> str:
        """Name of the model."""
        ...

    def segment(
        self,
        image: NDArray[np.uint8],
        labels: Any,
        *,
        templates: Templates = None,
        window: Any = None,
        size: Any = None,
        refine: Any = None,
        tags: Any = None,
    ) -> Segmentation:
        """Give each pixel of an image (H, W, 3) uint8 RGB one of the labels.

        It is called with the same labels for every image and should keep their text embeddings: words and synonyms, a tuple for each
        label, or a `Vocabulary` where the dataset's says more than that.
        """
        ...


@dataclass(frozen=True)
class EvaluationResult:
    """How a model did on a dataset. Metrics are in percent, NaN where not defined.

    Attributes:
        model: Name of the model.
        dataset: Name of the dataset, such as `camvid/test`.
        folder: Where it is.
        images: Number of images.
        labels: For each class its name and the synonyms that were used.
        mean_iou: Dataset-level mIoU over the classes in the truth or the prediction.
        pixel_accuracy: Part of the pixels that are right.
        mean_accuracy: Mean of `recall`.
        frequency_weighted_iou: Mean of `iou`, weighted by `share`.
        iou: Intersection over union of each class.
        precision: Part of the pixels predicted as a class that are.
        recall: Part of each class that was found, also called its accuracy.
        share: Part of the truth that each class is.
        seconds: Time spent in the segmenter [s], with the encoding of the labels; reading files and
            scoring are not in it.
        settings: The options that were given, as text or numbers; None is the model's own choice.
        boundary_iou: Mean over the classes of the IoU of their rims; NaN if it was not asked for.
    """

    model: str
    dataset: str
    folder: str
    images: int
    labels: tuple[tuple[str, ...], ...]
    mean_iou: float
    pixel_accuracy: float
    mean_accuracy: float
    frequency_weighted_iou: float
    iou: dict[str, float]
    precision: dict[str, float]
    recall: dict[str, float]
    share: dict[str, float]
    seconds: float
    settings: dict[str, Any]
    boundary_iou: float = math.nan

    @property
    def images_per_second(self) -> float:
        """Images per second spent in the segmenter."""
        return self.images / self.seconds if self.seconds else float("nan")

    def as_dict(self) -> dict[str, Any]:
        """Return all values as JSON has them, None for NaN."""
        values = {field.name: getattr(self, field.name) for field in fields(self)}
        values["images_per_second"] = self.images_per_second
        result: dict[str, Any] = without_nan(values)
        return result

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write `as_dict` to a JSON file, which appears complete or not at all.

        Raises:
            OutputError: If the file cannot be written.
        """
        write_json(path, self.as_dict())

    def format_table(self) -> str:
        """Format the result as text to print: a line per class, the means below."""
        head = ("label", "IoU", "precision", "recall", "share of pixels")
        columns = (self.iou, self.precision, self.recall, self.share)
        rows = [(name, *(_show(column[name]) for column in columns)) for name in self.iou]
        widths = [max(map(len, column)) for column in zip(head, *rows, strict=True)]
        lines = [
            "  ".join([row[0].ljust(widths[0]), *map(str.rjust, row[1:], widths[1:])])
            for row in (head, *rows)
        ]
        options = [
            f"{len(value)} {key}" if isinstance(value, list) else f"{key} {value}"
            for key, value in self.settings.items()
            if value is not None
        ]
        counted = sum(not math.isnan(value) for value in self.iou.values())
        return "\n".join(
            [
                ", ".join([f"{self.model} on {self.dataset}, in percent", *options]),
                "",
                *lines,
                "",
                f"mIoU                    {_show(self.mean_iou):>6}  (over {counted} of "
                f"{len(self.iou)} labels, all {self.images} images together)",
                f"pixel accuracy          {_show(self.pixel_accuracy):>6}",
                f"mean accuracy           {_show(self.mean_accuracy):>6}",
                f"frequency-weighted IoU  {_show(self.frequency_weighted_iou):>6}",
                *([] if math.isnan(self.boundary_iou) else [f"boundary IoU            {_show(self.boundary_iou):>6}"]),
                f"{self.images} images in {self.seconds:.1f} s "
                f"({self.images_per_second:.2f} images/s)",
            ]
        )


def evaluate(
    segmenter: SupportsSegment,
    dataset: Dataset,
    *,
    templates: Templates = None,
    window: Any = None,
    size: Any = None,
    refine: str | None = None,
    boundary: float | None = None,
    rivals: Labels | None = None,
    tags: str | None = None,
    limit: int | None = None,
    progress: bool = True,
) -> EvaluationResult:
    """Segment the images of a dataset with its labels and compare with the truth.

    All label files are read before the first image is segmented, so that a fault in one does not
    come to light after hours.

    Args:
        segmenter: A `Segmenter`, or anything with its `name` and `segment`.
        dataset: The labelled images. If its vocabulary has rules (background, thresholds, priorities, ...) they decide as they do in
            `segment`; a pixel that they leave undecided is wrong.
        templates: Passed to `segment`, as are `window` and `size`; None is the model's own choice.
        window: Whether to segment images whole or in windows.
        size: Size at which images are segmented.
        refine: Passed to `segment` unless it is None: "guided", "crf" or "pamr".
        boundary: Width of the rims for boundary IoU, as a part of the diagonal; None does not count it.
            Published is 0.02.
        rivals: Labels that are asked beside the classes and are always wrong, to see what a long list costs;
            words of a class are left out of them. Anything `parse_labels` accepts; a file as a `Path`.
        tags: "auto" is passed to `segment`; "truth" names it the classes that are in the true label map, which says what
            the best tags would give. None gives no tags.
        limit: Use so many images, evenly spread over the dataset and always the same; None, or more
            than there are, uses all.
        progress: Whether to show a progress bar on stderr.

    Returns:
        The scores.

    Raises:
        DatasetError: If an image or label file is at fault.
        InvalidArgumentError: If `limit` is not a positive integer, or `tags` is something else.
        InvalidLabelsError: If `rivals` is invalid.
    """
    from tqdm import tqdm

    samples = [dataset.samples[i] for i in spread(len(dataset), limit)]
    if not (templates is None or isinstance(templates, str | TemplateSet) or callable(templates)):
        templates = parse_templates(templates)  # a generator could be read only once
    for sample in tqdm(samples, "reading labels", unit="file", leave=False, disable=not progress):
        sample.load_labels()

    confusion = ConfusionMatrix(len(dataset.labels))
    rims = None if boundary is None else BoundaryIou(len(dataset.labels), boundary)
    if tags not in (None, "auto", "truth"):
        raise InvalidArgumentError(f"tags must be 'auto', 'truth' or None; got {tags!r}.")
    more: dict[str, Any] = {} if refine is None else {"refine": refine}
    against = [] if rivals is None else _rivals(rivals, dataset)
    labels: Labels = (*dataset.labels, *against)
    if dataset.vocabulary is not None:
        labels = replace(dataset.vocabulary, labels=(*dataset.vocabulary.labels, *map(Label.plain, against)))
    seconds = 0.0
    for sample in tqdm(samples, dataset.name, unit="image", disable=not progress):
        image, truth = sample.load()
        if tags is not None:
            present = np.unique(truth[truth != dataset.ignore_index]).tolist()
            more["tags"] = "auto" if tags == "auto" or not present else [dataset.labels[index][0] for index in present]
        start = time.perf_counter()
        result = segmenter.segment(image, labels, templates=templates, window=window, size=size, **more)
        seconds += time.perf_counter() - start
        predicted = result.segmentation
        if rivals is not None:
            predicted = np.where(predicted < len(dataset.labels), predicted, np.uint16(result.ignore_index))
        confusion.update(
            truth,
            predicted,
            ignore_index=dataset.ignore_index,
            undecided_index=result.ignore_index,
        )
        if rims is not None:
            rims.update(
                truth,
                predicted,
                ignore_index=dataset.ignore_index,
                undecided_index=result.ignore_index,
            )

    names = [words[0] for words in dataset.labels]
    return EvaluationResult(
        model=segmenter.name,
        dataset=dataset.name,
        folder=str(dataset.folder),
        images=len(samples),
        labels=dataset.labels,
        mean_iou=confusion.mean_iou,
        pixel_accuracy=confusion.pixel_accuracy,
        mean_accuracy=confusion.mean_accuracy,
        frequency_weighted_iou=confusion.frequency_weighted_iou,
        iou=dict(zip(names, confusion.iou.tolist(), strict=True)),
        precision=dict(zip(names, confusion.precision.tolist(), strict=True)),
        recall=dict(zip(names, confusion.recall.tolist(), strict=True)),
        share=dict(zip(names, confusion.share.tolist(), strict=True)),
        seconds=seconds,
        settings={
            "templates": _describe(templates),
            "window": _describe(window),
            "size": _describe(size),
            "limit": limit,
            **({} if refine is None else {"refine": refine}),
            **({} if tags is None else {"tags": tags}),
            **({} if rivals is None else {"rivals": len(against)}),
            **({} if dataset.vocabulary is None else {"vocabulary with": ", ".join(dataset.vocabulary.rules)}),
            **({} if boundary is None else {"boundary": boundary}),
        },
        boundary_iou=math.nan if rims is None else rims.mean,
    )


def spread(count: int, limit: int | None) -> Sequence[int]:
    """Choose evenly spaced indices below `count`, each the middle of an equal part."""
    if limit is None:
        return range(count)
    if isinstance(limit, bool) or not isinstance(limit, int) or limit < 1:
        raise InvalidArgumentError(f"limit must be a positive integer or None; got {limit!r}.")
    limit = min(limit, count)
    return [(2 * i + 1) * count // (2 * limit) for i in range(limit)]


def _rivals(rivals: Labels, dataset: Dataset) -> list[tuple[str, ...]]:
    """Read rivals, without the words of classes and of their background."""
    own = {fold(word) for words in dataset.labels for word in words}
    if dataset.vocabulary is not None:
        background = dataset.vocabulary.background or ()
        groups = [label.words for label in dataset.vocabulary.labels] + [words for words in background if not isinstance(words, str)]
        own.update(fold(word) for words in groups for word in words)
        own.update(fold(label.parent) for label in dataset.vocabulary.labels if label.parent is not None)
    kept = (tuple(word for word in words if fold(word) not in own) for words in parse_labels(rivals))
    return [words for words in kept if words]


def _describe(option: Any) -> Any:
    """Put an option into words that JSON can hold."""
    if option is None or isinstance(option, str | int | float):
        return option
    if isinstance(option, TemplateSet):
        return option.name
    if isinstance(option, tuple | list):
        return [_describe(item) for item in option]
    return getattr(option, "__name__", str(option))


def _show(value: float) -> str:
    return "-" if math.isnan(value) else f"{value:.2f}"
