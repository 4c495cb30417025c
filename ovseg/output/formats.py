"""Label maps as data: index PNG, NumPy archive, COCO annotations and GeoJSON.

These functions know arrays and labels; `ovseg.result` puts a result around them.
"""

from __future__ import annotations

import json
import math
import os
import zipfile
import zlib
from collections.abc import Callable, Iterable, Mapping, Sequence
from types import MappingProxyType
from typing import Any, BinaryIO, NamedTuple

import numpy as np
from numpy.typing import NDArray
from PIL import Image, PngImagePlugin

from ovseg.errors import InvalidArgumentError, InvalidImageError, OutputError
from ovseg.output import LabelMap
from ovseg.output.files import write_atomically
from ovseg.output.palette import RGB, UNDECIDED_COLOR, label_colors
from ovseg.output.polygons import signed_area, trace_polygons
from ovseg.output.rle import decode_rle, find_runs

Coordinates = NDArray[np.float64]
Transform = Iterable[float] | Callable[[Coordinates, Coordinates], tuple[Any, Any]]

_LABELS_KEY = "ovseg:labels"
_MODEL_KEY = "ovseg:model"
_COLORS_KEY = "ovseg:colors"
_FLOATS = ("scores", "confidence", "entropy")
_SUFFIXES = (".png", ".npz", ".json", ".geojson")
_LOSSY = (".jpg", ".jpeg", ".webp", ".avif", ".heic", ".gif")
_MAX_PIXELS = 1 << 30  # against small files that unfold into huge pictures


class Saved(NamedTuple):
    """What a file holds of a result; see `ovseg.result.Segmentation` for the fields."""

    segmentation: LabelMap
    labels: tuple[str, ...]
    scores: NDArray[np.float32] | None
    model: str
    confidence: NDArray[np.float32] | None = None
    entropy: NDArray[np.float32] | None = None
    colors: Mapping[str, RGB] = MappingProxyType({})


def write_png(file: BinaryIO, result: Saved) -> None:
    """Write an index PNG.

    A uint8 map becomes a PNG of mode P with the colours of the labels as its palette, so that it
    looks like something in a viewer; a uint16 map becomes a 16-bit greyscale PNG. Either way the
    values in the file are the indices. The labels are a text chunk, `ovseg:labels`, a JSON list.
    """
    picture = Image.fromarray(result.segmentation)
    if result.segmentation.dtype == np.uint8:
        palette = np.zeros((256, 3), np.uint8)
        palette[: len(result.labels)] = label_colors(result.labels, result.colors)
        palette[255] = UNDECIDED_COLOR
        picture.putpalette(palette.tobytes())
    text = PngImagePlugin.PngInfo()
    text.add_itxt(_LABELS_KEY, json.dumps(list(result.labels), ensure_ascii=False))
    text.add_itxt(_MODEL_KEY, result.model)
    if result.colors:
        text.add_itxt(_COLORS_KEY, json.dumps(dict(result.colors), ensure_ascii=False))
    picture.save(file, format="PNG", pnginfo=text)


def read_png(path: str | os.PathLike[str]) -> Saved:
    """Read an index PNG that `write_png` wrote."""
    # Not Image.open: that refuses large pictures, and a result is as large as its image.
    with PngImagePlugin.PngImageFile(path) as picture:
        text = dict(picture.info)
        if _LABELS_KEY not in text or picture.mode not in ("P", "I;16"):
            raise InvalidImageError(
                f"{os.fspath(path)!r} is not a label map of ovseg: expected an index PNG with the "
                f"text chunk {_LABELS_KEY!r}, got a PNG of mode {picture.mode} with "
                f"{sorted(map(str, text)) or 'no text'}."
            )
        if picture.width * picture.height > _MAX_PIXELS:
            raise InvalidImageError(
                f"{os.fspath(path)!r} has {picture.width} x {picture.height} pixels; "
                f"at most {_MAX_PIXELS} are read."
            )
        segmentation = np.asarray(picture)
    labels = json.loads(str(text[_LABELS_KEY]))
    colors = _read_colors(json.loads(str(text.get(_COLORS_KEY, "{}"))))
    return Saved(segmentation, tuple(labels), None, str(text.get(_MODEL_KEY, "")), colors=colors)


def _read_colors(colors: Mapping[str, Sequence[int]]) -> dict[str, RGB]:
    return {label: (red, green, blue) for label, (red, green, blue) in colors.items()}


