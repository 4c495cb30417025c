"""Hints in files: JSON for all of them, PNG for strokes."""

from __future__ import annotations

import json
import operator
import os
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image, PngImagePlugin

from ovseg.errors import InvalidArgumentError, InvalidLabelsError, OutputError
from ovseg.output.files import write_atomically
from ovseg.output.palette import label_colors
from ovseg.output.rle import decode_rle
from ovseg.vocabulary import clean_label

if TYPE_CHECKING:
    from ovseg.hints import Hints
    from ovseg.marks import Mark

FORMAT = "ovseg hints"
_LABELS_KEY = "ovseg:labels"  # as in the index PNGs of results
_MAX_BYTES = 64 << 20
_MAX_PIXELS = 1 << 28
_KEYS = {"kind", "label", "points", "radius", "painted"}


def write(
    hints: Hints, path: str | os.PathLike[str], image_size: tuple[int, int] | None, labels: Sequence[str] | None
) -> None:
    """Write hints; see `Hints.save`."""
    suffix = os.path.splitext(os.fspath(path))[1].lower()
    if suffix == ".json":
        content = {"format": FORMAT, "version": 1, "hints": [_entry(mark) for mark in hints.marks]}
        text = json.dumps(content, ensure_ascii=False, allow_nan=False)
        with write_atomically(path) as file:
            file.write(f"{text}\n".encode())
    elif suffix == ".png":
        _write_png(hints, path, image_size, hints.labels if labels is None else tuple(labels))
    else:
        raise OutputError(f"Cannot save hints as {os.fspath(path)!r}: expected a name that ends in .json or .png; got {suffix or 'none'}.")


def read(
    path: str | os.PathLike[str], labels: Sequence[str | Sequence[str]] | None, colors: Mapping[str, Any] | None
) -> Hints:
    """Read hints; see `Hints.load`."""
    name = os.fspath(path)
    suffix = os.path.splitext(name)[1].lower()
    if suffix not in (".json", ".png"):
        raise InvalidArgumentError(f"Cannot read hints from {name!r}: expected a .json or .png file; got {suffix or 'no suffix'}.")
    try:
        with open(name, "rb") as file:
            data = file.read(_MAX_BYTES + 1)
    except (OSError, ValueError) as error:
        raise InvalidArgumentError(f"Cannot read the hints {name!r}: {getattr(error, 'strerror', None) or error}.") from error
    if len(data) > _MAX_BYTES:
        raise InvalidArgumentError(f"The hints {name!r} are larger than {_MAX_BYTES >> 20} MiB. Is this another file?")
    return _parse_json(data, name) if suffix == ".json" else _parse_png(data, name, labels, colors)


def _entry(mark: Mark) -> dict[str, Any]:
    entry: dict[str, Any] = {"kind": mark.kind, "label": mark.label}
    if mark.painted is not None:
        height, width, counts = mark.painted
        entry["painted"] = {"size": [height, width], "counts": counts}
    elif mark.kind != "tag":
        entry["points"] = [list(point) for point in mark.points]
        if mark.kind in ("scribble", "click"):
            entry["radius"] = mark.radius
    return entry


def _parse_json(data: bytes, name: str) -> Hints:
    from ovseg.hints import Hints

    try:
        content = json.loads(data.decode("utf-8-sig"))
    except (ValueError, RecursionError) as error:
        raise InvalidArgumentError(f"The hints {name!r} are no JSON: {error}.") from error
    if not isinstance(content, dict) or content.get("format") != FORMAT or not isinstance(content.get("hints"), list):
        raise InvalidArgumentError(
            f'{name!r} holds no hints: expected {{"format": "{FORMAT}", "version": 1, "hints": [...]}}, as Hints.save writes it.'
        )
    if content.get("version") != 1:
        raise InvalidArgumentError(f"The hints {name!r} have version {content.get('version')!r}; this ovseg reads version 1.")
    hints = Hints()
    for i, entry in enumerate(content["hints"]):
        try:
            hints += _read_entry(entry)
        except (InvalidArgumentError, InvalidLabelsError) as error:
            raise type(error)(f"In {name!r}, hint {i}: {error}") from error
    return hints


