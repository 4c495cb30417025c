"""From features and text embeddings to a label map, in bounded memory and in a time that hardly grows with the labels.

The logit of label k at a pixel is `scale * <text_k, f>`, bilinearly interpolated (half-pixel centres) from the feature grid. Because
interpolation is linear, labels are projected before they are upsampled. Inside one cell of the grid the interpolated value of a label
lies between the least and the greatest of its four corners. A label whose greatest corner is below another label's least corner
therefore never wins in that cell: only the labels that are left are interpolated, most often a single one.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

DEFAULT_BUDGET = 256 << 20
"""Bytes of working memory, beyond the inputs and the answer."""

Floats = NDArray[np.float32]
Indices = NDArray[np.intp]


@dataclass(frozen=True)
class Axis:
    """Where the pixels of one image axis lie on the feature grid.

    Attributes:
        low: (N,) index of the cell below each pixel centre.
        high: (N,) index of the cell above it.
        weight: (N,) float32 weight of `high`, in [0, 1).
    """

    low: Indices
    high: Indices
    weight: Floats

    @classmethod
    def make(cls, pixels: int, cells: int, extent: float) -> Axis:
        """Place `pixels` evenly over the first `extent` of `cells` cells."""
        position = (np.arange(pixels) + 0.5) * (extent / pixels) - 0.5
        position = np.clip(position, 0, cells - 1)
        low = np.floor(position).astype(np.intp)
        return cls(low, np.minimum(low + 1, cells - 1), (position - low).astype(np.float32))

    def part(self, start: int, stop: int) -> Axis:
        """Take the pixels start..stop."""
        return Axis(self.low[start:stop], self.high[start:stop], self.weight[start:stop])


@dataclass(frozen=True)
class Grid:
    """Features of one image and the pixels they stand for.

    Attributes:
        embedding: (D, h, w) float32, L2-normalised over D.
        image_size: (H, W) of the image [px].
        extent: How many cells (down, across) the image covers; fewer than (h, w) where the input was padded.
    """

    embedding: Floats
    image_size: tuple[int, int]
    extent: tuple[float, float]

    @property
    def axes(self) -> tuple[Axis, Axis]:
        """Rows and columns."""
        (height, width), (h, w) = self.image_size, self.embedding.shape[1:]
        return Axis.make(height, h, self.extent[0]), Axis.make(width, w, self.extent[1])


def name_logits(grid: Grid, text: Floats, scale: float, rows: slice) -> Floats:
    """Compute the logits of all names on some rows of the grid.

    Args:
        grid: The features.
        text: (N, D) float32 text embeddings, L2-normalised.
        scale: Multiplier of the cosine.
        rows: Rows of the feature grid.

    Returns:
        (N, rows, w) float32.
    """
    part = grid.embedding[:, rows]
    return (text @ part.reshape(part.shape[0], -1)).reshape(-1, *part.shape[1:]) * np.float32(scale)


def _strips(grid: Grid, names: int, budget: int, per_pixel: int) -> Iterator[tuple[slice, slice]]:
    """Yield (image rows, feature rows) that fit the budget.

    Args:
        grid: The features.
        names: How many logits there are at each cell.
        budget: Bytes.
        per_pixel: Bytes of working memory for each image pixel.
    """
    rows, _ = grid.axes
    height, width = grid.image_size
    w = grid.embedding.shape[2]
    start = 0
    while start < height:
        first = rows.low[start]
        row_bytes = 4 * 5 * names * w  # logits, and four arrays of corners
        cells = max(1, int(budget // 2 // max(row_bytes, 1)) - 1)
        stop = int(np.searchsorted(rows.low, first + cells, side="left"))
        stop = min(stop, start + max(1, int(budget // 2 // max(per_pixel * width, 1))), height)
        yield slice(start, stop), slice(int(first), int(rows.high[stop - 1]) + 1)
        start = stop


def _weights(rows: Axis, columns: Axis) -> tuple[Floats, Floats, Floats, Floats]:
    """Weights of the corners (low, low), (low, high), (high, low), (high, high)."""
    down, right = rows.weight, columns.weight
    return (1 - down) * (1 - right), (1 - down) * right, down * (1 - right), down * right


def label_map(grid: Grid, text: Floats, owner: Indices, scale: float, budget: int = DEFAULT_BUDGET) -> Indices:
    """Find the best label of every pixel: argmax of the interpolated logits, ties to the first name.

    Args:
        grid: The features.
        text: (N, D) float32 embeddings of all names, L2-normalised.
        owner: (N,) the label that each name belongs to, not decreasing.
        scale: Multiplier of the cosine.
        budget: Bytes of working memory.

    Returns:
        (H, W) intp, indices of labels.
    """
    rows, columns = grid.axes
    best = np.empty(grid.image_size, np.uint16)
    for pixels, cells in _strips(grid, len(text), budget, 16):
        logits = name_logits(grid, text, scale, cells)
        part = rows.part(pixels.start, pixels.stop)
        local = Axis(part.low - cells.start, part.high - cells.start, part.weight)
        best[pixels] = _strip_argmax(logits, local, columns, budget)
    return owner[best]


def _strip_argmax(logits: Floats, rows: Axis, columns: Axis, budget: int) -> NDArray[np.uint16]:
    """Argmax over names of the (N, h, w) logits interpolated at rows x columns."""
    below = np.concatenate([logits[:, 1:], logits[:, -1:]], 1)
    least, most = np.minimum(logits, below), np.maximum(logits, below)
    least = np.minimum(least, np.concatenate([least[:, :, 1:], least[:, :, -1:]], 2))
    most = np.maximum(most, np.concatenate([most[:, :, 1:], most[:, :, -1:]], 2))
    alive = most >= least.max(0)  # (N, h, w): labels that can win somewhere in the cell
    count = alive.sum(0)
    first = alive.argmax(0).astype(np.uint16)
    result: NDArray[np.uint16] = first[rows.low[:, None], columns.low[None]]

    y, x = np.nonzero((count > 1)[rows.low[:, None], columns.low[None]])
    if not len(y):
        return result
    w = logits.shape[2]
    cell = rows.low[y] * w + columns.low[x]
    candidates = count.ravel()[cell]
    order = np.argsort(candidates, kind="stable")
    y, x, candidates = y[order], x[order], candidates[order]
    # names that are alive, cell after cell
    cell_of, name_of = np.nonzero(alive.reshape(len(logits), -1).T)
    begin = np.searchsorted(cell_of, np.arange(alive[0].size))
    flat = logits.reshape(len(logits), -1)
    start = 0
    while start < len(y):
        many = int(candidates[start])
        stop = int(np.searchsorted(candidates, many, side="right"))
        stop = min(stop, start + max(1, budget // 2 // (48 * many)))
        py, px = y[start:stop], x[start:stop]
        low, high, left, right = rows.low[py], rows.high[py], columns.low[px], columns.high[px]
        names = name_of[begin[low * w + left][:, None] + np.arange(many)]  # (P, many)
        down = Axis(low, high, rows.weight[py][:, None])
        across = Axis(left, right, columns.weight[px][:, None])
        a, b, c, d = _weights(down, across)
        value = a * flat[names, (low * w + left)[:, None]] + b * flat[names, (low * w + right)[:, None]]
        value += c * flat[names, (high * w + left)[:, None]] + d * flat[names, (high * w + right)[:, None]]
        result[py, px] = np.take_along_axis(names, value.argmax(1)[:, None], 1)[:, 0]
        start = stop
    return result


def _upsampled(logits: Floats, rows: Axis, columns: Axis) -> Floats:
    """Interpolate (N, h, w) logits at rows x columns: (N, R, C) float32."""
    across = logits[:, :, columns.low] * (1 - columns.weight) + logits[:, :, columns.high] * columns.weight
    down = rows.weight[:, None]
    return across[:, rows.low] * (1 - down) + across[:, rows.high] * down


def score_strips(
    grid: Grid, text: Floats, owner: Indices, scale: float, budget: int = DEFAULT_BUDGET
) -> Iterator[tuple[slice, Floats]]:
    """Yield the softmax over labels, strip by strip.

    A label's logit is the largest of its names' logits at that pixel.

    Args:
        grid: The features.
        text: (N, D) float32 embeddings of all names, L2-normalised.
        owner: (N,) the label that each name belongs to, not decreasing.
        scale: Multiplier of the cosine.
        budget: Bytes of working memory.

    Yields:
        Image rows and their (K, rows, W) float32 scores; they sum to 1 over the K labels.
    """
    rows, columns = grid.axes
    starts = np.flatnonzero(np.diff(owner, prepend=-1))
    for pixels, cells in _strips(grid, len(text), budget, 12 * len(text)):
        part = rows.part(pixels.start, pixels.stop)
        local = Axis(part.low - cells.start, part.high - cells.start, part.weight)
        logits = _upsampled(name_logits(grid, text, scale, cells), local, columns)
        logits = np.maximum.reduceat(logits, starts, axis=0)
        logits -= logits.max(0)
        np.exp(logits, out=logits)
        logits /= logits.sum(0)
        yield pixels, logits
