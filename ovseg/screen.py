"""Which of many names can be the best somewhere in a part of an image: products of small integers, with bounds of what they are off.

Let f be the features of a cell and t the embedding of a name, both rounded to multiples of a step: f = s f' + e, t = u t' + g. Then

    | <f, t> - s u <f', t'> | = | <e, t> + <s f', g> | <= s / 2 |t|_1 + |s f'| |g|

(Hölder and Cauchy-Schwarz). At the four corners of a cell some names are the best. A name that is more than twice that below the mean of
these four at each corner cannot win in the cell, however it is interpolated: one of the four is above the mean.

What all embeddings have in common is taken out first: it changes no comparison, and the less is left, the smaller the steps. Of a thousand
words, two to a few hundred are left for a strip of an image, and only for these the product is made with real numbers. Integers of 8 bits
are multiplied four to ten times as fast where the processor has VNNI or AMX.
"""

from __future__ import annotations

from functools import cache
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ovseg.onnx_writer import write_graph

FEWEST = 512
"""Names from which on it pays."""
_LEVELS = 127  # of a number, up or down
_ZERO = 128
_SLACK = 1.001  # for what the bounds themselves are rounded by

Floats = NDArray[np.float32]
Indices = NDArray[np.intp]


class Screen:
    """Looks for the names that can win.

    Args:
        text: (N, D) float32 embeddings of the names.
    """

    def __init__(self, text: Floats) -> None:
        text = text - text.mean(0)  # the same is taken from all names' products
        self._step = float(np.abs(text).max()) / _text_levels() or 1.0
        rounded = np.rint(text * np.float32(1 / self._step))
        self._one_norm = float(np.abs(text).sum(1).max())
        self._norm = float(np.linalg.norm(text, axis=1).max())
        self._off = float(np.linalg.norm(text - rounded * np.float32(self._step), axis=1).max())
        self._product = _integer_product(rounded.astype(np.int8))

    def names(self, features: Floats, columns: int) -> Indices:
        """Find the names that can be the best somewhere between some cells.

        Args:
            features: (D, rows * columns) float32.
            columns: Cells in a row.

        Returns:
            Indices of names, increasing; perhaps more than can win, never fewer.
        """
        step = max(float(features.max()), -float(features.min())) / _LEVELS or 1.0
        counts: NDArray[np.int32] = self._product.run(None, {"features": features, "step": np.array(step, np.float32)})[0]
        length = float(np.sqrt(np.einsum("dc,dc->c", features, features).max()))
        size = np.sqrt(len(features))
        off = step / 2 * self._one_norm + (length + step / 2 * size) * self._off + size * length * self._norm * np.finfo(np.float32).eps
        margin = np.int32(np.ceil(_SLACK * 2 * off / (step * self._step)))

        best = counts.argmax(1)
        corners = neighbours(len(best), columns)
        means = [(sum(counts[corner, best[other]] for other in corners) // 4).reshape(-1, columns) for corner in corners]
        needed = means[0]  # the least in the four cells that a corner belongs to
        needed[:, 1:] = np.minimum(needed[:, 1:], means[1][:, :-1])
        needed[1:] = np.minimum(needed[1:], means[2][:-1])
        needed[1:, 1:] = np.minimum(needed[1:, 1:], means[3][:-1, :-1])
        return np.flatnonzero((counts >= needed.reshape(-1, 1) - margin).any(0))


def neighbours(cells: int, columns: int) -> tuple[Indices, Indices, Indices, Indices]:
    """Return the four corners of each cell of a grid; the last row and column are their own neighbours."""
    here = np.arange(cells)
    right = here + (here % columns < columns - 1)
    below = np.where(here + columns < cells, here + columns, here)
    return here, right, below, below + (right - here)


@cache
def _text_levels() -> int:
    """Return how large the integers of embeddings may be: processors without VNNI saturate the sum of two products of 8 bits."""
    features, text = np.ones((64, 32), np.float32), np.full((32, 64), 127, np.int8)
    products = _integer_product(text).run(None, {"features": features, "step": np.array(1 / 127, np.float32)})[0]
    return 127 if (products == 64 * 127 * 127).all() else 63


def _integer_product(text: NDArray[np.int8]) -> Any:
    """Make a session that maps `features` (D, M) float32 and their `step` to their (M, N) int32 products with (N, D) int8."""
    import onnxruntime

    model = write_graph(
        [
            ("QuantizeLinear", ["features", "step", "zero"], "levels"),
            ("Transpose", ["levels"], "cells"),
            ("MatMulInteger", ["cells", "text", "zero"], "products"),
        ],
        {"zero": np.array(_ZERO, np.uint8), "text": np.ascontiguousarray(text.T)},
        {"features": (np.float32, 2), "step": (np.float32, 0)},
        {"products": (np.int32, 2)},
    )
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    options.intra_op_num_threads = 1  # the parts of an image are done in threads
    return onnxruntime.InferenceSession(model, options, providers=["CPUExecutionProvider"])
