"""Colours: stable, distinct, and apart for colour-blind readers."""

from __future__ import annotations

import random
import subprocess
import sys

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from ovseg.errors import InvalidLabelsError
from ovseg.output import palette
from ovseg.output.palette import label_colors

BOUND = 0.075  # stated in the module

LISTS = {
    "landscape": "sky cloud mountain forest grass water sand rock road snow",
    "street": "road sidewalk building wall fence pole vegetation sky person car",
    "room": "wall floor ceiling window door sofa table chair lamp person",
    "animals": "dog cat horse cow sheep bird elephant zebra giraffe bear",
    "food": "rice bread salad tomato cheese egg plate fork knife glass",
    "aerial": "roof tree lawn car road water soil solar panel railway field".replace("r p", "r_p"),
    "nonsense": " ".join(f"w{i}" for i in range(10)),
}
CITYSCAPES = (
    "road,sidewalk,building,wall,fence,pole,traffic light,traffic sign,vegetation,terrain,sky,"
    "person,rider,car,truck,bus,train,motorcycle,bicycle"
).split(",")
TAB10 = "1f77b4 ff7f0e 2ca02c d62728 9467bd 8c564b e377c2 7f7f7f bcbd22 17becf".split()

# Written down once more, from the papers: Machado et al. 2009 (severity 1) and Ottosson 2020.
VISION = {
    "normal": np.eye(3),
    "protanopia": [
        [0.152286, 1.052583, -0.204868],
        [0.114503, 0.786281, 0.099216],
        [-0.003882, -0.048116, 1.051998],
    ],
    "deuteranopia": [
        [0.367322, 0.860646, -0.227968],
        [0.280085, 0.672501, 0.047413],
        [-0.011820, 0.042940, 0.968881],
    ],
}


def to_oklab(color: tuple[int, ...], matrix: object) -> list[float]:
    linear = [
        c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4
        for c in (channel / 255 for channel in color)
    ]
    r, g, b = (min(1, max(0, v)) for v in np.asarray(matrix) @ linear)
    l_ = (0.4122214708 * r + 0.5363325363 * g + 0.0514459929 * b) ** (1 / 3)
    m_ = (0.2119034982 * r + 0.6806995451 * g + 0.1073969566 * b) ** (1 / 3)
    s_ = (0.0883024619 * r + 0.2817188376 * g + 0.6299787005 * b) ** (1 / 3)
    return [
        0.2104542553 * l_ + 0.7936177850 * m_ - 0.0040720468 * s_,
        1.9779984951 * l_ - 2.4285922050 * m_ + 0.4505937099 * s_,
        0.0259040371 * l_ + 0.7827717662 * m_ - 0.8086757660 * s_,
    ]


def smallest_distance(colors: NDArray[np.uint8]) -> float:
    """The smallest OKLab distance of two colours in any of the three kinds of vision."""
    smallest = np.inf
    for matrix in VISION.values():
        points = np.array([to_oklab(tuple(color.tolist()), matrix) for color in colors])
        for i in range(len(points)):
            for j in range(i):
                smallest = min(smallest, float(np.linalg.norm(points[i] - points[j])))
    return smallest


def test_reference_knows_black_white_and_a_published_value() -> None:
    assert to_oklab((255, 255, 255), np.eye(3)) == pytest.approx([1, 0, 0], abs=1e-4)
    assert to_oklab((0, 0, 0), np.eye(3)) == pytest.approx([0, 0, 0])
    # oklab(62.8% 0.22 0.13) is red in CSS Color 4.
    assert to_oklab((255, 0, 0), np.eye(3)) == pytest.approx([0.628, 0.2249, 0.1258], abs=1e-3)


@pytest.mark.parametrize("words", LISTS.values(), ids=LISTS.keys())
def test_ten_labels_are_apart_for_colour_blind_readers(words: str) -> None:
    labels = words.split()
    assert len(labels) == 10
    assert smallest_distance(label_colors(labels)) >= BOUND


def test_tab10_is_ten_times_closer() -> None:
    tab10 = np.array([tuple(bytes.fromhex(color)) for color in TAB10], np.uint8)
    assert smallest_distance(tab10) < BOUND / 10


def test_23_labels_are_apart() -> None:
    assert smallest_distance(label_colors([f"thing {i}" for i in range(23)])) >= BOUND


def test_cityscapes_keeps_all_natural_colors() -> None:
    together = label_colors(CITYSCAPES)
    alone = np.concatenate([label_colors([label]) for label in CITYSCAPES])
    np.testing.assert_array_equal(together, alone)


def test_natural_colors() -> None:
    sky, grass, water, person = label_colors(["sky", "grass", "water", "person"]).astype(int)
    assert sky[2] > sky[0] + 50
    assert grass[1] > grass[0] + 50 and grass[1] > grass[2] + 50
    assert water[2] > water[0] + 100 and water.sum() < sky.sum()
    assert person[0] > person[1] + 100


