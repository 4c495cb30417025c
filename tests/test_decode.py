"""Image files and Pillow images: formats, modes, depths, orientation and hostile content."""

from __future__ import annotations

import colorsys
import io
import struct
import warnings
import zlib
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image, ImageCms, features

from ovseg import decode
from ovseg.decode import FORMATS
from ovseg.errors import InvalidImageError
from ovseg.image import load_image

ORIENTATION = 0x0112


def smooth(height: int = 12, width: int = 20) -> np.ndarray:
    """Make a picture (H, W, 3) uint8 without symmetry that lossy formats keep well."""
    y, x = np.mgrid[0:height, 0:width]
    channels = [x * 255 / (width - 1), y * 255 / (height - 1), (x + y) * 120 / (height + width)]
    return np.stack(channels, axis=-1).round().astype(np.uint8)


def encode(image: Image.Image | np.ndarray, format_name: str, **options: object) -> bytes:
    if isinstance(image, np.ndarray):
        image = Image.fromarray(image)
    buffer = io.BytesIO()
    image.save(buffer, format_name, **options)
    return buffer.getvalue()


def orientation_exif(orientation: int) -> bytes:
    exif = Image.Exif()
    exif[ORIENTATION] = orientation
    return exif.tobytes()


def png(
    width: int,
    height: int,
    depth: int,
    colour: int,
    rows: bytes,
    *chunks: tuple[bytes, bytes],
) -> bytes:
    """Write a PNG by hand; `rows` are the raw rows, each behind its filter byte."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return (
            struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))
        )

    header = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, depth, colour, 0, 0, 0))
    middle = b"".join(chunk(kind, data) for kind, data in chunks)
    return (
        b"\x89PNG\r\n\x1a\n"
        + header
        + middle
        + chunk(b"IDAT", zlib.compress(rows))
        + chunk(b"IEND", b"")
    )


def png_rows(values: np.ndarray) -> bytes:
    """Turn big-endian values (H, W) or (H, W, C) into rows of a PNG."""
    return b"".join(b"\0" + row.tobytes() for row in values)


def grey_tiff(
    width: int, height: int, bits: int, photometric: int, data: bytes, sample_format: int = 1
) -> bytes:
    """Write an uncompressed little-endian TIFF with one channel by hand."""
    entries = [
        (256, 4, width),
        (257, 4, height),
        (258, 3, bits),
        (259, 3, 1),
        (262, 3, photometric),
        (273, 4, 8),
        (277, 3, 1),
        (278, 4, height),
        (279, 4, len(data)),
        (339, 3, sample_format),
    ]
    data += b"\0" * (len(data) % 2)
    head = b"II*\0" + struct.pack("<I", 8 + len(data))
    table = b"".join(struct.pack("<HHII", tag, kind, 1, value) for tag, kind, value in entries)
    return head + data + struct.pack("<H", len(entries)) + table + struct.pack("<I", 0)


# Formats


LOSSLESS = [
    ("PNG", {}),
    ("WEBP", {"lossless": True}),
    ("BMP", {}),
    ("TIFF", {}),
    ("TIFF", {"compression": "tiff_lzw"}),
    ("TIFF", {"compression": "tiff_adobe_deflate"}),
    ("JPEG2000", {}),
    ("PPM", {}),
    ("ICO", {"sizes": [(32, 16)]}),
    ("ICO", {"sizes": [(32, 16)], "bitmap_format": "bmp"}),
    ("TGA", {}),
    ("TGA", {"compression": "tga_rle"}),
]
LOSSY = [
    ("JPEG", {"quality": 98, "subsampling": 0}),
    ("JPEG", {"quality": 98, "subsampling": 0, "progressive": True}),
    ("WEBP", {"quality": 100}),
    ("AVIF", {"quality": 100, "subsampling": "4:4:4"}),
    ("GIF", {}),
]


def skip_if_not_built(format_name: str) -> None:
    feature = {"WEBP": "webp", "AVIF": "avif", "JPEG2000": "jpg_2000"}.get(format_name)
    if feature is not None and not features.check(feature):
        pytest.skip(f"this Pillow was built without {format_name}")


@pytest.mark.parametrize(("format_name", "options"), LOSSLESS)
def test_lossless_formats(format_name: str, options: dict[str, object]) -> None:
    skip_if_not_built(format_name)
    picture = smooth(16, 32)
    result = load_image(encode(picture, format_name, **options))
    np.testing.assert_array_equal(result, picture)
    assert result.flags.c_contiguous
    assert result.flags.writeable


@pytest.mark.parametrize(("format_name", "options"), LOSSY)
def test_lossy_formats(format_name: str, options: dict[str, object]) -> None:
    skip_if_not_built(format_name)
    result = load_image(encode(smooth(), format_name, **options))
    difference = np.abs(result.astype(int) - smooth())
    assert difference.mean() < 6


@pytest.mark.parametrize("quality", [10, 95])
def test_jpeg_is_decoded_like_pillow_decodes_it(quality: int) -> None:
    content = encode(smooth(97, 161), "JPEG", quality=quality)
    with Image.open(io.BytesIO(content)) as image:
        np.testing.assert_array_equal(load_image(content), np.asarray(image))


@pytest.mark.parametrize("band_bytes", [1, 81, 1000])
def test_bands_meet_without_a_seam(monkeypatch: pytest.MonkeyPatch, band_bytes: int) -> None:
    monkeypatch.setattr(decode, "_BAND_BYTES", band_bytes)
    picture = np.random.default_rng(0).integers(0, 256, (11, 20, 3), dtype=np.uint8)
    np.testing.assert_array_equal(load_image(encode(picture, "PNG")), picture)
    np.testing.assert_array_equal(load_image(picture / 255), picture)


def test_first_of_several_frames() -> None:
    frames = [Image.new("RGB", (4, 3), colour) for colour in ("red", "lime", "blue")]
    for format_name in ("GIF", "TIFF", "PNG", "WEBP", "AVIF", "MPO"):
        skip = {"WEBP": "webp", "AVIF": "avif"}.get(format_name)
        if skip is not None and not features.check(skip):
            continue
        buffer = io.BytesIO()
        frames[0].save(buffer, format_name, save_all=True, append_images=frames[1:])
        result = load_image(buffer.getvalue())
        assert result.shape == (3, 4, 3)
        assert np.abs(result.astype(int) - [255, 0, 0]).max() <= 4, format_name


def test_pil_images_keep_their_current_frame() -> None:
    frames = [Image.new("RGB", (4, 3), colour) for colour in ("red", "lime", "blue")]
    buffer = io.BytesIO()
    frames[0].save(buffer, "TIFF", save_all=True, append_images=frames[1:])
    with Image.open(buffer) as image:
        image.seek(2)
        assert load_image(image)[0, 0].tolist() == [0, 0, 255]
        assert image.tell() == 2
        image.seek(0)
        assert load_image(image)[0, 0].tolist() == [255, 0, 0]


def test_pil_images_are_not_changed() -> None:
    image = Image.fromarray(smooth()).convert("P")
    image.info["transparency"] = 0
    before = image.copy()
    load_image(image)
    assert image == before
    assert image.info == before.info


def test_formats_are_the_documented_ones() -> None:
    assert set(FORMATS) == {
        *("JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF", "JPEG2000", "AVIF", "HEIF", "PPM", "ICO"),
        "TGA",
    }


@pytest.mark.parametrize("format_name", ["EPS", "PDF", "SGI", "PCX", "DDS", "IM", "XBM", "QOI"])
def test_other_formats_of_pillow_are_refused(format_name: str) -> None:
    image = Image.fromarray(smooth())
    buffer = io.BytesIO()
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", DeprecationWarning)
            image.convert("1" if format_name == "XBM" else "RGB").save(buffer, format_name)
    except (KeyError, OSError):
        pytest.skip(f"this Pillow does not write {format_name}")
    with pytest.raises(InvalidImageError, match="cannot read image given as bytes"):
        load_image(buffer.getvalue())


def test_registered_heif_plugin_is_used(monkeypatch: pytest.MonkeyPatch) -> None:
    content = b"\0\0\0\x18ftypheic" + bytes(20)
    monkeypatch.delitem(Image.OPEN, "HEIF", raising=False)
    with pytest.raises(InvalidImageError, match="install pillow-heif"):
        load_image(content)

    def opener(file: object, name: object) -> Image.Image:
        return Image.fromarray(smooth())

    monkeypatch.setitem(Image.OPEN, "HEIF", (opener, lambda prefix: prefix[4:12] == b"ftypheic"))
    np.testing.assert_array_equal(load_image(content), smooth())


def test_format_that_this_pillow_was_built_without(monkeypatch: pytest.MonkeyPatch) -> None:
    content = encode(smooth(), "PNG")
    factory, accept = Image.OPEN["PNG"]
    assert accept is not None
    monkeypatch.setitem(Image.OPEN, "PNG", (factory, lambda prefix: "support not installed"))
    with pytest.raises(InvalidImageError, match="support not installed"):
        load_image(content)


# Modes


def test_palette_without_transparency() -> None:
    image = Image.fromarray(smooth()).quantize(16)
    np.testing.assert_array_equal(load_image(image), np.asarray(image.convert("RGB")))
    np.testing.assert_array_equal(load_image(encode(image, "PNG")), load_image(image))


@pytest.mark.parametrize(
    ("transparency", "alphas"), [(1, (255, 0, 255)), (b"\xff\x00\x80", (255, 0, 128))]
)
def test_palette_with_transparency_is_laid_over_white(
    transparency: int | bytes, alphas: tuple[int, ...]
) -> None:
    image = Image.new("P", (3, 1))
    image.putpalette([10, 20, 30, 40, 50, 60, 70, 80, 90])
    image.putdata([0, 1, 2])
    content = encode(image, "PNG", transparency=transparency)
    colours = np.array([[10, 20, 30], [40, 50, 60], [70, 80, 90]])
    opacity = np.array(alphas)[:, None] / 255
    expected = np.rint(colours * opacity + 255 * (1 - opacity))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        np.testing.assert_array_equal(load_image(content)[0], expected)


def test_gif_with_transparency_is_laid_over_white() -> None:
    image = Image.new("P", (2, 1))
    image.putpalette([10, 20, 30, 40, 50, 60])
    image.putdata([0, 1])
    result = load_image(encode(image, "GIF", transparency=1))
    assert result[0].tolist() == [[10, 20, 30], [255, 255, 255]]


def test_rgb_with_a_transparent_colour() -> None:
    image = Image.fromarray(np.array([[[1, 2, 3], [4, 5, 6]]], np.uint8))
    result = load_image(encode(image, "PNG", transparency=(4, 5, 6)))
    assert result[0].tolist() == [[1, 2, 3], [255, 255, 255]]


def test_grey_with_a_transparent_level() -> None:
    image = Image.fromarray(np.array([[7, 8]], np.uint8))
    result = load_image(encode(image, "PNG", transparency=8))
    assert result[0].tolist() == [[7, 7, 7], [255, 255, 255]]


@pytest.mark.parametrize("mode", ["RGBA", "LA", "PA", "La", "RGBa"])
def test_alpha_modes_are_laid_over_white(mode: str) -> None:
    source = Image.new("RGBA", (3, 1))
    source.putdata([(200, 200, 200, 255), (200, 200, 200, 128), (200, 200, 200, 0)])
    if mode == "PA":
        image = Image.new("PA", (3, 1))
        image.putpalette([200, 200, 200])
        image.putdata([(0, 255), (0, 128), (0, 0)])
    elif mode == "La":
        image = source.convert("LA").convert("La")
    else:
        image = source.convert(mode)
    assert image.mode == mode
    result = load_image(image)[0]
    expected = np.array([[200] * 3, [227] * 3, [255] * 3])
    assert np.abs(result.astype(int) - expected).max() <= 1


def test_bilevel_and_grey() -> None:
    bilevel = Image.new("1", (2, 1))
    bilevel.putdata([0, 255])
    for image in (bilevel, encode(bilevel, "PNG"), encode(bilevel, "TIFF")):
        assert load_image(image)[0].tolist() == [[0, 0, 0], [255, 255, 255]]
    grey = np.arange(256, dtype=np.uint8).reshape(16, 16)
    for content in (Image.fromarray(grey), encode(grey, "PNG"), encode(grey, "TIFF")):
        np.testing.assert_array_equal(load_image(content), np.dstack([grey] * 3))


def test_ycbcr_against_the_jfif_formula() -> None:
    rng = np.random.default_rng(0)
    values = np.column_stack(
        [rng.integers(60, 200, 50), rng.integers(100, 156, 50), rng.integers(100, 156, 50)]
    )
    image = Image.frombytes("YCbCr", (50, 1), values.astype(np.uint8).tobytes())
    luma, blue, red = values[:, 0], values[:, 1] - 128, values[:, 2] - 128
    expected = np.column_stack(
        [luma + 1.402 * red, luma - 0.344136 * blue - 0.714136 * red, luma + 1.772 * blue]
    )
    assert np.abs(load_image(image)[0] - expected).max() <= 1.01


def test_hsv_against_colorsys() -> None:
    values = np.random.default_rng(0).integers(0, 256, (50, 3), dtype=np.uint8)
    image = Image.frombytes("HSV", (50, 1), values.tobytes())
    expected = [np.multiply(colorsys.hsv_to_rgb(*row), 255) for row in values / 255]
    assert np.abs(load_image(image)[0] - np.array(expected)).max() <= 4


def lab_to_srgb(lab: np.ndarray) -> np.ndarray:
    """Convert CIELAB (D50) to sRGB in [0, 255] by the textbook, with Bradford's adaptation."""
    f = (lab[..., :1] + 16) / 116 + lab[..., 1:2] * [1 / 500, 0, 0]
    f = f - lab[..., 2:] * [0, 0, 1 / 200]
    xyz = np.where(f > 6 / 29, f**3, 3 * (6 / 29) ** 2 * (f - 4 / 29)) * [0.9642, 1.0, 0.8249]
    matrix = [
        [3.1338561, -1.6168667, -0.4906146],
        [-0.9787684, 1.9161415, 0.0334540],
        [0.0719453, -0.2289914, 1.4052427],
    ]
    linear = np.clip(xyz @ np.transpose(matrix), 0, 1)
    encoded = np.where(linear <= 0.0031308, 12.92 * linear, 1.055 * linear ** (1 / 2.4) - 0.055)
    return encoded * 255


