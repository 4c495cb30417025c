"""Are an exported model's answers those of the original? `ovseg export check FOLDER`, which needs no torch.

An export stores what torch answered for a few made-up images and words (reference.safetensors), and what was allowed and measured then
(parity.json). A check lets the folder answer again, on this machine, with the runtime and the tokenizer that users get.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from ovseg.export.report import Bounds, Cost, Parity, Report

from ovseg import similarity
from ovseg.errors import BackendError, WeightsError
from ovseg.hub import read_folder
from ovseg.loading import Request, load_model
from ovseg.registry import ModelCard
from ovseg.runtime.onnx import OnnxRuntime
from ovseg.tensors import read_tensors
from ovseg.text import TextTower, Tokenize, normalised

PARITY, REFERENCE = "parity.json", "reference.safetensors"
VOCABULARIES = (
    ("sky", "grass", "a dog", "road", "building"),
    ("person", "car", "a tall tree", "water", "sand", "wall", "a cup of coffee"),
)
"""Words of the two vocabularies."""
MOST_VALUES = 200_000
"""Feature values that are stored of a case; of larger maps evenly spaced cells are."""

Floats = NDArray[np.float32]


@dataclass(frozen=True)
class Case:
    """A made-up batch of images.

    Attributes:
        batch: Images.
        height: Of each [px].
        width: Of each [px].
    """

    batch: int
    height: int
    width: int

    def pixel_values(self) -> Floats:
        """Make (B, 3, H, W) float32: soft patches of colour and noise, like pixel values of photographs."""
        random = np.random.default_rng([self.batch, self.height, self.width])
        coarse = random.standard_normal((self.batch, 3, 5, 5)).astype(np.float32)
        rows, columns = (np.linspace(0, 4.999, length).astype(np.intp) for length in (self.height, self.width))
        noise = random.standard_normal((self.batch, 3, self.height, self.width)).astype(np.float32)
        return np.ascontiguousarray(coarse[:, :, rows[:, None], columns] + np.float32(0.3) * noise)

    @property
    def name(self) -> str:
        """What it is called in the reference."""
        return f"{self.batch}x{self.height}x{self.width}"


def cases(card: ModelCard) -> tuple[Case, ...]:
    """Return the batches that are compared: neither batch size nor size is that of the export's example, and no image is square."""
    multiple = int(card.preprocess.get("multiple", 32))
    cells = max(2, round(96 / multiple))
    return Case(3, (cells + 2) * multiple, (cells - 1) * multiple), Case(1, (cells - 1) * multiple, (cells + 3) * multiple)


