"""Edges: scores drawn to the edges of the image they are about.

A network's scores are smooth over its cells, and the edges of a label map lie where interpolation puts them. These methods know no words,
only colours: a pixel takes part in what those near it and of like colour are.

    "guided"  guided filter: in small windows, scores are a linear function of the colour
    "crf"     dense conditional random field, by mean field
    "pamr"    pixel-adaptive mask refinement: scores flow to neighbours of like colour

All work on an image that is shrunk to the fineness that the scores can have; the guided filter then brings the result to every pixel.
Time is linear in the pixels, memory is bounded by tiles, and only labels that matter in a tile are touched.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray

from ovseg.errors import InvalidArgumentError
from ovseg.refine.crf import Crf
from ovseg.refine.filters import Floats, shrink
from ovseg.refine.guided import Guided, applied
from ovseg.refine.pamr import Pamr
from ovseg.refine.tiles import labels_that_matter, tiles

METHODS: dict[str, Crf | Pamr | None] = {
    "guided": None,
    "crf": Crf(appearance=3, reach=60, colour=0.02, smoothness=0.5, near=1, iterations=3),
    "pamr": Pamr(dilations=(1, 2), iterations=5),
}
"""What comes before the guided filter; lengths are pixels of the shrunk image."""
GUIDED = Guided(radius=1, epsilon=1e-4)
"""The guided filter that enlarges."""

SHORT_SIDE = 120
"""Least short side of the shrunk image [px]."""
TILES = {"guided": (64, 8), "crf": (384, 48), "pamr": (64, 8)}
"""Side and overlap of tiles, on the shrunk image [px]: what reaches far needs large ones, in small ones fewer labels matter."""
RATIO = 0.5
"""A label matters in a tile where it has this part of the best score at one pixel at least."""
STRIP_PIXELS = 1 << 22
"""Scores that are enlarged together."""
MOST = 48
"""Labels of a tile that are refined at most."""


def refine(scores: Floats, image: NDArray[np.uint8], method: str | Crf | Pamr = "guided", *, step: int | None = None) -> Floats:
    """Draw scores to the edges of their image.

    At every pixel the sum of the scores stays what it is, and so do the scores of labels that matter nowhere near.

    Args:
        scores: (K, H, W) float32 in [0, 1]: of labels, and of background words if there are any; most often they sum to 1.
        image: (H, W, 3) uint8 RGB, the image they are about.
        method: "guided", "crf" or "pamr"; or settings of your own.
        step: Pixels of the image per pixel of the shrunk image that the method works on; None for one of about 120 pixels' short side.

    Returns:
        (K, H, W) float32, a new array.

    Raises:
        InvalidArgumentError: If there is no such method, or scores and image do not fit each other.
    """
    chosen = method if isinstance(method, Crf | Pamr) else METHODS[check_method(method)]
    _check(scores, image)
    if step is None:
        step = working_step(image.shape[:2])
    if isinstance(step, bool) or not isinstance(step, int) or step < 1:
        raise InvalidArgumentError(f"step must be a positive whole number of pixels, or None; got {step!r}.")
    result = scores.astype(np.float32)  # a copy
    side, overlap = TILES[method] if isinstance(method, str) else TILES["crf"]
    for rows, columns, weight in tiles(image.shape[:2], side * step, overlap * step):
        part, colours = scores[:, rows, columns], image[rows, columns]
        labels = labels_that_matter(part[:, ::step, ::step], RATIO, MOST)
        if len(labels) < 2:
            continue
        for strip, shares in _refined(part, labels, colours, chosen, step):
            before = part[labels, strip].astype(np.float32)
            shares *= before.sum(0)
            shares -= before
            shares *= weight[strip]
            result[labels, rows.start + strip.start : rows.start + strip.stop, columns] += shares
    return np.clip(result, 0, 1, out=result)


def check_method(method: object) -> str:
    """Return the name of a method, and refuse what is none.

    Raises:
        InvalidArgumentError: If it is none.
    """
    if not isinstance(method, str) or method not in METHODS:
        raise InvalidArgumentError(f"refine must be {', '.join(map(repr, METHODS))} or None; got {method!r}.")
    return method


def _check(scores: Floats, image: NDArray[np.uint8]) -> None:
    if not isinstance(image, np.ndarray) or image.dtype != np.uint8 or image.ndim != 3 or image.shape[2] != 3:
        raise InvalidArgumentError(f"image must be an array (H, W, 3) of uint8; got {_describe(image)}.")
    if not isinstance(scores, np.ndarray) or scores.dtype.kind != "f" or scores.ndim != 3 or scores.shape[1:] != image.shape[:2]:
        raise InvalidArgumentError(f"scores must be an array (K, {image.shape[0]}, {image.shape[1]}) of floats; got {_describe(scores)}.")
    if 0 in scores.shape:
        raise InvalidArgumentError(f"There must be at least one label and one pixel; got scores {scores.shape}.")
    low, high = float(scores.min()), float(scores.max())  # NaN fails both comparisons
    if not (low >= 0 and high <= 1 + 1e-5):
        raise InvalidArgumentError(f"scores must be in [0, 1]; they go from {low:g} to {high:g}.")


def _describe(value: object) -> str:
    return f"{value.shape} of {value.dtype}" if isinstance(value, np.ndarray) else type(value).__name__


def working_step(size: tuple[int, ...], cells: tuple[float, ...] | None = None) -> int:
    """Choose how far an image is shrunk.

    Args:
        size: (H, W) of the image [px].
        cells: How many cells (down, across) of a feature grid the image covers. Scores from more cells than are usual, such as of an image
            seen through windows, can be finer, and are not made coarser than they are.

    Returns:
        The side of the blocks that become a pixel [px]: the short side becomes about 120 pixels, or has a pixel for every cell.
    """
    return max(1, round(min(size) / max(SHORT_SIDE, min(cells or (0,)))))


def _refined(
    scores: Floats, labels: list[int], image: NDArray[np.uint8], method: Crf | Pamr | None, step: int
) -> Iterator[tuple[slice, Floats]]:
    """Refine the scores of some labels of a tile.

    Yields:
        Rows and the (labels, rows, W) float32 shares of the labels there, which sum to 1.
    """
    colours = shrink(image.transpose(2, 0, 1), step) / np.float32(255)
    small = _shares(np.stack([shrink(scores[k], step) for k in labels]))
    if method is not None:
        small = method(small, colours)
    done = method is not None and step == 1
    functions = None if done else GUIDED.functions(small, colours)
    height, width = image.shape[:2]
    tall = max(1, STRIP_PIXELS // (len(labels) * width))
    for top in range(0, height, tall):
        strip = slice(top, min(top + tall, height))
        fine = small[:, strip] if functions is None else np.maximum(applied(functions, image, step, strip), 0)
        yield strip, _shares(fine)


def _shares(scores: Floats) -> Floats:
    """Divide by the sum over the first axis; where it is 0, all are alike."""
    total = scores.sum(0)
    result = np.full_like(scores, 1 / len(scores))
    np.divide(scores, total, out=result, where=total > 0)
    return result
