"""Export a model to ONNX: `ovseg export onnx MODEL FOLDER`.

The folder is a complete model that `ovseg.load` runs without torch:

    image.onnx      pixel_values (B, 3, H, W) [, positions (h, w, C)] -> features (B, D, h, w), L2-normalised
    text.onnx       input_ids (N, T), attention_mask (N, T) -> text_embeddings (N, D)
    global.onnx     pixel_values (B, 3, S, S) -> image_embeddings (B, D), where the network has such an output
    head.onnx       logits (B, K, h, w) -> refined (B, K, h, w), only for LSeg with head blocks
    segmenter.onnx  pixel_values [, positions], text_embeddings (K, D) -> segmentation (B, H, W) int32: what to run where words change and
                    only the label map should leave the device; with fixed words it takes no text_embeddings
    weights.data    the tensors of all graphs, each once
    positions.safetensors, tokenizer.json, labels.txt (fixed words), reference.safetensors, parity.json, card.md

Batch, height, width, number of texts and of labels vary. Position embeddings of another size come from outside (`ovseg.positions`), so no
graph resizes them. The graphs are compared with torch before the folder appears (`ovseg.export.check`).
"""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import json
import logging
import shutil
import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from hashlib import file_digest
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray
from ovseg.export import check
from ovseg.export.checkpoints import card_text, check_target

from ovseg.errors import BackendError, InvalidArgumentError, MissingDependencyError, OutputError, UnsupportedOperationError
from ovseg.hub import HubOptions
from ovseg.loading import RANDOM, Request, load_model, locate, stand_in_tokens, torch_network
from ovseg.positions import PositionTable
from ovseg.registry import ModelCard
from ovseg.runtime.onnx import OnnxRuntime
from ovseg.tensors import write_tensors
from ovseg.text import TextTower, Tokenize, normalised
from ovseg.vocabulary import parse_templates, read_labels

if TYPE_CHECKING:
    import torch
    from ovseg.export.graph_files import GraphWriter
    from torch import Tensor

logger = logging.getLogger(__name__)

OPSETS = (18, 20, 23)
DTYPES = tuple(check.BOUNDS)
FAMILIES = ("mini", "lseg", "clip", "tips", "dinotxt")
"""Families that export."""

Floats = NDArray[np.float32]


@dataclass(frozen=True)
class _Original:
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


def export_onnx(
    model: str | Path,
    out: str | Path,
    *,
    request: Request | None = None,
    opset: int = 18,
    dtype: str = "float32",
    fused: bool = False,
    vocabulary: str | Path | None = None,
    templates: Any = None,
    tokenizer: str | Path | None = None,
) -> check.Report:
    """Export a model with two towers.

    Args:
        model: As for `ovseg.load`.
        out: Folder to write; it must not exist, or be empty.
        request: How the model is wanted: read-out, weights, downloads.
        opset: Version of the ONNX operators: 18, or 20 and 23 for runtimes that know them.
        dtype: "float32", or "float16" for GPUs: both towers compute in half precision, norms of vectors and all that follows in float32.
        fused: Whether to write segmenter.onnx too, which ends in a label map.
        vocabulary: File with one label a line, which become part of segmenter.onnx.
        templates: Prompt templates of these labels; None for the model's own.
        tokenizer: The tokenizer file of a model whose own cannot be fetched.

    Returns:
        What was measured.

    Raises:
        UnsupportedOperationError: If such a model cannot be exported.
        BackendError: If the graphs do not answer as torch does; nothing is written then.
        OvsegError: If the model cannot be loaded.
    """
    request, out = request or Request(), Path(out)
    if opset not in OPSETS:
        raise InvalidArgumentError(f"opset must be one of {', '.join(map(str, OPSETS))}; got {opset!r}.")
    if dtype not in DTYPES:
        raise InvalidArgumentError(f"dtype must be one of {', '.join(DTYPES)}; got {dtype!r}.")
    check_target(out)
    labels = None if vocabulary is None else read_labels(vocabulary)
    card, files = locate(model, request)
    _check_kind(card, files, dtype)
    try:
        import torch
    except ImportError as error:
        raise MissingDependencyError("Exporting needs torch, onnx and onnxscript: pip install 'ovseg[export]'") from error
    if tokenizer is not None:
        files["tokenizer"] = Path(tokenizer)
    original, files = _original(card, files, request)
    out = out.absolute()
    try:
        with tempfile.TemporaryDirectory(dir=out.parent, prefix=f".{out.name}-") as scratch, torch.inference_mode():
            folder = Path(scratch) / "model"
            folder.mkdir()
            task = _Task(original, folder, opset, getattr(torch, dtype), fused or labels is not None)
            if labels is not None:
                task.fix(labels, parse_templates(templates, default=card.templates))
                shutil.copyfile(Path(str(vocabulary)), folder / "labels.txt")
            report = task.write(files, random=request.weights == RANDOM)
            if out.is_dir():
                out.rmdir()  # it is empty
            folder.rename(out)
    except OSError as error:
        raise OutputError(f"Cannot write {str(out)!r}: {error.strerror or error}.") from error
    return dataclasses.replace(report, folder=out)


