"""`ovseg eval FOLDER...`: how good a model's label maps are, and with `--calibrate` its scores."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ovseg.commands.options import WINDOWS, load_model, model_options, parse_size
from ovseg.errors import InvalidArgumentError
from ovseg.refine import METHODS

if TYPE_CHECKING:
    from ovseg.evaluation.datasets import Dataset
    from ovseg.segmenter import Segmenter


def declare(parser: argparse.ArgumentParser) -> None:
    """Declare the options."""
    parser.add_argument("folder", type=Path, nargs="+", help="folder with images/, labels/ and labels.txt or .yaml (there or above)")
    parser.add_argument("--labels", type=Path, metavar="FILE", help="other names for the classes, in their order; .yaml with rules")
    parser.add_argument("--templates", action="append", metavar="SET", help="a template set, or a sentence with {}; may repeat")
    parser.add_argument("--size", type=parse_size, help="short side the network sees [px], or 'native'")
    parser.add_argument("--window", choices=WINDOWS, help="see the image at once, by windows, or at many scales (the model's own)")
    parser.add_argument("--refine", choices=METHODS, help="draw the label maps to the edges of the images")
    parser.add_argument("--boundary", type=float, metavar="WIDTH", help="boundary IoU; width of the rims by the diagonal (published: 0.02)")
    parser.add_argument("--rivals", type=Path, metavar="FILE", help="labels that are asked beside the classes and are always wrong")
    parser.add_argument("--tags", choices=("auto", "truth"), help="find out first which labels are in the picture, or be told the truth")
    parser.add_argument("--limit", type=int, metavar="N", help="evenly spaced images to use")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the result there")
    parser.add_argument("--calibrate", action="store_true", help="fit a temperature, and say how far scores are probabilities")
    parser.add_argument("--fit-on", type=Path, action="append", metavar="FOLDER", help="fit there; may repeat (the first half of FOLDER)")
    parser.add_argument("--diagram", type=Path, metavar="FILE", help="draw the reliability diagram of --calibrate there (.png)")
    parser.add_argument("--hints", type=_counts, metavar="N,N,...", help="mIoU after so many simulated clicks, such as 0,1,3,10")
    parser.add_argument("--clicker", choices=("robot", "next", "random"), help="with --hints, who says where to click (robot)")
    model_options(parser)


def _counts(text: str) -> tuple[int, ...]:
    try:
        return tuple(int(part) for part in text.split(","))
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text!r} must be numbers with commas, such as 0,1,3,10") from None


def run(options: argparse.Namespace) -> int:
    """Print the tables and write the files."""
    from ovseg.evaluation.datasets import Dataset

    if not options.calibrate and (options.fit_on or options.diagram):
        raise InvalidArgumentError("--fit-on and --diagram belong to --calibrate.")
    if options.calibrate and (options.refine or options.boundary is not None):
        raise InvalidArgumentError("--refine and --boundary are not for --calibrate, which is about the scores as they are.")
    if (options.calibrate or options.hints is not None) and (options.rivals or options.tags):
        raise InvalidArgumentError("--rivals and --tags are not for --calibrate or --hints.")
    if options.diagram and options.diagram.suffix.lower() != ".png":
        raise InvalidArgumentError(f"--diagram names a .png; got {options.diagram.name!r}.")
    if options.clicker and options.hints is None:
        raise InvalidArgumentError("--clicker belongs to --hints.")
    others = (options.calibrate, options.refine, options.boundary is not None, options.size, options.window)
    if options.hints is not None and any(others):
        raise InvalidArgumentError("--hints goes with none of --calibrate, --refine, --boundary, --size, --window.")
    datasets = [Dataset.open(folder, labels=options.labels) for folder in options.folder]
    fit_on = [Dataset.open(folder) for folder in options.fit_on or ()]
    segmenter = load_model(options)
    if options.calibrate:
        _calibrate(segmenter, datasets, fit_on, options)
    elif options.hints is not None:
        _with_hints(segmenter, datasets, options)
    else:
        _evaluate(segmenter, datasets, options)
    return 0


def _with_hints(segmenter: Segmenter, datasets: list[Dataset], options: argparse.Namespace) -> None:
    from ovseg.evaluation.hints import evaluate_hints

    results = []
    for dataset in datasets:
        result = evaluate_hints(
            segmenter, dataset, options.hints, clicker=options.clicker or "robot", templates=options.templates, limit=options.limit
        )
        results.append(result.as_dict())
        print(result.format_table())
    _write(results, options.json)


def _evaluate(segmenter: Segmenter, datasets: list[Dataset], options: argparse.Namespace) -> None:
    from ovseg.evaluation.evaluate import evaluate

    results = []
    for dataset in datasets:
        result = evaluate(
            segmenter,
            dataset,
            templates=options.templates,
            window=options.window,
            size=options.size,
            refine=options.refine,
            boundary=options.boundary,
            rivals=options.rivals,
            tags=options.tags,
            limit=options.limit,
        )
        results.append(result.as_dict())
        print(result.format_table())
    _write(results, options.json)


def _write(results: list[dict[str, Any]], path: Path | None) -> None:
    """Write the result of one dataset, or a list of several."""
    from ovseg.output.files import write_json

    if path is not None:
        write_json(path, results[0] if len(results) == 1 else results)


def _calibrate(segmenter: Segmenter, datasets: list[Dataset], fit_on: list[Dataset], options: argparse.Namespace) -> None:
    from ovseg.evaluation.calibrate import calibrate

    result = calibrate(
        segmenter,
        datasets,
        fit_on=fit_on or None,
        templates=options.templates,
        window=options.window,
        size=options.size,
        limit=options.limit,
    )
    print(result.format_table())
    if options.json:
        result.save(options.json)
    if options.diagram:
        from ovseg.evaluation.diagram import draw_calibration
        from ovseg.output.files import write_picture

        write_picture(options.diagram, draw_calibration(result))
