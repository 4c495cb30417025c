"""Build TensorRT engines from an exported folder: `ovseg export tensorrt ONNX_FOLDER ENGINE_FOLDER`.

The precision of an engine is that of the ONNX graph: export it in float16 for a float16 engine. What can be checked without a GPU is
checked first, on any machine: the parser's rules and the shapes. Building then needs TensorRT 11 and the GPU that the engine is for.
"""

from __future__ import annotations

import argparse
import dataclasses
import hashlib
import json
import logging
import shutil
import time
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

from ovseg.export.checkpoints import card_text, new_folder
from ovseg.export.tensorrt_build import LEVELS, BuildFlags, build
from ovseg.export.tensorrt_profiles import (
    Memory,
    Profile,
    Range,
    Ranges,
    check_multiples,
    covers,
    estimate_memory,
    graph_inputs,
    profiles,
    size_range,
)
from ovseg.export.tensorrt_rules import Problem, lint_graph, read_graph

from ovseg.errors import BackendError, InvalidArgumentError, OutputError, WeightsError
from ovseg.hub import parse_source, read_folder
from ovseg.integrity import sha256_of
from ovseg.output.files import write_atomically
from ovseg.positions import POSITIONS
from ovseg.registry import ModelCard, find_card, weights_folder
from ovseg.runtime.cuda import Cuda
from ovseg.runtime.tensorrt_engine import COMPATIBILITY, EngineRecord, load_tensorrt, read_record, record_path

logger = logging.getLogger(__name__)

PARTS = ("image", "segmenter")
BATCHES = {"image": (1, 1, 8), "segmenter": (1, 1, 1)}
"""Images at once. An engine sets memory aside for its largest shape: the logits of 8 megapixel images and 256 labels take 8.6 GB."""
LABELS = (1, 32, 256)
_FORMAT = 1  # counts up when the same input would give another engine
_SHOWN = 8  # problems that a message names

Triple = tuple[int, int, int]


@dataclass(frozen=True)
class Plan:
    """What can be known of an engine before it is built.

    Attributes:
        card: Of the model.
        files: Role -> path of the exported folder.
        part: "image" or "segmenter".
        graph: Its ONNX file.
        onnx_sha256: File name -> hash, of the graph and of the files with its weights.
        problems: What the parser will refuse, or may.
        profiles: Shapes.
        memory: Estimate for the largest shapes.
    """

    card: ModelCard
    files: Mapping[str, Path]
    part: str
    graph: Path
    onnx_sha256: Mapping[str, str]
    problems: tuple[Problem, ...]
    profiles: Mapping[str, Profile]
    memory: Memory

    def format(self) -> str:
        """Say it in lines."""
        lines = [f"{self.card.name}, {self.part} ({self.graph.name})"]
        for name, shapes in self.profiles.items():
            lines.append(f"  {name}: " + ", ".join(" x ".join(map(str, shape)) for shape in shapes) + "  (least, best, largest)")
        kinds = ((kind, getattr(self.memory, kind)) for kind in ("weights", "inputs", "outputs", "activations"))
        lines.append("  largest shapes, estimated: " + ", ".join(f"{kind} {size / 1e6:,.0f} MB" for kind, size in kinds))
        lines += [f"  {problem}" for problem in self.problems] or ["  nothing is known that TensorRT's parser would refuse"]
        return "\n".join(lines)


@dataclass(frozen=True)
class Built:
    """An engine that is there now.

    Attributes:
        folder: Where.
        record: What is known of it.
        fresh: Whether it was built now, or was up to date.
    """

    folder: Path
    record: EngineRecord
    fresh: bool

    def format(self) -> str:
        """Say it in a line."""
        done = f"built in {self.record.seconds:.0f} s" if self.fresh else "is up to date"
        return (
            f"{self.folder / self.record.engine} {done}: {self.record.model}, {self.record.part}, for {self.record.gpu} "
            f"({self.record.compute_capability}), TensorRT {self.record.tensorrt}"
        )


