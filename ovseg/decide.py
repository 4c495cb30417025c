"""From scores to answers: which label a pixel gets, which stay undecided, and how sure that is.

Scores come as strips, `(rows, (K + B, R, W) float32)`: an image's rows from top to bottom, and on them the score of each of K labels and
then of each of B background words. What is decided, pixel by pixel, in this order:

1. The best of all K + B wins; of equals the first.
2. A label that has priority over the winner takes its place if it scores at least `ratio` times as much; of several the best. Again
   for the new winner, until nobody has priority.
3. The pixel is undecided if a background word won, if the winner scores less than its threshold, or if the winner is less than `margin`
   ahead of the best rival. Labels that the winner has priority over are no rivals.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from graphlib import TopologicalSorter
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ovseg.errors import InvalidArgumentError

Floats = NDArray[np.float32]
Indices = NDArray[np.intp]
Strips = Iterable[tuple[slice, Floats]]

STRIP_BYTES = 64 << 20
"""Size of a strip that is cut from scores that lie in memory."""


@dataclass(frozen=True)
class Priority:
    """One label goes before another where both are near each other.

    Attributes:
        winner: Index of the label that goes first.
        loser: Index of the label that stands back.
        ratio: The winner takes the pixel of the loser if it scores at least this part of the loser's score; in (0, 1].
    """

    winner: int
    loser: int
    ratio: float


@dataclass(frozen=True)
class Rules:
    """What is asked of a label to be the answer.

    Attributes:
        count: K, how many of the rows are labels; the others are background words.
        thresholds: (K,) float32 least score of each label, or None.
        margin: Least distance of the best score from the second; 0 asks for none.
        priorities: Without a circle; see `in_order`.
    """

    count: int
    thresholds: Floats | None = None
    margin: float = 0
    priorities: tuple[Priority, ...] = ()

    @property
    def plain(self) -> bool:
        """Whether the best row always wins."""
        return self.thresholds is None and self.margin == 0 and not self.priorities

    @property
    def index_type(self) -> tuple[type[np.uint8] | type[np.uint16], int]:
        """Type of a label map, and the index of undecided pixels."""
        return (np.uint8, 255) if self.count <= 255 else (np.uint16, 65535)


@dataclass(frozen=True)
class Decision:
    """What was decided about an image.

    Attributes:
        segmentation: (H, W) uint8 or uint16 indices of labels.
        ignore_index: Stands for undecided pixels.
        scores: (K, H, W) float32, or None.
        confidence: (H, W) float32, the score of the label that a pixel got, or where it is undecided of its best label; or None.
        entropy: (H, W) float32 in [0, 1], entropy of the scores of labels and background words over its greatest value; or None.
    """

    segmentation: NDArray[np.unsignedinteger[Any]]
    ignore_index: int
    scores: Floats | None = field(default=None, repr=False)
    confidence: Floats | None = field(default=None, repr=False)
    entropy: Floats | None = field(default=None, repr=False)


def in_order(priorities: Sequence[Priority]) -> tuple[Priority, ...]:
    """Sort priorities, among which there is no circle, so that nobody stands back after having gone first."""
    under: dict[int, set[int]] = {}
    for priority in priorities:
        under.setdefault(priority.winner, set()).add(priority.loser)
    place = {label: number for number, label in enumerate(TopologicalSorter(under).static_order())}
    return tuple(sorted(priorities, key=lambda priority: place[priority.loser]))


def from_map(best: NDArray[np.unsignedinteger[Any]], rules: Rules) -> Decision:
    """Turn the best row of every pixel, (H, W), into a decision where the rules are plain."""
    kind, ignore_index = rules.index_type
    return Decision(np.where(best >= rules.count, ignore_index, best).astype(kind), ignore_index)


def decide(strips: Strips, size: tuple[int, int], rules: Rules, *, scores: bool = False, confidence: bool = False) -> Decision:
    """Decide about every pixel of an image.

    Args:
        strips: Scores, in [0, 1]; together they cover the image.
        size: (H, W) of the image [px].
        rules: See the head of this module.
        scores: Whether to keep the labels' scores.
        confidence: Whether to keep confidence and entropy.
    """
    kind, ignore_index = rules.index_type
    result = np.empty(size, kind)
    kept = room_for_scores(rules.count, size) if scores else None
    sure, unsure = (np.empty(size, np.float32), np.empty(size, np.float32)) if confidence else (None, None)
    groups, ahead = _by_loser(rules.priorities), _losers(rules.priorities)
    for rows, part in strips:
        best = part.argmax(0)
        for loser, above in groups:
            _give_way(part, best, loser, above)
        undecided = best >= rules.count
        value = np.take_along_axis(part, best[None], 0)[0]
        if rules.thresholds is not None:
            undecided |= value < np.append(rules.thresholds, np.float32(0))[np.minimum(best, rules.count)]
        if rules.margin > 0:
            undecided |= value - _second(part, best, ahead) < np.float32(rules.margin)
        result[rows] = np.where(undecided, ignore_index, best)
        if kept is not None:
            kept[:, rows] = part[: rules.count]
        if sure is not None and unsure is not None:
            sure[rows] = np.where(undecided, part[: rules.count].max(0), value)
            unsure[rows] = normalised_entropy(part)
    return Decision(result, ignore_index, kept, sure, unsure)


def _by_loser(priorities: Sequence[Priority]) -> list[tuple[int, list[Priority]]]:
    """Group sorted priorities by the label that stands back."""
    groups: dict[int, list[Priority]] = {}
    for priority in priorities:
        groups.setdefault(priority.loser, []).append(priority)
    return list(groups.items())


def _give_way(part: Floats, best: Indices, loser: int, above: list[Priority]) -> None:
    """Let the pixels of one label go to the best of those that have priority and score enough; `best` changes in place."""
    here = best == loser
    if not here.any():
        return
    winners = np.array([priority.winner for priority in above])
    ratios = np.array([priority.ratio for priority in above], np.float32)
    scores = part[winners][:, here]
    able = np.where(scores >= ratios[:, None] * part[loser][here], scores, -1)
    choice = able.argmax(0)
    best[here] = np.where(able.max(0) >= 0, winners[choice], loser)


def _losers(priorities: Sequence[Priority]) -> dict[int, list[int]]:
    """List for each label all those it has priority over, also by way of others."""
    under: dict[int, set[int]] = {}
    for priority in priorities:  # losers come before winners, so what is under the loser is known
        under.setdefault(priority.winner, set()).update({priority.loser}, under.get(priority.loser, ()))
    return {winner: sorted(losers) for winner, losers in under.items()}


def _second(part: Floats, best: Indices, ahead: dict[int, list[int]]) -> Floats:
    """Find the best rival's score at each pixel: (R, W); 0 where there is none."""
    rivals = part.copy()
    np.put_along_axis(rivals, best[None], -1, 0)
    for winner, losers in ahead.items():
        here = best == winner
        if here.any():
            for loser in losers:
                rivals[loser][here] = -1
    second: Floats = np.maximum(rivals.max(0), 0)
    return second


