"""Read any part of a TIFF file, however large, without decoding the rest.

Classic TIFF and BigTIFF, in strips or tiles, of one plane or one for each band, with 8 to 64 bits and up to as many bands as there are.
What is not compressed is read where it stands. Strips and tiles that are compressed without loss become bytes again by zlib, or by
Pillow, to which each is given as a little TIFF file of its own; so is a strip or tile of JPEG. Predictors are undone here.

Sources: TIFF 6.0 (Adobe, 1992), Adobe's Photoshop TIFF technical notes (deflate, predictor 3), libtiff's BigTIFF design, and GDAL's
GeoTIFF driver for sparse files and the text in tag 42113.
"""

from __future__ import annotations

import struct
import zlib
from collections.abc import Mapping, Sequence
from io import BytesIO
from typing import BinaryIO

import numpy as np
from numpy.typing import NDArray

from ovseg.errors import InvalidImageError
from ovseg.scenes.raster import Georeference, NotReadHereError, Order, Raster, Values

WIDTH, LENGTH, BITS, COMPRESSION, PHOTOMETRIC, FILL_ORDER, STRIP_OFFSETS, ORIENTATION = 256, 257, 258, 259, 262, 266, 273, 274
SAMPLES, ROWS_PER_STRIP, STRIP_COUNTS, PLANAR, PREDICTOR, COLOR_MAP = 277, 278, 279, 284, 317, 320
TILE_WIDTH, TILE_LENGTH, TILE_OFFSETS, TILE_COUNTS, EXTRA_SAMPLES, SAMPLE_FORMAT = 322, 323, 324, 325, 338, 339
JPEG_TABLES, YCBCR_SUBSAMPLING, GDAL_NODATA = 347, 530, 42113
GEO_TAGS = (33550, 33922, 34264, 34735, 34736, 34737)
"""Pixel scale, tie points, transformation, and the three tags of geokeys: what makes a TIFF a GeoTIFF (OGC 19-008r4, annex B)."""

TYPE_SIZES = {1: 1, 2: 1, 3: 2, 4: 4, 5: 8, 6: 1, 7: 1, 8: 2, 9: 4, 10: 8, 11: 4, 12: 8, 13: 4, 16: 8, 17: 8, 18: 8}
_CODES = {1: "B", 3: "H", 4: "I", 6: "b", 8: "h", 9: "i", 11: "f", 12: "d", 13: "I", 16: "Q", 17: "q", 18: "Q"}
_DEFLATE, _JPEG = (8, 32946), 7
_BY_PILLOW = (5, 32773, 34925, 50000)  # LZW, PackBits, LZMA, Zstandard
_MAX_BLOCK = 256 << 20  # bytes of a strip or tile when it is decoded
_MAX_KEPT = 128 << 20  # bytes of decoded strips and tiles that are kept for the next rows

Tags = Mapping[int, tuple[int, bytes]]


