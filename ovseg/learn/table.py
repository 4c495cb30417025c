"""The table of regularised losses (Tang et al., ECCV 2018, table 1): what scribbles keep of full masks, on any dataset.

`mini` starts without anything that has seen a label: its pyramid is made anew, and with `teachers` its backbone is the plain ImageNet
network. The backbone stays frozen. Every row has the same number of steps; the scribble rows share their first phase, in which all of them
are the same.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import torch

from ovseg.errors import InvalidArgumentError
from ovseg.evaluation.metrics import ConfusionMatrix
from ovseg.learn.examples import Example, read_examples
from ovseg.learn.objective import Objective
from ovseg.learn.supervision import SHARE, SIMULATED
from ovseg.learn.train import FeatureStore, Settings, branch, train
from ovseg.learn.trainable import Trainable, standardise, start_anew
from ovseg.models.mini import MiniNetwork
from ovseg.output.files import write_atomically
from ovseg.similarity import Grid, label_map

ROWS: Mapping[str, tuple[str, Mapping[str, float]]] = {
    "full": ("full", {}),
    "PCE": ("scribbles", {}),
    "PCE+CRF": ("scribbles", {"crf": 2.0}),
    "PCE+ENT": ("scribbles", {"entropy": 0.3}),
    "PCE+CRF+ENT": ("scribbles", {"crf": 2.0, "entropy": 0.1}),
    "PCE+CRF+ENT+cluster": ("scribbles", {"crf": 2.0, "entropy": 0.1, "cluster": 0.03}),
}
"""Name of a row -> its supervision and the weights of its regularisers, chosen on CamVid val together with the sigmas of `Objective`."""
_SHARED = "first-phase"
_MEASURED = 8  # images by which the scale of the frozen features is measured


@dataclass(frozen=True)
class Row:
    """What one kind of training reached.

    Attributes:
        name: Of `ROWS`.
        mean_iou: mIoU on the test images [%].
        pixel_accuracy: Part of their pixels that are right [%].
        kept: `mean_iou` as a part of that of full masks [%].
        gap_closed: How much of the way from "PCE" to "full" it went [%]; NaN for these two.
    """

    name: str
    mean_iou: float
    pixel_accuracy: float
    kept: float
    gap_closed: float


def lecture_table(
    data: Path,
    out: Path,
    *,
    teachers: Path | None = None,
    settings: Settings | None = None,
    rows: Sequence[str] = tuple(ROWS),
    supervision: str = "scribbles",
    share: float = SHARE,
    split: str = "test",
    limit: int | None = None,
    weights: Mapping[str, Mapping[str, float]] | None = None,
    progress: bool = True,
) -> list[Row]:
    """Train each row and score it. What is done already is not done again.

    Args:
        data: Folder with train/ and test/, each as `ovseg eval` takes it.
        out: Folder for checkpoints and frozen features.
        teachers: Folder with the ImageNet network that the backbone begins with; None for the backbone of `mini`, which has seen masks.
        settings: How to train; its losses are those of the rows.
        rows: Names of `ROWS`.
        supervision: One of `SIMULATED`: what takes the place of scribbles.
        share: Part of the pixels that scribbles cover.
        split: Folder that is scored: "test", or "val" to choose weights.
        limit: Images that are scored, evenly spread; None for all.
        weights: Row -> other weights for its regularisers.
        progress: Whether to show progress bars on stderr.

    Returns:
        The rows, in their order.
    """
    if unknown := [name for name in rows if name not in ROWS]:
        raise InvalidArgumentError(f"There is no row {unknown[0]!r}. There are {', '.join(ROWS)}.")
    if supervision not in SIMULATED:
        raise InvalidArgumentError(f"The table is made with one of {', '.join(SIMULATED)}; got {supervision!r}.")
    settings = settings or Settings()
    if settings.warmup is None:  # all rows have the same schedule, with regularisers or without
        settings = replace(settings, warmup=round(settings.steps / 3))
    judged = read_examples(data / split)
    if limit is not None:
        judged = judged[:: max(1, len(judged) // limit)]
    found = {}
    for name in rows:
        kind, regularisers = ROWS[name]
        given = (weights or {}).get(name, regularisers)
        own = replace(settings, objective=Objective(given))
        examples = read_examples(data / "train", "full" if kind == "full" else supervision, seed=settings.seed, share=share)
        model = fresh_mini(examples, teachers, settings)
        if kind != "full":
            plain = replace(settings, objective=Objective())
            train(model, examples, out / _SHARED, plain, cache=out / "frozen", until=own.phase, progress=progress)
            branch(out / _SHARED, out / name, model, examples, own)
        train(model, examples, out / name, own, cache=out / "frozen", progress=progress)
        found[name] = score(model, judged, settings.size, out / "frozen", progress=progress)
    full, plain_iou = found.get("full", (float("nan"),))[0], found.get("PCE", (float("nan"),))[0]
    table = []
    for name, (mean_iou, accuracy) in found.items():
        closed = float("nan") if name in ("full", "PCE") else 100 * (mean_iou - plain_iou) / (full - plain_iou)
        table.append(Row(name, mean_iou, accuracy, 100 * mean_iou / full, closed))
    with write_atomically(out / f"table-{split}.json") as file:
        file.write(json.dumps([vars(row) for row in table], indent=2).encode())
    return table


def format_table(rows: Sequence[Row]) -> str:
    """Format the rows as text to print."""
    lines = [f"{'supervision':22}{'mIoU':>8}{'pixels':>8}{'of full':>9}{'gap closed':>12}"]
    for row in rows:
        closed = "" if row.gap_closed != row.gap_closed else f"{row.gap_closed:.0f} %"
        lines.append(f"{row.name:22}{row.mean_iou:8.2f}{row.pixel_accuracy:8.2f}{row.kept:7.1f} %{closed:>12}")
    return "\n".join(lines)


def fresh_mini(examples: Sequence[Example], teachers: Path | None, settings: Settings) -> Trainable:
    """Load `mini` and forget all that its trained part knows.

    Args:
        examples: Images by which the scale of the frozen features is measured.
        teachers: Folder with the ImageNet network that the backbone begins with; None for the backbone of `mini`.
        settings: The seed and the size of the training.
    """
    model = Trainable("mini")
    network = model.network
    if not isinstance(network, MiniNetwork):
        raise InvalidArgumentError("The table is made with the network of `mini`.")
    if teachers is not None:
        from ovseg.learn.mini import load_classifier

        load_classifier(network, teachers)
    start_anew(network, settings.seed)
    images = [example.load_truth()[0] for example in examples[:: max(1, len(examples) // _MEASURED)][:_MEASURED]]
    size = model.input_size(images[0].shape[:2], settings.size)
    standardise(network, torch.cat([model.pixel_values(image, size) for image in images]))  # squeezed to one size: only scales count
    return model


def score(
    model: Trainable, examples: Sequence[Example], size: int | None, cache: Path | None = None, *, progress: bool = True
) -> tuple[float, float]:
    """Measure a model on images with full masks, as `ovseg eval` does.

    Args:
        model: The model.
        examples: The images.
        size: Short side of the images as the network sees them [px]; None for the model's own policy.
        cache: Folder that keeps what the frozen part computes; None to keep nothing.
        progress: Whether to show a progress bar on stderr.

    Returns:
        mIoU and pixel accuracy [%].
    """
    from tqdm import tqdm  # type: ignore[import-untyped, unused-ignore]

    labels = examples[0].labels
    text, owner = model.words(labels)
    store = FeatureStore(model, size, cache if model.cacheable else None)
    confusion = ConfusionMatrix(len(labels))
    for example in tqdm(examples, "scoring", unit="image", leave=False, disable=not progress):
        image, truth = example.load_truth()
        parts, fitted = store(example, image)
        with torch.inference_mode():
            features = model.normalised(model.vectors(parts))[0].cpu().numpy()
        height, width = image.shape[:2]
        extent = (fitted[0] / model.card.stride, fitted[1] / model.card.stride)
        grid = Grid(features, (height, width), extent, model.card.stride if model.card.align_corners else None)
        answer = label_map(grid, text.cpu().numpy(), owner.numpy(), model.card.logit_scale)
        confusion.update(truth, answer, ignore_index=255)
    return confusion.mean_iou, confusion.pixel_accuracy
