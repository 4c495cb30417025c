"""The command line: `ovseg segment IMAGE... LABEL...` and its sisters. With `commands/`, the only modules that print."""

from __future__ import annotations

import argparse
import io
import logging
import os
import sys
import warnings
from collections.abc import Sequence
from importlib import import_module
from typing import TextIO

from ovseg.errors import InvalidArgumentError, InvalidLabelsError, OvsegError, UnknownModelError


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
    module, summary = _COMMANDS[name]
    return _parse_and_run(name, rest, module, summary)


def _run_group(name: str, arguments: list[str]) -> int:
    """Run a command of two words."""
    summary, kinds = _GROUPS[name]
    if not arguments or arguments[0] in ("-h", "--help") or arguments[0] not in kinds:
        lines = [f"usage: ovseg {name} {{{','.join(kinds)}}} ...", "", summary, ""]
        lines += [f"  {kind:10} {what}" for kind, (_, what) in kinds.items()]
        asked = bool(arguments) and arguments[0] in ("-h", "--help")
        print("\n".join(lines), file=sys.stdout if asked else sys.stderr)
        return 0 if asked else 2
    kind, *rest = arguments
    module, what = kinds[kind]
    return _parse_and_run(f"{name} {kind}", rest, module, f"{summary} Here: {what}.")


def _parse_and_run(name: str, rest: list[str], module: str, summary: str) -> int:
    """Run a command whose module offers `declare(parser)`, and `run(options)`, which returns the exit status or what is to be printed."""
    command = import_module(module)
    parser = argparse.ArgumentParser(prog=f"ovseg {name}", description=summary)
    command.declare(parser)
    parser.add_argument("-v", "--verbose", action="store_true", help="log what happens, and show where errors come from")
    options = parser.parse_intermixed_args(rest)  # options may stand between images and labels
    logging.basicConfig(level=logging.INFO if options.verbose else logging.WARNING, format="%(name)s: %(message)s")
    try:
        with warnings.catch_warnings():
            warnings.showwarning = _show_warning
            outcome: int | str = command.run(options)
            if isinstance(outcome, int):
                return outcome
            print(outcome)
            return 0
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
    lines += [f"  {name:10} {summary}" for name, (_, summary) in _COMMANDS.items()]
    lines += [f"  {name:10} {summary}" for name, (summary, _) in _GROUPS.items()]
    return "\n".join([*lines, "", "ovseg COMMAND --help says more. For example: ovseg segment beach.jpg sky grass sand"])


_COMMANDS: dict[str, tuple[str, str]] = {
    "segment": ("ovseg.commands.segment", "Say which word every pixel is."),
    "classify": ("ovseg.commands.classify", "Say which word the whole image shows."),
    "models": ("ovseg.commands.models", "List the models, their licence and scores."),
    "benchmark": ("ovseg.evaluation.benchmark_command", "Measure time and memory, side by side with what else one could use."),
    "eval": ("ovseg.commands.evaluate", "Measure mIoU, or calibrate the scores, on a folder of images and label maps."),
    "train": ("ovseg.commands.train", "Train a model with masks, strokes, clicks, boxes or tags."),
    "report": ("ovseg.commands.report", "Count the labels in a folder of results: pixels, areas, regions."),
    "compare": ("ovseg.commands.compare", "Say how two results, or two folders of them, differ."),
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
"""Commands of two words."""


if __name__ == "__main__":
    sys.exit(main())