@pytest.mark.parametrize("as_file", [False, True])
def test_lab_against_the_formula(as_file: bool) -> None:
    lab = np.array([[100, 0, 0], [0, 0, 0], [50, 0, 0], [60, 20, 30], [60, -20, -10], [80, 5, -15]])
    image = Image.new("LAB", (len(lab), 1))
    for i, (lightness, a, b) in enumerate(lab):
        image.putpixel((i, 0), (round(lightness * 2.55), a + 128, b + 128))
    result = load_image(encode(image, "TIFF") if as_file else image)[0]
    assert np.abs(result - lab_to_srgb(lab)).max() <= 2.5


def test_cmyk_without_a_profile() -> None:
    inks = [(0, 0, 0, 0), (255, 0, 0, 0), (0, 255, 0, 0), (0, 0, 255, 0), (0, 0, 0, 255)]
    papers = [(255, 255, 255), (0, 255, 255), (255, 0, 255), (255, 255, 0), (0, 0, 0)]
    image = Image.new("CMYK", (5, 1))
    image.putdata(inks)
    for content in (image, encode(image, "TIFF"), encode(image, "TIFF", compression="tiff_lzw")):
        assert [tuple(pixel) for pixel in load_image(content)[0].tolist()] == papers


def test_cmyk_jpeg_with_inverted_inks() -> None:
    image = Image.new("CMYK", (16, 16), (0, 200, 100, 30))
    content = encode(image, "JPEG", quality=100)
    assert b"Adobe" in content  # whose JPEGs hold 255 for "no ink"
    expected = load_image(image)[0, 0].astype(int)
    assert np.abs(load_image(content) - expected).max() <= 3


