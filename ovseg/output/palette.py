"""One colour per label: stable, distinct, and told apart by colour-blind readers.

How a label gets its colour:

1. There are 23 base colours. Any two of them are at least 0.075 apart in OKLab (about 0.02 is just
   noticeable), as seen with normal vision and with simulated deuteranopia and protanopia.
   Matplotlib's ten-colour `tab10` comes down to 0.007 by the same measure.
2. Every label has a home among them. A few everyday words have a natural one (sky is light blue,
   grass is green); any other label is hashed. The home depends on the label alone.
3. Labels move away from home only when two labels of one list share a home. Then an everyday word
   stays before a hashed one, the alphabetically first stays before the others, and the rest try
   the next free colour in an order that is again their own.
4. Lists longer than 23 labels go on in further tiers of 23, 47, 97 and 193 colours, each as far as
   possible from all colours before it, and then in a grid of 255,000 colours.

So the colour of a label is the same in every picture made with the same list, in any order, and
the same in most other lists; and two labels of one list never share a colour.

Sources: OKLab is Ottosson, "A perceptual color space for image processing" (2020); the simulation
is Machado, Oliveira and Fernandes, "A physiologically-based model for simulation of color vision
deficiency" (2009), severity 1.0, in linear RGB.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

from ovseg.errors import InvalidLabelsError

UNDECIDED = "(undecided)"
"""What tables call pixels without a label."""
UNDECIDED_COLOR = (218, 221, 226)  # pixels without a label, where there is no picture to show

# Base colours, chosen by search: near a natural colour, and >= 0.075 apart in all three views.
_BASE: tuple[tuple[str, str], ...] = (
    ("#87c8f5", "sky"),
    ("#0a6ee6", "water, sea, ocean, river, lake, pool, swimming pool"),
    ("#82dc69", "grass, lawn, meadow, field, terrain"),
    ("#237346", "tree, forest, vegetation, bush, plant, foliage, leaf"),
    ("#ebe1a5", "sand, beach, desert, dune"),
    ("#784100", "soil, dirt, earth, ground, mud, wood, trunk, horse"),
    ("#5f647d", "road, street, asphalt, highway"),
    ("#b9b4a0", "sidewalk, pavement, concrete, path, floor, rock, stone"),
    ("#d22346", "person, people, man, woman, child, pedestrian, human"),
    ("#2d288c", "car, vehicle, automobile"),
    ("#cd8c69", "building, house, brick, tower"),
    ("#f5f0e6", "wall, snow, ice, cloud, sheep"),
    ("#f5910f", "dog, fire, traffic light, orange"),
    ("#dc87c3", "motorcycle, motorbike, face, skin"),
    ("#d750b9", "bicycle, bike, flower"),
    ("#7850af", "train, cat, mountain"),
    ("#af9bfa", "truck, airplane, aeroplane, boat"),
    ("#1e8c82", "bus, chair, sofa, couch"),
    ("#64e1d2", "window, glass, bird"),
    ("#f5e623", "sign, traffic sign, sun, lamp, light"),
    ("#690014", "door, roof, rider, cow"),
    ("#a0870a", "fence, hill, table"),
    ("#28323c", "background, other, shadow, pole, screen"),
)
_HOMES = {word: i for i, (_, words) in enumerate(_BASE) for word in words.split(", ")}
_TIER_SIZES = (23, 47, 97, 193)  # primes: any step through a tier visits all of it

_SRGB_TO_LMS = np.array(
    [
        [0.4122214708, 0.5363325363, 0.0514459929],
        [0.2119034982, 0.6806995451, 0.1073969566],
        [0.0883024619, 0.2817188376, 0.6299787005],
    ]
)
_LMS_TO_LAB = np.array(
    [
        [0.2104542553, 0.7936177850, -0.0040720468],
        [1.9779984951, -2.4285922050, 0.4505937099],
        [0.0259040371, 0.7827717662, -0.8086757660],
    ]
)
_PROTANOPIA = np.array(
    [
        [0.152286, 1.052583, -0.204868],
        [0.114503, 0.786281, 0.099216],
        [-0.003882, -0.048116, 1.051998],
    ]
)
_DEUTERANOPIA = np.array(
    [
        [0.367322, 0.860646, -0.227968],
        [0.280085, 0.672501, 0.047413],
        [-0.011820, 0.042940, 0.968881],
    ]
)


RGB = tuple[int, int, int]
_APART = 0.04  # least distance of a colour by rule from one that was given, in OKLab


def label_colors(labels: Sequence[str], given: Mapping[str, RGB] | None = None) -> NDArray[np.uint8]:
    """Give every label its colour; the order of the labels does not matter.

    Args:
        labels: K different labels.
        given: Colours that were chosen, by label; the others keep away from them.

    Returns:
        (K, 3) uint8 RGB; no two rows are equal but where `given` says so.

    Raises:
        InvalidLabelsError: If there are more labels than colours (over 255,000).
    """
    if chosen := {label: given[label] for label in labels if given and label in given}:
        others = [label for label in labels if label not in chosen]
        taken = np.array(list(chosen.values()), np.uint8)
        colors = np.empty((len(labels), 3), np.uint8)
        is_chosen = np.array([label in chosen for label in labels])
        colors[is_chosen] = taken  # in the order of the labels
        colors[~is_chosen] = _colors_by_rule(others, taken)
        return colors
    return _colors_by_rule(labels, np.empty((0, 3), np.uint8))


def _colors_by_rule(labels: Sequence[str], taken: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """Give labels their colours, (K, 3) uint8, away from those that are taken."""
    keys = [" ".join(label.casefold().split()) for label in labels]
    homes = [_HOMES.get(key, _HOMES.get(key.removesuffix("s"), -1)) for key in keys]
    # Everyday words come first, then the alphabet; the label itself settles "Sky" against "sky".
    order = sorted(range(len(keys)), key=lambda i: (homes[i] < 0, keys[i], labels[i]))
    hashes = np.array([_hash(keys[i]) for i in order], np.uint64)
    natural = np.array([homes[i] for i in order], np.int64)

    colors = np.zeros((len(order), 3), np.uint8)
    unplaced = np.arange(len(order))
    tier_number = 0
    while len(unplaced):
        tier = _tier(tier_number)
        home, step = _walk(hashes[unplaced], len(tier), salt=tier_number)
        if tier_number == 0:
            home = np.where(natural[unplaced] >= 0, natural[unplaced], home)
        slots = _claim(home, step, _far_from(tier, taken))
        placed = slots >= 0
        colors[unplaced[placed]] = tier[slots[placed]]
        unplaced = unplaced[~placed]
        tier_number += 1
    result = np.empty_like(colors)
    result[order] = colors
    return result


def perceived(rgb: NDArray[np.uint8]) -> NDArray[np.float64]:
    """Convert colours to OKLab as three kinds of eyes see them.

    Args:
        rgb: (N, 3) uint8 sRGB.

    Returns:
        (3, N, 3) float64 OKLab (L in [0, 1]) for normal vision, deuteranopia and protanopia.
    """
    srgb = np.asarray(rgb, np.float64) / 255
    linear = np.where(srgb <= 0.04045, srgb / 12.92, ((srgb + 0.055) / 1.055) ** 2.4)
    views = (linear, linear @ _DEUTERANOPIA.T, linear @ _PROTANOPIA.T)
    return np.stack([np.cbrt(np.clip(v, 0, 1) @ _SRGB_TO_LMS.T) @ _LMS_TO_LAB.T for v in views])


def _hash(key: str) -> int:
    # Python's own hash differs from run to run.
    digest = hashlib.blake2b(key.encode("utf-8", "surrogatepass"), digest_size=8).digest()
    return int.from_bytes(digest, "big")


def _walk(
    hashes: NDArray[np.uint64], size: int, *, salt: int
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Return each label's first slot and step through a tier of `size` (prime) slots, both (N,)."""
    # An odd multiplier mixes the hash anew for every tier (Knuth's multiplicative hashing).
    mixed = hashes * np.uint64(0x9E3779B97F4A7C15 + 2 * salt)
    home = (mixed >> np.uint64(40)) % np.uint64(size)
    step = (mixed & np.uint64(0xFFFFFF)) % np.uint64(size - 1) + np.uint64(1)
    return home.astype(np.int64), step.astype(np.int64)


