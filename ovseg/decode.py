"""Decode image files and Pillow images into RGB.

What a file may be, how many pixels it may have, and how each of Pillow's modes becomes RGB is
decided here. Pillow's plugins are called directly and not through `PIL.Image.open`, for two
reasons: `open` compares the size with the process-wide `PIL.Image.MAX_IMAGE_PIXELS` and warns or
raises, and neither that number nor the warning filters can be changed for one call without changing
them for every other thread; and `open` would also try formats that run other programs or hold no
pixels (EPS, PDF, WMF, ...).
"""

from __future__ import annotations

import logging
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from importlib import import_module
from io import BytesIO
from typing import IO, Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from ovseg.errors import InvalidImageError

logger = logging.getLogger(__name__)

# Pillow's name of each format that is read -> the module that reads it. A file is offered to them
# in this order; TGA has no signature and comes last. HEIF has no module in Pillow: it is read once
# pillow-heif is registered.
_PLUGINS = {
    "JPEG": "PIL.JpegImagePlugin",
    "PNG": "PIL.PngImagePlugin",
    "WEBP": "PIL.WebPImagePlugin",
    "GIF": "PIL.GifImagePlugin",
    "BMP": "PIL.BmpImagePlugin",
    "TIFF": "PIL.TiffImagePlugin",
    "JPEG2000": "PIL.Jpeg2KImagePlugin",
    "AVIF": "PIL.AvifImagePlugin",
    "HEIF": None,
    "PPM": "PIL.PpmImagePlugin",
    "ICO": "PIL.IcoImagePlugin",
    "TGA": "PIL.TgaImagePlugin",
}
FORMATS = tuple(_PLUGINS)

# What people hand over by mistake: (first bytes in lower case, what it is).
_NOT_IMAGES = (
    (b"<!doctype html", "it is an HTML page, not an image"),
    (b"<html", "it is an HTML page, not an image"),
    (b"<svg", "it is an SVG drawing; render it to PNG first"),
    (b"<?xml", "it is an XML document; if it is an SVG drawing, render it to PNG first"),
    (b"%pdf", "it is a PDF document; render the page to PNG first"),
    (b"%!ps", "it is a PostScript document; render it to PNG first"),
    (b"8bps", "it is a Photoshop document; export it as PNG first"),
    (b"version https://git-lfs", "it is a Git LFS pointer, not the file; run 'git lfs pull'"),
    (b"\x93numpy", "it is a NumPy file; load it with numpy.load and pass the array"),
    (b"pk\x03\x04", "it is a zip archive; unpack it first"),
)

Room = Callable[[tuple[int, ...]], NDArray[np.uint8]]

_BAND_BYTES = 2**19  # with Pillow's four bytes per pixel; this much stays in the cache
_ORIENTATION = 0x0112  # EXIF and TIFF tag
_IMAGE_WIDTH, _IMAGE_LENGTH, _BITS_PER_SAMPLE, _PHOTOMETRIC = 256, 257, 258, 262  # TIFF tags

# EXIF orientation -> (Pillow's transpose that turns the picture upright, and the same for NumPy:
# rows and columns swapped?, then step along the rows, then along the columns).
_TURNS: dict[int, tuple[Image.Transpose, bool, int, int]] = {
    2: (Image.Transpose.FLIP_LEFT_RIGHT, False, 1, -1),
    3: (Image.Transpose.ROTATE_180, False, -1, -1),
    4: (Image.Transpose.FLIP_TOP_BOTTOM, False, -1, 1),
    5: (Image.Transpose.TRANSPOSE, True, 1, 1),
    6: (Image.Transpose.ROTATE_270, True, 1, -1),
    7: (Image.Transpose.TRANSVERSE, True, -1, -1),
    8: (Image.Transpose.ROTATE_90, True, -1, 1),
}


def empty_rgb(shape: tuple[int, ...]) -> NDArray[np.uint8]:
    """Make room for pixels in memory."""
    return np.empty(shape, np.uint8)


