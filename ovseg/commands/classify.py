"""`ovseg classify IMAGE... LABEL...`: say which word the whole image shows."""

from __future__ import annotations

import argparse
import json
import sys

from ovseg.commands.options import load_model, model_options, split_words, word_options
from ovseg.commands.tables import bars
from ovseg.errors import InvalidImageError


def declare(parser: argparse.ArgumentParser) -> None:
    """Declare the options."""
    word_options(parser)
    parser.add_argument("--top", type=int, default=5, help="how many labels to show (5)")
    parser.add_argument("--json", action="store_true", help="print JSON, one object a line")
    model_options(parser)


def run(options: argparse.Namespace) -> int:
    """Classify every image, and return the exit status."""
    images, labels = split_words(options)
    segmenter = load_model(options)
    failed = 0
    for image in images:
        try:
            result = segmenter.classify(image, labels, templates=options.templates)
        except InvalidImageError as error:
            failed += 1
            print(f"ovseg: {error}", file=sys.stderr)
            continue
        top = result.top(min(options.top, len(result.labels)))
        if options.json:
            print(json.dumps({"image": image, "scores": dict(top)}, ensure_ascii=False))
        else:
            print(f"{image}\n{bars(top)}")
    return 1 if failed else 0