def plan_engine(
    model: str | Path,
    *,
    part: str = "image",
    batch: Triple | None = None,
    height: Triple | None = None,
    width: Triple | None = None,
    labels: Triple = LABELS,
) -> Plan:
    """Check an exported model and work out its shapes; no GPU and no TensorRT needed.

    Args:
        model: A folder that `ovseg export onnx` wrote, or "mini".
        part: "image" for the image tower, "segmenter" for the fused graph.
        batch: Least, best and largest number of images at once; None for that of `BATCHES`.
        height: The same of the network's input [px], in the card's multiples; None for what the card suggests.
        width: Likewise.
        labels: Likewise of text embeddings; only the segmenter has them.

    Raises:
        OvsegError: The folder is incomplete, or a range does not fit the model.
    """
    if part not in PARTS:
        raise InvalidArgumentError(f"part must be one of {', '.join(PARTS)}; got {part!r}.")
    card, files = _open(model)
    if part not in files:
        named = ", ".join(files)
        how = "ovseg export onnx --fused" if part == "segmenter" else "ovseg export onnx"
        raise InvalidArgumentError(f"{card.name!r} has no {part} graph: its files are {named}. Export it with `{how}`.")
    graph, multiple = files[part], int(card.preprocess.get("multiple", 32))
    sizes = {what: size_range(card) if given is None else Range(*given) for what, given in (("height", height), ("width", width))}
    for what, size in sizes.items():
        check_multiples(size, multiple, what)
    ranges = Ranges(Range(*(batch or BATCHES[part])), sizes["height"], sizes["width"], Range(*labels))
    problems = lint_graph(graph, covers)
    loaded = read_graph(graph)
    shapes = profiles(graph_inputs(loaded), ranges, _patches(card))
    memory = estimate_memory(loaded, {name: profile[2] for name, profile in shapes.items()})
    hashes = {name: sha256_of(graph.parent / name) for name in sorted({graph.name, *_external(graph)}) if (graph.parent / name).is_file()}
    return Plan(card, files, part, graph, hashes, tuple(problems), shapes, memory)


def _open(model: str | Path) -> tuple[ModelCard, dict[str, Path]]:
    source = parse_source(model)
    if source.kind == "folder":
        return read_folder(Path(source.value))
    if source.kind == "hub":
        raise InvalidArgumentError(f"Engines are built from a folder: export hf-hub:{source.value} with `ovseg export onnx` first.")
    card = find_card(source.value)
    if "image" not in card.files:
        raise InvalidArgumentError(f"Engines are built from a folder: export {card.name!r} with `ovseg export onnx` first.")
    folder = weights_folder(card)
    return card, {role: folder / name for role, name in card.files.items()}


def _patches(card: ModelCard) -> dict[str, int]:
    """Return the pixels of a patch for each input of position embeddings."""
    facts = {name: card.options.get(name) for name in POSITIONS}
    return {name: int(own["patch"]) for name, own in facts.items() if isinstance(own, Mapping) and "patch" in own}


def _external(graph: Path) -> set[str]:
    """Name the files that hold weights of a graph."""
    return {
        entry.value
        for tensor in read_graph(graph).graph.initializer
        for entry in tensor.external_data
        if entry.key == "location"
    }  # fmt: skip


