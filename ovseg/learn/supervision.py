"""What is known of an image in training: pixels, boxes and tags; drawn by a person, or simulated from a full mask.

Simulated supervision is what a person would give: strokes inside regions, a click on each, boxes around them, or the words of the image.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ovseg.errors import InvalidArgumentError
from ovseg.hints import Hints
from ovseg.output.regions import find_regions, region_map

IGNORE = 255
"""Label of a pixel of which nothing is said."""
SIMULATED = ("scribbles", "clicks", "boxes", "tags")
"""Kinds of supervision that are made from full masks."""
KINDS = ("full", *SIMULATED)
"""Kinds of supervision: the label files as they are, or something simulated from them."""
SHARE = 0.03
"""Part of the pixels that scribbles cover, about that of ScribbleSup (Lin et al., CVPR 2016)."""
CLICK_RADIUS = 3
"""Radius of a simulated click [px]."""
SMALLEST = 32
"""Regions of fewer pixels get no stroke, no click and no box [px]."""

_BRUSH = 3  # side of a stroke's brush [px]
_TURN = 0.15  # standard deviation of the change of direction at each pixel of a stroke [rad]
_TRIES = 12  # directions that are tried where a stroke would leave its region

LabelMap = NDArray[np.uint8]


@dataclass(frozen=True, eq=False)
class Supervision:
    """What is known of one image.

    Attributes:
        labels: (H, W) uint8, the label of each pixel; 255 where nothing is said.
        tags: (K,) int8: 1 for a label that is in the image, 0 for one that is not; None where nobody said.
        boxes: (n, 5) int64: label, top, left, bottom, right [px], the last two outside; None where there are none.
    """

    labels: LabelMap
    tags: NDArray[np.int8] | None = None
    boxes: NDArray[np.int64] | None = None


def simulate(labels: LabelMap, num_labels: int, kind: str, seed: int, share: float = SHARE) -> Supervision:
    """Make of a full mask what a person would have given.

    Args:
        labels: (H, W) uint8 label map, 255 where unknown.
        num_labels: K.
        kind: One of `KINDS`.
        seed: The same seed draws the same strokes and clicks.
        share: Part of each region's pixels that scribbles cover.

    Returns:
        The supervision.

    Raises:
        InvalidArgumentError: If there is no such kind, or `share` is not in (0, 1].
    """
    nothing = np.full_like(labels, IGNORE)
    if kind == "full":
        return Supervision(labels)
    if kind == "scribbles":
        return Supervision(scribbles(labels, num_labels, seed, share))
    if kind == "clicks":
        return Supervision(clicks(labels, num_labels, seed))
    if kind == "boxes":
        return Supervision(nothing, boxes=boxes(labels, num_labels))
    if kind == "tags":
        tags = np.zeros(num_labels, np.int8)
        tags[np.unique(labels[labels != IGNORE])] = 1
        return Supervision(nothing, tags=tags)
    raise InvalidArgumentError(f"supervision must be one of {', '.join(KINDS)}; got {kind!r}.")


def scribbles(labels: LabelMap, num_labels: int, seed: int, share: float = SHARE) -> LabelMap:
    """Draw strokes as people do: inside each connected region, along its middle and away from its edges.

    A stroke wanders where the region is more than half as deep as at its deepest place, until `share` of the region's pixels are drawn or
    nothing new is found there. Regions of fewer than `SMALLEST` pixels get none.

    Args:
        labels: (H, W) uint8 label map, 255 where unknown.
        num_labels: K.
        seed: Of the strokes.
        share: Part of each region's pixels, in (0, 1].

    Returns:
        (H, W) uint8, 255 off the strokes.
    """
    if not 0 < share <= 1:
        raise InvalidArgumentError(f"share must be in (0, 1]; got {share!r}.")
    rng = np.random.default_rng(seed)
    drawn = np.full_like(labels, IGNORE)
    regions = region_map(labels, num_labels, min_pixels=SMALLEST)
    depths = _depths(regions)
    names = [str(i) for i in range(num_labels)]
    for index, region in enumerate(find_regions(labels, names, min_pixels=SMALLEST)):
        x, y, w, h = region.box
        mask = regions[y : y + h, x : x + w] == index
        depth = depths[y : y + h, x : x + w] * mask
        middle = 2 * depth > depth.max()
        starts = np.flatnonzero(depth == depth.max())
        quota = max(1, round(share * int(mask.sum())))
        stroke = np.zeros_like(mask)
        count = 0
        while count < quota:
            for row, column in _walk(middle, divmod(int(rng.choice(starts)), w), math.ceil((quota - count) / _BRUSH), rng):
                stroke[max(0, row - 1) : row + 2, max(0, column - 1) : column + 2] = True
            found = int(np.count_nonzero(stroke & mask))
            if found == count:
                break
            count = found
        drawn[y : y + h, x : x + w][stroke & mask] = int(region.label)
    return drawn


def _depths(regions: NDArray[np.int32]) -> NDArray[np.int32]:
    """Count for each pixel the steps to the nearest edge of its region, diagonal steps too; the edge of the image is one. 1 at an edge."""
    padded = np.pad(regions, 1, constant_values=-1)
    height, width = regions.shape
    inside = regions >= 0
    depths = inside.astype(np.int32)
    for row in range(3):
        for column in range(3):
            inside &= padded[row : row + height, column : column + width] == regions
    while inside.any():  # from here on neighbours that are inside are of one region
        depths += inside
        inside = _eroded(inside)
    return depths


def _eroded(mask: NDArray[np.bool_]) -> NDArray[np.bool_]:
    """Keep the pixels all of whose eight neighbours are in the mask; what is outside the image is not."""
    padded = np.pad(mask, 1)
    rows = padded[:-2] & padded[1:-1] & padded[2:]
    kept: NDArray[np.bool_] = rows[:, :-2] & rows[:, 1:-1] & rows[:, 2:]
    return kept


def _walk(mask: NDArray[np.bool_], start: tuple[int, int], length: int, rng: np.random.Generator) -> list[tuple[int, int]]:
    """Wander for at most `length` pixels inside a mask, turning where it ends."""
    height, width = mask.shape
    y, x = float(start[0]), float(start[1])
    heading = rng.uniform(0, 2 * math.pi)
    path = [start]
    turns = rng.normal(0, _TURN, length)
    for turn in turns[:-1].tolist():
        heading += turn
        for _ in range(_TRIES):
            down, right = y + math.sin(heading), x + math.cos(heading)
            if 0 <= round(down) < height and 0 <= round(right) < width and mask[round(down), round(right)]:
                break
            heading = rng.uniform(0, 2 * math.pi)
        else:
            break
        y, x = down, right
        path.append((round(y), round(x)))
    return path


def clicks(labels: LabelMap, num_labels: int, seed: int, radius: int = CLICK_RADIUS) -> LabelMap:
    """Click once on each connected region, somewhere well inside it.

    Args:
        labels: (H, W) uint8 label map, 255 where unknown.
        num_labels: K.
        seed: Of the places.
        radius: Of the disc that is known then, within the region [px].

    Returns:
        (H, W) uint8, 255 off the clicks.
    """
    rng = np.random.default_rng(seed)
    drawn = np.full_like(labels, IGNORE)
    regions = region_map(labels, num_labels, min_pixels=SMALLEST)
    names = [str(i) for i in range(num_labels)]
    for index, region in enumerate(find_regions(labels, names, min_pixels=SMALLEST)):
        x, y, w, h = region.box
        mask = regions[y : y + h, x : x + w] == index
        deep = mask
        for _ in range(2 * radius):
            if not (smaller := _eroded(deep)).any():
                break
            deep = smaller
        row, column = divmod(int(rng.choice(np.flatnonzero(deep))), w)
        rows, columns = np.ogrid[:h, :w]
        disc = mask & ((rows - row) ** 2 + (columns - column) ** 2 <= radius**2)
        drawn[y : y + h, x : x + w][disc] = int(region.label)
    return drawn


def boxes(labels: LabelMap, num_labels: int) -> NDArray[np.int64]:
    """Draw a tight box around each connected region.

    Args:
        labels: (H, W) uint8 label map, 255 where unknown.
        num_labels: K.

    Returns:
        (n, 5): label, top, left, bottom, right [px], the last two outside.
    """
    names = [str(i) for i in range(num_labels)]
    rows = []
    for region in find_regions(labels, names, min_pixels=SMALLEST):
        x, y, w, h = region.box
        rows.append((int(region.label), y, x, y + h, x + w))
    return np.array(rows, np.int64).reshape(-1, 5)


def from_hints(hints: Hints, image_size: tuple[int, int], labels: Sequence[tuple[str, ...]]) -> Supervision:
    """Take what a person said: strokes, clicks and polygons become labelled pixels; boxes and tags stay what they are.

    Tags are taken to be all that is in the image, together with the labels of all other hints.

    Args:
        hints: What was said.
        image_size: (H, W) [px].
        labels: For each label its name and synonyms.

    Returns:
        The supervision.

    Raises:
        InvalidLabelsError: If a hint names another word.
        InvalidArgumentError: If a hint lies outside the image.
    """
    drawn = np.full(image_size, IGNORE, np.uint8)
    painted = hints.__class__(mark for mark in hints.marks if mark.kind not in ("box", "tag"))
    seeds = painted.seeds(image_size, labels)
    drawn.flat[seeds.pixels] = seeds.labels
    known = hints.seeds(image_size, labels)
    tags = None
    if known.tags:
        tags = np.zeros(len(labels), np.int8)
        tags[[*known.tags, *known.pointed_at]] = 1
    height, width = image_size
    rows: list[tuple[Any, ...]] = []
    for mark in hints.marks:
        if mark.kind == "box":
            (left, top), (right, bottom) = mark.points
            (label,) = Hints([mark]).seeds(image_size, labels).pointed_at
            rows.append((label, math.floor(top), math.floor(left), min(height, math.ceil(bottom)), min(width, math.ceil(right))))
    return Supervision(drawn, tags, np.array(rows, np.int64) if rows else None)


def joined(first: Supervision, second: Supervision) -> Supervision:
    """Put together what two sources say of one image; where both label a pixel the second is right."""
    labels = np.where(second.labels != IGNORE, second.labels, first.labels)
    tags = second.tags if first.tags is None else first.tags
    if first.tags is not None and second.tags is not None:
        tags = np.maximum(first.tags, second.tags)
    parts = [part for part in (first.boxes, second.boxes) if part is not None]
    return Supervision(labels, tags, np.concatenate(parts) if parts else None)