def _read_entry(entry: object) -> Hints:
    from ovseg.hints import Hints
    from ovseg.marks import RADIUS

    if not isinstance(entry, dict) or (unknown := entry.keys() - _KEYS):
        what = f"unknown keys {sorted(unknown)}" if isinstance(entry, dict) else f"{entry!r:.100}"
        raise InvalidArgumentError(f"a hint is an object with the keys {', '.join(sorted(_KEYS))}; got {what}.")
    kind, label, points = entry.get("kind"), entry.get("label"), entry.get("points", [])
    radius = entry.get("radius", RADIUS)
    if not isinstance(points, list):
        raise InvalidArgumentError(f"points must be a list of [x, y]; got {points!r:.100}.")
    if kind == "tag":
        return Hints.tags([label])  # type: ignore[list-item]  # checked there
    if kind == "scribble" and "painted" in entry:
        if not isinstance(entry["painted"], dict):
            raise InvalidArgumentError(f"painted must be an object with size and counts; got {entry['painted']!r:.100}.")
        size = entry["painted"].get("size")
        if not isinstance(size, list) or len(size) != 2 or not all(type(side) is int and 0 < side for side in size):
            raise InvalidArgumentError(f"The size of painted pixels must be [height, width]; got {size!r:.100}.")
        if size[0] * size[1] > _MAX_PIXELS:
            raise InvalidArgumentError(f"Painted pixels of {size[0]} x {size[1]} are more than {_MAX_PIXELS}.")
        return Hints.scribbles({label: decode_rle(entry["painted"])})  # type: ignore[dict-item]
    if kind == "scribble":
        return Hints.scribbles({label: [points]}, radius=radius)  # type: ignore[dict-item]
    if kind == "click":
        return Hints.clicks({label: points}, radius=radius)  # type: ignore[dict-item]
    if kind == "box":
        return Hints.boxes({label: [number for point in points for number in _pair(point)]})  # type: ignore[dict-item]
    if kind == "polygon":
        return Hints.polygons({label: [points]})  # type: ignore[dict-item]
    raise InvalidArgumentError(f"kind must be scribble, click, box, polygon or tag; got {kind!r:.100}.")


def _pair(point: object) -> list[Any]:
    if not isinstance(point, list) or len(point) != 2:
        raise InvalidArgumentError(f"A box has two points, [[left, top], [right, bottom]]; got {point!r:.100} for one.")
    return point


def _write_png(hints: Hints, path: str | os.PathLike[str], image_size: tuple[int, int] | None, labels: tuple[str, ...]) -> None:
    others = sorted({mark.kind for mark in hints.marks if mark.kind in ("box", "tag")})
    if others:
        raise InvalidArgumentError(f"A PNG holds pixels, not {' or '.join(others)} hints. Save these hints as .json.")
    if image_size is None:
        sizes = {mark.painted[:2] for mark in hints.marks if mark.painted is not None}
        if len(sizes) != 1:
            raise InvalidArgumentError("To save hints as a PNG, give the (height, width) of the image: image_size=features.image_size.")
        (image_size,) = sizes
    seeds = hints.seeds(image_size, labels)
    kind, nothing = (np.uint8, 255) if len(labels) <= 255 else (np.uint16, 65535)
    indices = np.full(image_size[0] * image_size[1], nothing, kind)
    indices[seeds.pixels] = seeds.labels
    picture = Image.fromarray(indices.reshape(image_size))
    if kind is np.uint8:
        palette = np.full((256, 3), 255, np.uint8)
        palette[: len(labels)] = label_colors(labels)
        picture.putpalette(palette.tobytes())
    text = PngImagePlugin.PngInfo()
    text.add_itxt(_LABELS_KEY, json.dumps(list(labels), ensure_ascii=False))
    with write_atomically(path) as file:
        picture.save(file, format="PNG", pnginfo=text)


