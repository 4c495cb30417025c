"""Write results in the formats that a job can ask for, named after their images."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from ovseg.output.files import write_picture

if TYPE_CHECKING:
    from ovseg.result import Segmentation

SUFFIX_OF = {"overlay": ".overlay.png", "png": ".png", "json": ".json", "geojson": ".geojson", "npz": ".npz"}
"""What is added to the stem of an image's name, by format."""
FORMATS = tuple(SUFFIX_OF)


def write_result(result: Segmentation, path: Path, kind: str, file_name: str | None = None) -> None:
    """Write a result; the file appears complete or not at all.

    Args:
        result: The result.
        path: Where to.
        kind: "overlay" for a picture; anything else saves the label map by the suffix of `path`.
        file_name: What a COCO file calls the image.

    Raises:
        OutputError: If the file cannot be written.
    """
    if kind == "overlay":
        write_picture(path, result.overlay())
    else:
        result.save(path, file_name=file_name if path.suffix.lower() == ".json" else None)
