"""The reader and the writer of TIFF against GDAL (rasterio) and Pillow."""

from __future__ import annotations

import json
import struct
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image

from ovseg.errors import InvalidImageError
from ovseg.scenes.raster import NotReadHereError, Scratch
from ovseg.scenes.sources import open_raster
from ovseg.scenes.tiff import TiffFile
from ovseg.scenes.writers import Legend, write_map

rasterio = pytest.importorskip("rasterio")
warnings.filterwarnings("ignore", category=rasterio.errors.NotGeoreferencedWarning)

HEIGHT, WIDTH = 75, 93


def values(bands: int, dtype: str) -> NDArray[Any]:
    """Smooth values with a little noise: what predictors are for."""
    rng = np.random.default_rng(5)
    y, x = np.mgrid[:HEIGHT, :WIDTH]
    planes = [(y * (band + 1) + 2 * x) % 200 + rng.integers(0, 3, (HEIGHT, WIDTH)) for band in range(bands)]
    return (np.stack(planes) / 7 if dtype.startswith("float") else np.stack(planes)).astype(dtype)


def write(path: Path, data: NDArray[Any], **options: Any) -> None:
    with rasterio.open(path, "w", driver="GTiff", height=HEIGHT, width=WIDTH, count=len(data), dtype=data.dtype, **options) as dataset:
        dataset.write(data)


def open_tiff(path: Path) -> TiffFile:
    return TiffFile(open(path, "rb"), repr(str(path)))  # noqa: SIM115


LAYOUTS: list[dict[str, Any]] = [
    {},
    {"blockysize": 7},
    {"tiled": True, "blockxsize": 32, "blockysize": 16},
    {"BIGTIFF": "YES"},
    {"ENDIANNESS": "BIG", "blockysize": 10},
    {"ENDIANNESS": "BIG", "BIGTIFF": "YES", "tiled": True, "blockxsize": 16, "blockysize": 48},
    {"interleave": "band"},
    {"interleave": "band", "tiled": True, "blockxsize": 32, "blockysize": 32},
]
PACKINGS: list[dict[str, Any]] = [{}, *({"compress": name} for name in ("deflate", "lzw", "packbits", "zstd", "lzma"))]


@pytest.mark.parametrize("packing", PACKINGS, ids=lambda options: options.get("compress", "none"))
@pytest.mark.parametrize("layout", LAYOUTS, ids=lambda options: "-".join(map(str, options.values())) or "strips")
@pytest.mark.parametrize(("bands", "dtype"), [(1, "uint8"), (3, "uint8"), (5, "uint16"), (2, "float32"), (1, "int16")])
def test_any_part_is_what_gdal_reads(
    tmp_path: Path, layout: dict[str, Any], packing: dict[str, Any], bands: int, dtype: str
) -> None:
    data = values(bands, dtype)
    options = {**layout, **packing}
    if packing.get("compress") in ("deflate", "lzw", "zstd"):
        options["predictor"] = 3 if dtype == "float32" else 2
    try:
        write(tmp_path / "a.tif", data, **options)
    except rasterio.errors.RasterioError:
        pytest.skip("this GDAL lacks the codec")
    tiff = open_tiff(tmp_path / "a.tif")
    assert (tiff.height, tiff.width, tiff.samples) == (HEIGHT, WIDTH, bands)
    whole = data.transpose(1, 2, 0)
    for rows, columns in ((slice(0, HEIGHT), slice(0, WIDTH)), (slice(11, 50), slice(20, 67)), (slice(49, 51), slice(92, 93))):
        found = tiff.read(rows, columns)
        assert found.dtype == data.dtype
        np.testing.assert_array_equal(found, whole[rows, columns])


@pytest.mark.parametrize("tiled", [False, True])
@pytest.mark.parametrize("photometric", ["RGB", "YCBCR"])
def test_jpeg_inside_is_what_pillow_reads(tmp_path: Path, tiled: bool, photometric: str) -> None:
    layout = {"tiled": True, "blockxsize": 32, "blockysize": 32} if tiled else {"blockysize": 16}
    write(tmp_path / "a.tif", values(3, "uint8"), compress="jpeg", photometric=photometric, **layout)
    found = open_tiff(tmp_path / "a.tif").read(slice(0, HEIGHT), slice(0, WIDTH))
    np.testing.assert_array_equal(found, np.asarray(Image.open(tmp_path / "a.tif").convert("RGB")))