def flat_adobe_jpeg(*stored: int) -> bytes:
    """Write by hand a CMYK JPEG of 8 x 8 equal pixels with Adobe's marker and these values."""

    def segment(marker: int, data: bytes) -> bytes:
        return struct.pack(">BBH", 0xFF, marker, len(data) + 2) + data

    # Huffman tables: for the mean, categories 0 to 11 as codes of four bits; for the rest, only
    # "end of block", one bit. Quantised by 1, the mean of a block is 8 (value - 128).
    mean_table = b"\0" + bytes([0, 0, 0, 12]) + bytes(12) + bytes(range(12))
    rest_table = b"\x10" + bytes([1]) + bytes(15) + b"\0"
    bits = ""
    for value in stored:
        mean = 8 * (value - 128)
        category = abs(mean).bit_length()
        amplitude = mean if mean > 0 else mean + (1 << category) - 1
        bits += f"{category:04b}" + (f"{amplitude:0{category}b}" if category else "") + "0"
    bits += "1" * (-len(bits) % 8)
    scan = bytes(int(bits[i : i + 8], 2) for i in range(0, len(bits), 8)).replace(
        b"\xff", b"\xff\0"
    )
    components = b"".join(bytes([i, 0x11, 0]) for i in (1, 2, 3, 4))
    return (
        b"\xff\xd8"
        + segment(0xEE, b"Adobe" + struct.pack(">HHHB", 100, 0, 0, 0))
        + segment(0xDB, b"\0" + b"\1" * 64)
        + segment(0xC0, struct.pack(">BHHB", 8, 8, 8, 4) + components)
        + segment(0xC4, mean_table + rest_table)
        + segment(0xDA, b"\4" + b"".join(bytes([i, 0]) for i in (1, 2, 3, 4)) + b"\0\x3f\0")
        + scan
        + b"\xff\xd9"
    )