def decode_file(
    file: IO[bytes], name: str, *, max_pixels: int, room: Room = empty_rgb
) -> NDArray[Any]:
    """Decode the first frame of an image file, turned upright as its EXIF orientation says.

    A truncated file is an error, unless the application has set
    `PIL.ImageFile.LOAD_TRUNCATED_IMAGES`, which asks Pillow to fill what is missing. Of Pillow's
    own limit `PIL.Image.MAX_IMAGE_PIXELS` one case is left: twice that is the end for WebP.

    Args:
        file: Seekable binary file; it is left open.
        name: What messages call the image.
        max_pixels: Largest accepted height times width, compared with the header before any pixel
            is decoded.
        room: Makes the array that RGB pixels are written to, from its shape; for instance in a
            file that is mapped into memory.

    Returns:
        Array (H, W, 3) uint8 RGB; for files with one deep channel (H, W) uint16, int32 or float32,
        the values as stored.

    Raises:
        InvalidImageError: The file is damaged, too large or of no format in `FORMATS`.
    """
    try:
        return _to_array(_open(file, name, max_pixels), name, max_pixels, room)
    except InvalidImageError:
        raise
    except Exception as error:  # Pillow answers damaged files with about any exception there is
        raise InvalidImageError(f"cannot read image {name}: {_reason(error)}") from error


@contextmanager
def open_unread(path: str) -> Iterator[Image.Image]:
    """Open an image file, whatever its size, to look at its header alone.

    Args:
        path: Of a regular file.

    Raises:
        InvalidImageError: The file is damaged or of no format in `FORMATS`.
    """
    with open(path, "rb") as file:
        try:
            image = _open(file, repr(path), sys.maxsize, fill=False)
        except InvalidImageError:
            raise
        except Exception as error:  # as above
            raise InvalidImageError(f"cannot read image {path!r}: {_reason(error)}") from error
        yield image


def decode_pil(image: Image.Image, name: str, *, max_pixels: int) -> NDArray[Any]:
    """Read the current frame of a Pillow image, turned upright as its EXIF orientation says.

    Args:
        image: Image of any mode; if it was opened and not yet read, it is loaded.
        name: What messages call the image.
        max_pixels: Largest accepted height times width.

    Returns:
        Array as from `decode_file`.

    Raises:
        InvalidImageError: The pixels cannot be read, are too many or of a mode without a meaning as
            RGB.
    """
    try:
        return _to_array(image, name, max_pixels)
    except InvalidImageError:
        raise
    except Exception as error:
        raise InvalidImageError(f"cannot read image {name}: {_reason(error)}") from error


