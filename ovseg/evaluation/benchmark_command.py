"""`ovseg benchmark`: models side by side, against what else there is, and against what the machine allows."""

from __future__ import annotations

import argparse
import os
import platform
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field, replace
from functools import partial
from importlib.metadata import PackageNotFoundError, version
from itertools import product
from pathlib import Path
from typing import Any

from tqdm import tqdm

from ovseg.cores import cores
from ovseg.errors import InvalidArgumentError, OvsegError
from ovseg.evaluation.benchmark import BenchmarkResult, Entry, Spread, compare, interleave, picture, seconds_of, words
from ovseg.evaluation.benchmark_report import Report
from ovseg.evaluation.floor import Machine, Work, measure_device, measure_machine, measure_work, network_input, time_network
from ovseg.evaluation.peers import PEERS, Peer
from ovseg.evaluation.probe import measure
from ovseg.hub import parse_source
from ovseg.loading import card_of
from ovseg.network import PROXYCLIP, RANDOM
from ovseg.registry import ModelCard, cards
from ovseg.segmenter import Segmenter, load

PARTS = {
    "labels": "time by the number of labels",
    "megapixels": "time and memory by the size of the image",
    "start": "from the command line to a written picture",
    "peers": "against what else one would run",
    "floor": "against what the machine allows",
}
"""What is measured; --only chooses."""
_BATCHES = (1, 8)
"""Inputs that a GPU gets at once."""
_GPU_REPEATS = 20
_PACKAGES = ("ovseg", "numpy", "onnxruntime", "onnxruntime-gpu", "torch", "transformers", "open_clip_torch", "timm")


@dataclass(frozen=True)
class Plan:
    """What to measure.

    Attributes:
        models: Arguments of `ovseg.load`, one mapping for each model.
        threads: Threads of a network.
        image_size: (height, width) of the image [px].
        counts: Numbers of labels.
        megapixels: Sizes of images, each with the numbers of labels in `megapixel_counts`.
        megapixel_counts: See there.
        repeats: How often each thing is measured.
        limit: Numbers of labels that would take longer are left out [s].
        segment: Options of `Segmenter.segment`: templates, size, window.
        parts: Keys of `PARTS`.
    """

    models: Sequence[Mapping[str, Any]]
    threads: int
    image_size: tuple[int, int] = (480, 640)
    counts: Sequence[int] = (1, 10, 100, 1000)
    megapixels: Sequence[float] = (0.3, 3, 12)
    megapixel_counts: Sequence[int] = (10,)
    repeats: int = 3
    limit: float = 20.0
    segment: Mapping[str, Any] = field(default_factory=dict)
    parts: Sequence[str] = tuple(PARTS)


# -------------------------------------------------------------------------------------------------------------- measuring


def run_plan(plan: Plan) -> Report:
    """Measure everything in a plan.

    Raises:
        OvsegError: If no model can be loaded.
    """
    report = Report(_describe(plan.threads))
    with tqdm(desc="measuring", bar_format="{desc} [{elapsed}]", leave=False) as bar:
        _measure_parts(plan, report, lambda part: bar.set_description_str(f"measuring: {PARTS[part]}"))
    return report


def _measure_parts(plan: Plan, report: Report, show: Callable[[str], object]) -> None:
    """Fill a report; `show` is told what is measured now."""
    models = _load_all(plan, report.notes)
    if "labels" in plan.parts or "floor" in plan.parts:
        show("labels")
        counts = plan.counts if "labels" in plan.parts else plan.counts[:1]
        ready = [Entry(model.segmenter, model.name, model.seconds, model.dtype, model.random) for model in models]
        found = compare(ready, plan.image_size, counts, plan.repeats, limit=plan.limit, **plan.segment)
        for model in found:
            if model.skipped:
                report.notes.append(f"{model.title}: {', '.join(f'{n:,}' for n in model.skipped)} labels would take over {plan.limit:g} s.")
        if "floor" in plan.parts:
            show("floor")
            _measure_floor(plan, models, found, report)
        if "labels" in plan.parts:
            report.models.extend(found)
    if "peers" in plan.parts:
        show("peers")
        _measure_peers(plan, models, report)
    with tempfile.TemporaryDirectory(prefix="ovseg-benchmark-") as folder:
        if "megapixels" in plan.parts:
            show("megapixels")
            _measure_megapixels(plan, models, Path(folder), report)
        if "start" in plan.parts:
            show("start")
            _measure_start(plan, models, Path(folder), report)


def _describe(threads: int) -> dict[str, Any]:
    packages = {"Python": platform.python_version()}
    for name in _PACKAGES:
        try:
            packages[name] = version(name)
        except PackageNotFoundError:
            continue
    return {
        "system": platform.platform(),
        "processor": _processor(),
        "cores": cores(),
        "threads": threads,
        "packages": packages,
    }