@pytest.mark.parametrize(
    ("stored", "colour"),
    [
        ((255, 255, 255, 255), (255, 255, 255)),
        ((0, 255, 255, 255), (0, 255, 255)),
        ((255, 255, 255, 0), (0, 0, 0)),
        ((255, 128, 55, 255), (255, 128, 55)),
    ],
)
def test_adobe_jpegs_store_255_for_no_ink(stored: tuple[int, ...], colour: tuple[int, ...]) -> None:
    result = load_image(flat_adobe_jpeg(*stored))
    assert result.shape == (8, 8, 3)
    assert np.abs(result.astype(int) - colour).max() <= 1


INKS_LAB = {"paper": (100, 0, 0), "cyan": (60, -25, -30), "black": (0, 0, 0)}


def cmyk_profile() -> bytes:
    """Write a small printer profile: CMYK to CIELAB by a table with two steps per ink."""

    def fixed(*values: float) -> bytes:
        return b"".join(struct.pack(">i", round(value * 65536)) for value in values)

    def lab8(name: str) -> bytes:
        lightness, a, b = INKS_LAB[name]
        return bytes([round(lightness * 2.55), a + 128, b + 128])

    table = b"".join(
        lab8("black" if corner & 1 else "cyan" if corner & 8 else "paper") for corner in range(16)
    )
    identity = bytes(range(256))
    lut = b"mft1" + bytes(4) + bytes([4, 3, 2, 0]) + fixed(1, 0, 0, 0, 1, 0, 0, 0, 1)
    lut += identity * 4 + table + identity * 3
    lut += bytes(-len(lut) % 4)
    white = b"XYZ " + bytes(4) + fixed(0.9642, 1, 0.8249)
    start = 128 + 4 + 12 * 2
    tags = struct.pack(">I", 2)
    tags += b"A2B0" + struct.pack(">II", start, len(lut))
    tags += b"wtpt" + struct.pack(">II", start + len(lut), len(white))
    size = start + len(lut) + len(white)
    header = struct.pack(">I", size) + bytes(4) + b"\x02\x40\0\0" + b"prtrCMYKLab "
    header += struct.pack(">6H", 2024, 1, 1, 0, 0, 0) + b"acsp" + bytes(28)
    header += fixed(0.9642, 1, 0.8249)
    return header.ljust(128, b"\0") + tags + lut + white


@pytest.mark.parametrize("as_file", [False, True])
def test_cmyk_with_a_profile_has_the_colours_of_its_inks(as_file: bool) -> None:
    image = Image.new("CMYK", (3, 1))
    image.putdata([(0, 0, 0, 0), (255, 0, 0, 0), (0, 0, 0, 255)])
    image.info["icc_profile"] = cmyk_profile()
    content = encode(image, "TIFF", icc_profile=cmyk_profile()) if as_file else image
    expected = lab_to_srgb(np.array(list(INKS_LAB.values()), float))
    assert np.abs(load_image(content)[0] - expected).max() <= 3


@pytest.mark.parametrize("kind", ["garbage", "empty", "of another colour space"])
def test_cmyk_with_a_useless_profile_is_read_without(kind: str) -> None:
    profiles = {"garbage": b"not a profile" * 20, "empty": b""}
    srgb = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    image = Image.new("CMYK", (2, 1), (255, 0, 0, 0))
    image.info["icc_profile"] = profiles.get(kind, srgb)
    assert load_image(image)[0, 0].tolist() == [0, 255, 255]


def test_rgb_profiles_do_not_change_the_values() -> None:
    profile = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    content = encode(smooth(), "PNG", icc_profile=profile)
    np.testing.assert_array_equal(load_image(content), smooth())


# Depths


ALL_16_BIT = np.arange(65536, dtype=np.uint16).reshape(256, 256)
ALL_16_BIT_EXPECTED = np.rint(np.arange(65536).reshape(256, 256) * (255 / 65535))


