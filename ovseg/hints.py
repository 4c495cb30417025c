"""What a person says about one image: scribbles, clicks, boxes, polygons and tags, all of one type.

Points are (x, y) as `ovseg.marks` says.
"""

from __future__ import annotations

import difflib
import logging
import math
import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ovseg.errors import InvalidArgumentError, InvalidLabelsError
from ovseg.marks import KINDS, RADIUS, Bools, Mark, Points
from ovseg.output.rle import encode_rle
from ovseg.vocabulary import clean_label

logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True, eq=False)
class Seeds:
    """Hints on the pixels of one image.

    Attributes:
        pixels: (N,) int64 indices y * W + x, increasing.
        labels: (N,) int64 index of each pixel's label.
        weights: (N,) float32 in (0, 1]; 1 for pixels that were painted.
        tags: Indices of the labels of tags.
        marks: How many hints were drawn.
        image_size: (H, W) [px].
    """

    pixels: NDArray[np.int64]
    labels: NDArray[np.int64]
    weights: NDArray[np.float32]
    tags: frozenset[int]
    marks: int
    image_size: tuple[int, int]

    @property
    def pointed_at(self) -> frozenset[int]:
        """Indices of the labels that have pixels."""
        return frozenset(np.unique(self.labels).tolist())


class Hints:
    """What a person says about one image; a value that never changes.

    Make it with `scribbles`, `clicks`, `boxes`, `polygons` or `tags`, join several with `+`, or `load` it from a file. Where two speak of
    one pixel the later wins, but what was painted, clicked or outlined always wins over a box.

    Attributes:
        marks: What was pointed at, in order.
    """

    __slots__ = ("marks",)
    marks: tuple[Mark, ...]

    def __init__(self, marks: Iterable[Mark] = ()) -> None:
        object.__setattr__(self, "marks", tuple(marks))

    def __setattr__(self, name: str, value: object) -> None:
        """Refuse: hints are joined with `+`, not changed."""
        raise AttributeError(f"Hints never change; join them with +. Cannot set {name!r}.")

    @classmethod
    def scribbles(cls, strokes: Mapping[str, Any], *, radius: float = RADIUS) -> Hints:
        """Make hints of strokes.

        Args:
            strokes: Label -> a stroke, its points (x, y); or several such; or a (H, W) bool array of the pixels that were painted.
            radius: Half the width of a stroke [px]; has no meaning for painted pixels.

        Raises:
            InvalidArgumentError: If a stroke is empty or no list of points.
        """
        radius = _check_radius(radius)
        marks = []
        for label, value in _items(strokes, "scribbles"):
            if isinstance(value, np.ndarray) and value.dtype == bool:
                marks.append(_painted(label, value))
            elif isinstance(value, np.ndarray) and value.ndim == 2 and value.shape[1] != 2:
                raise InvalidArgumentError(
                    f"The painted pixels of {label!r} must be a bool array (H, W); got {value.dtype} {value.shape}. Write `array > 0`."
                )
            else:
                marks += [Mark("scribble", label, points, radius) for points in _several(value, "scribble", label)]
        return cls(marks)

    @classmethod
    def clicks(cls, points: Mapping[str, Any], *, radius: float = RADIUS) -> Hints:
        """Make hints of clicks.

        Args:
            points: Label -> a point (x, y), or several.
            radius: All pixels this near are meant [px].

        Raises:
            InvalidArgumentError: If there is no point, or something that is none.
        """
        radius = _check_radius(radius)
        marks = []
        for label, value in _items(points, "clicks"):
            marks += [Mark("click", label, (point,), radius) for group in _several(value, "click", label) for point in group]
        return cls(marks)

    @classmethod
    def boxes(cls, boxes: Mapping[str, Any]) -> Hints:
        """Make hints of boxes. The middle of a box counts as its label, weakly: a box holds other things too.

        Args:
            boxes: Label -> a box (left, top, right, bottom), or several; right and bottom are the corners after the last pixel.

        Raises:
            InvalidArgumentError: If a box has no area or is none.
        """
        marks = []
        for label, value in _items(boxes, "boxes"):
            numbers = _numbers(value, "box", label)
            if numbers.ndim not in (1, 2) or numbers.shape[-1] != 4:
                raise InvalidArgumentError(f"A box of {label!r} must be (left, top, right, bottom), or several; got {value!r:.200}.")
            for left, top, right, bottom in numbers.reshape(-1, 4).tolist():
                if not (left < right and top < bottom):
                    raise InvalidArgumentError(
                        f"A box of {label!r} must have left < right and top < bottom; got {(left, top, right, bottom)}."
                    )
                marks.append(Mark("box", label, ((left, top), (right, bottom))))
        return cls(marks)

    @classmethod
    def polygons(cls, polygons: Mapping[str, Any]) -> Hints:
        """Make hints of outlines; all pixels whose centre is inside are meant.

        Args:
            polygons: Label -> a polygon, its corners (x, y), at least three; or several such. The inside is by the even-odd rule.

        Raises:
            InvalidArgumentError: If a polygon has fewer corners or is none.
        """
        marks = []
        for label, value in _items(polygons, "polygons"):
            for points in _several(value, "polygon", label):
                if len(points) < 3:
                    raise InvalidArgumentError(f"A polygon of {label!r} must have at least three corners; got {len(points)}.")
                marks.append(Mark("polygon", label, points))
        return cls(marks)

    @classmethod
    def tags(cls, labels: str | Iterable[str]) -> Hints:
        """Make hints of words that are in the image, wherever.

        The others become less likely, but none is ruled out, and none that another hint points at becomes less likely.

        Args:
            labels: A word, or several.
        """
        if not isinstance(labels, Iterable):
            raise InvalidLabelsError(f"tags must be a word or several; got {labels!r:.200}.")
        words = [labels] if isinstance(labels, str) else list(labels)
        return cls(Mark("tag", _check_label(word)) for word in words)

    def __add__(self, other: Hints) -> Hints:
        """Join: these, then the others."""
        return Hints(self.marks + other.marks) if isinstance(other, Hints) else NotImplemented

    def __eq__(self, other: object) -> bool:
        """Compare the marks and their order."""
        return self.marks == other.marks if isinstance(other, Hints) else NotImplemented

    def __hash__(self) -> int:
        """Hash the marks."""
        return hash(self.marks)

    def __len__(self) -> int:
        """Count the marks."""
        return len(self.marks)

    def __repr__(self) -> str:
        """Count the marks of each kind and name the labels."""
        counts = [f"{kind}={n}" for kind in KINDS if (n := sum(mark.kind == kind for mark in self.marks))]
        return f"Hints({', '.join([*counts, f'labels={list(self.labels)!r:.200}'])})"

    @property
    def labels(self) -> tuple[str, ...]:
        """The words, in the order they come first."""
        return tuple(dict.fromkeys(mark.label for mark in self.marks))

    def seeds(self, image_size: tuple[int, int], labels: Sequence[str | Sequence[str]]) -> Seeds:
        """Draw all hints on an image.

        Args:
            image_size: (H, W) [px].
            labels: Words that were asked for; a sequence in it holds synonyms. Case does not matter.

        Returns:
            The pixels, their labels by index, and the tags.

        Raises:
            InvalidLabelsError: If a hint names another word.
            InvalidArgumentError: If a hint lies outside the image.
        """
        index = {
            clean_label(word).casefold(): i
            for i, group in enumerate(labels)
            for word in ([group] if isinstance(group, str) else group)
        }
        count = int(np.prod(image_size))
        drawn, weights = np.full(count, -1, np.int64), np.zeros(count, np.float32)
        tags, doubly = set(), 0
        for mark in self.marks:
            label = _find(mark.label, index)
            if mark.kind == "tag":
                tags.add(label)
                continue
            inside = mark.mask(image_size).ravel() & (weights <= mark.weight)
            doubly += int(np.count_nonzero(drawn[inside & (weights == mark.weight)] != label))
            drawn[inside], weights[inside] = label, mark.weight
        if doubly:
            logger.warning("%d pixels have hints of two labels; the later hint wins.", doubly)
        pixels = np.flatnonzero(drawn >= 0)
        marks = sum(mark.kind != "tag" for mark in self.marks)
        return Seeds(pixels, drawn[pixels], weights[pixels], frozenset(tags), marks, (int(image_size[0]), int(image_size[1])))

    def drawn(self, image_size: tuple[int, int]) -> Bools:
        """Draw all pixels that any hint speaks of: (H, W) bool.

        Raises:
            InvalidArgumentError: If a hint lies outside the image.
        """
        mask = np.zeros(image_size, bool)
        for mark in self.marks:
            mask |= mark.mask(image_size)
        return mask

    def save(
        self, path: str | os.PathLike[str], *, image_size: tuple[int, int] | None = None, labels: Sequence[str] | None = None
    ) -> None:
        """Write the hints to a file.

        Args:
            path: Its suffix decides: .json keeps all as it is; .png holds the pixels of strokes, clicks and polygons as indices (255, or
                65535 in a 16-bit file, where there is nothing) and their labels in a text chunk.
            image_size: (H, W) of the image [px], for a PNG.
            labels: The words that the indices of a PNG stand for; None for those of the hints, in their order.

        Raises:
            OutputError: If it cannot be written.
            InvalidArgumentError: If a PNG cannot hold these hints.
        """
        from ovseg.hints_files import write

        write(self, path, image_size, labels)

    @classmethod
    def load(
        cls,
        path: str | os.PathLike[str],
        labels: Sequence[str | Sequence[str]] | None = None,
        *,
        colors: Mapping[str, Any] | None = None,
    ) -> Hints:
        """Read hints from a file.

        Args:
            path: A .json that `save` wrote, or a .png of strokes. A PNG with one channel or a palette holds indices; where there is
                nothing it has 255 (65535 in a 16-bit file). Any other PNG holds colours; where there is nothing it is transparent or white.
            labels: What the indices stand for, where the PNG does not say itself; and what the colours do, which are then those of overlays
                made with these labels.
            colors: Label -> (red, green, blue) in [0, 255], for a PNG in other colours.

        Raises:
            InvalidArgumentError: If it cannot be read or holds something else.
            InvalidLabelsError: If it is not known what its values stand for.
        """
        from ovseg.hints_files import read

        return read(path, labels, colors)


