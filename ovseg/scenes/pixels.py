"""From the bands of a raster to RGB of 8 bits, part by part, and which pixels have data at all."""

from __future__ import annotations

from collections.abc import Sequence
from numbers import Integral, Real

import numpy as np
from numpy.typing import NDArray

from ovseg.decode import flatten_alpha
from ovseg.errors import InvalidArgumentError, InvalidImageError
from ovseg.image import load_image
from ovseg.scenes.raster import Raster, Values

SAMPLES = 16
"""Strips of a scene that `limits="auto"` looks at."""
PERCENTILES = (2.0, 98.0)
"""What `limits="auto"` makes black and white."""

Limits = tuple[float, float] | str | None


class Pixels:
    """Reads a raster as RGB.

    Args:
        raster: What to read.
        bands: Indices, from 0, of the bands that are shown as red, green and blue, or of one that is shown as grey; None for the
            raster's own colours.
        limits: The values that become 0 and 255; "auto" for the 2nd and 98th percentile of a sample; None for what the type says, as
            everywhere in ovseg: 0 to 255, 0 to 65535 for uint16, 0 to 1 for floats.
        nodata: The value of pixels without data; None for the one that the raster names.

    Raises:
        InvalidArgumentError: If these do not fit the raster.
    """

    def __init__(
        self, raster: Raster, bands: Sequence[int] | int | None = None, limits: Limits = None, nodata: float | None = None
    ) -> None:
        self._raster = raster
        self._bands = _check_bands(raster, bands)
        chosen_by_user = bands is not None and (raster.by_custom or raster.alpha in self._bands)
        self._alpha = None if chosen_by_user else raster.alpha
        self._nodata = raster.nodata if nodata is None else _check_nodata(nodata)
        if limits is not None and raster.palette is not None:
            raise InvalidArgumentError("limits have no meaning for a raster with a palette. Leave them out.")
        auto = isinstance(limits, str) and limits == "auto"
        self._limits = _sampled(raster, self._bands, self._nodata) if auto else _check_limits(limits)

    @property
    def size(self) -> tuple[int, int]:
        """(H, W) [px]."""
        return self._raster.size

    def read(self, rows: slice, columns: slice) -> tuple[NDArray[np.uint8], NDArray[np.bool_] | None]:
        """Read a part.

        Returns:
            (rows, columns, 3) uint8 RGB; and (rows, columns) bool, whether a pixel has data, or None where all have.
        """
        raster = self._raster
        values = raster.read(rows, columns)
        alpha = None if self._alpha is None else values[..., self._alpha]
        chosen = values[..., self._bands]
        valid = _valid(chosen, self._nodata)
        if alpha is not None and not alpha.all():
            valid = (alpha != 0) if valid is None else valid & (alpha != 0)
        if valid is not None:
            if valid.all():
                valid = None
            else:
                chosen = np.where(valid[..., None], chosen, np.zeros((), chosen.dtype))
        rgb = self._rgb(chosen)
        if alpha is not None and raster.dtype == np.uint8 and alpha.min() < 255:
            rgb = flatten_alpha(np.dstack([rgb, alpha]))
        return rgb, valid

    def _rgb(self, values: Values) -> NDArray[np.uint8]:
        raster = self._raster
        if raster.palette is not None:
            return raster.palette[values[..., 0]]
        if self._limits is not None:
            low, high = self._limits
            scaled = (values.astype(np.float32) - np.float32(low)) * np.float32(255 / (high - low))
            values = np.rint(np.clip(scaled, 0, 255)).astype(np.uint8)
        try:
            rgb = load_image(values)
        except InvalidImageError as error:
            raise InvalidImageError(f"{error}. Or give limits=(low, high): the values that become black and white") from error
        return 255 - rgb if raster.inverted else rgb


def _valid(values: Values, nodata: float | None) -> NDArray[np.bool_] | None:
    """Find the pixels that have data: not all bands nodata, and no band NaN or infinite."""
    valid: NDArray[np.bool_] | None = None
    if values.dtype.kind == "f":
        finite: NDArray[np.bool_] = np.asarray(np.isfinite(values).all(-1))
        if not finite.all():
            valid = finite
    if nodata is not None and not np.isnan(nodata):
        empty: NDArray[np.bool_] = np.asarray((values == nodata).all(-1))
        if empty.any():
            valid = ~empty if valid is None else valid & ~empty
    return valid


def _check_bands(raster: Raster, bands: Sequence[int] | int | None) -> list[int]:
    if bands is None:
        if raster.palette is not None or raster.bands == 1 or (raster.bands == 2 and raster.alpha == 1):
            return [0]
        if raster.bands in (3, 4) or (raster.bands == 5 and raster.color and raster.alpha is not None):
            return [0, 1, 2]
        raise InvalidArgumentError(
            f"The image has {raster.bands} bands. Say with bands= which are red, green and blue, counting from 0: bands=(3, 2, 1) for "
            "the channels of Sentinel-2 in their order, for one."
        )
    chosen: list[int] = [bands] if isinstance(bands, int) else list(bands) if isinstance(bands, (list, tuple)) else []
    if len(chosen) not in (1, 3) or not all(isinstance(band, Integral) and not isinstance(band, bool) for band in chosen):
        raise InvalidArgumentError(f"bands must be one index or three, counting from 0; got {bands!r}.")
    if not all(0 <= band < raster.bands for band in chosen):
        raise InvalidArgumentError(f"bands must be between 0 and {raster.bands - 1}, as the image has {raster.bands}; got {bands!r}.")
    return [int(band) for band in chosen]


def _check_nodata(nodata: object) -> float:
    if isinstance(nodata, bool) or not isinstance(nodata, Real):
        raise InvalidArgumentError(f"nodata must be a number or None; got {nodata!r}.")
    return float(nodata)


def _check_limits(limits: Limits) -> tuple[float, float] | None:
    if limits is None:
        return None
    if (
        not isinstance(limits, (tuple, list))
        or len(limits) != 2
        or not all(isinstance(value, Real) and not isinstance(value, bool) and np.isfinite(float(value)) for value in limits)
        or not limits[0] < limits[1]
    ):
        raise InvalidArgumentError(f"limits must be (low, high) with low < high, 'auto' or None; got {limits!r}.")
    return float(limits[0]), float(limits[1])


def _sampled(raster: Raster, bands: list[int], nodata: float | None) -> tuple[float, float]:
    """Take percentiles of evenly spaced rows."""
    height, width = raster.size
    found = []
    for row in sorted({int((i + 0.5) * height / SAMPLES) for i in range(SAMPLES)}):
        values = raster.read(slice(row, row + 1), slice(0, width))[..., bands]
        valid = _valid(values, nodata)
        found.append((values if valid is None else values[valid]).ravel())
    together = np.concatenate(found)
    if not len(together):
        raise InvalidArgumentError("limits='auto' found no data in a sample of the scene. Give limits=(low, high).")
    low, high = np.percentile(together.astype(np.float64), PERCENTILES)
    return float(low), float(high if high > low else low + 1)