@pytest.mark.parametrize(
    "content",
    [
        png(256, 256, 16, 0, png_rows(ALL_16_BIT.astype(">u2"))),
        b"P5 256 256 65535\n" + ALL_16_BIT.astype(">u2").tobytes(),
        grey_tiff(256, 256, 16, 1, ALL_16_BIT.astype("<u2").tobytes()),
        grey_tiff(256, 256, 16, 0, (65535 - ALL_16_BIT).astype("<u2").tobytes()),
    ],
    ids=["PNG", "PGM", "TIFF", "TIFF white is zero"],
)
def test_16_bit_grey_files(content: bytes) -> None:
    result = load_image(content)
    for channel in range(3):
        np.testing.assert_array_equal(result[..., channel], ALL_16_BIT_EXPECTED)


@pytest.mark.parametrize("mode", ["I;16", "I;16B", "I;16L"])
def test_16_bit_pil_images(mode: str) -> None:
    raw = ALL_16_BIT.astype(">u2" if mode == "I;16B" else "<u2").tobytes()
    image = Image.frombytes(mode, (256, 256), raw)
    np.testing.assert_array_equal(load_image(image)[..., 0], ALL_16_BIT_EXPECTED)
    np.testing.assert_array_equal(
        load_image(encode(image, "TIFF", compression="tiff_lzw"))[..., 0], ALL_16_BIT_EXPECTED
    )


def test_12_bit_tiff_uses_its_full_range() -> None:
    values = np.arange(4096)
    first, second = values[0::2], values[1::2]
    packed = np.stack([first >> 4, (first & 15) << 4 | second >> 8, second & 255], axis=-1)
    result = load_image(grey_tiff(4096, 1, 12, 1, packed.astype(np.uint8).tobytes()))
    np.testing.assert_array_equal(result[0, :, 0], np.rint(values * (255 / 4095)))


@pytest.mark.parametrize("colour", [2, 4, 6])
def test_16_bit_colour_files_are_within_one_level(colour: int) -> None:
    rng = np.random.default_rng(0)
    channels = {2: 3, 4: 2, 6: 4}[colour]
    values = rng.integers(0, 65536, (8, 9, channels))
    if colour in (4, 6):
        values[..., -1] = 65535
    result = load_image(png(9, 8, 16, colour, png_rows(values.astype(">u2"))))
    expected = values[..., :1] if colour == 4 else values[..., :3]
    assert np.abs(result - expected / 257).max() <= 1


def test_16_bit_png_with_a_transparent_level() -> None:
    values = np.array([[1000, 2000, 1001]], ">u2")
    content = png(3, 1, 16, 0, png_rows(values), (b"tRNS", struct.pack(">H", 1000)))
    assert load_image(content)[0, :, 0].tolist() == [255, round(2000 / 257), round(1001 / 257)]


def test_deep_images_are_turned_upright() -> None:
    values = np.arange(15).reshape(3, 5) * 4000
    exif = orientation_exif(6)[6:]
    content = png(5, 3, 16, 0, png_rows(values.astype(">u2")), (b"eXIf", exif))
    result = load_image(content)
    assert result.flags.c_contiguous
    np.testing.assert_array_equal(result[..., 0], np.rot90(np.rint(values / 257), -1))


def test_32_bit_integers_hold_8_bit_values() -> None:
    values = np.array([[0, 7, 255]], np.int32)
    for content in (Image.fromarray(values), encode(Image.fromarray(values), "TIFF")):
        assert load_image(content)[0, :, 0].tolist() == [0, 7, 255]
    with pytest.raises(InvalidImageError, match=r"mode I .*\[0, 255\]; got \[0, 256\]; scale it"):
        load_image(Image.fromarray(values + np.array([[0, 0, 1]], np.int32)))
    signed = grey_tiff(2, 1, 16, 1, struct.pack("<hh", -5, 100), sample_format=2)
    with pytest.raises(InvalidImageError, match=r"got \[-5, 100\]"):
        load_image(signed)


def test_float_images_hold_0_to_1() -> None:
    values = np.array([[0, 0.25, 0.5, 1]], np.float32)
    image = Image.fromarray(values)
    for content in (image, encode(image, "TIFF"), grey_tiff(4, 1, 32, 1, values.tobytes(), 3)):
        assert load_image(content)[0, :, 0].tolist() == [0, 64, 128, 255]
    with pytest.raises(InvalidImageError, match="mode F .*got .*nan"):
        load_image(Image.fromarray(values * np.float32(np.nan)))
    with pytest.raises(InvalidImageError, match="image given as bytes of type float32"):
        load_image(encode(Image.fromarray(values * 300), "TIFF"))


# Orientation


UPRIGHT: dict[int, Callable[[np.ndarray], np.ndarray]] = {
    1: lambda a: a,
    2: np.fliplr,
    3: lambda a: np.rot90(a, 2),
    4: np.flipud,
    5: lambda a: np.transpose(a, (1, 0, 2)),
    6: lambda a: np.rot90(a, -1),
    7: lambda a: np.transpose(np.rot90(a, 2), (1, 0, 2)),
    8: lambda a: np.rot90(a, 1),
}


