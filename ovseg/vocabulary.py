"""Vocabularies: labels and the rules between them, from what a user types or a file says.

`parse_labels` turns any accepted form of labels into the words of each.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property, lru_cache
from typing import Any, TypeAlias

from ovseg.errors import InvalidLabelsError, OutputError
from ovseg.labels import Label, check_labels, label_entries
from ovseg.prompts import (
    MAX_LABEL_LENGTH,
    MAX_LABELS,
    Template,
    Templates,
    build_prompts,
    clean_label,
    fold,
    list_items,
    parse_templates,
    show,
)
from ovseg.templates import TEMPLATE_SETS, TemplateSet
from ovseg.vocabulary_files import format_document, format_lines, is_document, read_document, read_lines
from ovseg.vocabulary_rules import parse_exclusive, parse_priorities

__all__ = [
    "MAX_LABELS", "MAX_LABEL_LENGTH", "TEMPLATE_SETS", "Label", "Labels", "Template", "TemplateSet", "Templates", "Vocabulary",
    "build_prompts", "clean_label", "parse_labels", "parse_templates", "read_labels",
]  # fmt: skip

Labels: TypeAlias = "Vocabulary | Label | str | os.PathLike[str] | Iterable[str | Label | Iterable[str]]"
"""One label; a path to a labels file; labels, each a word, a sequence of synonyms or a `Label`; or a `Vocabulary`."""

AUTO = "auto"
"""Among background words: a list of the model's."""
COMBINE = ("best", "max", "mean")