def _parse_png(
    data: bytes, name: str, labels: Sequence[str | Sequence[str]] | None, colors: Mapping[str, Any] | None
) -> Hints:
    from io import BytesIO

    from ovseg.hints import Hints

    try:
        with PngImagePlugin.PngImageFile(BytesIO(data)) as picture:
            if picture.width * picture.height > _MAX_PIXELS:
                raise InvalidArgumentError(f"The strokes {name!r} have {picture.width} x {picture.height} pixels; too many.")
            mode, text = picture.mode, dict(picture.info)
            values = np.asarray(picture if mode in ("L", "P", "I;16", "I", "1") else picture.convert("RGBA"))
    except InvalidArgumentError:
        raise
    except Exception as error:  # Pillow answers damaged files with about any exception there is
        raise InvalidArgumentError(f"Cannot read the strokes {name!r}: the PNG is damaged ({error}).") from error
    names = None if labels is None else [group if isinstance(group, str) else next(iter(group)) for group in labels]
    if values.ndim == 3:
        painted = _by_colour(values, name, names, colors)
    else:
        if _LABELS_KEY in text:
            names = _own_labels(text[_LABELS_KEY], name)
        painted = _by_index(values.astype(np.int64), 65535 if mode in ("I;16", "I") else 255, name, names)
    if not painted:
        raise InvalidArgumentError(f"There is no stroke in {name!r}: all its pixels mean nothing.")
    return Hints.scribbles(painted)


def _own_labels(text: object, name: str) -> list[str]:
    try:
        names = json.loads(str(text))
    except ValueError:
        names = None
    if not isinstance(names, list) or not all(isinstance(word, str) for word in names):
        raise InvalidArgumentError(f"The text chunk {_LABELS_KEY!r} of {name!r} must be a JSON list of words; got {text!r:.100}.")
    return names


def _by_index(values: NDArray[np.int64], nothing: int, name: str, names: Sequence[str] | None) -> dict[str, NDArray[np.bool_]]:
    if names is None:
        raise InvalidLabelsError(f"{name!r} holds indices and does not say of what. Give the labels: Hints.load(path, labels).")
    found = [int(value) for value in np.unique(values) if value != nothing]
    if found and found[-1] >= len(names):
        raise InvalidArgumentError(
            f"{name!r} has the index {found[-1]}, but there are {len(names)} labels. Indices count from 0; {nothing} means nothing."
        )
    return {names[index]: values == index for index in found}


def _by_colour(
    values: NDArray[np.uint8], name: str, names: Sequence[str] | None, colors: Mapping[str, Any] | None
) -> dict[str, NDArray[np.bool_]]:
    if colors is None and names is None:
        raise InvalidLabelsError(f"{name!r} holds colours. Say what they mean: Hints.load(path, labels), or colors={{label: (r, g, b)}}.")
    if colors is None:
        words = [clean_label(word) for word in names or ()]
        colors = dict(zip(words, label_colors(words).tolist(), strict=True))
    if not isinstance(colors, Mapping):
        raise InvalidArgumentError(f"colors must map labels to colours, such as {{'road': (255, 0, 0)}}; got {colors!r:.100}.")
    codes = values[..., :3].astype(np.int64) @ (1 << 16, 1 << 8, 1)
    open_ = (values[..., 3] >= 128) & (codes != 0xFFFFFF)
    painted: dict[str, NDArray[np.bool_]] = {}
    for label, colour in colors.items():
        red, green, blue = _check_colour(label, colour)
        mask = open_ & (codes == (red << 16) + (green << 8) + blue)
        open_ &= ~mask
        if mask.any():
            painted[label] = mask
    if open_.any():
        code = int(codes[open_][0])
        known = ", ".join(f"{label} #{''.join(f'{int(part):02x}' for part in colour)}" for label, colour in list(colors.items())[:8])
        raise InvalidArgumentError(
            f"{name!r} has {np.count_nonzero(open_)} pixels in colours that stand for nothing, such as #{code:06x}; known are {known}. "
            "Paint without smoothing, leave the rest white or transparent, or give colors=."
        )
    return painted


def _check_colour(label: str, colour: Any) -> tuple[int, int, int]:
    try:
        red, green, blue = (operator.index(part) for part in colour)
    except (TypeError, ValueError) as error:
        raise InvalidArgumentError(f"The colour of {label!r} must be (red, green, blue); got {colour!r:.100}.") from error
    if not all(0 <= part <= 255 for part in (red, green, blue)):
        raise InvalidArgumentError(f"The colour of {label!r} must be in [0, 255]; got {colour!r:.100}.")
    return red, green, blue
