"""Sky, grass and sand learned from image tags alone: `python -m ovseg.learn.tag_example --data DATA --teachers TEACHERS --out OUT`.

Photographs of single things are tagged with what is around the thing; nobody says where. The network is `mini` with the backbone of an
ImageNet classifier and a pyramid made anew, so nothing in it has seen a label of these words. What it learned is judged at clicks on
photographs that were held out: is a click on sky called sky, rather than grass, sand or something else?
"""

from __future__ import annotations

import argparse
import logging
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from ovseg.hints import Hints
from ovseg.image import load_image
from ovseg.learn.clicks import Clicks, read_clicks
from ovseg.learn.examples import read_examples
from ovseg.learn.objective import Objective
from ovseg.learn.table import fresh_mini
from ovseg.learn.train import Settings, train
from ovseg.learn.trainable import Trainable
from ovseg.similarity import Grid, label_map

WORDS = ("sky", "grass", "sand")
OTHER = "object"
"""The label of everything else; each photograph has some."""
HELD_OUT = 4
"""Every so many photographs one is held out."""
_SET = "imagenet/"

logger = logging.getLogger(__name__)


def tagged_photographs(data: Path) -> list[tuple[Path, Clicks]]:
    """Find the photographs that show sky, grass or sand, with the clicks on them."""
    found = []
    for entry in read_clicks():
        path = data / "imagenet_sample" / f"{entry.image.removeprefix(_SET)}.jpg"
        if entry.image.startswith(_SET) and set(entry.words) & set(WORDS) and path.is_file():
            found.append((path, entry))
    return found


def write_folder(photographs: list[tuple[Path, Clicks]], folder: Path) -> None:
    """Write a training folder: images, and hints that hold their tags and nothing else."""
    for name in ("images", "hints"):
        (folder / name).mkdir(parents=True, exist_ok=True)
    (folder / "labels.txt").write_text("\n".join([*WORDS, OTHER]), "utf-8")
    for path, entry in photographs:
        link = folder / "images" / path.name
        if not link.exists():
            link.symlink_to(path.resolve())
        Hints.tags([word for word in WORDS if word in entry.words] + [OTHER]).save(folder / "hints" / f"{path.stem}.json")


def score(model: Trainable, photographs: list[tuple[Path, Clicks]], size: int) -> NDArray[np.int64]:
    """Count the clicked pixels by their word and the model's answer: (4, 4), rows are sky, grass, sand and everything else."""
    text, owner = model.words([(word,) for word in (*WORDS, OTHER)])
    count = np.zeros((len(WORDS) + 1,) * 2, np.int64)
    for path, entry in photographs:
        image = load_image(path)
        fitted = model.input_size(image.shape[:2], size)
        parts = model.frozen(model.pixel_values(image, fitted))
        with torch.inference_mode():
            features = model.normalised(model.vectors(parts))[0].cpu().numpy()
        grid = Grid(features, (image.shape[0], image.shape[1]), (fitted[0] / model.card.stride, fitted[1] / model.card.stride))
        answer = label_map(grid, text.cpu().numpy(), owner.numpy(), model.card.logit_scale)
        truth = entry.label_map(*image.shape[:2])
        for index, word in enumerate(entry.words):
            row = WORDS.index(word) if word in WORDS else len(WORDS)
            count[row] += np.bincount(answer[truth == index], minlength=len(count))
    return count


def main() -> None:
    """Train, and log how the clicks were answered."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n\n")[0])
    parser.add_argument("--data", type=Path, required=True, help="folder with imagenet_sample")
    parser.add_argument("--teachers", type=Path, required=True, help="folder with the ImageNet network")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--steps", type=int, default=200)
    parser.add_argument("--size", type=int, default=224)
    parser.add_argument("--pooling", default="rank")
    parser.add_argument("--crf", type=float, default=0.0)
    parser.add_argument("--entropy", type=float, default=0.0)
    parser.add_argument("--threads", type=int, default=1)
    options = parser.parse_args()
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    torch.set_num_threads(options.threads)
    photographs = tagged_photographs(options.data)
    judged = photographs[::HELD_OUT]
    write_folder([one for i, one in enumerate(photographs) if i % HELD_OUT], options.out / "data")
    examples = read_examples(options.out / "data")
    weights = {name: value for name, value in (("crf", options.crf), ("entropy", options.entropy)) if value > 0}
    settings = Settings(
        Objective(weights, pooling=options.pooling), steps=options.steps, size=options.size, rate=2e-3, dtype="bfloat16"
    )
    model = fresh_mini(examples, options.teachers, settings)
    train(model, examples, options.out / "run", settings, cache=options.out / "frozen")
    count = score(model, judged, options.size)
    logger.info("%d photographs with tags, %d judged; rows: what was clicked, columns: what it was called [%%]", len(examples), len(judged))
    logger.info("%-8s%8s%8s%8s%8s", "", *WORDS, OTHER)
    for word, row in zip((*WORDS, "other"), 100 * count / np.maximum(count.sum(1, keepdims=True), 1), strict=True):
        logger.info("%-8s%8.1f%8.1f%8.1f%8.1f", word, *row)
    three = count[: len(WORDS), : len(WORDS)]
    logger.info("sky, grass and sand told apart where called one of them: %.1f %%", 100 * np.trace(three) / max(three.sum(), 1))


if __name__ == "__main__":
    main()
