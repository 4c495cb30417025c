"""Labels, synonyms and prompt templates: from what a user types to the prompts of each label.

`parse_labels` turns any accepted form of labels into one, `parse_templates` does so for templates,
and `build_prompts` puts a word into templates.
"""

from __future__ import annotations

import difflib
import functools
import os
import re
import reprlib
import unicodedata
from collections.abc import Callable, Iterable, Mapping
from itertools import islice
from pathlib import Path
from typing import Any, NamedTuple, TypeAlias

from ovseg.articles import indefinite_article, split_article
from ovseg.errors import InvalidLabelsError
from ovseg.templates import TEMPLATE_ALIASES, TEMPLATE_SETS, TemplateSet

__all__ = [
    "MAX_LABELS",
    "MAX_LABEL_LENGTH",
    "TEMPLATE_SETS",
    "Labels",
    "Template",
    "TemplateSet",
    "Templates",
    "build_prompts",
    "clean_label",
    "parse_labels",
    "parse_templates",
    "read_labels",
]

Labels: TypeAlias = str | os.PathLike[str] | Iterable[str | Iterable[str]]
"""One label; a path to a labels file; or labels, each a word or a sequence of synonyms."""

Template: TypeAlias = str | Callable[[str], str]
"""A text with one "{}", or a function from a label to a prompt."""

Templates: TypeAlias = Template | TemplateSet | Iterable[Template | TemplateSet] | None
"""A template, the name of a template set, several of these, or None for the default."""

MAX_LABELS = 65_535  # indices 0..65534 fit uint16, whose 65535 is the ignore_index
MAX_LABEL_LENGTH = 1_000  # characters; text towers read 64 or 77 tokens
_MAX_FILE_SIZE = 16 * 2**20  # bytes

_JOINERS = "\u200c\u200d"  # invisible, but Persian words and many emoji are spelled with them

# Words after which a label may keep its own article: "a satellite photo of the sky".
_ARTICLE_FITS = re.compile(
    r"(?:^|[^\w\s'’-]|\b(?:and|are|at|by|from|in|is|like|near|of|on|or|with|\w+ing))\s*$",
    re.IGNORECASE,
)
_TRAILING_ARTICLE = re.compile(r"(?<![\w'’-])(a|an|the)(\s+[\"'“‘(\[]*)$", re.IGNORECASE)

_repr = reprlib.Repr()
_repr.maxstring = _repr.maxother = 80


def parse_labels(labels: Labels) -> tuple[tuple[str, ...], ...]:
    """Clean and check labels.

    A str is one label, commas and all. In a sequence every item is one label: a word, or a sequence
    of synonyms whose first is the name that results display. Words are cleaned by `clean_label`;
    a synonym repeated within its label is dropped.

    Args:
        labels: One word, a path to a labels file (see `read_labels`), or a sequence of words and
            of sequences of synonyms.

    Returns:
        One tuple per label in the order given: the displayed name, then its synonyms.

    Raises:
        InvalidLabelsError: There are no labels or more than 65,535, one is blank, too long or no
            text, or two labels share a word (upper and lower case count as the same).
    """
    if isinstance(labels, str):
        return _check_labels([("labels", [labels])])
    if isinstance(labels, os.PathLike):
        return read_labels(labels)
    groups: list[tuple[str, list[Any]]] = []
    for i, entry in enumerate(_items(labels, "labels", "a label or a sequence of labels")):
        where = f"labels[{i}]"
        if isinstance(entry, str):
            groups.append((where, [entry]))
        else:
            groups.append((where, _items(entry, where, "a word or a sequence of synonyms")))
    return _check_labels(groups)


