"""Hints: what they mean on pixels, what they refuse, and files of them."""

from __future__ import annotations

import json
import logging
import math

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from PIL import Image
from skimage.draw import polygon2mask

from ovseg.errors import InvalidArgumentError, InvalidLabelsError, OutputError
from ovseg.hints import Hints
from ovseg.marks import BOX_WEIGHT, RADIUS
from ovseg.output.palette import label_colors

LABELS = ["sky", ("grass", "lawn"), "dog", "cat"]


def drawn(hints: Hints, size: tuple[int, int], labels=LABELS) -> np.ndarray:
    seeds = hints.seeds(size, labels)
    image = np.full(size[0] * size[1], -1)
    image[seeds.pixels] = seeds.labels
    return image.reshape(size)


def distance_to_segment(y: float, x: float, a: tuple[float, float], b: tuple[float, float]) -> float:
    """By trying many points of the segment."""
    t = np.linspace(0, 1, 2001)
    return float(np.hypot(a[0] + t * (b[0] - a[0]) - x, a[1] + t * (b[1] - a[1]) - y).min())


def test_click_is_a_disc():
    mask = drawn(Hints.clicks({"dog": (12, 7)}), (20, 30)) == 2
    y, x = np.mgrid[:20, :30]
    assert np.array_equal(mask, np.hypot(x - 12, y - 7) <= RADIUS)


@settings(max_examples=30, deadline=None)
@given(
    st.lists(st.tuples(st.floats(0, 39.9), st.floats(0, 29.9)), min_size=2, max_size=4),
    st.floats(0.6, 5),
)
def test_stroke_is_all_that_is_near_its_line(points, radius):
    mask = drawn(Hints.scribbles({"sky": [points]}, radius=radius), (30, 40)) == 0
    centres = [(int(x) + 0.5, int(y) + 0.5) for x, y in points]
    for y in range(30):
        for x in range(40):
            d = min(distance_to_segment(y + 0.5, x + 0.5, a, b) for a, b in zip(centres, centres[1:], strict=False))
            if abs(d - radius) > 0.02:
                assert mask[y, x] == (d < radius)


@settings(max_examples=50, deadline=None)
@given(st.lists(st.tuples(st.integers(0, 319), st.integers(0, 239)), min_size=3, max_size=7, unique=True))
@example([(0, 0), (41, 50), (191, 120)])
def test_polygon_holds_the_pixels_whose_centre_is_inside(corners):
    points = [(x / 8 + 0.01 * math.sqrt(2), y / 8 + 0.01 * math.sqrt(3)) for x, y in corners]  # no edge runs through a centre
    mask = drawn(Hints.polygons({"cat": [points]}), (30, 40)) == 3
    expected = polygon2mask((30, 40), [(y - 0.5, x - 0.5) for x, y in points])
    if expected.any():
        assert np.array_equal(mask, expected)
    else:
        assert mask.any()  # a sliver still marks what it runs through


def test_polygon_of_a_result_comes_back_exactly():
    from ovseg.result import Segmentation

    truth = np.zeros((25, 31), np.uint8)
    truth[4:20, 6:25] = 1
    truth[8:12, 9:15] = 0
    rings = [polygon.exterior for polygon in Segmentation(truth, ("sky", "dog"), 255).to_polygons()["dog"]]
    filled = truth.copy()
    filled[8:12, 9:15] = 1  # the exterior has no holes
    assert np.array_equal(drawn(Hints.polygons({"dog": rings}), truth.shape) == 2, filled == 1)


def test_box_marks_its_middle_weakly():
    seeds = Hints.boxes({"dog": (4, 2, 24, 12)}).seeds((20, 30), LABELS)
    y, x = np.divmod(seeds.pixels, 30)
    assert set(seeds.weights.tolist()) == {np.float32(BOX_WEIGHT)}
    assert (x.min() >= 9) and (x.max() < 19) and (y.min() >= 4) and (y.max() < 10)
    inside = ((x + 0.5 - 14) / 5) ** 2 + ((y + 0.5 - 7) / 2.5) ** 2
    assert (inside <= 1).all() and len(x) == pytest.approx(np.pi * 5 * 2.5, rel=0.1)