def normalised_entropy(scores: Floats) -> Floats:
    """Compute -sum p ln p / ln N along the first axis, with p the scores over their sum.

    Args:
        scores: (N, ...) float32, not negative.

    Returns:
        (...) float32 in [0, 1]: 0 where all but one are 0, 1 where all are equal or all are 0; 0 for N = 1.
    """
    if len(scores) == 1:
        return np.zeros(scores.shape[1:], np.float32)
    total = scores.sum(0)
    share = scores / np.where(total > 0, total, 1)
    entropy = -(share * np.log(np.maximum(share, np.finfo(np.float32).tiny))).sum(0) / np.float32(math.log(len(scores)))
    result: Floats = np.clip(np.where(total > 0, entropy, 1), 0, 1).astype(np.float32)
    return result


def summed(strips: Strips, members: Indices) -> Iterator[tuple[slice, Floats]]:
    """Add up the scores of rows that belong together.

    Args:
        strips: With N rows.
        members: (N,) the row that each goes into.

    Yields:
        Strips with max(members) + 1 rows.
    """
    count = int(members.max()) + 1
    order = np.argsort(members, kind="stable")
    starts = np.searchsorted(members[order], np.arange(count))
    for rows, part in strips:
        yield rows, np.minimum(np.add.reduceat(part[order], starts, axis=0), np.float32(1))  # sums of floats may pass 1


def total_scores(strips: Strips) -> NDArray[np.float64]:
    """Add up the scores of each row over the image: (N,) float64."""
    parts = [part.sum((1, 2), dtype=np.float64) for _, part in strips]
    total: NDArray[np.float64] = np.sum(parts, axis=0)
    return total


def gather(strips: Strips, count: int, size: tuple[int, int]) -> Floats:
    """Put strips together: (count, H, W) float32, all of it in memory.

    Raises:
        InvalidArgumentError: If there is not that much memory.
    """
    dense = room_for_scores(count, size)
    for rows, part in strips:
        dense[:, rows] = part
    return dense


def cut(scores: Floats) -> Iterator[tuple[slice, Floats]]:
    """Yield (N, H, W) scores strip by strip, as views."""
    count, height, width = scores.shape
    step = max(1, STRIP_BYTES // (4 * count * width))
    for top in range(0, height, step):
        rows = slice(top, min(top + step, height))
        yield rows, scores[:, rows]


def room_for_scores(count: int, size: tuple[int, int]) -> Floats:
    """Make an empty array (count, H, W), or say how much it would have taken."""
    try:
        return np.empty((count, *size), np.float32)
    except MemoryError as error:
        raise InvalidArgumentError(
            f"The scores of {count} labels at {size[1]} x {size[0]} pixels take {4 * count * size[0] * size[1] / 2**30:.1f} GiB, "
            "more than there is. Ask for fewer labels, leave out scores=True, or reduce the image."
        ) from error
