"""Corrections: what a person painted changes the scores wherever the image looks alike.

Kernel ridge regression on the residual. Let P be the scores that the words gave and Q the pixels that were painted (the seeds). At a
seed that is said to be y, the logarithm of its score has to rise by

    r_y(q) = max(0, max_{j != y} ln P_j(q) - ln P_y(q) + lead + doubt H(P(q)))

for y to be ahead of all others, by more where the words were in doubt (H is the entropy of P): there they should have less of a say
around the seed, too. No other label has to change. The corrected scores are

    ln S(p) = ln P(p) + k(p, Q) (K_QQ + E)^-1 r(Q) - ln Z(p),    E = diag(noise / weight_q),

where Z keeps the sum of the scores. The rise R is the minimiser of  sum_q weight_q / noise |R(q) - r(q)|^2 + |R|^2  in the Hilbert space
of the kernel (`ovseg.alike`): a squared partial loss on the seeds and smoothness over the image (Tikhonov regularisation; also the
posterior mean of a Gaussian process, and simple kriging: Rasmussen and Williams, "Gaussian Processes for Machine Learning", 2006, eq. 2.25
and section 6.2). Because logarithms of scores are added up and not scores, a pixel about which the words are sure needs more to change
its mind than one about which they are not. Where the words already lead nothing changes, and far from all seeds little does. Before all
that, the words lose weight where they doubt themselves and hints contradict them (`Words`): P becomes

    P_y(p)^trust exp(absence_y)

All of it happens on cells of the image, about two pixels wide, and what comes out is interpolated like any logits.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ovseg.alike import KERNEL, Alike, Cells, Floats, Integers, Kernel, View, between, places
from ovseg.hints import Seeds
from ovseg.similarity import Axis, label_map, upsampled

MAX_SEEDS = 64
"""Most seeds; of more, those that are far from each other are taken."""
THINNED = 2_000
"""Seeds among which those are searched."""
ABSENT = 4.0
"""How much a label loses of its score for holding little of the picture and not being pointed at."""
ABSENT_HINTS = 20
"""With so many hints half of that counts."""
TRUST_HINTS = 7
"""After so many hints words count half that say themselves that they are wrong as often as right."""
STRIP = 1 << 20
"""Scores that are made at a time."""
LEAST_SCORE = 1e-4
"""Scores below it count as it: a label that is out of the question must still be within reach of a hint."""


@dataclass(frozen=True)
class Correction:
    """What is added to the logarithms of the scores.

    Attributes:
        labels: (A,) the labels that rise.
        rise: (A, rows, columns) float32, on the cells of the view.
    """

    labels: Integers
    rise: Floats


@dataclass(frozen=True)
class Corrected:
    """Corrected scores of an image.

    Attributes:
        logs: (L, rows, columns) float32 their logarithms, up to a constant of each cell.
        total: (rows, columns) float32 sum of the scores of each cell.
        cells: Where they lie.
        seeds: The hints, whose painted pixels are set to what they were said to be.
    """

    logs: Floats
    total: Floats
    cells: Cells
    seeds: Seeds

    def label_map(self) -> NDArray[np.unsignedinteger[Any]]:
        """Find the best label of every pixel: (H, W)."""
        best = label_map(self.cells.grid(self.logs), None, np.arange(len(self.logs)), 1.0)
        certain = self.seeds.weights == 1
        best.reshape(-1)[self.seeds.pixels[certain]] = self.seeds.labels[certain]
        return best

    def strips(self) -> Iterator[tuple[slice, Floats]]:
        """Yield image rows and their (L, rows, W) float32 scores in [0, 1]."""
        height, width = self.cells.image_size
        down, across = self.cells.grid(self.logs).axes
        step = max(1, STRIP // (len(self.logs) * width))
        for rows, lines, y in down.parts(height, step):
            scores = upsampled(self.logs[:, lines], y, across)
            scores -= scores.max(0)
            np.exp(scores, out=scores)
            scores *= between(between(self.total[lines], y, 0), across, 1) / scores.sum(0)
            self.set_painted(rows, np.minimum(scores, np.float32(1), out=scores))
            yield rows, scores

    def set_painted(self, rows: slice, scores: Floats) -> None:
        """Give painted pixels the score 1 for what they were said to be, and 0 for all else.

        Args:
            rows: Of the image, from one to another.
            scores: (L, rows, W) float32 in [0, 1]; changed in place.
        """
        width = self.cells.image_size[1]
        low, high = np.searchsorted(self.seeds.pixels, (rows.start * width, rows.stop * width))
        certain = self.seeds.weights[low:high] == 1
        y, x = np.divmod(self.seeds.pixels[low:high][certain], width)
        scores[:, y - rows.start, x] = 0
        scores[self.seeds.labels[low:high][certain], y - rows.start, x] = 1


def corrected(scores: Floats, cells: Cells, seeds: Seeds, view: View) -> Corrected:
    """Correct the scores of an image.

    Args:
        scores: (L, rows, columns) float32 in [0, 1], at the middle of each cell; they are overwritten.
        cells: Where they lie: those of the view, or finer.
        seeds: The hints on the pixels of the image; at least one. Their labels are rows of `scores`.
        view: The image.
    """
    total = scores.sum(0)
    where, labels, _ = _by_cell(view, seeds, len(scores))
    wrong = seeds.marks * float((_at(scores, view, cells, where).argmax(0) != labels).mean())
    words = Words.judge(scores, total, wrong)
    loss = absence(scores.mean((1, 2)), seeds, words)
    logs = np.log(np.maximum(scores, np.float32(1e-30), out=scores), out=scores)
    logs *= np.float32(words.trust)
    logs += loss[:, None, None]
    correction = solve(view, cells, seeds, logs)
    rise = correction.rise
    if cells != view.cells:
        part = cells.side / view.cells.side
        axes = [Axis.make(many, few, many * part) for many, few in zip(cells.size, view.cells.size, strict=True)]
        rise = upsampled(rise, *axes)
    for label, change in zip(correction.labels, rise, strict=True):
        np.maximum(logs[label], np.log(np.float32(LEAST_SCORE)), out=logs[label])
        logs[label] += change
    return Corrected(logs, total, cells, seeds)


@dataclass(frozen=True)
class Words:
    """How far the words of an image can be relied on.

    Hints alone cannot tell: people point at what is wrong, so hints contradict good words and bad ones alike. How doubtful words are over
    the whole image does tell.

    Attributes:
        wrong: n, how many hints contradict them.
        odds: o = e / (1 - e), with e the mean over the image of 1 - max_y P_y: the part of it that is wrong as they themselves say.
    """

    wrong: float
    odds: float

    @classmethod
    def judge(cls, scores: Floats, total: Floats, wrong: float) -> Words:
        """Take the odds from (L, rows, columns) scores, and their (rows, columns) sums."""
        sure = float((scores.max(0) / np.maximum(total, np.float32(1e-12))).mean())
        return cls(wrong, (1 - min(sure, 1.0)) / max(sure, 1e-6))

    @property
    def trust(self) -> float:
        """Their weight beside the hints, 1 / (1 + (n o / TRUST_HINTS)^2): 1 without hints, and nearly so where they are sure."""
        return 1 / (1 + (self.wrong * self.odds / TRUST_HINTS) ** 2)


def _at(scores: Floats, view: View, cells: Cells, where: Integers) -> Floats:
    """Take scores that lie on `cells` in the middle of cells of the view: (L, N)."""
    side = view.cells.side
    y, x = ((axis * side + side // 2) // cells.side for axis in np.divmod(where, view.cells.size[1]))
    return np.asarray(scores[:, np.minimum(y, scores.shape[1] - 1), np.minimum(x, scores.shape[2] - 1)])


def absence(share: Floats, seeds: Seeds, words: Words) -> Floats:
    """Say how much less likely labels are that nobody points at: (L,) float32 log-prior.

    Whoever corrects a picture points at what is in it. The more often the words were wrong and the more they doubt, the less likely are
    labels that no hint speaks of and that the words give little of the picture:

        ABSENT m / (m + ABSENT_HINTS) ln(share / greatest share),    m = n sqrt(o)

    Args:
        share: (L,) mean score of each label over the image.
        seeds: The hints.
        words: How often they were wrong, n, and the odds o that they give themselves.
    """
    against = words.wrong * math.sqrt(words.odds)
    loss = np.log(np.maximum(share / max(float(share.max()), 1e-30), LEAST_SCORE)) * (ABSENT * against / (against + ABSENT_HINTS))
    loss[sorted(seeds.pointed_at | seeds.tags)] = 0
    return np.asarray(loss, np.float32)


def solve(view: View, cells: Cells, seeds: Seeds, logs: Floats, kernel: Kernel = KERNEL) -> Correction:
    """Compute the correction.

    Args:
        view: The image.
        cells: Those of the view, or finer.
        seeds: The hints; at least one pixel.
        logs: (L, rows, columns) float32 logarithms of the scores of all labels at the middle of `cells`.
        kernel: What counts as alike.
    """
    where, labels, weights = _by_cell(view, seeds, len(logs))
    chosen = _spread(view, where, labels)
    where, labels, weights = where[chosen], labels[chosen], weights[chosen]
    here = np.exp(_at(logs, view, cells, where))
    rising = np.unique(labels)
    residual = (labels[:, None] == rising) * _short_of(here, labels, kernel)[:, None]
    like = Alike(view, where, kernel)
    weighted = np.linalg.solve(like.among_seeds() + np.diag(kernel.noise / weights), residual)
    return Correction(rising, like.to_seeds_times(weighted.astype(np.float32)))


def _short_of(prior: Floats, labels: Integers, kernel: Kernel) -> NDArray[np.float64]:
    """Say how much the logarithm of each seed's own score has to rise: (Q,), of (L, Q) scores."""
    if len(prior) == 1:
        return np.zeros(len(labels))
    logs = np.log(np.maximum(prior.astype(np.float64), LEAST_SCORE))
    here = np.arange(len(labels))
    own = logs[labels, here]
    share = prior / np.maximum(prior.sum(0), np.float32(1e-12))
    entropy = -(share * np.log(np.maximum(share, np.float32(1e-12)))).sum(0)
    logs[labels, here] = -np.inf
    return np.asarray(np.maximum(logs.max(0) - own + kernel.lead + kernel.doubt * entropy, 0))


