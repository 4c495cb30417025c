"""Open anything that can be a scene."""

from __future__ import annotations

import mmap
import os
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ovseg.decode import decode_file, open_unread
from ovseg.errors import InvalidImageError, OutputError
from ovseg.image import ImageInput, load_image
from ovseg.scenes.raster import Georeference, NotReadHereError, Raster, Values, rows_at_once
from ovseg.scenes.tiff import TiffFile

SMALL = 50_000_000
"""Pixels of an image that is simply decoded in memory."""
_ORIENTATION = 0x0112  # EXIF tag
MAX_DECODED = 1 << 30
"""Pixels of an image that Pillow decodes as a whole: it takes four bytes for each."""


def open_raster(image: ImageInput, folder: Path) -> Raster:
    """Open an image to be read by parts.

    TIFF files are read where they stand. Other files of more than 50 megapixels are decoded once, into a temporary file without a name:
    row by row by rasterio if it is installed, or else at once by Pillow.

    Args:
        image: A path, an array or memory map (H, W) or (H, W, bands), or whatever else `load_image` reads.
        folder: Where a temporary file may be.

    Raises:
        InvalidImageError: If it cannot be read.
        OutputError: If there is no room for the temporary file.
    """
    if isinstance(image, np.ndarray):
        return array_raster(image)
    if isinstance(image, (str, os.PathLike)) and os.path.isfile(path := os.path.expanduser(os.fsdecode(image))):
        return _file(path, folder)
    return array_raster(load_image(image))


def is_scene(path: str) -> bool:
    """Tell whether a file has more pixels than `segment` takes, from its header alone."""
    from ovseg.image import DEFAULT_MAX_PIXELS

    try:
        height, width = _header_size(path)
    except (OSError, InvalidImageError, NotReadHereError):
        return False  # whoever reads it will say what is wrong
    return height * width > DEFAULT_MAX_PIXELS


def _header_size(path: str) -> tuple[int, int]:
    with open(path, "rb") as file:
        if _is_tiff(file.read(4)):
            tiff = TiffFile(file, repr(path))
            return tiff.height, tiff.width
    with open_unread(path) as picture:
        return picture.height, picture.width


