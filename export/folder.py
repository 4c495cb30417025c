"""Write one exported folder: graphs, tokenizer, reference, parity, card."""

from __future__ import annotations

import dataclasses
import shutil
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
from numpy.typing import NDArray
from ovseg.export import check, quantise
from ovseg.export.checkpoints import card_text
from ovseg.export.report import Cost, Report, bounds_of, prose
from tqdm import tqdm

from ovseg.errors import BackendError
from ovseg.integrity import sha256_of
from ovseg.loading import PROXYCLIP, RANDOM, Loaded, Request, load_model
from ovseg.positions import POSITIONS, PositionTable, of_image
from ovseg.preprocess import Preprocess
from ovseg.registry import ModelCard
from ovseg.runtime.onnx import OnnxRuntime
from ovseg.segmenter import Segmenter
from ovseg.tensors import write_tensors
from ovseg.text import TextTower, Tokenize

if TYPE_CHECKING:
    import torch
    from ovseg.export import networks
    from ovseg.export.graph_files import GraphWriter
    from torch import Tensor

Floats = NDArray[np.float32]


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


@dataclass(frozen=True)
class Original:
    """The model that is exported.

    Attributes:
        card: Of the model.
        module: The network in torch, float32.
        tokenize: Its own tokenizer.
        encode_text: (N, T) int64 ids and mask to (N, D) embeddings.
    """

    card: ModelCard
    module: Any
    tokenize: Tokenize
    encode_text: Callable[[NDArray[np.int64], NDArray[np.int64]], Floats]


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
        import torch

        self.original, self.folder, self.opset, self.precision, self.fused = original, folder, opset, precision, fused
        self.photographs = photographs
        self.dtype: torch.dtype = torch.float16 if precision == "float16" else torch.float32
        self.card, self.module = original.card, original.module
        self.roles: dict[str, str] = {}
        self.facts: dict[str, Any] = {}
        self.text = TextTower(original.tokenize, original.encode_text)
        self.fixed: tuple[Floats, NDArray[np.intp], list[str]] | None = None
        self.positions = self._positions()
        self.padded: int | None = None

    def _positions(self) -> dict[str, PositionTable]:
        """Return the position embeddings that graphs for images take, by the names of these inputs."""
        tables = {}
        for name, maker in (("positions", "position_table"), ("positions_proxy", "proxy_position_table")):
            found = getattr(self.module, maker)() if hasattr(self.module, maker) else None
            if found is not None:
                tables[name] = PositionTable(np.ascontiguousarray(found.table.float().numpy()), found.patch, found.rule)
        return tables

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
        from ovseg.export.graph_files import DATA, GraphWriter
        from ovseg.export.reference import compute
        from ovseg.export.tensorrt_rules import opset_of, read_graph

        options: dict[str, Any] = {}
        writer = GraphWriter(self.folder, self.opset)
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
        self.module.to(self.dtype)
        if "image" not in self.roles:
            self._write_image_towers(writer)
        if not has_text:
            self._write_text_tower(writer)
        if self.positions:
            self.roles["positions"] = "positions.safetensors"
            write_tensors(self.folder / "positions.safetensors", {POSITIONS[name]: own.table for name, own in self.positions.items()})
            options |= {name: own.facts() for name, own in self.positions.items()}
        if self.fused:
            self._write_segmenter(writer)
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

    # -------------------------------------------------------------------------------------------------------- the graphs

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

    def _image_inputs(self) -> tuple[dict[str, Tensor], dict[str, dict[int, Any]]]:
        """Return examples of what graphs for images take, and which of their dimensions vary. Two images, not square."""
        import torch
        from torch.export import Dim

        multiple = int(self.card.preprocess.get("multiple", 32))
        rows, columns = Dim("rows", min=1, max=4096), Dim("columns", min=1, max=4096)
        cells = max(2, round(96 / multiple))
        height, width = cells * multiple, (cells + 2) * multiple
        inputs = {"pixel_values": torch.zeros(2, 3, height, width)}
        dynamic: dict[str, dict[int, Any]] = {"pixel_values": {0: Dim("batch", min=1, max=4096), 2: multiple * rows, 3: multiple * columns}}
        for name, own in self.positions.items():
            times = multiple // own.patch
            inputs[name] = torch.from_numpy(own.of_image(height, width))
            dynamic[name] = {0: times * rows, 1: times * columns}
        return inputs, dynamic

    def _write_image_towers(self, writer: GraphWriter) -> None:
        import torch
        from ovseg.export import networks
        from torch.export import Dim

        preprocess = Preprocess(**self.card.preprocess)
        inputs, dynamic = self._image_inputs()
        seen = partial(quantise.dense_pixels, self.photographs, preprocess)
        self._add_image_graph(writer, "image", networks.ImageGraph(self.module, self.dtype), inputs, dynamic, "features", seen)
        if self.card.classify and hasattr(self.module, "encode_global"):
            size = int(self.card.classify["size"])
            graph = networks.GlobalGraph(self.module, self.dtype, size)
            square = {"pixel_values": torch.zeros(2, 3, size, size)}
            batch = {"pixel_values": {0: Dim("batch", min=1, max=4096)}}
            seen = partial(quantise.whole_pixels, self.photographs, preprocess, self.card.classify)
            self._add_image_graph(writer, "global", graph, square, batch, "image_embeddings", seen)

    def _add_image_graph(
        self,
        writer: GraphWriter,
        role: str,
        graph: torch.nn.Module,
        inputs: dict[str, Tensor],
        dynamic: Mapping[str, Any],
        output: str,
        seen: Callable[[], Iterator[Floats]],
    ) -> None:
        """Add a graph for images; in int8, through one of float32 and the pixel values of the calibration images."""
        from ovseg.export.graph_files import GraphWriter

        if self.precision != "int8":
            return self._add(writer, role, graph, inputs, dynamic, output)
        self._show(f"{role}.onnx")
        with tempfile.TemporaryDirectory(dir=self.folder.parent) as scratch:
            plain, whole = Path(scratch) / "float32.onnx", Path(scratch) / "int8.onnx"
            GraphWriter(plain.parent, self.opset, rewrite=False).add(plain.name, graph, inputs, dynamic, output)
            positions, count = {name: own for name, own in self.positions.items() if name in inputs}, len(self.photographs)
            quantise.quantise(plain, whole, (_feeds(pixels, positions) for pixels in seen()), count)
            self.facts["calibration_images"] = count
            self.roles[role] = f"{role}.onnx"
            writer.add_file(self.roles[role], whole)

    def _write_text_tower(self, writer: GraphWriter) -> None:
        import torch
        from ovseg.export import networks
        from torch.export import Dim

        ids = np.asarray(_padded(self.original.tokenize(["a photo of a dog", "sky"])), np.int64)
        if self.padded is None:  # any length: the network looks at no padding
            ids = ids[:, : 2 + int((ids != 0).sum(1).max())]
        texts = {"input_ids": torch.from_numpy(ids), "attention_mask": torch.ones(ids.shape, dtype=torch.int64)}
        shape: dict[int, Any] = {0: Dim("texts", min=1, max=65536)}
        if self.padded is None:
            shape[1] = Dim("tokens", min=2, max=len(self.original.tokenize(["a " * 300])[0]))
        self._add(writer, "text", networks.TextGraph(self.module), texts, dict.fromkeys(texts, shape), "text_embeddings")
        if hasattr(self.module, "refine_logits"):
            logits = {"logits": torch.zeros(2, 3, 6, 8)}
            sizes = {0: Dim("batch", min=1, max=4096), 1: Dim("labels", min=1, max=65536), 2: Dim("rows", min=1, max=65536)}
            sizes[3] = Dim("columns", min=1, max=65536)
            self._add(writer, "head", networks.HeadGraph(self.module), logits, {"logits": sizes}, "refined")

    def _write_segmenter(self, writer: GraphWriter) -> None:
        import torch
        from ovseg.export import networks
        from torch.export import Dim

        inputs, dynamic = self._image_inputs()
        ending = networks.Ending(self.card.stride, self.card.align_corners, self.card.logit_scale)
        if self.precision == "int8":
            return self._extend_image_graph(writer, ending)
        if self.fixed is None:
            graph: torch.nn.Module = networks.SegmenterGraph(self.module, self.dtype, ending)
            pixels = inputs.pop("pixel_values")
            inputs = {"pixel_values": pixels, "text_embeddings": torch.zeros(3, self.card.embed_dim), **inputs}
            dynamic["text_embeddings"] = {0: Dim("labels", min=1, max=65536)}
        else:
            text, owner, names = self.fixed
            graph = networks.FixedSegmenterGraph(self.module, self.dtype, ending, torch.from_numpy(text), torch.from_numpy(owner))
            self.facts |= {"labels": names, "folded": graph.folded}
        self._add(writer, "segmenter", graph, inputs, dynamic, "segmentation")

    def _extend_image_graph(self, writer: GraphWriter, ending: networks.Ending) -> None:
        """Write the segmenter as a continuation of the image graph, which is int8: its ranges need not be measured twice."""
        import torch
        from ovseg.export import networks
        from torch.export import Dim

        inputs = {"features": torch.zeros(2, self.card.embed_dim, 6, 8)}
        dynamic: dict[str, dict[int, Any]] = {
            "features": {0: Dim("batch", min=1, max=4096), 2: Dim("h", min=1, max=4096), 3: Dim("w", min=1, max=4096)}
        }
        if self.fixed is None:
            graph = networks.EndingGraph(self.module, ending)
            inputs["text_embeddings"] = torch.zeros(3, self.card.embed_dim)
            dynamic["text_embeddings"] = {0: Dim("labels", min=1, max=65536)}
        else:
            text, owner, names = self.fixed
            graph = networks.EndingGraph(self.module, ending, torch.from_numpy(text), torch.from_numpy(owner))
            self.facts |= {"labels": names, "folded": False}
        self.roles["segmenter"] = "segmenter.onnx"
        self._show(self.roles["segmenter"])
        writer.extend(self.roles["segmenter"], self.roles["image"], graph, inputs, dynamic, "segmentation")

    def _add(
        self, writer: GraphWriter, role: str, graph: torch.nn.Module, inputs: dict[str, Tensor], dynamic: Mapping[str, Any], output: str
    ) -> None:
        self.roles[role] = f"{role}.onnx"
        self._show(self.roles[role])
        writer.add(self.roles[role], graph, inputs, dynamic, output)

    # ----------------------------------------------------------------------------------------------------- the comparison

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


def _feeds(pixels: Floats, positions: Mapping[str, PositionTable]) -> dict[str, Floats]:
    """Return what a graph for images takes."""
    return {"pixel_values": pixels, **of_image(positions, *pixels.shape[2:])}


def _padded(rows: Sequence[Sequence[int]]) -> list[list[int]]:
    length = max(map(len, rows))
    return [[*row, *[0] * (length - len(row))] for row in rows]


def _onnxruntime_version() -> str:
    import onnxruntime

    return str(onnxruntime.__version__)