def _by_cell(view: View, seeds: Seeds, count: int) -> tuple[Integers, Integers, NDArray[np.float64]]:
    """Gather seeds by cell: the cells, the label that most of their seeds have, and its mean weight."""
    pairs, group, size = np.unique(view.cells.of(seeds.pixels) * count + seeds.labels, return_inverse=True, return_counts=True)
    weights = np.bincount(group, seeds.weights) / size
    cells, labels = np.divmod(pairs, count)
    order = np.lexsort((-size * weights, cells))
    best = order[np.diff(cells[order], prepend=-1) != 0]
    return cells[best], labels[best], weights[best]


def _spread(view: View, cells: Integers, labels: Integers) -> Integers:
    """Choose at most `MAX_SEEDS` seeds far from each other (farthest-point sampling in position and colour), of all labels alike."""
    if len(cells) <= MAX_SEEDS:
        return np.arange(len(cells))
    kinds, count = np.unique(labels, return_counts=True)
    room = np.zeros(len(kinds), np.int64)
    left, share = MAX_SEEDS, len(kinds)
    for i in np.argsort(count, kind="stable"):  # what a small label does not need goes to the others
        room[i] = min(count[i], max(1, left // share))
        left, share = left - room[i], share - 1
    chosen = []
    for kind, many in zip(kinds, room, strict=True):
        own = np.flatnonzero(labels == kind)
        own = own[np.linspace(0, len(own) - 1, min(len(own), THINNED)).astype(np.int64)]
        place = places(view, cells[own], 0.1, 0.25)
        far = np.full(len(own), np.inf, np.float32)
        at = 0
        for _ in range(many):
            chosen.append(own[at])
            np.minimum(far, ((place - place[at]) ** 2).sum(1), out=far)
            at = int(far.argmax())
    return np.unique(np.array(chosen, np.int64))