def _check_kind(card: ModelCard, files: Mapping[str, Path], dtype: str) -> None:
    """Refuse models that have no graph of this kind."""
    if card.conditional:
        raise UnsupportedOperationError(f"{card.name!r} answers label by label: it has no towers to export. Take a two-tower model.")
    if card.family not in FAMILIES:
        raise UnsupportedOperationError(
            f"{card.name!r} cannot be exported: models of the family {card.family!r} cut the image into windows themselves, which a graph "
            f"for every size cannot. Families that can: {', '.join(FAMILIES)}."
        )
    if card.options.get("readout") == "proxyclip":
        raise UnsupportedOperationError(
            "readout='proxyclip' cannot be exported: its second network resizes position embeddings itself. Take another, as 'naclip'."
        )
    if "image" in files and "weights" not in files:
        raise InvalidArgumentError(f"{card.name!r} is an exported model already.")
    if "image" in files and dtype != "float32":
        raise InvalidArgumentError(f"The graphs of {card.name!r} come with the package, in float32; dtype={dtype!r} is not possible.")


def _original(card: ModelCard, files: dict[str, Path], request: Request) -> tuple[_Original, dict[str, Path]]:
    """Build what the graphs are compared with."""
    import importlib

    import torch

    from ovseg.loading import MODULES

    module, files = torch_network(card, files, request)
    if "image" in files:  # comes with graphs: its text tower is one, and the only one
        from ovseg.file_tokenizer import file_tokenizer

        runtime = OnnxRuntime(files["image"], files["text"], "cpu", request.threads)
        return _Original(card, module, file_tokenizer(files["tokenizer"], card.options.get("tokenizer")), runtime.encode_text), files

    def encode(input_ids: NDArray[np.int64], attention_mask: NDArray[np.int64]) -> Floats:
        embeddings: Floats = module.encode_text(torch.from_numpy(input_ids)).float().numpy()
        return embeddings

    tokenize = stand_in_tokens
    if not _needs_stand_in(card, files, request.weights == RANDOM):
        tokenize = importlib.import_module(f"ovseg.models.{MODULES[card.family]}").build_tokenizer(card.options, files)
    return _Original(card, module, tokenize, encode), files


def _needs_stand_in(card: ModelCard, files: Mapping[str, Path], random: bool) -> bool:
    """Say whether a network that knows nothing has to do without its tokenizer's file."""
    return random and "tokenizer" in card.source.get("files", {}) and "tokenizer" not in files


