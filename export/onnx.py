"""Export a model to ONNX: `ovseg export onnx MODEL FOLDER`.

The folder is a complete model that `ovseg.load` runs without torch:

    image.onnx      pixel_values (B, 3, H, W) [, positions (h, w, C)] -> features (B, D, h, w), L2-normalised; with the read-out proxyclip
                    both networks are inside, and positions_proxy (h', w', C') is a third input where the second has a table of them
    text.onnx       input_ids (N, T), attention_mask (N, T) -> text_embeddings (N, D)
    global.onnx     pixel_values (B, 3, S, S) -> image_embeddings (B, D), where the network has such an output
    head.onnx       logits (B, K, h, w) -> refined (B, K, h, w), only for LSeg with head blocks
    segmenter.onnx  pixel_values [, positions], text_embeddings (K, D) -> segmentation (B, H, W) int32: what to run where words change and
                    only the label map should leave the device; with fixed words it takes no text_embeddings
    weights.data    the tensors of all graphs, each once
    positions.safetensors, tokenizer.json, labels.txt (fixed words), reference.safetensors, parity.json, card.md

Batch, height, width, number of texts and of labels vary. Position embeddings of another size come from outside (`ovseg.positions`), so no
graph resizes them. With dtype="int8" the graphs for images are quantised (`ovseg.export.quantise`). The graphs are compared with torch
before the folder appears (`ovseg.export.check`), and where that is asked for, the loss on labelled images is measured. An export that
misses a bound leaves nothing behind.
"""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from ovseg.export import quantise
from ovseg.export.checkpoints import check_target, new_folder
from ovseg.export.folder import Gate, Task, needs_stand_in
from ovseg.export.report import BOUNDS, Report
from ovseg.export.tower_graphs import Original

from ovseg.errors import InvalidArgumentError, MissingDependencyError, UnsupportedOperationError
from ovseg.evaluation.datasets import Dataset
from ovseg.evaluation.evaluate import evaluate
from ovseg.hub import HubOptions
from ovseg.loading import Request, load_model, locate
from ovseg.network import RANDOM, stand_in_tokens, tokenizer_of, torch_network
from ovseg.registry import ModelCard
from ovseg.runtime.onnx import OnnxRuntime
from ovseg.vocabulary import parse_templates, read_labels

OPSETS = (18, 20, 23)
DTYPES = tuple(BOUNDS)
FAMILIES = ("mini", "lseg", "clip", "tips", "dinotxt")
"""Families that export."""

Floats = NDArray[np.float32]


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
    calibration: str | Path | None = None,
    gate: Gate | None = None,
) -> Report:
    """Export a model with two towers.

    Args:
        model: As for `ovseg.load`.
        out: Folder to write; it must not exist, or be empty.
        request: How the model is wanted: read-out, weights, downloads.
        opset: Version of the ONNX operators: 18, or 20 and 23 for runtimes that know them.
        dtype: "float32", or "float16" for GPUs: both towers compute in half precision, norms of vectors and all that follows in float32. Or
            "int8": the image encoder's layers do, but for the first and the last; text is read in float32.
        fused: Whether to write segmenter.onnx too, which ends in a label map.
        vocabulary: File with one label a line, which become part of segmenter.onnx.
        templates: Prompt templates of these labels; None for the model's own.
        tokenizer: The tokenizer file of a model whose own cannot be fetched.
        calibration: With dtype="int8", a folder of images like those the model is for: ranges of activations are those that they have.
        gate: Measures what the export costs on labelled images, and how much it may; None to do without.

    Returns:
        What was measured.

    Raises:
        UnsupportedOperationError: If such a model cannot be exported.
        BackendError: If the graphs do not answer as torch does, or the export costs too much; nothing is written then.
        OvsegError: If the model cannot be loaded.
    """
    request, out = request or Request(), Path(out)
    if opset not in OPSETS:
        raise InvalidArgumentError(f"opset must be one of {', '.join(map(str, OPSETS))}; got {opset!r}.")
    if dtype not in DTYPES:
        raise InvalidArgumentError(f"dtype must be one of {', '.join(DTYPES)}; got {dtype!r}.")
    check_target(out)
    if (calibration is None) == (dtype == "int8"):
        given = "no folder" if calibration is None else "a folder"
        raise InvalidArgumentError(f"dtype='int8' and a folder of calibration images belong together; got dtype={dtype!r} and {given}.")
    if tokenizer is not None and not Path(tokenizer).is_file():
        raise InvalidArgumentError(f"There is no tokenizer file {str(tokenizer)!r}.")
    photographs = [] if calibration is None else quantise.calibration_images(Path(calibration))
    labels = None if vocabulary is None else read_labels(vocabulary)
    card, files = locate(model, request)
    _check_kind(card, files)
    try:
        import torch
    except ImportError as error:
        raise MissingDependencyError("Exporting needs torch, onnx and onnxscript: pip install 'ovseg[export]'") from error
    if tokenizer is not None:
        files["tokenizer"] = Path(tokenizer)
    original, files = _original(card, files, request)
    out = out.absolute()
    with new_folder(out) as folder, torch.inference_mode():
        task = Task(original, folder, opset, dtype, fused or labels is not None, photographs)
        if labels is not None:
            task.fix(labels, parse_templates(templates, default=card.templates))
            shutil.copyfile(Path(str(vocabulary)), folder / "labels.txt")
        if request.weights is not None:
            files.pop("image", None)  # a graph of other weights
        report = task.write(files, random=request.weights == RANDOM)
        if gate is not None:
            report = task.price(report, gate, load_model(model, request))
    return dataclasses.replace(report, folder=out)


