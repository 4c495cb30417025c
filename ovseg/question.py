"""What is asked of a model: the words of all labels in one list, and how their scores become answers."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from ovseg import decide
from ovseg.decide import Priority, Rules
from ovseg.errors import InvalidLabelsError
from ovseg.nearness import near_pairs
from ovseg.registry import ModelCard
from ovseg.text import normalised
from ovseg.vocabulary import Labels, Template, Templates, Vocabulary, parse_background, parse_templates

Floats = NDArray[np.float32]
Indices = NDArray[np.intp]

NEUTRAL = (
    "sky", "building", "road", "sidewalk", "tree", "grass", "car", "person", "wall", "floor", "ground", "water", "fence", "pole", "skin",
    "hair", "clothes", "shoes", "animal", "furniture", "ceiling", "window", "plant", "mountain", "cloud", "food", "fabric", "paper",
)  # fmt: skip
"""Words for `background="auto"` where a model's card has none; see docs/vocabulary.md for how they were chosen."""
TAKEN_OUT = np.float32(-1e4)
"""Bias of a label that cannot be the answer."""
_ROWS = 512  # words that are compared with all others at a time
_TOLD = 5  # pairs of near labels that are named


class Reads(Protocol):
    """What is used of a model."""

    def read(self, names: list[str], templates: tuple[Template, ...]) -> Any:
        """Make of names what the model can compare with an image, one entry for each."""
        ...


