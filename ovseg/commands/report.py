"""`ovseg report FOLDER`: how often each label comes in a folder of results."""

from __future__ import annotations

import argparse
from pathlib import Path


def declare(parser: argparse.ArgumentParser) -> None:
    """Declare the options."""
    parser.add_argument("folder", type=Path, help="folder of .png .json .npz .tif .npy .zarr that ovseg wrote, or one")
    parser.add_argument("--pixel-size", metavar="METRES", help="side of a pixel on the ground, or a GeoTIFF that says it: adds areas")
    parser.add_argument("--csv", type=Path, metavar="FILE", help="write the row of each label there")
    parser.add_argument("--images", type=Path, metavar="FILE", help="write a .csv with a row for each image")
    parser.add_argument("--regions", type=Path, metavar="FILE", help="write a .csv with a row for each connected region")
    parser.add_argument("--min-pixels", type=int, default=1, metavar="N", help="smallest region (1)")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write everything there")


def run(options: argparse.Namespace) -> int:
    """Print the table and write the files; 1 if files were skipped, which the table names."""
    from ovseg.analysis import report

    found = report(
        options.folder, pixel_size=_pixel_size(options.pixel_size), regions=options.regions is not None, min_pixels=options.min_pixels
    )
    for path, save in (
        (options.csv, found.save),
        (options.images, found.save_images),
        (options.regions, found.save_regions),
        (options.json, found.save),
    ):
        if path is not None:
            save(path)
    print(found.format_table())
    return 1 if found.skipped else 0


def _pixel_size(text: str | None) -> float | tuple[float, float] | None:
    """Read a number, or the file that it names."""
    from ovseg.analysis import ground_pixel_size

    if text is None:
        return None
    try:
        return float(text)
    except ValueError:
        return ground_pixel_size(text)