def _check_kind(card: ModelCard, files: Mapping[str, Path]) -> None:
    """Refuse models that have no graph of this kind."""
    if card.conditional:
        raise UnsupportedOperationError(f"{card.name!r} answers label by label: it has no towers to export. Take a two-tower model.")
    if card.family not in FAMILIES:
        raise UnsupportedOperationError(
            f"{card.name!r} cannot be exported: models of the family {card.family!r} cut the image into windows themselves, which a graph "
            f"for every size cannot. Families that can: {', '.join(FAMILIES)}."
        )
    if "image" in files and "weights" not in files:
        raise InvalidArgumentError(f"{card.name!r} is an exported model already.")


def _original(card: ModelCard, files: dict[str, Path], request: Request) -> tuple[Original, dict[str, Path]]:
    """Build what the graphs are compared with."""
    import torch

    module, files = torch_network(card, files, request.weights, request.hub)
    if "text" in files:  # its text tower is a graph, and the only one
        from ovseg.file_tokenizer import file_tokenizer

        runtime = OnnxRuntime(files["text"], files["text"], "cpu", request.threads)  # no graph for images is opened
        return Original(card, module, file_tokenizer(files["tokenizer"], card.options.get("tokenizer")), runtime.encode_text), files

    def encode(input_ids: NDArray[np.int64], attention_mask: NDArray[np.int64]) -> Floats:
        embeddings: Floats = module.encode_text(torch.from_numpy(input_ids)).float().numpy()
        return embeddings

    if needs_stand_in(card, files, request.weights == RANDOM):
        return Original(card, module, stand_in_tokens, encode), files
    tokenize = tokenizer_of(card, files, request.weights, request.hub)
    return Original(card, module, tokenize, encode), files


# ----------------------------------------------------------------------------------------------------------- command line


def declare(parser: argparse.ArgumentParser) -> None:
    """Add the options of `ovseg export onnx`."""
    parser.add_argument("model", metavar="MODEL", help="a name that `ovseg models` lists, hf-hub:OWNER/NAME, or a folder")
    parser.add_argument("out", type=Path, metavar="FOLDER", help="folder to write; it must not exist, or be empty")
    parser.add_argument("--opset", type=int, choices=OPSETS, default=18, help="version of the ONNX operators (18)")
    parser.add_argument("--dtype", choices=DTYPES, default="float32", help="what the towers compute in (float32)")
    parser.add_argument("--calibration", type=Path, metavar="FOLDER", help="images like yours, for --dtype int8")
    parser.add_argument("--cost", type=Path, metavar="DATASET", help="measure the loss of mIoU there: images/, labels/, labels.txt")
    parser.add_argument("--max-cost", type=float, metavar="POINTS", help="refuse an export that loses more by --cost (1)")
    parser.add_argument("--limit", type=int, metavar="N", help="evenly spaced images of --cost to use")
    parser.add_argument("--fused", action="store_true", help="also write segmenter.onnx: pixels and text embeddings to a label map")
    parser.add_argument("--vocabulary", type=Path, metavar="FILE", help="labels that become part of segmenter.onnx, one a line")
    parser.add_argument("--templates", action="append", metavar="SET", help="prompts of --vocabulary: a set, or a sentence with {}")
    parser.add_argument("--readout", help="how dense features are read out of a CLIP or TIPS tower: naclip, maskclip, ... (the card's)")
    parser.add_argument("--proxy", metavar="TIMM", help="network that gives the attention, with --readout proxyclip")
    parser.add_argument("--weights", action="append", metavar="FILE", help="your own .safetensors; may repeat; 'random' to measure speed")
    parser.add_argument("--tokenizer", type=Path, metavar="FILE", help="tokenizer file of a model whose own cannot be fetched")
    parser.add_argument("--revision", help="branch, tag or commit in the hub")
    parser.add_argument("--cache-dir", metavar="DIR", help="where downloads are kept (HF_HOME)")
    parser.add_argument("--local-files-only", action="store_true", help="use only what was downloaded before")


def run(options: argparse.Namespace) -> str:
    """Run `ovseg export onnx` and return what was measured."""
    weights = options.weights[0] if options.weights is not None and len(options.weights) == 1 else options.weights
    for name, belongs in (("templates", "vocabulary"), ("max_cost", "cost"), ("limit", "cost")):
        if getattr(options, name) is not None and getattr(options, belongs) is None:
            raise InvalidArgumentError(f"--{name.replace('_', '-')} belongs to --{belongs}, which is not there. Give both, or neither.")
    hub = HubOptions(revision=options.revision, cache_dir=options.cache_dir, local_files_only=options.local_files_only)
    with contextlib.redirect_stdout(None):  # torch's exporter talks
        report = export_onnx(
            options.model, options.out, request=Request(readout=options.readout, proxy=options.proxy, weights=weights, hub=hub),
            opset=options.opset, dtype=options.dtype, fused=options.fused, vocabulary=options.vocabulary, templates=options.templates,
            tokenizer=options.tokenizer, calibration=options.calibration,
            gate=_gate(options),
        )  # fmt: skip
    return report.format()


def _gate(options: argparse.Namespace) -> Gate | None:
    """Make what --cost asks for."""
    if options.cost is None:
        return None
    dataset = Dataset.open(options.cost)
    most = Gate.most if options.max_cost is None else options.max_cost
    return Gate(lambda segmenter: evaluate(segmenter, dataset, limit=options.limit), most)