class _Task:
    """One export.

    Args:
        original: The model.
        folder: Where to write.
        opset: Version of the ONNX operators.
        dtype: In which the towers compute.
        fused: Whether to write segmenter.onnx.
    """

    def __init__(self, original: _Original, folder: Path, opset: int, dtype: torch.dtype, fused: bool) -> None:
        self.original, self.folder, self.opset, self.dtype, self.fused = original, folder, opset, dtype, fused
        self.card, self.module = original.card, original.module
        self.roles: dict[str, str] = {}
        self.facts: dict[str, Any] = {}
        self.text = TextTower(original.tokenize, original.encode_text)
        self.fixed: tuple[Floats, NDArray[np.intp], list[str]] | None = None
        self.positions = self._positions()
        self.padded: int | None = None

    def _positions(self) -> PositionTable | None:
        found = self.module.position_table() if hasattr(self.module, "position_table") else None
        return None if found is None else PositionTable(np.ascontiguousarray(found.table.float().numpy()), found.patch, found.rule)

    def fix(self, labels: Sequence[Sequence[str]], templates: Any) -> None:
        """Embed the labels that become part of the segmenter."""
        names = [name for group in labels for name in group]
        owner = np.repeat(np.arange(len(labels)), [len(group) for group in labels])
        self.fixed = self.text.embed_names(names, templates), owner, [group[0] for group in labels]
        self.roles["labels"] = "labels.txt"

    def write(self, files: Mapping[str, Path], random: bool) -> check.Report:
        """Write everything, compare, and write the card."""
        from ovseg.export.graph_files import DATA, GraphWriter

        options: dict[str, Any] = {}
        writer = GraphWriter(self.folder, self.opset)
        reference = self._reference()
        if "image" in files:
            for role in ("image", "weights", "text", "tokenizer"):
                self.roles[role] = self.card.files[role]
                shutil.copyfile(files[role], self.folder / self.roles[role])
        else:
            if not _needs_stand_in(self.card, files, random):
                options["tokenizer"] = self._write_tokenizer(files)
            self.module.to(self.dtype)
            self._write_towers(writer)
        if self.positions is not None:
            self.roles["positions"] = "positions.safetensors"
            write_tensors(self.folder / "positions.safetensors", {"image": self.positions.table})
            options["positions"] = self.positions.facts()
        if self.fused:
            self._write_segmenter(writer)
        if (self.folder / DATA).exists():
            self.roles["data"] = DATA
        self.roles |= {"reference": check.REFERENCE, "parity": check.PARITY}
        write_tensors(self.folder / check.REFERENCE, reference)
        options["export"] = self._facts(random)
        return self._compare(options)

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
        if self.positions is not None:
            times = multiple // self.positions.patch
            inputs["positions"] = torch.from_numpy(self.positions.of_image(height, width))
            dynamic["positions"] = {0: times * rows, 1: times * columns}
        return inputs, dynamic

    def _write_towers(self, writer: GraphWriter) -> None:
        import torch
        from ovseg.export import networks
        from torch.export import Dim

        inputs, dynamic = self._image_inputs()
        self._add(writer, "image", networks.ImageGraph(self.module, self.dtype), inputs, dynamic, "features")
        ids = np.asarray(_padded(self.original.tokenize(["a photo of a dog", "sky"])), np.int64)
        if self.padded is None:  # any length: the network looks at no padding
            ids = ids[:, : 2 + int((ids != 0).sum(1).max())]
        texts = {"input_ids": torch.from_numpy(ids), "attention_mask": torch.ones(ids.shape, dtype=torch.int64)}
        shape: dict[int, Any] = {0: Dim("texts", min=1, max=65536)}
        if self.padded is None:
            shape[1] = Dim("tokens", min=2, max=len(self.original.tokenize(["a " * 300])[0]))
        self._add(writer, "text", networks.TextGraph(self.module), texts, dict.fromkeys(texts, shape), "text_embeddings")
        batch = {0: Dim("batch", min=1, max=4096)}
        if self.card.classify and hasattr(self.module, "encode_global"):
            size = int(self.card.classify["size"])
            graph = networks.GlobalGraph(self.module, self.dtype, size)
            square = {"pixel_values": torch.zeros(2, 3, size, size)}
            self._add(writer, "global", graph, square, {"pixel_values": batch}, "image_embeddings")
        if hasattr(self.module, "refine_logits"):
            logits = {"logits": torch.zeros(2, 3, 6, 8)}
            sizes: dict[int, Any] = {**batch, 1: Dim("labels", min=1, max=65536), 2: Dim("rows", min=1, max=65536)}
            sizes[3] = Dim("columns", min=1, max=65536)
            self._add(writer, "head", networks.HeadGraph(self.module), logits, {"logits": sizes}, "refined")

    def _write_segmenter(self, writer: GraphWriter) -> None:
        import torch
        from ovseg.export import networks
        from torch.export import Dim

        inputs, dynamic = self._image_inputs()
        ending = networks.Ending(self.card.stride, self.card.align_corners, self.card.logit_scale)
        if self.fixed is None:
            graph: torch.nn.Module = networks.SegmenterGraph(self.module, self.dtype, ending)
            positions = inputs.pop("positions", None)
            inputs["text_embeddings"] = torch.zeros(3, self.card.embed_dim)
            if positions is not None:
                inputs["positions"] = positions
            dynamic["text_embeddings"] = {0: Dim("labels", min=1, max=65536)}
        else:
            text, owner, names = self.fixed
            graph = networks.FixedSegmenterGraph(self.module, self.dtype, ending, torch.from_numpy(text), torch.from_numpy(owner))
            self.facts |= {"labels": names, "folded": graph.folded}
        self._add(writer, "segmenter", graph, inputs, dynamic, "segmentation")

    def _add(
        self, writer: GraphWriter, role: str, graph: torch.nn.Module, inputs: dict[str, Tensor], dynamic: Mapping[str, Any], output: str
    ) -> None:
        self.roles[role] = f"{role}.onnx"
        writer.add(self.roles[role], graph, inputs, dynamic, output)

    # ----------------------------------------------------------------------------------------------------- the comparison

    def _reference(self) -> dict[str, NDArray[Any]]:
        """Compute what `check.measure` compares with, all of it in torch and float32."""
        import torch
        from ovseg.export import networks

        card, module = self.card, self.module
        ending = networks.Ending(card.stride, card.align_corners, card.logit_scale)
        text = torch.from_numpy(self.text.embed([word for vocabulary in check.VOCABULARIES for word in vocabulary]))
        found: dict[str, NDArray[Any]] = {"text": text.numpy()}

        def cosines(features: Tensor, part: Tensor) -> Tensor:
            return torch.einsum("kd,bdhw->bkhw", part, features)

        for case in check.cases(card):
            features = module(torch.from_numpy(case.pixel_values()))
            n = check.step(tuple(features.shape))
            found[f"{case.name}.features"] = features[:, :, ::n, ::n].numpy()
            start = 0
            for number, vocabulary in enumerate(check.VOCABULARIES):
                part = text[start : start + len(vocabulary)]
                start += len(vocabulary)
                near = cosines(features, part)
                if hasattr(module, "refine_logits"):
                    near = module.refine_logits(card.logit_scale * near) / card.logit_scale
                found[f"{case.name}.{number}.cosines"] = near[:, :, ::n, ::n].numpy()
                labels = networks.winners(cosines(features, part), ending, module)
                found[f"{case.name}.{number}.labels"] = labels.numpy().astype(np.uint8)
            if self.fixed is not None:
                best = networks.winners(cosines(features, torch.from_numpy(self.fixed[0])), ending, module).numpy()
                owner = self.fixed[1]
                found[f"{case.name}.fixed.labels"] = owner[best].astype(np.uint16)
        if card.classify and hasattr(module, "encode_global"):
            square = check.Case(2, card.classify["size"], card.classify["size"]).pixel_values()
            found["global"] = normalised(module.encode_global(torch.from_numpy(square)).float().numpy())
        return {name: np.ascontiguousarray(value) for name, value in found.items()}

    def _facts(self, random: bool) -> dict[str, Any]:
        from importlib.metadata import version

        import ovseg

        facts: dict[str, Any] = {"opset": self.opset, "dtype": str(self.dtype).removeprefix("torch.")}
        if "readout" in self.card.options:
            facts["readout"] = self.card.options["readout"]
        if random:
            facts["weights"] = RANDOM
        versions = {name: version(name) for name in ("torch", "onnx")}
        return {**facts, **self.facts, "ovseg": ovseg.__version__, **versions, "onnxruntime": _onnxruntime_version()}

    def _compare(self, options: dict[str, Any]) -> check.Report:
        facts, bounds = options["export"], check.BOUNDS[options["export"]["dtype"]]
        parity = self.folder / check.PARITY
        parity.write_text("{}", "utf-8")
        size = round(sum(path.stat().st_size for path in self.folder.iterdir()) / 1e6, 1)
        card = dataclasses.replace(self.card, options=options, source={}, megabytes=size)
        self._write_card(card, None)
        loaded = load_model(self.folder, Request(device="cpu"))
        if not isinstance(loaded.runtime, OnnxRuntime):
            raise BackendError("The exported folder does not run with onnxruntime. This is a fault of ovseg: report it.")
        reference = check.read_tensors(self.folder / check.REFERENCE)
        measured = check.measure(loaded.card, loaded.runtime, loaded.tokenize, reference)
        if problems := measured.problems(bounds):
            raise BackendError(f"The exported {card.name!r} does not answer as torch does: {'; '.join(problems)}. Nothing was written.")
        record = {"facts": facts, "bounds": dataclasses.asdict(bounds), "measured": dataclasses.asdict(measured)}
        parity.write_text(json.dumps(record, indent=2), "utf-8")
        report = check.Report(self.folder, card.name, facts, bounds, measured, measured, size)
        self._write_card(card, report)
        return report

    def _write_card(self, card: ModelCard, report: check.Report | None) -> None:
        hashes = {}
        for name in self.roles.values():
            with (self.folder / name).open("rb") as file:
                hashes[name] = file_digest(file, "sha256").hexdigest()
        text = card.text if report is None else _prose(card.text, report)
        full = dataclasses.replace(card, files=self.roles, sha256=hashes, text=text)
        (self.folder / "card.md").write_text(card_text(full), "utf-8")


