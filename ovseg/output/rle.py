"""COCO run-length encoding of masks, byte for byte as pycocotools writes it.

A mask is read column by column. `counts` are the lengths of its runs, alternately outside and
inside the mask, beginning outside (so with 0 when the first pixel is inside). The compressed form
stores the first three counts as they are and every later one as the difference to the count two
before, each as signed groups of 5 bits, lowest first, in one printable character (48 + group,
+ 32 when more groups follow).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from ovseg.errors import InvalidArgumentError
from ovseg.output import LabelMap


class LabelRuns(NamedTuple):
    """Where one label is, in column-major order.

    Attributes:
        starts: (N,) int64 first pixel of each run, as column * H + row; increasing.
        ends: (N,) int64 pixel after each run.
        size: (height, width) of the map.
    """

    starts: NDArray[np.int64]
    ends: NDArray[np.int64]
    size: tuple[int, int]

    def area(self) -> int:
        """Count the pixels."""
        return int((self.ends - self.starts).sum())

    def box(self) -> tuple[int, int, int, int]:
        """Return the bounding box (x, y, width, height); all 0 without pixels."""
        if not len(self.starts):
            return (0, 0, 0, 0)
        height = self.size[0]
        left, right = int(self.starts[0]) // height, int(self.ends[-1] - 1) // height + 1
        wraps = self.starts // height != (self.ends - 1) // height  # goes on in the next column
        top = int(np.where(wraps, 0, self.starts % height).min())
        bottom = int(np.where(wraps, height, (self.ends - 1) % height + 1).max())
        return (left, top, right - left, bottom - top)

    def to_rle(self) -> dict[str, Any]:
        """Return the COCO form: `size` [height, width] and compressed `counts` (str)."""
        edges = np.stack([self.starts, self.ends], axis=1).ravel()
        total = self.size[0] * self.size[1]
        counts = np.diff(np.concatenate([[0], edges, [total]]))
        if counts[-1] == 0 and len(counts) > 1:
            counts = counts[:-1]
        return {"size": [self.size[0], self.size[1]], "counts": _compress(counts)}


def find_runs(segmentation: LabelMap, num_labels: int) -> list[LabelRuns]:
    """Find the runs of every label in one pass.

    Args:
        segmentation: (H, W) uint8 or uint16 index map; values from `num_labels` on are no label.
        num_labels: K.

    Returns:
        K `LabelRuns`, in the order of the labels.
    """
    height, width = segmentation.shape
    flat = segmentation.T.ravel()
    edges = np.flatnonzero(flat[1:] != flat[:-1]) + 1
    starts = np.concatenate([[0], edges])
    ends = np.concatenate([edges, [flat.size]])
    values = flat[starts]
    order = np.argsort(values, kind="stable")
    bounds = np.searchsorted(values[order], np.arange(num_labels + 1))
    return [
        LabelRuns(starts[order[low:high]], ends[order[low:high]], (height, width))
        for low, high in zip(bounds[:-1].tolist(), bounds[1:].tolist(), strict=True)
    ]


def encode_rle(mask: NDArray[np.bool_]) -> dict[str, Any]:
    """Encode one mask.

    Args:
        mask: (H, W) bool.

    Returns:
        `{"size": [H, W], "counts": str}`.
    """
    return find_runs(mask.astype(np.uint8), 2)[1].to_rle()


def decode_rle(rle: Mapping[str, Any]) -> NDArray[np.bool_]:
    """Decode one mask.

    Args:
        rle: `size` [height, width] and `counts`: compressed (str or ASCII bytes) or a list of
            run lengths.

    Returns:
        (H, W) bool mask.

    Raises:
        InvalidArgumentError: If the runs do not add up to the size.
    """
    try:
        height, width = (int(side) for side in rle["size"])
        compressed = rle["counts"]
        if isinstance(compressed, bytes):
            compressed = compressed.decode("ascii")
        counts = _decompress(compressed) if isinstance(compressed, str) else _as_counts(compressed)
    except (KeyError, TypeError, ValueError, OverflowError) as error:
        raise InvalidArgumentError(
            f"A run-length encoded mask must have size [height, width] and counts; got {rle!r:.200}"
        ) from error
    in_range = counts.min(initial=0) >= 0 and counts.max(initial=0) <= height * width
    if height < 0 or width < 0 or not in_range or counts.sum() != height * width:
        raise InvalidArgumentError(
            f"The runs of a mask must add up to its size, {height} x {width} = {height * width} "
            f"pixels; they add up to {int(counts.sum())}."
        )
    flat = np.repeat(np.arange(len(counts)) % 2 == 1, counts)
    return np.ascontiguousarray(flat.reshape(width, height).T)


def _as_counts(counts: Sequence[int]) -> NDArray[np.int64]:
    array = np.asarray(counts, np.int64)
    if array.ndim != 1:
        raise ValueError("counts must be flat")
    return array


def _compress(counts: NDArray[np.int64]) -> str:
    values = counts.copy()
    values[3:] -= counts[1:-2]
    characters = []
    used = []
    more = np.ones(len(values), bool)
    while more.any():
        used.append(more)
        group = values & 0x1F
        values = values >> 5
        # Done when the rest is only the sign, and the sign is what the top bit of the group says.
        more_after = more & (values != np.where(group & 0x10, -1, 0))
        characters.append(group + 48 + np.where(more_after, 0x20, 0))
        more = more_after
    # One row per count, so that reading the used places row by row keeps the groups together.
    text: NDArray[np.int64] = np.stack(characters, axis=1)[np.stack(used, axis=1)]
    return bytes(text.astype(np.uint8)).decode("ascii")


def _decompress(text: str) -> NDArray[np.int64]:
    codes = np.frombuffer(text.encode("ascii"), np.uint8).astype(np.int64) - 48
    if not len(codes):
        return np.zeros(0, np.int64)
    if codes.min() < 0 or codes.max() > 0x3F or codes[-1] & 0x20:
        raise ValueError("not a compressed run-length string")
    last = np.flatnonzero(codes & 0x20 == 0)
    first = np.concatenate([[0], last[:-1] + 1])
    place = np.arange(len(codes)) - np.repeat(first, last - first + 1)
    if place.max() > 11:  # 60 bits: no image has such runs
        raise ValueError("a run is too long")
    values = np.add.reduceat((codes & 0x1F) << (5 * place), first)
    is_negative = codes[last] & 0x10 != 0
    values -= np.where(is_negative, np.left_shift(np.int64(1), 5 * (place[last] + 1)), 0)
    # Undo the differences: even and odd counts are two running sums, from counts 1 and 2 on.
    values[1::2] = np.cumsum(values[1::2])
    values[2::2] = np.cumsum(values[2::2])
    return values
