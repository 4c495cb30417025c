"""Write one exported folder: graphs, tokenizer, reference, parity, card; and measure what it is worth."""

from __future__ import annotations

import dataclasses
import shutil
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from ovseg.export import check
from ovseg.export.checkpoints import card_text
from ovseg.export.graph_files import DATA, GraphWriter
from ovseg.export.report import Cost, Report, bounds_of, prose
from ovseg.export.tower_graphs import Fixed, Graphs, Original, position_tables
from tqdm import tqdm

from ovseg.errors import BackendError
from ovseg.integrity import sha256_of
from ovseg.loading import Loaded, Request, load_model
from ovseg.network import PROXYCLIP, RANDOM
from ovseg.positions import POSITIONS
from ovseg.preprocess import Preprocess
from ovseg.registry import ModelCard
from ovseg.runtime.onnx import OnnxRuntime
from ovseg.segmenter import Segmenter
from ovseg.tensors import write_tensors
from ovseg.text import TextTower


class Score(Protocol):
    """How well a model did on labelled images; an `EvaluationResult` is one."""

    @property
    def dataset(self) -> str:
        """Name of the images."""
        ...

    @property
    def images(self) -> int:
        """Number of images."""
        ...

    @property
    def mean_iou(self) -> float:
        """Mean intersection over union [percent]."""
        ...


@dataclass(frozen=True)
class Gate:
    """What an export may cost on labelled images.

    Attributes:
        score: Measures a model on them: the original and the exported one, in this order.
        most: Points of mIoU that may be lost.
    """

    score: Callable[[Segmenter], Score]
    most: float = 1.0


def needs_stand_in(card: ModelCard, files: Mapping[str, Path], random: bool) -> bool:
    """Say whether a network that knows nothing has to do without its tokenizer's file."""
    return random and "tokenizer" in card.source.get("files", {}) and "tokenizer" not in files


