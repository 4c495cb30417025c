"""Pictures of a segmentation: the photo with its regions coloured, outlined and explained."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from ovseg.errors import InvalidArgumentError
from ovseg.output import LabelMap
from ovseg.output.legend import LegendEntry, draw_legend
from ovseg.output.palette import RGB, UNDECIDED_COLOR, label_colors

_STRIP_PIXELS = 1 << 21  # pictures are made in strips: a photo of 100 megapixels needs no copies
_READABLE_SIDE = 256  # with a legend, smaller pictures are enlarged up to here [px]
_SMALLEST_FONT = 14
_PREVIEW_SIDE = 1024  # at most [px]


def draw_overlay(
    segmentation: LabelMap,
    labels: Sequence[str],
    *,
    ignore_index: int,
    image: NDArray[np.uint8] | None = None,
    opacity: float = 0.5,
    outline: bool = True,
    legend: bool = True,
    shares: Sequence[float] | None = None,
    colors: Mapping[str, RGB] | None = None,
) -> Image.Image:
    """Colour the regions of an image.

    Every label has the colour that `label_colors` gives it, blended over the image, and its regions
    are outlined in the full colour. Undecided pixels keep the image, under thin hatching.

    Args:
        segmentation: (H, W) uint8 or uint16 index map.
        labels: K labels.
        ignore_index: Value of the undecided pixels.
        image: (H, W, 3) uint8 RGB; None draws the plain colours.
        opacity: 0 shows only the image, 1 only the colours.
        outline: Whether regions are outlined.
        legend: Whether a legend is added below. A picture with a legend is wider than the image
            where the legend needs it, and an image of less than 256 pixels is enlarged by a whole
            factor; without one the picture always has the size of the image.
        shares: (K,) part of all pixels that each label has, in [0, 1], for the legend; None counts.
        colors: Colours that were chosen, by label.

    Returns:
        RGB picture.
    """
    if not 0 <= opacity <= 1:
        raise InvalidArgumentError(
            f"opacity must be between 0 (image only) and 1 (colours only); got {opacity!r}."
        )
    table_colors = label_colors(labels, colors)
    panel = None
    if legend:
        if shares is None:
            shares = (count_pixels(segmentation, len(labels)) / segmentation.size).tolist()
        factor = max(1, _READABLE_SIDE // max(segmentation.shape))
        if factor > 1:
            segmentation = segmentation.repeat(factor, axis=0).repeat(factor, axis=1)
            image = None if image is None else image.repeat(factor, axis=0).repeat(factor, axis=1)
        panel = _make_legend(labels, table_colors, shares, size=segmentation.shape)

    height, width = segmentation.shape
    canvas_width = width if panel is None else max(width, panel.width)
    canvas_height = height if panel is None else height + panel.height
    canvas = Image.new("RGB", (canvas_width, canvas_height), "white")
    left = (canvas_width - width) // 2
    table = np.zeros((np.iinfo(segmentation.dtype).max + 1, 3), np.uint8)
    table[: len(labels)] = table_colors
    thickness = max(1, round(min(height, width) / 500)) if outline else 0
    for rows in _strips(segmentation.shape):
        strip = segmentation[rows]
        undecided = strip == ignore_index
        part = table[strip]
        if image is not None:
            part = _blend(image[rows], part, opacity)
            part[undecided] = image[rows][undecided]
        else:
            part[undecided] = UNDECIDED_COLOR
        if undecided.any():
            _hatch(part, undecided, rows.start, period=max(8, 8 * round(min(height, width) / 240)))
        if thickness:
            edges = _find_edges(segmentation, rows, thickness) & ~undecided
            part[edges] = table[strip[edges]]
        canvas.paste(Image.fromarray(part), (left, rows.start))
    if panel is not None:
        canvas.paste(panel, (0, height))
    return canvas


def draw_preview(
    segmentation: LabelMap,
    labels: Sequence[str],
    *,
    ignore_index: int,
    image: NDArray[np.uint8] | None,
    colors: Mapping[str, RGB] | None = None,
) -> Image.Image:
    """Draw an overlay that is reduced to a size for the screen; see `draw_overlay`."""
    shares = (count_pixels(segmentation, len(labels)) / segmentation.size).tolist()
    step = -(-max(segmentation.shape) // _PREVIEW_SIDE)
    if step > 1:
        segmentation = segmentation[step // 2 :: step, step // 2 :: step]
        height, width = segmentation.shape
        if image is not None:
            small = Image.fromarray(image).resize((width, height), Image.Resampling.BOX)
            image = np.asarray(small)
    return draw_overlay(segmentation, labels, ignore_index=ignore_index, image=image, shares=shares, colors=colors)


def count_pixels(segmentation: LabelMap, num_labels: int) -> NDArray[np.int64]:
    """Count the pixels of every label.

    Args:
        segmentation: (H, W) uint8 or uint16 index map; values from `num_labels` on do not count.
        num_labels: K.

    Returns:
        (K,) int64 number of pixels.
    """
    counts = np.zeros(np.iinfo(segmentation.dtype).max + 1, np.int64)
    for rows in _strips(segmentation.shape):  # bincount works on 8 bytes per pixel
        counts += np.bincount(segmentation[rows].ravel(), minlength=len(counts))
    return counts[:num_labels]


def _strips(size: tuple[int, ...]) -> Iterator[slice]:
    height, width = size
    step = max(1, _STRIP_PIXELS // max(1, width))
    for start in range(0, height, step):
        yield slice(start, min(start + step, height))


def _blend(
    image: NDArray[np.uint8], colors: NDArray[np.uint8], opacity: float
) -> NDArray[np.uint8]:
    """Mix two (h, w, 3) uint8 pictures in 16-bit arithmetic."""
    weight = round(256 * opacity)
    mixed = image * np.uint16(256 - weight)
    mixed += colors * np.uint16(weight)
    mixed += np.uint16(128)
    mixed >>= 8
    return mixed.astype(np.uint8)


def _hatch(
    part: NDArray[np.uint8], undecided: NDArray[np.bool_], first_row: int, *, period: int
) -> None:
    """Draw diagonal lines over the undecided pixels of a strip, in place."""
    height, width = undecided.shape
    diagonal = (np.arange(first_row, first_row + height)[:, None] + np.arange(width)) % period
    line = max(1, period // 12)
    # A light and a dark line side by side show on any photo.
    for offset, tone in ((0, 255), (line, 0)):
        where = undecided & (diagonal >= offset) & (diagonal < offset + line)
        part[where] = (part[where] // 2) + np.uint8(tone // 2)


def _find_edges(segmentation: LabelMap, rows: slice, thickness: int) -> NDArray[np.bool_]:
    """Mark the pixels of a strip that are at most `thickness` away from another label."""
    top = max(0, rows.start - thickness)
    around = segmentation[top : rows.stop + thickness]
    edges = np.zeros(around.shape, bool)
    differs = around[1:] != around[:-1]
    edges[1:] |= differs
    edges[:-1] |= differs
    differs = around[:, 1:] != around[:, :-1]
    edges[:, 1:] |= differs
    edges[:, :-1] |= differs
    for axis in (0, 1):
        reached = 0
        while reached < thickness - 1:  # grows by doubling
            step = min(reached + 1, thickness - 1 - reached)
            lines = np.moveaxis(edges, axis, 0)
            grown = lines.copy()
            grown[step:] |= lines[:-step]
            grown[:-step] |= lines[step:]
            lines[:] = grown
            reached += step
    return edges[rows.start - top : rows.stop - top]


def _make_legend(
    labels: Sequence[str],
    colors: NDArray[np.uint8],
    shares: Sequence[float],
    *,
    size: tuple[int, ...],
) -> Image.Image:
    """Draw the legend for a picture of `size` (height, width)."""
    entries = [
        LegendEntry(label, share, (int(r), int(g), int(b)))
        for label, share, (r, g, b) in zip(labels, shares, colors, strict=True)
        if share > 0
    ]
    undecided = 1 - sum(shares)
    if undecided > 1e-9:
        entries.append(LegendEntry("undecided", undecided, UNDECIDED_COLOR, is_hatched=True))
    entries.sort(key=lambda entry: -(entry.share or 0))
    height, width = size
    font_size = max(_SMALLEST_FONT, round(min(0.02 * (height * width) ** 0.5, width / 24)))
    missing = [label for label, share in zip(labels, shares, strict=True) if share == 0]
    return draw_legend(entries, not_found=missing, width=width, font_size=font_size)