def test_box_of_one_pixel():
    assert drawn(Hints.boxes({"dog": (29, 19, 30, 20)}), (20, 30))[19, 29] == 2


def test_tags_have_no_pixels():
    seeds = (Hints.tags(["dog", "lawn"]) + Hints.clicks({"cat": (1, 1)})).seeds((20, 30), LABELS)
    assert seeds.tags == {1, 2} and seeds.pointed_at == {3}
    assert Hints.tags("dog").labels == ("dog",)
    with pytest.raises(InvalidLabelsError, match="a word or several"):
        Hints.tags(5)


def test_words_are_found_by_any_synonym_and_case():
    assert (drawn(Hints.clicks({"LAWN": (5, 5)}), (9, 9)) == 1).sum() > 20


def test_the_later_wins_and_it_is_said(caplog):
    hints = Hints.clicks({"dog": (5, 5)}) + Hints.clicks({"cat": (7, 5)})
    with caplog.at_level(logging.WARNING, "ovseg.hints"):
        image = drawn(hints, (20, 20))
    assert image[5, 5] == 3 and image[5, 2] == 2
    both = (np.hypot(*np.mgrid[-5:15, -5:15]) <= 3) & (np.hypot(*np.mgrid[-5:15, -7:13]) <= 3)
    assert f"{both.sum()} pixels have hints of two labels" in caplog.text


def test_the_same_label_twice_is_no_conflict(caplog):
    drawn(Hints.clicks({"dog": [(5, 5), (6, 5)]}), (20, 20))
    assert not caplog.text


@pytest.mark.parametrize("box_first", [True, False])
def test_strokes_win_over_boxes(caplog, box_first):
    box, click = Hints.boxes({"dog": (0, 0, 20, 20)}), Hints.clicks({"cat": (10, 10)})
    assert drawn(box + click if box_first else click + box, (20, 20))[10, 10] == 3
    assert not caplog.text


def test_value():
    a, b = Hints.clicks({"dog": (5, 5)}), Hints.clicks({"dog": [(5.0, 5.0)]})
    assert a == b and hash(a) == hash(b) and a != Hints.clicks({"cat": (5, 5)}) and len(a + b) == 2
    assert a != 3 and "click=1" in repr(a) and "dog" in repr(a)
    with pytest.raises(AttributeError, match="join"):
        a.marks = ()
    with pytest.raises(TypeError):
        a + 3


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Hints.clicks({"dog": []}), "empty"),
        (lambda: Hints.scribbles({"dog": [[]]}), "empty"),
        (lambda: Hints.scribbles({"dog": np.zeros((4, 4), bool)}), "at least one"),
        (lambda: Hints.scribbles({"dog": np.zeros((4, 4, 3), bool)}), "array"),
        (lambda: Hints.scribbles({"dog": np.ones((4, 4), np.uint8)}), "bool array"),
        (lambda: Hints.clicks({"dog": 3}), "points"),
        (lambda: Hints.clicks({"dog": "here"}), "numbers|points"),
        (lambda: Hints.clicks({"dog": (1, 2, 3)}), "points"),
        (lambda: Hints.clicks({"dog": (1, float("nan"))}), "finite"),
        (lambda: Hints.clicks({"dog": (1, 2)}, radius=0), "radius"),
        (lambda: Hints.clicks({"dog": (1, 2)}, radius=True), "radius"),
        (lambda: Hints.clicks([(1, 2)]), "mapping"),
        (lambda: Hints.boxes({"dog": (4, 4, 4, 9)}), "left < right"),
        (lambda: Hints.boxes({"dog": (4, 4, 9)}), "left, top"),
        (lambda: Hints.boxes({"dog": "box"}), "numbers"),
        (lambda: Hints.polygons({"dog": [(0, 0), (4, 4)]}), "three corners"),
    ],
)
def test_garbage_is_refused(make, message):
    with pytest.raises(InvalidArgumentError, match=message):
        make()