def one_hints(hints: object) -> Hints | None:
    """Check the hints of one image."""
    if hints is not None and not isinstance(hints, Hints):
        raise InvalidArgumentError(f"hints must be ovseg.Hints or None; got {type(hints).__name__}. Make them with Hints.clicks(...).")
    return hints


def each_hints(hints: object, images: int) -> list[Hints | None]:
    """Check the hints of several images."""
    if hints is None:
        return [None] * images
    if not isinstance(hints, (list, tuple)) or len(hints) != images:
        count = f"{len(hints)}" if isinstance(hints, (list, tuple)) else type(hints).__name__
        raise InvalidArgumentError(f"hints for a list of {images} images must be a list of as many Hints or None; got {count}.")
    return [one_hints(one) for one in hints]


def _find(word: str, index: Mapping[str, int]) -> int:
    """Find a hint's word among those that were asked for."""
    key = clean_label(word).casefold()
    if key not in index:
        near = difflib.get_close_matches(key, list(index), n=1)
        meant = f" Did you mean {near[0]!r}?" if near else ""
        raise InvalidLabelsError(
            f"A hint speaks of {word!r}, which is not among the labels: {', '.join(map(repr, list(index)[:8]))}"
            f"{', ...' if len(index) > 8 else ''}.{meant} Add it to the labels, or name the hint as one of them."
        )
    return index[key]


