"""Choose how a model's tiles lie over a scene."""

from __future__ import annotations

import numpy as np

from ovseg.errors import InvalidArgumentError
from ovseg.scenes.layout import Layout
from ovseg.segmenter import Segmenter

TILE, OVERLAP = 512, 128
"""Side and least overlap of tiles where the model has no windows of its own, as the network sees them [px]."""


def plan(segmenter: Segmenter, size: tuple[int, int], scale: float, tile: int | None, overlap: int | None) -> Layout:
    """Lay tiles over a scene.

    Args:
        segmenter: The model.
        size: (H, W) of the scene [px].
        scale: Pixels of the network for a pixel of the scene; rounded so that a cell of features is a whole number of pixels.
        tile: Side of a tile as the network sees it [px]; None for the model's own.
        overlap: Least overlap of neighbours [px]; None for the model's own.

    Raises:
        InvalidArgumentError: If these do not fit the model.
    """
    card = segmenter.card
    multiple, stride = int(card.preprocess.get("multiple", 32)), card.stride
    _check(scale, stride, tile, overlap)
    window = card.window
    unit = multiple // stride if multiple % stride == 0 else multiple
    side = tile if tile is not None else window["size"] if window else TILE
    tall = max(1, round(side / multiple)) * multiple
    if overlap is not None:
        _check_overlap(overlap, tall)
        apart = tall - overlap
    else:
        apart = window["stride"] if window and tile is None else tall - min(OVERLAP, tall // 4)
    apart = max(1, apart // multiple) * multiple
    even = bool(window) and tile is None
    return Layout(size, max(1, round(stride / scale)), unit, tall // stride, apart // stride, even)


def plan_middles(segmenter: Segmenter, size: tuple[int, int], scale: float, tile: int | None, overlap: int | None) -> Layout:
    """Lay tiles over a scene for a model that has no features; cells are pixels of the scene. As `plan`.

    A tile is by itself the square that such a model sees, or 512 pixels.
    """
    _check(scale, 4, tile, overlap)
    side = tile or segmenter.card.preprocess.get("square") or TILE
    shared = min(OVERLAP, side // 4) if overlap is None else overlap
    _check_overlap(shared, side)
    own = max(1, round(side / scale))
    return Layout(size, 1, 1, own, max(1, own - round(shared / scale)))


def _check(scale: float, most: int, tile: int | None, overlap: int | None) -> None:
    if isinstance(scale, bool) or not isinstance(scale, (int, float)) or not 0 < scale <= most:
        raise InvalidArgumentError(f"scale must be a number above 0 and at most {most} for this model; got {scale!r}.")
    for name, value, least in (("tile", tile, 1), ("overlap", overlap, 0)):
        if value is not None and (isinstance(value, bool) or not isinstance(value, (int, np.integer)) or value < least):
            raise InvalidArgumentError(f"{name} must be a number of pixels, at least {least}, or None; got {value!r}.")


def _check_overlap(overlap: int, side: int) -> None:
    if overlap >= side:
        raise InvalidArgumentError(f"overlap must be less than the side of a tile, {side}; got {overlap}.")