def write_npz(file: BinaryIO, result: Saved) -> None:
    """Write a NumPy archive: `segmentation`, `labels`, `ignore_index`, `model`, and those of `_FLOATS` that there are."""
    arrays: dict[str, Any] = {
        "segmentation": result.segmentation,
        "labels": np.array(result.labels),
        "ignore_index": np.array(np.iinfo(result.segmentation.dtype).max),
        "model": np.array(result.model),
    }
    if result.colors:
        arrays["colors"] = np.array(json.dumps(dict(result.colors), ensure_ascii=False))
    floats = {name: values for name in _FLOATS if (values := getattr(result, name)) is not None}
    if floats:  # large, and noise to a compressor
        np.savez(file, **arrays, **floats)
    else:
        np.savez_compressed(file, **arrays)


def read_npz(path: str | os.PathLike[str]) -> Saved:
    """Read a NumPy archive that `write_npz` wrote; pickles are refused."""
    with np.load(path, allow_pickle=False) as archive:
        floats = {name: archive[name] if name in archive else None for name in _FLOATS}
        labels = tuple(str(label) for label in archive["labels"])
        colors = _read_colors(json.loads(str(archive["colors"]))) if "colors" in archive else {}
        return Saved(archive["segmentation"], labels, model=str(archive["model"]), colors=colors, **floats)


def make_coco_annotations(
    segmentation: LabelMap, num_labels: int, *, image_id: int, first_id: int
) -> list[dict[str, Any]]:
    """Make one COCO annotation per label that has pixels; category ids are index + 1."""
    annotations: list[dict[str, Any]] = []
    for index, runs in enumerate(find_runs(segmentation, num_labels)):
        if len(runs.starts):
            annotations.append(
                {
                    "id": first_id + len(annotations),
                    "image_id": image_id,
                    "category_id": index + 1,
                    "segmentation": runs.to_rle(),
                    "area": runs.area(),
                    "bbox": list(runs.box()),
                    "iscrowd": 0,
                }
            )
    return annotations


def make_coco(result: Saved, *, file_name: str) -> dict[str, Any]:
    """Make a complete COCO dictionary for one image, with id 1."""
    height, width = result.segmentation.shape
    annotations = make_coco_annotations(
        result.segmentation, len(result.labels), image_id=1, first_id=1
    )
    return {
        "info": {"description": "semantic segmentation by ovseg", "model": result.model},
        "images": [{"id": 1, "file_name": file_name, "height": height, "width": width}],
        "categories": [
            {"id": i + 1, "name": label, **({"color": list(result.colors[label])} if label in result.colors else {})}
            for i, label in enumerate(result.labels)
        ],
        "annotations": annotations,
    }


def read_coco(path: str | os.PathLike[str]) -> Saved:
    """Read a COCO file of one image that `make_coco` made."""
    with open(path, encoding="utf-8") as file:
        coco = json.load(file)
    (image,) = coco["images"]
    labels = tuple(category["name"] for category in coco["categories"])
    indices = {category["id"]: index for index, category in enumerate(coco["categories"])}
    dtype = np.uint8 if len(labels) <= 255 else np.uint16
    size = (image["height"], image["width"])
    segmentation = np.full(size, np.iinfo(dtype).max, dtype)
    for annotation in coco["annotations"]:
        mask = decode_rle(annotation["segmentation"])
        segmentation[mask] = indices[annotation["category_id"]]
    colors = _read_colors({category["name"]: category["color"] for category in coco["categories"] if "color" in category})
    return Saved(segmentation, labels, None, coco["info"]["model"], colors=colors)


_READERS: Mapping[str, Callable[[str | os.PathLike[str]], Saved]] = {
    ".png": read_png,
    ".npz": read_npz,
    ".json": read_coco,
}
# What the readers of PNG, zip and JSON raise for damaged files.
_DAMAGED = (
    *(ValueError, TypeError, LookupError, OverflowError, AttributeError, SyntaxError, EOFError),
    *(zipfile.BadZipFile, zlib.error, RuntimeError),
)


def write_saved(
    path: str | os.PathLike[str],
    result: Saved,
    *,
    file_name: str | None,
    transform: Transform | None,
) -> None:
    """Write a result to a file; the suffix decides how. See `ovseg.result.Segmentation.save`."""
    name = os.path.expanduser(os.fspath(path))
    stem, suffix = os.path.splitext(os.path.basename(name))
    suffix = suffix.lower()
    _check_suffix(name, suffix)
    for option, value, home in (
        ("file_name", file_name, ".json"),
        ("transform", transform, ".geojson"),
    ):
        if value is not None and suffix != home:
            raise InvalidArgumentError(
                f"{option} is only for {home} files; got {option}={value!r:.80} for {name!r}."
            )
    document = None
    if suffix == ".json":
        document = make_coco(result, file_name=stem if file_name is None else file_name)
    elif suffix == ".geojson":
        document = make_geojson(result.segmentation, result.labels, transform)
    with write_atomically(name) as file:
        if document is not None:
            file.write(json.dumps(document, ensure_ascii=False, allow_nan=False).encode())
        elif suffix == ".png":
            write_png(file, result)
        else:
            write_npz(file, result)


