"""The legend of an overlay: a white panel with a colour chip, a name and a share for each label."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from PIL import Image, ImageDraw

from ovseg.output.text import Font, prepare_text, shorten_text

_PAPER = (255, 255, 255)
_INK = (31, 35, 40)
_PALE_INK = (101, 109, 118)
_MAX_ENTRIES = 24
_MAX_NAME = 18  # longest name, in font sizes
_SHARPNESS = 4  # chips are drawn this much larger and reduced, which smooths their corners


@dataclass(frozen=True)
class LegendEntry:
    """One line of a legend.

    Attributes:
        name: The label.
        share: Part of all pixels, in [0, 1]; None shows none.
        color: RGB of the chip.
        is_hatched: Whether the chip is hatched (pixels without a label).
    """

    name: str
    share: float | None
    color: tuple[int, int, int]
    is_hatched: bool = False


def format_share(share: float) -> str:
    """Write a share in percent, and never round a little to nothing or nearly all to all."""
    if 0 < share < 0.001:
        return "<0.1%"
    if 0.999 < share < 1:
        return ">99.9%"
    return f"{100 * share:.1f}%"


def draw_legend(
    entries: Sequence[LegendEntry], *, not_found: Sequence[str], width: int, font_size: int
) -> Image.Image:
    """Draw a legend.

    Args:
        entries: The lines, in order; beyond 24, the rest is summed up in one line.
        not_found: Labels without a pixel, named in a line of their own.
        width: Width of the panel [px]; it becomes wider when one column does not fit.
        font_size: Size of the text [px].

    Returns:
        RGB image, `width` or more pixels wide and as high as it needs to be.
    """
    unit = font_size
    rows = [_Row.of(entry, unit) for entry in entries[:_MAX_ENTRIES]]
    rest = entries[_MAX_ENTRIES:]
    if rest:
        shares = [entry.share for entry in rest if entry.share is not None]
        share = format_share(sum(shares)) if shares else ""
        rows.append(_Row.of(LegendEntry(f"+ {len(rest)} more", 0, _PAPER), unit, share=share))

    padding, column_gap = round(0.9 * unit), round(1.6 * unit)
    row_height = round(1.7 * unit)
    column_width = max((row.width for row in rows), default=0)
    width = max(width, column_width + 2 * padding)
    columns = max(1, (width - 2 * padding + column_gap) // max(1, column_width + column_gap))
    lines = -(-len(rows) // columns)
    footer = _describe_missing(not_found, unit, width - 2 * padding)
    height = 2 * padding + row_height * (lines + (footer is not None))

    panel = Image.new("RGB", (width, height), _PAPER)
    draw = ImageDraw.Draw(panel)
    for number, row in enumerate(rows):
        line, column = divmod(number, columns)
        x = padding + column * (column_width + column_gap)
        row.draw(panel, draw, x, padding + line * row_height, row_height)
    if footer is not None:
        text, font = footer
        _draw_text(draw, padding, padding + lines * row_height, row_height, text, font, _PALE_INK)
    return panel


@dataclass(frozen=True)
class _Row:
    """One entry with its texts measured; `unit` is the font size."""

    entry: LegendEntry
    unit: int
    name: str
    name_font: Font
    share: str
    share_font: Font
    name_x: int
    share_x: int
    width: int

    @classmethod
    def of(cls, entry: LegendEntry, unit: int, *, share: str | None = None) -> _Row:
        name, name_font = prepare_text(entry.name, unit)
        name = shorten_text(name, name_font, _MAX_NAME * unit)
        if share is None:
            share = "" if entry.share is None else format_share(entry.share)
        share, share_font = prepare_text(share, unit)
        name_x = round(1.5 * unit)
        share_x = name_x + round(name_font.getlength(name) + 0.5 * unit)
        width = share_x + round(share_font.getlength(share))
        return cls(entry, unit, name, name_font, share, share_font, name_x, share_x, width)

    def draw(
        self, panel: Image.Image, draw: ImageDraw.ImageDraw, x: int, y: int, height: int
    ) -> None:
        if self.entry.color != _PAPER:
            chip = _draw_chip(self.unit, self.entry.color, is_hatched=self.entry.is_hatched)
            panel.paste(chip, (x, y + (height - self.unit) // 2))
        for text, font, offset, color in (
            (self.name, self.name_font, self.name_x, _INK),
            (self.share, self.share_font, self.share_x, _PALE_INK),
        ):
            _draw_text(draw, x + offset, y, height, text, font, color)


def _draw_text(
    draw: ImageDraw.ImageDraw,
    x: int,
    y: int,
    height: int,
    text: str,
    font: Font,
    color: tuple[int, int, int],
) -> None:
    """Write a line of text into a row, with the same baseline whatever its letters are."""
    # The bitmap font of a Pillow without FreeType knows no baseline.
    _, top, _, bottom = font.getbbox("H")
    draw.text((x, y + (height - (top + bottom)) / 2), text, fill=color, font=font)


def _draw_chip(size: int, color: tuple[int, int, int], *, is_hatched: bool) -> Image.Image:
    """Draw a rounded square with a thin darker edge, which pale colours need on white."""
    large = size * _SHARPNESS
    chip = Image.new("RGB", (large, large), _PAPER)
    draw = ImageDraw.Draw(chip)
    edge = (color[0] * 7 // 10, color[1] * 7 // 10, color[2] * 7 // 10)
    radius, border = large // 5, max(_SHARPNESS, large // 16)
    inside = Image.new("RGB", (large, large), color)
    if is_hatched:
        stripes = ImageDraw.Draw(inside)
        for start in range(-large, large, large // 3):
            stripes.line((start, large, start + large, 0), fill=edge, width=large // 12)
    mask = Image.new("L", (large, large), 0)
    ImageDraw.Draw(mask).rounded_rectangle((0, 0, large - 1, large - 1), radius, fill=255)
    chip.paste(inside, mask=mask)
    draw.rounded_rectangle((0, 0, large - 1, large - 1), radius, outline=edge, width=border)
    return chip.resize((size, size), Image.Resampling.LANCZOS)


def _describe_missing(not_found: Sequence[str], unit: int, width: int) -> tuple[str, Font] | None:
    """Name the labels that were not found, as many as fit in one line."""
    if not not_found:
        return None
    # No more than could ever fit: there may be thousands.
    text, font = prepare_text("not found: " + ", ".join(not_found[:100]), round(0.9 * unit))
    if len(not_found) <= 100 and font.getlength(text) <= width:
        return text, font
    count = f"{len(not_found)} not found: "
    text, font = prepare_text(count + ", ".join(not_found[:100]), round(0.9 * unit))
    return shorten_text(text, font, width), font