def read_labels(path: str | os.PathLike[str]) -> tuple[tuple[str, ...], ...]:
    """Read labels from a UTF-8 text file with one label per line.

    Blank lines and lines that begin with "#" are skipped. Synonyms share a line: a line that has a
    ";" is split there and nowhere else, any other line at its commas. A name with a comma is thus
    written with a semicolon at the end: "Bonaire, Saint Eustatius and Saba;".

    Args:
        path: The file.

    Returns:
        The same as `parse_labels`.

    Raises:
        InvalidLabelsError: The file cannot be read, is no UTF-8 text or is larger than 16 MiB, or
            its labels are invalid.
    """
    shown = os.fsdecode(path)
    try:
        with Path(shown).open("rb") as file:
            data = file.read(_MAX_FILE_SIZE + 1)
    except (OSError, ValueError) as error:  # ValueError: a path with a null character
        reason = getattr(error, "strerror", None) or error
        raise InvalidLabelsError(
            f"Cannot read the labels file {shown!r}: {reason}. A labels file is a text file with "
            "one label per line."
        ) from error
    if len(data) > _MAX_FILE_SIZE:
        raise InvalidLabelsError(
            f"The labels file {shown!r} is larger than {_MAX_FILE_SIZE // 2**20} MiB. A labels "
            "file is a text file with one label per line; is this another file?"
        )
    if data.startswith((b"\xff\xfe", b"\xfe\xff")):
        raise InvalidLabelsError(f"The labels file {shown!r} is UTF-16 text. Save it as UTF-8.")
    if b"\0" in data:
        raise InvalidLabelsError(
            f"The labels file {shown!r} is a binary file. A labels file is a UTF-8 text file with "
            "one label per line."
        )
    try:
        text = data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = data.count(b"\n", 0, error.start) + 1
        raise InvalidLabelsError(
            f"The labels file {shown!r} is not UTF-8 text (line {line}, byte "
            f"0x{data[error.start]:02x}). Save it as UTF-8."
        ) from error

    groups: list[tuple[str, list[Any]]] = []
    for number, line_text in enumerate(re.split(r"\r\n|\r|\n", text), start=1):
        line_text = line_text.strip()
        if not line_text or line_text.startswith("#"):
            continue
        separator = ";" if ";" in line_text else ","
        words = [word for word in line_text.split(separator) if word.strip()]
        groups.append((f"line {number} of {shown!r}", words))
    return _check_labels(groups, empty=f"The labels file {shown!r} has no labels.")


def clean_label(text: str) -> str:
    """Clean a label for display and for prompts.

    Underscores become spaces, control and other invisible characters go, the text is brought to
    Unicode form NFC, and whitespace is stripped and collapsed. Case and punctuation stay, and so
    does what tells two meanings apart: "crane (bird)".

    Args:
        text: A label.

    Returns:
        The cleaned label; blank if nothing visible is left.
    """
    text = str(text).replace("_", " ")
    if not text.isprintable():
        text = "".join(c for c in text if c.isspace() or c in _JOINERS or not _is_control(c))
    return " ".join(unicodedata.normalize("NFC", text).split())


def parse_templates(templates: Templates, *, default: Templates = "none") -> tuple[Template, ...]:
    """Resolve the names of template sets and check templates.

    A str that holds "{}" is a template, any other str the name of a template set (upper and lower
    case, spaces, "_" and "-" count as the same). A template has exactly one "{}" and no other
    brace; a prompt with braces needs a function.

    Args:
        templates: A template, the name of a template set, or a sequence that mixes them. None
            stands for `default`.
        default: What the caller uses where the user asked for nothing, such as the model's own set.

    Returns:
        The templates in the order given, without repetitions.

    Raises:
        InvalidLabelsError: There are no templates, or one is neither a template nor the name of a
            template set.
    """
    if templates is None:
        templates = "none" if default is None else default
    if isinstance(templates, str | TemplateSet) or callable(templates):
        templates = (templates,)
    found: dict[str | int, Template] = {}  # functions may be unhashable, so they go by identity
    kinds = "a template, the name of a template set, a function, or a sequence of these"
    for i, item in enumerate(_items(templates, "templates", kinds)):
        if isinstance(item, TemplateSet):
            found.update((text, text) for text in item.templates)
        elif isinstance(item, str):
            found.update((text, text) for text in _resolve_template(str(item)))
        elif callable(item):
            found[id(item)] = item
        else:
            raise InvalidLabelsError(
                f"templates[{i}] must be a template, the name of a template set or a function from "
                f"a label to a prompt; got {_show(item)}."
            )
    if not found:
        raise InvalidLabelsError(
            'templates is empty. Pass "none" to use labels as they are, or None for the default.'
        )
    return tuple(found.values())


