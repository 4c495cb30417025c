"""The command line: `ovseg segment IMAGE... LABEL...` and its sisters. The only module that prints."""

from __future__ import annotations

import argparse
import io
import json
import logging
import os
import sys
import unicodedata
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ovseg.errors import InvalidArgumentError, InvalidImageError, InvalidLabelsError, OutputError, OvsegError, UnknownModelError

if TYPE_CHECKING:
    from ovseg.result import Segmentation
    from ovseg.segmenter import Segmenter

FORMATS = ("overlay", "png", "json", "geojson", "npz")
_SUFFIX_OF = {"overlay": ".overlay.png", "png": ".png", "json": ".json", "geojson": ".geojson", "npz": ".npz"}
_PICTURES = {".png": "PNG", ".jpg": "JPEG", ".jpeg": "JPEG", ".webp": "WEBP"}
_IMAGE_SUFFIXES = {*_PICTURES, ".gif", ".bmp", ".tif", ".tiff", ".jp2", ".avif", ".heic", ".heif", ".ppm", ".ico", ".tga"}
_WINDOWS = ("whole", "sliding", "multiscale")
_BAR = 28  # characters of the longest bar in a table
_NAMED = 12  # labels that are named as not found


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
        print(module.run(options))
        return 0

    return _parse_and_run(f"{name} {kind}", rest, module.declare, run, f"{summary} Here: {kinds[kind][1]}.")


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
        return run(options)
    except OvsegError as error:
        if options.verbose:
            raise
        print(f"ovseg: {error}", file=sys.stderr)
        return 2 if isinstance(error, (InvalidArgumentError, InvalidLabelsError, UnknownModelError)) else 1


def _overview() -> str:
    lines = ["usage: ovseg COMMAND ...", "", "Open-vocabulary segmentation: an image and words in, a label for every pixel out.", ""]
    lines += [f"  {name:10} {summary}" for name, (_, _, summary) in _COMMANDS.items()]
    lines += [f"  {name:10} {summary}" for name, (summary, _) in _GROUPS.items()]
    return "\n".join([*lines, "", "ovseg COMMAND --help says more. For example: ovseg segment beach.jpg sky grass sand"])


def _model_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("-m", "--model", default="mini", help="a name that `ovseg models` lists, hf-hub:OWNER/NAME, or a folder (mini)")
    parser.add_argument("--backend", choices=("onnx", "torch", "tensorrt"), help="runtime (what the model runs with)")
    parser.add_argument("--device", help="cpu, cuda, ... (a GPU if there is one)")
    parser.add_argument("--dtype", choices=("float32", "float16", "bfloat16"), help="precision, with --backend torch")
    parser.add_argument("--threads", type=int, help="CPU threads")
    parser.add_argument("--compile", action="store_true", help="torch.compile: faster on a GPU, after a minute")
    parser.add_argument("--readout", help="how dense features are read out of a CLIP or TIPS tower: naclip, maskclip, ... (the card's)")
    parser.add_argument("--proxy", metavar="TIMM", help="network that gives the attention, with --readout proxyclip")
    parser.add_argument("--weights", action="append", metavar="FILE", help="your own .safetensors; may repeat; 'random' to measure speed")
    parser.add_argument("--revision", help="branch, tag or commit in the hub")
    parser.add_argument("--cache-dir", metavar="DIR", help="where downloads are kept (HF_HOME)")
    parser.add_argument("--local-files-only", action="store_true", help="use only what was downloaded before")


def _word_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("words", nargs="*", metavar="IMAGE... LABEL...", help="files or URLs, then words; 'grass; lawn' gives synonyms")
    parser.add_argument("--labels", type=Path, metavar="FILE", help="read the labels from a file, one a line, synonyms after ';'")
    parser.add_argument("--templates", action="append", metavar="SET", help="a template set, or a sentence with {}; may repeat")


def _load(options: argparse.Namespace) -> Segmenter:
    from ovseg.segmenter import load

    weights = options.weights[0] if options.weights is not None and len(options.weights) == 1 else options.weights
    return load(
        options.model,
        backend=options.backend,
        device=options.device,
        dtype=options.dtype,
        threads=options.threads,
        compile=options.compile,
        readout=options.readout,
        proxy=options.proxy,
        weights=weights,
        revision=options.revision,
        cache_dir=options.cache_dir,
        local_files_only=options.local_files_only,
    )


