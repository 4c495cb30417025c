"""The command line: `ovseg segment IMAGE... LABEL...` and its sisters. The only module that prints."""

from __future__ import annotations

import argparse
import json
import logging
import os
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ovseg.errors import InvalidArgumentError, InvalidImageError, InvalidLabelsError, OvsegError

if TYPE_CHECKING:
    from ovseg.result import Segmentation
    from ovseg.segmenter import Segmenter

FORMATS = ("overlay", "png", "json", "geojson", "npz")
_BAR = 28  # characters of the longest bar in a table


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a command and return its exit status: 0 done, 1 a failure that was reported, 2 wrong usage."""
    arguments = list(sys.argv[1:] if arguments is None else arguments)
    if not arguments or arguments[0] in ("-h", "--help"):
        print(_overview())
        return 0 if arguments else 2
    if arguments[0] in ("-V", "--version"):
        from ovseg import __version__

        print(f"ovseg {__version__}")
        return 0
    name, *rest = arguments
    if name not in _COMMANDS:
        print(f"ovseg: unknown command {name!r}. Commands: {', '.join(_COMMANDS)}. A picture: ovseg segment IMAGE LABEL...", file=sys.stderr)
        return 2
    declare, run, summary = _COMMANDS[name]
    parser = argparse.ArgumentParser(prog=f"ovseg {name}", description=summary)
    declare(parser)
    parser.add_argument("-v", "--verbose", action="store_true", help="log what happens, and show where errors come from")
    options = parser.parse_intermixed_args(rest)  # options may stand between images and labels
    logging.basicConfig(level=logging.INFO if options.verbose else logging.ERROR, format="%(name)s: %(message)s")
    try:
        return run(options)
    except OvsegError as error:
        if options.verbose:
            raise
        print(f"ovseg: {error}", file=sys.stderr)
        return 1
    except BrokenPipeError:
        sys.stderr.close()
        return 1
    except KeyboardInterrupt:
        return 130


def _overview() -> str:
    lines = ["usage: ovseg COMMAND ...", "", "Open-vocabulary segmentation: an image and words in, a label for every pixel out.", ""]
    lines += [f"  {name:10} {summary}" for name, (_, _, summary) in _COMMANDS.items()]
    return "\n".join([*lines, "", "ovseg COMMAND --help says more. For example: ovseg segment beach.jpg sky grass sand"])


def _model_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("-m", "--model", default="mini", help="a name that `ovseg models` lists (mini)")
    parser.add_argument("--backend", choices=("onnx", "torch"), help="runtime (onnx)")
    parser.add_argument("--device", help="cpu, cuda, ... (a GPU if there is one)")
    parser.add_argument("--dtype", choices=("float32", "float16", "bfloat16"), help="precision, with --backend torch")
    parser.add_argument("--threads", type=int, help="CPU threads")


def _word_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("words", nargs="*", metavar="IMAGE... LABEL...", help="files or URLs, then words; 'grass; lawn' gives synonyms")
    parser.add_argument("--labels", type=Path, metavar="FILE", help="read the labels from a file, one a line, synonyms after ';'")
    parser.add_argument("--templates", action="append", metavar="SET", help="a template set, or a sentence with {}; may repeat")


def _load(options: argparse.Namespace) -> Segmenter:
    from ovseg.segmenter import load

    return load(options.model, backend=options.backend, device=options.device, dtype=options.dtype, threads=options.threads)


def _split_words(options: argparse.Namespace) -> tuple[list[str], Any]:
    """Part the positional arguments into images and labels: images come first, and exist."""
    words: list[str] = options.words
    count = 0
    while count < len(words) and (words[count].startswith(("http://", "https://")) or os.path.lexists(words[count])):
        count += 1
    images, labels = words[:count], words[count:]
    if not images:
        if not words:
            raise InvalidArgumentError("No image was given. For example: ovseg segment beach.jpg sky grass sand")
        raise InvalidImageError(f"No such file: {words[0]!r}. Images come first, then labels.")
    if options.labels is not None:
        if labels:
            raise InvalidArgumentError(f"Labels come from {options.labels} and from the command line ({labels[0]!r}). Give one.")
        return images, options.labels
    if not labels:
        raise InvalidLabelsError("No labels were given. Name what to look for: ovseg segment beach.jpg sky grass sand")
    return images, [tuple(w.strip() for w in label.split(";")) if ";" in label else label for label in labels]


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
    parser.add_argument("--window", choices=("whole", "sliding"), help="see the image at once or by windows (whole)")
    parser.add_argument("-q", "--quiet", action="store_true", help="print no table")
    _model_options(parser)


def _segment(options: argparse.Namespace) -> int:
    images, labels = _split_words(options)
    if len(images) > 1 and options.overlay:
        raise InvalidArgumentError("--overlay names one file, but there are several images. Use -o FOLDER.")
    segmenter = _load(options)
    failed = 0
    for image in images:
        try:
            result = segmenter.segment(
                image,
                labels,
                templates=options.templates,
                background=options.background,
                threshold=options.threshold,
                size=options.size,
                window=options.window,
            )
            written = _write(result, image, options, alone=len(images) == 1)
        except InvalidImageError as error:
            failed += 1
            print(f"ovseg: {error}", file=sys.stderr)
            continue
        if not options.quiet:
            print(_coverage_table(image, result))
        for path in written:
            print(f"wrote {path}")
    return 1 if failed else 0


def _write(result: Segmentation, image: str, options: argparse.Namespace, *, alone: bool) -> list[Path]:
    """Write what the options ask for; nothing asked for means an overlay in the current folder."""
    from ovseg.image import image_name

    name = image_name(image) or "image"
    stem = Path(name).stem or "image"
    jobs: list[tuple[str, Path]] = []
    if options.overlay:
        jobs.append(("overlay", options.overlay))
    if options.output is not None and alone and options.output.suffix and not options.output.is_dir():
        if options.format:
            raise InvalidArgumentError(f"--format is for a folder; the suffix of {options.output} says the format already.")
        jobs.append(("file", options.output))
    elif options.output is not None or not options.overlay:
        folder = options.output or Path()
        folder.mkdir(parents=True, exist_ok=True)
        for kind in options.format or ["overlay"]:
            jobs.append((kind, folder / (f"{stem}.overlay.png" if kind == "overlay" else f"{stem}.{kind}")))
    for kind, path in jobs:
        if kind == "overlay":
            _write_picture(result, path)
        else:
            result.save(path, file_name=name)
    return [path for _, path in jobs]


def _write_picture(result: Segmentation, path: Path) -> None:
    from ovseg.output.files import write_atomically

    formats = {".png": "PNG", ".jpg": "JPEG", ".jpeg": "JPEG", ".webp": "WEBP"}
    kind = formats.get(path.suffix.lower())
    if kind is None:
        raise InvalidArgumentError(f"An overlay is a picture: {', '.join(formats)}; got {path.name!r}.")
    picture = result.overlay()
    with write_atomically(path) as file:
        picture.save(file, kind)


def _coverage_table(image: str, result: Segmentation) -> str:
    """Draw a bar for each label, largest first."""
    coverage = result.coverage()
    undecided = 1 - sum(coverage.values())
    rows = sorted(coverage.items(), key=lambda item: -item[1])
    if undecided > 1e-9:
        rows.append(("(undecided)", undecided))
    return f"{image}  {result.segmentation.shape[1]} x {result.segmentation.shape[0]}\n" + _bars(rows)


def _bars(rows: Sequence[tuple[str, float]]) -> str:
    width = max(len(label) for label, _ in rows)
    largest = max([share for _, share in rows] + [1e-9])
    return "\n".join(
        f"  {label:{width}}  {100 * share:5.1f} %  {'█' * round(_BAR * share / largest)}".rstrip() for label, share in rows
    )


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
    parser.add_argument("--json", action="store_true", help="print JSON")


def _models(options: argparse.Namespace) -> int:
    from ovseg.registry import cards

    rows = [
        {"name": c.name, "license": c.license, "megabytes": c.megabytes, "embed_dim": c.embed_dim, "scores": dict(c.scores)}
        for c in cards().values()
    ]
    if options.json:
        print(json.dumps(rows, indent=2))
        return 0
    print(f"{'name':16} {'licence of weights':20} {'size':>8}  scores")
    for row in rows:
        scores = ", ".join(f"{key} {value:g}" for key, value in row["scores"].items())  # type: ignore[attr-defined]
        print(f"{row['name']:16} {row['license']:20} {row['megabytes']:5g} MB  {scores}")
    return 0


# ------------------------------------------------------------------------------------------------------------------- eval


def _eval_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("folder", type=Path, nargs="+", help="folder with images/, labels/ and labels.txt (there or above)")
    parser.add_argument("--labels", type=Path, metavar="FILE", help="other names for the classes, in the order of labels.txt")
    parser.add_argument("--templates", action="append", metavar="SET", help="a template set, or a sentence with {}; may repeat")
    parser.add_argument("--size", type=_size, help="short side the network sees [px], or 'native'")
    parser.add_argument("--window", choices=("whole", "sliding"), help="see the image at once or by windows (whole)")
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
    "eval": (_eval_options, _eval, "Measure mIoU on a folder of images and label maps."),
}


if __name__ == "__main__":
    sys.exit(main())
