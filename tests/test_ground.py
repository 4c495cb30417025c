from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image, TiffImagePlugin

from ovseg.analysis import ground_pixel_size
from ovseg.errors import InvalidArgumentError, InvalidImageError
from ovseg.output.ground import pixel_area

rasterio = pytest.importorskip("rasterio")


def write(path: Path, crs: Any, transform: Any) -> Path:
    profile = {"driver": "GTiff", "width": 6, "height": 4, "count": 1, "dtype": "uint8", "crs": crs, "transform": transform}
    with rasterio.open(path, "w", **profile) as file:
        file.write(np.zeros((1, 4, 6), np.uint8))
    return path


@pytest.mark.parametrize(
    ("crs", "metres"),
    [("EPSG:32640", 1.0), ("EPSG:3857", 1.0), ("EPSG:2193", 1.0), ("EPSG:2263", 1200 / 3937)],
)
def test_files_of_rasterio(tmp_path: Path, crs: str, metres: float) -> None:
    path = write(tmp_path / "a.tif", crs, rasterio.Affine(0.3, 0, 5e5, 0, -0.25, 2e6))
    assert ground_pixel_size(path) == pytest.approx((0.25 * metres, 0.3 * metres))


def test_a_turned_raster(tmp_path: Path) -> None:
    cosine, sine = math.cos(math.radians(30)), math.sin(math.radians(30))
    turned = rasterio.Affine(0.3 * cosine, 0.25 * sine, 5e5, 0.3 * sine, -0.25 * cosine, 2e6)
    path = write(tmp_path / "a.tif", "EPSG:32640", turned)
    height, width = ground_pixel_size(path)
    assert (height, width) == pytest.approx((0.25, 0.3))
    assert height * width == pytest.approx(abs(turned.determinant))


def test_degrees_are_refused(tmp_path: Path) -> None:
    path = write(tmp_path / "a.tif", "EPSG:4326", rasterio.Affine(1e-5, 0, 55, 0, -1e-5, 25))
    with pytest.raises(InvalidImageError, match="degrees"):
        ground_pixel_size(path)


def test_a_unit_that_is_unknown(tmp_path: Path) -> None:
    tags = TiffImagePlugin.ImageFileDirectory_v2()
    tags[33550] = (2.0, 2.0, 0.0)
    tags.tagtype[33550] = 12
    Image.fromarray(np.zeros((2, 2), np.uint8)).save(tmp_path / "a.tif", tiffinfo=tags)
    with pytest.raises(InvalidImageError, match="unit"):
        ground_pixel_size(tmp_path / "a.tif")


@pytest.mark.filterwarnings("ignore:Corrupt EXIF")
def test_what_is_no_geotiff(tmp_path: Path) -> None:
    Image.fromarray(np.zeros((2, 2), np.uint8)).save(tmp_path / "a.tif")
    Image.fromarray(np.zeros((2, 2), np.uint8)).save(tmp_path / "a.png")
    (tmp_path / "b.tif").write_bytes(b"II*\0nothing")
    for name in ("a.tif", "a.png"):
        with pytest.raises(InvalidImageError, match="no GeoTIFF tags"):
            ground_pixel_size(tmp_path / name)
    for name in ("b.tif", "c.tif"):
        with pytest.raises(InvalidImageError, match="Cannot read"):
            ground_pixel_size(tmp_path / name)


def test_area() -> None:
    assert pixel_area(None) is None
    assert pixel_area(0.5) == 0.25
    assert pixel_area(np.float32(0.5)) == 0.25  # type: ignore[arg-type]
    assert pixel_area((2, 0.5)) == 1.0
    for wrong in (0, -1, math.inf, "1", (1,), [1, 2, 3], (1, None)):
        with pytest.raises(InvalidArgumentError, match="pixel_size"):
            pixel_area(wrong)  # type: ignore[arg-type]
