"""Words that mean nearly the same: two labels of which a pixel can hardly be one and not the other.

Two words are near if they differ only in spelling (case, blanks, hyphens, plural, a leading article), or if a line of `_SAME` holds both.
Some models add a rule of their own: see the field `near` of a model card.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from functools import cache

from ovseg.articles import split_article

# Everyday words, British and American ones among them. A line is what most people would use for one and the same thing.
_SAME = """
aeroplane, airplane, plane, aircraft
armchair, easy chair
autumn, fall
bag, handbag, purse
bicycle, bike, cycle, pushbike
bicyclist, cyclist
boat, ship, vessel
building, edifice
bush, shrub
cap, hat
car, automobile, motorcar, auto
carpet, rug
cat, kitty, feline
cellphone, mobile phone, cell phone, smartphone, mobile
child, kid
clothes, clothing, apparel, garments
coat, jacket
computer monitor, computer screen, monitor, screen
cooker, stove, kitchen stove
cup, mug
cupboard, cabinet
curb, kerb
curtain, drape
dining table, dinner table
dirt, earth, soil, ground
dog, hound
donut, doughnut
faucet, tap
fence, fencing
field, meadow
food, meal, dish
forest, woods, woodland
fridge, refrigerator, icebox
garbage can, trash can, dustbin, garbage bin, trash bin, rubbish bin, ashcan, wastebin
glasses, eyeglasses, spectacles
grass, lawn, turf
grey, gray
guy, man
hair drier, hair dryer, blow dryer
hill, knoll
horse, steed
lamp, light
lamppost, street lamp, street light, streetlight
lorry, truck
mirror, looking glass
motorcycle, motorbike
mountain, mount
nappy, diaper
painting, picture
pants, trousers, slacks
path, footpath, trail, track
pavement, sidewalk, footway
pedestrian, walker
person, human, human being, people, man or woman, individual
pillow, cushion
plant, flora
pole, post
pot plant, potted plant, houseplant
pram, baby carriage, stroller, buggy
puppy, young dog
purse, wallet
railing, guardrail, guard rail
railway, railroad
rider, horseman
road, street, roadway, carriageway
rock, stone, boulder
sea, ocean
shore, beach, seaside
sign, signboard
sneakers, trainers, running shoes
shoes, footwear
skyscraper, high-rise, tower block
sofa, couch, settee, loveseat
stairs, steps, staircase, stairway
store, shop
sweater, jumper, pullover, jersey
sweets, candy
taxi, cab
teddy, teddy bear
television, tv, tv set, telly, television set, tvmonitor, television monitor, tv monitor
torch, flashlight
town, city
traffic light, traffic signal, stoplight
traffic sign, road sign, street sign
tree trunk, trunk
tube, pipe
van, minibus
vegetation, greenery, foliage
vest, waistcoat
wardrobe, closet
water, waters
wheel, car wheel
window, windowpane
woman, lady
"""
_IRREGULAR = {
    "people": "person", "men": "man", "women": "woman", "children": "child", "leaves": "leaf", "shelves": "shelf", "knives": "knife",
    "mice": "mouse", "geese": "goose", "feet": "foot", "teeth": "tooth", "wolves": "wolf", "loaves": "loaf", "buses": "bus",
}  # fmt: skip
_NO_PLURALS = {"glasses", "clothes", "news", "bus", "gas", "lens", "stairs", "woods", "pants", "canvas", "christmas", "atlas", "waters"}


def plain_form(word: str) -> str:
    """Bring a word to the form that its spellings share: "The Traffic-Lights" becomes "trafficlight"."""
    parts = [part for part in re.split(r"[\s\-_’']+", split_article(word)[1].casefold()) if part] or [word.casefold()]
    parts[-1] = _singular(parts[-1])
    return "".join(parts)


def _singular(word: str) -> str:
    if word in _IRREGULAR:
        return _IRREGULAR[word]
    if word in _NO_PLURALS or len(word) < 4 or not word.endswith("s") or word.endswith(("ss", "us", "is")):
        return word
    if word.endswith("ies") and len(word) > 4:
        return word[:-3] + "y"
    return word[:-2] if word.endswith(("shes", "ches", "xes", "sses", "zes")) else word[:-1]


@cache
def _meanings() -> dict[str, frozenset[int]]:
    """Number the lines of `_SAME` in which each word stands."""
    found: dict[str, set[int]] = {}
    for number, line in enumerate(_SAME.strip().splitlines()):
        for word in line.split(", "):
            found.setdefault(plain_form(word), set()).add(number)
    return {word: frozenset(numbers) for word, numbers in found.items()}


def near_pairs(groups: Sequence[Sequence[str]]) -> list[tuple[int, str, int, str]]:
    """Find words of different labels that mean nearly the same.

    Args:
        groups: The words of each label.

    Returns:
        (label, word, later label, word), one for each pair of labels that are near.
    """
    meanings = _meanings()
    first: dict[str | int, list[tuple[int, str]]] = {}
    found: dict[tuple[int, int], tuple[int, str, int, str]] = {}
    for label, words in enumerate(groups):
        for word in words:
            form = plain_form(word)
            for key in (form, *meanings.get(form, ())):
                entries = first.setdefault(key, [])
                for other, other_word in entries:
                    if other != label:
                        found.setdefault((other, label), (other, other_word, label, word))
                entries.append((label, word))
    return list(found.values())