@pytest.mark.parametrize("orientation", UPRIGHT)
@pytest.mark.parametrize(
    ("format_name", "options"),
    [
        ("JPEG", {}),
        ("MPO", {}),
        ("PNG", {}),
        ("TIFF", {}),
        ("TIFF", {"compression": "tiff_lzw"}),
        ("WEBP", {"lossless": True}),
        ("AVIF", {}),
    ],
)
def test_orientation_of_files(
    monkeypatch: pytest.MonkeyPatch, format_name: str, options: dict[str, object], orientation: int
) -> None:
    skip_if_not_built(format_name)
    monkeypatch.setattr(decode, "_BAND_BYTES", 200)
    stored = load_image(encode(smooth(), format_name, **options))
    content = encode(smooth(), format_name, exif=orientation_exif(orientation), **options)
    result = load_image(content)
    np.testing.assert_array_equal(result, UPRIGHT[orientation](stored))
    assert result.flags.c_contiguous
    with Image.open(io.BytesIO(content)) as image:  # opened by the caller and not yet read
        np.testing.assert_array_equal(load_image(image), result)


@pytest.mark.parametrize("orientation", UPRIGHT)
@pytest.mark.parametrize("mode", ["RGB", "RGBA", "P", "L", "CMYK", "I;16"])
def test_orientation_of_pil_images(orientation: int, mode: str) -> None:
    image = Image.fromarray(smooth())
    image = image.convert("L").convert(mode) if mode == "I;16" else image.convert(mode)
    stored = load_image(image)
    image.getexif()[ORIENTATION] = orientation
    np.testing.assert_array_equal(load_image(image), UPRIGHT[orientation](stored))


@pytest.mark.parametrize("orientation", [0, 9, 65535])
def test_unknown_orientations_are_ignored(orientation: int) -> None:
    content = encode(smooth(), "PNG", exif=orientation_exif(orientation))
    np.testing.assert_array_equal(load_image(content), smooth())


@pytest.mark.parametrize("exif", [b"Exif\0\0garbage", b"Exif\0\0MM\0*\0\0\xff\xff", b"Exif\0\0"])
def test_damaged_exif_does_not_spoil_the_pixels(exif: bytes) -> None:
    content = png(20, 12, 8, 2, png_rows(smooth()), (b"eXIf", exif[6:]))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        np.testing.assert_array_equal(load_image(content), smooth())


# Large and hostile files


def huge_png(size: int) -> bytes:
    return png(size, size, 8, 2, b"\0" * 100)


def test_bomb_is_refused_by_its_header() -> None:
    with pytest.raises(InvalidImageError, match="60000 x 60000 pixels.*max_pixels=3600000000"):
        load_image(huge_png(60000))


def bomb(format_name: str) -> bytes:
    """Write a file whose header claims 16000 x 16000 pixels and that holds hardly any."""
    side = 16000
    if format_name == "WEBP VP8X":
        canvas = (side - 1).to_bytes(3, "little")
        body = b"WEBPVP8X" + struct.pack("<I", 10) + bytes(4) + canvas + canvas + bytes(20)
    elif format_name == "WEBP VP8L":
        bits = side - 1 | (side - 1) << 14
        body = b"WEBPVP8L" + struct.pack("<I", 20) + b"\x2f" + struct.pack("<I", bits) + bytes(20)
    elif format_name == "WEBP VP8":
        frame = b"\x10\0\0\x9d\x01\x2a" + struct.pack("<HH", side, side) + bytes(20)
        body = b"WEBPVP8 " + struct.pack("<I", len(frame)) + frame
    elif format_name == "ICO":
        return (
            struct.pack("<HHH", 0, 1, 1)
            + struct.pack("<BBBBHHII", 0, 0, 0, 0, 1, 32, 100, 22)
            + huge_png(side)
        )
    elif format_name == "BMP":
        header = struct.pack("<IiiHHIIiiII", 40, side, side, 1, 24, 0, 0, 0, 0, 0, 0)
        return b"BM" + struct.pack("<IHHI", 54, 0, 0, 54) + header
    elif format_name == "GIF":
        return b"GIF89a" + struct.pack("<HH", side, side) + b"\0\0\0," + bytes(30)
    elif format_name == "TIFF":
        return grey_tiff(side, side, 8, 1, b"\0" * 10)
    elif format_name == "PPM":
        return b"P6 16000 16000 255\n"
    elif format_name == "TGA":
        return struct.pack("<BBBHHBHHHHBB", 0, 0, 2, 0, 0, 0, 0, 0, side, side, 24, 0)
    else:
        frame = struct.pack(">BHHB", 8, side, side, 1) + b"\1\x11\0"
        scan = b"\xff\xda\0\x08\1\1\0\0\x3f\0"
        return b"\xff\xd8\xff\xc0" + struct.pack(">H", 2 + len(frame)) + frame + scan
    return b"RIFF" + struct.pack("<I", len(body)) + body


@pytest.mark.parametrize(
    "format_name",
    ["WEBP VP8X", "WEBP VP8L", "WEBP VP8", "ICO", "BMP", "GIF", "TIFF", "PPM", "TGA", "JPEG"],
)
def test_the_limit_holds_before_anything_is_decoded(format_name: str) -> None:
    with pytest.raises(InvalidImageError, match="claims 16000 x 16000 pixels"):
        load_image(bomb(format_name), max_pixels=200_000_000)


def test_limit_of_the_caller() -> None:
    content = encode(smooth(), "PNG")
    assert load_image(content, max_pixels=240).shape == (12, 20, 3)
    with pytest.raises(InvalidImageError, match="limit of 239 pixels"):
        load_image(content, max_pixels=239)


