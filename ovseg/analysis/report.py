"""How often each label comes in a folder of results."""

from __future__ import annotations

import os
from contextlib import closing
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ovseg.analysis.files import find_results, first_readable, write_csv
from ovseg.errors import InvalidArgumentError, InvalidImageError
from ovseg.output.files import write_json
from ovseg.output.ground import PixelSize, pixel_area
from ovseg.output.palette import UNDECIDED
from ovseg.output.regions import Region
from ovseg.output.render import count_pixels

_SHOWN = 5  # files that could not be read and are named in the table


@dataclass(frozen=True, eq=False)
class Report:
    """The labels of many results, counted.

    Attributes:
        folder: Where the results are.
        names: N results: path below the folder without its suffix.
        labels: K labels: all that come in one of the results' lists, in the order in which they come.
        pixels: (N, K + 1) int64 pixels of each label in each result; the last column is undecided.
        asked: (N, K) bool, whether a label is in the list of a result; results need not share a list.
        pixel_area: Area of a pixel on the ground, or None.
        regions: Connected regions of all results, with the name of the result; None where they were not asked for.
        skipped: Files that hold no result that can be read, with the reason.
    """

    folder: str
    names: tuple[str, ...]
    labels: tuple[str, ...]
    pixels: NDArray[np.int64] = field(repr=False)
    asked: NDArray[np.bool_] = field(repr=False)
    pixel_area: float | None = None
    regions: list[tuple[str, Region]] | None = field(default=None, repr=False)
    skipped: dict[str, str] = field(default_factory=dict)

    def rows(self) -> list[dict[str, Any]]:
        """Return a row for each label, most pixels first, and one for undecided where there is any.

        Returns:
            Rows with "label"; "asked", in how many results' lists it is; "found", in how many it has pixels; "pixels"; "share" of all
            pixels; "mean_share" and "largest_share" of a result's pixels, among those that asked for it; "area" in units, or None.
        """
        total = self.pixels.sum(1)
        shares = self.pixels / total[:, None]
        rows = []
        for i, label in enumerate((*self.labels, UNDECIDED)):
            asked = self.asked[:, i] if i < len(self.labels) else np.ones(len(total), bool)
            mine = self.pixels[:, i]
            count = int(mine.sum())
            if i == len(self.labels) and not count:
                continue
            rows.append(
                {
                    "label": label,
                    "asked": int(asked.sum()),
                    "found": int((mine > 0).sum()),
                    "pixels": count,
                    "share": count / int(total.sum()),
                    "mean_share": float(shares[asked, i].mean()),
                    "largest_share": float(shares[asked, i].max()),
                    "area": None if self.pixel_area is None else count * self.pixel_area,
                }
            )
        return sorted(rows, key=lambda row: (row["label"] == UNDECIDED, -row["pixels"]))

    def as_dict(self) -> dict[str, Any]:
        """Return everything as JSON has it."""
        images = []
        for name, counts, asked in zip(self.names, self.pixels, self.asked, strict=True):
            found = {label: int(count) for label, count, mine in zip(self.labels, counts, asked, strict=False) if mine}
            images.append({"name": name, "pixels": found, "undecided": int(counts[-1])})
        return {
            "folder": self.folder,
            "pixel_area": self.pixel_area,
            "labels": self.rows(),
            "images": images,
            "regions": None if self.regions is None else [{"image": name, **region.as_dict()} for name, region in self.regions],
            "skipped": self.skipped,
        }

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write everything to a .json, or the row of each label to a .csv.

        Raises:
            OutputError: If the file cannot be written.
            InvalidArgumentError: If the name ends in neither.
        """
        suffix = Path(path).suffix.lower()
        if suffix == ".json":
            write_json(path, self.as_dict())
        elif suffix == ".csv":
            rows = self.rows()
            write_csv(path, list(rows[0]), [list(row.values()) for row in rows])
        else:
            raise InvalidArgumentError(f"A report is saved as .json or .csv; got {os.fspath(path)!r}.")

    def save_images(self, path: str | os.PathLike[str]) -> None:
        """Write a .csv with a row for each result: the pixels of each label (empty where it was not asked for)."""
        rows = [
            [name, *(int(count) if known else None for count, known in zip(counts, asked, strict=False)), int(counts[-1])]
            for name, counts, asked in zip(self.names, self.pixels, self.asked, strict=True)
        ]
        write_csv(path, ["image", *self.labels, UNDECIDED], rows)

    def save_regions(self, path: str | os.PathLike[str]) -> None:
        """Write a .csv with a row for each region; only of a report that was made with regions."""
        if self.regions is None:
            raise InvalidArgumentError("This report was made without regions: report(folder, regions=True).")
        header = ["image", "label", "pixels", "x", "y", "width", "height", "centroid_x", "centroid_y", "mean_score", "area"]
        write_csv(path, header, [[name, r.label, r.pixels, *r.box, *r.centroid, r.mean_score, r.area] for name, r in self.regions])

    def format_table(self) -> str:
        """Format the report as text to print."""
        rows = self.rows()
        width = max(5, *(len(row["label"]) for row in rows))
        in_units = self.pixel_area is not None
        lines = [f"{'label':{width}}  {'found in':>13}  {'pixels':>15}  {'share':>7}  {'mean':>7}  {'largest':>7}"
                 + (f"  {'area':>14}" if in_units else "")]  # fmt: skip
        for row in rows:
            found = f"{row['found']} of {row['asked']}"
            line = f"{row['label']:{width}}  {found:>13}  {row['pixels']:15,}" + "".join(
                f"  {100 * row[key]:6.2f}%" for key in ("share", "mean_share", "largest_share")
            )
            lines.append(line + (f"  {row['area']:14,.1f}" if in_units else ""))
        lines += ["", f"{len(self.names)} results, {int(self.pixels.sum()):,} pixels"]
        if self.regions is not None:
            lines[-1] += f", {len(self.regions):,} regions"
        if self.skipped:
            lines.append(f"{len(self.skipped)} file{' holds' if len(self.skipped) == 1 else 's hold'} no result that can be read:")
            lines += [f"  {name}: {reason}" for name, reason in list(self.skipped.items())[:_SHOWN]]
        return "\n".join(lines)


def report(
    folder: str | os.PathLike[str],
    *,
    pixel_size: PixelSize | None = None,
    regions: bool = False,
    min_pixels: int = 1,
    progress: bool = True,
) -> Report:
    """Count the labels of all results in a folder, and in the folders in it.

    Args:
        folder: Holds .png, .npz or .json files that `Segmentation.save` wrote, or .tif, .npy or .zarr of `segment_scene`, which are read by
            rows. One result in several formats counts once; overlays and files that hold no result are passed over. Or one such file.
        pixel_size: Side of a pixel on the ground, or its (height, width): areas are then given in its square. `ground_pixel_size` reads
            that of a GeoTIFF.
        regions: Whether to list the connected regions, for which each map is held in memory as a whole.
        min_pixels: Leave out smaller regions.
        progress: Whether to show a progress bar on stderr.

    Returns:
        The counts.

    Raises:
        InvalidImageError: If the folder does not exist or holds no result.
        InvalidArgumentError: If an option is outside its range.
    """
    from tqdm import tqdm

    area = pixel_area(pixel_size)
    places: dict[str, int] = {}
    names: list[str] = []
    found: list[tuple[list[int], NDArray[np.int64]]] = []
    listed: list[tuple[str, Region]] = []
    skipped: dict[str, str] = {}
    for name, paths in tqdm(find_results(folder).items(), "reading", unit="result", disable=not progress, delay=2):
        try:
            with closing(first_readable(paths)) as one:
                counts = np.zeros(len(one.labels), np.int64)
                for _, part in one.strips():
                    counts += count_pixels(part, len(counts))
                if regions:
                    listed += [(name, region) for region in one.whole().regions(min_pixels=min_pixels, pixel_size=pixel_size)]
        except InvalidImageError as error:
            skipped[name] = str(error)
            continue
        columns = [places.setdefault(label, len(places)) for label in one.labels]
        names.append(name)
        found.append((columns, np.append(counts, one.size[0] * one.size[1] - counts.sum())))
    if not names:
        raise InvalidImageError(
            f"There is no result in {os.fspath(folder)!r}: expected .png, .npz, .json, .tif, .npy or .zarr that ovseg wrote"
            + (f"; of {len(skipped)} such files the first says: {next(iter(skipped.values()))}" if skipped else ".")
        )
    pixels = np.zeros((len(names), len(places) + 1), np.int64)
    asked = np.zeros((len(names), len(places)), bool)
    for i, (columns, counts) in enumerate(found):
        pixels[i, [*columns, -1]] = counts
        asked[i, columns] = True
    return Report(os.fspath(folder), tuple(names), tuple(places), pixels, asked, area, listed if regions else None, skipped)
