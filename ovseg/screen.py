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

from functools import cache, lru_cache
from typing import Any

import numpy as np
from numpy.lib.stride_tricks import sliding_window_view
from numpy.typing import NDArray

from ovseg.onnx_writer import write_graph

FEWEST = 512
"""Names from which on it pays."""
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

    def names(self, features: Floats, columns: int, norm: float) -> Indices:
        """Find the names that can be the best somewhere between some cells.

        Args:
            features: (D, rows * columns) float32.
            columns: Cells in a row.
            norm: At least the L2 norm of the features of each cell.

        Returns:
            Indices of names, increasing; perhaps more than can win, never fewer.
        """
        counts, step = self._product.run(None, {"features": features})
        step = float(step)
        size = np.sqrt(len(features))
        off = step / 2 * self._one_norm + (norm + step / 2 * size) * self._off + size * norm * self._norm * np.finfo(np.float32).eps
        least = _needed(counts, columns) - np.int32(np.ceil(_SLACK * 2 * off / (step * self._step)))
        return np.flatnonzero((counts >= least[:, None]).any(0))


def neighbours(cells: int, columns: int) -> Indices:
    """Return the four corners of each cell of a grid, (4, cells); the last row and column are their own neighbours."""
    here = np.arange(cells)
    right = here + (here % columns < columns - 1)
    below = np.where(here + columns < cells, here + columns, here)
    return np.stack([here, right, below, below + (right - here)])


@lru_cache(maxsize=4)  # the strips of an image have two sizes
def _around(cells: int, columns: int) -> Indices:
    """Return for each cell of a grid its eight neighbours and itself, row by row: (9, cells); beyond the rim is the rim."""
    padded = np.pad(np.arange(cells).reshape(-1, columns), 1, mode="edge")
    around = sliding_window_view(padded, (cells // columns, columns)).reshape(9, cells)
    around.flags.writeable = False
    return around


def _needed(counts: NDArray[np.int32], columns: int) -> NDArray[np.int32]:
    """Find for each corner, (M,), the least mean of the best names of all corners in the cells of the grid that it belongs to."""
    place = counts.argmax(1)[_around(len(counts), columns)]  # the best of its neighbours and its own
    place += np.arange(0, counts.size, counts.shape[1])
    values = counts.ravel().take(place).reshape(3, 3, -1)
    values = values[:2] + values[1:]
    values = values[:, :2] + values[:, 1:]
    return np.asarray(values.reshape(4, -1).min(0) // 4)


@cache
def _text_levels() -> int:
    """Return how large the integers of embeddings may be: processors without VNNI saturate the sum of two products of 8 bits."""
    features, text = np.ones((64, 32), np.float32), np.full((32, 64), 127, np.int8)
    products = _integer_product(text).run(None, {"features": features})[0]
    return 127 if (products == 64 * 255 * 127).all() else 63


def _integer_product(text: NDArray[np.int8]) -> Any:
    """Make a session that maps `features` (D, M) float32 to the (M, N) int32 products of their levels with (N, D) int8, and their step."""
    import onnxruntime

    model = write_graph(
        [
            ("DynamicQuantizeLinear", ["features"], ["levels", "step", "zero"]),  # 256 steps from the least to the greatest number
            ("Transpose", ["levels"], ["cells"]),
            ("MatMulInteger", ["cells", "text", "zero"], ["products"]),
        ],
        {"text": np.ascontiguousarray(text.T)},
        {"features": (np.float32, 2)},
        {"products": (np.int32, 2), "step": (np.float32, 0)},
    )
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    options.intra_op_num_threads = 1  # the parts of an image are done in threads
    return onnxruntime.InferenceSession(model, options, providers=["CPUExecutionProvider"])