@dataclass(frozen=True, init=False, repr=False)
class Vocabulary:
    """Labels and the rules between them; accepted wherever labels are.

    Attributes:
        labels: The labels.
        background: Words for everything else, a tuple of synonyms each, and after them "auto" if a list of the model's counts too; "auto"
            for that list alone; None for what `segment` is told.
        combine: How the synonyms of a label speak for it. "best": its logit is the largest of its words' logits, and the scores of the
            labels sum to 1. "max": the softmax is over all words, and its score is the largest of its words'; the map is the same, but
            a synonym takes score away from the others (the rule of SCLIP). "mean": its embedding is the mean of its words'.
        priorities: (winner, loser, ratio): where the loser is best, the winner is answered if it scores at least `ratio` times as much.
        exclusive: Groups of labels of which an image holds one at most: the one with the greatest sum of scores over the image stays,
            the others are taken out as if they had not been asked.
        level: Which level of the hierarchy is answered; see `at`. None for the labels as they are listed.

    Args:
        labels: Anything that `Segmenter.segment` takes as labels.
        background: As above; a word or a list of words, of which "auto" stands for the model's list; `[("auto",)]` is the word itself.
        combine: As above.
        priorities: Texts like "curb > sidewalk > road", or tuples (winner, loser) or (winner, loser, ratio); the ratio is in (0, 1]
            and 0.5 where none is given.
        exclusive: Sequences of names of labels or groups.
        level: As above.

    Raises:
        InvalidLabelsError: If labels are blank, double or too many, or a rule names what is not there or goes in a circle.
    """

    labels: tuple[Label, ...]
    background: tuple[str | tuple[str, ...], ...] | str | None = None
    combine: str = "best"
    priorities: tuple[tuple[str, str, float], ...] = ()
    exclusive: tuple[tuple[str, ...], ...] = ()
    level: int | None = None

    def __init__(
        self,
        labels: Labels,
        *,
        background: Labels | None = None,
        combine: str = "best",
        priorities: Iterable[str | Sequence[Any]] = (),
        exclusive: Iterable[Iterable[str]] = (),
        level: int | None = None,
    ) -> None:
        if combine not in COMBINE:
            raise InvalidLabelsError(f"combine must be one of {', '.join(COMBINE)}; got {show(combine)}.")
        if level is not None and (isinstance(level, bool) or not isinstance(level, int) or level < 0):
            raise InvalidLabelsError(f"level must be a whole number from 0, the roots, or None; got {show(level)}.")
        values = {
            "labels": parse_entries(labels),
            "background": None if background is None else _background_entries(background),
            "combine": combine,
            "level": level,
        }
        for key, value in values.items():
            object.__setattr__(self, key, value)
        priorities = [priorities] if isinstance(priorities, str) else list_items(priorities, "priorities", "a sequence of rules")
        exclusive = list_items(exclusive, "exclusive", "a sequence of groups of names")
        families = any(label.parent is not None for label in self.labels)
        known = self._known_names() if families or priorities or exclusive else {}
        object.__setattr__(self, "priorities", parse_priorities(priorities, known))
        object.__setattr__(self, "exclusive", parse_exclusive(exclusive, known))

    @classmethod
    def of(cls, labels: Labels) -> Vocabulary:
        """Make a vocabulary of anything that `Segmenter.segment` takes as labels; of a vocabulary itself."""
        if isinstance(labels, Vocabulary):
            return labels
        if isinstance(labels, (list, tuple)) and all(type(label) is str for label in labels):
            return _of_words(tuple(labels))
        return cls.load(labels) if isinstance(labels, os.PathLike) else cls(labels)

    @property
    def rules(self) -> tuple[str, ...]:
        """What it says beyond words that has a say in the answers, by name: "background", "thresholds", ..."""
        said = {
            "background": self.background is not None,
            "combine": self.combine != "best",
            "priorities": bool(self.priorities),
            "exclusive": bool(self.exclusive),
            "level": self.level is not None,
            "templates": any(label.templates is not None for label in self.labels),
            "thresholds": any(label.threshold is not None for label in self.labels),
            "examples": any(label.examples for label in self.labels),
        }
        return tuple(name for name, is_said in said.items() if is_said)

    # ------------------------------------------------------------------------------------------------------------ levels

    @property
    def names(self) -> tuple[str, ...]:
        """The names that are answered, at the level that is asked."""
        return tuple(name for name, _ in self.answers())

    def __len__(self) -> int:
        """Count the names that are answered."""
        return len(self.answers())

    def answers(self) -> tuple[tuple[str, tuple[int, ...]], ...]:
        """Return what is answered: names, each with the indices of the labels whose scores it sums up."""
        return self._answers

    @cached_property
    def _answers(self) -> tuple[tuple[str, tuple[int, ...]], ...]:
        if self.level is None:
            return tuple((label.name, (index,)) for index, label in enumerate(self.labels))
        found: dict[str, list[int]] = {}
        for index, line in enumerate(self._lines):
            found.setdefault(line[min(self.level, len(line) - 1)], []).append(index)
        return tuple((name, tuple(members)) for name, members in found.items())

    def at(self, level: int | None) -> Vocabulary:
        """Return the same vocabulary, answered at another level of its hierarchy.

        The score of a group is the sum of the scores of all labels below it, and of its own words' if it is a label itself.

        Args:
            level: 0 for the groups at the top, 1 for what is right below, ...; labels that are higher up answer for themselves. None
                for all labels as they are listed.
        """
        return replace(self, level=level)

    def members(self, name: str) -> tuple[int, ...]:
        """Return the indices of the labels that a label or group stands for: itself and all below it."""
        return tuple(index for index, line in enumerate(self._lines) if name in line)

    @cached_property
    def kin(self) -> frozenset[tuple[int, int]]:
        """Pairs of indices of labels, the first smaller, of which one is an ancestor of the other."""
        if all(label.parent is None for label in self.labels):
            return frozenset()
        place = {label.name: index for index, label in enumerate(self.labels)}
        pairs = [(place[name], index) for index, line in enumerate(self._lines) for name in line[:-1] if name in place]
        return frozenset((min(pair), max(pair)) for pair in pairs)

    @cached_property
    def _lines(self) -> tuple[tuple[str, ...], ...]:
        """Name for each label its ancestors from the top, then itself."""
        own = {fold(label.name): label for label in self.labels}
        names = self._known_names()
        lines = []
        for label in self.labels:
            line = [label.name]
            above = label.parent
            while above is not None:
                line.append(names[fold(above)])
                above = own[fold(above)].parent if fold(above) in own else None
            lines.append(tuple(line[::-1]))
        return tuple(lines)

    def _known_names(self) -> dict[str, str]:
        """Map folded names of labels and groups to how they are written first; refuse impossible families."""
        names = {fold(label.name): label.name for label in self.labels}
        parents = {fold(label.name): fold(label.parent) for label in self.labels if label.parent is not None}
        if not parents:
            return names
        synonyms = {fold(word): label for label in self.labels for word in label.synonyms}
        for label in self.labels:
            if label.parent is None:
                continue
            if fold(label.parent) in synonyms:
                other = synonyms[fold(label.parent)]
                raise InvalidLabelsError(f"The parent of {label.name!r} is {label.parent!r}, a synonym: name {other.name!r}.")
            names.setdefault(fold(label.parent), label.parent)
            path = [fold(label.name)]
            while path[-1] in parents:
                path.append(parents[path[-1]])
                if path[-1] in path[:-1]:
                    raise InvalidLabelsError(f"Parents go in a circle: {' < '.join(names.get(key, key) for key in path)}.")
        return names

    # ------------------------------------------------------------------------------------------------------------- files

    @classmethod
    def load(cls, path: str | os.PathLike[str], *, background_line: bool = False) -> Vocabulary:
        """Read a vocabulary from a file.

        Args:
            path: A .yaml, .yml or .json file that `save` wrote or that looks alike; any other suffix is a text file with one label a
                line, synonyms after ";" or ",", as SCLIP, ClearCLIP, ProxyCLIP and many others publish them, or a table as LSeg's.
            background_line: Whether the first line of a text file lists what is background, as in the files of SCLIP and ProxyCLIP
                for VOC21 and COCO-Object. Words of it that are labels, too, are labels.

        Raises:
            InvalidLabelsError: If the file cannot be read, or is no vocabulary.
            MissingDependencyError: If it is YAML, and pyyaml is not installed.
        """
        shown = os.fsdecode(path)
        if is_document(path):
            if background_line:
                raise InvalidLabelsError(f"background_line is for text files; {shown!r} has a key `background`.")
            return cls.from_document(read_document(path), origin=f"The vocabulary {shown!r}")
        entries = read_lines(path)
        background: tuple[str, ...] = ()
        if background_line and entries:
            where, words = entries.pop(0)
            (background,) = check_labels([(where, words)])
        parsed = check_labels(entries, empty=f"The labels file {shown!r} has no labels.")
        if background:
            taken = {fold(word) for words in parsed for word in words}
            background = tuple(word for word in background if fold(word) not in taken)
        return cls(parsed, background=[(word,) for word in background] or None)

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write the vocabulary to a .yaml, .yml, .json or .txt file, complete or not at all, which `load` reads back equal.

        Raises:
            OutputError: If the file cannot be written, or the suffix cannot hold the vocabulary: a .txt holds words alone, and no file
                holds functions as templates, or examples.
            MissingDependencyError: If it is YAML, and pyyaml is not installed.
        """
        from ovseg.output.files import write_atomically

        name = os.path.expanduser(os.fsdecode(path))
        suffix = os.path.splitext(name)[1].lower()
        if is_document(name):
            text = format_document(self.to_document(), name)
        elif suffix == ".txt":
            if self != Vocabulary([label.words for label in self.labels]):
                raise OutputError(f"A text file holds words alone, and this vocabulary says more. Save {name!r} as .yaml or .json.")
            text = format_lines(tuple(label.words for label in self.labels), name)
        else:
            raise OutputError(f"Cannot save {name!r}: expected a name in .yaml, .yml, .json or .txt; got {suffix or 'no suffix'}.")
        with write_atomically(name) as file:
            file.write(text.encode())

    @classmethod
    def named(cls, name: str) -> Vocabulary:
        """Return the classes of a benchmark: a name of `ovseg.class_lists.CLASS_LISTS` ("cityscapes", "ade20k", ...).

        Raises:
            InvalidLabelsError: If there is none of that name; the message names them all.
        """
        from ovseg.class_lists import CLASS_LISTS

        key = re.sub(r"[\s_]+", "-", str(name).strip().casefold())
        if key not in CLASS_LISTS:
            raise InvalidLabelsError(f"No class list is named {show(name)}. There are: {', '.join(CLASS_LISTS)}.")
        return cls.from_document({"labels": CLASS_LISTS[key]}, origin=key)

    def to_document(self) -> dict[str, Any]:
        """Return the vocabulary as JSON and YAML have it: what `load` reads, without defaults.

        Raises:
            OutputError: If a template is a function, or a label has examples.
        """
        document: dict[str, Any] = {"labels": [_label_document(label) for label in self.labels]}
        if self.background is not None:
            document["background"] = _background_document(self.background)
        if self.combine != "best":
            document["combine"] = self.combine
        if self.priorities:
            document["priorities"] = [list(rule) for rule in self.priorities]
        if self.exclusive:
            document["exclusive"] = [list(group) for group in self.exclusive]
        if self.level is not None:
            document["level"] = self.level
        return document

    @classmethod
    def from_document(cls, document: Any, origin: str = "The vocabulary") -> Vocabulary:
        """Read what `to_document` returns; a list alone stands for {"labels": list}.

        Raises:
            InvalidLabelsError: If it is something else.
        """
        if isinstance(document, list):
            document = {"labels": document}
        if not isinstance(document, Mapping) or "labels" not in document:
            raise InvalidLabelsError(f"{origin} must have a key `labels` with a list of labels, or be such a list; got {show(document)}.")
        _check_keys(document, ("labels", "background", "combine", "priorities", "exclusive", "level"), origin)
        labels = document["labels"]
        if not isinstance(labels, list):
            raise InvalidLabelsError(f"{origin}: `labels` must be a list; got {show(labels)}.")
        try:
            return cls(
                [_read_label(entry, f"labels[{index}]") for index, entry in enumerate(labels)],
                background=document.get("background"),
                combine=document.get("combine", "best"),
                priorities=document.get("priorities") or (),
                exclusive=document.get("exclusive") or (),
                level=document.get("level"),
            )
        except InvalidLabelsError as error:
            raise InvalidLabelsError(f"{origin}: {error}") from error

    def __repr__(self) -> str:
        """Name the first labels, and the rules."""
        shown = ", ".join(repr(name) for name in self.names[:8]) + (f", ... ({len(self)})" if len(self) > 8 else "")
        rules = [f"{key}={getattr(self, key)!r}" for key in ("background", "level") if getattr(self, key) is not None]
        rules += [f"combine={self.combine!r}"] if self.combine != "best" else []
        rules += [f"{len(rows)} {key}" for key in ("priorities", "exclusive") if (rows := getattr(self, key))]
        return f"<Vocabulary {', '.join([shown, *rules])}>"


@lru_cache(maxsize=8)
def _of_words(words: tuple[str, ...]) -> Vocabulary:
    """Remember lists of plain words: image after image is asked for the same."""
    return Vocabulary(words)


def parse_labels(labels: Labels) -> tuple[tuple[str, ...], ...]:
    """Clean and check labels, and return their words.

    A str is one label, commas and all. In a sequence every item is one label: a word, a sequence of synonyms whose first is the name that
    results display, or a `Label`. Words are cleaned by `clean_label`; a synonym repeated within its label is dropped.

    Args:
        labels: One word, a path to a labels file (see `read_labels`), a sequence of words, of sequences of synonyms and of `Label`s, or
            a `Vocabulary`.

    Returns:
        One tuple per label in the order given: the displayed name, then its synonyms.

    Raises:
        InvalidLabelsError: There are no labels or more than 65,535, one is blank, too long or no text, or two labels share a word
            (upper and lower case count as the same).
    """
    if isinstance(labels, Vocabulary):
        return tuple(label.words for label in labels.labels)
    if isinstance(labels, os.PathLike):
        return read_labels(labels)
    return check_labels(label_entries(labels))


def parse_entries(labels: Labels) -> tuple[Label, ...]:
    """Do as `parse_labels`, but return `Label`s."""
    if isinstance(labels, Vocabulary):
        return labels.labels
    if isinstance(labels, os.PathLike):
        return Vocabulary.load(labels).labels
    if not isinstance(labels, (str, Label)):
        labels = list_items(labels, "labels", "a label or a sequence of labels")
    parsed = check_labels(label_entries(labels))
    given = [labels] if isinstance(labels, (str, Label)) else list(labels)
    return tuple(entry if isinstance(entry, Label) else Label.plain(words) for entry, words in zip(given, parsed, strict=True))


def parse_background(background: Labels) -> tuple[tuple[tuple[str, ...], ...], bool]:
    """Do as `parse_labels` for background words, of which "auto" is no word but stands for the model's list.

    Args:
        background: As for `parse_labels`. "auto", alone or among the entries of a sequence, stands for the list; `("auto",)` as an entry
            is the word.

    Returns:
        The words of each entry that is not "auto", and whether the list is asked for.
    """
    auto = False
    if not isinstance(background, (Vocabulary, Label, os.PathLike)):
        entries = [background] if isinstance(background, str) else list_items(background, "background", "a word or a sequence of words")
        background = [entry for entry in entries if not (isinstance(entry, str) and entry == AUTO)]
        auto = len(background) < len(entries)
        if auto and not background:
            return (), True
    try:
        return parse_labels(background), auto
    except InvalidLabelsError as error:
        raise InvalidLabelsError(f"In background: {error}") from error


def _background_entries(background: Labels) -> tuple[str | tuple[str, ...], ...] | str:
    words, auto = parse_background(background)
    return words if not auto else (*words, AUTO) if words else AUTO


def read_labels(path: str | os.PathLike[str]) -> tuple[tuple[str, ...], ...]:
    """Read the words of a labels file, whatever else it says.

    Args:
        path: The file; see `Vocabulary.load`.

    Returns:
        The same as `parse_labels`.

    Raises:
        InvalidLabelsError: The file cannot be read, is no UTF-8 text or is larger than 16 MiB, or its labels are invalid.
    """
    return parse_labels(Vocabulary.load(path))


def _shortest(words: tuple[str, ...]) -> str | list[str]:
    return words[0] if len(words) == 1 else list(words)


def _background_document(background: tuple[str | tuple[str, ...], ...] | str) -> Any:
    """Write what `parse_background` reads; the word "auto" must not become the text that stands for the model's list."""
    if isinstance(background, str):
        return background
    return [words if isinstance(words, str) else [AUTO] if words == (AUTO,) else _shortest(words) for words in background]