def test_color_is_the_same_in_most_lists() -> None:
    rng = random.Random(0)
    alone = label_colors(["sky"])[0]
    for _ in range(50):
        others = [f"word {rng.random()}" for _ in range(15)]
        np.testing.assert_array_equal(label_colors([*others, "sky"])[-1], alone)
    # A hashed label moves only when another one shares its home: 1 - (22/23)^9 / 2, about 1 in 6.
    moved = 0
    for i in range(200):
        labels = [f"word {i}.{j}" for j in range(10)]
        moved += not np.array_equal(label_colors(labels)[0], label_colors(labels[:1])[0])
    assert moved < 60


def test_a_displaced_label_displaces_no_other() -> None:
    # "sea" and "water" share a home; whatever becomes of the loser, the natural rest stays.
    rest = [label for label in CITYSCAPES if label not in ("sea", "water")]
    before = label_colors([*rest, "sea"])
    after = label_colors([*rest, "sea", "water"])
    np.testing.assert_array_equal(before, after[:-1])


@settings(max_examples=60, deadline=None)
@given(st.lists(st.text(max_size=8), min_size=1, max_size=60, unique=True), st.randoms())
def test_order_does_not_matter_and_no_color_comes_twice(
    labels: list[str], rng: random.Random
) -> None:
    colors = dict(zip(labels, map(tuple, label_colors(labels).tolist()), strict=True))
    assert len(set(colors.values())) == len(labels)
    shuffled = labels[:]
    rng.shuffle(shuffled)
    again = dict(zip(shuffled, map(tuple, label_colors(shuffled).tolist()), strict=True))
    assert again == colors


def test_case_space_and_plural_keep_the_home() -> None:
    assert len(np.unique(label_colors(["tree"]), axis=0)) == 1
    for other in ("Tree", " tree ", "TREES"):
        np.testing.assert_array_equal(label_colors([other]), label_colors(["tree"]))
    assert len(np.unique(label_colors(["tree", "Tree", "trees"]), axis=0)) == 3


@pytest.mark.parametrize("number", [24, 300, 5000, 65535])
def test_many_labels_have_different_colors(number: int) -> None:
    colors = label_colors([f"label {i}" for i in range(number)])
    assert colors.shape == (number, 3) and colors.dtype == np.uint8
    assert len(np.unique(colors, axis=0)) == number


def test_more_labels_than_colors_is_an_error() -> None:
    with pytest.raises(InvalidLabelsError, match="255329"):
        label_colors([str(i) for i in range(260_000)])


def test_moderate_lists_stay_well_spread() -> None:
    assert smallest_distance(label_colors([f"label {i}" for i in range(46)])) > 0.05


def test_tiers_share_no_color() -> None:
    colors = np.concatenate([palette._tier(number) for number in range(6)])
    assert len(np.unique(colors, axis=0)) == len(colors)


def test_colors_do_not_depend_on_the_process() -> None:
    labels = ["sky", "gizmo", "thingamajig", "whatsit"]
    code = f"from ovseg.output.palette import label_colors; print(label_colors({labels}).tolist())"
    printed = subprocess.run(
        [sys.executable, "-c", code],
        env={"PYTHONHASHSEED": "1", "PYTHONPATH": ":".join(sys.path)},
        capture_output=True,
        text=True,
        check=True,
    ).stdout
    assert printed.strip() == str(label_colors(labels).tolist())


def test_perceived_agrees_with_the_reference() -> None:
    colors = np.random.default_rng(0).integers(0, 256, (50, 3)).astype(np.uint8)
    expected = [
        [to_oklab(tuple(color.tolist()), VISION[name]) for color in colors]
        for name in ("normal", "deuteranopia", "protanopia")
    ]
    np.testing.assert_allclose(palette.perceived(colors), expected, atol=1e-9)


def test_given_colours_stay_and_others_keep_away() -> None:
    labels = ["sky", "grass", "road", "car", *(f"label {number}" for number in range(60))]
    home = {label: tuple(color) for label, color in zip(labels, label_colors(labels).tolist(), strict=True)}
    given = {"road": home["sky"], "label 7": (1, 2, 3)}
    found = label_colors(labels, given)
    assert tuple(found[2]) == home["sky"]
    assert tuple(found[11]) == (1, 2, 3)
    others = np.delete(found, [2, 11], axis=0)
    assert len({tuple(color) for color in others.tolist()}) == len(others)
    distance = np.sqrt(((palette.perceived(others)[0] - palette.perceived(found[[2]])[0]) ** 2).sum(-1))
    assert distance.min() >= 0.04
    assert tuple(found[1]) == home["grass"]
    assert np.array_equal(label_colors(labels, {"elsewhere": (0, 0, 0)}), label_colors(labels))
    assert label_colors(["sky"], {"sky": (9, 9, 9)}).tolist() == [[9, 9, 9]]
