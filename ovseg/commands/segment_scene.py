"""`ovseg segment HUGE.tif LABEL... -o OUT.tif`: an image of any size, by tiles."""

from __future__ import annotations

import argparse
import os
from pathlib import Path
from typing import TYPE_CHECKING

from ovseg.commands.options import load_model, split_words
from ovseg.commands.tables import share_table
from ovseg.errors import InvalidArgumentError

if TYPE_CHECKING:
    from ovseg.segmenter import SegmentOptions

_OPTIONS = ("scale", "tile", "overlap", "context", "bands", "limits", "nodata", "memory")
_SUFFIXES = (".tif", ".tiff", ".npy", ".zarr")  # what only a scene is written to
_OTHERS = (".png", ".npz")
_STRANGERS = {
    "size": "which are decided part by part. There are --scale and --tile",
    "window": "which are decided part by part. There are --scale and --tile",
    "refine": "which are decided part by part: a part does not know the edges of its neighbours",
    "format": "whose format is the suffix of -o",
}


def declare(parser: argparse.ArgumentParser) -> None:
    """Declare the options that only scenes have."""
    group = parser.add_argument_group(
        "images of any size", "Seen by tiles, with any of these options, with -o OUT.tif .npy .zarr, or beyond 300 megapixels."
    )
    group.add_argument("--scale", type=float, help="pixels that the network sees for one of the image (1)")
    group.add_argument("--tile", type=int, metavar="PX", help="side of a tile as the network sees it (the model's own)")
    group.add_argument("--overlap", type=int, metavar="PX", help="how much tiles overlap at least (the model's own)")
    group.add_argument("--context", type=float, metavar="W", help="weight of a coarse look at the whole beside the tiles (0)")
    group.add_argument("--bands", type=_bands, metavar="R,G,B", help="bands that are red, green and blue, from 0; or one")
    group.add_argument("--limits", type=_limits, metavar="LOW,HIGH", help="values that are black and white, or 'auto'")
    group.add_argument("--nodata", type=float, metavar="VALUE", help="value of pixels without data (the file's)")
    group.add_argument("--memory", type=int, metavar="MB", help="megabytes of features that are held (512)")


def is_asked(options: argparse.Namespace) -> bool:
    """Tell whether an image is to be seen by tiles."""
    from ovseg.image import image_name
    from ovseg.scenes.sources import is_scene

    if _given(options) or (options.output is not None and options.output.suffix.lower() in _SUFFIXES):
        return True
    image = options.words[0] if options.words else ""
    return os.path.isfile(image) and image_name(image) is not None and is_scene(image)


def _given(options: argparse.Namespace) -> list[str]:
    return [name for name in _OPTIONS if getattr(options, name) is not None]


def run(options: argparse.Namespace, question: SegmentOptions) -> int:
    """Segment one scene.

    Args:
        options: Of the command line.
        question: The options of `Segmenter.segment`, of which scenes have some.
    """
    from ovseg.scenes import segment_scene

    images, labels = split_words(options)
    output: Path | None = options.output
    suffixes = ", ".join((*_SUFFIXES, *_OTHERS))
    if len(images) != 1:
        raise InvalidArgumentError(f"Scenes are done one by one; got {len(images)} images. Leave out {_why(options)}, or name one.")
    if output is None or output.suffix.lower() not in (*_SUFFIXES, *_OTHERS):
        raise InvalidArgumentError(f"{images[0]} is seen by tiles ({_why(options)}): name with -o a file that ends in {suffixes}.")
    for name, instead in _STRANGERS.items():
        if getattr(options, name):
            raise InvalidArgumentError(f"--{name} is not for scenes ({_why(options)}), {instead}.")
    scene = segment_scene(
        images[0],
        labels,
        output,
        model=load_model(options),
        templates=question.get("templates"),
        background=question.get("background"),
        threshold=question.get("threshold"),
        margin=question.get("margin"),
        tags=question.get("tags"),
        scale=1.0 if options.scale is None else options.scale,
        tile=options.tile,
        overlap=options.overlap,
        context=0.0 if options.context is None else options.context,
        bands=options.bands,
        limits=options.limits,
        nodata=options.nodata,
        overlay=options.overlay,
        memory=512 << 20 if options.memory is None else options.memory << 20,
        progress=not options.quiet,
    )
    if not options.quiet:
        print(share_table(images[0], scene.size, scene.coverage()))
    for path in (scene.path, options.overlay):
        if path is not None:
            print(f"wrote {path}")
    return 0


def _why(options: argparse.Namespace) -> str:
    given = [f"--{name}" for name in _given(options)]
    if not given and options.output is not None and options.output.suffix.lower() in _SUFFIXES:
        given = [f"-o {options.output}"]
    return ", ".join(given) or "it has more than 300 megapixels"


def _bands(text: str) -> tuple[int, ...]:
    try:
        return tuple(int(part) for part in text.split(","))
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text!r} is not one index or three with commas between, like 3,2,1") from None


def _limits(text: str) -> str | tuple[float, ...]:
    if text == "auto":
        return text
    try:
        return tuple(float(part) for part in text.split(","))
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text!r} is neither LOW,HIGH nor 'auto'") from None
