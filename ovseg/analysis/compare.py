"""How two label maps of the same scene differ."""

from __future__ import annotations

import math
import os
from collections.abc import Sequence
from contextlib import closing
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ovseg.analysis.files import find_results, first_readable, write_csv
from ovseg.analysis.maps import LabelMap, open_map
from ovseg.errors import InvalidArgumentError, InvalidImageError
from ovseg.output.files import write_json
from ovseg.output.palette import UNDECIDED
from ovseg.result import Segmentation

MAX_MARKED = 1 << 28
"""Pixels from which on `Comparison.changed` is left out: it takes a byte for each."""

Result = Segmentation | str | os.PathLike[str]


@dataclass(frozen=True, eq=False)
class Comparison:
    """The differences of two label maps, or of pairs of them taken together. Labels are matched by name.

    Attributes:
        labels: K labels: those of the first, then those that only the second has.
        transitions: (K + 1, K + 1) int64 pixels by label in the first (row) and in the second (column); the last is undecided.
        changed: (H, W) bool, where the two differ; None for the comparison of folders, and of maps with more than 2^28 pixels.
        maps: How many pairs were compared.
        unpaired: Names that only one folder has, or that could not be compared, with the reason.
    """

    labels: tuple[str, ...]
    transitions: NDArray[np.int64]
    changed: NDArray[np.bool_] | None = field(default=None, repr=False)
    maps: int = 1
    unpaired: dict[str, str] = field(default_factory=dict)

    @property
    def pixels(self) -> int:
        """Number of pixels."""
        return int(self.transitions.sum())

    @property
    def changed_pixels(self) -> int:
        """Number of pixels whose label differs; undecided against a label is a difference."""
        return self.pixels - int(np.trace(self.transitions))

    @property
    def before(self) -> dict[str, int]:
        """Pixels of each label in the first."""
        return dict(zip(self.labels, self.transitions.sum(1).tolist(), strict=False))  # without undecided

    @property
    def after(self) -> dict[str, int]:
        """Pixels of each label in the second."""
        return dict(zip(self.labels, self.transitions.sum(0).tolist(), strict=False))

    @property
    def iou(self) -> dict[str, float]:
        """Pixels where both have the label, over those where one has it, in [0, 1]; NaN where neither has."""
        both = np.diagonal(self.transitions)
        either = self.transitions.sum(0) + self.transitions.sum(1) - both
        values = np.divide(both, either, out=np.full(len(both), np.nan), where=either > 0)
        return dict(zip(self.labels, values.tolist(), strict=False))

    @property
    def mean_iou(self) -> float:
        """Mean of `iou` over the labels that one of them has; NaN if there is none."""
        known = [value for value in self.iou.values() if not math.isnan(value)]
        return sum(known) / len(known) if known else math.nan

    @property
    def agreement(self) -> float:
        """Part of the pixels with the same answer, in [0, 1]."""
        return float(np.trace(self.transitions)) / self.pixels

    @property
    def kappa(self) -> float:
        """Agreement beyond chance (Cohen, 1960): 1 is perfect, 0 what two maps with these shares would have by chance; NaN for one label.

        (agreement - chance) / (1 - chance), with chance the sum over labels of the product of the two shares.
        """
        shares = self.transitions / self.pixels
        chance = float(shares.sum(0) @ shares.sum(1))
        return (self.agreement - chance) / (1 - chance) if chance < 1 else math.nan

    def largest_changes(self, count: int = 10) -> list[tuple[str, str, int]]:
        """Return the most frequent changes, (label in the first, label in the second, pixels), most pixels first."""
        names = (*self.labels, UNDECIDED)
        changes = self.transitions.copy()
        np.fill_diagonal(changes, 0)
        order = np.argsort(-changes, axis=None, kind="stable")[:count]
        rows = [(int(i) // len(names), int(i) % len(names)) for i in order]
        return [(names[i], names[j], int(changes[i, j])) for i, j in rows if changes[i, j]]

    def as_dict(self) -> dict[str, Any]:
        """Return all numbers as JSON has them, None for NaN."""
        return {
            "maps": self.maps,
            "pixels": self.pixels,
            "changed_pixels": self.changed_pixels,
            "agreement": self.agreement,
            "kappa": _number(self.kappa),
            "mean_iou": _number(self.mean_iou),
            "labels": list(self.labels),
            "iou": {label: _number(value) for label, value in self.iou.items()},
            "before": self.before,
            "after": self.after,
            "transitions": self.transitions.tolist(),
            "unpaired": self.unpaired,
        }

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write everything to a .json, or the matrix of transitions to a .csv.

        Raises:
            OutputError: If the file cannot be written.
            InvalidArgumentError: If the name ends in neither.
        """
        suffix = Path(path).suffix.lower()
        if suffix == ".json":
            write_json(path, self.as_dict())
        elif suffix == ".csv":
            names = (*self.labels, UNDECIDED)
            rows = [[name, *row] for name, row in zip(names, self.transitions.tolist(), strict=True)]
            write_csv(path, ["pixels from (row) to (column)", *names], rows)
        else:
            raise InvalidArgumentError(f"A comparison is saved as .json or .csv; got {os.fspath(path)!r}.")

    def format_table(self) -> str:
        """Format the comparison as text to print."""
        known = [label for label in self.labels if self.before[label] or self.after[label]]
        width = max([5, *map(len, known)])
        lines = [f"{'label':{width}}  {'first':>12}  {'second':>12}  {'change':>8}  {'IoU':>6}"]
        for label in known:
            first, second = self.before[label], self.after[label]
            change = f"{100 * (second - first) / first:+.1f}%" if first else "new"
            lines.append(f"{label:{width}}  {first:12,}  {second:12,}  {change:>8}  {100 * self.iou[label]:6.2f}")
        lines += [
            "",
            f"{self.maps} {'map' if self.maps == 1 else 'maps'}, {self.pixels:,} pixels, {self.changed_pixels:,} changed "
            f"({100 * self.changed_pixels / self.pixels:.2f} %); mean IoU {100 * self.mean_iou:.2f}, kappa {self.kappa:.3f}",
        ]
        lines += [f"  {first} -> {second}: {pixels:,}" for first, second, pixels in self.largest_changes()]
        lines += [f"not compared: {name}: {reason}" for name, reason in self.unpaired.items()]
        return "\n".join(lines)


def compare(first: Result, second: Result) -> Comparison:
    """Compare two label maps of the same size.

    Args:
        first: A result, or a file that `save` or `segment_scene` wrote; what scenes are written to is read by rows.
        second: The other one.

    Returns:
        What differs.

    Raises:
        InvalidArgumentError: If the sizes differ, or they have no label in common.
        InvalidImageError: If a file cannot be read.
    """
    with closing(_open(first)) as a, closing(_open(second)) as b:
        labels = tuple(dict.fromkeys((*a.labels, *b.labels)))
        changed = np.empty(a.size, bool) if a.size[0] * a.size[1] <= MAX_MARKED else None
        return Comparison(labels, _count(a, b, labels, changed), changed)


def compare_folders(first: str | os.PathLike[str], second: str | os.PathLike[str], *, progress: bool = True) -> Comparison:
    """Compare the results in two folders that have the same names, all together.

    Args:
        first: A folder of results as for `report`; those in folders within it count too.
        second: The other one.
        progress: Whether to show a progress bar on stderr.

    Returns:
        What differs. Results without a partner, unreadable ones and pairs of different size are listed in `unpaired`.

    Raises:
        InvalidImageError: If a folder does not exist, or no pair could be compared.
    """
    from tqdm import tqdm

    ours, theirs = find_results(first), find_results(second)
    unpaired = {name: f"only in {os.fspath(second if name in theirs else first)}" for name in sorted(ours.keys() ^ theirs.keys())}
    labels: tuple[str, ...] = ()
    total = np.zeros((1, 1), np.int64)
    maps = 0
    for name in tqdm(sorted(ours.keys() & theirs.keys()), "comparing", unit="map", disable=not progress, delay=2):
        try:
            with closing(first_readable(ours[name])) as a, closing(first_readable(theirs[name])) as b:
                known = tuple(dict.fromkeys((*labels, *a.labels, *b.labels)))
                counts = _count(a, b, known)
        except (InvalidImageError, InvalidArgumentError) as error:
            unpaired[name] = str(error)
            continue
        # Labels that are new stand between the old ones and undecided.
        place = np.array([*range(len(labels)), len(known)])
        counts[np.ix_(place, place)] += total
        labels, total, maps = known, counts, maps + 1
    if not maps:
        raise InvalidImageError(
            f"No result in {os.fspath(first)!r} could be compared with one of the same name in {os.fspath(second)!r}: "
            f"{'; '.join(f'{name}: {reason}' for name, reason in list(unpaired.items())[:3]) or 'there are none'}."
        )
    return Comparison(labels, total, None, maps, unpaired)


def _open(result: Result) -> LabelMap:
    return LabelMap.of(result) if isinstance(result, Segmentation) else open_map(result)


def _count(a: LabelMap, b: LabelMap, labels: Sequence[str], changed: NDArray[np.bool_] | None = None) -> NDArray[np.int64]:
    """Count the transitions among `labels`, and mark the pixels that differ in `changed`, (H, W)."""
    if a.size != b.size:
        raise InvalidArgumentError(f"Only maps of the same size can be compared; got (height, width) {a.size} and {b.size}.")
    if not set(a.labels) & set(b.labels):
        raise InvalidArgumentError(
            f"The two maps have no label in common: {', '.join(a.labels[:5])} and {', '.join(b.labels[:5])}. Labels are matched by name."
        )
    side = len(labels) + 1
    counts = np.zeros(side * side, np.int64)
    tables = [_places(one, labels) for one in (a, b)]
    for (rows, first), (_, second) in zip(a.strips(), b.strips(), strict=True):
        x, y = (table[part] for table, part in zip(tables, (first, second), strict=True))
        counts += np.bincount((x * side + y).ravel(), minlength=side * side)
        if changed is not None:
            np.not_equal(x, y, out=changed[rows])
    return counts.reshape(side, side)


def _places(one: LabelMap, labels: Sequence[str]) -> NDArray[np.int64]:
    """Make the table from a map's values to places in `labels`; its last entry, undecided, is the last place."""
    table = np.full(one.ignore_index + 1, len(labels), np.int64)
    known = {label: place for place, label in enumerate(labels)}
    table[: len(one.labels)] = [known[label] for label in one.labels]
    return table


def _number(value: float) -> float | None:
    return None if math.isnan(value) else value
