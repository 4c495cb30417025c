"""`ovseg check tiles IMAGE LABEL...`: do tiles leave seams, and do labels stay where an image is shifted?"""

from __future__ import annotations

import argparse

from ovseg.commands.options import load_model, model_options, split_words, word_options
from ovseg.errors import InvalidArgumentError


def declare(parser: argparse.ArgumentParser) -> None:
    """Declare the options."""
    word_options(parser)
    parser.add_argument("--scale", type=float, default=1.0, help="pixels that the network sees for one of the image (1)")
    parser.add_argument("--tile", type=int, metavar="PX", help="side of a tile as the network sees it (the model's own)")
    parser.add_argument("--overlap", type=int, metavar="PX", help="how much tiles overlap at least (the model's own)")
    model_options(parser)


def run(options: argparse.Namespace) -> str:
    """Measure on each image, and return a table for each."""
    from ovseg.scenes.check import check_tiles

    images, labels = split_words(options)
    if options.templates:
        raise InvalidArgumentError("--templates are not for this check; it asks with the model's own.")
    segmenter = load_model(options)
    tables = []
    for image in images:
        found = check_tiles(segmenter, image, labels, scale=options.scale, tile=options.tile, overlap=options.overlap)
        tables.append(f"{image}\n{found.format_table()}")
    return "\n".join(tables)
