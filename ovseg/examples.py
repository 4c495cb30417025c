"""Labels that are shown: an example image with a region says what a word means.

With v the mean of the features in the regions and u that of the features around them, the embedding t of each of the label's words becomes

    t' = t + a (v - u):

a step, from the words, of the nearest-mean classifier of "is it the region". How far to go is asked of the examples themselves: `STEPS` are
tried, and how well the label, against all other words, covers the regions (IoU). If no step is clearly better than the words alone (by
`CLEARLY`), the words stay as they are: a word that the model knows needs no picture. Otherwise the least step is taken that brings
`PART` of what the best would bring, as steps that fit few examples perfectly take too much elsewhere. What was looked at is tied to the
model whose features it is made of.
"""

from __future__ import annotations

import io
import json
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ovseg.errors import InvalidArgumentError, InvalidLabelsError
from ovseg.features import ImageFeatures
from ovseg.labels import Label
from ovseg.output.files import write_atomically
from ovseg.similarity import Axis

STEPS = (0.0, 0.02, 0.05, 0.1, 0.15, 0.2, 0.3, 0.4, 0.5, 0.7, 1.0, 1.4, 2.0)
"""How much of the direction is tried."""
PART = 0.5
"""How much of the greatest gain is enough."""
CLEARLY = 0.2
"""How much better the regions must be covered."""
CELLS = 400
"""Cells in the regions, and around them, that are kept of each example."""
_MAX_BYTES = 256 << 20
_ARRAYS = ("shift", "cells", "inside", "outside")

Floats = NDArray[np.float32]


@dataclass(frozen=True, eq=False)
class Shown:
    """What examples have shown, as numbers.

    Attributes:
        shift: (D,) float32 direction from what is around the regions to what is in them; or, without `cells`, what is added to the
            embedding of each word of the label.
        model: The model whose features these are; see `ImageFeatures.model`.
        cells: (M, D) float32 features of some cells of the examples; (0, D) for none.
        inside: (M,) float32 how much of the regions each stands for.
        outside: (M,) float32 how much of their surroundings each stands for.
    """

    shift: Floats
    model: str
    cells: Floats
    inside: Floats
    outside: Floats

    @classmethod
    def taught(cls, shift: Floats, model: str) -> Shown:
        """Make a shift that is added as it is."""
        none = np.zeros(0, np.float32)
        return cls(shift.astype(np.float32), model, np.zeros((0, len(shift)), np.float32), none, none)

    def __repr__(self) -> str:
        """Say the sizes, not the numbers."""
        return f"Shown({len(self.cells)} cells of {self.model!r})"


def look(label: Label, encode: Callable[[Any], ImageFeatures]) -> Label:
    """Look at the examples of a label once, so that it can be used and saved without the images.

    Args:
        label: A label; each example is an image and a region, or `Shown`.
        encode: Gives the features of an image.

    Returns:
        The label with `Shown` alone for its examples.

    Raises:
        InvalidLabelsError: If it is no label.
        InvalidArgumentError: If an example is no image with a region in it.
    """
    _check_label(label)
    done = [example for example in label.examples if isinstance(example, Shown)]
    seen = [
        _cells(example, encode, f"Example {i} of {label.name!r}")
        for i, example in enumerate(label.examples)
        if not isinstance(example, Shown)
    ]
    if seen:
        inside, outside = (np.concatenate([one[k] for one in seen]) for k in (1, 2))
        cells, model = np.concatenate([one[0] for one in seen]), seen[0][3]
        around = cells.T @ outside / max(float(outside.sum()), 1e-6)
        done.append(Shown((cells.T @ inside / inside.sum() - around).astype(np.float32), model, cells, inside, outside))
    return with_examples(label, tuple(done))


def _check_label(label: object) -> None:
    if not isinstance(label, Label):
        raise InvalidLabelsError(f"Expected an ovseg.Label; got {type(label).__name__}. Make one: Label('rust', examples=[(image, mask)]).")


def with_examples(label: Label, examples: tuple[Any, ...]) -> Label:
    """Copy a label with other examples."""
    return Label(
        label.name, label.synonyms, color=label.color, templates=label.templates, threshold=label.threshold, parent=label.parent,
        examples=examples,
    )  # fmt: skip