def read_saved(path: str | os.PathLike[str]) -> Saved:
    """Read a file that a result was saved to; the suffix decides how."""
    name = os.path.expanduser(os.fspath(path))
    suffix = os.path.splitext(name)[1].lower()
    if suffix not in _READERS:
        raise InvalidImageError(
            f"Cannot load {name!r}: expected a saved result, a file that ends in "
            f"{', '.join(_READERS)}; got {suffix or 'no suffix'}."
        )
    try:
        return _READERS[suffix](name)
    except InvalidImageError:
        raise
    except OSError as error:
        raise InvalidImageError(f"Cannot load {name!r}: {error.strerror or error}.") from error
    except _DAMAGED as error:
        raise InvalidImageError(
            f"Cannot load {name!r}: it is damaged, or was not saved by ovseg ({error!r})."
        ) from error


def make_geojson(
    segmentation: LabelMap, labels: Sequence[str], transform: Transform | None
) -> dict[str, Any]:
    """Make a GeoJSON FeatureCollection with one MultiPolygon per label that has pixels.

    Rings are closed and follow the right-hand rule of RFC 7946 (exteriors counter-clockwise,
    interiors clockwise) in the coordinates that are written, read as x to the right and y up.

    Args:
        segmentation: (H, W) uint8 or uint16 index map.
        labels: K labels.
        transform: See `ovseg.result.Segmentation.to_geojson`.
    """
    project = _as_function(transform)
    features = []
    for index, polygons in enumerate(trace_polygons(segmentation, len(labels))):
        if not polygons:
            continue
        area = sum(signed_area(ring) for p in polygons for ring in (p.exterior, *p.interiors))
        coordinates = [
            [_make_ring(p.exterior, project, is_hole=False)]
            + [_make_ring(ring, project, is_hole=True) for ring in p.interiors]
            for p in polygons
        ]
        features.append(
            {
                "type": "Feature",
                "properties": {"label": labels[index], "index": index, "pixels": int(area)},
                "geometry": {"type": "MultiPolygon", "coordinates": coordinates},
            }
        )
    return {"type": "FeatureCollection", "features": features}


def _make_ring(
    ring: NDArray[np.int32],
    project: Callable[[Coordinates, Coordinates], tuple[Any, Any]] | None,
    *,
    is_hole: bool,
) -> list[list[float]]:
    if project is None:  # whole pixels, and the orientation is right already
        points: NDArray[np.int32] | NDArray[np.float64] = ring
    else:
        x, y = ring.T.astype(np.float64)
        points = np.stack([np.asarray(axis, np.float64) for axis in project(x, y)], axis=1)
        if points.shape != ring.shape or not np.isfinite(points).all():
            raise InvalidArgumentError(
                f"transform must map (N,) arrays x, y to two finite (N,) arrays; for N = "
                f"{len(ring)} it gave shape {points.shape[:1]} or values that are not finite."
            )
        if (signed_area(points) > 0) == is_hole:
            points = points[::-1]
    closed: list[list[float]] = np.concatenate([points, points[:1]]).tolist()
    return closed


def _as_function(
    transform: Transform | None,
) -> Callable[[Coordinates, Coordinates], tuple[Any, Any]] | None:
    if transform is None or callable(transform):
        return transform
    try:
        numbers = [float(number) for number in transform]
    except (TypeError, ValueError) as error:
        raise _bad_transform(transform) from error
    if len(numbers) == 9 and numbers[6:] == [0, 0, 1]:
        numbers = numbers[:6]  # an affine.Affine is a tuple of nine; its last row says nothing
    if len(numbers) != 6 or not all(math.isfinite(number) for number in numbers):
        raise _bad_transform(transform)
    a, b, c, d, e, f = numbers
    if a * e - b * d == 0:
        raise InvalidArgumentError(
            f"transform must not flatten the picture: a * e - b * d is 0 for {tuple(numbers)}."
        )
    return lambda x, y: (a * x + b * y + c, d * x + e * y + f)


def _bad_transform(transform: object) -> InvalidArgumentError:
    return InvalidArgumentError(
        "transform must be six finite numbers (a, b, c, d, e, f), with x' = a x + b y + c and "
        f"y' = d x + e y + f, or a function of two arrays x, y; got {transform!r:.200}. "
        "GDAL orders them (c, a, b, f, d, e)."
    )


def _check_suffix(name: str, suffix: str) -> None:
    if suffix in _SUFFIXES:
        return
    hint = ""
    if suffix in _LOSSY:
        hint = (
            " A lossy picture would change the indices; for a picture to look at, use "
            f"result.overlay().save({name!r})."
        )
    raise OutputError(
        f"Cannot save {name!r}: expected a name that ends in {', '.join(_SUFFIXES)}; "
        f"got {suffix or 'no suffix'}.{hint}"
    )
