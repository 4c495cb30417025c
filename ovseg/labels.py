"""A label: a name and what may be said of it; and the checks that all labels go through."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from numbers import Real
from typing import Any, TypeAlias

from ovseg.errors import InvalidLabelsError
from ovseg.prompts import MAX_LABELS, Template, Templates, check_word, fold, list_items, parse_templates, show
from ovseg.templates import TemplateSet

Color: TypeAlias = "str | Sequence[int] | None"
"""A colour as "#rrggbb" or as three numbers from 0 to 255."""


@dataclass(frozen=True, init=False, repr=False)
class Label:
    """A label and what may be said of it.

    Attributes:
        name: What results display; it is asked, too.
        synonyms: Further words for the same.
        color: (red, green, blue), each 0 to 255, in overlays, legends and index PNGs; None for one by rule.
        templates: Prompt templates of this label, as `Segmenter.segment` takes them; None for those of the others.
        threshold: Least score of its pixels in [0, 1]; others stay undecided. None for that of the others.
        parent: Name of the group that it belongs to; see `Vocabulary.at`. None for none.
        examples: What shows what the label means, in place of or beside words.

    Args:
        name: The name. It is cleaned: "traffic_light " is "traffic light".
        synonyms: A word or several.
        color: "#rrggbb" or three numbers.
        templates: As above.
        threshold: As above.
        parent: As above.
        examples: As above.

    Raises:
        InvalidLabelsError: If one of them is not what it should be.
    """

    name: str
    synonyms: tuple[str, ...] = ()
    color: tuple[int, int, int] | None = None
    templates: tuple[Template, ...] | None = None
    threshold: float | None = None
    parent: str | None = None
    examples: tuple[Any, ...] = field(default=(), compare=False)  # pictures

    def __init__(
        self,
        name: str,
        synonyms: str | Iterable[str] = (),
        *,
        color: Color = None,
        templates: Templates = None,
        threshold: float | None = None,
        parent: str | None = None,
        examples: Iterable[Any] = (),
    ) -> None:
        words = [name, *([synonyms] if isinstance(synonyms, str) else list_items(synonyms, "synonyms", "a word or a sequence of words"))]
        (parsed,) = check_labels([("Label", words)])
        where = f"The label {parsed[0]!r}"
        values = {
            "name": parsed[0],
            "synonyms": parsed[1:],
            "color": _parse_color(color, where),
            "templates": None if templates is None else _template_names(templates),
            "threshold": _parse_part(threshold, f"{where}: threshold"),
            "parent": None if parent is None else check_word(parent, f"{where}: parent"),
            "examples": tuple(examples),
        }
        if values["parent"] is not None and fold(parent or "") in map(fold, parsed):
            raise InvalidLabelsError(f"{where} cannot be its own parent.")
        for key, value in values.items():
            object.__setattr__(self, key, value)

    @classmethod
    def plain(cls, words: tuple[str, ...]) -> Label:
        """Make a label of words that were checked."""
        label = object.__new__(cls)
        label.__dict__.update(_NOTHING_SAID, name=words[0], synonyms=words[1:])
        return label

    @property
    def words(self) -> tuple[str, ...]:
        """The name and the synonyms: all that is asked."""
        return (self.name, *self.synonyms)

    def __repr__(self) -> str:
        """Show what was said, as one would type it."""
        parts = [repr(self.name), *([repr(self.synonyms)] if self.synonyms else [])]
        said = [(key, getattr(self, key)) for key in ("color", "templates", "threshold", "parent")]
        parts += [f"{key}={value!r}" for key, value in said if value is not None]
        return f"Label({', '.join(parts)}{f', {len(self.examples)} examples' if self.examples else ''})"


_NOTHING_SAID = {"color": None, "templates": None, "threshold": None, "parent": None, "examples": ()}


def label_entries(labels: str | Label | Iterable[str | Label | Iterable[str]]) -> Iterator[tuple[str, list[Any]]]:
    """List the words of labels, unchecked, with where each label stands; one at a time, so that the first error comes soon."""
    if isinstance(labels, str):
        yield "labels", [labels]
        return
    if isinstance(labels, Label):
        yield "labels", list(labels.words)
        return
    for i, entry in enumerate(list_items(labels, "labels", "a label or a sequence of labels")):
        where = f"labels[{i}]"
        if isinstance(entry, str):
            yield where, [entry]
        elif isinstance(entry, Label):
            yield where, list(entry.words)
        else:
            yield where, list_items(entry, where, "a word or a sequence of synonyms")


def check_labels(groups: Iterable[tuple[str, list[Any]]], *, empty: str = "labels is empty.") -> tuple[tuple[str, ...], ...]:
    """Clean and check labels.

    Args:
        groups: Where each label comes from, for messages, and its words.
        empty: What to say when there is no label.
    """
    parsed: list[tuple[str, ...]] = []
    owners: dict[str, tuple[int, str, str]] = {}  # folded word: index of its label, where, word
    for index, (where, words) in enumerate(groups):
        if index == MAX_LABELS:
            raise InvalidLabelsError(f"There are more than {MAX_LABELS:,} labels ({where}).")
        if not words:
            raise InvalidLabelsError(f"{where} has no word. Give it a name or leave it out.")
        kept: list[str] = []
        for position, raw in enumerate(words):
            word = check_word(raw, where if len(words) == 1 else f"{where}, word {position + 1},")
            key = fold(word)
            if key not in owners:
                owners[key] = (index, where, word)
                kept.append(word)
            elif owners[key][0] != index:
                _, other_where, other = owners[key]
                raise InvalidLabelsError(
                    f"{where} repeats {other_where}: {word!r} and {other!r} are the same word. A word may belong to one label only; remove "
                    "one or tell them apart, as in 'crane (bird)' and 'crane (machine)'."
                )
        parsed.append(tuple(kept))
    if not parsed:
        raise InvalidLabelsError(f"{empty} Give at least one label, for example ['sky', 'grass'].")
    return tuple(parsed)


def _parse_color(color: Any, where: str) -> tuple[int, int, int] | None:
    if color is None:
        return None
    if isinstance(color, str):
        if match := re.fullmatch(r"#?([0-9a-fA-F]{6})", color.strip()):
            red, green, blue = bytes.fromhex(match[1])
            return red, green, blue
    elif isinstance(color, Iterable) and not isinstance(color, Mapping):
        numbers = list(color)
        if len(numbers) == 3 and all(not isinstance(n, bool) and hasattr(n, "__index__") and 0 <= n <= 255 for n in numbers):
            return int(numbers[0]), int(numbers[1]), int(numbers[2])
    raise InvalidLabelsError(f"{where}: color must be '#rrggbb' or three whole numbers from 0 to 255; got {show(color)}.")


def _parse_part(value: Any, where: str) -> float | None:
    if value is None:
        return None
    if isinstance(value, bool) or not isinstance(value, Real) or not 0 <= float(value) <= 1:
        raise InvalidLabelsError(f"{where} must be a number in [0, 1]; got {show(value)}.")
    return float(value)


def _template_names(templates: Templates) -> tuple[Template, ...]:
    """Check templates and keep the names of sets as names, so that a saved vocabulary stays short."""
    alone = isinstance(templates, str | TemplateSet) or callable(templates)
    given: list[Any] = [templates] if alone else list_items(templates, "templates", "a template or several")
    names = [entry.name if isinstance(entry, TemplateSet) else entry for entry in given]
    parse_templates(names)
    return tuple(names)