@dataclass(frozen=True)
class Question:
    """Labels and background words with their synonyms, flattened.

    A label and a background word is a row. Rows are added up where a level of a hierarchy is answered: N words, R rows, K answers and B
    background words.

    Attributes:
        labels: The K names that are answered.
        words: All N words that are asked.
        owner: (N,) the row of each word, not decreasing; background words come last.
        templates: The prompt templates of each word.
        rules: What it takes to be the answer; `rules.count` is K.
        members: (R,) the answer, or K + the background word, that each row counts for; None if that is itself.
        combine: How synonyms speak for their label; see `Vocabulary`.
        exclusive: Groups of sets of rows; see `Vocabulary`.
        colors: Answers -> the colours that were given.
        yielding: How many background words, the last ones, yield to labels that are near.
        kin: Pairs (label, later label) of which one is an ancestor of the other.
        examples: What shows the label of each row, for `ovseg.examples`; background words have none.
    """

    labels: tuple[str, ...]
    words: tuple[str, ...]
    owner: Indices
    templates: tuple[tuple[Template, ...], ...]
    rules: Rules
    members: Indices | None = None
    combine: str = "best"
    exclusive: tuple[tuple[Indices, ...], ...] = ()
    colors: Mapping[str, tuple[int, int, int]] = field(default_factory=dict)
    yielding: int = 0
    kin: frozenset[tuple[int, int]] = frozenset()
    examples: tuple[tuple[Any, ...], ...] = ()

    @classmethod
    def of(
        cls, labels: Labels, background: Labels | None, templates: Templates, card: ModelCard, threshold: float | None, margin: float
    ) -> Question:
        """Read labels, background and options as `Segmenter.segment` takes them."""
        vocabulary = Vocabulary.of(labels)
        return cls._of(vocabulary, _background(vocabulary, background, card), templates, card, threshold, margin)

    @classmethod
    def of_labels(cls, labels: Labels, templates: Templates, card: ModelCard) -> Question:
        """Read labels and templates alone: there is no background, not even the vocabulary's own."""
        return cls._of(Vocabulary.of(labels), ((), False), templates, card, None, 0)

    @classmethod
    def _of(
        cls,
        vocabulary: Vocabulary,
        background: tuple[tuple[tuple[str, ...], ...], bool],
        templates: Templates,
        card: ModelCard,
        threshold: float | None,
        margin: float,
    ) -> Question:
        """Flatten a vocabulary and what `parse_background` returns."""
        answers = vocabulary.answers()
        groups = [label.words for label in vocabulary.labels]
        named, auto = background
        neutral = _neutral([*groups, *named], card) if auto else ()
        others = (*named, *neutral)
        prompts = parse_templates(templates, default=card.templates)
        own = [prompts if label.templates is None else parse_templates(label.templates) for label in vocabulary.labels]
        both = [*groups, *others]
        owner = np.repeat(np.arange(len(both)), [len(group) for group in both])
        rules = Rules(len(answers), _thresholds(vocabulary, answers, threshold), margin, _priorities(vocabulary, answers))
        return cls(
            tuple(name for name, _ in answers),
            tuple(word for group in both for word in group),
            owner,
            tuple(templates for group, templates in zip(both, [*own, *[prompts] * len(others)], strict=True) for _ in group),
            rules,
            None if vocabulary.level is None else _members(answers, len(groups), len(others)),
            vocabulary.combine,
            tuple(tuple(np.array(vocabulary.members(name)) for name in group) for group in vocabulary.exclusive),
            {label.name: label.color for label in vocabulary.labels if label.color is not None},
            len(neutral),
            vocabulary.kin,
            tuple(label.examples for label in vocabulary.labels),
        )

    @property
    def plain(self) -> bool:
        """Whether the row with the best word is the answer."""
        return self.members is None and self.rules.plain

    @property
    def direct(self) -> bool:
        """Whether the label map of the words is all it takes."""
        return self.plain and not self.exclusive

    @property
    def rows(self) -> int:
        """R: labels and background words."""
        return int(self.owner[-1]) + 1

    @property
    def others(self) -> int:
        """B: background words."""
        return self.rows - self._leaves

    @property
    def starts(self) -> Indices:
        """Index of the first word of each row, for `reduceat`."""
        return np.flatnonzero(np.diff(self.owner, prepend=-1))

    @property
    def groups(self) -> list[tuple[str, ...]]:
        """The words of each row."""
        return [self.words[part.start : part.stop] for part in self._parts()]

    @property
    def labels_of_rows(self) -> list[str]:
        """The first word of each row that is a label."""
        return [group[0] for group in self.groups[: self._leaves]]

    @property
    def row_answers(self) -> Indices:
        """(R,) the answer, or K + the background word, that each row counts for."""
        return np.arange(self.rows) if self.members is None else self.members

    @property
    def answer_words(self) -> list[list[str]]:
        """The words of each answer, its name among them, then of each background word."""
        words: list[list[str]] = [[label] for label in self.labels] + [[] for _ in range(self.others)]
        for answer, group in zip(self.row_answers.tolist(), self.groups, strict=True):
            words[answer] += group
        return words

    def _parts(self) -> list[slice]:
        ends = [*self.starts.tolist(), len(self.words)]
        return [slice(start, stop) for start, stop in zip(ends, ends[1:], strict=False)]

    def read(self, model: Reads, near: float | None) -> tuple[Question, Any]:
        """Let a model read all words.

        Args:
            model: The model.
            near: Cosine from which on a background word is silenced by a label, where that is asked for; None where it says nothing.

        Returns:
            The question that remains to be asked, and (N, D) float32 embeddings of its words, or what a conditional model makes of each.
        """
        places: dict[tuple[Template, ...], list[int]] = {}
        for place, templates in enumerate(self.templates):
            places.setdefault(templates, []).append(place)
        if len(places) == 1:
            entries = model.read(list(self.words), self.templates[0])
        else:
            parts: list[Any] = [None] * len(self.words)
            for templates, those in places.items():
                for place, entry in zip(those, model.read([self.words[place] for place in those], templates), strict=True):
                    parts[place] = entry
            entries = np.stack(parts) if isinstance(parts[0], np.ndarray) else parts
        question = self
        if self.yielding and near is not None and isinstance(entries, np.ndarray):
            question, entries = self._silence(entries, near)
        return question._merge(entries) if self.combine == "mean" else (question, entries)

    def _silence(self, vectors: Floats, near: float) -> tuple[Question, Floats]:
        """Drop background words that yield and are near a label; each is a row of one word."""
        first, labels = len(self.words) - self.yielding, self._label_words
        loud = (vectors[first:] @ vectors[:labels].T).max(1) < near
        keep = np.append(np.ones(first, bool), loud)
        yielding = int(loud.sum())
        rows = self.rows - self.yielding + yielding
        owner = np.append(self.owner[:first], np.arange(self.rows - self.yielding, rows))
        members = None if self.members is None else self.members[:rows]  # those of background words are their numbers
        words = tuple(word for word, kept in zip(self.words, keep, strict=True) if kept)
        templates = tuple(prompts for prompts, kept in zip(self.templates, keep, strict=True) if kept)
        return replace(self, words=words, owner=owner, templates=templates, members=members, yielding=yielding), vectors[keep]

    @property
    def _leaves(self) -> int:
        """Rows that are labels."""
        return self.rules.count if self.members is None else int((self.members < self.rules.count).sum())

    @property
    def _label_words(self) -> int:
        """Words that are of labels; those of the background follow."""
        return int(np.searchsorted(self.owner, self._leaves))

    def _merge(self, entries: Any) -> tuple[Question, Any]:
        """Put the words of a row together: the mean of their embeddings, or one list of all their prompts."""
        parts = self._parts()
        merged = (
            normalised(np.add.reduceat(entries, self.starts, axis=0))
            if isinstance(entries, np.ndarray)
            else [[prompt for entry in entries[part] for prompt in entry] for part in parts]
        )
        firsts = [part.start for part in parts]
        words = tuple(self.words[first] for first in firsts)
        templates = tuple(self.templates[first] for first in firsts)
        return replace(self, words=words, templates=templates, owner=np.arange(len(parts))), merged

    def exclusion(self, strips: decide.Strips) -> Floats:
        """Find which labels cannot be in an image, by the scores of all rows: (R,) float32 bias."""
        total = decide.total_scores(strips)
        bias = np.zeros(self.rows, np.float32)
        for group in self.exclusive:
            best = int(np.argmax([total[rows].sum() for rows in group]))
            others = np.concatenate([rows for index, rows in enumerate(group) if index != best])
            bias[np.setdiff1d(others, group[best])] = TAKEN_OUT
        return bias

    def answered(self, strips: decide.Strips) -> decide.Strips:
        """Turn strips of rows into strips of answers and background words."""
        return strips if self.members is None else decide.summed(strips, self.members)

    def class_scores(self, logits: Floats) -> Floats:
        """Turn the logits of all words about a whole image into scores of the answers, (K,) float32 that sum to 1; without background."""
        if self.combine == "max":
            scores = np.maximum.reduceat(np.exp(logits - logits.max()), self.starts)
        else:
            best = np.maximum.reduceat(logits, self.starts)
            scores = np.exp(best - best.max())
        if self.members is not None:
            scores = np.bincount(self.members, scores)
        return np.asarray(scores / scores.sum(), np.float32)

    def mean_vectors(self, vectors: Floats) -> Floats:
        """Average the embeddings of all words to those of the answers: (K, D) float32, L2-normalised; without background."""
        rows = normalised(np.add.reduceat(vectors, self.starts, axis=0))
        if self.members is None:
            return rows
        sums = np.zeros((len(self.labels), rows.shape[1]), np.float32)
        np.add.at(sums, self.members, rows)
        return normalised(sums)