def build_prompts(name: str, templates: Templates = None) -> tuple[str, ...]:
    """Put a word into templates.

    An article right before the "{}" of a template agrees with the word: "a photo of an apple.". An
    article that the word brings along is not doubled: where the template has one the two become
    one, and "the" wins over "a"; elsewhere the word keeps its own only where one can stand, as in
    "a photo of the sky.", but "a plastic dog.". All else stays as published, so mass nouns and
    plurals keep the article ("a photo of a grass."). A function gets the word as it is and its
    prompt is left alone: `[text.format for text in TEMPLATE_SETS["imagenet"].templates]` gives the
    published prompts without agreement ("a photo of a apple.").

    Args:
        name: A label or a synonym. It is cleaned by `clean_label`.
        templates: Anything that `parse_templates` accepts.

    Returns:
        The prompts in the order of the templates, without repetitions.

    Raises:
        InvalidLabelsError: The word is blank, a template is invalid, or a function gave no text.
    """
    name = _check_word(name, "The label")
    own, noun = split_article(name)
    indefinite = indefinite_article(noun)
    prompts: dict[str, None] = {}
    for template in parse_templates(templates):
        if isinstance(template, str):
            prompts[_split_template(template).fill(name, own, noun, indefinite)] = None
            continue
        prompt = template(name)
        if not isinstance(prompt, str) or not prompt.strip():
            raise InvalidLabelsError(
                f"The template function {_show(template)} must return a prompt that is not blank; "
                f"it returned {_show(prompt)} for the label {name!r}."
            )
        prompts[str(prompt)] = None
    return tuple(prompts)


class _SplitTemplate(NamedTuple):
    """A template cut at its "{}" and at the article before it."""

    before: str
    article: str
    gap: str
    after: str
    takes_article: bool

    def fill(self, name: str, own: str, noun: str, indefinite: str) -> str:
        """Insert a label.

        Args:
            name: The label.
            own: The article that the label begins with, or "".
            noun: The label without that article.
            indefinite: "a" or "an", whichever the noun takes.
        """
        if not self.article:
            word = name if self.takes_article else noun
            return f"{self.before}{word}{self.after}"
        article = "the" if "the" in (own, self.article.lower()) else indefinite
        if self.article.isupper() and len(self.article) > 1:
            article = article.upper()
        elif self.article[0].isupper():
            article = article.capitalize()
        return f"{self.before}{article}{self.gap}{noun}{self.after}"


@functools.lru_cache(maxsize=1024)
def _split_template(template: str) -> _SplitTemplate:
    before, _, after = template.partition("{}")
    match = _TRAILING_ARTICLE.search(before)
    if match is None:
        return _SplitTemplate(before, "", "", after, bool(_ARTICLE_FITS.search(before)))
    return _SplitTemplate(before[: match.start()], match[1], match[2], after, True)


@functools.lru_cache(maxsize=1024)
def _resolve_template(text: str) -> tuple[str, ...]:
    """Give the templates of a set by its name, or the template itself."""
    _check_unicode(text, "The template")
    key = "-".join(re.split(r"[\s_-]+", text.strip().casefold()))
    entry = TEMPLATE_SETS.get(TEMPLATE_ALIASES.get(key, key))
    if entry is not None:
        return entry.templates
    braces = re.findall(r"[{}]", text)
    if braces == ["{", "}"] and "{}" in text:
        return (text,)
    if braces:
        raise InvalidLabelsError(
            f'A template must have exactly one "{{}}" and no other brace; got {_show(text)}. For '
            "prompts with braces pass a function from a label to a prompt."
        )
    close = difflib.get_close_matches(key, [*TEMPLATE_SETS, *TEMPLATE_ALIASES], n=3)
    hint = " Did you mean " + " or ".join(repr(name) for name in close) + "?" if close else ""
    raise InvalidLabelsError(
        f'{_show(text)} is neither a template (it has no "{{}}") nor a template set.{hint} '
        f"Template sets: {', '.join(TEMPLATE_SETS)}."
    )