@pytest.mark.parametrize("label", ["", "  ", 3, None])
def test_labels_are_words(label):
    with pytest.raises(InvalidLabelsError, match="word"):
        Hints.clicks({label: (1, 1)})


@pytest.mark.parametrize(
    "hints",
    [
        Hints.clicks({"dog": (30, 5)}),
        Hints.clicks({"dog": (-1, 5)}),
        Hints.scribbles({"dog": [(5, 5), (5, 20)]}),
        Hints.boxes({"dog": (5, 5, 31, 9)}),
        Hints.polygons({"dog": [(5, 5), (9, 9), (5, 20.5)]}),
    ],
)
def test_outside_the_image(hints):
    with pytest.raises(InvalidArgumentError, match="outside the image of 30 x 20"):
        hints.seeds((20, 30), LABELS)


def test_painted_on_another_size():
    with pytest.raises(InvalidArgumentError, match="painted on an image"):
        Hints.scribbles({"dog": np.ones((4, 4), bool)}).seeds((5, 4), LABELS)


def test_a_label_that_was_not_asked_for():
    with pytest.raises(InvalidLabelsError, match="'gras'.*Did you mean 'grass'"):
        Hints.clicks({"gras": (1, 1)}).seeds((9, 9), LABELS)


def everything() -> Hints:
    painted = np.zeros((20, 30), bool)
    painted[3, 4:9] = True
    return (
        Hints.scribbles({"sky": [[(1, 1), (20.5, 5)], [(3, 3)]], "grass": painted}, radius=2)
        + Hints.clicks({"dog": [(10, 10), (3, 4)]}, radius=1.5)
        + Hints.boxes({"cat": (5, 5, 20, 20)})
        + Hints.polygons({"dog": [(0, 0), (30, 20), (0, 20)]})
        + Hints.tags(["grass", "naïve dog"])
    )


def test_json_holds_everything(tmp_path):
    everything().save(tmp_path / "hints.json")
    assert Hints.load(tmp_path / "hints.json") == everything()


def test_png_holds_the_pixels(tmp_path):
    hints = Hints(mark for mark in everything().marks if mark.kind not in ("box", "tag"))
    hints.save(tmp_path / "hints.png", image_size=(20, 30))
    again = Hints.load(tmp_path / "hints.png")
    assert np.array_equal(drawn(again, (20, 30)), drawn(hints, (20, 30)))
    with Image.open(tmp_path / "hints.png") as picture:
        indices = np.asarray(picture)
    assert picture.mode == "P" and np.array_equal(indices == 255, drawn(hints, (20, 30)) == -1)
    with pytest.raises(InvalidArgumentError, match="box or tag"):
        everything().save(tmp_path / "all.png", image_size=(20, 30))
    with pytest.raises(InvalidArgumentError, match="image_size"):
        Hints.clicks({"dog": (1, 1)}).save(tmp_path / "all.png")
    with pytest.raises(OutputError, match="json or .png"):
        hints.save(tmp_path / "hints.gif")


def test_png_with_many_labels(tmp_path):
    words = [f"thing {i}" for i in range(300)]
    Hints.clicks({"thing 255": (3, 3), "thing 299": (12, 3)}).save(tmp_path / "h.png", image_size=(9, 20), labels=words)
    image = drawn(Hints.load(tmp_path / "h.png"), (9, 20), words)
    assert image[3, 3] == 255 and image[3, 12] == 299 and image[8, 0] == -1


def test_strokes_of_a_painting_program(tmp_path):
    names = ["sky", "grass", "dog", "cat"]
    indices = np.full((9, 12), 255, np.uint8)
    indices[2, 3:6], indices[5, 1] = 2, 0
    Image.fromarray(indices).save(tmp_path / "indices.png")
    image = drawn(Hints.load(tmp_path / "indices.png", LABELS), (9, 12))
    assert np.array_equal(np.where(image < 0, 255, image), indices)

    colours = np.full((9, 12, 3), 255, np.uint8)
    colours[2, 3:6], colours[5, 1] = label_colors(names)[2], label_colors(names)[0]
    Image.fromarray(colours).save(tmp_path / "colours.png")
    assert np.array_equal(drawn(Hints.load(tmp_path / "colours.png", LABELS), (9, 12)), image)

    layer = np.zeros((9, 12, 4), np.uint8)
    layer[2, 3:6] = (255, 0, 0, 255)
    layer[5, 1] = (0, 0, 255, 255)
    Image.fromarray(layer).save(tmp_path / "layer.png")
    hints = Hints.load(tmp_path / "layer.png", colors={"dog": (255, 0, 0), "sky": (0, 0, 255)})
    assert np.array_equal(drawn(hints, (9, 12)), image)