def test_100_megapixels_load_in_silence() -> None:
    side = 10_000
    rows = (b"\0" + bytes(side // 8)) * side
    content = png(side, side, 1, 3, rows, (b"PLTE", b"\x01\x02\x03\xff\xff\xff"))
    limit, filters = Image.MAX_IMAGE_PIXELS, list(warnings.filters)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        result = load_image(content)
    assert result.shape == (side, side, 3)
    np.testing.assert_array_equal(result[::1111, ::1111], np.full((10, 10, 3), [1, 2, 3]))
    assert Image.MAX_IMAGE_PIXELS == limit
    assert list(warnings.filters) == filters


@pytest.mark.parametrize(
    ("format_name", "options"),
    [
        ("JPEG", {"exif": orientation_exif(6)}),
        ("PNG", {}),
        ("TIFF", {"exif": orientation_exif(6)}),
        ("TIFF", {"compression": "tiff_lzw"}),
        ("BMP", {}),
        ("GIF", {}),
        ("JPEG2000", {}),
        ("AVIF", {}),
        ("PPM", {}),
        ("TGA", {}),
    ],
)
@pytest.mark.parametrize("mode", ["RGB", "P"])
def test_the_limit_of_pillow_has_no_say(
    monkeypatch: pytest.MonkeyPatch, format_name: str, options: dict[str, object], mode: str
) -> None:
    skip_if_not_built(format_name)
    image = Image.fromarray(smooth())
    if mode == "P" and format_name in ("PNG", "TIFF", "BMP", "GIF", "TGA"):
        image = image.quantize(16)
    content = encode(image, format_name, **options)
    expected = load_image(content)
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 100)  # Image.open would refuse 240 pixels
    monkeypatch.setattr(decode, "_BAND_BYTES", 1)
    with pytest.raises(Image.DecompressionBombError):
        Image.open(io.BytesIO(content))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        np.testing.assert_array_equal(load_image(content), expected)


def test_threads_do_not_disturb_each_other(tmp_path: Path) -> None:
    small, large = encode(smooth(), "PNG"), encode(smooth(40, 50), "JPEG")
    expected_small, expected_large = load_image(small), load_image(large)
    limit, filters = Image.MAX_IMAGE_PIXELS, list(warnings.filters)

    def work(i: int) -> bool:
        if i % 3 == 0:
            return bool((load_image(small, max_pixels=240) == expected_small).all())
        if i % 3 == 1:
            return bool((load_image(large) == expected_large).all())
        try:
            load_image(large, max_pixels=240)
        except InvalidImageError:
            return True
        return False

    with ThreadPoolExecutor(8) as pool:
        assert all(pool.map(work, range(120)))
    assert Image.MAX_IMAGE_PIXELS == limit
    assert list(warnings.filters) == filters


FILES = {
    "JPEG": encode(smooth(), "JPEG", exif=orientation_exif(6)),
    "progressive JPEG": encode(smooth(), "JPEG", progressive=True),
    "CMYK JPEG": encode(Image.fromarray(smooth()).convert("CMYK"), "JPEG"),
    "PNG": encode(smooth(), "PNG", exif=orientation_exif(8)),
    "palette PNG": encode(Image.fromarray(smooth()).quantize(8), "PNG", transparency=2),
    "16-bit PNG": png(8, 8, 16, 0, png_rows(ALL_16_BIT[:8, :8].astype(">u2"))),
    "TIFF": encode(smooth(), "TIFF"),
    "LZW TIFF": encode(smooth(), "TIFF", compression="tiff_lzw"),
    "GIF": encode(smooth(), "GIF"),
    "BMP": encode(smooth(), "BMP"),
    "PPM": encode(smooth(), "PPM"),
    "ICO": encode(smooth(), "ICO"),
    "TGA": encode(smooth(), "TGA", compression="tga_rle"),
    **({"WebP": encode(smooth(), "WEBP")} if features.check("webp") else {}),
    **({"AVIF": encode(smooth(), "AVIF")} if features.check("avif") else {}),
    **({"JPEG 2000": encode(smooth(), "JPEG2000")} if features.check("jpg_2000") else {}),
}


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("name", FILES)
def test_truncated_files_are_errors_and_never_half_pictures(name: str) -> None:
    content = FILES[name]
    whole = load_image(content)
    refused = 0
    for length in range(0, len(content), max(1, len(content) // 60)):
        try:
            result = load_image(content[:length])
        except InvalidImageError:
            refused += 1
        else:  # what was cut off held no pixels
            np.testing.assert_array_equal(result, whole)
    assert refused > 40


def image_or_error(content: bytes) -> None:
    try:
        result = load_image(content, max_pixels=1_000_000)
    except InvalidImageError as error:
        assert len(str(error)) < 600
    else:
        assert result.dtype == np.uint8
        assert result.shape[2:] == (3,)
        assert 0 < result.shape[0] * result.shape[1] <= 1_000_000


@pytest.mark.filterwarnings("ignore")
@given(st.data())
@settings(max_examples=400, deadline=None)
def test_damaged_files_give_an_image_or_an_error(data: st.DataObject) -> None:
    content = bytearray(FILES[data.draw(st.sampled_from(sorted(FILES)))])
    reach = data.draw(st.sampled_from([50, 300, len(content)]))
    places = st.integers(0, min(reach, len(content)) - 1)
    for place, value in data.draw(st.lists(st.tuples(places, st.integers(0, 255)), max_size=12)):
        content[place] = value
    cut = data.draw(st.one_of(st.none(), st.integers(0, len(content))))
    image_or_error(bytes(content[:cut]))


SIGNATURES = [
    *(b"", b"\xff\xd8\xff", b"\x89PNG\r\n\x1a\n", b"RIFF\x20\0\0\0WEBPVP8 ", b"GIF89a", b"BM"),
    *(b"II*\0\x08\0\0\0", b"MM\0*\0\0\0\x08", b"\0\0\0\x0cjP  \r\n\x87\n", b"\xff\x4f\xff\x51"),
    *(b"\0\0\0\x20ftypavif", b"P6 3 3 255\n", b"P2 3 3 9\n", b"\0\0\1\0\1\0", b"\0\0\x0a\0"),
]


@pytest.mark.filterwarnings("ignore")
@given(st.sampled_from(SIGNATURES), st.binary(max_size=200))
@settings(max_examples=300, deadline=None)
def test_random_bytes_give_an_image_or_an_error(signature: bytes, tail: bytes) -> None:
    image_or_error(signature + tail)


@pytest.mark.parametrize(
    ("content", "hint"),
    [
        (b"", "is empty"),
        (b"just some text", "none of the formats JPEG, PNG"),
        (b"\n<!DOCTYPE html><html>", "HTML page"),
        (b"<HTML>", "HTML page"),
        (b"<svg xmlns='http://www.w3.org/2000/svg'/>", "SVG"),
        (b"\xef\xbb\xbf<?xml version='1.0'?><svg/>", "SVG"),
        (b"%PDF-1.7", "PDF"),
        (b"%!PS-Adobe-3.0 EPSF-3.0", "PostScript"),
        (b"8BPS\0\1", "Photoshop"),
        (b"version https://git-lfs.github.com/spec/v1\n", "git lfs pull"),
        (b"PK\x03\x04zip", "zip"),
        (b"\x93NUMPY\x01\0", "numpy.load"),
        (b"\x89PNG\r\n\x1a\n", "starts like PNG"),
        (b"\xff\xd8\xff", "starts like JPEG"),
    ],
)
def test_messages_say_what_the_content_is(content: bytes, hint: str) -> None:
    with pytest.raises(InvalidImageError, match=hint):
        load_image(content)


def test_messages_name_the_file_and_keep_the_cause(tmp_path: Path) -> None:
    path = tmp_path / "half.png"
    path.write_bytes(FILES["PNG"][:100])
    with pytest.raises(InvalidImageError, match="half.png.*truncated") as caught:
        load_image(path)
    assert isinstance(caught.value.__cause__, OSError)


def test_text_chunk_bomb() -> None:
    text = b"Comment\0\0" + zlib.compress(b"x" * 50_000_000)
    content = png(20, 12, 8, 2, png_rows(smooth()), (b"zTXt", text))
    with pytest.raises(InvalidImageError, match="too large"):
        load_image(content)


@pytest.mark.parametrize(
    "error",
    [
        *(OSError, ValueError, SyntaxError, struct.error, MemoryError, EOFError, TypeError),
        *(OverflowError, ZeroDivisionError, IndexError, KeyError, AssertionError, RecursionError),
        *(AttributeError, NotImplementedError, zlib.error, Image.DecompressionBombError),
    ],
)
def test_whatever_pillow_raises_becomes_one_error(
    monkeypatch: pytest.MonkeyPatch, error: type[Exception]
) -> None:
    content = encode(smooth(), "PNG")
    _, accept = Image.OPEN["PNG"]

    def fails(*arguments: object) -> Image.Image:
        raise error

    class FailsToLoad(Image.Image):
        size = (3, 3)
        load = fails  # type: ignore[assignment]

    monkeypatch.setitem(Image.OPEN, "PNG", (fails, accept))
    with pytest.raises(InvalidImageError, match="cannot read image given as bytes") as caught:
        load_image(content)
    assert isinstance(caught.value.__cause__, error)
    with pytest.raises(InvalidImageError, match="cannot read image given as a PIL image") as caught:
        load_image(FailsToLoad())
    assert isinstance(caught.value.__cause__, error)


def test_interrupts_pass_through(monkeypatch: pytest.MonkeyPatch) -> None:
    content = encode(smooth(), "PNG")
    _, accept = Image.OPEN["PNG"]

    def interrupted(*arguments: object) -> Image.Image:
        raise KeyboardInterrupt

    monkeypatch.setitem(Image.OPEN, "PNG", (interrupted, accept))
    with pytest.raises(KeyboardInterrupt):
        load_image(content)


def test_pil_image_that_is_truncated_or_closed(tmp_path: Path) -> None:
    half = Image.open(io.BytesIO(FILES["PNG"][:100]))
    with pytest.raises(InvalidImageError, match="truncated"):
        load_image(half)
    path = tmp_path / "a.png"
    path.write_bytes(FILES["PNG"])
    closed = Image.open(path)
    closed.close()
    with pytest.raises(InvalidImageError, match="cannot read image given as a PIL image"):
        load_image(closed)
    with pytest.raises(InvalidImageError, match="has no pixels"):
        load_image(Image.new("RGB", (0, 5)))


def test_files_are_closed(tmp_path: Path) -> None:
    good, bad = tmp_path / "good.tif", tmp_path / "bad.tif"
    good.write_bytes(FILES["TIFF"])
    bad.write_bytes(FILES["TIFF"][:300])
    with warnings.catch_warnings():
        warnings.simplefilter("error", ResourceWarning)
        load_image(good)
        with pytest.raises(InvalidImageError):
            load_image(bad)
    good.rename(tmp_path / "moved.tif")