def _split_words(options: argparse.Namespace) -> tuple[list[str], Any]:
    """Part the positional arguments into images and labels: images come first, and exist."""
    words: list[str] = options.words
    count = 0
    while count < len(words) and _is_image(words[count]):
        count += 1
    images, labels = words[:count], words[count:]
    if not words:
        raise InvalidArgumentError("No image was given. For example: ovseg segment beach.jpg sky grass sand")
    strays = [label for label in labels if Path(label).suffix.lower() in _IMAGE_SUFFIXES] if images else words[:1]
    for word in strays:
        if os.path.isdir(word):
            raise InvalidImageError(f"{word!r} is a folder. Name the images in it: {os.path.join(word, '*.jpg')}")
        if _is_image(word):
            raise InvalidArgumentError(f"{word!r} is an image and stands after the label {labels[0]!r}. Images come first, then labels.")
        raise InvalidImageError(f"No such file: {word!r}. Images come first, then labels.")
    if options.labels is not None:
        if labels:
            raise InvalidArgumentError(f"Labels come from {options.labels} and from the command line ({labels[0]!r}). Give one.")
        return images, options.labels
    if not labels:
        raise InvalidLabelsError("No labels were given. Name what to look for: ovseg segment beach.jpg sky grass sand")
    return images, _split_synonyms(labels)


def _is_image(word: str) -> bool:
    """Tell an image from a label. A folder is none: folders are often named like what their images show."""
    from ovseg.fetch import is_url

    return is_url(word) or (os.path.lexists(word) and not os.path.isdir(word))


def _split_synonyms(words: Sequence[str]) -> list[str | tuple[str, ...]]:
    return [tuple(part.strip() for part in word.split(";") if part.strip()) if ";" in word else word for word in words]


def _size(text: str) -> int | str:
    if text == "native":
        return text
    try:
        return int(text)
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text!r} is neither a number of pixels nor 'native'") from None


# ---------------------------------------------------------------------------------------------------------------- segment


def _segment_options(parser: argparse.ArgumentParser) -> None:
    _word_options(parser)
    parser.add_argument("-o", "--output", type=Path, metavar="OUT", help="file (.png .json .geojson .npz) or folder")
    parser.add_argument("--overlay", type=Path, metavar="FILE", help="write the overlay of one image there")
    parser.add_argument("--format", action="append", choices=FORMATS, help="what to write into the folder (overlay); may repeat")
    parser.add_argument("--background", action="append", metavar="WORD", help="word for everything else; may repeat")
    parser.add_argument("--threshold", type=float, help="pixels with a lower best score stay undecided, 0 to 1")
    parser.add_argument("--size", type=_size, help="short side the network sees [px], or 'native'")
    parser.add_argument("--window", choices=_WINDOWS, help="see the image at once, by windows, or at many scales (the model's own)")
    parser.add_argument("-q", "--quiet", action="store_true", help="print no table")
    _model_options(parser)


def _segment(options: argparse.Namespace) -> int:
    images, labels = _split_words(options)
    jobs = _plan(images, options)
    background = _split_synonyms(options.background) if options.background else None
    segmenter = _load(options)
    failed = 0
    for image, files in zip(images, jobs, strict=True):
        try:
            result = segmenter.segment(
                image,
                labels,
                templates=options.templates,
                background=background,
                threshold=options.threshold,
                size=options.size,
                window=options.window,
            )
        except InvalidImageError as error:
            failed += 1
            print(f"ovseg: {error}", file=sys.stderr)
            continue
        if not options.quiet:
            print(_coverage_table(image, result))
        for kind, path in files:
            _write(result, image, kind, path)
            print(f"wrote {path}")
    if failed < len(images) and len(result.labels) == 1 and not background:
        print("ovseg: one label alone gets every pixel. Name its rivals too, or a --background.", file=sys.stderr)
    return 1 if failed else 0


def _plan(images: Sequence[str], options: argparse.Namespace) -> list[list[tuple[str, Path]]]:
    """Decide for each image what to write where, and make the folder; nothing asked for means an overlay in the current one."""
    alone, output, overlay = len(images) == 1, options.output, options.overlay
    is_file = output is not None and bool(output.suffix) and not output.is_dir()
    if overlay is not None and not alone:
        raise InvalidArgumentError("--overlay names one file, but there are several images. Use -o FOLDER.")
    if overlay is not None and overlay.suffix.lower() not in _PICTURES:
        raise InvalidArgumentError(f"An overlay is a picture: {', '.join(_PICTURES)}; got {overlay.name!r}.")
    if is_file and output.suffix.lower() in _PICTURES.keys() - {".png"}:
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
            plan += [(kind, (output or Path()) / f"{_stem(image)}{_SUFFIX_OF[kind]}") for kind in kinds]
        plans.append(plan)
    _check_targets(images, plans)
    if output is not None and not is_file:
        _make_folder(output)
    return plans


def _stem(image: str) -> str:
    from ovseg.image import image_name

    return Path(image_name(image) or "image").stem


def _check_targets(images: Sequence[str], plans: Sequence[Sequence[tuple[str, Path]]]) -> None:
    """Refuse to write one file twice, or over an image."""
    inputs = {os.path.realpath(image): image for image in images}
    targets: dict[str, str] = {}
    for image, plan in zip(images, plans, strict=True):
        for _, path in plan:
            real = os.path.realpath(path)
            if real in inputs:
                raise InvalidArgumentError(f"The result of {image} would overwrite the image {inputs[real]}. Choose another -o.")
            if real in targets:
                raise InvalidArgumentError(f"{path} would be written twice, for {targets[real]} and for {image}. Choose another -o.")
            targets[real] = image