def _cells(example: Any, encode: Callable[[Any], ImageFeatures], where: str) -> tuple[Floats, Floats, Floats, str]:
    """Take some cells of an example, how much of the region and of its surroundings each stands for, and the model."""
    if not isinstance(example, (tuple, list)) or len(example) != 2:
        raise InvalidArgumentError(f"{where} must be (image, mask or box); got {type(example).__name__}.")
    image, region = example
    features = image if isinstance(image, ImageFeatures) else encode(image)
    share = _share(region, features, where).ravel()
    flat = features.embedding.reshape(len(features.embedding), -1)
    rest = _covered(features).ravel() * (1 - share)
    parts, weights = [], []
    for mass in (share, rest):
        own = np.flatnonzero(mass > 0.5) if (mass > 0.5).any() else np.flatnonzero(mass > 0)
        own = own[np.unique(np.linspace(0, max(len(own) - 1, 0), min(len(own), CELLS)).astype(np.int64))] if len(own) else own
        parts.append(flat[:, own].T)
        weights.append(np.full(len(own), float(mass.sum()) / max(len(own), 1), np.float32))
    zero = [np.zeros(len(part), np.float32) for part in parts]
    cells = np.concatenate(parts).astype(np.float32)
    return cells, np.concatenate([weights[0], zero[1]]), np.concatenate([zero[0], weights[1]]), features.model


def _covered(features: ImageFeatures) -> Floats:
    """Say which cells of the grid the image covers: (h, w) float32, 0 or 1."""
    h, w = features.embedding.shape[1:]
    mask = np.zeros((h, w), np.float32)
    mask[: max(1, round(features.extent[0])), : max(1, round(features.extent[1]))] = 1
    return mask


def _share(region: Any, features: ImageFeatures, where: str) -> Floats:
    """Say how much of each cell a mask or box (left, top, right, bottom) takes: (h, w) float32 in [0, 1]."""
    height, width = features.image_size
    values = np.asarray(region)
    if values.shape == (4,) and values.dtype.kind in "iuf":
        left, top, right, bottom = (float(value) for value in values)
        if not (0 <= left < right <= width and 0 <= top < bottom <= height):
            raise InvalidArgumentError(
                f"{where}: a box is (left, top, right, bottom) inside the image of {width} x {height} pixels; got {tuple(values.tolist())}."
            )
        mask = np.zeros((height, width), bool)
        mask[int(top) : max(int(top) + 1, round(bottom)), int(left) : max(int(left) + 1, round(right))] = True
    elif values.shape == (height, width) and values.dtype == bool:
        mask = values
    else:
        raise InvalidArgumentError(
            f"{where}: the region must be a (H, W) bool mask of the image's size {(height, width)} or (left, top, right, bottom); got "
            f"shape {values.shape} {values.dtype}."
        )
    if not mask.any():
        raise InvalidArgumentError(f"{where}: the mask is empty. Mark the pixels that show the label.")
    h, w = features.embedding.shape[1:]
    row, column = _nearest(height, h, features.extent[0]), _nearest(width, w, features.extent[1])
    y, x = np.nonzero(mask)
    inside = np.bincount(row[y] * w + column[x], minlength=h * w)
    pixels = np.bincount(row, minlength=h)[:, None] * np.bincount(column, minlength=w)
    return np.asarray((inside.reshape(h, w) / np.maximum(pixels, 1)), np.float32)


def _nearest(pixels: int, cells: int, extent: float) -> NDArray[np.intp]:
    axis = Axis.make(pixels, cells, extent)
    return np.where(axis.weight < 0.5, axis.low, axis.high)


def with_shown(words: Floats, owner: NDArray[np.intp], shown: Sequence[Sequence[Shown]], model: str) -> Floats:
    """Let what was shown change the embeddings of words.

    Args:
        words: (N, D) float32 embeddings of all words.
        owner: (N,) the label of each word.
        shown: What was shown of each label; labels beyond its length have nothing.
        model: The model that gave the embeddings.

    Returns:
        (N, D) float32; no longer of unit length.

    Raises:
        InvalidArgumentError: If something was shown to another model.
    """
    result = words.copy()
    for label, several in enumerate(shown):
        own = owner == label
        for one in several:
            if one.model != model or one.shift.shape != words.shape[1:]:
                raise InvalidArgumentError(f"A label was shown to the model {one.model!r}, not to {model!r}. Show it its examples again.")
            result[own] += one.shift * np.float32(_step(one, words, own) if len(one.cells) else 1)
    return result


