"""Corrections: what a person painted changes the scores wherever the image looks alike.

Kernel ridge regression on the residual. Let P be the scores that the words gave and Q the pixels that were painted (the seeds). At a
seed that is said to be y, the logarithm of its score has to rise by

    r_y(q) = max(0, max_{j != y} ln P_j(q) - ln P_y(q) + lead + doubt H(P(q)))

for y to be ahead of all others, by more where the words were in doubt (H is the entropy of P): there they should have less of a say
around the seed, too. No other label has to change. The corrected scores are

    ln S(p) = ln P(p) + k(p, Q) (K_QQ + E)^-1 r(Q) - ln Z(p),    E = diag(noise / weight_q),

where Z keeps the sum of the scores. The rise R is the minimiser of  sum_q weight_q / noise |R(q) - r(q)|^2 + |R|^2  in the Hilbert space
of the kernel: a squared partial loss on the seeds and smoothness over the image (Tikhonov regularisation; also the posterior mean of a
Gaussian process, and simple kriging: Rasmussen and Williams, "Gaussian Processes for Machine Learning", 2006, eq. 2.25 and section 6.2).
Because logarithms of scores are added up and not scores, a pixel about which the words are sure needs more to change its mind than one
about which they are not. Where the words already lead nothing changes, and far from all seeds nothing does. The kernel joins two ways to be
alike,

    k(p, q) = (1 - w) exp(-|x_p - x_q|^2 / 2 s_x^2 - |c_p - c_q|^2 / 2 s_c^2 - d_pq / s_f^2) + w exp(-d_pq / s_g^2)

with x the position, c the colour (CIE Lab) and d = 1 - cosine of the features: near, of the same colour and of the same kind; or of the
very same kind anywhere. It is evaluated on cells of the image, about two pixels wide, row by row, and interpolated.
"""

from __future__ import annotations

import math
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from ovseg.hints import Seeds
from ovseg.similarity import Axis, Grid

Floats = NDArray[np.float32]
Integers = NDArray[np.int64]

MAX_CELLS = 80_000
"""Most cells the solve is done on: half the height and width of a VGA image."""
MAX_SEEDS = 200
"""Most seeds; of more, those that are far from each other are taken."""
THREADS = 2
"""Rows of cells that are computed at the same time."""
TAG_BIAS = -3.0
"""Log-prior of labels that are not among the tags of an image."""
STRIP = 1 << 18
"""Scores that are corrected at a time."""
THINNED = 2_000
"""Seeds among which those are searched."""
LEAST_SCORE = 1e-4
"""Scores below it count as it: a label that is out of the question must still be within reach of a hint."""


@dataclass(frozen=True)
class Kernel:
    """What counts as alike. The defaults were chosen on training images; see docs/corrections.md.

    Attributes:
        position: s_x, as a part of the image's width or height, whichever is greater.
        colour: s_c, with Lab / (100, 128, 128).
        feature: s_f.
        anywhere: w, the part of the kernel that asks for features alone.
        anywhere_feature: s_g.
        noise: How much a seed of weight 1 may stay short of what it asks for, beside a kernel of 1.
        lead: How far the logarithm of a seed's score should be ahead of all others at least.
        doubt: How much more for each nat of entropy.
    """

    position: float = 1 / 3
    colour: float = 0.25
    feature: float = 0.5
    anywhere: float = 0.3
    anywhere_feature: float = 0.35
    noise: float = 0.02
    lead: float = 2.2
    doubt: float = 4.0


KERNEL = Kernel()