def _items(marks: object, what: str) -> list[tuple[str, Any]]:
    if not isinstance(marks, Mapping):
        raise InvalidArgumentError(f"{what} must be a mapping from labels to pixels, such as {{'sky': ...}}; got {marks!r:.200}.")
    return [(_check_label(label), value) for label, value in marks.items()]


def _check_label(label: object) -> str:
    if not isinstance(label, str) or not (clean := clean_label(label)):
        raise InvalidLabelsError(f"The label of a hint must be a word; got {label!r:.200}.")
    return clean


def _check_radius(radius: object) -> float:
    if isinstance(radius, bool) or not isinstance(radius, (int, float, np.number)) or not 0 < radius < math.inf:
        raise InvalidArgumentError(f"radius must be a positive number of pixels; got {radius!r}.")
    return float(radius)


def _numbers(value: Any, kind: str, label: str) -> NDArray[np.float64]:
    """Read numbers of any nesting, finite and at least one."""
    try:
        numbers = np.asarray(value, np.float64)
    except (TypeError, ValueError) as error:
        raise InvalidArgumentError(f"A {kind} of {label!r} must be made of numbers; got {value!r:.200}.") from error
    if numbers.size == 0:
        raise InvalidArgumentError(f"A {kind} of {label!r} is empty. Leave it out, or give it points.")
    if not np.isfinite(numbers).all():
        raise InvalidArgumentError(f"A {kind} of {label!r} has a number that is not finite: {value!r:.200}.")
    return numbers


def _several(value: Any, kind: str, label: str) -> list[Points]:
    """Read one list of points or several: a point is two numbers."""
    depth, inner = 0, value
    while isinstance(inner, (list, tuple)) or (isinstance(inner, np.ndarray) and inner.ndim):
        if not len(inner):
            raise InvalidArgumentError(f"A {kind} of {label!r} is empty. Leave it out, or give it points.")
        depth, inner = depth + 1, inner[0]
    groups = {1: [[value]], 2: [value], 3: value}.get(depth)
    if groups is None:
        raise InvalidArgumentError(f"A {kind} of {label!r} must be points (x, y), or several lists of points; got {value!r:.200}.")
    found = []
    for group in groups:
        numbers = _numbers(group, kind, label)
        if numbers.ndim != 2 or numbers.shape[1] != 2:
            raise InvalidArgumentError(f"A {kind} of {label!r} must be points (x, y), or several lists of points; got {group!r:.200}.")
        found.append(tuple((x, y) for x, y in numbers.tolist()))
    return found


def _painted(label: str, mask: Bools) -> Mark:
    if mask.ndim != 2 or not mask.any():
        raise InvalidArgumentError(
            f"The painted pixels of {label!r} must be a (H, W) array with at least one that is True; got shape {mask.shape} with "
            f"{np.count_nonzero(mask)}. Leave out labels that were not painted."
        )
    return Mark("scribble", label, painted=(mask.shape[0], mask.shape[1], encode_rle(mask)["counts"]))
