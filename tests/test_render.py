"""Overlays and legends."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from PIL import Image, ImageFont

from ovseg.errors import InvalidArgumentError
from ovseg.output import LabelMap, legend, render, text
from ovseg.output.legend import LegendEntry, draw_legend, format_share
from ovseg.output.palette import label_colors
from ovseg.output.render import count_pixels, draw_overlay, draw_preview

LABELS = ["sky", "grass", "sand"]
COLORS = label_colors(LABELS)
RNG = np.random.default_rng(0)


@pytest.fixture
def segmentation() -> NDArray[np.uint8]:
    array = np.zeros((60, 80), np.uint8)
    array[30:] = 1
    array[40:, 50:] = 255
    return array


@pytest.fixture
def photo() -> NDArray[np.uint8]:
    return RNG.integers(0, 256, (60, 80, 3)).astype(np.uint8)


def overlay(
    segmentation: LabelMap,
    image: NDArray[np.uint8] | None,
    *,
    opacity: float = 0.5,
    outline: bool = False,
    labels: list[str] = LABELS,
) -> NDArray[np.uint8]:
    picture = draw_overlay(
        segmentation,
        labels,
        ignore_index=int(np.iinfo(segmentation.dtype).max),
        image=image,
        opacity=opacity,
        outline=outline,
        legend=False,
    )
    assert picture.mode == "RGB" and picture.size == segmentation.shape[::-1]
    return np.asarray(picture)


# --- colours


@pytest.mark.parametrize("opacity", [0, 0.25, 0.5, 0.9, 1])
def test_blends(segmentation: NDArray[np.uint8], photo: NDArray[np.uint8], opacity: float) -> None:
    drawn = overlay(segmentation, photo, opacity=opacity).astype(float)
    decided = segmentation != 255
    colors = COLORS[np.where(decided, segmentation, 0)]
    expected = (1 - opacity) * photo + opacity * colors
    assert np.abs(drawn - expected)[decided].max() <= 1.5


def test_extreme_opacities_are_exact(
    segmentation: NDArray[np.uint8], photo: NDArray[np.uint8]
) -> None:
    decided = segmentation != 255
    np.testing.assert_array_equal(overlay(segmentation, photo, opacity=0)[decided], photo[decided])
    full = overlay(segmentation, photo, opacity=1)
    np.testing.assert_array_equal(full[decided], COLORS[segmentation[decided]])


def test_undecided_pixels_keep_the_photo_under_hatching(
    segmentation: NDArray[np.uint8], photo: NDArray[np.uint8]
) -> None:
    undecided = segmentation == 255
    drawn = overlay(segmentation, photo, opacity=1, outline=True)[undecided]
    unchanged = (drawn == photo[undecided]).all(axis=1).mean()
    assert 0.5 < unchanged < 0.95


def test_without_a_photo_the_colors_are_plain(segmentation: NDArray[np.uint8]) -> None:
    drawn = overlay(segmentation, None)
    decided = segmentation != 255
    np.testing.assert_array_equal(drawn[decided], COLORS[segmentation[decided]])
    grey = drawn[~decided]
    assert (np.ptp(grey.astype(int), axis=1) < 10).all()


def test_outlines_are_thin_and_in_the_full_color(
    segmentation: NDArray[np.uint8], photo: NDArray[np.uint8]
) -> None:
    drawn = overlay(segmentation, photo, opacity=0, outline=True)
    changed = (drawn != photo).any(axis=2) & (segmentation != 255)
    rows = np.flatnonzero(changed[:, 0])
    assert rows.tolist() == [29, 30]
    np.testing.assert_array_equal(drawn[29, 0], COLORS[0])
    np.testing.assert_array_equal(drawn[30, 0], COLORS[1])


@settings(max_examples=60, deadline=None)
@given(st.integers(1, 5), st.integers(1, 24), st.integers(1, 24), st.integers(0, 9999))
def test_outline_reaches_as_far_as_its_thickness(
    thickness: int, height: int, width: int, seed: int
) -> None:
    rng = np.random.default_rng(seed)
    array = np.kron(rng.integers(0, 3, (5, 5)), np.ones((6, 6)))[:height, :width].astype(np.uint8)
    touches = np.zeros(array.shape, bool)  # a neighbour in one of four directions differs
    for y in range(height):
        for x in range(width):
            around = [(y - 1, x), (y + 1, x), (y, x - 1), (y, x + 1)]
            touches[y, x] = any(
                0 <= a < height and 0 <= b < width and array[a, b] != array[y, x] for a, b in around
            )
    expected = np.zeros_like(touches)
    reach = thickness - 1
    for y, x in zip(*np.nonzero(touches), strict=True):
        expected[max(0, y - reach) : y + reach + 1, max(0, x - reach) : x + reach + 1] = True
    start = height // 3
    for rows in (slice(0, height), slice(start, height), slice(0, start + 1)):
        edges = render._find_edges(array, rows, thickness)
        np.testing.assert_array_equal(edges, expected[rows])


def test_strips_do_not_show(
    segmentation: NDArray[np.uint8], photo: NDArray[np.uint8], monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = overlay(segmentation, photo, outline=True)
    counts = count_pixels(segmentation, 3)
    monkeypatch.setattr(render, "_STRIP_PIXELS", 7 * 80)
    np.testing.assert_array_equal(overlay(segmentation, photo, outline=True), whole)
    np.testing.assert_array_equal(count_pixels(segmentation, 3), counts)
    monkeypatch.setattr(render, "_STRIP_PIXELS", 1)
    np.testing.assert_array_equal(overlay(segmentation, photo, outline=True), whole)


def test_uint16() -> None:
    labels = [f"label {i}" for i in range(300)]
    array = np.array([[299, 65535], [256, 0]], np.uint16)
    drawn = overlay(array, None, labels=labels)
    colors = label_colors(labels)
    np.testing.assert_array_equal(drawn[0, 0], colors[299])
    np.testing.assert_array_equal(drawn[1], colors[[256, 0]])


def test_inputs_are_left_alone(segmentation: NDArray[np.uint8], photo: NDArray[np.uint8]) -> None:
    before = segmentation.copy(), photo.copy()
    segmentation.flags.writeable = photo.flags.writeable = False
    draw_overlay(segmentation, LABELS, ignore_index=255, image=photo)
    np.testing.assert_array_equal(segmentation, before[0])
    np.testing.assert_array_equal(photo, before[1])


def test_views_are_drawn_as_they_look(
    segmentation: NDArray[np.uint8], photo: NDArray[np.uint8]
) -> None:
    flipped = overlay(segmentation[::-1, ::-1], photo[::-1, ::-1])
    straight = overlay(segmentation[::-1, ::-1].copy(), photo[::-1, ::-1].copy())
    np.testing.assert_array_equal(flipped, straight)


@pytest.mark.parametrize("opacity", [-0.1, 1.1, float("nan")])
def test_wrong_opacity(segmentation: NDArray[np.uint8], opacity: float) -> None:
    with pytest.raises(InvalidArgumentError, match="opacity"):
        overlay(segmentation, None, opacity=opacity)


def test_count_pixels() -> None:
    array = RNG.integers(0, 5, (50, 70)).astype(np.uint16)
    array[3] = 65535
    expected = [int((array == i).sum()) for i in range(4)]
    assert count_pixels(array, 4).tolist() == expected


# --- size


@pytest.mark.parametrize("size", [(1, 1), (1, 300), (300, 1), (20, 30), (600, 800)])
def test_picture_stays_above_the_legend(size: tuple[int, int]) -> None:
    array = np.zeros(size, np.uint8)
    picture = draw_overlay(array, LABELS, ignore_index=255)
    factor = max(1, 256 // max(size))
    assert picture.width >= max(size[1] * factor, 100)
    assert picture.height > size[0] * factor + 40
    top = np.asarray(picture)[: size[0] * factor]
    colored = (top == COLORS[0]).all(axis=2)
    assert colored.sum() == size[0] * size[1] * factor * factor
    columns = np.flatnonzero(colored.any(axis=0))
    left, right = columns[0], picture.width - 1 - columns[-1]
    assert abs(int(left) - int(right)) <= 1, "centred"


def test_small_pictures_are_enlarged_pixel_by_pixel() -> None:
    array = np.array([[0, 1], [1, 0]], np.uint8)
    photo = RNG.integers(0, 256, (2, 2, 3)).astype(np.uint8)
    picture = draw_overlay(array, LABELS, ignore_index=255, image=photo, opacity=0, outline=False)
    top = np.asarray(picture)[:256, :256]
    np.testing.assert_array_equal(top, photo.repeat(128, axis=0).repeat(128, axis=1))


def test_preview_is_small_and_keeps_the_shares() -> None:
    array = np.zeros((50, 5000), np.uint8)
    array[:, 0] = 1  # lost in the reduction, but not in the legend
    picture = draw_preview(array, LABELS, ignore_index=255, image=None)
    assert picture.width == 1000
    with_nothing = draw_preview(np.zeros_like(array), LABELS, ignore_index=255, image=None)
    assert picture.height == with_nothing.height
    assert picture.tobytes() != with_nothing.tobytes()


# --- legend


def entry(name: str = "sky", share: float = 0.5) -> LegendEntry:
    return LegendEntry(name, share, (10, 110, 230))


@pytest.mark.parametrize(
    ("share", "expected"),
    [
        (0.5, "50.0%"),
        (1, "100.0%"),
        (0.123456, "12.3%"),
        (0.0001, "<0.1%"),
        (0.99999, ">99.9%"),
        (0.001, "0.1%"),
    ],
)
def test_shares(share: float, expected: str) -> None:
    assert format_share(share) == expected


def test_legend_shows_chips_in_order() -> None:
    entries = [
        LegendEntry(f"{i}", 0.1, color) for i, color in enumerate([(200, 0, 0), (0, 0, 200)])
    ]
    panel = np.asarray(draw_legend(entries, not_found=[], width=400, font_size=20))
    red = np.argwhere((panel == (200, 0, 0)).all(axis=2))
    blue = np.argwhere((panel == (0, 0, 200)).all(axis=2))
    assert len(red) > 100 and len(blue) > 100
    assert red[:, 1].max() < blue[:, 1].min()  # side by side
    assert (panel[0] == 255).all() and (panel[:, 0] == 255).all()


def test_legend_of_the_overlay_is_sorted_and_complete(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: dict[str, object] = {}

    def spy(entries: list[LegendEntry], **options: object) -> Image.Image:
        seen.update(options, entries=[(e.name, round(e.share, 3)) for e in entries])
        return Image.new("RGB", (10, 10))

    monkeypatch.setattr(render, "draw_legend", spy)
    array = np.zeros((10, 10), np.uint8)
    array[:6], array[9] = 1, 255
    draw_overlay(array, LABELS, ignore_index=255)
    assert seen["entries"] == [("grass", 0.6), ("sky", 0.3), ("undecided", 0.1)]
    assert seen["not_found"] == ["sand"]


def test_many_entries_are_summed_up() -> None:
    few = draw_legend(
        [entry(f"some longer label {i}") for i in range(24)], not_found=[], width=500, font_size=16
    )
    many = draw_legend(
        [entry(f"some longer label {i % 24}", 1e-4) for i in range(3000)],
        not_found=[],
        width=500,
        font_size=16,
    )
    assert few.height < many.height <= few.height + 30
    assert many.width == few.width == 500


def test_long_names_are_cut() -> None:
    panel = draw_legend([entry("long " * 500)], not_found=["far " * 900], width=200, font_size=16)
    assert panel.width < 26 * 16


def test_not_found_is_one_line() -> None:
    one = draw_legend([entry()], not_found=["a"], width=300, font_size=16)
    many = draw_legend([entry()], not_found=[str(i) for i in range(65000)], width=300, font_size=16)
    assert one.size == many.size
    assert one.height > draw_legend([entry()], not_found=[], width=300, font_size=16).height


def test_nothing_was_found() -> None:
    assert draw_legend([], not_found=["sky"], width=300, font_size=16).width == 300
    array = np.full((300, 300), 255, np.uint8)
    assert draw_overlay(array, LABELS, ignore_index=255).width == 300


# --- text

NAMES = [
    "天空", "небо", "🐱 cat", "Straße", "ångström", "łódź", "سماء", "आकाश", "naïve café", "a\nb",
    "🇩🇪", "x²", "ﬁ", "½", "e\u0301", "ø", "👩‍🚀", "\u200b", "\u202e", "\x07", "\ud800",
    "\U0010ffff", " ", "A" * 5000,
]  # fmt: skip


@pytest.mark.parametrize("name", NAMES, ids=ascii)
def test_any_name_can_be_drawn(name: str) -> None:
    panel = draw_legend([entry(name)], not_found=[name], width=300, font_size=16)
    assert panel.width >= 300


@pytest.fixture
def no_system_fonts(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(text, "_installed_fonts", lambda: ())


@pytest.mark.usefixtures("no_system_fonts")
@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("plain text", "plain text"),
        (" two\n words ", "two words"),
        ("Straße", "Strasse"),
        ("Fußgänger", "Fussganger"),
        ("łódź", "lodz"),
        ("naïve café", "naive cafe"),
        ("e\u0301", "e"),
        ("x²", "x2"),
        ("🐱 cat", ":cat face: cat"),
        ("👩\u200d🚀", ":woman::rocket:"),
        ("天", "\\u5929"),
        ("\ud800", "\\ud800"),
    ],
)
def test_replacements_are_readable(name: str, expected: str) -> None:
    assert text.prepare_text(name, 16)[0] == expected


def test_text_that_a_system_font_has_is_kept() -> None:
    if not text._installed_fonts():
        pytest.skip("no known font is installed")
    shown, font = text.prepare_text("Straße", 16)
    assert shown == "Straße" and font.getlength(shown) > 20


@settings(max_examples=50, deadline=None)
@given(st.text(max_size=40), st.integers(0, 300))
def test_shortened_text_fits(string: str, width: int) -> None:
    shown, font = text.prepare_text(string, 16)
    short = text.shorten_text(shown, font, width)
    assert font.getlength(short) <= max(width, font.getlength("..."))
    assert short == shown or short.endswith("...")


def test_without_freetype(monkeypatch: pytest.MonkeyPatch) -> None:
    bitmap = ImageFont.load_default_imagefont()
    monkeypatch.setattr(text, "_load_font", lambda name, size: bitmap)
    monkeypatch.setattr(text, "_installed_fonts", lambda: ())
    text._has.cache_clear()
    try:
        for name in NAMES:
            panel = draw_legend([entry(name)], not_found=[name], width=300, font_size=14)
            assert np.asarray(panel).min() < 100
    finally:
        text._has.cache_clear()


def test_chip_has_an_edge_on_white() -> None:
    chip = np.asarray(legend._draw_chip(20, (250, 250, 240), is_hatched=False)).astype(int)
    assert chip[0, 10].sum() < 700 < chip[10, 10].sum()
    assert chip[0, 0].sum() > 700  # rounded
    hatched = np.asarray(legend._draw_chip(20, (218, 221, 226), is_hatched=True))
    assert len(np.unique(hatched.reshape(-1, 3), axis=0)) > 10