def test_strokes_that_cannot_be_read(tmp_path):
    Image.fromarray(np.full((9, 12), 255, np.uint8)).save(tmp_path / "empty.png")
    Image.fromarray(np.full((9, 12), 4, np.uint8)).save(tmp_path / "high.png")
    Image.fromarray(np.full((9, 12, 3), 7, np.uint8)).save(tmp_path / "colour.png")
    (tmp_path / "broken.png").write_bytes(b"\x89PNG\r\n\x1a\n123")
    for name, labels, error, message in [
        ("empty.png", LABELS, InvalidArgumentError, "no stroke"),
        ("high.png", LABELS, InvalidArgumentError, "index 4, but there are 4 labels"),
        ("high.png", None, InvalidLabelsError, "Give the labels"),
        ("colour.png", LABELS, InvalidArgumentError, "#070707"),
        ("colour.png", None, InvalidLabelsError, "colours"),
        ("broken.png", LABELS, InvalidArgumentError, "damaged"),
        ("none.png", LABELS, InvalidArgumentError, "No such file"),
        ("hints.txt", LABELS, InvalidArgumentError, ".json or .png"),
    ]:
        with pytest.raises(error, match=message):
            Hints.load(tmp_path / name, labels)
    wrong = [({"dog": "red"}, "colour of 'dog'"), ({"dog": (0.5, 7, 7)}, "colour of 'dog'"), ([(7, 7, 7)], "must map labels")]
    for colors, message in wrong:
        with pytest.raises(InvalidArgumentError, match=message):
            Hints.load(tmp_path / "colour.png", colors=colors)


@pytest.mark.parametrize(
    "entry",
    [
        3,
        {"kind": "circle", "label": "dog"},
        {"kind": "click", "label": "dog", "points": [[1, 2]], "colour": 3},
        {"kind": "click", "label": "dog", "points": "12"},
        {"kind": "click", "points": [[1, 2]]},
        {"kind": "tag"},
        {"kind": "box", "label": "dog", "points": [[1, 2, 3, 4]]},
        {"kind": "box", "label": "dog", "points": [1, 2, 3, 4]},
        {"kind": "scribble", "label": "dog", "points": []},
        {"kind": "scribble", "label": "dog", "points": [["a", "b"]]},
        {"kind": "scribble", "label": "dog", "painted": "x"},
        {"kind": "scribble", "label": "dog", "painted": {"size": [-3, 4], "counts": "1"}},
        {"kind": "scribble", "label": "dog", "painted": {"size": [100000, 100000], "counts": "1"}},
        {"kind": "scribble", "label": "dog", "painted": {"size": [3, 4], "counts": "zz"}},
        {"kind": "click", "label": "dog", "points": [[1, 2]], "radius": "wide"},
    ],
)
def test_json_that_is_no_hint(tmp_path, entry):
    (tmp_path / "h.json").write_text(json.dumps({"format": "ovseg hints", "version": 1, "hints": [entry]}))
    with pytest.raises((InvalidArgumentError, InvalidLabelsError), match="hint 0"):
        Hints.load(tmp_path / "h.json")


@pytest.mark.parametrize("text", ["", "{", "[]", "{}", '{"format": "ovseg hints", "version": 2, "hints": []}', "\udcff", "[" * 100_000])
def test_json_of_something_else(tmp_path, text):
    (tmp_path / "h.json").write_bytes(text.encode("utf-8", "surrogateescape"))
    with pytest.raises(InvalidArgumentError):
        Hints.load(tmp_path / "h.json")
