"""Label a scene tile by tile: by blended features where a model has some, else each tile for its middle."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ovseg.scenes.blend import blended, swath_cells
from ovseg.scenes.context import Context
from ovseg.scenes.layout import Layout
from ovseg.scenes.looks import HALO, FeatureLook, Words
from ovseg.scenes.pixels import Pixels
from ovseg.scenes.rows import Rows
from ovseg.scenes.thumbnail import Thumbnail
from ovseg.segmenter import Segmenter
from ovseg.tiling import Floats

Part = tuple[slice, slice, NDArray[Any]]
"""Rows and columns of a scene, and the labels of their pixels."""


@dataclass(frozen=True)
class Job:
    """What is to be done.

    Attributes:
        segmenter: The model.
        words: What to ask.
        pixels: The scene.
        layout: Where the tiles lie.
        scale: Pixels of the network for a pixel of the scene.
        ignore_index: Number of pixels without data.
        thumbnail: Is given the scene's pixels as they pass by; or None.
    """

    segmenter: Segmenter
    words: Words
    pixels: Pixels
    layout: Layout
    scale: float
    ignore_index: int
    thumbnail: Thumbnail | None

    def rows(self, columns: slice, own: slice) -> Rows:
        """Read columns of cells; the pixels of `own` columns go to the thumbnail."""
        card = self.segmenter.card
        seen = None if self.thumbnail is None else self.thumbnail.window(own)
        stride = self.layout.cell if card.conditional else card.stride  # a conditional model is given the scene's own pixels
        return Rows(self.pixels, self.layout, columns, stride, card.preprocess.get("resample", "bilinear"), seen)

    def blank(self, rows: Rows, y: slice, x: slice, found: NDArray[Any]) -> NDArray[Any]:
        """Take labels from pixels of cells that have no data."""
        gaps = rows.gaps(y, x)
        return found if gaps is None else np.where(gaps, found.dtype.type(self.ignore_index), found)


def by_features(job: Job, mark: str, depth: int, memory: int, context: Context | None) -> tuple[int, Callable[[Any], Iterator[Part]]]:
    """Prepare to blend the features of tiles and to ask them.

    Args:
        job: What is to be done.
        mark: The name that features of this model bear.
        depth: Their dimensions.
        memory: Bytes of features that are held at a time.
        context: A look at the whole, or None.

    Returns:
        The number of tiles, and what labels the scene; it is given a progress bar.
    """
    layout = job.layout
    look = FeatureLook(job.segmenter, layout, job.words, mark)
    swaths = layout.swaths(swath_cells(layout, depth, HALO, memory))
    total = len(layout.tops) * sum(len(layout.columns_of(swath, HALO)) for swath in swaths)

    def parts(bar: Any) -> Iterator[Part]:
        for swath in swaths:
            own = layout.pixels(1, swath.start, swath.stop)
            rows = job.rows(layout.reach_of(swath, HALO), own)
            done = 0  # rows of cells that have their labels

            def encode(i: int, columns: list[int], rows: Rows = rows) -> Iterator[Floats | None]:
                rows.need(min(layout.tops[i], done), layout.tops[i] + layout.tile_cells[0])  # noqa: B023  # also those that wait
                for features in look.encode(rows, i, columns):
                    bar.update()
                    yield features

            for strip in blended(layout, swath, HALO, encode, depth, None if context is None else context.add):
                for part, found in look.labels(strip):
                    yield layout.pixels(0, part.start, part.stop), own, job.blank(rows, part, swath, found)
                done = strip.rows.stop

    return total, parts


def by_middles(job: Job) -> tuple[int, Callable[[Any], Iterator[Part]]]:
    """Prepare to let each tile speak for its middle; as for `by_features`, with a layout in pixels of the scene."""
    layout, segmenter = job.layout, job.segmenter
    square = segmenter.card.preprocess.get("square")
    tall, wide = layout.tile_cells
    down, across = _middles(layout.tops, tall, layout.size[0]), _middles(layout.lefts, wide, layout.size[1])

    def parts(bar: Any) -> Iterator[Part]:
        whole = slice(0, layout.size[1])
        rows = job.rows(whole, whole)
        for top, y in zip(layout.tops, down, strict=True):
            rows.need(top, top + tall)
            for left, x in zip(layout.lefts, across, strict=True):
                image = rows.tile(slice(top, top + tall), slice(left, left + wide))
                found = np.full((y.stop - y.start, x.stop - x.start), job.ignore_index, np.uint8 if job.ignore_index == 255 else np.uint16)
                if image is not None:
                    size = None if square else "native" if job.scale == 1 else round(min(image.shape[:2]) * job.scale)
                    labels = job.words.ask(segmenter, image, size).segmentation
                    found = labels[y.start - top : y.stop - top, x.start - left : x.stop - left]
                bar.update()
                yield y, x, job.blank(rows, y, x, found)

    return len(layout.tops) * len(layout.lefts), parts


def _middles(starts: list[int], side: int, length: int) -> list[slice]:
    """Cut an axis in the middle of each overlap."""
    edges = [0, *((before + side + start) // 2 for before, start in zip(starts, starts[1:], strict=False)), length]
    return [slice(a, b) for a, b in zip(edges, edges[1:], strict=False)]
