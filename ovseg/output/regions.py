"""Connected regions of a label map: what they are, where, how large and how sure.

Rows are cut into runs of one label; runs of the same label that touch in neighbouring rows are joined (union-find over all runs at
once). Work and memory grow with the number of runs, which is far below the number of pixels in a map of things.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ovseg.errors import InvalidArgumentError
from ovseg.output import LabelMap

Integers = NDArray[np.int64]


@dataclass(frozen=True, slots=True)
class Region:
    """A connected region of one label.

    Coordinates are (x, y) on the grid of pixel corners, as in polygons: x to the right, y down, (0, 0) the top-left corner of the image.

    Attributes:
        label: Its label.
        pixels: Its area in pixels.
        box: (x, y, width, height) of the smallest box around it [px].
        centroid: (x, y) of its centre of mass [px]; that of a single pixel is its middle, half a pixel from its corners.
        mean_score: Mean score of its label over its pixels, in [0, 1]; None where the result holds no scores.
        area: Its area in the unit of the pixel size, squared; None where no pixel size was given.
    """

    label: str
    pixels: int
    box: tuple[int, int, int, int]
    centroid: tuple[float, float]
    mean_score: float | None = None
    area: float | None = None

    def as_dict(self) -> dict[str, Any]:
        """Return the fields as JSON has them."""
        return {
            "label": self.label,
            "pixels": self.pixels,
            "box": list(self.box),
            "centroid": list(self.centroid),
            "mean_score": self.mean_score,
            "area": self.area,
        }


@dataclass(frozen=True)
class _Runs:
    """Rows cut into runs of one value, in reading order.

    Attributes:
        start: (N,) first pixel of each run, as row * W + column.
        length: (N,) its pixels.
        value: (N,) its value.
        region: (N,) number of its region among the N' that have a label; -1 for runs without one.
        size: (H, W) of the map.
    """

    start: Integers
    length: Integers
    value: Integers
    region: Integers
    size: tuple[int, int]


def find_regions(
    segmentation: LabelMap,
    labels: Sequence[str],
    *,
    confidence: NDArray[np.float32] | None = None,
    connectivity: int = 4,
    min_pixels: int = 1,
    pixel_area: float | None = None,
) -> list[Region]:
    """List the connected regions of all labels, the largest first, equals by their first pixel.

    Args:
        segmentation: (H, W) uint8 or uint16 index map; values from K on are no label.
        labels: K labels.
        confidence: (H, W) float32 score of the label at each pixel, in [0, 1]; None leaves out the mean scores.
        connectivity: 4: pixels that touch only at a corner are apart, as in polygons; 8: they are together.
        min_pixels: Leave out smaller regions.
        pixel_area: Area of a pixel on the ground; None leaves out areas in units.

    Returns:
        The regions.

    Raises:
        InvalidArgumentError: If an option is outside its range.
    """
    runs, kept = _kept_runs(segmentation, len(labels), connectivity, min_pixels)
    if not len(kept):
        return []
    mine = np.flatnonzero(runs.region >= 0)
    order = mine[np.argsort(runs.region[mine], kind="stable")]  # the runs of a region together
    first = np.flatnonzero(np.diff(runs.region[order], prepend=-1))
    start, length = runs.start[order], runs.length[order]
    y, x = np.divmod(start, runs.size[1])

    pixels = np.add.reduceat(length, first)
    left, right = np.minimum.reduceat(x, first), np.maximum.reduceat(x + length, first)
    top, bottom = y[first], np.maximum.reduceat(y, first) + 1  # runs come row by row
    middle_x = np.add.reduceat(length * (x + length / 2), first) / pixels
    middle_y = np.add.reduceat(length * (y + 0.5), first) / pixels
    columns: dict[str, list[Any]] = {
        "label": [labels[value] for value in runs.value[order][first][kept]],
        "pixels": pixels[kept].tolist(),
        "box": _rows(left[kept], top[kept], (right - left)[kept], (bottom - top)[kept]),
        "centroid": _rows(middle_x[kept], middle_y[kept]),
        "mean_score": [None] * len(kept),
        "area": [None if pixel_area is None else count * pixel_area for count in pixels[kept].tolist()],
    }
    if confidence is not None:
        sums = np.add.reduceat(confidence.ravel(), runs.start, dtype=np.float64)[order]
        columns["mean_score"] = (np.add.reduceat(sums, first) / pixels)[kept].tolist()
    return [Region(*row) for row in zip(*columns.values(), strict=True)]


def _rows(*columns: NDArray[Any]) -> list[tuple[Any, ...]]:
    return list(zip(*(column.tolist() for column in columns), strict=True))


def region_map(segmentation: LabelMap, num_labels: int, *, connectivity: int = 4, min_pixels: int = 1) -> NDArray[np.int32]:
    """Say for every pixel which region it is in.

    Args:
        segmentation: (H, W) uint8 or uint16 index map; values from `num_labels` on are no label.
        num_labels: K.
        connectivity: As for `find_regions`.
        min_pixels: As for `find_regions`.

    Returns:
        (H, W) int32 index into the list that `find_regions` gives for the same options; -1 where there is none.
    """
    runs, kept = _kept_runs(segmentation, num_labels, connectivity, min_pixels)
    place = np.full(int(runs.region.max()) + 2, -1, np.int32)  # the last one is for runs without a region, whose number is -1
    place[kept] = np.arange(len(kept))
    return np.repeat(place[runs.region], runs.length).reshape(runs.size)


def _kept_runs(segmentation: LabelMap, num_labels: int, connectivity: int, min_pixels: int) -> tuple[_Runs, Integers]:
    """Number the regions, and list those that are large enough, the largest first."""
    if connectivity not in (4, 8):
        raise InvalidArgumentError(f"connectivity must be 4 or 8; got {connectivity!r}.")
    if isinstance(min_pixels, bool) or not isinstance(min_pixels, int) or min_pixels < 1:
        raise InvalidArgumentError(f"min_pixels must be a whole number of at least 1; got {min_pixels!r}.")
    runs = _label_runs(segmentation, num_labels, connectivity)
    known = runs.region >= 0
    pixels = np.bincount(runs.region[known], weights=runs.length[known]).astype(np.int64)
    order = np.argsort(-pixels, kind="stable")
    return runs, order[pixels[order] >= min_pixels]


def _label_runs(segmentation: LabelMap, num_labels: int, connectivity: int) -> _Runs:
    height, width = segmentation.shape
    flat = np.ascontiguousarray(segmentation).ravel()
    begins = np.empty(flat.size, bool)
    np.not_equal(flat[1:], flat[:-1], out=begins[1:])
    begins[::width] = True
    start = np.flatnonzero(begins).astype(np.int64)
    length = np.diff(start, append=flat.size)
    value = flat[start].astype(np.int64)

    # A run touches, in the row below, the runs from the one under its first pixel to the one under its last; with 8 neighbours, from
    # one pixel earlier to one later, within the row.
    reach = connectivity // 8
    column = start % width
    low = start + width - np.minimum(reach, column)
    high = start + length - 1 + width + np.minimum(reach, width - column - length)
    above = np.flatnonzero((start < flat.size - width) & (value < num_labels))
    first = np.searchsorted(start, low[above], side="right") - 1
    count = np.searchsorted(start, high[above], side="right") - first
    upper = np.repeat(above, count)
    lower = np.arange(len(upper)) + np.repeat(first - (np.cumsum(count) - count), count)
    same = value[upper] == value[lower]
    root = _join(len(start), upper[same], lower[same])

    known = value < num_labels
    is_first = (root == np.arange(len(root))) & known  # a root is the first run of its region
    region = np.where(known, np.cumsum(is_first)[root] - 1, -1)
    return _Runs(start, length, value, region, (height, width))


def _join(count: int, a: Integers, b: Integers) -> Integers:
    """Find the connected components of a graph: the least node of each node's component, (count,) int64.

    Every root is hung below its least neighbour and paths are then shortened, until nothing changes: the parallel form of union-find
    (Shiloach & Vishkin, "An O(log n) parallel connectivity algorithm", 1982).
    """
    parent = np.arange(count)
    while len(a):
        np.minimum.at(parent, np.maximum(a, b), np.minimum(a, b))
        while not np.array_equal(shorter := parent[parent], parent):
            parent = shorter
        a, b = parent[a], parent[b]
        apart = a != b
        a, b = a[apart], b[apart]
    return parent
