"""Words and prompt templates: cleaning a word, resolving templates, and putting the one into the other.

`clean_label` and `check_word` make a word fit for display, `parse_templates` turns any accepted form of templates into one, and
`build_prompts` puts a word into templates.
"""

from __future__ import annotations

import difflib
import functools
import re
import reprlib
import unicodedata
from collections.abc import Callable, Iterable, Mapping
from itertools import islice
from typing import Any, NamedTuple, TypeAlias

from ovseg.articles import indefinite_article, split_article
from ovseg.errors import InvalidLabelsError
from ovseg.templates import TEMPLATE_ALIASES, TEMPLATE_SETS, TemplateSet

Template: TypeAlias = str | Callable[[str], str]
"""A text with one "{}", or a function from a label to a prompt."""

Templates: TypeAlias = Template | TemplateSet | Iterable[Template | TemplateSet] | None
"""A template, the name of a template set, several of these, or None for the default."""

MAX_LABELS = 65_535  # indices 0..65534 fit uint16, whose 65535 is the ignore_index
MAX_LABEL_LENGTH = 1_000  # characters; text towers read 64 or 77 tokens

_JOINERS = "\u200c\u200d"  # invisible, but Persian words and many emoji are spelled with them

# Words after which a label may keep its own article: "a satellite photo of the sky".
_ARTICLE_FITS = re.compile(
    r"(?:^|[^\w\s'’-]|\b(?:and|are|at|by|from|in|is|like|near|of|on|or|with|\w+ing))\s*$",
    re.IGNORECASE,
)
_TRAILING_ARTICLE = re.compile(r"(?<![\w'’-])(a|an|the)(\s+[\"'“‘(\[]*)$", re.IGNORECASE)

_repr = reprlib.Repr()
_repr.maxstring = _repr.maxother = 80


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
    if text.isascii() and text.isprintable():
        return " ".join(text.split())
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
    for i, item in enumerate(list_items(templates, "templates", kinds)):
        if isinstance(item, TemplateSet):
            found.update((text, text) for text in item.templates)
        elif isinstance(item, str):
            found.update((text, text) for text in _resolve_template(str(item)))
        elif callable(item):
            found[id(item)] = item
        else:
            raise InvalidLabelsError(
                f"templates[{i}] must be a template, the name of a template set or a function from "
                f"a label to a prompt; got {show(item)}."
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
    name = check_word(name, "The label")
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
                f"The template function {show(template)} must return a prompt that is not blank; "
                f"it returned {show(prompt)} for the label {name!r}."
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
            f'A template must have exactly one "{{}}" and no other brace; got {show(text)}. For '
            "prompts with braces pass a function from a label to a prompt."
        )
    close = difflib.get_close_matches(key, [*TEMPLATE_SETS, *TEMPLATE_ALIASES], n=3)
    hint = " Did you mean " + " or ".join(repr(name) for name in close) + "?" if close else ""
    raise InvalidLabelsError(
        f'{show(text)} is neither a template (it has no "{{}}") nor a template set.{hint} '
        f"Template sets: {', '.join(TEMPLATE_SETS)}."
    )


def list_items(values: Any, where: str, what: str) -> list[Any]:
    """List the items of a sequence, and refuse all that is none."""
    if isinstance(values, Mapping):
        raise InvalidLabelsError(
            f"{where} must be {what}; got a mapping, {show(values)}. "
            "Pass list(mapping) or list(mapping.values())."
        )
    if isinstance(values, set | frozenset):
        raise InvalidLabelsError(
            f"{where} must be {what}; got a set, whose order is not defined: {show(values)}. "
            "Pass a list in the order you want."
        )
    if isinstance(values, bytes | bytearray | memoryview):
        raise InvalidLabelsError(
            f"{where} must be {what}; got bytes, {show(values)}. Decode them as UTF-8 first."
        )
    try:
        items = list(islice(values, MAX_LABELS + 1))
    except TypeError as error:
        raise InvalidLabelsError(f"{where} must be {what}; got {show(values)}.") from error
    if len(items) > MAX_LABELS:
        raise InvalidLabelsError(f"{where} has more than {MAX_LABELS:,} entries.")
    return items


def check_word(word: Any, where: str) -> str:
    """Clean one word and refuse what is no text, blank or too long."""
    if not isinstance(word, str):
        deeper = isinstance(word, list | tuple)
        reason = " Synonyms cannot be nested deeper." if deeper else ""
        raise InvalidLabelsError(f"{where} must be text (a str); got {show(word)}.{reason}")
    _check_unicode(word, where)
    cleaned = clean_label(word)
    if len(cleaned) > MAX_LABEL_LENGTH:
        raise InvalidLabelsError(
            f"{where} has {len(cleaned):,} characters; at most {MAX_LABEL_LENGTH:,} are allowed. "
            f"Shorten {show(word)}."
        )
    if not (cleaned and cleaned.isascii() and cleaned.isprintable()) and all(c.isspace() or _is_control(c) for c in cleaned):
        raise InvalidLabelsError(
            f"{where} is blank; got {show(word)}. Give it a name or leave it out."
        )
    return cleaned


def _check_unicode(text: str, where: str) -> None:
    if text.isascii():
        return
    try:
        text.encode("utf-8")
    except UnicodeEncodeError as error:
        raise InvalidLabelsError(
            f"{where} is not valid Unicode: {text[error.start]!r} at position {error.start} is "
            "half of a surrogate pair. Decode the text that it comes from as UTF-8."
        ) from error


def fold(word: str) -> str:
    """Give the form in which two spellings of a word are equal."""
    if word.isascii():  # most words of long vocabularies
        return word.casefold()
    bare = "".join(c for c in word if c not in _JOINERS)
    return unicodedata.normalize("NFC", bare.casefold())


def _is_control(character: str) -> bool:
    return unicodedata.category(character) in ("Cc", "Cf", "Cs")


def show(value: object) -> str:
    """Show a value of any size in a message, with its type unless it is a str."""
    shown = _repr.repr(value)
    return shown if isinstance(value, str) else f"{shown} ({type(value).__name__})"