class Task:
    """One export.

    Args:
        original: The model.
        folder: Where to write.
        opset: Version of the ONNX operators.
        precision: In which the towers compute: one of `DTYPES`.
        fused: Whether to write segmenter.onnx.
        photographs: Calibration images for int8.
    """

    def __init__(
        self, original: Original, folder: Path, opset: int, precision: str, fused: bool, photographs: Sequence[Path]
    ) -> None:
        self.original, self.folder, self.opset, self.precision, self.fused = original, folder, opset, precision, fused
        self.photographs = photographs
        self.card, self.module = original.card, original.module
        self.roles: dict[str, str] = {}
        self.facts: dict[str, Any] = {}
        self.text = TextTower(original.tokenize, original.encode_text)
        self.fixed: Fixed | None = None
        self.positions = position_tables(self.module)
        self.padded: int | None = None

    def fix(self, labels: Sequence[Sequence[str]], templates: Any) -> None:
        """Embed the labels that become part of the segmenter."""
        names = [name for group in labels for name in group]
        owner = np.repeat(np.arange(len(labels)), [len(group) for group in labels])
        self.fixed = self.text.embed_names(names, templates).copy(), owner, [group[0] for group in labels]  # torch wants to own it
        self.roles["labels"] = "labels.txt"

    def write(self, files: Mapping[str, Path], random: bool) -> Report:
        """Write everything, compare, and write the card."""
        with tqdm(desc="exporting", bar_format="{desc} [{elapsed}]", leave=False) as self._bar:
            return self._compare(self._write_files(files, random))

    def _show(self, step: str) -> None:
        """Show what is done now: each step takes seconds, with a large network a minute."""
        self._bar.set_description_str(f"exporting: {step}")

    def _write_files(self, files: Mapping[str, Path], random: bool) -> dict[str, Any]:
        """Write everything but the card; return what it must say."""
        from ovseg.export.reference import compute
        from ovseg.export.tensorrt_rules import opset_of, read_graph

        options: dict[str, Any] = {}
        self._show("answers of torch")
        words = self.text.embed([word for vocabulary in check.VOCABULARIES for word in vocabulary])
        reference = compute(self.card, self.module, words, None if self.fixed is None else self.fixed[:2])
        has_text = "text" in files
        if has_text:
            same = "image" in files and self.precision == "float32" and opset_of(read_graph(files["image"])) == self.opset
            self._copy(files, "text", "tokenizer", *(("image", "weights") if same else ()))
            if (text_opset := opset_of(read_graph(files["text"]))) != self.opset:
                self.facts["text_opset"] = text_opset
        elif not needs_stand_in(self.card, files, random):
            options["tokenizer"] = self._write_tokenizer(files)
        graphs = Graphs(self.original, GraphWriter(self.folder, self.opset), self.precision, self.photographs, self.positions, self._show)
        if "image" not in self.roles:
            graphs.write_image_towers()
        if not has_text:
            graphs.write_text_tower(self.padded)
        if self.positions:
            self.roles["positions"] = "positions.safetensors"
            write_tensors(self.folder / "positions.safetensors", {POSITIONS[name]: own.table for name, own in self.positions.items()})
            options |= {name: own.facts() for name, own in self.positions.items()}
        if self.fused:
            graphs.write_segmenter(self.fixed)
        self.roles |= graphs.roles
        self.facts |= graphs.facts
        if (self.folder / DATA).exists():
            self.roles["data"] = DATA
        self.roles |= {"reference": check.REFERENCE, "parity": check.PARITY}
        write_tensors(self.folder / check.REFERENCE, reference)
        options["export"] = self._facts(random)
        return options

    def _copy(self, files: Mapping[str, Path], *roles: str) -> None:
        for role in roles:
            self.roles[role] = self.card.files[role]
            shutil.copyfile(files[role], self.folder / self.roles[role])

    def _write_tokenizer(self, files: Mapping[str, Path]) -> dict[str, Any]:
        from ovseg.export.clip_tokenizer import write_tokenizer

        from ovseg.file_tokenizer import file_tokenizer

        path = self.folder / "tokenizer.json"
        self.roles["tokenizer"] = path.name
        facts, self.padded = write_tokenizer(self.card.family, self.card.options, files, path)
        words = [word for vocabulary in check.VOCABULARIES for word in vocabulary]
        for word, ours, theirs in zip(words, file_tokenizer(path, facts)(words), self.original.tokenize(words), strict=True):
            if ours != theirs[: len(ours)] or any(theirs[len(ours) :]):
                raise BackendError(f"The exported tokenizer reads {word!r} as {ours}, and the original as {theirs}. Nothing was written.")
        return facts

    def _facts(self, random: bool) -> dict[str, Any]:
        from importlib.metadata import version

        import ovseg

        facts: dict[str, Any] = {"opset": self.opset, "dtype": self.precision}
        if "readout" in self.card.options:
            facts["readout"] = self.card.options["readout"]
        if facts.get("readout") == PROXYCLIP:
            from ovseg.models.dense_clip import proxy_license

            facts["proxy"] = self.card.options["proxy"]
            facts["proxy_license"] = proxy_license(facts["proxy"]) or "unknown"
        if random:
            facts["weights"] = RANDOM
        versions = {name: version(name) for name in ("torch", "onnx")}
        return {**facts, **self.facts, "ovseg": ovseg.__version__, **versions, "onnxruntime": _onnxruntime_version()}

    def _compare(self, options: dict[str, Any]) -> Report:
        self._show("comparison")
        facts, bounds = options["export"], bounds_of(options["export"])
        parity = self.folder / check.PARITY
        parity.write_text("{}", "utf-8")
        size = round(sum(path.stat().st_size for path in self.folder.iterdir()) / 1e6, 1)
        scores = self.card.scores if self.precision == "float32" else {}
        self.card = dataclasses.replace(self.card, options=options, source={}, megabytes=size, scores=scores)
        self._write_card(None)
        loaded = load_model(self.folder, Request(device="cpu"))
        if not isinstance(loaded.runtime, OnnxRuntime):
            raise BackendError("The exported folder does not run with onnxruntime. This is a fault of ovseg: report it.")
        reference = check.read_tensors(self.folder / check.REFERENCE)
        measured = check.measure(loaded.card, loaded.runtime, loaded.tokenize, reference, bounds.jumps)
        if problems := measured.problems(bounds):
            said = "; ".join(problems)
            raise BackendError(f"The exported {self.card.name!r} does not answer as torch does: {said}. Nothing was written.")
        report = Report(self.folder, self.card.name, facts, bounds, measured, measured, size)
        self._write_report(report)
        return report

    def price(self, report: Report, gate: Gate, original: Loaded) -> Report:
        """Measure what the export costs on labelled images, and write that down.

        Raises:
            BackendError: If it costs too much.
        """
        exported = load_model(self.folder, Request())
        before, after = (gate.score(Segmenter(one.card, one.runtime, one.tokenize, one.texts)) for one in (original, exported))
        cost = Cost(before.dataset, before.images, before.mean_iou, after.mean_iou, gate.most)
        if cost.problem:
            raise BackendError(f"The exported {self.card.name!r} is not good enough: {cost.problem}. Nothing was written.")
        score = {f"{cost.dataset} mIoU, {cost.images} images": round(cost.exported, 2)}
        self.card = dataclasses.replace(self.card, scores={**self.card.scores, **score})
        report = dataclasses.replace(report, cost=cost)
        self._write_report(report)
        return report

    def _write_report(self, report: Report) -> None:
        check.write_parity(self.folder / check.PARITY, report)
        self._write_card(report)

    def _write_card(self, report: Report | None) -> None:
        hashes = {name: sha256_of(self.folder / name) for name in self.roles.values()}
        text = self.card.text if report is None else prose(self.card.text, report)
        settings = dataclasses.asdict(Preprocess(**self.card.preprocess))  # all of them: other programs read the card, too
        settings = {key: value for key, value in settings.items() if value is not None}
        full = dataclasses.replace(self.card, files=self.roles, sha256=hashes, text=text, preprocess=settings)
        (self.folder / "card.md").write_text(card_text(full), "utf-8")


def _onnxruntime_version() -> str:
    import onnxruntime

    return str(onnxruntime.__version__)