def test_pillows_own_files(tmp_path: Path) -> None:
    picture = Image.fromarray(values(3, "uint8").transpose(1, 2, 0))
    for compression in (None, "tiff_lzw", "tiff_adobe_deflate", "jpeg"):
        picture.save(tmp_path / "a.tif", compression=compression)
        found = open_tiff(tmp_path / "a.tif").read(slice(3, 60), slice(5, 80))
        np.testing.assert_array_equal(found, np.asarray(Image.open(tmp_path / "a.tif").convert("RGB"))[3:60, 5:80])


def test_what_the_bands_mean(tmp_path: Path) -> None:
    palette = Image.fromarray(values(1, "uint8")[0]).convert("P")
    palette.putpalette(np.random.default_rng(0).integers(0, 256, 768, np.uint8).tobytes())
    palette.save(tmp_path / "p.tif")
    raster = open_tiff(tmp_path / "p.tif").raster()
    assert raster.palette is not None
    indices = raster.read(slice(0, HEIGHT), slice(0, WIDTH))[..., 0]
    np.testing.assert_array_equal(raster.palette[indices], np.asarray(palette.convert("RGB")))
    write(tmp_path / "a.tif", values(4, "uint8"), photometric="RGB", ALPHA="YES", nodata=7)
    raster = open_tiff(tmp_path / "a.tif").raster()
    assert (raster.alpha, raster.color, raster.nodata, raster.inverted) == (3, True, 7, False)
    write(tmp_path / "w.tif", values(1, "uint8"), photometric="MINISWHITE")
    assert open_tiff(tmp_path / "w.tif").raster().inverted


def test_a_sparse_file_has_nodata_where_it_has_nothing(tmp_path: Path) -> None:
    options = {"tiled": True, "blockxsize": 32, "blockysize": 32, "compress": "deflate", "SPARSE_OK": "TRUE", "nodata": 9}
    with rasterio.open(tmp_path / "a.tif", "w", driver="GTiff", height=64, width=64, count=1, dtype="uint8", **options) as dataset:
        dataset.write(np.full((1, 32, 32), 200, np.uint8), window=rasterio.windows.Window(32, 0, 32, 32))
    found = open_tiff(tmp_path / "a.tif").read(slice(0, 64), slice(0, 64))[..., 0]
    assert (found[:32, 32:] == 200).all()
    assert (found[32:] == 9).all() and (found[:, :32] == 9).all()