@dataclass(frozen=True)
class View:
    """An image as the solve sees it.

    Attributes:
        image_size: (H, W) [px].
        size: Its cells, (rows, columns).
        colours: (rows, columns, 3) float32 Lab / (100, 128, 128), the mean of each cell; or None.
        grid: Its features; or None.
    """

    image_size: tuple[int, int]
    size: tuple[int, int]
    colours: Floats | None
    grid: Grid | None

    @classmethod
    def make(cls, image_size: tuple[int, int], image: NDArray[np.uint8] | None, grid: Grid | None) -> View:
        """Cut an image into cells.

        Args:
            image_size: (H, W) [px].
            image: (H, W, 3) uint8 RGB; None leaves out colour.
            grid: Its features, L2-normalised; None leaves them out.
        """
        height, width = image_size
        side = max(1, math.ceil(math.sqrt(height * width / MAX_CELLS)))
        size = (-(-height // side), -(-width // side))
        colours: Floats | None = None
        if image is not None:
            colours = lab(_means(image, side))
            colours /= np.array([100, 128, 128], np.float32)
        return cls(image_size, size, colours, grid)

    def cells_of(self, pixels: Integers) -> Integers:
        """Find the cells that pixels y * W + x lie in: row * columns + column."""
        (height, width), (rows, columns) = self.image_size, self.size
        y, x = np.divmod(pixels, width)
        return np.asarray(y // -(-height // rows) * columns + x // -(-width // columns), np.int64)


def _means(image: NDArray[np.uint8], side: int) -> Floats:
    """Take the mean colour of cells of side x side pixels, those at the right and lower edge maybe smaller."""
    height, width = image.shape[:2]
    rows, columns = np.arange(0, height, side), np.arange(0, width, side)
    sums = np.zeros((len(rows), len(columns), 3), np.float32)
    for y in range(side):
        for x in range(side):
            part = image[y::side, x::side]
            sums[: part.shape[0], : part.shape[1]] += part
    sums /= np.diff(rows, append=height)[:, None, None] * np.diff(columns, append=width)[:, None].astype(np.float32)
    return np.asarray(sums, np.float32)


def lab(image: Floats) -> Floats:
    """Turn sRGB into CIE Lab (D65, 2 degrees).

    Formulas: IEC 61966-2-1 and CIE 15.

    Args:
        image: (..., 3) float32 sRGB in [0, 255].

    Returns:
        (..., 3) float32: L in [0, 100], a and b about in [-128, 128].
    """
    table = np.arange(4096, dtype=np.float64) / 4095  # the power functions of a VGA image would take as long as the solve
    linear = np.where(table <= 0.04045, table / 12.92, ((table + 0.055) / 1.055) ** 2.4).astype(np.float32)
    rgb = linear[(image * np.float32(4095 / 255) + np.float32(0.5)).astype(np.int32)]
    to_xyz = np.array([[0.412453, 0.357580, 0.180423], [0.212671, 0.715160, 0.072169], [0.019334, 0.119193, 0.950227]])
    white = np.array([0.95047, 1.0, 1.08883])
    xyz = rgb.reshape(-1, 3) @ (to_xyz / white[:, None]).T.astype(np.float32)
    f = np.where(xyz > 0.008856, np.cbrt(xyz), np.float32(7.787) * xyz + np.float32(16 / 116))
    out = np.stack([116 * f[:, 1] - 16, 500 * (f[:, 0] - f[:, 1]), 200 * (f[:, 1] - f[:, 2])], axis=1)
    return out.reshape(image.shape).astype(np.float32)


@dataclass(frozen=True)
class Correction:
    """What is added to the logarithms of the scores.

    Attributes:
        labels: (A,) the labels that rise.
        rise: (rows, columns, A) float32, on the cells of the view.
        seeds: The hints, whose painted pixels are set to what they were said to be.
        view: The view.
    """

    labels: Integers
    rise: Floats
    seeds: Seeds
    view: View

    def apply(self, rows: slice, scores: Floats) -> None:
        """Correct the scores of some rows of pixels, in place; those of a pixel sum to what they did.

        Args:
            rows: Which rows of the image.
            scores: (L, R, W) float32 in [0, 1].
        """
        if len(self.labels):
            total = scores.sum(0)
            y, x = (_on_cells(pixels, cells) for pixels, cells in zip(self.view.image_size, self.view.size, strict=True))
            top = int(y.low[rows.start])
            y = Axis(y.low[rows] - top, y.high[rows] - top, y.weight[rows])
            part = _between(self.rise[top : top + int(y.high[-1]) + 1], y, 0)
            part = _between(np.ascontiguousarray(part.transpose(2, 0, 1)), x, 2)
            np.exp(part, out=part)
            for label, factor in zip(self.labels, part, strict=True):
                scores[label] = np.maximum(scores[label], np.float32(LEAST_SCORE)) * factor
            scores *= total / np.maximum(scores.sum(0), np.float32(1e-12))
        self._set_painted(rows, scores)

    def _set_painted(self, rows: slice, scores: Floats) -> None:
        width = self.view.image_size[1]
        low, high = np.searchsorted(self.seeds.pixels, (rows.start * width, rows.stop * width))
        certain = self.seeds.weights[low:high] == 1
        y, x = np.divmod(self.seeds.pixels[low:high][certain], width)
        scores[:, y - rows.start, x] = 0
        scores[self.seeds.labels[low:high][certain], y - rows.start, x] = 1


def solve(view: View, seeds: Seeds, prior: Floats, kernel: Kernel = KERNEL) -> Correction:
    """Compute the correction.

    Args:
        view: The image.
        seeds: The hints; at least one pixel.
        prior: (L, N) float32 scores of all labels at the pixels of the seeds, in [0, 1].
        kernel: What counts as alike.
    """
    cells, labels, weights, means = _by_cell(view, seeds, prior)
    chosen = _spread(view, cells, labels)
    cells, labels, weights, means = cells[chosen], labels[chosen], weights[chosen], means[:, chosen]
    rising = np.unique(labels)
    residual = (labels[:, None] == rising) * _short_of(means, labels, kernel)[:, None]
    like = _Alike(view, cells, kernel)
    weighted = np.linalg.solve(like.among_seeds() + np.diag(kernel.noise / weights), residual)
    return Correction(rising, like.to_seeds_times(weighted.astype(np.float32)), seeds, view)


def _short_of(prior: Floats, labels: Integers, kernel: Kernel) -> NDArray[np.float64]:
    """Say how much the logarithm of each seed's own score has to rise: (Q,), of (L, Q) scores."""
    logs = np.log(np.maximum(prior.astype(np.float64), LEAST_SCORE))
    here = np.arange(len(labels))
    own = logs[labels, here]
    share = prior / np.maximum(prior.sum(0), np.float32(1e-12))
    entropy = -(share * np.log(np.maximum(share, np.float32(1e-12)))).sum(0)
    if len(logs) == 1:
        return np.zeros(len(labels))
    logs[labels, here] = -np.inf
    return np.asarray(np.maximum(logs.max(0) - own + kernel.lead + kernel.doubt * entropy, 0))


def corrected(scores: Floats, seeds: Seeds, image: NDArray[np.uint8] | None, grid: Grid | None, kernel: Kernel = KERNEL) -> Floats:
    """Correct the scores of an image, in place.

    Args:
        scores: (L, H, W) float32 in [0, 1].
        seeds: The hints on its pixels; their labels are rows of `scores`.
        image: (H, W, 3) uint8 RGB; None leaves out colour.
        grid: Features of the image, L2-normalised; None leaves them out.
        kernel: What counts as alike.

    Returns:
        `scores`.
    """
    if len(seeds.pixels):
        view = View.make(seeds.image_size, image, grid)
        correction = solve(view, seeds, scores.reshape(len(scores), -1)[:, seeds.pixels], kernel)
        step = max(1, STRIP // (len(scores) * scores.shape[2]))
        for top in range(0, scores.shape[1], step):
            rows = slice(top, min(top + step, scores.shape[1]))
            correction.apply(rows, scores[:, rows])
    return scores


def tag_bias(seeds: Seeds, members: NDArray[np.intp], count: int) -> Floats:
    """Turn tags into a log-prior: labels that are neither tagged nor pointed at are `TAG_BIAS` less likely.

    Args:
        seeds: The hints.
        members: (R,) the label that each row counts for.
        count: K; higher members are background words, which tags say nothing about.

    Returns:
        (R,) float32.
    """
    known = np.isin(members, sorted(seeds.tags | seeds.pointed_at)) | (members >= count)
    return np.where(known, 0, TAG_BIAS).astype(np.float32)


def _by_cell(view: View, seeds: Seeds, prior: Floats) -> tuple[Integers, Integers, NDArray[np.float64], Floats]:
    """Gather seeds by cell: the cells, the label that most of their seeds have, its mean weight and their mean prior scores."""
    count = len(prior)
    pairs, group, size = np.unique(view.cells_of(seeds.pixels) * count + seeds.labels, return_inverse=True, return_counts=True)
    weights = np.bincount(group, seeds.weights) / size
    cells, labels = np.divmod(pairs, count)
    order = np.lexsort((-size * weights, cells))
    best = order[np.diff(cells[order], prepend=-1) != 0]
    by_group = np.argsort(group, kind="stable")
    starts = np.concatenate([[0], np.cumsum(size)[:-1]])
    sums = np.add.reduceat(prior[:, by_group], starts, axis=1) / size.astype(np.float32)
    return cells[best], labels[best], weights[best], np.asarray(sums[:, best], np.float32)


def _spread(view: View, cells: Integers, labels: Integers) -> Integers:
    """Choose at most `MAX_SEEDS` seeds far from each other (farthest-point sampling in position and colour), of all labels alike."""
    if len(cells) <= MAX_SEEDS:
        return np.arange(len(cells))
    kinds, count = np.unique(labels, return_counts=True)
    room = np.zeros(len(kinds), np.int64)
    left, share = MAX_SEEDS, len(kinds)
    for i in np.argsort(count, kind="stable"):  # what a small label does not need goes to the others
        room[i] = min(count[i], max(1, left // share))
        left, share = left - room[i], share - 1
    chosen = []
    for kind, many in zip(kinds, room, strict=True):
        own = np.flatnonzero(labels == kind)
        own = own[np.linspace(0, len(own) - 1, min(len(own), THINNED)).astype(np.int64)]
        place = _places(view, cells[own], 0.1, 0.25)
        far = np.full(len(own), np.inf, np.float32)
        at = 0
        for _ in range(many):
            chosen.append(own[at])
            np.minimum(far, ((place - place[at]) ** 2).sum(1), out=far)
            at = int(far.argmax())
    return np.unique(np.array(chosen, np.int64))


def _places(view: View, cells: Integers | slice, position: float, colour: float) -> Floats:
    """Give cells coordinates whose distance is that of position and colour: (N, 2) or (N, 5) float32."""
    rows, columns = view.size
    index = np.arange(rows * columns)[cells]
    y, x = np.divmod(index, columns)
    unit = np.float32(1 / (max(rows, columns) * position))
    place = np.stack([y, x], axis=1).astype(np.float32) * unit
    if view.colours is None:
        return place
    return np.concatenate([place, view.colours.reshape(-1, 3)[index] * np.float32(1 / colour)], axis=1)


class _Alike:
    """The kernel between the cells of an image and some of them, the seeds."""

    def __init__(self, view: View, cells: Integers, kernel: Kernel) -> None:
        self._view, self._kernel = view, kernel
        self._place = _places(view, cells, kernel.position, kernel.colour)
        self._features: Floats | None = None
        if view.grid is not None:
            y, x = np.divmod(cells, view.size[1])
            features = _features_at(view.grid, *(Axis(a.low[i], a.high[i], a.weight[i]) for a, i in zip(self._axes(), (y, x), strict=True)))
            self._features = features / np.maximum(np.linalg.norm(features, axis=0), np.float32(1e-12))  # (D, Q)

    def _axes(self) -> tuple[Axis, Axis]:
        """Say where the cells lie on the feature grid."""
        grid = self._view.grid
        if grid is None:
            raise ValueError("there are no features")
        full = [cells * -(-pixels // cells) / pixels for pixels, cells in zip(self._view.image_size, self._view.size, strict=True)]
        extent = (grid.extent[0] * full[0], grid.extent[1] * full[1])  # the last cells may reach beyond the image
        return Grid(grid.embedding, self._view.size, extent, grid.corner_stride).axes

    def among_seeds(self) -> NDArray[np.float64]:
        """Compute K_QQ: (Q, Q) float64."""
        place, kernel = self._place.astype(np.float64), self._kernel
        near = -0.5 * ((place[:, None] - place[None]) ** 2).sum(2)
        if self._features is None:
            return np.asarray(np.exp(near))
        features = self._features.astype(np.float64)
        apart = 1 - features.T @ features
        here = np.exp(near - apart / kernel.feature**2)
        return np.asarray((1 - kernel.anywhere) * here + kernel.anywhere * np.exp(-apart / kernel.anywhere_feature**2))

    def to_seeds_times(self, weighted: Floats) -> Floats:
        """Compute k(p, Q) times (Q, A) float32 for all cells p: (rows, columns, A) float32."""
        rows, columns = self._view.size
        kernel, place = self._kernel, _places(self._view, slice(None), self._kernel.position, self._kernel.colour)
        # exp(-|u - v|^2 / 2) = exp(<(u, -|u|^2 / 2, 1), (v, 1, -|v|^2 / 2)>): one product of matrices
        half = -0.5 * (place**2).sum(1, keepdims=True)
        left = np.concatenate([place, half, np.ones_like(half)], axis=1)
        half = -0.5 * (self._place**2).sum(1, keepdims=True)
        right = np.concatenate([self._place, np.ones_like(half), half], axis=1).T
        result = np.empty((rows, columns, weighted.shape[1]), np.float32)
        if self._features is None:
            for row in range(rows):
                near = left[row * columns : (row + 1) * columns] @ right
                result[row] = np.exp(near, out=near) @ weighted
            return result
        grid, (down, across) = self._view.grid, self._axes()
        if grid is None:
            raise ValueError("there are no features")
        d, h, w = grid.embedding.shape
        right[-1] -= np.float32(1 / kernel.feature**2)
        cosine = (grid.embedding.reshape(d, -1).T @ self._features).reshape(h, w, -1)  # (h, w, Q)
        same = np.exp((cosine - 1) * np.float32(1 / kernel.anywhere_feature**2)).reshape(h * w, -1)
        anywhere = (same @ (weighted * np.float32(kernel.anywhere))).reshape(h, w, -1)
        anywhere = _between(_between(anywhere, down, 0), across, 1)
        cosine *= np.float32(1 / kernel.feature**2)
        here = weighted * np.float32(1 - kernel.anywhere)
        def fill(row: int) -> None:
            line = cosine[down.low[row]] * (1 - down.weight[row]) + cosine[down.high[row]] * down.weight[row]
            near = left[row * columns : (row + 1) * columns] @ right
            near += _between(line, across, 0)
            result[row] = np.exp(near, out=near) @ here

        with ThreadPoolExecutor(THREADS) as pool:
            list(pool.map(fill, range(rows), chunksize=16))
        result += anywhere
        return result


def _features_at(grid: Grid, rows: Axis, columns: Axis) -> Floats:
    """Interpolate features at N points: (D, N) float32."""
    embedding = grid.embedding
    top = embedding[:, rows.low, columns.low] * (1 - columns.weight) + embedding[:, rows.low, columns.high] * columns.weight
    bottom = embedding[:, rows.high, columns.low] * (1 - columns.weight) + embedding[:, rows.high, columns.high] * columns.weight
    return np.asarray(top * (1 - rows.weight) + bottom * rows.weight, np.float32)


def _on_cells(pixels: int, cells: int) -> Axis:
    """Place the pixels of one axis on the centres of its cells."""
    side = -(-pixels // cells)
    return Axis.make(pixels, cells, pixels / side)


def _between(values: Floats, axis: Axis, along: int) -> Floats:
    """Interpolate linearly along one axis."""
    weight = axis.weight.reshape(-1, *(1,) * (values.ndim - 1 - along))
    low, high = values.take(axis.low, along), values.take(axis.high, along)
    high -= low
    high *= weight
    low += high
    return low
