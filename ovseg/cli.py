"""The command line: `ovseg segment IMAGE... LABEL...` and its sisters. With `commands/`, the only modules that print."""

from __future__ import annotations

import argparse
import io
import json
import logging
import os
import sys
import warnings
from collections.abc import Callable, Sequence
from typing import TextIO

from ovseg.commands.options import load_model, model_options, split_words, word_options
from ovseg.commands.tables import bars
from ovseg.errors import InvalidArgumentError, InvalidImageError, InvalidLabelsError, OvsegError, UnknownModelError


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a command and return its exit status: 0 done, 1 a failure that was reported, 2 wrong usage."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):  # a terminal that lacks a character shows "?" in its place
            stream.reconfigure(errors="replace")
    try:
        try:
            return _run(list(sys.argv[1:] if arguments is None else arguments))
        finally:
            if sys.stdout is not None:
                sys.stdout.flush()
    except BrokenPipeError:  # the reader has gone; Python must not complain once more when it flushes at exit
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    except KeyboardInterrupt:
        return 130


def _run(arguments: list[str]) -> int:
    if not arguments or arguments[0] in ("-h", "--help"):
        print(_overview())
        return 0 if arguments else 2
    if arguments[0] in ("-V", "--version"):
        from ovseg import __version__

        print(f"ovseg {__version__}")
        return 0
    name, *rest = arguments
    if name in _GROUPS:
        return _run_group(name, rest)
    if name not in _COMMANDS:
        commands = ", ".join((*_COMMANDS, *_GROUPS))
        print(f"ovseg: unknown command {name!r}. Commands: {commands}. A picture: ovseg segment IMAGE LABEL...", file=sys.stderr)
        return 2
    declare, run, summary = _COMMANDS[name]
    return _parse_and_run(name, rest, declare, run, summary)


def _run_group(name: str, arguments: list[str]) -> int:
    """Run a command of two words."""
    summary, kinds = _GROUPS[name]
    if not arguments or arguments[0] in ("-h", "--help") or arguments[0] not in kinds:
        lines = [f"usage: ovseg {name} {{{','.join(kinds)}}} ...", "", summary, ""]
        lines += [f"  {kind:10} {what}" for kind, (_, what) in kinds.items()]
        asked = bool(arguments) and arguments[0] in ("-h", "--help")
        print("\n".join(lines), file=sys.stdout if asked else sys.stderr)
        return 0 if asked else 2
    from importlib import import_module

    kind, *rest = arguments
    module = import_module(kinds[kind][0])

    def run(options: argparse.Namespace) -> int:
        score = _scorer(options.cost, options.limit) if getattr(options, "cost", None) is not None else None
        print(module.run(options) if score is None else module.run(options, score))
        return 0

    return _parse_and_run(f"{name} {kind}", rest, module.declare, run, f"{summary} Here: {kinds[kind][1]}.")


def _scorer(folder: os.PathLike[str], limit: int | None) -> Callable[..., object]:
    """Make what measures a model on a dataset: `ovseg.export` and `ovseg.evaluation` do not know each other."""
    from functools import partial

    from ovseg.evaluation.datasets import Dataset
    from ovseg.evaluation.evaluate import evaluate

    return partial(evaluate, dataset=Dataset.open(folder), limit=limit)


def _parse_and_run(
    name: str,
    rest: list[str],
    declare: Callable[[argparse.ArgumentParser], None],
    run: Callable[[argparse.Namespace], int],
    summary: str,
) -> int:
    parser = argparse.ArgumentParser(prog=f"ovseg {name}", description=summary)
    declare(parser)
    parser.add_argument("-v", "--verbose", action="store_true", help="log what happens, and show where errors come from")
    options = parser.parse_intermixed_args(rest)  # options may stand between images and labels
    logging.basicConfig(level=logging.INFO if options.verbose else logging.WARNING, format="%(name)s: %(message)s")
    try:
        with warnings.catch_warnings():
            warnings.showwarning = _show_warning
            return run(options)
    except OvsegError as error:
        if options.verbose:
            raise
        print(f"ovseg: {error}", file=sys.stderr)
        return 2 if isinstance(error, (InvalidArgumentError, InvalidLabelsError, UnknownModelError)) else 1


def _show_warning(
    message: Warning | str, category: type[Warning], filename: str, lineno: int, file: TextIO | None = None, line: str | None = None
) -> None:
    """Print a warning as a sentence, without the line of code that it came from."""
    source = "" if issubclass(category, UserWarning) else f"{filename}:{lineno}: {category.__name__}: "
    print(f"ovseg: {source}{message}", file=sys.stderr)


def _overview() -> str:
    lines = ["usage: ovseg COMMAND ...", "", "Open-vocabulary segmentation: an image and words in, a label for every pixel out.", ""]
    lines += [f"  {name:10} {summary}" for name, (_, _, summary) in _COMMANDS.items()]
    lines += [f"  {name:10} {summary}" for name, (summary, _) in _GROUPS.items()]
    return "\n".join([*lines, "", "ovseg COMMAND --help says more. For example: ovseg segment beach.jpg sky grass sand"])


# ---------------------------------------------------------------------------------------------------------------- segment


def _segment_options(parser: argparse.ArgumentParser) -> None:
    from ovseg.commands.segment import declare

    declare(parser)


def _segment(options: argparse.Namespace) -> int:
    from ovseg.commands.segment import run

    return run(options)


# --------------------------------------------------------------------------------------------------------------- classify


