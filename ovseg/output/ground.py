"""How much ground a pixel covers: from a number the user gives, or from a GeoTIFF's own tags."""

from __future__ import annotations

import math
import os
from collections.abc import Sequence
from numbers import Real
from typing import Any

from PIL import Image, UnidentifiedImageError

from ovseg.errors import InvalidArgumentError, InvalidImageError

PixelSize = float | tuple[float, float]
"""Side of a pixel on the ground, or its height and width."""

# Tags and keys of the GeoTIFF standard (OGC 19-008r4, 7.1 and annex B).
_PIXEL_SCALE, _TRANSFORMATION, _KEYS, _DOUBLES = 33550, 34264, 34735, 34736
_MODEL_TYPE, _PROJECTION, _LINEAR_UNITS, _LINEAR_UNIT_SIZE = 1024, 3072, 3076, 3077
_PROJECTED, _GEOGRAPHIC, _USER_DEFINED = 1, 2, 32767
_METRES = {9001: 1.0, 9002: 0.3048, 9003: 1200 / 3937, 9036: 1000.0}
"""EPSG codes of units of length: metre, foot, US survey foot, kilometre."""
_IN_METRES = {*range(32601, 32661), *range(32701, 32761), 3857}
"""EPSG codes of projections that are in metres for certain: UTM on WGS 84, and the web's Mercator."""


def pixel_area(pixel_size: PixelSize | None) -> float | None:
    """Turn the size of a pixel into its area.

    Args:
        pixel_size: Side of a pixel on the ground, or (height, width) where they differ; None for none.

    Returns:
        The area, in the unit of `pixel_size` squared; None for None.

    Raises:
        InvalidArgumentError: If it is not one or two positive numbers.
    """
    if pixel_size is None:
        return None
    sides = (pixel_size, pixel_size) if isinstance(pixel_size, Real) else pixel_size
    if not isinstance(sides, Sequence) or isinstance(sides, str) or len(sides) != 2 or not all(_is_length(side) for side in sides):
        raise InvalidArgumentError(
            f"pixel_size must be the side of a pixel on the ground, a positive number such as 0.25, or (height, width); got {pixel_size!r}."
        )
    return float(sides[0]) * float(sides[1])


def _is_length(side: Any) -> bool:
    return isinstance(side, Real) and not isinstance(side, bool) and math.isfinite(side) and float(side) > 0


def ground_pixel_size(path: str | os.PathLike[str]) -> tuple[float, float]:
    """Read the size of a GeoTIFF's pixels on the ground.

    Args:
        path: A GeoTIFF in a projected coordinate system.

    Returns:
        (height, width) of a pixel [m].

    Raises:
        InvalidImageError: If the file cannot be read, says nothing of its place, or is in degrees.
    """
    name = os.fspath(path)
    try:
        with Image.open(name) as picture:
            tags = dict(getattr(picture, "tag_v2", {}))
    except (OSError, UnidentifiedImageError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        raise InvalidImageError(f"Cannot read {name!r} as a GeoTIFF: {getattr(error, 'strerror', None) or error}.") from error
    if _TRANSFORMATION in tags:  # a 4 x 4 matrix, row by row; its columns are the steps of a pixel to the right and down
        a, b, _, _, d, e, *_ = (float(value) for value in tags[_TRANSFORMATION])
        height, width = math.hypot(b, e), math.hypot(a, d)
    elif _PIXEL_SCALE in tags:
        width, height = (abs(float(value)) for value in tags[_PIXEL_SCALE][:2])
    else:
        raise InvalidImageError(f"{name!r} has no GeoTIFF tags that say how large its pixels are. Give pixel_size as a number.")
    keys, doubles = _geo_keys(tags)
    if keys.get(_MODEL_TYPE) == _GEOGRAPHIC:
        raise InvalidImageError(
            f"The pixels of {name!r} are measured in degrees, whose length on the ground changes with the latitude. Reproject it to metres "
            "(for example to its UTM zone), or give pixel_size as a number."
        )
    unit = keys.get(_LINEAR_UNITS, 9001 if keys.get(_PROJECTION) in _IN_METRES else 0)
    metres = doubles.get(_LINEAR_UNIT_SIZE) if unit == _USER_DEFINED else _METRES.get(unit)
    if keys.get(_MODEL_TYPE) != _PROJECTED or metres is None or not (_is_length(height * metres) and _is_length(width * metres)):
        raise InvalidImageError(
            f"Cannot tell the size of the pixels of {name!r} on the ground: {height:g} x {width:g} in the unit of EPSG code "
            f"{unit or '(none)'}. Give pixel_size as a number of metres."
        )
    return height * metres, width * metres


def _geo_keys(tags: dict[int, tuple[float, ...]]) -> tuple[dict[int, int], dict[int, float]]:
    """Read the directory of keys: those with a short value, and those with one in the list of doubles."""
    directory = [int(value) for value in tags.get(_KEYS, ())]
    doubles = tags.get(_DOUBLES, ())
    short: dict[int, int] = {}
    double: dict[int, float] = {}
    for at in range(4, len(directory) - 3, 4):  # the first four numbers are the header
        key, where, _, value = directory[at : at + 4]
        if where == 0:
            short[key] = value
        elif where == _DOUBLES and value < len(doubles):
            double[key] = float(doubles[value])
    return short, double
