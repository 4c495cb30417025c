"""`ovseg compare A B`: how two label maps, or two folders of them, differ."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray


def declare(parser: argparse.ArgumentParser) -> None:
    """Declare the options."""
    parser.add_argument("first", type=Path, help="result that ovseg wrote (.png .json .npz .tif .npy .zarr), or a folder of them")
    parser.add_argument("second", type=Path, help="the other one; of two folders, results of the same name are compared")
    parser.add_argument("--csv", type=Path, metavar="FILE", help="write the matrix of transitions there")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write everything there")
    parser.add_argument("--changed", type=Path, metavar="FILE", help="write a .png that is white where two maps differ")


def run(options: argparse.Namespace) -> int:
    """Print the table and write the files; 1 if a part could not be compared, which the table names."""
    from ovseg.analysis import compare, compare_folders
    from ovseg.analysis.files import is_folder
    from ovseg.errors import InvalidArgumentError

    folders = is_folder(options.first), is_folder(options.second)
    if any(folders) and not all(folders):
        raise InvalidArgumentError(f"Give two results or two folders; got {options.first} and {options.second}.")
    if options.changed is not None and (all(folders) or options.changed.suffix.lower() != ".png"):
        raise InvalidArgumentError(f"--changed names a .png for two results; got {options.changed}.")
    found = compare_folders(options.first, options.second) if all(folders) else compare(options.first, options.second)
    for path in (options.csv, options.json):
        if path is not None:
            found.save(path)
    if options.changed is not None:
        if found.changed is None:
            raise InvalidArgumentError(f"--changed is for maps of at most 2^28 pixels; these have {found.pixels:,}. Leave it out.")
        _write_mask(found.changed, options.changed)
    print(found.format_table())
    return 1 if found.unpaired else 0


def _write_mask(changed: NDArray[np.bool_], path: Path) -> None:
    from PIL import Image

    from ovseg.output.files import write_picture

    write_picture(path, Image.fromarray(changed.astype("uint8") * 255))