def _items(values: Any, where: str, what: str) -> list[Any]:
    """List the items of a sequence, and refuse all that is none."""
    if isinstance(values, Mapping):
        raise InvalidLabelsError(
            f"{where} must be {what}; got a mapping, {_show(values)}. "
            "Pass list(mapping) or list(mapping.values())."
        )
    if isinstance(values, set | frozenset):
        raise InvalidLabelsError(
            f"{where} must be {what}; got a set, whose order is not defined: {_show(values)}. "
            "Pass a list in the order you want."
        )
    if isinstance(values, bytes | bytearray | memoryview):
        raise InvalidLabelsError(
            f"{where} must be {what}; got bytes, {_show(values)}. Decode them as UTF-8 first."
        )
    try:
        items = list(islice(values, MAX_LABELS + 1))
    except TypeError as error:
        raise InvalidLabelsError(f"{where} must be {what}; got {_show(values)}.") from error
    if len(items) > MAX_LABELS:
        raise InvalidLabelsError(f"{where} has more than {MAX_LABELS:,} entries.")
    return items


def _check_labels(
    groups: Iterable[tuple[str, list[Any]]], *, empty: str = "labels is empty."
) -> tuple[tuple[str, ...], ...]:
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
            word = _check_word(raw, where if len(words) == 1 else f"{where}, word {position + 1},")
            key = _fold(word)
            if key not in owners:
                owners[key] = (index, where, word)
                kept.append(word)
            elif owners[key][0] != index:
                _, other_where, other = owners[key]
                raise InvalidLabelsError(
                    f"{where} repeats {other_where}: {word!r} and {other!r} are the same word. A "
                    "word may belong to one label only; remove one or tell them apart, as in "
                    "'crane (bird)' and 'crane (machine)'."
                )
        parsed.append(tuple(kept))
    if not parsed:
        raise InvalidLabelsError(f"{empty} Give at least one label, for example ['sky', 'grass'].")
    return tuple(parsed)


def _check_word(word: Any, where: str) -> str:
    """Clean one word and refuse what is no text, blank or too long."""
    if not isinstance(word, str):
        deeper = isinstance(word, list | tuple)
        reason = " Synonyms cannot be nested deeper." if deeper else ""
        raise InvalidLabelsError(f"{where} must be text (a str); got {_show(word)}.{reason}")
    _check_unicode(word, where)
    cleaned = clean_label(word)
    if len(cleaned) > MAX_LABEL_LENGTH:
        raise InvalidLabelsError(
            f"{where} has {len(cleaned):,} characters; at most {MAX_LABEL_LENGTH:,} are allowed. "
            f"Shorten {_show(word)}."
        )
    if all(c.isspace() or _is_control(c) for c in cleaned):
        raise InvalidLabelsError(
            f"{where} is blank; got {_show(word)}. Give it a name or leave it out."
        )
    return cleaned


def _check_unicode(text: str, where: str) -> None:
    try:
        text.encode("utf-8")
    except UnicodeEncodeError as error:
        raise InvalidLabelsError(
            f"{where} is not valid Unicode: {text[error.start]!r} at position {error.start} is "
            "half of a surrogate pair. Decode the text that it comes from as UTF-8."
        ) from error


def _fold(word: str) -> str:
    """Give the form in which two spellings of a word are equal."""
    bare = "".join(c for c in word if c not in _JOINERS)
    return unicodedata.normalize("NFC", bare.casefold())


def _is_control(character: str) -> bool:
    return unicodedata.category(character) in ("Cc", "Cf", "Cs")


def _show(value: object) -> str:
    """Show a value of any size in a message, with its type unless it is a str."""
    shown = _repr.repr(value)
    return shown if isinstance(value, str) else f"{shown} ({type(value).__name__})"