def flatten_alpha(rgba: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """Lay pixels with an alpha channel over white.

    White is the paper that pictures with transparency are made for.

    Args:
        rgba: Array (H, W, 4) uint8, colours not premultiplied.

    Returns:
        Array (H, W, 3) uint8 RGB: `colour * alpha + 255 * (1 - alpha)` with alpha in [0, 1],
        rounded.
    """
    flat = np.empty((*rgba.shape[:2], 3), np.uint8)
    for rows in bands(rgba.shape[0], rgba.shape[1]):
        colour, alpha = rgba[rows, :, :3], rgba[rows, :, 3:]
        if alpha.min() == 255:
            flat[rows] = colour
        else:  # 255 * 255 - alpha * (255 - colour) + 127 is at most 65152 and fits 16 bits
            blend = np.uint16(65025 + 127) - alpha * (np.uint16(255) - colour)
            flat[rows] = blend // np.uint16(255)
    return flat


def bands(height: int, width: int) -> Iterator[slice]:
    """Cut the rows of an image into bands, so that no step needs a second whole image."""
    step = max(1, _BAND_BYTES // (4 * max(width, 1)))
    for top in range(0, height, step):
        yield slice(top, min(top + step, height))


def _open(file: IO[bytes], name: str, max_pixels: int, fill: bool = True) -> Image.Image:
    prefix = file.read(64)
    if not prefix:
        raise InvalidImageError(f"image {name} is empty: it has 0 bytes")
    for format_name, module in _PLUGINS.items():
        if module is not None:
            try:
                import_module(module)
            except ImportError:  # a Pillow older or built smaller than this list
                continue
        factory, accept = Image.OPEN.get(format_name, (None, None))
        if factory is None:
            continue
        verdict = accept(prefix[:16]) if accept is not None else True
        if isinstance(verdict, str):  # the right format, and this Pillow was built without it
            raise InvalidImageError(f"cannot read image {name}: {verdict}")
        if not verdict:
            continue
        _check_while_closed(format_name, file, name, max_pixels)
        file.seek(0)
        try:
            # Given a file name, Pillow would map the file into memory and trust its length.
            image = factory(file, "")
        except SyntaxError as error:
            if accept is None:
                break
            raise InvalidImageError(
                f"cannot read image {name}: it starts like {format_name} but is damaged "
                f"({_reason(error)})"
            ) from error
        if format_name == "TIFF" and fill:
            # Without pixels to fill, the plugin would ask Pillow's process-wide limit for them.
            _check_size(*image.size, name, max_pixels)
            tags = getattr(image, "tag_v2", {})
            image.im = Image.new(image.mode, (tags[_IMAGE_WIDTH], tags[_IMAGE_LENGTH])).im
        return image
    raise InvalidImageError(f"cannot read image {name}: {_what_it_is(prefix)}")


def _what_it_is(prefix: bytes) -> str:
    text = prefix.removeprefix(b"\xef\xbb\xbf").lstrip().lower()
    for start, verdict in _NOT_IMAGES:
        if text.startswith(start):
            return verdict
    if prefix[4:8] == b"ftyp" and prefix[8:10] in (b"he", b"mi", b"ms"):
        return (
            "it is a HEIF file; install pillow-heif and call "
            "pillow_heif.register_heif_opener() once, or convert it to JPEG"
        )
    return f"its content is none of the formats {', '.join(FORMATS)}"


def _check_while_closed(format_name: str, file: IO[bytes], name: str, max_pixels: int) -> None:
    """Check the size of formats whose plugin allocates or decodes while it opens the file."""
    if format_name == "WEBP":
        file.seek(0)
        head = file.read(30).ljust(30, b"\0")
        chunk = head[12:16]
        if chunk == b"VP8X":
            width, height = 1 + _u24(head, 24), 1 + _u24(head, 27)
        elif chunk == b"VP8L":
            bits = int.from_bytes(head[21:25], "little")
            width, height = 1 + (bits & 0x3FFF), 1 + (bits >> 14 & 0x3FFF)
        else:
            width, height = (int.from_bytes(head[i : i + 2], "little") & 0x3FFF for i in (26, 28))
        _check_size(max(width, 1), max(height, 1), name, max_pixels)
    elif format_name == "ICO":
        file.seek(4)
        directory = file.read(2 + 16 * 65535)
        for entry in range(int.from_bytes(directory[:2], "little")):
            start = directory[2 + 16 * entry + 12 : 2 + 16 * entry + 16]
            if len(start) < 4:
                break
            file.seek(int.from_bytes(start, "little"))
            head = file.read(24)
            if head.startswith(b"\x89PNG"):
                width, height = (int.from_bytes(head[i : i + 4], "big") for i in (16, 20))
            else:  # a bitmap, whose height counts the picture and its mask
                width = abs(int.from_bytes(head[4:8], "little", signed=True))
                height = abs(int.from_bytes(head[8:12], "little", signed=True)) // 2
            _check_size(max(width, 1), max(height, 1), name, max_pixels)


def _u24(data: bytes, start: int) -> int:
    return int.from_bytes(data[start : start + 3], "little")


def _check_size(width: int, height: int, name: str, max_pixels: int) -> None:
    if width < 1 or height < 1:
        raise InvalidImageError(
            f"image {name} has no pixels: its size is {height} x {width} (height x width)"
        )
    if width * height > max_pixels:
        raise InvalidImageError(
            f"image {name} claims {height} x {width} pixels (height x width), more than the limit "
            f"of {max_pixels} pixels; if you trust the file, pass max_pixels={width * height}"
        )


def _to_array(
    image: Image.Image, name: str, max_pixels: int, room: Room = empty_rgb
) -> NDArray[Any]:
    _check_size(*image.size, name, max_pixels)
    image.load()
    _check_size(*image.size, name, max_pixels)  # an icon knows its true size only now
    orientation = _orientation(image)
    if image.mode in ("I", "F") or image.mode.startswith("I;16"):
        return _turn(_deep(image), orientation)
    return _rgb(image, orientation, room)


def _orientation(image: Image.Image) -> int:
    try:
        return int(image.getexif().get(_ORIENTATION, 1))
    except Exception:  # damaged metadata says nothing about the pixels, which are fine
        logger.debug("EXIF data cannot be read; the image is taken to be upright", exc_info=True)
        return 1


def _turn(array: NDArray[Any], orientation: int) -> NDArray[Any]:
    """View an array (H, W, ...) the way its orientation says it is seen."""
    if orientation not in _TURNS:
        return array
    _, swapped, down, right = _TURNS[orientation]
    return (array.swapaxes(0, 1) if swapped else array)[::down, ::right]


def _turn_back(array: NDArray[Any], orientation: int) -> NDArray[Any]:
    """View an upright array (H, W, ...) as it is stored in the file: the inverse of `_turn`."""
    if orientation not in _TURNS:
        return array
    _, swapped, down, right = _TURNS[orientation]
    array = array[::down, ::right]
    return array.swapaxes(0, 1) if swapped else array


def _rgb(image: Image.Image, orientation: int, room: Room) -> NDArray[np.uint8]:
    """Convert an image of a mode with 8 bits per channel, band by band.

    Going through bands is twice as fast as `numpy.asarray(image)`, which copies the whole picture
    twice, and it turns and converts without a second picture in memory.
    """
    width, height = image.size
    transpose, swapped = _TURNS[orientation][:2] if orientation in _TURNS else (None, False)
    upright = room((width, height, 3) if swapped else (height, width, 3))
    stored = _turn_back(upright, orientation)
    convert = _converter(image)
    for rows in bands(height, width):
        band = convert(image.crop((0, rows.start, width, rows.stop)))
        if transpose is not None:
            band = band.transpose(transpose)
        pixels = np.asarray(band)
        _turn(stored[rows], orientation)[...] = (
            flatten_alpha(pixels) if band.mode == "RGBA" else pixels
        )
    return upright


def _converter(image: Image.Image) -> Callable[[Image.Image], Image.Image]:
    """Choose how a piece of the image becomes mode RGB, or RGBA if it may be transparent."""
    mode = image.mode
    if mode in ("CMYK", "LAB"):
        managed = _colour_managed(image)
        if managed is not None:
            return managed
    if mode == "La":  # premultiplied alpha, which Pillow divides out only on the way to LA
        return lambda band: band.convert("LA").convert("RGBA")
    if image.has_transparency_data:
        return lambda band: band.convert("RGBA")
    if mode == "RGB":
        return lambda band: band
    return lambda band: band.convert("RGB")


def _colour_managed(image: Image.Image) -> Callable[[Image.Image], Image.Image] | None:
    """Build the conversion to sRGB of CMYK or LAB; None if that is not possible.

    The colours of CMYK are those of the inks that the embedded profile describes; without a profile
    Pillow's plain formula has to do. RGB and grey images keep their values whatever their profile:
    so were the pictures read that the models learned from.
    """
    try:
        from PIL import ImageCms

        if image.mode == "LAB":
            transform = ImageCms.buildTransform(
                ImageCms.createProfile("LAB"), ImageCms.createProfile("sRGB"), "LAB", "RGB"
            )
        elif embedded := image.info.get("icc_profile"):
            transform = ImageCms.buildTransform(
                BytesIO(embedded),
                ImageCms.createProfile("sRGB"),
                "CMYK",
                "RGB",
                ImageCms.Intent.RELATIVE_COLORIMETRIC,
                flags=ImageCms.Flags.BLACKPOINTCOMPENSATION,
            )
        else:
            return None
    except Exception:  # no LittleCMS in this Pillow, or a damaged or foreign profile
        logger.debug("the colour profile cannot be used", exc_info=True)
        return None

    def convert(band: Image.Image) -> Image.Image:
        converted = ImageCms.applyTransform(band, transform)
        if converted is None:
            raise ValueError("the colour transform gave no image")
        return converted

    return convert


def _deep(image: Image.Image) -> NDArray[Any]:
    """Take the values of an image with one channel of more than 8 bits.

    Images of 16 bits always come as uint16 that use the full range.
    """
    values = np.asarray(image)
    if image.mode == "F":
        return values
    if image.mode == "I":
        # Pillow keeps 16-bit PGM (and once PNG) files in 32 bits; elsewhere their range is unknown.
        return values.astype(np.uint16) if image.format in ("PNG", "PPM") else values
    tags = getattr(image, "tag_v2", {})
    if tags.get(_BITS_PER_SAMPLE) == (12,):
        values = values << 4 | values >> 8
    if tags.get(_PHOTOMETRIC) == 0:  # "white is zero", which Pillow inverts for 8 bits only
        values = 65535 - values
    transparent = image.info.get("transparency")
    if isinstance(transparent, int):
        values = np.where(values == transparent, np.uint16(65535), values)
    return values


def _reason(error: BaseException) -> str:
    text = str(error) or type(error).__name__
    return text if len(text) <= 200 else text[:200] + "..."