def _processor() -> str:
    information = Path("/proc/cpuinfo")
    if information.is_file():
        for line in information.read_text(errors="replace").splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()


# ---------------------------------------------------------------------------------------------------------------- models


@contextmanager
def _no_text_cache() -> Iterator[None]:
    """Keep embeddings that an earlier run left on the disk out of the measurement, and ours out of the user's cache."""
    before = os.environ.get("OVSEG_CACHE")
    os.environ["OVSEG_CACHE"] = "off"
    try:
        yield
    finally:
        if before is None:
            del os.environ["OVSEG_CACHE"]
        else:
            os.environ["OVSEG_CACHE"] = before


@dataclass(frozen=True)
class _Model:
    """A model that works here."""

    segmenter: Segmenter
    options: Mapping[str, Any]
    seconds: float

    @property
    def dtype(self) -> str:
        """What was asked for, or what an exported folder was made with."""
        made: str = self.options.get("dtype") or self.segmenter.card.options.get("export", {}).get("dtype", "float32")
        return made

    @property
    def name(self) -> str:
        """The card's; with the folder, as several exports of a model may be compared."""
        given = os.fspath(self.options["model"])
        name = f"{self.segmenter.name} in {given}" if os.path.isdir(given) else self.segmenter.name
        return f"{name} (compiled)" if self.options.get("compile") else name

    @property
    def random(self) -> bool:
        """Whether its weights are random, now or when it was exported."""
        return RANDOM in (self.options.get("weights"), self.segmenter.card.options.get("export", {}).get("weights"))

    @property
    def title(self) -> str:
        title = f"{self.name}, {self.segmenter.device}, {self.dtype}"
        return f"{title}, random weights" if self.random else title


def _load_all(plan: Plan, notes: list[str]) -> list[_Model]:
    found: dict[str, _Model] = {}
    trouble: OvsegError | None = None
    for options in plan.models:
        began = time.perf_counter()
        try:
            with _no_text_cache():
                segmenter = load(**options)
        except OvsegError as error:
            trouble = error
            notes.append(f"{options['model']}, backend {options.get('backend')}, dtype {options.get('dtype')}: {error}")
            continue
        model = _Model(segmenter, options, time.perf_counter() - began)
        found.setdefault(model.title, model)
    if not found and trouble is not None:
        raise trouble
    return list(found.values())


def _measure_floor(plan: Plan, models: Sequence[_Model], results: Sequence[BenchmarkResult], report: Report) -> None:
    if any("cpu" in result.device for result in results):
        report.machine.update(asdict(measure_machine(plan.threads)))
    for model, result in zip(models, results, strict=True):
        try:
            if result.encode_seconds is None or not ("cpu" in result.device or result.device == "torch:cuda"):
                report.notes.append(f"{result.title}: the floor is that of networks with features, on the CPU or with torch on a GPU.")
            elif "cpu" in result.device:
                _measure_floor_of_cpu(plan, model, result, result.encode_seconds.median, report)
            else:
                _measure_floor_of_gpu(plan, model, result, report)
        except (OvsegError, RuntimeError) as error:
            report.notes.append(f"{result.title}: its floor was not measured: {error}")


def _measure_floor_of_cpu(plan: Plan, model: _Model, result: BenchmarkResult, took: float, report: Report) -> None:
    work = measure_work(_network_of(model.segmenter.card), plan.image_size, plan.segment.get("size"), plan.segment.get("window"))
    machine = Machine(*(report.machine[key] for key in ("flops_per_second", "bytes_per_second", "library")))
    report.floor.append(_floor_of(result.title, work, machine, took))


def _measure_floor_of_gpu(plan: Plan, model: _Model, result: BenchmarkResult, report: Report) -> None:
    """Measure the network alone, for one input and for several at once."""
    card, device = _network_of(model.segmenter.card), model.options.get("device") or "cuda"
    sizes = plan.image_size, plan.segment.get("size"), plan.segment.get("window")
    machine, shape = measure_device(device, model.dtype), network_input(card, *sizes)[0]
    for batch in _BATCHES:
        work = measure_work(card, *sizes, batch=batch, dtype=model.dtype)
        took = time_network(card, device, model.dtype, bool(model.options.get("compile")), (batch, *shape), _GPU_REPEATS).median
        report.floor.append({**_floor_of(f"{result.title}, {batch} at once", work, machine, took), **asdict(machine)})
    rates = f"matrix products at {machine.flops_per_second / 1e12:.0f} TFLOP/s, memory at {machine.bytes_per_second / 1e9:,.0f} GB/s"
    report.notes.append(f"{result.title}: its floor is that of {rates}.")


def _floor_of(title: str, work: Work, machine: Machine, took: float) -> dict[str, Any]:
    least = work.floor_seconds(machine)
    return {"model": title, **asdict(work), "floor_seconds": least, "encode_seconds": took, "share": least / took}