def _background(vocabulary: Vocabulary, background: Labels | None, card: ModelCard) -> tuple[tuple[tuple[str, ...], ...], bool]:
    """Return the background words that were named, and whether the model's list is asked for."""
    if background is None:
        background = vocabulary.background
    if background is None:  # a score against nothing would be 1 everywhere; a score of its own needs no rival
        return (), len(vocabulary) == 1 and card.activation == "softmax"
    others, auto = parse_background(background)
    taken = {word.casefold() for label in vocabulary.labels for word in label.words}
    for word in (word for group in others for word in group):
        if word.casefold() in taken:
            raise InvalidLabelsError(f"{word!r} stands both in labels and in background. Take it out of one of them.")
    return others, auto


def _neutral(groups: list[tuple[str, ...]], card: ModelCard) -> tuple[tuple[str, ...], ...]:
    """Return the model's background words but those that mean nearly the same as what was named: labels, and other background words."""
    words = tuple(card.background) or NEUTRAL
    count = len(groups)
    silent = {words[later - count] for first, _, later, _ in near_pairs([*groups, *((word,) for word in words)]) if first < count <= later}
    return tuple((word,) for word in words if word not in silent)


def _thresholds(vocabulary: Vocabulary, answers: tuple[tuple[str, tuple[int, ...]], ...], default: float | None) -> Floats | None:
    own = {label.name: label.threshold for label in vocabulary.labels if label.threshold is not None}
    if default is None and not own:
        return None
    return np.array([own.get(name, default or 0) for name, _ in answers], np.float32)


