"""Which labels are in the picture at all, as a soft head start: `tags="auto"`, or the labels that somebody names.

A long list of labels puts words of other worlds on a few pixels here and there. A label that is in the picture is somewhere in it beyond
doubt, so it is judged by its greatest score over all places, as in TagCLIP (Lin et al., "TagCLIP: a local-to-global framework to enhance
open-vocabulary multi-label classification of CLIP without training", 2024), which keeps the labels whose greatest score lies in the upper
half of the range of greatest scores and asks crops of the image again. Here nothing is thrown out: what a label is short of a
score that convinces is taken from it as a log-prior, and where it is plain to see it wins all the same. And the second look is at the
image in small, where things are seen whole: the greatest scores of the map itself say nothing that the map does not know.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Sequence

import numpy as np
from numpy.typing import NDArray

from ovseg.errors import InvalidLabelsError

AUTO = "auto"
SURE = 0.2
"""A label with a greatest score of this much loses nothing. SURE, STRENGTH and FLOOR were found on held-out images, see `docs/trust.md`."""
STRENGTH = 2.0
"""How much of what a label is short of SURE is taken from it."""
FLOOR = -6.0
"""The most that is taken from a label [nats]: small things are hardly seen in small images."""
UNLISTED = -3.0
"""What is taken from labels that a person does not name [nats]: their odds fall to a twentieth."""
TINY = np.float32(1e-30)

Floats = NDArray[np.float32]
Strips = Iterable[tuple[slice, Floats]]
Tags = str | Sequence[str]


def evidence(strips: Strips, rows: int) -> Floats:
    """Find each row's greatest score.

    Args:
        strips: Scores of rows (labels, then background words), in [0, 1].
        rows: R, their number.

    Returns:
        (R,) float32.
    """
    best = np.zeros(rows, np.float32)
    for _, part in strips:
        np.maximum(best, part.max((1, 2)), out=best)
    return best


def auto_prior(best: Floats, labels: int) -> Floats:
    """Turn the greatest scores into a log-prior: STRENGTH * ln(score / SURE), at least FLOOR and at most 0.

    Args:
        best: (R,) greatest score of each label, then of each background word.
        labels: How many rows are labels; background words, which stand for all the rest, lose nothing.

    Returns:
        (R,) float32 in [FLOOR, 0] [nats].
    """
    prior = np.zeros(len(best), np.float32)
    prior[:labels] = np.clip(STRENGTH * np.log(np.maximum(best[:labels], TINY) / np.float32(SURE)), FLOOR, 0)
    return prior


def listed_prior(tags: Iterable[str], words: Sequence[Sequence[str]], labels: int) -> Floats:
    """Turn a list of labels that are in the picture into a log-prior: the others lose UNLISTED.

    Args:
        tags: Labels or synonyms of theirs; case does not matter.
        words: The words of each row: of the labels, then of the background words.
        labels: How many rows are labels; background words lose nothing.

    Returns:
        (R,) float32, 0 or UNLISTED [nats].

    Raises:
        InvalidLabelsError: If a tag is none of the labels.
    """
    places: dict[str, list[int]] = {}
    for row, group in enumerate(words[:labels]):
        for word in dict.fromkeys(word.casefold() for word in group):
            places.setdefault(word, []).append(row)
    prior = np.full(len(words), UNLISTED, np.float32)
    prior[labels:] = 0
    for tag in tags:
        rows = places.get(tag.strip().casefold()) if isinstance(tag, str) else None
        if rows is None:
            near = difflib.get_close_matches(str(tag).casefold(), places, n=1)
            hint = f" Did you mean {near[0]!r}?" if near else ""
            raise InvalidLabelsError(f"tags must be among the labels or their synonyms; got {tag!r}.{hint}")
        prior[rows] = 0
    return prior


def parse_tags(tags: Tags | None) -> Tags | None:
    """Check what the user gave: None, "auto", or a list of labels.

    Raises:
        InvalidLabelsError: If it is something else.
    """
    if tags is None or (isinstance(tags, str) and tags == AUTO):
        return tags
    if isinstance(tags, (str, bytes)) or not isinstance(tags, Sequence) or not tags:
        raise InvalidLabelsError(f"tags must be 'auto' or a list of the labels that are in the picture; got {tags!r:.200}.")
    return list(tags)
