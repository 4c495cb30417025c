"""Write label maps of any size, from a file of rows, so that they appear complete or not at all."""

from __future__ import annotations

import json
import os
import secrets
import shutil
import struct
import zipfile
import zlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
from numpy.typing import NDArray

from ovseg.errors import InvalidArgumentError, MissingDependencyError, OutputError
from ovseg.output.files import write_atomically, write_json
from ovseg.output.palette import RGB, UNDECIDED_COLOR, label_colors
from ovseg.scenes.raster import Georeference, Scratch, rows_at_once
from ovseg.scenes.tiff_writer import write_tiff

Progress = Callable[[int], object]


@dataclass(frozen=True)
class Legend:
    """What the numbers of a label map mean.

    Attributes:
        labels: K names; a name's place is its number.
        ignore_index: Number of the undecided pixels and of those without data.
        model: Name of the model.
        chosen: Colours of labels that somebody chose; the others have theirs by rule.
    """

    labels: tuple[str, ...]
    ignore_index: int
    model: str
    chosen: Mapping[str, RGB] = field(default_factory=dict)

    @cached_property
    def colors(self) -> NDArray[np.uint8]:
        """Colour of every label, (K, 3) uint8."""
        return label_colors(self.labels, self.chosen)

    def as_dict(self) -> dict[str, Any]:
        """Return what JSON can hold."""
        colors = [f"#{r:02x}{g:02x}{b:02x}" for r, g, b in self.colors.tolist()]
        return {"labels": list(self.labels), "colors": colors, "ignore_index": self.ignore_index, "model": self.model}

    def palette(self) -> NDArray[np.uint8]:
        """Return the (256, 3) colours of a map of uint8."""
        palette = np.zeros((256, 3), np.uint8)
        palette[: len(self.labels)] = self.colors
        palette[255] = UNDECIDED_COLOR
        return palette


def check_output(path: Path) -> None:
    """Refuse, before any work, what cannot be written.

    Raises:
        OutputError: If the suffix is unknown or the place cannot be written to.
        MissingDependencyError: If zarr is asked for and not installed.
    """
    suffix = path.suffix.lower()
    if suffix not in SUFFIXES:
        raise OutputError(f"Cannot write a scene to {str(path)!r}: expected a name that ends in {', '.join(SUFFIXES)}; got {suffix!r}.")
    if suffix == ".zarr":
        _zarr()
        if path.exists() and not (path / "zarr.json").exists() and not (path / ".zarray").exists():
            raise OutputError(f"Cannot write {str(path)!r}: it exists and is no zarr array.")
        if not path.resolve().parent.is_dir():
            raise OutputError(f"Cannot write {str(path)!r}: the folder {str(path.resolve().parent)!r} does not exist; create it first.")
        if not os.access(path.resolve().parent, os.W_OK):
            raise OutputError(f"Cannot write {str(path)!r}: Permission denied.")
        return
    if path.is_dir():
        raise OutputError(f"Cannot write {str(path)!r}: it is a folder; give the name of a file in it.")
    parent = path.resolve().parent
    if not parent.is_dir():
        raise OutputError(f"Cannot write {str(path)!r}: the folder {str(parent)!r} does not exist; create it first.")
    if not os.access(parent, os.W_OK):
        raise OutputError(f"Cannot write {str(path)!r}: the folder {str(parent)!r} cannot be written to.")


def write_map(path: Path, values: Scratch, legend: Legend, georeference: Georeference, more: dict[str, Any], tell: Progress) -> None:
    """Write a label map in the format that the suffix names.

    Args:
        path: Where to.
        values: (H, W) uint8 or uint16.
        legend: What the numbers mean.
        georeference: Where the map lies, for GeoTIFF; others keep none.
        more: What else the legend in JSON says.
        tell: Is told of rows that were written.
    """
    suffix = path.suffix.lower()
    facts = {**legend.as_dict(), **more}
    if suffix == ".zarr":
        _write_zarr(path, values, facts, tell)
        return
    with write_atomically(path) as file:
        if suffix == ".png":
            _write_png(file, values, legend, tell)
        elif suffix == ".npy":
            _write_npy(file, values, tell)
        elif suffix == ".npz":
            _write_npz(file, values, legend, tell)
        else:
            palette = legend.palette() if values.dtype == np.uint8 else None
            write_tiff(file, values, palette=palette, nodata=legend.ignore_index, description=facts, georeference=georeference, tell=tell)
    if suffix in (".tif", ".tiff", ".npy"):
        write_json(path.with_suffix(".labels.json"), facts)