class TiffFile:
    """The first image of a TIFF file.

    Args:
        file: Binary and seekable; it is kept and read from later.
        name: What messages call the image.

    Raises:
        InvalidImageError: If the file is damaged or truncated.
        NotReadHereError: If it is a kind of TIFF that other readers may know.
    """

    def __init__(self, file: BinaryIO, name: str) -> None:
        self._file, self._name = file, name
        self._length = file.seek(0, 2)
        self._order, self.tags = self._directory()
        self.width, self.height = self._number(WIDTH, 0), self._number(LENGTH, 0)
        if self.width < 1 or self.height < 1:
            raise self._damaged(f"its size is {self.height} x {self.width} (height x width)")
        self.samples = self._number(SAMPLES, 1)
        self._compression, self._photometric = self._number(COMPRESSION, 1), self._number(PHOTOMETRIC, 1)
        self._predictor = self._number(PREDICTOR, 1)
        self._separate = self._number(PLANAR, 1) == 2 and self.samples > 1
        self.dtype = self._sample_type()
        self._check_supported()
        self._place_blocks()
        self._decoded_blocks: dict[int, tuple[int, Values]] = {}

    def raster(self) -> Raster:
        """Describe the image for `scenes`."""
        extra = self._numbers(EXTRA_SAMPLES)
        alpha = [self.samples - len(extra) + i for i, kind in enumerate(extra) if kind in (1, 2)]
        palette = None
        if self._photometric == 3:
            colors = self._numbers(COLOR_MAP)
            if self.samples != 1 or len(colors) != 3 * 2 ** (8 * self.dtype.itemsize) or self.dtype.kind != "u":
                raise self._damaged("its palette does not fit its pixels")
            palette = (np.array(colors, np.uint32).reshape(3, -1).T // 256).astype(np.uint8)
        return Raster(
            size=(self.height, self.width),
            bands=self.samples,
            dtype=self.dtype,
            read=self.read,
            palette=palette,
            alpha=alpha[0] if alpha else None,
            inverted=self._photometric == 0,
            color=self._photometric in (2, 6),
            nodata=self._nodata(),
            georeference=Georeference(tags={tag: self.tags[tag] for tag in GEO_TAGS if tag in self.tags}, order=self._order),
            sequential=self._compression != 1 and not self._tiled,
            close=self._file.close,
        )

    def read(self, rows: slice, columns: slice) -> Values:
        """Read a part: (rows, columns, bands), in the machine's byte order."""
        found = np.empty((rows.stop - rows.start, columns.stop - columns.start, self.samples), self.dtype)
        tall, wide = self._block
        across, down = -(-self.width // wide), -(-self.height // tall)
        for plane in range(self.samples if self._separate else 1):
            bands = slice(plane, plane + 1) if self._separate else slice(None)
            for i in range(rows.start // tall, -(-rows.stop // tall)):
                y = slice(max(rows.start, i * tall), min(rows.stop, (i + 1) * tall))
                for j in range(columns.start // wide, -(-columns.stop // wide)):
                    x = slice(max(columns.start, j * wide), min(columns.stop, (j + 1) * wide))
                    inner = slice(y.start - i * tall, y.stop - i * tall), slice(x.start - j * wide, x.stop - j * wide)
                    part = self._part((plane * down + i) * across + j, i, inner)
                    found[y.start - rows.start : y.stop - rows.start, x.start - columns.start : x.stop - columns.start, bands] = part
        self._forget(rows.stop)
        return found

    # ------------------------------------------------------------------------------------------------------ the directory

    def _directory(self) -> tuple[Order, dict[int, tuple[int, bytes]]]:
        head = self._bytes(0, min(16, self._length))
        order: Order = "<" if head[:2] == b"II" else ">"
        magic = struct.unpack(f"{order}H", head[2:4])[0] if head[:2] in (b"II", b"MM") and len(head) >= 8 else 0
        if magic == 42:
            self._big, start = False, struct.unpack(f"{order}I", head[4:8])[0]
        elif magic == 43 and len(head) == 16:
            self._big, start = True, struct.unpack(f"{order}Q", head[8:16])[0]
        else:
            raise self._damaged("its header is that of no TIFF")
        width, code, entry = (8, "Q", 20) if self._big else (2, "H", 12)
        count = struct.unpack(f"{order}{code}", self._bytes(start, width))[0]
        if count > 4096:
            raise self._damaged(f"its directory claims {count} entries")
        entries = self._bytes(start + width, count * entry)
        tags: dict[int, tuple[int, bytes]] = {}
        for i in range(count):
            tag, kind = struct.unpack_from(f"{order}HH", entries, i * entry)
            number = struct.unpack_from(f"{order}{'Q' if self._big else 'I'}", entries, i * entry + 4)[0]
            if kind not in TYPE_SIZES:
                continue
            size, inline = number * TYPE_SIZES[kind], entries[i * entry + (12 if self._big else 8) : (i + 1) * entry]
            if size <= len(inline):
                tags.setdefault(tag, (kind, inline[:size]))
            else:
                tags.setdefault(tag, (kind, self._bytes(struct.unpack(f"{order}{'Q' if self._big else 'I'}", inline)[0], size)))
        return order, tags

    def _numbers(self, tag: int) -> Sequence[int]:
        if tag not in self.tags:
            return ()
        kind, data = self.tags[tag]
        if kind not in _CODES or kind in (11, 12):
            raise self._damaged(f"tag {tag} holds no whole numbers")
        values: list[int] = np.frombuffer(data, np.dtype(_CODES[kind]).newbyteorder(self._order)).tolist()
        return values

    def _number(self, tag: int, default: int) -> int:
        values = self._numbers(tag)
        return values[0] if values else default

    def _nodata(self) -> float | None:
        if GDAL_NODATA not in self.tags:
            return None
        try:
            return float(self.tags[GDAL_NODATA][1].split(b"\0")[0].decode("ascii").strip())
        except ValueError:
            return None

    def _sample_type(self) -> np.dtype[np.generic]:
        bits, formats = set(self._numbers(BITS) or [1]), set(self._numbers(SAMPLE_FORMAT) or [1])
        if len(bits) > 1 or len(formats) > 1:
            raise NotReadHereError("bands of different types")
        kind = {1: "u", 2: "i", 3: "f"}.get(formats.pop())
        size = bits.pop()
        if kind is None or size not in (8, 16, 32, 64) or (kind == "f" and size == 8):
            raise NotReadHereError(f"{size} bits a sample")
        return np.dtype(f"{kind}{size // 8}")

    def _check_supported(self) -> None:
        known = (1, *_DEFLATE, *_BY_PILLOW, _JPEG)
        if self._compression not in known:
            raise NotReadHereError(f"compression {self._compression}")
        if self._photometric not in (0, 1, 2, 3) and not (self._photometric == 6 and self._compression == _JPEG):
            raise NotReadHereError(f"photometric interpretation {self._photometric}")
        if self._compression == _JPEG and (self._separate or self.dtype != np.uint8 or self.samples not in (1, 3)):
            raise NotReadHereError("JPEG of other than one or three bands")
        if self._number(FILL_ORDER, 1) != 1 or self._number(ORIENTATION, 1) != 1:
            raise NotReadHereError("turned or with reversed bits")
        if self._predictor not in (1, 2, 3) or (self._predictor == 2 and self.dtype.kind == "f"):
            raise NotReadHereError(f"predictor {self._predictor}")
        if self._predictor == 3 and self.dtype.kind != "f":
            raise self._damaged("it has a predictor of floats, and none")

    def _place_blocks(self) -> None:
        self._tiled = TILE_OFFSETS in self.tags
        if self._tiled:
            self._block = self._number(TILE_LENGTH, 0), self._number(TILE_WIDTH, 0)
            self._offsets, self._counts = self._numbers(TILE_OFFSETS), self._numbers(TILE_COUNTS)
        else:
            self._block = min(self._number(ROWS_PER_STRIP, self.height), self.height), self.width
            self._offsets, self._counts = self._numbers(STRIP_OFFSETS), self._numbers(STRIP_COUNTS)
        tall, wide = self._block
        if tall < 1 or wide < 1:
            raise self._damaged("its strips or tiles have no size")
        expected = -(-self.height // tall) * -(-self.width // wide) * (self.samples if self._separate else 1)
        if not self._counts and self._compression == 1 and len(self._offsets) == expected:
            last = self.height - (expected - 1) * tall if not self._separate else tall
            self._counts = [self._raw_size(tall)] * (expected - 1) + [self._raw_size(last)]
        if len(self._offsets) < expected or len(self._counts) < expected:
            raise self._damaged(f"it needs {expected} strips or tiles and names {min(len(self._offsets), len(self._counts))}")
        ends = [offset + count for offset, count in zip(self._offsets, self._counts, strict=False) if count]
        if ends and max(ends) > self._length:
            kind = "tile" if self._tiled else "strip"
            raise self._damaged(f"it is cut off: a {kind} ends at byte {max(ends)}, and the file has {self._length}")
        if self._compression != 1 and self._raw_size(tall) > _MAX_BLOCK:
            raise NotReadHereError(f"strips or tiles of {self._raw_size(tall) >> 20} MB")

    def _raw_size(self, rows: int) -> int:
        return rows * self._block[1] * (1 if self._separate else self.samples) * self.dtype.itemsize

    # ------------------------------------------------------------------------------------------------------- strips, tiles

    def _part(self, index: int, row: int, inner: tuple[slice, slice]) -> Values:
        """Read a part of one block: (rows, columns, bands)."""
        bands = 1 if self._separate else self.samples
        wide = self._block[1]
        tall = self._block[0] if self._tiled else min(self._block[0], self.height - row * self._block[0])
        if not self._counts[index]:  # a sparse file leaves out what has no data
            fill = self._nodata() or 0
            return np.full((inner[0].stop - inner[0].start, inner[1].stop - inner[1].start, bands), fill).astype(self.dtype)
        if self._compression == 1:
            line = wide * bands * self.dtype.itemsize
            if self._counts[index] < line * tall:
                raise self._damaged("a strip or tile is shorter than its pixels")
            data = self._bytes(self._offsets[index] + inner[0].start * line, (inner[0].stop - inner[0].start) * line)
            values = np.frombuffer(data, self.dtype.newbyteorder(self._order)).reshape(-1, wide, bands)
            return values[:, inner[1]].astype(self.dtype)
        if index not in self._decoded_blocks:
            self._decoded_blocks[index] = row, self._decoded(index, tall, wide, bands)
        return self._decoded_blocks[index][1][inner]

    def _forget(self, stop: int) -> None:
        """Keep of the decoded blocks those that rows from `stop` on need, if they are not too many."""
        kept = {i: block for i, block in self._decoded_blocks.items() if (block[0] + 1) * self._block[0] > stop}
        self._decoded_blocks = kept if sum(values.nbytes for _, values in kept.values()) <= _MAX_KEPT else {}

    def _decoded(self, index: int, tall: int, wide: int, bands: int) -> Values:
        data = self._bytes(self._offsets[index], self._counts[index])
        expected = tall * wide * bands * self.dtype.itemsize
        if self._compression == _JPEG:
            pixels = _decode_alone(self._jpeg_alone(data, tall, wide), self._name)
            if pixels.size != expected:
                raise self._damaged("a JPEG inside has another size than its strip or tile")
            return pixels.reshape(tall, wide, bands)
        if self._compression in _DEFLATE:
            try:
                raw = zlib.decompressobj().decompress(data, expected)
            except zlib.error as error:
                raise self._damaged(f"a strip or tile cannot be decompressed ({error})") from error
        else:
            line = wide * bands * self.dtype.itemsize
            raw = _decode_alone(_bytes_alone(data, self._compression, tall, line, self._order), self._name).tobytes()
        if len(raw) < expected:
            raise self._damaged("a strip or tile unfolds to fewer bytes than its pixels need")
        return _undo_predictor(raw[:expected], self._predictor, self.dtype, self._order, (tall, wide, bands))

    def _jpeg_alone(self, data: bytes, tall: int, wide: int) -> bytes:
        tags: list[tuple[int, int, list[int] | bytes]] = [
            (WIDTH, 4, [wide]), (LENGTH, 4, [tall]), (BITS, 3, [8] * self.samples), (COMPRESSION, 3, [_JPEG]),
            (PHOTOMETRIC, 3, [self._photometric]), (SAMPLES, 3, [self.samples]), (ROWS_PER_STRIP, 4, [tall]),
        ]  # fmt: skip
        if JPEG_TABLES in self.tags:
            tags.append((JPEG_TABLES, 7, self.tags[JPEG_TABLES][1]))
        if YCBCR_SUBSAMPLING in self.tags:
            tags.append((YCBCR_SUBSAMPLING, 3, list(self._numbers(YCBCR_SUBSAMPLING))))
        return _little_tiff(tags, data, self._order)

    def _bytes(self, start: int, count: int) -> bytes:
        if start + count > self._length:
            raise self._damaged(f"it is cut off: bytes up to {start + count} are missing, and the file has {self._length}")
        self._file.seek(start)
        data = self._file.read(count)
        if len(data) < count:
            raise self._damaged("it became shorter while it was read")
        return data

    def _damaged(self, why: str) -> InvalidImageError:
        return InvalidImageError(f"cannot read image {self._name}: {why}")


def _little_tiff(tags: list[tuple[int, int, list[int] | bytes]], data: bytes, order: str) -> bytes:
    """Put one strip into a TIFF file of its own."""
    strip_tags: list[tuple[int, int, list[int] | bytes]] = [(STRIP_OFFSETS, 4, [0]), (STRIP_COUNTS, 4, [len(data)])]
    entries = sorted([*tags, *strip_tags])
    after = 8 + 2 + 12 * len(entries) + 4
    extra, directory = b"", b""
    place = after + sum(len(_packed(kind, value, order)) + 1 for _, kind, value in entries if len(_packed(kind, value, order)) > 4)
    for tag, kind, value in entries:
        packed = struct.pack(f"{order}I", place) if tag == STRIP_OFFSETS else _packed(kind, value, order)
        count = len(packed) // TYPE_SIZES[kind]
        if len(packed) > 4:
            packed, extra = struct.pack(f"{order}I", after + len(extra)), extra + packed + b"\0"
        directory += struct.pack(f"{order}HHI", tag, kind, count) + packed.ljust(4, b"\0")
    head = (b"II*\0" if order == "<" else b"MM\0*") + struct.pack(f"{order}IH", 8, len(entries))
    return head + directory + struct.pack(f"{order}I", 0) + extra + data


def _packed(kind: int, value: list[int] | bytes, order: str) -> bytes:
    return value if isinstance(value, bytes) else struct.pack(f"{order}{len(value)}{_CODES[kind]}", *value)


def _bytes_alone(data: bytes, compression: int, tall: int, line: int, order: str) -> bytes:
    """Call a compressed strip a grey picture of 8 bits, one pixel for each byte."""
    tags: list[tuple[int, int, list[int] | bytes]] = [
        (WIDTH, 4, [line]), (LENGTH, 4, [tall]), (BITS, 3, [8]), (COMPRESSION, 3, [compression]), (PHOTOMETRIC, 3, [1]),
        (SAMPLES, 3, [1]), (ROWS_PER_STRIP, 4, [tall]),
    ]  # fmt: skip
    return _little_tiff(tags, data, order)


def _decode_alone(content: bytes, name: str) -> NDArray[np.uint8]:
    from PIL import Image, TiffImagePlugin

    try:
        picture = TiffImagePlugin.TiffImageFile(BytesIO(content), "")
        picture.im = Image.new(picture.mode, picture.size).im  # or Pillow would ask its process-wide limit
        return np.asarray(picture)
    except Exception as error:  # Pillow answers damaged files with about any exception there is
        raise InvalidImageError(f"cannot read image {name}: a strip or tile is damaged, or needs a codec Pillow lacks ({error})") from error


def _undo_predictor(raw: bytes, predictor: int, dtype: np.dtype[np.generic], order: Order, shape: tuple[int, int, int]) -> Values:
    if predictor == 3:  # differences of bytes, the bytes of a row of floats sorted by significance, the highest first
        planes = np.frombuffer(raw, np.uint8).reshape(shape[0], -1, shape[2])
        planes = np.cumsum(planes, axis=1, dtype=np.uint8).reshape(shape[0], dtype.itemsize, -1)
        return np.ascontiguousarray(planes.transpose(0, 2, 1)).view(dtype.newbyteorder(">")).astype(dtype).reshape(shape)
    values = np.frombuffer(raw, dtype.newbyteorder(order)).reshape(shape).astype(dtype)
    if predictor == 2:
        np.cumsum(values, axis=1, dtype=dtype, out=values)
    return values