def _padded(rows: Sequence[Sequence[int]]) -> list[list[int]]:
    length = max(map(len, rows))
    return [[*row, *[0] * (length - len(row))] for row in rows]


def _onnxruntime_version() -> str:
    import onnxruntime

    return str(onnxruntime.__version__)


def _prose(text: str, report: check.Report) -> str:
    """Put what an export is before the prose of the model's card."""
    facts, bounds, measured = report.facts, report.bounds, report.measured
    said = f"opset {facts['opset']}, {facts['dtype']}" + (f", read-out {facts['readout']}" if "readout" in facts else "")
    lines = [
        "", "# Exported to ONNX", "",
        f"{said}; made by ovseg {facts['ovseg']} with torch {facts['torch']} and checked with onnxruntime {facts['onnxruntime']}.",
        "`ovseg.load(FOLDER)` runs it without torch; `ovseg export check FOLDER` compares it again with what torch answered.", "",
        "| against torch in float32 | measured | bound |", "|---|---|---|",
        f"| largest difference of a feature of unit length | {measured.features:.2g} | {bounds.features:.2g} |",
        f"| of a text embedding | {measured.text:.2g} | {bounds.text:.2g} |",
        f"| of a cosine | {measured.cosines:.2g} | {bounds.cosines:.2g} |",
        f"| share of pixels with the same label | {measured.agreement:.5f} | {bounds.agreement:g} |",
    ]  # fmt: skip
    if "weights" in facts:
        lines += ["", "The weights are random: this model knows nothing and is for measurements of speed."]
    if "labels" in facts:
        how = "folded into the last layer" if facts["folded"] else "as constants"
        lines += ["", f"segmenter.onnx answers {len(facts['labels'])} fixed labels (labels.txt), {how}."]
    return "\n".join([*lines, "", "What follows is the card of the original.", "", text.lstrip("\n")])