def _write(result: Segmentation, image: str, kind: str, path: Path) -> None:
    if kind == "overlay":
        _write_picture(result, path)
    else:
        from ovseg.image import image_name

        result.save(path, file_name=image_name(image) if path.suffix.lower() == ".json" else None)


def _make_folder(folder: Path) -> None:
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise OutputError(f"Cannot make the folder {str(folder)!r}: {error.strerror}.") from error


def _write_picture(result: Segmentation, path: Path) -> None:
    from ovseg.output.files import write_atomically

    picture = result.overlay()
    try:
        with write_atomically(path) as file:
            picture.save(file, _PICTURES[path.suffix.lower()])
    except ValueError as error:  # WebP takes at most 16,383 pixels a side
        raise OutputError(f"Cannot write {str(path)!r}: {error}.") from error


def _coverage_table(image: str, result: Segmentation) -> str:
    """Draw a bar for each label that was found, largest first, and name those that were not."""
    height, width = result.segmentation.shape
    coverage = result.coverage()
    rows = sorted(((label, share) for label, share in coverage.items() if share > 0), key=lambda row: -row[1])
    undecided = 1 - sum(coverage.values())
    if undecided > 1e-9:
        rows.append(("(undecided)", undecided))
    lines = [f"{image}  {width} x {height}", _bars(rows)]
    missing = [label for label, share in coverage.items() if share == 0]
    if missing:
        more = f" and {len(missing) - _NAMED} more" if len(missing) > _NAMED else ""
        lines.append(f"  not found: {', '.join(missing[:_NAMED])}{more}")
    return "\n".join(lines)


def _bars(rows: Sequence[tuple[str, float]]) -> str:
    from ovseg.output.legend import format_share

    column = max(_columns(label) for label, _ in rows)
    largest = max(share for _, share in rows)
    return "\n".join(
        f"  {label}{' ' * (column - _columns(label))}  {format_share(share):>6}  {'█' * round(_BAR * share / largest)}".rstrip()
        for label, share in rows
    )


def _columns(text: str) -> int:
    """Count the columns a text takes in a terminal: wide characters take two, combining ones none."""
    wide = sum(unicodedata.east_asian_width(character) in "WF" for character in text)
    return len(text) + wide - sum(unicodedata.category(character) in ("Mn", "Me", "Cf") for character in text)


# --------------------------------------------------------------------------------------------------------------- classify


def _classify_options(parser: argparse.ArgumentParser) -> None:
    _word_options(parser)
    parser.add_argument("--top", type=int, default=5, help="how many labels to show (5)")
    parser.add_argument("--json", action="store_true", help="print JSON, one object a line")
    _model_options(parser)


def _classify(options: argparse.Namespace) -> int:
    images, labels = _split_words(options)
    segmenter = _load(options)
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
            print(f"{image}\n{_bars(top)}")
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
    parser.add_argument("folder", type=Path, nargs="+", help="folder with images/, labels/ and labels.txt (there or above)")
    parser.add_argument("--labels", type=Path, metavar="FILE", help="other names for the classes, in the order of labels.txt")
    parser.add_argument("--templates", action="append", metavar="SET", help="a template set, or a sentence with {}; may repeat")
    parser.add_argument("--size", type=_size, help="short side the network sees [px], or 'native'")
    parser.add_argument("--window", choices=_WINDOWS, help="see the image at once, by windows, or at many scales (the model's own)")
    parser.add_argument("--limit", type=int, metavar="N", help="evenly spaced images to use")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the result there")
    _model_options(parser)


def _eval(options: argparse.Namespace) -> int:
    from ovseg.evaluation.datasets import Dataset
    from ovseg.evaluation.evaluate import evaluate
    from ovseg.output.files import write_atomically

    datasets = [Dataset.open(folder, labels=options.labels) for folder in options.folder]
    segmenter = _load(options)
    results = []
    for dataset in datasets:
        result = evaluate(
            segmenter, dataset, templates=options.templates, window=options.window, size=options.size, limit=options.limit
        )
        results.append(result)
        print(result.format_table())
    if options.json:
        content = [result.as_dict() for result in results]
        with write_atomically(options.json) as file:
            file.write(json.dumps(content[0] if len(content) == 1 else content, indent=2).encode())
    return 0


_COMMANDS: dict[str, tuple[Callable[[argparse.ArgumentParser], None], Callable[[argparse.Namespace], int], str]] = {
    "segment": (_segment_options, _segment, "Say which word every pixel is."),
    "classify": (_classify_options, _classify, "Say which word the whole image shows."),
    "models": (_models_options, _models, "List the models, their licence and scores."),
    "benchmark": (_benchmark_options, _benchmark, "Measure time and memory, side by side with what else one could use."),
    "eval": (_eval_options, _eval, "Measure mIoU on a folder of images and label maps."),
}

_GROUPS: dict[str, tuple[str, dict[str, tuple[str, str]]]] = {
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