def _strips(values: Scratch, tell: Progress, multiple: int = 1) -> Iterator[NDArray[Any]]:
    height, width = values.shape
    step = max(1, rows_at_once(width, values.dtype.itemsize) // multiple) * multiple
    for start in range(0, height, step):
        stop = min(start + step, height)
        yield values.read(slice(start, stop))
        tell(stop - start)


def _write_png(file: BinaryIO, values: Scratch, legend: Legend, tell: Progress) -> None:
    """Write an index PNG as `Segmentation.save` does, which `Segmentation.load` reads; a PNG has no tiles, but it has rows."""
    height, width = values.shape
    small = values.dtype == np.uint8

    def chunk(kind: bytes, data: bytes) -> None:
        file.write(struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data)))

    def text(key: str, value: str) -> None:
        chunk(b"iTXt", key.encode("latin-1") + b"\0\0\0\0\0" + value.encode())

    if max(height, width) >= 1 << 31:
        raise InvalidArgumentError(f"A PNG has at most 2^31 - 1 rows and columns, and the scene {height} x {width}. Write a .tif.")
    file.write(b"\x89PNG\r\n\x1a\n")
    chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 8 if small else 16, 3 if small else 0, 0, 0, 0))
    if small:
        chunk(b"PLTE", legend.palette().tobytes())
    text("ovseg:labels", json.dumps(list(legend.labels), ensure_ascii=False))
    text("ovseg:model", legend.model)
    if legend.chosen:
        text("ovseg:colors", json.dumps(dict(legend.chosen), ensure_ascii=False))
    deflate = zlib.compressobj(6)
    for strip in _strips(values, tell):
        rows = strip.astype(">u2" if not small else "u1").view(np.uint8).reshape(len(strip), -1)
        if data := deflate.compress(np.pad(rows, ((0, 0), (1, 0))).tobytes()):  # each row after its filter: 0, none
            chunk(b"IDAT", data)
    chunk(b"IDAT", deflate.flush())
    chunk(b"IEND", b"")


def _npy_header(file: Any, values: Scratch) -> None:
    facts: dict[str, Any] = {"descr": values.dtype.newbyteorder("<").str, "fortran_order": False, "shape": tuple(values.shape)}
    np.lib.format.write_array_header_1_0(file, facts)


def _write_npy(file: BinaryIO, values: Scratch, tell: Progress) -> None:
    _npy_header(file, values)
    for strip in _strips(values, tell):
        file.write(strip.tobytes())


def _write_npz(file: BinaryIO, values: Scratch, legend: Legend, tell: Progress) -> None:
    """Write the archive that `Segmentation.save` writes."""
    with zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED) as archive:
        with archive.open("segmentation.npy", "w", force_zip64=True) as entry:
            _npy_header(entry, values)
            for strip in _strips(values, tell):
                entry.write(strip.tobytes())
        others = {"labels": np.array(legend.labels), "ignore_index": np.array(legend.ignore_index), "model": np.array(legend.model)}
        if legend.chosen:
            others["colors"] = np.array(json.dumps(dict(legend.chosen), ensure_ascii=False))
        for name, array in others.items():
            with archive.open(f"{name}.npy", "w") as entry:
                np.lib.format.write_array(entry, array, allow_pickle=False)


def _zarr() -> Any:
    try:
        import zarr
    except ImportError as error:
        raise MissingDependencyError("Writing .zarr needs zarr: pip install 'zarr>=3'. Or write a .tif.") from error
    return zarr


def _write_zarr(path: Path, values: Scratch, facts: dict[str, Any], tell: Progress) -> None:
    """Write an array in chunks of 512 x 512, with the legend as its attributes."""
    target = path.resolve()
    temporary, old = (target.with_name(f".ovseg-{secrets.token_hex(8)}.{kind}") for kind in ("tmp", "old"))
    try:
        array = _zarr().create_array(
            str(temporary), shape=values.shape, chunks=(512, 512), dtype=values.dtype, fill_value=facts["ignore_index"], attributes=facts
        )
        top = 0
        for strip in _strips(values, tell, 512):
            array[top : top + len(strip)] = strip
            top += len(strip)
        if target.exists():
            target.rename(old)
        try:
            temporary.rename(target)
        except OSError:
            if old.exists():
                old.rename(target)
            raise
    except OSError as error:
        raise OutputError(f"Cannot write {str(path)!r}: {error.strerror or error}.") from error
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
        shutil.rmtree(old, ignore_errors=True)


SUFFIXES: Sequence[str] = (".tif", ".tiff", ".png", ".npz", ".npy", ".zarr")
"""What a scene can be written to."""
