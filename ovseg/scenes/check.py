"""How far tiles agree with the whole, whether they leave seams, and what a shift of the image does."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ovseg.errors import InvalidArgumentError
from ovseg.features import ImageFeatures
from ovseg.image import ImageInput, load_image
from ovseg.scenes.layout import Layout
from ovseg.scenes.looks import FeatureLook, Words
from ovseg.scenes.pixels import Pixels
from ovseg.scenes.plan import plan
from ovseg.scenes.rows import Rows
from ovseg.scenes.sources import array_raster
from ovseg.segmenter import Segmenter
from ovseg.tiling import Floats
from ovseg.vocabulary import Labels

SHIFTS = (1, 3, 8, 17)
"""Pixels by which an image is shifted, down and to the right."""


@dataclass(frozen=True)
class Agreement:
    """How well tiles do on one image.

    Attributes:
        labels: Part of all pixels, in [0, 1], that get the same label by tiles and from the whole image.
        cosine: Mean cosine between the features by tiles and those of the whole.
        seams: Mean change of features across the borders of tiles, over the mean change between neighbouring cells elsewhere: 1 without
            seams.
        even_seams: The same if all tiles that see a cell counted the same there.
        shifted_whole: Part of pixels that keep their label when the image is shifted, mean over `SHIFTS`; seen whole.
        shifted_tiles: The same by tiles.
        tiles: Number of tiles.
    """

    labels: float
    cosine: float
    seams: float
    even_seams: float
    shifted_whole: float
    shifted_tiles: float
    tiles: int

    def format_table(self) -> str:
        """Say it in words."""
        return "\n".join(
            (
                f"tiles                                     {self.tiles}",
                f"same label by tiles and as a whole        {self.labels:.1%}",
                f"mean cosine of their features             {self.cosine:.4f}",
                f"change across borders of tiles, relative  {self.seams:.3f}",
                f"  if all tiles weighed the same           {self.even_seams:.3f}",
                f"same label after a shift, whole           {self.shifted_whole:.1%}",
                f"same label after a shift, by tiles        {self.shifted_tiles:.1%}",
            )
        )


def check_tiles(
    segmenter: Segmenter, image: ImageInput, labels: Labels, *, scale: float = 1.0, tile: int | None = None, overlap: int | None = None
) -> Agreement:
    """Measure on one image how well tiles do.

    Args:
        segmenter: A model with features.
        image: As for `segment`; small enough to be seen whole, and larger than a tile.
        labels: As for `segment`.
        scale: As for `segment_scene`, as are `tile` and `overlap`.
        tile: See there.
        overlap: See there.

    Raises:
        InvalidArgumentError: If the image is no larger than a tile.
    """
    pixels, words = load_image(image), Words(labels, None, None, None, None)
    layout = plan(segmenter, (pixels.shape[0], pixels.shape[1]), scale, tile, overlap)
    whole_layout = _as_one(layout)
    if layout.tile_cells == layout.cells:
        raise InvalidArgumentError(f"The image of {pixels.shape[1]} x {pixels.shape[0]} pixels fits into one tile. Give a smaller tile.")
    tiled, whole = _features(segmenter, pixels, layout), _features(segmenter, pixels, whole_layout)
    by_tiles, as_one = (_labels(segmenter, one, words) for one in (tiled, whole))
    even = _features(segmenter, pixels, Layout(layout.size, layout.cell, layout.unit, layout.tile, layout.step, even=True))
    return Agreement(
        labels=float((by_tiles == as_one).mean()),
        cosine=float((tiled.embedding * whole.embedding).sum(0).mean()),
        seams=seam_ratio(tiled.embedding, layout),
        even_seams=seam_ratio(even.embedding, layout),
        shifted_whole=_shifted(segmenter, pixels, words, whole_layout),
        shifted_tiles=_shifted(segmenter, pixels, words, layout),
        tiles=len(layout.tops) * len(layout.lefts),
    )


def seam_ratio(embedding: Floats, layout: Layout) -> float:
    """Compare the change of features across the borders of tiles with that between all other neighbouring cells.

    Args:
        embedding: (D, h, w) float32 features.
        layout: Where the tiles lie.

    Returns:
        The mean distance across borders over the mean distance elsewhere; 1 without seams.
    """
    across, elsewhere = [], []
    for axis, starts in ((1, layout.tops), (2, layout.lefts)):
        side = layout.tile_cells[axis - 1]
        change = np.linalg.norm(np.diff(embedding, axis=axis), axis=0).mean(2 - axis)  # for each line between cells
        at = [start - 1 for start in starts if start > 0]
        at += [start + side - 1 for start in starts if start + side - 1 < len(change)]
        border = np.zeros(len(change), bool)
        border[at] = True
        across.append(change[border])
        elsewhere.append(change[~border])
    return float(np.concatenate(across).mean() / np.concatenate(elsewhere).mean())


def _as_one(layout: Layout) -> Layout:
    side = max(layout.cells)
    return Layout(layout.size, layout.cell, layout.unit, side, side)


def _features(segmenter: Segmenter, pixels: NDArray[np.uint8], layout: Layout) -> ImageFeatures:
    from ovseg.scenes.blend import blended

    reader, card = Pixels(array_raster(pixels)), segmenter.card
    rows = Rows(reader, layout, slice(0, layout.cells[1]), card.stride, card.preprocess.get("resample", "bilinear"))
    rows.need(0, layout.cells[0])
    look = FeatureLook(segmenter, layout, Words("", None, None, None, None), "")
    whole = slice(0, layout.cells[1])
    strips = [
        strip.embedding[:, strip.rows.start - strip.top : strip.rows.stop - strip.top].copy()
        for strip in blended(layout, whole, 1, lambda i, columns: look.encode(rows, i, columns), card.embed_dim)
    ]
    mark = segmenter.encode_image(np.zeros((layout.unit * card.stride,) * 2 + (3,), np.uint8), size="native", window="whole").model
    extent = pixels.shape[0] / layout.cell, pixels.shape[1] / layout.cell
    return ImageFeatures(np.concatenate(strips, axis=1), (pixels.shape[0], pixels.shape[1]), extent, mark)


def _labels(segmenter: Segmenter, features: ImageFeatures, words: Words) -> NDArray[Any]:
    found: NDArray[Any] = words.ask(segmenter, features).segmentation
    return found


def _shifted(segmenter: Segmenter, pixels: NDArray[np.uint8], words: Words, layout: Layout) -> float:
    """Compare the labels of two crops of one size, one a few pixels below and to the right of the other, where both see."""
    same = []
    room = max(SHIFTS)
    size = pixels.shape[0] - room, pixels.shape[1] - room
    if min(size) < 1:
        raise InvalidArgumentError(f"An image must have more than {room} rows and columns to be shifted; got {pixels.shape[:2]}.")
    own = Layout(size, layout.cell, layout.unit, layout.tile, layout.step, layout.even)
    still = _labels(segmenter, _features(segmenter, pixels[: size[0], : size[1]], own), words)
    for shift in SHIFTS:
        moved = _labels(segmenter, _features(segmenter, pixels[shift : size[0] + shift, shift : size[1] + shift], own), words)
        same.append(float((still[shift:, shift:] == moved[:-shift, :-shift]).mean()))
    return float(np.mean(same))
