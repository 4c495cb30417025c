"""The rules between the labels of a vocabulary, checked: priorities and exclusions."""

from __future__ import annotations

from collections.abc import Mapping
from graphlib import CycleError, TopologicalSorter
from numbers import Real
from typing import Any

from ovseg.errors import InvalidLabelsError
from ovseg.prompts import clean_label, fold, list_items, show

RATIO = 0.5
"""Part of the loser's score with which a label that has priority wins, where nothing else is said."""


def _name_of(name: Any, known: Mapping[str, str], where: str) -> str:
    if not isinstance(name, str) or fold(clean_label(name)) not in known:
        listed = ", ".join(map(repr, list(known.values())[:12])) + (", ..." if len(known) > 12 else "")
        raise InvalidLabelsError(f"{where} names {show(name)}, which is no label or group of this vocabulary. There are: {listed}.")
    return known[fold(clean_label(name))]


def parse_priorities(priorities: Any, known: Mapping[str, str]) -> tuple[tuple[str, str, float], ...]:
    """Read priorities as `Vocabulary` takes them: (winner, loser, ratio).

    Args:
        priorities: The rules.
        known: Folded names of labels and groups -> how they are written.
    """
    if isinstance(priorities, str):
        priorities = [priorities]
    rules: dict[tuple[str, str], float] = {}
    for index, entry in enumerate(list_items(priorities, "priorities", "a sequence of rules")):
        where = f"priorities[{index}]"
        names, ratio = ([part.strip() for part in entry.split(">")], RATIO) if isinstance(entry, str) else _unpack(entry, where)
        if len(names) < 2:
            raise InvalidLabelsError(
                f"{where} must be like 'curb > sidewalk', (winner, loser) or (winner, loser, ratio); got {show(entry)}."
            )
        names = [_name_of(name, known, where) for name in names]
        for winner, loser in zip(names, names[1:], strict=False):
            if winner == loser:
                raise InvalidLabelsError(f"{where}: {winner!r} cannot have priority over itself.")
            if rules.setdefault((winner, loser), ratio) != ratio:
                raise InvalidLabelsError(f"{where}: {winner!r} over {loser!r} stands twice, with different ratios.")
    graph: dict[str, set[str]] = {}
    for winner, loser in rules:
        graph.setdefault(winner, set()).add(loser)
    try:
        TopologicalSorter(graph).prepare()
    except CycleError as error:
        raise InvalidLabelsError(f"priorities go in a circle: {' > '.join(reversed(error.args[1]))}.") from error
    return tuple((winner, loser, ratio) for (winner, loser), ratio in rules.items())


def _unpack(entry: Any, where: str) -> tuple[list[Any], float]:
    parts = list_items(entry, where, "a rule")
    ratio = parts.pop() if len(parts) == 3 else RATIO
    if isinstance(ratio, bool) or not isinstance(ratio, Real) or not 0 < float(ratio) <= 1:
        raise InvalidLabelsError(f"{where}: the ratio must be a number above 0 and at most 1; got {show(ratio)}.")
    return (parts if len(parts) == 2 else []), float(ratio)


def parse_exclusive(exclusive: Any, known: Mapping[str, str]) -> tuple[tuple[str, ...], ...]:
    """Read groups of names as `Vocabulary` takes them.

    Args:
        exclusive: The groups.
        known: Folded names of labels and groups -> how they are written.
    """
    groups = []
    for index, entry in enumerate(list_items(exclusive, "exclusive", "a sequence of groups of names")):
        where = f"exclusive[{index}]"
        if isinstance(entry, str):
            raise InvalidLabelsError(f"{where} must be a group of names, such as ['indoors', 'outdoors']; got {show(entry)}.")
        names = tuple(dict.fromkeys(_name_of(name, known, where) for name in list_items(entry, where, "a group of names")))
        if len(names) < 2:
            raise InvalidLabelsError(f"{where} must name at least two labels; got {show(entry)}.")
        groups.append(names)
    return tuple(groups)