def export_tensorrt(
    model: str | Path,
    engine_folder: Path,
    *,
    part: str = "image",
    batch: Triple | None = None,
    height: Triple | None = None,
    width: Triple | None = None,
    labels: Triple = LABELS,
    workspace: int = 0,
    optimization_level: int = 3,
    timing_cache: Path | None = None,
    version_compatible: bool = False,
    hardware_compatibility: str | None = None,
    index: int = 0,
) -> Built:
    """Build an engine for the GPU of this machine, unless the one that is there is of the same graph, shapes and machine.

    The folder is complete: engine, card, text tower and tokenizer. Parts are added to it one by one.

    Args:
        model: See `plan_engine`.
        engine_folder: A new or empty folder, or one that holds engines of the same model.
        part: See `plan_engine`.
        batch: See `plan_engine`.
        height: See `plan_engine`.
        width: See `plan_engine`.
        labels: See `plan_engine`.
        workspace: See `BuildFlags`.
        optimization_level: See `BuildFlags`.
        timing_cache: File with the timings of earlier builds, which make later ones faster; it is read if it is there, and written anew.
        version_compatible: See `BuildFlags`.
        hardware_compatibility: See `BuildFlags`.
        index: Which GPU.

    Raises:
        BackendError: The parser would refuse the graph, there is no GPU, or TensorRT fails.
        MissingDependencyError: TensorRT 11 is not there.
        OutputError: The folder is another model's, or cannot be written.
        OvsegError: As for `plan_engine`.
    """
    flags = BuildFlags(workspace, optimization_level, version_compatible, hardware_compatibility or "")
    plan = plan_engine(model, part=part, batch=batch, height=height, width=width, labels=labels)
    refused = [str(problem) for problem in plan.problems if problem.severity == "error"]
    if refused:
        more = f"\n  and {len(refused) - _SHOWN} more" if len(refused) > _SHOWN else ""
        listed = "\n  ".join(refused[:_SHOWN])
        raise BackendError(f"TensorRT cannot read {plan.graph}:\n  {listed}{more}")
    for problem in plan.problems:
        logger.warning("%s", problem)
    kept, card = _card_of_engines(plan)
    _check_target(engine_folder, card)
    trt = load_tensorrt()
    gpu = Cuda(index).describe()
    record = EngineRecord(
        part=part, model=plan.card.name, engine="", engine_sha256="", key="", onnx_sha256=plan.onnx_sha256,
        card_sha256=hashlib.sha256(card.encode()).hexdigest(), tensorrt=str(trt.__version__), gpu=gpu.name,
        compute_capability=gpu.compute_capability, driver=gpu.driver, version_compatible=flags.version_compatible,
        hardware_compatibility=flags.hardware_compatibility, optimization_level=flags.optimization_level, workspace=flags.workspace,
        profiles=plan.profiles, memory=dataclasses.asdict(plan.memory), created="", seconds=0.0,
    )  # fmt: skip
    key = engine_key(record)
    if (current := _up_to_date(engine_folder, part, key)) is not None:
        return Built(engine_folder, current, False)
    started = time.perf_counter()
    content = build(trt, plan.graph, plan.profiles, flags, timing_cache)
    record = dataclasses.replace(
        record, engine=f"{part}-{key[:12]}.engine", engine_sha256=hashlib.sha256(content).hexdigest(), key=key,
        created=datetime.now(UTC).isoformat(timespec="seconds"), seconds=round(time.perf_counter() - started, 1),
    )  # fmt: skip
    _write(engine_folder, content, record, card, kept)
    return Built(engine_folder, record, True)


def engine_key(record: EngineRecord) -> str:
    """Hash all that decides what an engine is: graph, weights, TensorRT, GPU, shapes and flags."""
    names = (
        "part", "onnx_sha256", "card_sha256", "tensorrt", "gpu", "compute_capability", "version_compatible", "hardware_compatibility",
        "optimization_level", "workspace", "profiles",
    )  # fmt: skip
    values = {"format": _FORMAT, **{name: getattr(record, name) for name in names}}
    return hashlib.sha256(json.dumps(values, sort_keys=True).encode()).hexdigest()


def _up_to_date(folder: Path, part: str, key: str) -> EngineRecord | None:
    if not record_path(folder, part).exists():
        return None
    try:
        record = read_record(folder, part)
        engine = folder / record.engine
        if record.key == key and engine.is_file() and sha256_of(engine) == record.engine_sha256:
            return record
    except WeightsError as error:
        logger.info("%s", error)
    return None


# ------------------------------------------------------------------------------------------------------------------- writing


def _card_of_engines(plan: Plan) -> tuple[dict[str, Path], str]:
    """Choose the files that go along with engines, all but the graphs that become some; and write the card that names them.

    Returns:
        Name in the folder -> path, and the card.
    """
    graphs = [plan.files[part] for part in PARTS if part in plan.files]
    become = {path.name for path in graphs} | {name for path in graphs for name in _external(path)}
    for path in plan.files.values():
        if path.suffix == ".onnx" and path not in graphs:  # it may share a file of weights with them
            become -= {path.name, *_external(path)}
    roles = {role: name for role, name in plan.card.files.items() if name not in become}
    # All hashes stay, those of the graphs too: so the cards of two exports differ, and engines of both never share a folder.
    return {name: plan.files[role] for role, name in roles.items()}, card_text(dataclasses.replace(plan.card, files=roles))


def _check_target(folder: Path, card: str) -> None:
    """Refuse a folder that holds something else, before minutes are spent on building."""
    if not folder.exists() or (folder.is_dir() and not any(folder.iterdir())):
        return
    try:
        same = (folder / "card.md").read_text("utf-8") == card
    except (OSError, UnicodeDecodeError):
        same = False
    if not same:
        raise OutputError(f"{folder} exists and does not hold engines of this very model, as it was exported. Name a new folder.")


