"""English articles: "a" or "an" for any label, by sound rather than by spelling.

The template "a photo of a {}." has to become "a photo of an umbrella." but "a photo of a unicorn."
The rules look at the first word only. They know vowels that sound like a consonant, silent h,
numbers, single letters and initialisms; a text in another script gets "a".
"""

from __future__ import annotations

import re
import unicodedata

_AN_LETTERS = frozenset("aefhilmnorsx")  # their own names begin with a vowel: "an X-ray"

# Initialisms that could be read as a word: only a list can tell them. The others follow rules.
_SPELLED = frozenset(
    "hiv led nyc sos suv "
    "uae uav uci ucla udp ufo uhd uhf ui uk un upc ups url us usa usb uss ussr uv ux".split()
)
_ABBREVIATED = frozenset("ft lt mr mrs ms mt sgt sr st".split())  # no vowel, but read in full

_CONSONANT_SOUND = re.compile(  # words that begin with a vowel and sound like "you" or "w"
    r"eu|ewer?s?(?![a-z])"  # European, eucalyptus, ewe, ewer
    r"|uni(?!n|m|ll|de|ro|ss)|unimo|unanim|unesco"  # university; but uninhabited, unidentified
    r"|us[aeu]|ut[eio]|utah|ur[aeiou]"  # used, usual, utensil, utility, uranium, urinal
    r"|ubiq|uk[eru]|uga|uv[eu]|uy"  # ubiquitous, Ukrainian, ukulele, Ugandan, uvula, Uyghur
    r"|one(?:s|sies?|self)?(?![a-z])|once(?![a-z])|oui|oua|oax"  # one-way, onesie, ouija
)
_VOWEL_SOUND = re.compile(  # words that begin with h or y and sound like a vowel
    r"hour|honest|honou?r|heir|herb(?!iv|er|ic)|hors d"  # herb: American
    r"|y[bcdfglmnprstvz]"  # yttrium
)
# No English word begins with such a pair of letters: MRI, NBA, rfid, html, Xbox ...
_SPELLED_START = re.compile(r"[fhlmnrsx][bcdfghjklmnpqrstvwxz]")
# ... but for these: fjord, flower, Hmong, Lhasa, llama, mnemonic, rhino, Rwanda, scooter, Sri.
_WORD_START = re.compile(r"f[jlr]|hmong|l[hl]|mnem|nguy|r[hw]|s[cfhklmnpqtvwz]|sri")

_ARTICLE = re.compile(r"(a|an|the)\s+(?=\S)", re.IGNORECASE)


def indefinite_article(text: str) -> str:
    """Give the indefinite article that English puts before a text.

    Args:
        text: A label or any other text, for example "one-way street".

    Returns:
        "a" or "an".
    """
    plain = "".join(c for c in unicodedata.normalize("NFKD", text) if not unicodedata.combining(c))
    start = re.search(r"[^\W_]", plain)
    if start is None:
        return "a"
    plain = plain[start.start() :]
    word = plain.lower()
    if word[0].isdigit():
        return _before_number(word)
    letters = re.split(r"[^a-z]", word, maxsplit=1)[0]
    if not letters:
        return "a"
    if _is_spelled(letters, plain[: len(letters) + 1]):
        return "an" if letters[0] in _AN_LETTERS else "a"
    if letters[0] in "aeiou":
        return "a" if _CONSONANT_SOUND.match(word) else "an"
    return "an" if _VOWEL_SOUND.match(word) else "a"


def split_article(text: str) -> tuple[str, str]:
    """Split the article off a text that begins with one.

    A capital A before anything but a lower-case word is a name ("A 380"), not an article.

    Args:
        text: A label, for example "the sky".

    Returns:
        The article in lower case, or "" where there is none, and the rest of the text.
    """
    match = _ARTICLE.match(text)
    if match is None or (match[1] == "A" and not text[match.end()].islower()):
        return "", text
    return match[1].lower(), text[match.end() :]


def _before_number(word: str) -> str:
    """Give the article before digits: an 8-ball, an 18-wheeler, an 1800s house, a 110."""
    match = re.match(r"(\d+)((?:,\d{3})*)", word)
    if match is None:
        return "a"
    lead, thousands = match.groups()
    if lead[0] == "8":
        return "an"
    # Eleven or eighteen, alone or before thousands; four digits are read as a year, two by two.
    spoken_first = len(lead) % 3 == 2 or (len(lead) == 4 and not thousands)
    return "an" if lead[:2] in ("11", "18") and spoken_first else "a"


def _is_spelled(letters: str, written: str) -> bool:
    """Tell whether a first word is read letter by letter.

    Args:
        letters: The letters that the word begins with, in lower case.
        written: The same in its own case, with the character that follows.
    """
    capitals = written[: len(letters)].rstrip("s").isupper()  # SUV, UFOs
    if len(letters) == 1 or letters in _SPELLED or (capitals and letters[:-1] in _SPELLED):
        return True
    if capitals and (letters == "eu" or (len(letters) <= 3 and written[-1].isdigit())):
        return True  # EU flag, MP3 player
    if not re.search(r"[aeiouy]", letters):
        return letters not in _ABBREVIATED
    return bool(_SPELLED_START.match(letters)) and not _WORD_START.match(letters)