def _classify_options(parser: argparse.ArgumentParser) -> None:
    word_options(parser)
    parser.add_argument("--top", type=int, default=5, help="how many labels to show (5)")
    parser.add_argument("--json", action="store_true", help="print JSON, one object a line")
    model_options(parser)


def _classify(options: argparse.Namespace) -> int:
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


# ----------------------------------------------------------------------------------------------------------------- models


def _models_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--all", action="store_true", help="also name every other tower of open_clip that works")
    parser.add_argument("--json", action="store_true", help="print JSON")


def _models(options: argparse.Namespace) -> int:
    from ovseg.registry import cards

    others: list[str] = []
    if options.all:
        from ovseg.loading import clip_names

        others = [name for name in clip_names() if name not in cards()]
    rows = [
        {
            "name": c.name, "license": c.license, "access": c.access, "megabytes": c.megabytes, "embed_dim": c.embed_dim,
            "scores": dict(c.scores),
        }
        for c in cards().values()
    ]  # fmt: skip
    if options.json:
        print(json.dumps(rows + [{"name": name} for name in others], indent=2))
        return 0
    column = max(len(card.name) for card in cards().values())
    licences = max(len(card.license) for card in cards().values())
    print(f"{'name':{column}}  {'licence of weights':{max(licences, 18)}}  {'size':>8}  scores")
    for card in cards().values():
        scores = ", ".join(f"{key} {value:g}" for key, value in card.scores.items())
        print(f"{card.name:{column}}  {card.license:{max(licences, 18)}}  {card.megabytes:5.0f} MB  {scores}".rstrip())
    for name in others:
        print(name)
    if not options.all:
        print("\nAlso clip-<tower>-<pretrained> for any tower of open_clip (ovseg models --all), hf-hub:OWNER/NAME, and folders.")
    return 0


# -------------------------------------------------------------------------------------------------------------- benchmark


def _benchmark_options(parser: argparse.ArgumentParser) -> None:
    from ovseg.evaluation.benchmark_command import declare

    declare(parser)


def _benchmark(options: argparse.Namespace) -> int:
    from ovseg.evaluation.benchmark_command import run

    print(run(options))
    return 0


# ------------------------------------------------------------------------------------------------------------------- eval


def _eval_options(parser: argparse.ArgumentParser) -> None:
    from ovseg.commands.evaluate import declare

    declare(parser)


def _eval(options: argparse.Namespace) -> int:
    from ovseg.commands.evaluate import run

    return run(options)


# --------------------------------------------------------------------------------------------------------------- analysis


def _report_options(parser: argparse.ArgumentParser) -> None:
    from ovseg.commands.report import declare

    declare(parser)


def _report(options: argparse.Namespace) -> int:
    from ovseg.commands.report import run

    return run(options)


def _compare_options(parser: argparse.ArgumentParser) -> None:
    from ovseg.commands.compare import declare

    declare(parser)


def _compare(options: argparse.Namespace) -> int:
    from ovseg.commands.compare import run

    return run(options)


# ------------------------------------------------------------------------------------------------------------------ train


def _train_options(parser: argparse.ArgumentParser) -> None:
    from ovseg.commands.train import declare

    declare(parser)


def _train(options: argparse.Namespace) -> int:
    from ovseg.commands.train import run

    return run(options)


_COMMANDS: dict[str, tuple[Callable[[argparse.ArgumentParser], None], Callable[[argparse.Namespace], int], str]] = {
    "segment": (_segment_options, _segment, "Say which word every pixel is."),
    "classify": (_classify_options, _classify, "Say which word the whole image shows."),
    "models": (_models_options, _models, "List the models, their licence and scores."),
    "benchmark": (_benchmark_options, _benchmark, "Measure time and memory, side by side with what else one could use."),
    "eval": (_eval_options, _eval, "Measure mIoU, or calibrate the scores, on a folder of images and label maps."),
    "train": (_train_options, _train, "Train a model with masks, strokes, clicks, boxes or tags."),
    "report": (_report_options, _report, "Count the labels in a folder of results: pixels, areas, regions."),
    "compare": (_compare_options, _compare, "Say how two results, or two folders of them, differ."),
}

_GROUPS: dict[str, tuple[str, dict[str, tuple[str, str]]]] = {
    "check": (
        "Measure on your own image how far results can be relied on.",
        {"tiles": ("ovseg.commands.check_tiles", "seams of tiles, tiles against the whole, and labels after a shift of the image")},
    ),
    "export": (
        "Make files that run without torch, and check them.",
        {
            "onnx": ("ovseg.export.onnx", "a folder for onnxruntime, of a model"),
            "check": ("ovseg.export.check", "whether an exported folder still computes what it did"),
            "tensorrt": ("ovseg.export.tensorrt", "an engine for this machine's NVIDIA GPU, of an exported folder"),
        },
    ),
    "convert": (
        "Turn a published checkpoint into a folder that can be loaded.",
        {
            "lseg": ("ovseg.export.lseg", "LSeg's Lightning checkpoint"),
            "radio": ("ovseg.export.radio", "NVIDIA's C-RADIO checkpoint and SigLIP 2's text tower"),
            "dinotxt": ("ovseg.export.dinotxt", "Meta's files of dino.txt"),
        },
    ),
}
"""Commands of two words: the module of each offers `declare(parser)` and `run(options) -> str`."""


if __name__ == "__main__":
    sys.exit(main())