def _network_of(card: ModelCard) -> ModelCard:
    """Return a card whose network can be built: for an exported folder that of the original, as it was exported."""
    made = card.options.get("export")
    if made is None:
        return card
    if made.get("readout") == PROXYCLIP and "proxy" not in made:
        raise InvalidArgumentError("its card does not say which proxy it has. Export it anew.")
    chosen = {key: made[key] for key in ("readout", "proxy") if key in made}
    options = {**card_of(parse_source(card.name)).options, **chosen}
    return replace(card, options=options)


def _measure_peers(plan: Plan, models: Sequence[_Model], report: Report) -> None:
    for peer in PEERS:
        ours = {model.title: model.segmenter for model in models if model.segmenter.card.family in peer.families}
        if ours:
            try:
                _measure_peer(plan, peer, ours, report)
            except ImportError as error:
                report.notes.append(f"{peer.name} is not here to compare with: {error}")


def _measure_peer(plan: Plan, peer: Peer, ours: Mapping[str, Segmenter], report: Report) -> None:
    import torch

    before = torch.get_num_threads()
    torch.set_num_threads(plan.threads)
    try:
        image = picture(*(peer.image_size or plan.image_size))
        run = peer.make(image)
        run(1)
        alone = seconds_of(partial(run, 1))
        for count in peer.counts:
            rounds = max(1, min(plan.repeats, int(plan.limit // (alone * count)))) if peer.grows else plan.repeats
            labels = words(count)
            actions: dict[str, Callable[[], object]] = {
                title: partial(segmenter.segment, image, labels, **plan.segment) for title, segmenter in ours.items()
            }
            quick = {name: min(seconds_of(action) for _ in range(2)) for name, action in actions.items()}  # reads the words, too
            repeated = {name: _repeated(action, 5 if quick[name] < 1 else 1) for name, action in actions.items()}
            found = interleave({**repeated, peer.name: partial(run, count)}, rounds, warm=False)
            for title in ours:
                mine = [seconds / (5 if quick[title] < 1 else 1) for seconds in found[title]]
                ratio = Spread.of([theirs / own for theirs, own in zip(found[peer.name], mine, strict=True)])
                report.peers.append({
                    "model": title, "peer": peer.name, "how": peer.how, "image_size": image.shape[:2], "labels": count,
                    "ours_seconds": Spread.of(mine), "peer_seconds": Spread.of(found[peer.name]), "ratio": ratio,
                })  # fmt: skip
    finally:
        torch.set_num_threads(before)


def _repeated(action: Callable[[], object], times: int) -> Callable[[], object]:
    def run() -> None:
        for _ in range(times):
            action()

    return run


def _environment(plan: Plan) -> dict[str, str]:
    names = ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS")
    return {**dict.fromkeys(names, str(plan.threads)), "OVSEG_CACHE": "off"}


def _measure_megapixels(plan: Plan, models: Sequence[_Model], folder: Path, report: Report) -> None:
    from PIL import Image

    for megapixels in plan.megapixels:
        height = max(1, round((megapixels * 1e6 * 3 / 4) ** 0.5))
        path = folder / f"{megapixels:g}.jpg"
        Image.fromarray(picture(height, max(1, round(megapixels * 1e6 / height)))).save(path, quality=90)
        for model, labels in product(models, plan.megapixel_counts):
            row = measure(model.options, plan.segment, path, labels, _environment(plan))
            report.megapixels.append({"model": model.title, "megapixels": megapixels, "labels": labels, **row})


def _measure_start(plan: Plan, models: Sequence[_Model], folder: Path, report: Report) -> None:
    from PIL import Image

    source, target = folder / "start.jpg", folder / "overlay.png"
    Image.fromarray(picture(*plan.image_size)).save(source)
    environment = {**os.environ, **_environment(plan)}
    for model in models:
        given = {key: value for key, value in model.options.items() if value not in (None, False)}
        flags = [f"--{key}" if value is True else f"--{key.replace('_', '-')}={value}" for key, value in given.items()]
        command = [sys.executable, "-m", "ovseg", "segment", str(source), "sky", "grass", "sand", "-q", "--overlay", str(target), *flags]
        runs = []
        for _ in range(plan.repeats + 1):
            target.unlink(missing_ok=True)
            before = _children_seconds()
            took = seconds_of(partial(subprocess.run, command, capture_output=True, check=False, env=environment))
            runs.append((took, _children_seconds() - before))
            if not target.is_file():
                report.notes.append(f"{model.title}: `ovseg segment` wrote no picture.")
                break
        else:
            took_all, busy = zip(*runs[1:], strict=True)  # the first run reads the disk
            report.start.append({"model": model.title, "seconds": Spread.of(took_all), "processor_seconds": Spread.of(busy)})


def _children_seconds() -> float:
    """Return the processor time of all child processes that have ended; on a busy machine it says more than the clock."""
    times = os.times()
    return times.children_user + times.children_system


# ------------------------------------------------------------------------------------------------------------ the command


def declare(parser: argparse.ArgumentParser) -> None:
    """Add the options of `ovseg benchmark`."""
    add = parser.add_argument
    add("-m", "--model", action="append", metavar="NAME", help="a model, by name or folder (mini); may repeat")
    add("--backend", action="append", choices=("onnx", "torch"), help="runtime (what the model runs with); may repeat")
    add("--dtype", action="append", choices=("float32", "float16", "bfloat16"), help="precision, with --backend torch; may repeat")
    add("--device", help="cpu, cuda, ... (a GPU if there is one)")
    add("--threads", type=int, help="CPU threads of a network, ours or another (all cores)")
    add("--weights", metavar="FILE", help="your own .safetensors; 'random' to measure speed without a download")
    add("--compile", action="store_true", help="with --backend torch: torch.compile, and on a GPU CUDA graphs")
    add("--readout", help="how dense features are read out of a CLIP or TIPS tower (the card's)")
    add("--image-size", default="640x480", metavar="WxH", help="size of the image [px] (640x480)")
    add("--labels", metavar="N,N", help="numbers of labels (1,10,100,1000)")
    add("--megapixels", metavar="N,N", help="sizes of images whose memory is measured (0.3,3,12)")
    add("--repeats", type=int, default=3, help="measurements, of which the median, least and most are shown (3)")
    add("--templates", action="append", metavar="SET", help="a template set, or a sentence with {}; may repeat")
    add("--size", help="short side the network sees [px], or 'native'")
    add("--window", choices=("whole", "sliding"), help="see the image at once or by windows (the model's own)")
    add("--only", action="append", choices=tuple(PARTS), help="measure only this; may repeat: " + "; ".join(map(": ".join, PARTS.items())))
    add("--full", action="store_true", help="also 5,000 labels, 100 megapixels and 1,000 labels on each; takes many minutes")
    add("--json", type=Path, metavar="FILE", help="write the result there")
    add("--markdown", type=Path, metavar="FILE", help="write the tables there")


def run(options: argparse.Namespace) -> str:
    """Measure, write the files that are asked for, and return the tables."""
    from ovseg.output.files import check_target, write_atomically, write_json

    for path in (options.json, options.markdown):
        if path:
            check_target(path.resolve(), path)  # measuring takes minutes
    report = run_plan(plan_of(options))
    text = report.format_markdown()
    if options.json:
        write_json(options.json, report.as_dict())
    if options.markdown:
        with write_atomically(options.markdown) as file:
            file.write((text + "\n").encode())
    return text


def plan_of(options: argparse.Namespace) -> Plan:
    """Read the options.

    Raises:
        InvalidArgumentError: If one cannot be understood.
    """
    try:
        width, height = (int(part) for part in options.image_size.lower().split("x"))
        counts = [int(part) for part in options.labels.split(",")] if options.labels else [1, 10, 100, 1000]
        megapixels = [float(part) for part in options.megapixels.split(",")] if options.megapixels else [0.3, 3, 12]
        size = int(options.size) if options.size not in (None, "native") else options.size
    except ValueError as error:
        raise InvalidArgumentError(f"--image-size is WxH, --labels and --megapixels are N,N, --size is N or native: {error}.") from error
    if options.repeats < 1 or min(counts) < 1 or min(width, height) < 1 or min(megapixels) <= 0:
        raise InvalidArgumentError("A benchmark needs at least one repeat, one label and one pixel.")
    threads = cores() if options.threads is None else options.threads
    if threads < 1:
        raise InvalidArgumentError(f"--threads must be at least 1; got {threads}.")
    shared = {"device": options.device, "threads": threads, "readout": options.readout, "compile": options.compile}
    models = [
        {"model": model, "backend": backend, "dtype": dtype, "weights": _weights(model, options.weights), **shared}
        for model, backend, dtype in product(options.model or ["mini"], options.backend or [None], options.dtype or [None])
    ]
    if options.full:
        counts = counts if options.labels else [*counts, 5000]
        megapixels = megapixels if options.megapixels else [0.3, 1, 3, 12, 30, 100]
    return Plan(
        models,
        threads,
        (height, width),
        counts,
        megapixels,
        (10, 1000) if options.full else (10,),
        options.repeats,
        120.0 if options.full else 20.0,
        {"templates": options.templates, "size": size, "window": options.window},
        tuple(options.only or PARTS),
    )


def _weights(model: str, weights: str | None) -> str | None:
    """Return the weights for a model; those that have their own beside them need no random ones."""
    has_own = os.path.isdir(model) or (model in cards() and bool(cards()[model].files))
    return None if weights == "random" and has_own else weights
