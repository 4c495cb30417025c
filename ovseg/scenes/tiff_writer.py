"""Write a label map as a tiled, compressed TIFF, a GeoTIFF where it is known where it lies."""

from __future__ import annotations

import json
import struct
import zlib
from collections.abc import Callable
from typing import Any, BinaryIO

import numpy as np
from numpy.typing import NDArray

from ovseg.scenes.raster import Georeference, Scratch
from ovseg.scenes.tiff import (
    BITS,
    COLOR_MAP,
    COMPRESSION,
    GDAL_NODATA,
    GEO_TAGS,
    LENGTH,
    PHOTOMETRIC,
    PLANAR,
    SAMPLE_FORMAT,
    SAMPLES,
    TILE_COUNTS,
    TILE_LENGTH,
    TILE_OFFSETS,
    TILE_WIDTH,
    TYPE_SIZES,
    WIDTH,
    TiffFile,
)  # fmt: skip

TILE = 512
"""Side of a tile [px]."""
BIG = 2 << 30
"""Bytes of pixels from which on a file becomes a BigTIFF, as classic TIFF ends at 4 GiB."""

_DESCRIPTION, _SOFTWARE = 270, 305


def write_tiff(
    file: BinaryIO,
    values: Scratch,
    *,
    palette: NDArray[np.uint8] | None,
    nodata: int,
    description: dict[str, Any],
    georeference: Georeference,
    tell: Callable[[int], object],
) -> None:
    """Write a label map.

    Args:
        file: Binary and seekable, empty.
        values: (H, W) uint8 or uint16.
        palette: (256, 3) uint8 colours of a map of uint8, or None.
        nodata: The number of the pixels without a label.
        description: Goes into the tag ImageDescription as JSON.
        georeference: Where the map lies.
        tell: Is told of rows that were written.
    """
    height, width = values.shape
    across, size = -(-width // TILE), values.dtype.itemsize
    big = height * width * size > BIG
    file.write(b"II+\0\x08\0\0\0" + bytes(8) if big else b"II*\0" + bytes(4))
    offsets, counts = [], []
    for top in range(0, height, TILE):
        strip = values.read(slice(top, min(top + TILE, height)))
        rows = np.full((TILE, across * TILE), nodata, values.dtype)
        rows[: len(strip), :width] = strip
        for j in range(across):
            tile = np.ascontiguousarray(rows[:, j * TILE : (j + 1) * TILE]).astype(values.dtype.newbyteorder("<"))
            data = zlib.compress(tile.tobytes(), 6)
            offsets.append(file.tell())
            counts.append(len(data))
            file.write(data)
        tell(len(strip))
    long = 16 if big else 4
    tags: dict[int, tuple[int, bytes]] = {
        WIDTH: (4, _pack("I", width)),
        LENGTH: (4, _pack("I", height)),
        BITS: (3, _pack("H", 8 * size)),
        COMPRESSION: (3, _pack("H", 8)),
        PHOTOMETRIC: (3, _pack("H", 1 if palette is None else 3)),
        _DESCRIPTION: (2, json.dumps(description).encode("ascii") + b"\0"),
        SAMPLES: (3, _pack("H", 1)),
        PLANAR: (3, _pack("H", 1)),
        _SOFTWARE: (2, b"ovseg\0"),
        TILE_WIDTH: (3, _pack("H", TILE)),
        TILE_LENGTH: (3, _pack("H", TILE)),
        TILE_OFFSETS: (long, _pack("Q" if big else "I", *offsets)),
        TILE_COUNTS: (4, _pack("I", *counts)),
        SAMPLE_FORMAT: (3, _pack("H", 1)),
        GDAL_NODATA: (2, str(nodata).encode() + b"\0"),
        **_geo_tags(georeference),
    }
    if palette is not None:
        tags[COLOR_MAP] = (3, (palette.T.astype("<u2") * 257).tobytes())
    _write_directory(file, tags, big)


def _pack(code: str, *values: int) -> bytes:
    return struct.pack(f"<{len(values)}{code}", *values)


def _write_directory(file: BinaryIO, tags: dict[int, tuple[int, bytes]], big: bool) -> None:
    inline, pointer = (8, "Q") if big else (4, "I")
    entries = []
    for tag, (kind, data) in sorted(tags.items()):
        value = data
        if len(data) > inline:
            file.write(b"\0" * (file.tell() % 2))
            value = _pack(pointer, file.tell())
            file.write(data)
        entries.append(struct.pack(f"<HH{pointer}", tag, kind, len(data) // TYPE_SIZES[kind]) + value.ljust(inline, b"\0"))
    file.write(b"\0" * (file.tell() % 2))
    place = file.tell()
    file.write(_pack("Q" if big else "H", len(entries)) + b"".join(entries) + bytes(8 if big else 4))
    file.seek(8 if big else 4)
    file.write(_pack(pointer, place))
    file.seek(0, 2)


def _geo_tags(georeference: Georeference) -> dict[int, tuple[int, bytes]]:
    """Return the GeoTIFF tags in little-endian order."""
    tags, order = georeference.tags, georeference.order
    if not tags and georeference.transform is not None:
        tags, order = _made_by_rasterio(georeference), "<"
    codes = {3: "H", 4: "I", 12: "d", 16: "Q"}
    found = {}
    for tag in GEO_TAGS:
        if tag in tags:
            kind, data = tags[tag]
            if order == ">" and kind in codes:
                data = np.frombuffer(data, f">{np.dtype(codes[kind]).str[1:]}").astype(f"<{np.dtype(codes[kind]).str[1:]}").tobytes()
            found[tag] = kind, data
    return found


def _made_by_rasterio(georeference: Georeference) -> dict[int, tuple[int, bytes]]:
    """Let rasterio write a file of one pixel at that place, and take its tags."""
    from io import BytesIO

    from rasterio.io import MemoryFile

    with MemoryFile() as memory:
        with memory.open(
            driver="GTiff", width=1, height=1, count=1, dtype="uint8", crs=georeference.crs, transform=georeference.transform,
            ENDIANNESS="LITTLE",
        ) as dataset:  # fmt: skip
            dataset.write(np.zeros((1, 1, 1), np.uint8))
        return dict(TiffFile(BytesIO(memory.read()), "of rasterio").tags)
