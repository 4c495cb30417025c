"""Texts to token ids by a tokenizer.json, without torch and without the packages that models were published with."""

from __future__ import annotations

import html
import string
import unicodedata
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from ovseg.errors import InvalidLabelsError, WeightsError
from ovseg.text import Tokenize

CLEANINGS = ("none", "case", "lower", "whitespace", "canonicalize")
"""What happens to a text first: nothing; lower case; or one of open_clip's three ways (see `clean`)."""

_LIGATURES = {"ﬀ": "ff", "ﬁ": "fi", "ﬂ": "fl", "ﬃ": "ffi", "ﬄ": "ffl", "ﬅ": "ſt", "ﬆ": "st", "ĳ": "ij", "Ĳ": "IJ", "ŉ": "ʼn",
              "ǆ": "dž", "ǅ": "Dž", "Ǆ": "DŽ", "ǉ": "lj", "ǈ": "Lj", "Ǉ": "LJ", "ǌ": "nj", "ǋ": "Nj", "Ǌ": "NJ", "ǳ": "dz",
              "ǲ": "Dz", "Ǳ": "DZ"}  # fmt: skip
_WIDTHS = {chr(code): unicodedata.normalize("NFKC", chr(code)) for code in range(0xFF01, 0xFFF0)} | {"\u3000": " "}
_QUOTES = dict.fromkeys("\u02bc\u2018\u2019\u201a\u201b", "'") | dict.fromkeys("\u201c\u201d\u201e\u201f", '"')
_PLAIN = str.maketrans({**_LIGATURES, **_WIDTHS})
_UNCURLED = str.maketrans(_QUOTES)
_NO_PUNCTUATION = str.maketrans("", "", string.punctuation)


def clean(text: str, how: str) -> str:
    """Prepare a text as the tokenizer's models saw it.

    open_clip's ways begin with ftfy's repairs; of these only those that a typed word can need are here: HTML entities, ligatures, wide
    letters, curly quotes and composed accents. Text that was decoded with the wrong character set is not repaired.

    Args:
        text: Any text.
        how: One of `CLEANINGS`: "lower" and "whitespace" leave one space between words, the first in lower case; "canonicalize" is lower
            case without punctuation.
    """
    if how == "none":
        return text
    if how == "case":
        return text.lower()
    if "<" not in text:
        text = html.unescape(text)
    text = unicodedata.normalize("NFC", text.translate(_PLAIN).translate(_UNCURLED))
    text = html.unescape(html.unescape(text))
    if how == "canonicalize":
        text = text.replace("_", " ").translate(_NO_PUNCTUATION)
    text = " ".join(text.split())
    return text if how == "whitespace" else text.lower()


def file_tokenizer(path: Path, facts: Mapping[str, Any] | None = None) -> Tokenize:
    """Read a tokenizer.json.

    Args:
        path: The file. It says where a text is cut, whether it is padded, and which marks stand around it.
        facts: What it cannot say, from the card: "clean", one of `CLEANINGS` ("none" if not there); "zero", a token whose id becomes 0;
            "needs_words", whether a text without any token is refused.

    Returns:
        A function from N texts to N lists of ids.

    Raises:
        WeightsError: If the file is damaged, or the facts are not known.
    """
    from tokenizers import Tokenizer

    facts = facts or {}
    how, zero = facts.get("clean", "none"), facts.get("zero")
    if how not in CLEANINGS or not set(facts) <= {"clean", "zero", "needs_words"}:
        raise WeightsError(f"The tokenizer {path} needs a newer ovseg: the card says {dict(facts)}. Update ovseg, or export anew.")
    try:
        tokenizer = Tokenizer.from_file(str(path))
    except Exception as error:  # tokenizers raises Exception itself
        raise WeightsError(f"The tokenizer {path} is damaged: {error}. Reinstall ovseg, or export the model anew.") from error

    def tokenize(texts: Sequence[str]) -> list[list[int]]:
        rows = [encoding.ids for encoding in tokenizer.encode_batch([clean(text, how) for text in texts])]
        if facts.get("needs_words") and [] in rows:
            raise InvalidLabelsError(f"The text {texts[rows.index([])]!r} has no word that the model could read. Give a name.")
        return rows if zero is None else [[0 if token == zero else token for token in row] for row in rows]

    return tokenize
