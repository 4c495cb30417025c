"""`ovseg train DATASET -o OUT`: train a model with masks, strokes, clicks, boxes or tags."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING

from ovseg.errors import InvalidArgumentError, MissingDependencyError, OutputError

if TYPE_CHECKING:
    from ovseg.learn.train import Settings
    from ovseg.learn.trainable import Trainable

MODEL_FOLDER = "model"
"""Where in OUT the trained model is."""


def declare(parser: argparse.ArgumentParser) -> None:
    """Declare the options."""
    parser.add_argument("folder", type=Path, help="images/, labels.txt, and labels/ or hints/; with --table, train/ and test/")
    parser.add_argument("-o", "--output", type=Path, required=True, metavar="OUT", help="folder for the model; a killed run goes on")
    parser.add_argument("-m", "--model", default="mini", help="the model to begin with (mini)")
    parser.add_argument("--weights", metavar="FILE", help="weights to begin with, .safetensors")
    parser.add_argument("--train", choices=("head", "all"), default="head", help="what changes: the light last part, or everything (head)")
    parser.add_argument(
        "--supervision", default="full", metavar="KIND", help="full (labels/ as they are, 255 says nothing), or made from full masks: "
        "scribbles, clicks, boxes, tags; or a mix, such as full=0.1,scribbles=0.6,tags=0.3"
    )  # fmt: skip
    parser.add_argument("--share", type=float, default=0.03, help="part of the pixels that made scribbles cover (0.03)")
    parser.add_argument(
        "--loss", action="append", metavar="NAME=WEIGHT", help="crf, potts, entropy, cluster, graph, keep (off unless given); pce, tags, "
        "boxes (1); may repeat. For scribbles: --loss crf=2"
    )  # fmt: skip
    parser.add_argument("--sigma-xy", type=float, default=8.0, help="distance of pixels that are near, for crf and cluster [px] (8)")
    parser.add_argument("--sigma-rgb", type=float, default=10.0, help="difference of colours that is small, of 255 (10)")
    parser.add_argument("--pooling", default="rank", help="how a tag looks at pixels: max, log-sum-exp, noisy-or, rank (rank)")
    parser.add_argument("--steps", type=int, default=600, help="batches (600)")
    parser.add_argument("--warmup", type=int, help="batches before the losses that need no labels begin; the rate rises anew (a third)")
    parser.add_argument("--batch", type=int, default=4, help="images of a batch (4)")
    parser.add_argument("--rate", type=float, help="learning rate (1e-3 for a head, 1e-5 for everything)")
    parser.add_argument("--size", type=int, help="short side the network sees [px] (the model's own)")
    parser.add_argument("--device", help="cpu, cuda, ... (a GPU if there is one)")
    parser.add_argument("--dtype", choices=("float32", "bfloat16"), default="float32", help="bfloat16 is mixed precision (float32)")
    parser.add_argument("--threads", type=int, help="CPU threads")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--save-every", type=int, default=50, metavar="N", help="batches between two checkpoints (50)")
    parser.add_argument("--no-cache", action="store_true", help="compute the frozen features anew each time, to save disk")
    parser.add_argument("--table", action="store_true", help="train the six rows of the table of regularised losses and print it")
    parser.add_argument("--teachers", type=Path, metavar="DIR", help="with --table: begin with the plain ImageNet network in this folder")
    parser.add_argument("--split", default="test", help="with --table: the folder that is scored (test)")


def run(options: argparse.Namespace) -> int:
    """Train, write the model and say how to use it."""
    try:
        import torch
    except ImportError as error:
        raise MissingDependencyError("Training needs torch: pip install 'ovseg[torch]'") from error
    from ovseg.learn.objective import Objective
    from ovseg.learn.train import Settings

    if options.threads is not None:
        torch.set_num_threads(options.threads)
    settings = Settings(
        objective=Objective(parse_weights(options.loss or []), options.sigma_xy, options.sigma_rgb, options.pooling),
        steps=options.steps,
        warmup=options.warmup,
        batch=options.batch,
        rate=options.rate,
        size=options.size,
        seed=options.seed,
        dtype=options.dtype,
        save_every=options.save_every,
    )
    return _table(options, settings) if options.table else _train(options, settings)


def _train(options: argparse.Namespace, settings: Settings) -> int:
    from ovseg.learn.examples import read_examples
    from ovseg.learn.train import train
    from ovseg.learn.trainable import Trainable

    folder = options.output / MODEL_FOLDER
    if options.teachers is not None:
        raise InvalidArgumentError("--teachers belongs to --table.")
    if folder.exists():
        raise OutputError(f"{folder} holds a trained model already. Name another -o, or remove it.")
    examples = read_examples(options.folder, parse_supervision(options.supervision), seed=options.seed, share=options.share)
    model = Trainable(options.model, part=options.train, weights=options.weights, device=options.device)
    count = sum(parameter.numel() for parameter in model.trained().values())
    print(f"{len(examples)} images; {count / 1e6:.2f} million parameters of {model.card.name} change")
    means = train(model, examples, options.output, settings, cache=None if options.no_cache else options.output / "frozen")
    _write(model, options, folder)
    print("  ".join(f"{name} {value:.4f}" for name, value in means.items()))
    print(f"wrote {folder}: ovseg.load({str(folder)!r}); ovseg eval DATASET -m {folder}")
    return 0


def _write(model: Trainable, options: argparse.Namespace, folder: Path) -> None:
    """Write a folder that `ovseg.load` takes."""
    import dataclasses
    from importlib import import_module

    write_model = import_module("ovseg.export.checkpoints").write_model
    card = model.card
    name = card.name if card.name.endswith("-trained") else f"{card.name}-trained"
    text = f"\n# {name}\n\n{card.name}, trained by `ovseg train {options.folder} --supervision {options.supervision}`.\n"
    preprocess = dict(card.preprocess)
    if options.size is not None and "square" not in preprocess:
        preprocess["short_side"] = options.size  # it sees images as it saw them in training
    write_model(folder, model.state(), dataclasses.replace(card, name=name, scores={}, text=text, preprocess=preprocess), model.other_files)


def _table(options: argparse.Namespace, settings: Settings) -> int:
    from ovseg.learn.table import format_table, lecture_table

    if options.loss or options.weights or options.model != "mini" or options.train != "head":
        raise InvalidArgumentError("--table trains the head of mini with losses of its own: leave out --loss, --weights, -m and --train.")
    rows = lecture_table(
        options.folder,
        options.output,
        teachers=options.teachers,
        settings=settings,
        supervision="scribbles" if options.supervision == "full" else options.supervision,
        share=options.share,
        split=options.split,
    )
    print(format_table(rows))
    return 0


def parse_weights(words: list[str]) -> dict[str, float]:
    """Read NAME=WEIGHT, as often as it comes.

    Raises:
        InvalidArgumentError: If one is something else.
    """
    return {name: value for word in words for name, value in _pairs(word, "--loss")}


def parse_supervision(text: str) -> str | dict[str, float]:
    """Read the value of --supervision: a kind, or kinds with their parts.

    Raises:
        InvalidArgumentError: If it is neither.
    """
    return text if "=" not in text else dict(_pairs(text, "--supervision"))


def _pairs(text: str, option: str) -> list[tuple[str, float]]:
    found = []
    for word in text.split(","):
        name, _, value = word.partition("=")
        try:
            found.append((name.strip(), float(value)))
        except ValueError:
            raise InvalidArgumentError(f"{option} wants NAME=NUMBER; got {word!r}.") from None
    return found