def _priorities(vocabulary: Vocabulary, answers: tuple[tuple[str, tuple[int, ...]], ...]) -> tuple[Priority, ...]:
    """Number the priorities between what is answered; others have no say at this level."""
    place = {name: index for index, (name, _) in enumerate(answers)}
    rules = [Priority(place[win], place[lose], ratio) for win, lose, ratio in vocabulary.priorities if win in place and lose in place]
    return decide.in_order(rules)


def _members(answers: tuple[tuple[str, tuple[int, ...]], ...], labels: int, others: int) -> Indices:
    members = np.empty(labels + others, np.intp)
    for index, (_, those) in enumerate(answers):
        members[list(those)] = index
    members[labels:] = len(answers) + np.arange(others)
    return members


def tell_near(question: Question, vectors: Any, near: float | None) -> str:
    """Describe labels that mean nearly the same, to people or to the model, and background words near to a label; "" if there are none.

    Background words among themselves may be near: whichever wins, the answer is the same. Those of the model's list yield to labels.

    Args:
        question: The labels.
        vectors: (N, D) float32 embeddings of its words, or what a conditional model makes of them.
        near: Cosine from which on two words are nearly the same to the model; None where it says nothing.
    """
    leaves = question._leaves
    groups = question.groups[: question.rows - question.yielding]
    pairs: dict[tuple[str, str], bool] = {}  # two words -> whether the second is of the background

    def tell(label: int, first: str, other: int, second: str) -> None:
        if label < leaves and (label, other) not in question.kin:
            pairs[first, second] = other >= leaves

    for pair in near_pairs(groups):
        tell(*pair)
    many = 0
    if near is not None and isinstance(vectors, np.ndarray):
        labels, count = question._label_words, sum(map(len, groups))
        owner = question.owner[:count]
        for start in range(0, labels, _ROWS):
            part = slice(start, min(start + _ROWS, labels))
            alike = (vectors[part] @ vectors[:count].T >= near) & (owner[part, None] < owner)
            many += int(alike.sum())
            for row, column in np.argwhere(alike)[: _TOLD + 1].tolist() if len(pairs) <= _TOLD else ():
                tell(int(owner[start + row]), question.words[start + row], int(owner[column]), question.words[column])
    if not pairs:
        return ""
    shown = [f"{a!r} and {b!r}{' (background)' if of_background else ''}" for (a, b), of_background in sorted(pairs.items())]
    more = ", and more" if max(len(pairs), many) > _TOLD else ""
    synonyms = min((pair for pair, of_background in pairs.items() if not of_background), default=None)
    ways = [] if synonyms is None else [f"Put synonyms into one label: {synonyms!r}."]
    ways += ["Take words of the background out that mean a label."] if any(pairs.values()) else []
    return (
        f"These words mean nearly the same, to people or to the model, and which of the two a pixel gets says little: "
        f"{', '.join(shown[:_TOLD])}{more}. {' '.join(ways)}"
    )
