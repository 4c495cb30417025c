"""Text for pictures: fonts, and something readable for characters they do not have.

Pillow brings one font, which knows plain ASCII and little more. Other text is set in a font of the
operating system that has all its characters; where there is none, accents are dropped, symbols are
named, and what is left is written as escapes.
"""

from __future__ import annotations

import unicodedata
from functools import lru_cache

from PIL import ImageFont

Font = ImageFont.ImageFont | ImageFont.FreeTypeFont | ImageFont.TransposedFont

# Usual on Linux, Windows and macOS; between them they have most scripts. Pillow looks in the
# system's font folders.
_SYSTEM_FONTS = (
    "DejaVuSans.ttf",
    "NotoSans-Regular.ttf",
    "arial.ttf",
    "Arial.ttf",
    "Arial Unicode.ttf",
    "NotoSansCJK-Regular.ttc",
    "msyh.ttc",
    "malgun.ttf",
    "Nirmala.ttf",
    "PingFang.ttc",
    "Hiragino Sans GB.ttc",
)
_NOT_A_CHARACTER = "\U0010ffff"  # whatever a font draws for it is its sign for "missing"


def prepare_text(text: str, size: int) -> tuple[str, Font]:
    """Choose a font for a text and replace what cannot be drawn.

    Args:
        text: Any text; white space is collapsed to single spaces.
        size: Font size [px].

    Returns:
        The text to draw and the font to draw it with.
    """
    text = unicodedata.normalize("NFC", " ".join(text.split()))
    for name in (None, *_system_fonts(text)):
        if all(_has(name, character) for character in text):
            return text, _load_font(name, size)
    return "".join(_replace(character) for character in text), _load_font(None, size)


def shorten_text(text: str, font: Font, width: float) -> str:
    """Cut a text so that it is at most `width` pixels wide, with an ellipsis where it was cut."""
    if font.getlength(text) <= width:
        return text
    low, high = 0, len(text)
    while low < high:
        middle = (low + high + 1) // 2
        if font.getlength(text[:middle].rstrip() + "...") <= width:
            low = middle
        else:
            high = middle - 1
    return text[:low].rstrip() + "..."


def _system_fonts(text: str) -> tuple[str, ...]:
    # Looking for fonts walks through folders: not for the plain text that most labels are.
    return () if text.isascii() else _installed_fonts()


@lru_cache(maxsize=1)
def _installed_fonts() -> tuple[str, ...]:
    found = []
    for name in _SYSTEM_FONTS:
        try:
            ImageFont.truetype(name, 16)
        except (OSError, ImportError):  # not installed; Pillow without FreeType
            continue
        found.append(name)
    return tuple(found)


@lru_cache(maxsize=32)
def _load_font(name: str | None, size: int) -> Font:
    return ImageFont.load_default(size) if name is None else ImageFont.truetype(name, size)


@lru_cache(maxsize=4096)
def _has(name: str | None, character: str) -> bool:
    if character == " ":
        return True
    font = _load_font(name, 16)
    try:
        drawn, missing = (font.getmask(text) for text in (character, _NOT_A_CHARACTER))
    except UnicodeEncodeError:  # Pillow without FreeType: its bitmap font is Latin-1 only
        return character.isascii()
    return (drawn.size, bytes(drawn)) != (missing.size, bytes(missing))


def _replace(character: str) -> str:
    """Write a character with ASCII characters."""
    if _has(None, character):
        return character
    name = unicodedata.name(character, "")
    without_marks = unicodedata.normalize("NFKD", character)
    candidates = [
        "".join(c for c in without_marks if not unicodedata.combining(c)),
        character.casefold(),  # a sharp s becomes ss
    ]
    if " WITH " in name:  # Latin letters with a stroke do not decompose
        try:
            candidates.append(unicodedata.lookup(name.partition(" WITH ")[0]))
        except KeyError:
            pass
    for candidate in candidates:
        if candidate and candidate.isascii():
            return candidate
    category = unicodedata.category(character)
    if category in ("Cf", "Mn"):  # joiners and variant selectors are invisible anyway
        return ""
    if category == "So" and name:
        return f":{name.lower()}:"
    return character.encode("ascii", "backslashreplace").decode("ascii")