def step(shape: tuple[int, ...]) -> int:
    """Say which cells of a (B, D, h, w) feature map are stored: every n-th of both axes."""
    n = 1
    while np.prod(shape[:2]) * -(-shape[2] // n) * -(-shape[3] // n) > MOST_VALUES:
        n += 1
    return n


def label_maps(card: ModelCard, features: Floats, text: Floats, runtime: OnnxRuntime, owner: NDArray[np.intp]) -> tuple[Floats, Any]:
    """Compute cosines (B, N, h, w) and label maps (B, H, W) as `Segmenter.segment` does, at the size of the network's input."""
    found, maps = [], []
    for cells in features:
        size = (cells.shape[1] * card.stride, cells.shape[2] * card.stride)
        extent = (float(cells.shape[1]), float(cells.shape[2]))
        grid = similarity.Grid(cells, size, extent, card.stride if card.align_corners else None)
        logits = similarity.name_logits(grid, text, card.logit_scale, slice(None), slice(None))
        if runtime.refine_logits is not None:
            logits = runtime.refine_logits(logits[None])[0]
        refined = dataclasses.replace(grid, embedding=logits)
        found.append(logits / np.float32(card.logit_scale))
        maps.append(similarity.label_map(refined, np.eye(len(text), dtype=np.float32), owner, 1.0))
    return np.stack(found), np.stack(maps)


def measure(
    card: ModelCard, runtime: OnnxRuntime, tokenize: Tokenize, reference: Mapping[str, NDArray[Any]], jumps: float = 0.0
) -> Parity:
    """Compare a folder's answers with the reference.

    Args:
        card: Of the folder.
        runtime: Runs its graphs.
        tokenize: Its tokenizer.
        reference: What torch answered: "text" (N, D) unit embeddings of all words; for each case "<case>.features" and
            "<case>.<vocabulary>.labels"; "<case>.<vocabulary>.cosines"; "<case>.fixed.labels" with a segmenter of fixed words;
            "global", (B, D) unit embeddings of square images.
        jumps: Share of the cells of a batch that may differ by more than is said.

    Raises:
        WeightsError: If the reference lacks something.
    """
    words = [word for vocabulary in VOCABULARIES for word in vocabulary]
    text = TextTower(tokenize, runtime.encode_text).embed(words)
    try:
        return _measure(card, runtime, text, reference, jumps)
    except KeyError as error:
        raise WeightsError(f"{REFERENCE} lacks {error}. Export the model anew.") from error


def _largest(found: Floats, expected: Floats) -> float:
    return float(np.abs(found - expected).max())  # NaN stays


def _largest_of_cells(found: Floats, expected: Floats, jumps: float) -> float:
    """Return the largest difference of (B, D, h, w) but for a share of the cells; NaN stays."""
    cells = np.abs(found - expected).max(1).ravel()
    return float(np.nan if np.isnan(cells).any() else np.sort(cells)[len(cells) - 1 - int(jumps * len(cells))])


def _measure(card: ModelCard, runtime: OnnxRuntime, text: Floats, reference: Mapping[str, NDArray[Any]], jumps: float) -> Parity:
    features_off, cosines_off, same, fused = [], [], [], []
    fixed = card.options.get("export", {}).get("labels")
    for case in cases(card):
        pixels = case.pixel_values()
        features = runtime.encode_image(pixels)
        n = step(features.shape)
        features_off.append(_largest_of_cells(features[:, :, ::n, ::n], reference[f"{case.name}.features"], jumps))
        start = 0
        for number, vocabulary in enumerate(VOCABULARIES):
            part = text[start : start + len(vocabulary)]
            start += len(vocabulary)
            cosines, labels = label_maps(card, features, part, runtime, np.arange(len(part)))
            expected = reference[f"{case.name}.{number}.labels"]
            cosines_off.append(_largest_of_cells(cosines[:, :, ::n, ::n], reference[f"{case.name}.{number}.cosines"], jumps))
            same.append(labels == expected)
            if runtime.label_map is not None and not fixed:
                fused.append(runtime.label_map(pixels, part) == expected)
        if runtime.label_map is not None and fixed:
            fused.append(runtime.label_map(pixels) == reference[f"{case.name}.fixed.labels"])
    whole = None
    if runtime.encode_global is not None:
        square = Case(2, card.classify["size"], card.classify["size"]).pixel_values()
        whole = _largest(normalised(runtime.encode_global(square)), reference["global"])
    return Parity(
        features=float(np.max(features_off)),
        text=_largest(text, reference["text"]),
        cosines=float(np.max(cosines_off)),
        agreement=_share(same),
        fused=_share(fused) if fused else None,
        whole=whole,
    )


def _share(parts: list[NDArray[np.bool_]]) -> float:
    return float(np.concatenate([part.ravel() for part in parts]).mean())


def check_folder(folder: str | Path, device: str = "cpu", threads: int | None = None) -> Report:
    """Compare an exported model with what torch answered when it was exported.

    Args:
        folder: What `ovseg export onnx` wrote.
        device: "cpu" or "cuda".
        threads: CPU threads; None for all cores.

    Raises:
        WeightsError: If a file is missing, damaged or altered, or the folder has no reference.
        BackendError: If a bound is missed.
    """
    folder = Path(folder)
    card, files = read_folder(folder)
    if "parity" not in files or "reference" not in files:
        raise WeightsError(f"{folder} has no {PARITY} and {REFERENCE} to be compared with. Export it with `ovseg export onnx`.")
    facts, bounds, recorded, cost = _read_parity(files["parity"])
    loaded = load_model(folder, Request(device=device, threads=threads))
    if not isinstance(loaded.runtime, OnnxRuntime):
        raise WeightsError(f"{folder} is no folder of ONNX graphs. Export it with `ovseg export onnx`.")
    measured = measure(card, loaded.runtime, loaded.tokenize, read_tensors(files["reference"]), bounds.jumps)
    if problems := measured.problems(bounds):
        raise BackendError(f"{folder} does not answer as {card.name!r} does in torch: {'; '.join(problems)}. Export the model anew.")
    size = sum(path.stat().st_size for path in files.values()) / 1e6
    return Report(folder, card.name, facts, bounds, recorded, measured, round(size, 1), cost)


def write_parity(path: Path, report: Report) -> None:
    """Write what `check_folder` compares with."""
    record: dict[str, Any] = {"facts": dict(report.facts), "bounds": dataclasses.asdict(report.bounds)}
    record["measured"] = dataclasses.asdict(report.measured)
    if report.cost is not None:
        record["cost"] = dataclasses.asdict(report.cost)
    path.write_text(json.dumps(record, indent=2), "utf-8")


def _read_parity(path: Path) -> tuple[dict[str, Any], Bounds, Parity, Cost | None]:
    try:
        content = json.loads(path.read_text("utf-8"))
        cost = Cost(**content["cost"]) if "cost" in content else None
        return content["facts"], Bounds(**content["bounds"]), Parity(**content["measured"]), cost
    except (OSError, ValueError, LookupError, TypeError) as error:
        raise WeightsError(f"{path} cannot be read: {error}. Export the model anew.") from error


def declare(parser: argparse.ArgumentParser) -> None:
    """Add the options of `ovseg export check`."""
    parser.add_argument("folder", type=Path, metavar="FOLDER", help="what `ovseg export onnx` wrote")
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu", help="where the graphs run (cpu)")
    parser.add_argument("--threads", type=int, help="CPU threads")
    parser.add_argument("--json", action="store_true", help="give JSON")


def run(options: argparse.Namespace) -> str:
    """Run `ovseg export check` and return what it found."""
    report = check_folder(options.folder, options.device, options.threads)
    return json.dumps(report.as_dict(), indent=2) if options.json else report.format()