def _step(shown: Shown, words: Floats, own: NDArray[np.bool_]) -> float:
    """Choose how far to go; see the head of this module."""
    if own.all():
        return 0.0
    logits = shown.cells @ words.T
    mine, others, along = logits[:, own].max(1), logits[:, ~own].max(1), shown.cells @ shown.shift
    covered = []
    for step in STEPS:
        won = mine + np.float32(step) * along > others
        covered.append(float(shown.inside[won].sum() / (shown.inside.sum() + shown.outside[won].sum())))
    gain = np.array(covered) - covered[0]
    return STEPS[int(np.argmax(gain >= PART * gain.max()))] if gain.max() >= CLEARLY else 0.0


def save_labels(path: str | os.PathLike[str], labels: Sequence[Label]) -> None:
    """Write labels that were looked at (`Segmenter.look`) or taught (`teach`) to a .npz file.

    Args:
        path: The file.
        labels: The labels; those without examples are kept, too.

    Raises:
        InvalidLabelsError: If something is no label, a label's examples are still images, or its templates are functions.
        OutputError: If it cannot be written.
    """
    entries: list[dict[str, Any]] = []
    arrays: dict[str, NDArray[Any]] = {}
    if isinstance(labels, (Label, str)):
        raise InvalidLabelsError("save_labels wants a list of labels; got one. Put it into brackets: [label].")
    for label in labels:
        _check_label(label)
        if not all(isinstance(example, Shown) for example in label.examples):
            raise InvalidLabelsError(f"The examples of {label.name!r} are images. Let a model look at them first: segmenter.look(label).")
        if label.templates is not None and any(callable(template) for template in label.templates):
            raise InvalidLabelsError(f"The templates of {label.name!r} are functions, which no file can hold.")
        entries.append({
            "words": list(label.words), "color": label.color, "templates": label.templates, "threshold": label.threshold,
            "parent": label.parent, "models": [shown.model for shown in label.examples],
        })  # fmt: skip
        for i, shown in enumerate(label.examples):
            for name in _ARRAYS:
                arrays[f"{len(entries) - 1}.{i}.{name}"] = getattr(shown, name)
    arrays["labels"] = np.array(json.dumps({"format": "ovseg labels", "version": 1, "labels": entries}))
    with write_atomically(path) as file:
        np.savez(file, **arrays)  # type: ignore[arg-type]


def load_labels(path: str | os.PathLike[str]) -> list[Label]:
    """Read labels that `save_labels` wrote.

    Raises:
        InvalidLabelsError: If the file is none of these.
    """
    name = os.fspath(path)
    try:
        with open(name, "rb") as file:
            data = file.read(_MAX_BYTES + 1)
        if len(data) > _MAX_BYTES:
            raise ValueError("it is too large")
        with np.load(io.BytesIO(data), allow_pickle=False) as archive:
            content = json.loads(str(archive["labels"]))
            if content["format"] != "ovseg labels" or content["version"] != 1:
                raise ValueError("it holds something else")
            return [_read_label(entry, i, archive) for i, entry in enumerate(content["labels"])]
    except OSError as error:
        raise InvalidLabelsError(f"Cannot read the labels {name!r}: {error.strerror or error}.") from error
    except InvalidLabelsError:
        raise
    except Exception as error:  # numpy, zip and JSON have many ways to say that a file is damaged
        raise InvalidLabelsError(f"{name!r} holds no labels that save_labels wrote: {error}.") from error


def _read_label(entry: dict[str, Any], index: int, archive: Any) -> Label:
    examples = []
    for i, model in enumerate(entry["models"]):
        arrays = {name: archive[f"{index}.{i}.{name}"].astype(np.float32) for name in _ARRAYS}
        shift, cells = arrays["shift"], arrays["cells"]
        fits = shift.ndim == 1 and cells.shape == (len(cells), len(shift))
        if not fits or arrays["inside"].shape != (len(cells),) or arrays["outside"].shape != (len(cells),):
            raise ValueError("its arrays do not fit together")
        if not all(np.isfinite(array).all() for array in arrays.values()):
            raise ValueError("its numbers are not finite")
        examples.append(Shown(model=str(model), **arrays))
    words = entry["words"]
    return Label(
        words[0], words[1:], color=entry["color"], templates=entry["templates"], threshold=entry["threshold"], parent=entry["parent"],
        examples=examples,
    )  # fmt: skip
