"""The reliability diagram as a picture: score against accuracy before and after, and accuracy against coverage. Drawn with Pillow."""

from __future__ import annotations

from collections.abc import Sequence

from PIL import Image, ImageDraw

from ovseg.evaluation.calibrate import CalibratedDataset, Calibration
from ovseg.evaluation.calibration import Bin, Quality
from ovseg.output.text import prepare_text, shorten_text

_SIDE = 300  # of a panel [px]
_LEFT, _RIGHT, _TOP, _BOTTOM = 52, 20, 54, 74
_INK, _PALE, _GRID = (40, 40, 40), (130, 130, 130), (225, 225, 225)
_BAR, _GAP, _LINE = (90, 140, 200), (225, 140, 120), (190, 60, 40)


def draw_calibration(calibration: Calibration) -> Image.Image:
    """Draw a row of three panels for each dataset.

    The first two are reliability diagrams with the old and the fitted temperature: bars as high as the accuracy of the pixels in a bin of
    scores, the gap to their mean score in another colour, and below them how many pixels a bin has. The third is accuracy against coverage.

    Args:
        calibration: What to draw.

    Returns:
        RGB picture.
    """
    width, height = _LEFT + _SIDE + _RIGHT, _TOP + _SIDE + _BOTTOM
    picture = Image.new("RGB", (3 * width, height * len(calibration.datasets)), "white")
    for row, one in enumerate(calibration.datasets):
        for column, quality in enumerate((one.before, one.after)):
            panel = _Panel(picture, column * width, row * height)
            panel.frame(f"{one.dataset}, T = {quality.temperature:.3g}", f"ECE {100 * quality.ece:.1f} %", "score", "accuracy")
            panel.bars(quality.bins)
            panel.legend(((_BAR, "accuracy"), (_GAP, "gap to the score"), (_INK, "number of pixels")))
        panel = _Panel(picture, 2 * width, row * height)
        panel.frame(one.dataset, _areas(one), "part of the pixels that is answered", "accuracy")
        for quality, colour in ((one.before, _PALE), (one.after, _LINE)):
            panel.line([(choice.coverage, choice.accuracy) for choice in quality.selections], colour)
    return picture


def _areas(one: CalibratedDataset) -> str:
    def area(quality: Quality) -> str:
        return f"{quality.aurc:.3f}"

    return f"AURC {area(one.before)} (grey), {area(one.after)} (red)"


class _Panel:
    """A square from (0, 0) to (1, 1), y up."""

    def __init__(self, picture: Image.Image, left: int, top: int) -> None:
        self._draw = ImageDraw.Draw(picture)
        self._left, self._top = left + _LEFT, top + _TOP

    def _at(self, x: float, y: float) -> tuple[float, float]:
        return self._left + _SIDE * x, self._top + _SIDE * (1 - y)

    def _box(self, x0: float, y0: float, x1: float, y1: float, colour: tuple[int, int, int]) -> None:
        (left, bottom), (right, top) = self._at(x0, min(y0, y1)), self._at(x1, max(y0, y1))
        if bottom - top >= 0.5:
            self._draw.rectangle([left + 1, top, right - 1, bottom], fill=colour)

    def _text(self, x: float, y: float, text: str, size: int, anchor: str, colour: tuple[int, int, int] = _INK) -> None:
        text, font = prepare_text(text, size)
        self._draw.text((x, y), shorten_text(text, font, _SIDE), font=font, fill=colour, anchor=anchor)

    def frame(self, title: str, note: str, across: str, up: str) -> None:
        """Draw what is around: title, grid, axes."""
        self._text(self._left, self._top - 44, title, 16, "la")
        self._text(self._left, self._top - 22, note, 14, "la", _PALE)
        for tick in range(6):
            at = tick / 5
            self._draw.line([self._at(at, 0), self._at(at, 1)], fill=_GRID)
            self._draw.line([self._at(0, at), self._at(1, at)], fill=_GRID)
            self._text(self._at(at, 0)[0], self._top + _SIDE + 6, f"{at:g}", 12, "ma", _PALE)
            self._text(self._left - 6, self._at(0, at)[1], f"{at:g}", 12, "rm", _PALE)
        self._draw.rectangle([self._at(0, 1), self._at(1, 0)], outline=_PALE)
        self._text(self._left + _SIDE / 2, self._top + _SIDE + 24, across, 14, "ma")
        self._text(self._left + 6, self._top + 6, up, 14, "la", _PALE)

    def bars(self, bins: Sequence[Bin]) -> None:
        """Draw a reliability diagram."""
        most = max(entry.pixels for entry in bins)
        for entry in bins:
            if entry.pixels:
                self._box(entry.low, 0, entry.high, entry.accuracy, _BAR)
                self._box(entry.low, entry.accuracy, entry.high, entry.confidence, _GAP)
                self._box(entry.low, 0, entry.high, 0.12 * entry.pixels / most, _INK)
        self._draw.line([self._at(0, 0), self._at(1, 1)], fill=_INK)

    def legend(self, entries: Sequence[tuple[tuple[int, int, int], str]]) -> None:
        """Say below the axis what colours mean."""
        x, y = self._left, self._top + _SIDE + 46
        for colour, text in entries:
            self._draw.rectangle([x, y + 2, x + 10, y + 12], fill=colour)
            self._text(x + 15, y, text, 12, "la")
            x += round(15 + prepare_text(text, 12)[1].getlength(text)) + 16

    def line(self, points: Sequence[tuple[float, float]], colour: tuple[int, int, int]) -> None:
        """Draw a curve."""
        self._draw.line([self._at(x, y) for x, y in points], fill=colour, width=2)