def _far_from(tier: NDArray[np.uint8], taken: NDArray[np.uint8]) -> NDArray[np.bool_]:
    """Tell which colours of a tier, (N,) bool, look different from all that are taken."""
    free = np.ones(len(tier), bool)
    if not len(taken):
        return free
    seen = perceived(tier)[0]
    for color in perceived(taken)[0]:
        free &= ((seen - color) ** 2).sum(-1) >= _APART**2
    return free


def _claim(home: NDArray[np.int64], step: NDArray[np.int64], free: NDArray[np.bool_]) -> NDArray[np.int64]:
    """Let labels claim slots in rounds; in each round, the first in order gets a free slot.

    Rounds, so that a label that lost its home never takes the home of another one.

    Returns:
        (N,) slot of each label, or -1 when the slots did not suffice.
    """
    slots, size = np.full(len(home), -1, np.int64), len(free)
    waiting = np.arange(len(home))
    for turn in range(size):
        wanted = (home[waiting] + turn * step[waiting]) % size
        possible = np.flatnonzero(free[wanted])
        won, first = np.unique(wanted[possible], return_index=True)
        winners = possible[first]
        slots[waiting[winners]] = won
        free[won] = False
        waiting = np.delete(waiting, winners)
        if not len(waiting) or not free.any():
            break
    return slots


