"""`ovseg segment`: images, a folder of them or a video, and words."""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from ovseg.commands import segment_folder, segment_scene, segment_video
from ovseg.commands.options import WINDOWS, load_model, model_options, parse_size, split_synonyms, split_words, word_options
from ovseg.commands.tables import coverage_table
from ovseg.errors import InvalidArgumentError, InvalidImageError
from ovseg.hints import Hints
from ovseg.jobs.frames import is_video
from ovseg.jobs.writing import FORMATS, SUFFIX_OF, write_result
from ovseg.output.files import PICTURES, check_overwrites
from ovseg.output.folders import make_folder
from ovseg.refine import METHODS
from ovseg.vocabulary import parse_labels

if TYPE_CHECKING:
    from ovseg.segmenter import SegmentOptions
    from ovseg.vocabulary import Labels

AUTO = "auto"


def declare(parser: argparse.ArgumentParser) -> None:
    """Declare the options."""
    word_options(parser)
    parser.add_argument("-o", "--output", type=Path, metavar="OUT", help="file (.png .json .geojson .npz; .tif .npy .zarr) or folder")
    parser.add_argument("--overlay", type=Path, metavar="FILE", help="write the overlay of one image there")
    parser.add_argument("--format", action="append", choices=FORMATS, help="what to write into OUT (overlay; for a FOLDER png); may repeat")
    parser.add_argument("--background", action="append", metavar="WORD", help="word for all else, 'auto' for the model's list; may repeat")
    parser.add_argument("--threshold", type=float, help="pixels with a lower best score stay undecided, 0 to 1")
    parser.add_argument("--margin", type=float, help="pixels whose best score is less ahead of the second stay undecided, 0 to 1")
    parser.add_argument("--size", type=parse_size, help="short side the network sees [px], or 'native'")
    parser.add_argument("--window", choices=WINDOWS, help="see the image at once, by windows, or at many scales (the model's own)")
    parser.add_argument("--tags", action="append", metavar="WORD", help="label that is in the picture, may repeat; 'auto' finds out")
    parser.add_argument("--refine", choices=METHODS, help="draw the label map to the edges of the image")
    parser.add_argument("--hints", metavar="FILE", help="strokes on the image: .png of indices or overlay colours, or .json of Hints.save")
    parser.add_argument("-q", "--quiet", action="store_true", help="print no table, show no progress")
    segment_folder.declare(parser)
    segment_video.declare(parser)
    segment_scene.declare(parser)
    model_options(parser)


def asked(options: argparse.Namespace) -> SegmentOptions:
    """Gather the options of `Segmenter.segment`: the same for an image, a folder and a video."""
    return {
        "templates": options.templates,
        "background": _background(options.background),
        "threshold": options.threshold,
        "margin": options.margin,
        "size": options.size,
        "window": options.window,
        "tags": AUTO if options.tags == [AUTO] else options.tags,
        "refine": options.refine,
    }


def _background(words: Sequence[str] | None) -> Labels | None:
    if not words:
        return None
    return AUTO if list(words) == [AUTO] else split_synonyms(words)


def run(options: argparse.Namespace) -> int:
    """Segment what was named, and return the exit status."""
    first = options.words[0] if options.words else ""
    if options.hints is not None and (os.path.isdir(first) or is_video(first) or segment_scene.is_asked(options)):
        raise InvalidArgumentError("--hints speaks of one image, not of a folder, a video or a scene.")
    if os.path.isdir(first):  # as a label, it would have to follow an image
        segment_video.refuse(options, first)
        return segment_folder.run(options, asked(options))
    segment_folder.refuse(options, first)
    if is_video(first):
        return segment_video.run(options, asked(options))
    segment_video.refuse(options, first)
    if segment_scene.is_asked(options):
        return segment_scene.run(options, asked(options))
    return _run_images(options)


def _run_images(options: argparse.Namespace) -> int:
    from ovseg.image import image_name

    images, labels = split_words(options)
    jobs = _plan(images, options)
    question = asked(options)
    if options.hints is not None:
        if len(images) != 1:
            raise InvalidArgumentError("--hints speaks of one image, but there are several. Name one.")
        question["hints"] = Hints.load(options.hints, parse_labels(labels))
    segmenter = load_model(options)
    failed = 0
    for image, files in zip(images, jobs, strict=True):
        try:
            result = segmenter.segment(image, labels, **question)
        except InvalidImageError as error:
            failed += 1
            print(f"ovseg: {error}", file=sys.stderr)
            continue
        if not options.quiet:
            print(coverage_table(image, result))
        for kind, path in files:
            write_result(result, path, kind, image_name(image))
            print(f"wrote {path}")
    if failed < len(images) and len(result.labels) == 1 and not options.background:
        print("ovseg: one label alone is held against a list of everyday words. Name its rivals, or a --background.", file=sys.stderr)
    return 1 if failed else 0


def _plan(images: Sequence[str], options: argparse.Namespace) -> list[list[tuple[str, Path]]]:
    """Decide for each image what to write where, and make the folder; nothing asked for means an overlay in the current one."""
    alone, output, overlay = len(images) == 1, options.output, options.overlay
    is_file = output is not None and bool(output.suffix) and not output.is_dir()
    if overlay is not None and not alone:
        raise InvalidArgumentError("--overlay names one file, but there are several images. Use -o FOLDER.")
    if overlay is not None and overlay.suffix.lower() not in PICTURES:
        raise InvalidArgumentError(f"An overlay is a picture: {', '.join(PICTURES)}; got {overlay.name!r}.")
    if is_file and output.suffix.lower() in PICTURES.keys() - {".png"}:
        raise InvalidArgumentError(f"{output} cannot hold a label map: that is .png, .json, .geojson or .npz. Or is it --overlay {output}?")
    if is_file and options.format:
        raise InvalidArgumentError(f"--format is for a folder; the suffix of {output} says the format already.")
    if is_file and not alone:
        raise InvalidArgumentError(f"-o {output} names one file, but there are several images. Give a folder.")
    plans = []
    for image in images:
        plan = [] if overlay is None else [("overlay", overlay)]
        if is_file:
            plan.append(("map", output))
        elif output is not None or options.format or overlay is None:
            kinds = dict.fromkeys(options.format or ["overlay"])
            plan += [(kind, (output or Path()) / f"{_stem(image)}{SUFFIX_OF[kind]}") for kind in kinds]
        plans.append(plan)
    check_overwrites((*images, options.hints, options.labels), (path for plan in plans for _, path in plan))
    _check_twice(images, plans)
    if output is not None and not is_file:
        make_folder(output)
    return plans


def _stem(image: str) -> str:
    from ovseg.image import image_name

    return Path(image_name(image) or "image").stem


def _check_twice(images: Sequence[str], plans: Sequence[Sequence[tuple[str, Path]]]) -> None:
    """Refuse to write one file twice."""
    targets: dict[str, str] = {}
    for image, plan in zip(images, plans, strict=True):
        for _, path in plan:
            real = os.path.realpath(path)
            if real in targets:
                raise InvalidArgumentError(f"{path} would be written twice, for {targets[real]} and for {image}. Choose another -o.")
            targets[real] = image
