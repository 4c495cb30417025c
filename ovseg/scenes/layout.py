"""Where the tiles of a scene lie, and how much each counts.

All of it is counted in cells of the feature grid. A cell stands for a whole number of pixels of the scene, so that tiles, strips and
the scene as a whole agree on where its corners are.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

from ovseg.tiling import Floats, axis_weights, window_starts


@dataclass(frozen=True)
class Layout:
    """Tiles of a scene.

    Attributes:
        size: (H, W) of the scene [px].
        cell: Pixels of the scene for a cell, down and across.
        unit: Tiles begin at multiples of this [cells], and the grid is padded to a multiple of it.
        tile: Side of a tile [cells], a multiple of `unit`.
        step: Distance between tiles [cells], a multiple of `unit`.
        even: Whether all tiles that see a cell count the same there.
    """

    size: tuple[int, int]
    cell: int
    unit: int
    tile: int
    step: int
    even: bool = False

    @cached_property
    def cells(self) -> tuple[int, int]:
        """Height and width of the padded grid."""
        height, width = (-(-side // (self.cell * self.unit)) * self.unit for side in self.size)
        return height, width

    @cached_property
    def tile_cells(self) -> tuple[int, int]:
        """Height and width of a tile: less than `tile` where the scene is smaller."""
        return min(self.tile, self.cells[0]), min(self.tile, self.cells[1])

    @cached_property
    def tops(self) -> list[int]:
        """First row of each row of tiles."""
        return window_starts(self.cells[0], self.tile, self.step)

    @cached_property
    def lefts(self) -> list[int]:
        """First column of each column of tiles."""
        return window_starts(self.cells[1], self.tile, self.step)

    @cached_property
    def weights(self) -> tuple[Floats, Floats]:
        """How much each row, and each column, of tiles counts in each of its cells."""
        tall, wide = self.tile_cells
        return axis_weights(self.tops, tall, self.even), axis_weights(self.lefts, wide, self.even)

    def pixels(self, axis: int, first: int, stop: int) -> slice:
        """Return the pixels of the scene that cells stand for."""
        return slice(min(first * self.cell, self.size[axis]), min(stop * self.cell, self.size[axis]))

    def swaths(self, most: int) -> list[slice]:
        """Cut the columns of the grid into equal parts of at most `most` cells, but no narrower than a tile."""
        width = self.cells[1]
        count = min(-(-width // max(most, 1)), max(1, width // self.tile_cells[1]))
        edges = [round(i * width / count) for i in range(count + 1)]
        return [slice(a, b) for a, b in zip(edges, edges[1:], strict=False) if self.pixels(1, a, b).stop > self.pixels(1, a, b).start]

    def columns_of(self, swath: slice, halo: int) -> list[int]:
        """List the columns of tiles that see any cell of a swath, or of the halo around it."""
        left, right = max(0, swath.start - halo), min(self.cells[1], swath.stop + halo)
        return [j for j, start in enumerate(self.lefts) if start < right and start + self.tile_cells[1] > left]

    def reach_of(self, swath: slice, halo: int) -> slice:
        """Return the columns of cells that these tiles see."""
        tiles = self.columns_of(swath, halo)
        return slice(self.lefts[tiles[0]], self.lefts[tiles[-1]] + self.tile_cells[1])
