"""From features and text embeddings to a label map, in bounded memory and in a time that hardly grows with the labels.

The logit of label k at a pixel is `scale * <text_k, f>`, bilinearly interpolated (half-pixel centres) from the feature grid. Because
interpolation is linear, labels are projected before they are upsampled. A label that is the best at all four corners of a cell of the
grid wins everywhere in it; most cells are so. In the others a label that another label beats at all four corners never wins, and only
those that are left are interpolated: two or three of a thousand. Where names are many, `ovseg.screen` says beforehand which of them are
worth a product.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import nullcontext
from dataclasses import dataclass, replace
from functools import lru_cache
from itertools import islice
from threading import BoundedSemaphore
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ovseg.cores import in_threads, threads_here
from ovseg.features import largest_norm
from ovseg.screen import FEWEST, Screen, neighbours

DEFAULT_BUDGET = 256 << 20
"""Bytes of working memory, beyond the inputs and the answer."""

CHUNK = 1 << 18
"""Logits that are compared at a time: 1 MB, which caches hold."""

FEW = 8
"""Candidates of a pixel that are compared one after the other, for all pixels at once, rather than pixel after pixel."""

MOST_REMEMBERED = 10_000
"""Names of a list that is kept ready for the next image (of 384 numbers each: 35 MB)."""

Floats = NDArray[np.float32]
Indices = NDArray[np.intp]
Labels = NDArray[np.unsignedinteger[Any]]


@dataclass(frozen=True)
class Axis:
    """Where the pixels of one image axis lie on the feature grid.

    Attributes:
        low: (N,) index of the cell below each pixel centre, not decreasing.
        high: (N,) index of the cell above it.
        weight: (N,) float32 weight of `high`, in [0, 1).
    """

    low: Indices
    high: Indices
    weight: Floats

    @classmethod
    def make(cls, pixels: int, cells: int, extent: float, corner_stride: int | None = None) -> Axis:
        """Place `pixels` evenly over the first `extent` of `cells` cells.

        With `corner_stride`, the outer pixels of the image lie on the outer pixels of the network's input (of `corner_stride` pixels a
        cell), and the outer pixels of the input on the outer cells.
        """
        if corner_stride is None:
            position = (np.arange(pixels) + 0.5) * (extent / pixels) - 0.5
        else:
            inside = (extent * corner_stride - 1) / max(pixels - 1, 1)
            position = np.arange(pixels) * (inside * (cells - 1) / max(cells * corner_stride - 1, 1))
        position = np.clip(position, 0, cells - 1)
        low = np.floor(position).astype(np.intp)
        return cls(low, np.minimum(low + 1, cells - 1), (position - low).astype(np.float32))

    def parts(self, cells: int, pixels: int) -> Iterator[tuple[slice, slice, Axis]]:
        """Cut the axis into runs of at most `pixels` pixels that need at most `cells` cells; a run has at least one pixel.

        Yields:
            The pixels, the cells they need, and where they lie among these.
        """
        start = 0
        while start < len(self.low):
            first = self.low[start]
            stop = min(int(np.searchsorted(self.high, first + cells)), start + pixels)
            run = slice(start, max(stop, start + 1))
            place = Axis(self.low[run] - first, self.high[run] - first, self.weight[run])
            yield run, slice(int(first), int(self.high[run][-1]) + 1), place
            start = run.stop


@dataclass(frozen=True)
class Grid:
    """Features of one image and the pixels they stand for.

    Attributes:
        embedding: (D, h, w) float32, L2-normalised over D.
        image_size: (H, W) of the image [px].
        extent: How many cells (down, across) the image covers; fewer than (h, w) where the input was padded.
        corner_stride: Input pixels per cell where corners are aligned; None for half-pixel centres.
        norm: At least the L2 norm of each cell; None where it is not known.
    """

    embedding: Floats
    image_size: tuple[int, int]
    extent: tuple[float, float]
    corner_stride: int | None = None
    norm: float | None = None

    @property
    def axes(self) -> tuple[Axis, Axis]:
        """Rows and columns."""
        (height, width), (h, w) = self.image_size, self.embedding.shape[1:]
        (down, across), corners = self.extent, self.corner_stride
        return Axis.make(height, h, down, corners), Axis.make(width, w, across, corners)


def name_logits(grid: Grid, text: Floats, scale: float, rows: slice, columns: slice) -> Floats:
    """Compute the logits of all names on a part of the grid.

    Args:
        grid: The features.
        text: (N, D) float32 text embeddings, L2-normalised.
        scale: Multiplier of the cosine.
        rows: Rows of the feature grid.
        columns: Columns of the feature grid.

    Returns:
        (N, rows, columns) float32.
    """
    part = grid.embedding[:, rows, columns]
    logits: Floats = text @ part.reshape(len(part), -1)
    logits *= np.float32(scale)
    return logits.reshape(-1, *part.shape[1:])


def with_bias(grid: Grid, text: Floats, scale: float, bias: Floats, activation: str = "softmax") -> tuple[Grid, Floats]:
    """Give names a head start: features and embeddings whose logits are those of `grid` and `text` plus a constant for each name.

    A constant feature is interpolated to itself, so one more dimension that is 1 everywhere carries the bias through all that follows.

    Args:
        grid: The features.
        text: (N, D) float32 embeddings of the names.
        scale: Multiplier of the product.
        bias: (N,) float32 finite log-prior of each name; -1e4 takes a name out.
        activation: Where logits are scores already ("none") they are multiplied by exp(bias).

    Returns:
        The features with D + 1 dimensions and (N, D + 1) float32 embeddings.
    """
    if activation == "none":
        return grid, text * np.exp(bias)[:, None]
    one = np.ones((1, *grid.embedding.shape[1:]), np.float32)
    wider = replace(grid, embedding=np.concatenate([grid.embedding, one]), norm=None)
    return wider, np.concatenate([text, (bias / np.float32(scale))[:, None]], axis=1, dtype=np.float32)


def first_equal(text: Floats) -> Indices:
    """Find for each row the first row that equals it: (N,).

    A matrix product may give equal rows unequal logits (by the last bit), and a tie would be no tie.
    """
    seen: dict[int, int] = {}
    first = np.arange(len(text))
    for i, row in enumerate(text):
        j = seen.setdefault(hash(row.tobytes()), i)
        if j < i and np.array_equal(text[j], row):
            first[i] = j
    return first


@dataclass(frozen=True)
class _Names:
    """Names that are told apart.

    Attributes:
        text: (n, D) float32 embeddings times the scale, each only once.
        kept: (n,) which ones they are.
        screen: Tells which can win, if there are many.
    """

    text: Floats
    kept: Indices
    screen: Screen | None

    @classmethod
    def of(cls, text: Floats, scale: float) -> _Names:
        kept = np.flatnonzero(first_equal(text) == np.arange(len(text)))
        text = text[kept] * np.float32(scale)
        return cls(text, kept, Screen(text) if len(text) >= FEWEST else None)


class _Content:
    """Embeddings that are equal where their numbers are; that two are one array that cannot be written to is seen at once."""

    def __init__(self, text: Floats) -> None:
        self.text = text.copy() if text.flags.writeable or text.base is not None else text

    def __hash__(self) -> int:
        return hash((self.text.shape, self.text[0].tobytes(), self.text[-1].tobytes()))

    def __eq__(self, other: object) -> bool:
        return isinstance(other, _Content) and (self.text is other.text or np.array_equal(self.text, other.text))


@lru_cache(maxsize=2)
def _names_of(content: _Content, scale: float) -> _Names:
    """Remember long lists: image after image is asked for the same."""
    return _Names.of(content.text, scale)


def label_map(
    grid: Grid, text: Floats | None, owner: Indices, scale: float, budget: int = DEFAULT_BUDGET
) -> Labels:
    """Find the best label of every pixel: argmax of the interpolated logits, ties to the first name.

    Args:
        grid: The features.
        text: (N, D) float32 embeddings of all names, L2-normalised; None where the features are the logits already.
        owner: (N,) the label that each name belongs to, not decreasing.
        scale: Multiplier of the cosine.
        budget: Bytes of working memory.

    Returns:
        (H, W) indices of labels, of the smallest unsigned type that holds the number of labels.
    """
    label: Labels = owner.astype(np.min_scalar_type(int(owner[-1]) + 1))
    screen, norm = None, 0.0
    if text is not None:
        again = FEWEST <= len(text) <= MOST_REMEMBERED
        names = _names_of(_Content(text), scale) if again else _Names.of(text, scale)
        text, label, screen = names.text, label[names.kept], names.screen
    if screen is not None:
        norm = largest_norm(grid.embedding) if grid.norm is None else grid.norm
    if len(label) == 1:
        return np.full(grid.image_size, label[0])
    best = np.empty(grid.image_size, label.dtype)
    rows, columns = grid.axes
    threads = threads_here()
    third = budget // 3 // threads  # for logits, for pixels, for the candidates of pixels
    cells = third // (16 * len(label) + 4 * len(grid.embedding))
    wide = max(2, min(grid.embedding.shape[2], cells // 2))
    steps = int(rows.high[-1]) or 1  # from row to row of the grid
    turns = -(-steps // max(1, cells // wide - 1) // threads)
    high = -(-steps // (turns * threads)) + 1  # all threads are done at the same time
    pixels = third // 64
    # Threads that all make short steps wait for the interpreter at each; meanwhile others can do the long ones of the screen.
    short_steps = BoundedSemaphore(-(-threads // 2))

    def fill(part: tuple[tuple[slice, slice, Axis], tuple[slice, slice, Axis]]) -> None:
        (down, cells_down, y), (across, cells_across, x) = part
        features = grid.embedding[:, cells_down, cells_across]
        w, flat, own = features.shape[2], features.reshape(len(features), -1), label
        if text is None:
            logits = np.ascontiguousarray(flat.T)  # names last: the best of a cell is found in one run through memory
        elif screen is None:
            logits = flat.T @ text.T
        else:
            flat = np.ascontiguousarray(flat)  # it is read twice
            able = screen.names(flat, w, norm)
            logits, own = flat.T @ text[able].T, label[able]
        with short_steps if screen is not None and len(own) < FEWEST else nullcontext():
            best[down, across] = _best_labels(logits, w, own, y, x, third)

    in_threads(fill, [
        (down, across)
        for across in columns.parts(wide, max(1, pixels))
        for down in rows.parts(high, max(1, pixels // len(across[2].low)))
    ])  # fmt: skip
    return best


def _candidates(logits: Floats, corners: Indices, best: Indices) -> tuple[Indices, Indices]:
    """Find the names that can win somewhere in some cells.

    Args:
        logits: (h * w, N) float32.
        corners: (4, M) corners of the cells.
        best: (4, M) the names with the greatest logits there.

    Returns:
        (M + 1,) where the names of each cell begin in the second array, and the names, increasing in each cell.
    """
    rivals = logits[corners, best[:, None]]  # (4, 4, M): only the best at a corner beat all that can lose
    count, names = np.zeros(corners.shape[1] + 1, np.intp), [np.empty(0, np.intp)]
    step = max(1, CHUNK // logits.shape[1])
    for start in range(0, corners.shape[1], step):
        part = slice(start, start + step)
        values = logits[corners[:, part]]  # (4, m, N)
        cells = values.shape[1]
        alive = np.flatnonzero((values >= rivals[0][:, part, None]).any(0))
        values = values.reshape(4, -1)
        for rival in rivals[[3, 1, 2]]:  # across the cell is who differs most
            alive = alive[(values.take(alive, 1) >= rival[:, part].take(alive // logits.shape[1], 1)).any(0)]
        cell, name = np.divmod(alive, logits.shape[1])
        count[1 + start :][:cells] = np.bincount(cell, minlength=cells)
        names.append(name)
    return np.cumsum(count), np.concatenate(names)


def _rounded_up(counts: Indices) -> Indices:
    """Round numbers up, by less than a quarter, to one of four for each power of two: cells with like numbers are done together."""
    step = np.maximum(np.frexp(counts)[1] - 3, 0)
    return np.asarray(-(-counts >> step) << step, np.intp)


def _winners(logits: Floats, corners: Indices, names: Indices, here: Indices, weights: Floats) -> Indices:
    """Find the greatest of the interpolated logits of candidates, the first of equal ones.

    Args:
        logits: (h * w, N) float32.
        corners: (4, M) corners of cells.
        names: (M, many) candidates in these cells.
        here: (P,) the cell that each pixel is in.
        weights: (4, P) float32 of the corners.

    Returns:
        (P,) names.
    """
    many = names.shape[1]
    if many > FEW:  # numpy is quick along the last axis where it is long, and slow where it is short
        value = np.zeros((len(here), many), np.float32)
        for corner, weight in zip(corners, weights, strict=True):
            term = logits[corner[:, None], names].take(here, 0)
            term *= weight[:, None]
            value += term
        winners: Indices = names[here, value.argmax(1)]
        return winners
    names = np.ascontiguousarray(names.T)
    values = logits[corners[:, None], names].take(here, 2)  # (4, many, P)
    values *= weights[:, None]
    first, greatest = np.zeros(len(here), np.intp), np.full(len(here), -np.inf, np.float32)
    for i, value in enumerate(values.sum(0)):
        np.copyto(first, i, where=value > greatest)
        np.maximum(greatest, value, out=greatest)
    winners = names[first, here]
    return winners


def _best_labels(logits: Floats, w: int, label: Labels, rows: Axis, columns: Axis, budget: int) -> Labels:
    """Take the label of the greatest of N names, by their (h * w, N) logits interpolated at rows x columns."""
    corners = neighbours(len(logits), w)
    best = logits.argmax(1)
    around = best[corners]
    mixed = (around[1:] != best).any(0)
    result: Labels = label[best].reshape(-1, w)[rows.low].take(columns.low, axis=1).ravel()

    pixel = np.flatnonzero(mixed.reshape(-1, w)[rows.low].take(columns.low, axis=1))
    y, x = np.divmod(pixel, len(columns.low))
    cells = np.flatnonzero(mixed)
    corners = corners[:, cells]
    begin, names = _candidates(logits, corners, around[:, cells])
    room = _rounded_up(np.diff(begin))
    order = np.argsort(room, kind="stable")  # the cells with the fewest candidates first
    corners, room, begin, last = corners[:, order], room[order], begin[order], begin[1:][order] - 1
    rank = np.empty(len(mixed), np.min_scalar_type(len(cells)))  # small integers are quickly sorted
    rank[cells[order]] = np.arange(len(cells))
    place = rank[rows.low[y] * w + columns.low[x]]  # of each pixel's cell among these
    order = np.argsort(place, kind="stable")
    pixel, y, x, place = pixel[order], y[order], x[order], place[order].astype(np.intp)
    candidates = room[place]
    down, across = (np.stack([1 - axis.weight, axis.weight]) for axis in (rows, columns))
    start = 0
    while start < len(pixel):
        many = int(candidates[start])
        stop = int(np.searchsorted(candidates, many, side="right"))
        size = min(budget // 48, CHUNK) if many > FEW else budget // 48
        run = slice(start, min(stop, start + max(1, size // many)))
        here = place[run]
        those = slice(here[0], here[-1] + 1)
        here = here - here[0]
        name = names[np.minimum(begin[those][:, None] + np.arange(many), last[those][:, None])]  # (M, many): the last again and again
        weights = (down.take(y[run], 1)[:, None] * across.take(x[run], 1)).reshape(4, -1)
        result[pixel[run]] = label[_winners(logits, corners[:, those], name, here, weights)]
        start = run.stop
    return result.reshape(len(rows.low), -1)


def upsampled(logits: Floats, rows: Axis, columns: Axis) -> Floats:
    """Interpolate (N, h, w) float32 logits at rows x columns: (N, R, C) float32."""
    for axis, place, weight in ((1, rows, rows.weight[:, None]), (2, columns, columns.weight)):
        low, high = logits.take(place.low, axis), logits.take(place.high, axis)
        high -= low
        high *= weight
        low += high
        logits = low
    return logits


def score_strips(
    grid: Grid,
    text: Floats,
    owner: Indices,
    scale: float,
    budget: int = DEFAULT_BUDGET,
    activation: str = "softmax",
    by_name: bool = False,
) -> Iterator[tuple[slice, Floats]]:
    """Yield the scores of labels, strip by strip.

    A label's logit is the largest of its names' logits at that pixel.

    Args:
        grid: The features.
        text: (N, D) float32 embeddings of all names, L2-normalised.
        owner: (N,) the label that each name belongs to, not decreasing.
        scale: Multiplier of the cosine.
        budget: Bytes of working memory; a strip has at least one row of pixels, whatever it needs.
        activation: "softmax" over the labels, "sigmoid" of each, or "none" where the logits are scores already.
        by_name: Whether the names get scores first, and a label the largest of its names', in place of the largest logit.

    Yields:
        Image rows and their (K, rows, W) float32 scores; after "softmax" they sum to 1 over the K labels, or over all names.
    """
    rows, columns = grid.axes
    starts = np.flatnonzero(np.diff(owner, prepend=-1))
    first = first_equal(text)
    again = np.flatnonzero(first != np.arange(len(text)))
    w = grid.embedding.shape[2]
    threads = threads_here()
    half = budget // 2 // threads
    cells = min(half // (8 * len(text) * w), -(-grid.embedding.shape[1] // threads) + 1)
    pixels = half // (16 * len(text) * max(w, len(columns.low)))

    def scores_of(part: tuple[slice, slice, Axis]) -> tuple[slice, Floats]:
        down, cells_down, y = part
        logits = name_logits(grid, text, scale, cells_down, slice(None))
        logits[again] = logits[first[again]]
        logits = upsampled(logits, y, columns)
        if not by_name:
            logits = np.maximum.reduceat(logits, starts, axis=0)
        if activation == "softmax":
            logits -= logits.max(0)
            np.exp(logits, out=logits)
            logits /= logits.sum(0)
        elif activation == "sigmoid":
            logits = 0.5 * (1 + np.tanh(0.5 * logits))  # 1 / (1 + exp(-x)) without overflow
        return down, np.maximum.reduceat(logits, starts, axis=0) if by_name else logits

    parts = rows.parts(max(2, cells), max(1, pixels))
    while together := list(islice(parts, threads)):
        yield from in_threads(scores_of, together)
