"""What counts as alike: the kernel between the pixels of an image and some of them, the seeds.

    k(p, q) = (1 - w) exp(-|x_p - x_q|^2 / 2 s_x^2 - |c_p - c_q|^2 / 2 s_c^2 - d_pq / s_f^2) + w exp(-d_pq / s_g^2) + b

with x the position, c the colour (CIE Lab) and d = 1 - cosine of the features: near, of the same colour and of the same kind; or of the
very same kind anywhere; and a little (b) in any case, being of one image. It is evaluated on cells of the image, about two pixels wide,
some rows at a time.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from ovseg.cores import in_threads
from ovseg.similarity import Axis, Grid, upsampled

Floats = NDArray[np.float32]
Integers = NDArray[np.int64]

MAX_CELLS = 80_000
"""Most cells of an image: half the height and width of a VGA image."""
BLOCK = 1 << 16
"""Values of the kernel in a block: what a cache holds."""


@dataclass(frozen=True)
class Kernel:
    """What counts as alike, and how far it reaches. The defaults were chosen on training images; see docs/corrections.md.

    Attributes:
        position: s_x, as a part of the image's width or height, whichever is greater.
        colour: s_c, with Lab / (100, 128, 128).
        feature: s_f.
        anywhere: w, the part of the kernel that asks for features alone.
        anywhere_feature: s_g.
        everywhere: b: a label that had to rise somewhere rises a little in the whole image.
        noise: How much a seed of weight 1 may stay short of what it asks for, beside a kernel of 1.
        lead: How far the logarithm of a seed's score should be ahead of all others at least.
        doubt: How much more for each nat of entropy.
    """

    position: float = 0.18
    colour: float = 0.25
    feature: float = 0.5
    anywhere: float = 0.15
    anywhere_feature: float = 0.3
    everywhere: float = 0.1
    noise: float = 0.02
    lead: float = 1.5
    doubt: float = 3.0


KERNEL = Kernel()


@dataclass(frozen=True)
class Cells:
    """Squares that an image is cut into, those at the right and lower edge maybe smaller.

    Attributes:
        image_size: (H, W) [px].
        side: Of a cell [px].
    """

    image_size: tuple[int, int]
    side: int

    @property
    def size(self) -> tuple[int, int]:
        """Rows and columns."""
        return -(-self.image_size[0] // self.side), -(-self.image_size[1] // self.side)

    def of(self, pixels: Integers) -> Integers:
        """Find the cells that pixels y * W + x lie in: row * columns + column."""
        y, x = np.divmod(pixels, self.image_size[1])
        return np.asarray(y // self.side * self.size[1] + x // self.side, np.int64)

    def read(self, grid: Grid) -> Grid:
        """Let the pixels of a grid be these cells; the last ones may reach beyond the image."""
        full = [cells * self.side / pixels for cells, pixels in zip(self.size, self.image_size, strict=True)]
        return replace(grid, image_size=self.size, extent=(grid.extent[0] * full[0], grid.extent[1] * full[1]))

    def grid(self, values: Floats) -> Grid:
        """Make values of the cells, (N, rows, columns), a grid that the pixels of the image lie on."""
        return Grid(values, self.image_size, (self.image_size[0] / self.side, self.image_size[1] / self.side))


@dataclass(frozen=True)
class View:
    """An image as the solve sees it.

    Attributes:
        cells: Its cells.
        colours: (rows, columns, 3) float32 Lab / (100, 128, 128), the mean of each cell; or None.
        grid: Its features, read at the cells; or None.
    """

    cells: Cells
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
        cells = Cells(image_size, max(1, math.ceil(math.sqrt(image_size[0] * image_size[1] / MAX_CELLS))))
        colours: Floats | None = None
        if image is not None:
            colours = lab(_means(image, cells.side))
            colours /= np.array([100, 128, 128], np.float32)
        return cls(cells, colours, None if grid is None else cells.read(grid))


def _means(image: NDArray[np.uint8], side: int) -> Floats:
    """Take the mean colour of cells of side x side pixels."""
    height, width = image.shape[:2]
    rows, columns = np.arange(0, height, side), np.arange(0, width, side)
    sums = np.zeros((len(rows), len(columns), 3), np.uint32)
    for y in range(side):
        for x in range(side):
            part = image[y::side, x::side]
            sums[: part.shape[0], : part.shape[1]] += part
    area = np.diff(rows, append=height)[:, None, None] * np.diff(columns, append=width)[:, None]
    return np.asarray(sums / area.astype(np.float32), np.float32)


def lab(image: Floats) -> Floats:
    """Turn sRGB into CIE Lab (D65, 2 degrees).

    Formulas: IEC 61966-2-1 and CIE 15.

    Args:
        image: (..., 3) float32 sRGB in [0, 255].

    Returns:
        (..., 3) float32: L in [0, 100], a and b about in [-128, 128].
    """
    table = np.arange(4096, dtype=np.float64) / 4095  # power functions are slow, cube roots slower
    linear = np.where(table <= 0.04045, table / 12.92, ((table + 0.055) / 1.055) ** 2.4).astype(np.float32)
    rgb = linear[(image * np.float32(4095 / 255) + np.float32(0.5)).astype(np.int32)]
    to_xyz = np.array([[0.412453, 0.357580, 0.180423], [0.212671, 0.715160, 0.072169], [0.019334, 0.119193, 0.950227]])
    white = np.array([0.95047, 1.0, 1.08883])
    xyz = rgb.reshape(-1, 3) @ (to_xyz / white[:, None]).T.astype(np.float32)
    f = np.where(xyz > 0.008856, np.cbrt(xyz), np.float32(7.787) * xyz + np.float32(16 / 116))
    out = np.stack([116 * f[:, 1] - 16, 500 * (f[:, 0] - f[:, 1]), 200 * (f[:, 1] - f[:, 2])], axis=1)
    return out.reshape(image.shape).astype(np.float32)


def places(view: View, cells: Integers | slice, position: float, colour: float) -> Floats:
    """Give cells coordinates whose distance is that of position and colour: (N, 2) or (N, 5) float32."""
    rows, columns = view.cells.size
    index = np.arange(rows * columns)[cells]
    y, x = np.divmod(index, columns)
    unit = np.float32(1 / (max(rows, columns) * position))
    place = np.stack([y, x], axis=1).astype(np.float32) * unit
    if view.colours is None:
        return place
    return np.concatenate([place, view.colours.reshape(-1, 3)[cells] * np.float32(1 / colour)], axis=1)


class Alike:
    """The kernel between the cells of an image and some of them, the seeds.

    Args:
        view: The image.
        seeds: (Q,) cells.
        kernel: What counts as alike.
    """

    def __init__(self, view: View, seeds: Integers, kernel: Kernel) -> None:
        self._view, self._kernel = view, kernel
        self._place = places(view, seeds, kernel.position, kernel.colour)
        self._features: Floats | None = None
        if view.grid is not None:
            y, x = np.divmod(seeds, view.cells.size[1])
            down, across = view.grid.axes
            features = _features_at(view.grid, _at(down, y), _at(across, x))
            self._features = features / np.maximum(np.linalg.norm(features, axis=0), np.float32(1e-12))  # (D, Q)

    def among_seeds(self) -> NDArray[np.float64]:
        """Compute K_QQ: (Q, Q) float64."""
        place, kernel = self._place.astype(np.float64), self._kernel
        near = -0.5 * ((place[:, None] - place[None]) ** 2).sum(2)
        if self._features is None:
            return np.asarray(np.exp(near) + kernel.everywhere)
        features = self._features.astype(np.float64)
        apart = 1 - features.T @ features
        here = np.exp(near - apart / kernel.feature**2)
        anywhere = np.exp(-apart / kernel.anywhere_feature**2)
        return np.asarray((1 - kernel.anywhere) * here + kernel.anywhere * anywhere + kernel.everywhere)

    def to_seeds_times(self, weighted: Floats) -> Floats:
        """Compute k(p, Q) times (Q, A) float32 for all cells p: (A, rows, columns) float32."""
        rows, columns = self._view.cells.size
        kernel, grid, count = self._kernel, self._view.grid, len(weighted)
        place = places(self._view, slice(None), kernel.position, kernel.colour)
        # exp(-|u - v|^2 / 2) = exp(<(u, -|u|^2 / 2, 1), (v, 1, -|v|^2 / 2)>): one product of matrices
        half = -0.5 * np.einsum("ij,ij->i", place, place)[:, None]
        left = np.concatenate([place, half, np.ones_like(half)], axis=1)
        half = -0.5 * np.einsum("ij,ij->i", self._place, self._place)[:, None]
        right = np.concatenate([self._place, np.ones_like(half), half], axis=1).T
        step = max(1, BLOCK // (columns * count))
        result = np.empty((rows * columns, weighted.shape[1]), np.float32)
        cosine: Floats | None = None
        here = weighted
        if grid is not None and self._features is not None:
            d, h, w = grid.embedding.shape
            down, across = grid.axes
            right[-1] -= np.float32(1 / kernel.feature**2)
            cosine = (grid.embedding.reshape(d, -1).T @ self._features).reshape(h, w, -1)  # (h, w, Q)
            same = np.exp((cosine - 1) * np.float32(1 / kernel.anywhere_feature**2)).reshape(h * w, -1)
            anywhere = np.ascontiguousarray((same @ (weighted * np.float32(kernel.anywhere))).T).reshape(-1, h, w)
            cosine *= np.float32(1 / kernel.feature**2)
            here = weighted * np.float32(1 - kernel.anywhere)

        def fill(top: int) -> None:
            part = slice(top * columns, min(top + step, rows) * columns)
            near = left[part] @ right
            if cosine is not None:
                line = between(cosine, _at(down, slice(top, top + step)), 0)
                near += between(line, across, 1).reshape(-1, count)
            result[part] = np.exp(near, out=near) @ here

        in_threads(fill, range(0, rows, step))
        dense = np.ascontiguousarray(result.T).reshape(-1, rows, columns)
        dense += np.float32(kernel.everywhere) * weighted.sum(0)[:, None, None]
        if cosine is not None:
            dense += upsampled(anywhere, down, across)
        return dense


def _at(axis: Axis, index: Integers | slice) -> Axis:
    return Axis(axis.low[index], axis.high[index], axis.weight[index])


def _features_at(grid: Grid, rows: Axis, columns: Axis) -> Floats:
    """Interpolate features at N points: (D, N) float32."""
    embedding = grid.embedding
    top = embedding[:, rows.low, columns.low] * (1 - columns.weight) + embedding[:, rows.low, columns.high] * columns.weight
    bottom = embedding[:, rows.high, columns.low] * (1 - columns.weight) + embedding[:, rows.high, columns.high] * columns.weight
    return np.asarray(top * (1 - rows.weight) + bottom * rows.weight, np.float32)


def between(values: Floats, axis: Axis, along: int) -> Floats:
    """Interpolate linearly along one axis."""
    weight = axis.weight.reshape(-1, *(1,) * (values.ndim - 1 - along))
    low, high = values.take(axis.low, along), values.take(axis.high, along)
    high -= low
    high *= weight
    low += high
    return low