# ----------------------------------------------------------------------------------------------------------- command line


def declare(parser: argparse.ArgumentParser) -> None:
    """Add the options of `ovseg export onnx`."""
    parser.add_argument("model", metavar="MODEL", help="a name that `ovseg models` lists, hf-hub:OWNER/NAME, or a folder")
    parser.add_argument("out", type=Path, metavar="FOLDER", help="folder to write; it must not exist, or be empty")
    parser.add_argument("--opset", type=int, choices=OPSETS, default=18, help="version of the ONNX operators (18)")
    parser.add_argument("--dtype", choices=DTYPES, default="float32", help="what the towers compute in (float32)")
    parser.add_argument("--fused", action="store_true", help="also write segmenter.onnx: pixels and text embeddings to a label map")
    parser.add_argument("--vocabulary", type=Path, metavar="FILE", help="labels that become part of segmenter.onnx, one a line")
    parser.add_argument("--templates", action="append", metavar="SET", help="prompts of --vocabulary: a set, or a sentence with {}")
    parser.add_argument("--readout", help="how dense features are read out of a CLIP or TIPS tower: naclip, maskclip, ... (the card's)")
    parser.add_argument("--weights", action="append", metavar="FILE", help="your own .safetensors; may repeat; 'random' to measure speed")
    parser.add_argument("--tokenizer", type=Path, metavar="FILE", help="tokenizer file of a model whose own cannot be fetched")
    parser.add_argument("--revision", help="branch, tag or commit in the hub")
    parser.add_argument("--cache-dir", metavar="DIR", help="where downloads are kept (HF_HOME)")
    parser.add_argument("--local-files-only", action="store_true", help="use only what was downloaded before")


def run(options: argparse.Namespace) -> str:
    """Run `ovseg export onnx` and return what was measured."""
    weights = options.weights[0] if options.weights is not None and len(options.weights) == 1 else options.weights
    hub = HubOptions(revision=options.revision, cache_dir=options.cache_dir, local_files_only=options.local_files_only)
    with contextlib.redirect_stdout(None):  # torch's exporter talks
        report = export_onnx(
            options.model, options.out, request=Request(readout=options.readout, weights=weights, hub=hub), opset=options.opset,
            dtype=options.dtype, fused=options.fused, vocabulary=options.vocabulary, templates=options.templates,
            tokenizer=options.tokenizer,
        )  # fmt: skip
    return report.format()