def _label_document(label: Label) -> Any:
    if label.examples:
        raise OutputError(f"The label {label.name!r} has examples, which no file of a vocabulary holds.")
    said: dict[str, Any] = {}
    if label.color is not None:
        said["color"] = f"#{bytes(label.color).hex()}"
    if label.templates is not None:
        if any(not isinstance(template, str) for template in label.templates):
            raise OutputError(f"A template of the label {label.name!r} is a function, which no file holds. Write it as a text with {{}}.")
        said["templates"] = list(label.templates)
    for key in ("threshold", "parent"):
        if getattr(label, key) is not None:
            said[key] = getattr(label, key)
    if not said:
        return _shortest(label.words)
    return {"name": label.name, **({"synonyms": list(label.synonyms)} if label.synonyms else {}), **said}


def _read_label(entry: Any, where: str) -> Any:
    if not isinstance(entry, Mapping):
        return entry
    _check_keys(entry, ("name", "synonyms", "color", "templates", "threshold", "parent"), where)
    if "name" not in entry:
        raise InvalidLabelsError(f"{where} has no `name`; got {show(dict(entry))}.")
    return Label(**{"synonyms": (), **{str(key): value for key, value in entry.items() if value is not None}})


def _check_keys(values: Mapping[Any, Any], known: tuple[str, ...], where: str) -> None:
    strange = [key for key in values if key not in known]
    if strange:
        raise InvalidLabelsError(f"{where} has the key {show(strange[0])}, which is unknown. There are: {', '.join(known)}.")