@pytest.mark.parametrize("options", [{}, {"compress": "deflate"}, {"compress": "lzw", "tiled": True, "blockxsize": 32, "blockysize": 32}])
def test_cut_off_and_damaged_files_say_so(tmp_path: Path, options: dict[str, Any]) -> None:
    write(tmp_path / "a.tif", values(3, "uint8"), **options)
    content = (tmp_path / "a.tif").read_bytes()
    rng = np.random.default_rng(3)
    cuts = [0, 1, 4, 7, 8, 9, 40, len(content) // 2, len(content) - 1]
    for damaged in [content[:cut] for cut in cuts] + [_scratched(content, rng) for _ in range(60)]:
        (tmp_path / "b.tif").write_bytes(damaged)
        try:
            tiff = open_tiff(tmp_path / "b.tif")
            if tiff.height * tiff.width < 10**6:
                tiff.read(slice(0, tiff.height), slice(0, tiff.width))
            assert len(damaged) == len(content)  # a scratch may pass unseen, a cut may not
        except (InvalidImageError, NotReadHereError):
            pass


def _scratched(content: bytes, rng: np.random.Generator) -> bytes:
    spoilt = bytearray(content)
    for place in rng.integers(0, min(len(content), 600), 6):
        spoilt[place] = rng.integers(0, 256)
    return bytes(spoilt)


def test_a_directory_that_claims_too_much_is_refused(tmp_path: Path) -> None:
    entries = [(256, 4, 1, 10), (257, 4, 1, 10), (273, 4, 2**31, 8)]
    directory = struct.pack("<H", len(entries)) + b"".join(struct.pack("<HHII", *entry) for entry in entries) + bytes(4)
    (tmp_path / "a.tif").write_bytes(b"II*\0" + struct.pack("<I", 8) + directory)
    with pytest.raises(InvalidImageError, match="cut off"):
        open_tiff(tmp_path / "a.tif")


def test_turned_and_odd_files_are_left_to_pillow(tmp_path: Path) -> None:
    data = values(3, "uint8").transpose(1, 2, 0)
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.fromarray(data).save(tmp_path / "turned.tif", exif=exif)
    with pytest.raises(NotReadHereError):
        open_tiff(tmp_path / "turned.tif")
    raster = open_raster(tmp_path / "turned.tif", tmp_path)
    np.testing.assert_array_equal(raster.read(slice(0, WIDTH), slice(0, HEIGHT)), np.rot90(data, -1))
    cmyk = Image.fromarray(data).convert("CMYK")
    cmyk.save(tmp_path / "cmyk.tif")
    raster = open_raster(tmp_path / "cmyk.tif", tmp_path)
    np.testing.assert_array_equal(raster.read(slice(0, HEIGHT), slice(0, WIDTH)), np.asarray(cmyk.convert("RGB")))
    bilevel = Image.fromarray(data[..., 0] > 100)
    bilevel.save(tmp_path / "one.tif")
    raster = open_raster(tmp_path / "one.tif", tmp_path)
    np.testing.assert_array_equal(raster.read(slice(0, HEIGHT), slice(0, WIDTH)), np.asarray(bilevel.convert("RGB")))


# ---------------------------------------------------------------------------------------------------------------- writing


def scratch(folder: Path, data: NDArray[Any]) -> Scratch:
    kept = Scratch(folder, data.shape, data.dtype)
    kept.write(slice(0, data.shape[0]), slice(0, data.shape[1]), data)
    return kept


@pytest.mark.parametrize("big", [False, True])
@pytest.mark.parametrize("dtype", ["uint8", "uint16"])
def test_gdal_reads_what_is_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, dtype: str, big: bool) -> None:
    if big:
        monkeypatch.setattr("ovseg.scenes.tiff_writer.BIG", 1)
    rng = np.random.default_rng(1)
    data = rng.integers(0, 3, (700, 1111)).astype(dtype)
    transform = rasterio.transform.from_origin(3e5, 28e5, 0.3, 0.3)
    source = np.zeros((3, HEIGHT, WIDTH), np.uint8)
    write(tmp_path / "from.tif", source, crs="EPSG:32740", transform=transform, ENDIANNESS="BIG")
    georeference = open_tiff(tmp_path / "from.tif").raster().georeference
    ignore = int(np.iinfo(dtype).max)
    legend = Legend(("sky", "Wiese", "道"), ignore, "mini", {"Wiese": (1, 200, 3)})
    told: list[int] = []
    write_map(tmp_path / "to.tif", scratch(tmp_path, data), legend, georeference, {"scale": 1.0}, told.append)
    assert sum(told) == 700
    assert (tmp_path / "to.tif").read_bytes()[2] == (43 if big else 42)
    with rasterio.open(tmp_path / "to.tif") as dataset:
        np.testing.assert_array_equal(dataset.read(1), data)
        assert dataset.crs == rasterio.crs.CRS.from_epsg(32740)
        assert dataset.transform == transform
        assert dataset.nodata == ignore
        assert dataset.block_shapes == [(512, 512)]
        assert json.loads(dataset.tags()["TIFFTAG_IMAGEDESCRIPTION"])["labels"] == ["sky", "Wiese", "道"]
        if dtype == "uint8":
            np.testing.assert_array_equal([dataset.colormap(1)[i][:3] for i in range(3)], legend.colors)
    again = open_tiff(tmp_path / "to.tif").read(slice(0, 700), slice(0, 1111))
    np.testing.assert_array_equal(again[..., 0], data)
    if dtype == "uint8":
        np.testing.assert_array_equal(np.asarray(Image.open(tmp_path / "to.tif")), data)
    beside = json.loads((tmp_path / "to.labels.json").read_text())
    assert beside["labels"] == ["sky", "Wiese", "道"] and beside["ignore_index"] == ignore and beside["scale"] == 1


def test_a_place_that_only_rasterio_knows_is_kept(tmp_path: Path) -> None:
    from ovseg.scenes.raster import Georeference

    transform = rasterio.transform.from_origin(10, 50, 0.001, 0.002)
    place = Georeference(crs=rasterio.crs.CRS.from_epsg(4326), transform=transform)
    legend = Legend(("a",), 255, "mini")
    write_map(tmp_path / "to.tif", scratch(tmp_path, np.zeros((5, 6), np.uint8)), legend, place, {}, lambda rows: None)
    with rasterio.open(tmp_path / "to.tif") as dataset:
        assert dataset.crs == place.crs
        assert dataset.transform.almost_equals(transform)
