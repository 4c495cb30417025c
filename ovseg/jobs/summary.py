"""What a job found, in one file for all images: tables of coverage, and the masks."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, BinaryIO

from ovseg.errors import InvalidArgumentError, MissingDependencyError
from ovseg.jobs.manifest import Manifest, Record
from ovseg.jobs.overlap import in_order, share_cores
from ovseg.jobs.task import placed
from ovseg.output.files import write_atomically
from ovseg.output.formats import make_coco_annotations
from ovseg.output.palette import UNDECIDED
from ovseg.result import Segmentation

SUMMARIES = {"csv": "coverage.csv", "parquet": "coverage.parquet", "coco": "coco.json"}
"""Names of the files, by kind."""
KINDS = tuple(SUMMARIES)

_FIXED = ("image", "height", "width")
_ROWS = 1000  # of a table that are in memory together
_READ_BACK = ("png", "npz", "json")


def check_summary(kinds: Sequence[str], formats: Sequence[str]) -> None:
    """Refuse, before anything is done, what could not be written at the end.

    Raises:
        InvalidArgumentError: If a COCO file is asked for and no format that it could be made of.
        MissingDependencyError: If a Parquet file is asked for without pyarrow.
    """
    if "coco" in kinds and not set(formats) & set(_READ_BACK):
        raise InvalidArgumentError(f"The summary 'coco' is made of label maps: write one of {', '.join(_READ_BACK)} too; got {formats!r}.")
    if "parquet" in kinds:
        _pyarrow()


def write_summary(
    out: Path, manifest: Manifest, names: Sequence[str], labels: Sequence[str], kinds: Sequence[str], *, progress: bool = True
) -> list[Path]:
    """Write the files of a finished job, in the order of its images, in bounded memory; images that failed are left out.

    Args:
        out: Folder of the results.
        manifest: What was done.
        names: The images.
        labels: K names.
        kinds: Keys of `SUMMARIES`.
        progress: Whether to show a progress bar on stderr where it takes long.

    Returns:
        The files.
    """
    writers = {"csv": _write_csv, "parquet": _write_parquet}
    for kind in kinds:
        with placed(out, SUMMARIES[kind]) as staged, write_atomically(staged) as file:
            if kind == "coco":
                _write_coco(file, out, manifest, names, labels, progress)
            else:
                writers[kind](file, columns(labels), rows(manifest, names, len(labels)))
    return [out / SUMMARIES[kind] for kind in kinds]


def total_coverage(manifest: Manifest, names: Iterable[str], labels: Sequence[str]) -> dict[str, float]:
    """Sum up the labels' parts of the pixels of all images, and what is undecided: they sum to 1."""
    pixels, total = [0] * len(labels), 0
    for record in _done(manifest, names):
        total += record["height"] * record["width"]
        for index, count in record["pixels"]:
            pixels[index] += count
    if not total:
        return {}
    return {**{label: count / total for label, count in zip(labels, pixels, strict=True)}, UNDECIDED: (total - sum(pixels)) / total}


def columns(labels: Sequence[str]) -> list[str]:
    """Name the columns of the table: image, height, width [px], each label, and what is undecided.

    A label that is spelled like another column is marked as a label.
    """
    taken = (*_FIXED, UNDECIDED)
    return [*_FIXED, *(f"{label} (label)" if label in taken else label for label in labels), UNDECIDED]


def rows(manifest: Manifest, names: Iterable[str], count: int) -> Iterator[list[Any]]:
    """Make the rows of the table: shares of the pixels in [0, 1] that sum to 1."""
    for record in _done(manifest, names):
        total = record["height"] * record["width"]
        shares = [0.0] * (count + 1)
        for index, pixels in record["pixels"]:
            shares[index] = pixels / total
        shares[count] = (total - sum(pixels for _, pixels in record["pixels"])) / total
        yield [record["image"], record["height"], record["width"], *shares]


def _done(manifest: Manifest, names: Iterable[str]) -> Iterator[Record]:
    return (record for record in manifest.records(names) if "error" not in record)


def _write_csv(file: BinaryIO, header: Sequence[str], table: Iterable[list[Any]]) -> None:
    text = io.TextIOWrapper(file, "utf-8", "surrogateescape", newline="")  # names of files need not be valid Unicode
    writer = csv.writer(text)
    writer.writerow(header)
    writer.writerows(table)
    text.detach()


def _pyarrow() -> Any:
    try:
        import pyarrow
        import pyarrow.parquet
    except ImportError as error:
        raise MissingDependencyError("A Parquet file needs pyarrow: pip install pyarrow.") from error
    return pyarrow


def _write_parquet(file: BinaryIO, header: Sequence[str], table: Iterable[list[Any]]) -> None:
    arrow = _pyarrow()
    kinds = [arrow.string(), arrow.int32(), arrow.int32(), *[arrow.float64()] * (len(header) - len(_FIXED))]
    schema = arrow.schema(list(zip(header, kinds, strict=True)))
    with arrow.parquet.ParquetWriter(file, schema) as writer:
        part: list[list[Any]] = []

        def flush() -> None:
            if part:
                arrays = [arrow.array(column, kind) for column, kind in zip(zip(*part, strict=True), kinds, strict=True)]
                writer.write_table(arrow.Table.from_arrays(arrays, schema=schema))
                part.clear()

        for row in table:
            row[0] = row[0].encode("utf-8", "replace").decode()
            part.append(row)
            if len(part) == _ROWS:
                flush()
        flush()


def _write_coco(file: BinaryIO, out: Path, manifest: Manifest, names: Sequence[str], labels: Sequence[str], progress: bool) -> None:
    """Write one COCO file, mask by mask; the label maps are read back from the results."""
    from tqdm import tqdm

    ids = {name: number for number, name in enumerate(names, start=1)}

    def annotate(record: Record) -> list[dict[str, Any]]:
        kind = next(kind for kind in _READ_BACK if kind in record["outputs"])
        result = Segmentation.load(out / record["outputs"][kind])
        return make_coco_annotations(result.segmentation, len(labels), image_id=ids[record["image"]], first_id=0)

    info = {"description": "semantic segmentation by ovseg", "model": manifest.settings["model"]["name"]}
    categories = [{"id": index, "name": label} for index, label in enumerate(labels, start=1)]
    file.write(f'{{"info": {json.dumps(info)}, "categories": {json.dumps(categories)}, "images": ['.encode())
    count = 0
    for record in _done(manifest, names):
        image = {"id": ids[record["image"]], "file_name": record["image"], "height": record["height"], "width": record["width"]}
        file.write(f"{', ' if count else ''}{json.dumps(image)}".encode())
        count += 1
    file.write(b'], "annotations": [')
    number = 0
    made = in_order(_done(manifest, names), annotate, share_cores(None, 1)[0])
    for masks in tqdm(made, SUMMARIES["coco"], total=count, unit="image", disable=not progress, delay=2):
        for annotation in masks:
            number += 1
            annotation["id"] = number
            file.write(f"{', ' if number > 1 else ''}{json.dumps(annotation)}".encode())
    file.write(b"]}\n")