def _is_tiff(head: bytes) -> bool:
    return head[:4] in (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+")


def _file(path: str, folder: Path) -> Raster:
    try:
        file = open(path, "rb")  # noqa: SIM115  # kept by the raster
    except OSError as error:
        raise InvalidImageError(f"image file {path!r} cannot be opened: {error.strerror or error}") from error
    try:
        if _is_tiff(file.read(4)):
            return TiffFile(file, repr(path)).raster()
    except NotReadHereError:
        pass
    except BaseException:
        file.close()
        raise
    file.close()
    if _is_for_rasterio(path):
        try:
            return _by_rasterio(path, folder)
        except (NotReadHereError, ImportError):
            pass
    with open(path, "rb") as file:
        decoded = decode_file(file, repr(path), max_pixels=MAX_DECODED, room=lambda shape: _room(folder, shape))
    return array_raster(decoded)


def _is_for_rasterio(path: str) -> bool:
    """Tell whether rasterio, if installed, reads a file better than Pillow: large ones by rows, and those that may know their place."""
    try:
        with open_unread(path) as picture:
            if picture.getexif().get(_ORIENTATION, 1) != 1 or picture.mode in ("CMYK", "LAB", "1"):
                return False  # GDAL turns nothing, and heeds no profile of inks
            return picture.height * picture.width > SMALL or picture.format in ("JPEG2000", "TIFF")
    except InvalidImageError:
        return True


def _by_rasterio(path: str, folder: Path) -> Raster:
    """Read with rasterio: windows where the file is tiled, all rows in their order into a temporary file where it is not."""
    import rasterio
    from rasterio.enums import ColorInterp
    from rasterio.windows import Window

    try:
        dataset = rasterio.open(path)
    except rasterio.errors.RasterioError as error:
        raise NotReadHereError(str(error)) from error
    meaning = dataset.colorinterp
    if dataset.count < 1 or "NBITS" in dataset.tags(1, ns="IMAGE_STRUCTURE"):
        dataset.close()
        raise NotReadHereError("no bands, or fewer bits than the type has")
    dtype = np.result_type(*dataset.dtypes)

    def read(rows: slice, columns: slice) -> Values:
        window = Window(columns.start, rows.start, columns.stop - columns.start, rows.stop - rows.start)
        try:
            values: Values = np.moveaxis(dataset.read(window=window), 0, -1).astype(dtype, copy=False)
        except rasterio.errors.RasterioError as error:
            raise InvalidImageError(f"cannot read image {path!r}: {error}") from error
        return values

    palette = None
    if meaning[0] == ColorInterp.palette and dtype.kind == "u":
        colors = dataset.colormap(1)
        palette = np.zeros((1 << 8 * dtype.itemsize, 3), np.uint8)
        palette[list(colors)] = [color[:3] for color in colors.values()]
    placed = dataset.crs is not None or not dataset.transform.is_identity
    raster = Raster(
        size=(dataset.height, dataset.width),
        bands=dataset.count,
        dtype=dtype,
        read=read,
        palette=palette,
        alpha=meaning.index(ColorInterp.alpha) if ColorInterp.alpha in meaning else None,
        color=meaning[:3] == (ColorInterp.red, ColorInterp.green, ColorInterp.blue),
        nodata=dataset.nodata,
        georeference=Georeference(crs=dataset.crs, transform=dataset.transform) if placed else Georeference(),
        close=dataset.close,
    )
    return raster if dataset.block_shapes[0][1] < dataset.width else _copied(raster, folder)


def _copied(raster: Raster, folder: Path) -> Raster:
    """Copy a raster that is read from top to bottom into a file where every part is near."""
    from dataclasses import replace

    height, width = raster.size
    values = _room(folder, (height, width, raster.bands), raster.dtype)
    step = rows_at_once(width, raster.bands * raster.dtype.itemsize)
    for start in range(0, height, step):
        stop = min(start + step, height)
        values[start:stop] = raster.read(slice(start, stop), slice(0, width))
        _let_go(values)
    raster.close()
    return replace(raster, read=array_raster(values).read, close=lambda: None)


def array_raster(array: NDArray[Any]) -> Raster:
    """Read an array or a memory map; of a map, no more stays in memory than was asked for last."""
    if array.ndim not in (2, 3) or array.size == 0 or array.dtype.kind not in "buif":
        raise InvalidImageError(f"a scene must be a numeric array (H, W) or (H, W, bands) with pixels; got {array.shape} {array.dtype}")
    if array.ndim == 3 and array.shape[0] <= 16 < array.shape[2]:
        raise InvalidImageError(f"a scene must be an array (H, W, bands); got shape {array.shape}. Pass image.transpose(1, 2, 0)")
    values = array[..., None] if array.ndim == 2 else array

    def read(rows: slice, columns: slice) -> Values:
        part = np.array(values[rows, columns])
        _let_go(values)
        return part

    bands = values.shape[2]
    return Raster(values.shape[:2], bands, values.dtype, read, alpha=3 if bands == 4 else None, by_custom=True, color=bands in (3, 4))


def _room(folder: Path, shape: tuple[int, ...], dtype: np.dtype[Any] | None = None) -> NDArray[Any]:
    """Map a temporary file without a name, with room for an array on the disk."""
    dtype = np.dtype(np.uint8) if dtype is None else dtype
    if int(np.prod(shape)) <= 3 * SMALL:
        return np.empty(shape, dtype)
    size = int(np.prod([int(side) for side in shape])) * dtype.itemsize
    try:
        with tempfile.TemporaryFile(dir=folder) as file:
            if hasattr(os, "posix_fallocate"):
                os.posix_fallocate(file.fileno(), 0, size)  # writing into a map of a full disk would kill the process
            return np.memmap(file, dtype, "w+", shape=shape)
    except OSError as error:
        raise OutputError(
            f"Cannot keep {size / 1e6:.0f} MB of decoded pixels in {str(folder)!r}: {error.strerror or error}. Make room there, or "
            "give the image as an uncompressed or tiled TIFF, which is read where it stands."
        ) from error


def _let_go(array: NDArray[Any]) -> None:
    """Tell the system that the pages of a memory map need not stay in memory; they come back from the file."""
    base: object = array
    private = False
    while isinstance(base, np.ndarray):
        private |= getattr(base, "mode", "r") == "c"  # what was written into a private map is in memory alone
        base = base.base
    if isinstance(base, mmap.mmap) and not private and hasattr(mmap, "MADV_DONTNEED"):
        base.madvise(mmap.MADV_DONTNEED)
