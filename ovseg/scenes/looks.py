"""How a model looks at the tiles of a scene, and how what it saw becomes labels."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ovseg.features import ImageFeatures
from ovseg.result import Segmentation
from ovseg.scenes.blend import Strip
from ovseg.scenes.layout import Layout
from ovseg.scenes.rows import Rows
from ovseg.segmenter import Segmenter
from ovseg.tiling import Floats
from ovseg.towers import BATCH
from ovseg.vocabulary import Labels, Templates

HALO = 8
"""Cells around a strip that its labels are computed with: 1 for interpolation, the others for a head that looks at its neighbours."""
PART_PIXELS = 1 << 22
"""Pixels that are labelled at a time, or one row of cells."""


@dataclass(frozen=True)
class Words:
    """What is asked of every part of a scene; see `Segmenter.segment`."""

    labels: Labels
    templates: Templates
    background: Labels | None
    threshold: float | None
    margin: float | None
    tags: Sequence[str] | None = None

    def ask(self, segmenter: Segmenter, image: ImageFeatures | NDArray[np.uint8], size: int | str | None = None) -> Segmentation:
        """Segment a part, or its features."""
        return segmenter.segment(
            image,
            self.labels,
            templates=self.templates,
            background=self.background,
            threshold=self.threshold,
            margin=self.margin,
            tags=self.tags,
            size=size,
        )


@dataclass(frozen=True)
class FeatureLook:
    """Looks at tiles and keeps their features, which are blended before they are asked.

    Attributes:
        segmenter: A model with features.
        layout: Where the tiles lie.
        words: What to ask.
        mark: The name that features of this model bear.
    """

    segmenter: Segmenter
    layout: Layout
    words: Words
    mark: str

    def encode(self, rows: Rows, i: int, columns: list[int]) -> Iterator[Floats | None]:
        """Compute the features of tiles in a row, (D, h, w) float32, or None where nothing in one has data."""
        (tall, wide), top, lefts = self.layout.tile_cells, self.layout.tops[i], self.layout.lefts
        at_once = 1 if self.segmenter.device.endswith(":cpu") else BATCH
        for start in range(0, len(columns), at_once):
            part = columns[start : start + at_once]
            images = [rows.tile(slice(top, top + tall), slice(lefts[j], lefts[j] + wide)) for j in part]
            seen = iter(self.segmenter.encode_image([image for image in images if image is not None], size="native", window="whole"))
            yield from (None if image is None else next(seen).embedding for image in images)

    def labels(self, strip: Strip) -> Iterator[tuple[slice, NDArray[np.unsignedinteger[Any]]]]:
        """Find the labels of a strip's pixels.

        Yields:
            Rows of cells and the labels of their pixels.
        """
        layout, x = self.layout, self.layout.pixels(1, strip.columns.start, strip.columns.stop)
        around = layout.pixels(1, strip.left, strip.left + strip.embedding.shape[2])
        width = around.stop - around.start
        step = max(1, PART_PIXELS // (layout.cell * width))
        for start in range(strip.rows.start, strip.rows.stop, step):
            stop = min(start + step, strip.rows.stop)
            y = layout.pixels(0, start, stop)
            if y.stop <= y.start:
                return
            top, bottom = max(strip.top, start - HALO), min(strip.top + strip.embedding.shape[1], stop + HALO)
            above = layout.pixels(0, top, bottom)
            height = above.stop - above.start
            features = ImageFeatures(
                strip.embedding[:, top - strip.top : bottom - strip.top],
                (height, width),
                (height / layout.cell, width / layout.cell),
                self.mark,
            )
            found = self.words.ask(self.segmenter, features).segmentation
            yield slice(start, stop), found[y.start - above.start : y.stop - above.start, x.start - around.start : x.stop - around.start]