def _tier(number: int) -> NDArray[np.uint8]:
    """Return the colours of a tier, (N, 3) uint8."""
    if number == 0:
        return np.array([tuple(bytes.fromhex(color[1:])) for color, _ in _BASE], np.uint8)
    if number <= len(_TIER_SIZES):
        return _spread_tiers()[number - 1]
    if number == len(_TIER_SIZES) + 1:
        return _grid_tier()
    raise InvalidLabelsError(f"Too many labels: there are colours for {len(_grid_tier())} of them.")


@lru_cache(maxsize=1)
def _spread_tiers() -> tuple[NDArray[np.uint8], ...]:
    """Extend the base colours one by one, each time by the colour farthest from all before it."""
    candidates = _grid(range(0, 256, 15))
    views = perceived(candidates)
    distance = np.full(len(candidates), np.inf)

    def note(view: NDArray[np.float64]) -> None:
        nearest = np.sqrt(((views - view[:, None]) ** 2).sum(-1)).min(0)
        np.minimum(distance, nearest, out=distance)

    for view in perceived(_tier(0)).transpose(1, 0, 2):
        note(view)
    chosen: list[int] = []
    for _ in range(sum(_TIER_SIZES)):
        best = int(distance.argmax())
        chosen.append(best)
        note(views[:, best])
    return tuple(np.split(candidates[chosen], np.cumsum(_TIER_SIZES)[:-1]))


@lru_cache(maxsize=1)
def _grid_tier() -> NDArray[np.uint8]:
    """Return a prime number of colours that no other tier has, for very long lists."""
    grid = _grid(range(2, 256, 4))
    taken = np.concatenate([_tier(number) for number in range(len(_TIER_SIZES) + 1)])
    weights = np.array([65536, 256, 1])
    grid = grid[~np.isin(grid @ weights, taken @ weights)]
    size = len(grid)
    while any(size % divisor == 0 for divisor in range(2, int(size**0.5) + 1)):
        size -= 1
    return grid[:size]


def _grid(levels: range) -> NDArray[np.uint8]:
    """Return all colours with these channel levels that are neither very dark nor very light."""
    axis = np.array(levels, np.uint8)
    grid = np.stack(np.meshgrid(axis, axis, axis, indexing="ij"), axis=-1).reshape(-1, 3)
    lightness = perceived(grid)[0, :, 0]
    return grid[(lightness > 0.3) & (lightness < 0.96)]
