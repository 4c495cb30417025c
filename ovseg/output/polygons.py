"""From an index map to polygons with holes, exactly along the pixel edges.

Coordinates are (x, y) on the grid of pixel corners: x to the right, y down, (0, 0) is the top-left
corner of the top-left pixel and (W, H) the bottom-right corner of the bottom-right one. Pixels that
touch only at a corner are not connected, so a polygon is one 4-connected region of one label. Its
rings are simple (no vertex comes twice in a ring); two rings may touch at a corner.

The tracing works on straight segments of the boundaries, all labels at once. Every segment is
directed so that its label lies on the right-hand side as seen on the screen; with y down this makes
the shoelace area of an exterior positive and that of an interior negative.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from ovseg.output import LabelMap

_RIGHT, _DOWN, _LEFT, _UP = range(4)


class Polygon(NamedTuple):
    """A region: one outer ring and the rings of its holes.

    Attributes:
        exterior: (N, 2) int32 corners (x, y), clockwise on the screen (positive shoelace area); the
            first corner is not repeated at the end.
        interiors: The holes, each (M, 2) int32, counter-clockwise on the screen.
    """

    exterior: NDArray[np.int32]
    interiors: tuple[NDArray[np.int32], ...]


class _Segments(NamedTuple):
    """Directed straight pieces of boundary, sorted by start corner; all arrays are (N,) int64."""

    start: NDArray[np.int64]  # corner number y * (W + 1) + x
    end: NDArray[np.int64]
    direction: NDArray[np.int64]
    label: NDArray[np.int64]


def trace_polygons(segmentation: LabelMap, num_labels: int) -> list[list[Polygon]]:
    """Trace the outlines of all labels.

    Args:
        segmentation: (H, W) uint8 or uint16 index map; values from `num_labels` on are no label.
        num_labels: K.

    Returns:
        K lists of polygons, each sorted by its topmost, then leftmost corner.
    """
    height, width = segmentation.shape
    # A frame without a label saves every special case at the border.
    framed = np.full((height + 2, width + 2), num_labels, np.uint16)
    np.minimum(segmentation, num_labels, out=framed[1:-1, 1:-1], casting="same_kind")
    segments = _find_segments(framed, num_labels)
    rings = _split_rings(_find_rings(_link(segments)), segments.start)
    return _assemble(rings, segments, framed, num_labels)


def signed_area(ring: NDArray[np.int32] | NDArray[np.float64]) -> float:
    """Return the shoelace area of an open ring of (N, 2) corners; positive when x turns to y."""
    x, y = (ring - ring[0]).T.astype(np.float64)  # near zero: world coordinates may be large
    return float(x @ np.roll(y, -1) - y @ np.roll(x, -1)) / 2


def _find_segments(framed: NDArray[np.uint16], num_labels: int) -> _Segments:
    """Find the straight boundary pieces of all labels in the framed (H + 2, W + 2) map."""
    columns = framed.shape[1] - 1  # corners in a row
    parts = []
    # Each pass looks along lines: rows of corners, then columns of corners (the transposed map).
    for lines, is_horizontal in ((framed, True), (framed.T, False)):
        before, after = lines[:-1], lines[1:]
        line, position = np.nonzero(before != after)  # unit edge: on `line`, along pixel `position`
        position = position - 1  # the frame is pixel -1
        for side, direction in (
            (after, _RIGHT if is_horizontal else _UP),
            (before, _LEFT if is_horizontal else _DOWN),
        ):
            label = side[line, position + 1].astype(np.int64)
            known = label < num_labels
            edges = np.stack([line[known], position[known], label[known]])
            goes_on = (edges[:, 1:] == edges[:, :-1] + [[0], [1], [0]]).all(axis=0)
            breaks = np.flatnonzero(~goes_on) + 1
            firsts = np.concatenate([[0], breaks]) if edges.size else breaks
            lasts = np.concatenate([breaks, [edges.shape[1]]]) if edges.size else breaks
            fixed, low, value = edges[:, firsts]
            high = edges[1, lasts - 1] + 1
            start, end = (low, high) if direction in (_RIGHT, _DOWN) else (high, low)
            if is_horizontal:
                start, end = fixed * columns + start, fixed * columns + end
            else:
                start, end = start * columns + fixed, end * columns + fixed
            parts.append(_Segments(start, end, np.full(len(low), direction), value))
    joint = _Segments(*(np.concatenate(column) for column in zip(*parts, strict=True)))
    order = np.argsort(joint.start * 4 + joint.direction)
    return _Segments(*(column[order] for column in joint))


def _link(segments: _Segments) -> NDArray[np.int64]:
    """Return for each segment the number of the one that follows it, (N,) int64."""
    # A start corner and a direction determine the pixel on the right, hence at most one segment.
    keys = segments.start * 4 + segments.direction
    # Turning right stays at the same pixel; where two pixels of a label touch at a corner, this is
    # what keeps them apart.
    turn_right = segments.end * 4 + (segments.direction + 1) % 4
    found = np.minimum(np.searchsorted(keys, turn_right), max(len(keys) - 1, 0))
    is_right = (keys[found] == turn_right) & (segments.label[found] == segments.label)
    turn_left = segments.end * 4 + (segments.direction + 3) % 4
    return np.where(is_right, found, np.searchsorted(keys, turn_left))


def _find_rings(following: NDArray[np.int64]) -> list[list[int]]:
    """Follow the links; every segment belongs to one ring."""
    links = following.tolist()
    visited = bytearray(len(links))
    rings = []
    for first in range(len(links)):
        if visited[first]:
            continue
        ring = []
        segment = first
        while not visited[segment]:
            visited[segment] = True
            ring.append(segment)
            segment = links[segment]
        rings.append(ring)
    return rings


def _split_rings(rings: list[list[int]], start: NDArray[np.int64]) -> list[list[int]]:
    """Split rings that pass a corner twice into simple rings (an outline that touches itself)."""
    if not rings:
        return []
    ring_number = np.repeat(np.arange(len(rings)), [len(ring) for ring in rings])
    corner = start[np.concatenate([np.asarray(ring) for ring in rings])]
    order = np.lexsort((corner, ring_number))
    again = (np.diff(corner[order]) == 0) & (np.diff(ring_number[order]) == 0)
    touching = set(ring_number[order[1:]][again].tolist())
    simple = []
    for number, ring in enumerate(rings):
        if number not in touching:
            simple.append(ring)
            continue
        path: list[int] = []
        place: dict[int, int] = {}
        for segment, at in zip(ring, start[ring].tolist(), strict=True):
            if at in place:  # back at a corner: what lies between is a ring of its own
                loop = path[place[at] :]
                del path[place[at] :]
                for removed in start[loop].tolist():
                    del place[removed]
                simple.append(loop)
            place[at] = len(path)
            path.append(segment)
        simple.append(path)
    return simple


def _assemble(
    rings: list[list[int]], segments: _Segments, framed: NDArray[np.uint16], num_labels: int
) -> list[list[Polygon]]:
    """Give every hole to the outline around it."""
    columns = framed.shape[1] - 1
    y, x = np.divmod(segments.start, columns)
    corners = np.stack([x, y], axis=1).astype(np.int32)
    coordinates = [corners[ring] for ring in rings]
    is_exterior = np.array([signed_area(ring) > 0 for ring in coordinates], bool)
    parents = _find_parents(rings, ~is_exterior, segments, framed)

    holes: dict[int, list[NDArray[np.int32]]] = {}
    # Topmost first: the parent of a hole reaches higher than the hole, so it is settled before.
    top = np.array([min(ring) for ring in rings], np.int64)  # segments are sorted by corner
    for number in np.argsort(top).tolist():
        if not is_exterior[number]:
            parent = parents[number]
            parents[number] = parent if is_exterior[parent] else parents[parent]
            holes.setdefault(parents[number], []).append(coordinates[number])
    polygons: list[list[Polygon]] = [[] for _ in range(num_labels)]
    for number in np.argsort(top).tolist():
        if is_exterior[number]:
            polygon = Polygon(coordinates[number], tuple(holes.get(number, ())))
            polygons[int(segments.label[rings[number][0]])].append(polygon)
    return polygons


def _find_parents(
    rings: list[list[int]],
    is_hole: NDArray[np.bool_],
    segments: _Segments,
    framed: NDArray[np.uint16],
) -> list[int]:
    """Find for each hole a ring of the same region that reaches higher; -1 for other rings.

    The pixel above the hole's top-left corner belongs to the region. Left of it, in its row, begins
    a run of the label at a segment that goes up; that segment's ring is of the same region.
    """
    parents = np.full(len(rings), -1, np.int64)
    numbers = np.flatnonzero(is_hole)
    if not len(numbers):
        return parents.tolist()
    columns = framed.shape[1] - 1
    ring_of_segment = np.empty(len(segments.start), np.int64)
    for number, ring in enumerate(rings):
        ring_of_segment[ring] = number

    top_left = segments.start[[min(rings[number]) for number in numbers]]
    y, x = np.divmod(top_left, columns)
    row, column = np.nonzero(framed[1:-1, 1:] != framed[1:-1, :-1])  # where runs begin
    begins = row * columns + column
    begin = begins[np.searchsorted(begins, (y - 1) * columns + x, side="right") - 1]
    row, column = np.divmod(begin, columns)

    upward = np.flatnonzero(segments.direction == _UP)
    end_y, at_x = np.divmod(segments.end[upward], columns)
    keys = at_x * (len(framed) + 1) + end_y
    order = np.argsort(keys)
    found = np.searchsorted(keys[order], column * (len(framed) + 1) + row, side="right") - 1
    parents[numbers] = ring_of_segment[upward[order[found]]]
    return parents.tolist()