def _write(folder: Path, content: bytes, record: EngineRecord, card: str, kept: Mapping[str, Path]) -> None:
    """Write an engine: into a new folder all at once; into an existing one so that the record changes last, from one engine to the next."""
    try:
        if folder.is_dir() and any(folder.iterdir()):
            _write_engine(folder, content, record)
            for old in folder.glob(f"{record.part}-*.engine"):
                if old.name != record.engine:
                    old.unlink()
            return
        folder.parent.mkdir(parents=True, exist_ok=True)
        with new_folder(folder) as new:
            for name, path in kept.items():
                (new / name).parent.mkdir(parents=True, exist_ok=True)
                shutil.copyfile(path, new / name)
            (new / "card.md").write_text(card, "utf-8")
            _write_engine(new, content, record)
    except OutputError:
        raise
    except OSError as error:
        raise OutputError(f"The engine cannot be written to {folder}: {error}") from error


def _write_engine(folder: Path, content: bytes, record: EngineRecord) -> None:
    for path, data in ((folder / record.engine, content), (record_path(folder, record.part), record.as_json())):
        with write_atomically(path) as file:
            file.write(data)


# -------------------------------------------------------------------------------------------------------------- command line


def _triple(text: str) -> Triple:
    try:
        numbers = [int(part) for part in text.split(",")]
        least, best, largest = numbers * 3 if len(numbers) == 1 else numbers
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text!r} is neither LEAST,BEST,LARGEST nor one number") from None
    return least, best, largest


def declare(parser: argparse.ArgumentParser) -> None:
    """Say what `ovseg export tensorrt` takes."""
    parser.add_argument("model", metavar="ONNX_FOLDER", help="a folder that `ovseg export onnx` wrote, or mini")
    parser.add_argument("out", metavar="ENGINE_FOLDER", type=Path, nargs="?", help="new, or with engines of the same model")
    parser.add_argument("--part", choices=PARTS, default="image", help="the image tower, or pixels to labels in one (image)")
    ranges = {
        "batch": "images at once (1,1,8; of the segmenter 1)", "height": "input heights [px] (the card's)",
        "width": "input widths [px] (the card's)", "labels": "labels of the segmenter (1,32,256)",
    }  # fmt: skip
    for name, text in ranges.items():
        parser.add_argument(f"--{name}", type=_triple, metavar="LEAST,BEST,LARGEST", help=text)
    parser.add_argument("--workspace", type=int, default=0, metavar="MB", help="most scratch memory of a layer (all there is)")
    parser.add_argument("--optimization-level", type=int, choices=LEVELS, default=3, help="0 builds fast, 5 tries most (3)")
    parser.add_argument("--timing-cache", type=Path, metavar="FILE", help="keeps timings, so that later builds take less time")
    parser.add_argument("--version-compatible", action="store_true", help="also for later versions of TensorRT; may be slower")
    parser.add_argument("--hardware-compatibility", choices=COMPATIBILITY, help="also for other GPUs; may be slower")
    parser.add_argument("--gpu", type=int, default=0, metavar="N", help="which GPU (0)")
    parser.add_argument("--check", action="store_true", help="only say what TensorRT would refuse, and the shapes; needs no GPU")


def run(options: argparse.Namespace) -> str:
    """Build an engine, or check whether one can be built; return what to print.

    Raises:
        OvsegError: As for `export_tensorrt`; with --check, if TensorRT would refuse the graph.
    """
    if options.labels is not None and options.part != "segmenter":
        raise InvalidArgumentError("--labels belongs to --part segmenter: the image tower knows no labels.")
    labels = options.labels or LABELS
    if options.check:
        plan = plan_engine(
            options.model, part=options.part, batch=options.batch, height=options.height, width=options.width, labels=labels
        )  # fmt: skip
        if any(problem.severity == "error" for problem in plan.problems):
            raise BackendError(f"TensorRT would refuse this graph.\n{plan.format()}")
        return plan.format()
    if options.out is None:
        raise InvalidArgumentError("Name the folder for the engine: ovseg export tensorrt ONNX_FOLDER ENGINE_FOLDER")
    built = export_tensorrt(
        options.model,
        options.out,
        part=options.part,
        batch=options.batch,
        height=options.height,
        width=options.width,
        labels=labels,
        workspace=options.workspace * 10**6,
        optimization_level=options.optimization_level,
        timing_cache=options.timing_cache,
        version_compatible=options.version_compatible,
        hardware_compatibility=options.hardware_compatibility,
        index=options.gpu,
    )
    return built.format()
