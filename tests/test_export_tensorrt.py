"""Building engines, against a stand-in for TensorRT 11.4 that knows only its names; and for real where a GPU and TensorRT are."""

from __future__ import annotations

import argparse
import dataclasses
import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytest.importorskip("onnx")
pytest.importorskip("onnxruntime")
import onnx  # noqa: E402
from fake_tensorrt import NAMES, Machine  # noqa: E402
from onnx import helper  # noqa: E402
from ovseg.export import tensorrt as export  # noqa: E402
from ovseg.export.checkpoints import card_text  # noqa: E402
from ovseg.export.tensorrt import Built, engine_key, export_tensorrt, plan_engine  # noqa: E402
from ovseg.export.tensorrt_build import BuildFlags  # noqa: E402
from small_graphs import exported_folder, graph, value  # noqa: E402

from ovseg.errors import BackendError, InvalidArgumentError, MissingDependencyError, OutputError, OvsegError, WeightsError  # noqa: E402
from ovseg.hub import read_folder  # noqa: E402
from ovseg.registry import parse_card  # noqa: E402
from ovseg.runtime.tensorrt_engine import read_record  # noqa: E402

SIZES: dict[str, Any] = {"height": (16, 32, 64), "width": (24, 48, 96), "batch": (1, 2, 4)}


@pytest.fixture
def machine(monkeypatch: pytest.MonkeyPatch) -> Machine:
    return Machine(monkeypatch)


@pytest.fixture
def exported(tmp_path: Path) -> Path:
    return exported_folder(tmp_path / "exported")


def build(exported: Path, name: str = "engines", **options: Any) -> Built:
    return export_tensorrt(exported, exported.parent / name, **{**SIZES, **options})


def names(folder: Path) -> set[str]:
    return {path.name for path in folder.iterdir()}


def test_the_stand_in_has_no_name_that_tensorrt_lacks(machine: Machine) -> None:
    for kind in machine.module.classes:
        own = {name for name in vars(kind) if not name.startswith("_")}
        assert own <= set(NAMES[kind.__name__].split()), kind
    with pytest.raises(AttributeError):
        _ = machine.module.BuilderFlag.FP16
    with pytest.raises(AttributeError):
        _ = machine.module.NetworkDefinitionCreationFlag
    with pytest.raises(AttributeError):
        machine.module.Runtime(machine.module.ILogger()).max_batch_size = 1


def test_the_names_are_those_of_the_real_bindings() -> None:
    real = pytest.importorskip("tensorrt", reason="TensorRT 11 is not installed", exc_type=ImportError)
    for kind, listed in NAMES.items():
        assert set(listed.split()) <= set(dir(getattr(real, kind))), kind


def test_the_stand_in_of_cuda_has_no_name_that_the_real_bindings_lack(machine: Machine) -> None:
    import importlib

    own = {name for name in vars(machine.runtime) if name.startswith("cuda")}
    for name in ("cuda", "cuda.bindings"):
        sys.modules.pop(name)  # the fixture puts them back
    real = pytest.importorskip("cuda.bindings.runtime", reason="cuda-bindings is not installed", exc_type=ImportError)
    assert importlib.import_module("cuda.bindings.runtime") is real
    assert own <= set(dir(real))
    for table in ("cudaError_t", "cudaMemcpyKind", "cudaStreamCaptureMode"):
        assert {entry.name for entry in getattr(machine.runtime, table)} <= set(dir(getattr(real, table)))


def test_an_engine_folder_is_complete(machine: Machine, exported: Path) -> None:
    built = build(exported)
    assert built.fresh
    assert names(built.folder) == {"card.md", "text.onnx", "tokenizer.json", "image.engine.json", built.record.engine}
    card, files = read_folder(built.folder)
    assert set(files) == {"text", "tokenizer"}
    original, _ = read_folder(exported)
    assert dataclasses.replace(card, files={}, sha256={}) == dataclasses.replace(original, files={}, sha256={})
    assert not list(exported.parent.glob(".*"))  # nothing half written is left


def test_weights_that_another_graph_shares_stay(machine: Machine, exported: Path) -> None:
    (exported / "global.onnx").write_bytes((exported / "image.onnx").read_bytes())
    card = parse_card((exported / "card.md").read_text("utf-8"), "card.md")
    (exported / "card.md").write_text(card_text(dataclasses.replace(card, files={**card.files, "global": "global.onnx"})), "utf-8")
    folder = build(exported).folder
    assert {"global.onnx", "image.onnx.data"} <= names(folder) and "image.onnx" not in names(folder)
    assert set(read_folder(folder)[1]) == {"global", "image_weights", "text", "tokenizer"}


def test_the_builder_gets_shapes_and_flags(machine: Machine, exported: Path) -> None:
    options = {"workspace": 1 << 30, "optimization_level": 5, "version_compatible": True, "hardware_compatibility": "ampere-plus"}
    build(exported, **options)
    assert machine.trace.shapes == {
        "pixel_values": ((1, 3, 16, 24), (2, 3, 32, 48), (4, 3, 64, 96)),
        "positions": ((2, 3, 6), (4, 6, 6), (8, 12, 6)),
    }
    assert machine.trace.flags == ["VERSION_COMPATIBLE"]
    assert machine.trace.settings == {"WORKSPACE": 1 << 30, "level": 5, "hardware": "AMPERE_PLUS"}


def test_without_wishes_the_builder_gets_no_flags(machine: Machine, exported: Path) -> None:
    build(exported)
    assert machine.trace.flags == [] and machine.trace.timings == []
    assert machine.trace.cleared == ["TF32"]  # or float32 would not be float32
    assert machine.trace.settings == {"level": 3, "hardware": "NONE"}


def test_the_record_says_what_was_built_of_what(machine: Machine, exported: Path) -> None:
    record = build(exported).record
    assert read_record(exported.parent / "engines", "image") == record
    assert (record.tensorrt, record.gpu, record.compute_capability, record.driver) == ("11.4.0.106", "NVIDIA Test", "9.0", "13.2")
    original, _ = read_folder(exported)
    assert record.onnx_sha256 == {name: original.sha256[name] for name in ("image.onnx", "image.onnx.data")}
    assert record.profiles == machine.trace.shapes
    assert record.memory["inputs"] == 4 * (4 * 3 * 64 * 96 + 8 * 12 * 6)
    assert record.engine == f"image-{record.key[:12]}.engine"


def test_an_engine_that_is_up_to_date_is_not_built_again(machine: Machine, exported: Path) -> None:
    first, second = build(exported), build(exported)
    assert (first.fresh, second.fresh, machine.trace.builds) == (True, False, 1)
    assert second.record == first.record
    assert "up to date" in second.format() and "built in" in first.format()


@pytest.mark.parametrize("change", ["shapes", "level", "tensorrt", "gpu", "damage"])
def test_an_engine_that_is_not_up_to_date_is_replaced(machine: Machine, exported: Path, change: str) -> None:
    first, options = build(exported), {}
    if change == "shapes":
        options = {"batch": (1, 1, 1)}
    elif change == "level":
        options = {"optimization_level": 4}
    elif change == "tensorrt":
        machine.install("11.5.0.1")
    elif change == "gpu":
        machine.device.gpu = "NVIDIA Other"
    else:
        (first.folder / first.record.engine).write_bytes(b"")
    second = build(exported, **options)
    assert second.fresh and machine.trace.builds == 2
    assert [path.name for path in second.folder.glob("*.engine")] == [second.record.engine]
    assert (second.record.engine != first.record.engine) == (change != "damage")


def test_the_key_hangs_on_everything_that_matters(machine: Machine, exported: Path) -> None:
    record = build(exported).record
    other = {
        "part": "segmenter", "onnx_sha256": {}, "card_sha256": "x", "tensorrt": "11.0", "gpu": "x", "compute_capability": "8.0",
        "version_compatible": True, "hardware_compatibility": "ampere-plus", "optimization_level": 1, "workspace": 1, "profiles": {},
    }  # fmt: skip
    keys = {engine_key(dataclasses.replace(record, **{name: value})) for name, value in other.items()}
    assert len(keys | {record.key}) == len(other) + 1
    assert engine_key(dataclasses.replace(record, created="x", seconds=9.0, driver="1.0", engine="x", engine_sha256="x")) == record.key


def test_a_second_part_joins_the_first(machine: Machine, exported: Path) -> None:
    first, second = build(exported), build(exported, part="segmenter", labels=(1, 5, 300))
    assert machine.trace.shapes["text_embeddings"] == ((1, 6), (5, 6), (300, 6))
    assert {first.record.engine, second.record.engine, "image.engine.json", "segmenter.engine.json"} <= names(second.folder)


def test_another_models_folder_is_left_alone(machine: Machine, exported: Path) -> None:
    folder = build(exported).folder
    before = {path.name: path.read_bytes() for path in folder.iterdir()}
    other = exported_folder(exported.parent / "other", positions=False)
    with pytest.raises(OutputError, match="this very model"):
        export_tensorrt(other, folder, **SIZES)
    with pytest.raises(OutputError, match="this very model"):
        export_tensorrt(exported, exported, **SIZES)
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == before
    assert machine.trace.builds == 1


def test_an_empty_folder_will_do_and_a_file_will_not(machine: Machine, exported: Path) -> None:
    (exported.parent / "empty").mkdir()
    assert build(exported, "empty").fresh
    (exported.parent / "file").write_text("mine")
    with pytest.raises(OutputError):
        build(exported, "file")
    assert (exported.parent / "file").read_text() == "mine"


def test_timings_are_kept(machine: Machine, exported: Path) -> None:
    cache = exported.parent / "timings"
    build(exported, timing_cache=cache)
    assert machine.trace.timings == [(b"", False)]
    assert cache.read_bytes() == machine.trace.good_timings
    build(exported, "again", timing_cache=cache)
    assert machine.trace.timings[1:] == [(machine.trace.good_timings, False)]


def test_timings_of_another_gpu_are_measured_anew(machine: Machine, exported: Path, caplog: pytest.LogCaptureFixture) -> None:
    cache = exported.parent / "timings"
    cache.write_bytes(b"of another GPU")
    build(exported, timing_cache=cache)
    assert machine.trace.timings == [(b"of another GPU", False), (b"", False)]
    assert cache.read_bytes() == machine.trace.good_timings
    assert "measured anew" in caplog.text


def test_what_the_parser_says_is_passed_on(machine: Machine, exported: Path) -> None:
    machine.trace.parse_errors = [("Resize", "up", "not this one"), ("Det", "d", "nor this")]
    with pytest.raises(BackendError, match="Resize up: not this one; Det d: nor this"):
        build(exported)
    assert not (exported.parent / "engines").exists()


def test_nothing_is_left_of_a_build_that_fails(machine: Machine, exported: Path, caplog: pytest.LogCaptureFixture) -> None:
    cache = exported.parent / "timings"
    machine.trace.fails, machine.trace.says = True, [("WARNING", "tight"), ("ERROR", "out of memory")]
    with pytest.raises(BackendError, match="out of memory"):
        build(exported, timing_cache=cache)
    assert names(exported.parent) == {"exported"}
    assert "tight" in caplog.text
    machine.trace.fails = False
    first = build(exported)
    before = {path.name: path.read_bytes() for path in first.folder.iterdir()}
    machine.trace.fails = True
    with pytest.raises(BackendError):
        build(exported, batch=(1, 1, 1))
    assert {path.name: path.read_bytes() for path in first.folder.iterdir()} == before


def _break(exported: Path, model: Any) -> None:
    """Put another image graph into an exported folder."""
    onnx.save(model, exported / "image.onnx")
    card = parse_card((exported / "card.md").read_text("utf-8"), "card.md")
    (exported / "card.md").write_text(card_text(dataclasses.replace(card, sha256={})), "utf-8")


def test_a_graph_that_tensorrt_refuses_never_reaches_it(monkeypatch: pytest.MonkeyPatch, exported: Path) -> None:
    monkeypatch.setitem(sys.modules, "tensorrt", None)  # the graph is looked at before the library
    up = helper.make_node("Resize", ["pixel_values", "", "scales"], ["features"], "up", mode="linear", antialias=1)
    scales = {"scales": np.float32([1, 1, 2, 2])}
    _break(exported, graph([up], [value("pixel_values", ["B", 3, "H", "W"])], [value("features", None)], scales))
    with pytest.raises(BackendError, match=r"antialias at Resize 'up'"):
        build(exported)


def test_what_is_uncertain_is_tried(machine: Machine, exported: Path, caplog: pytest.LogCaptureFixture) -> None:
    up = helper.make_node("Resize", ["pixel_values", "", "scales"], ["features"], "up", mode="cubic")
    scales = {"scales": np.float32([1, 1, 2, 2])}
    _break(exported, graph([up], [value("pixel_values", ["B", 3, "H", "W"])], [value("features", None)], scales))
    assert build(exported).fresh
    assert "unknown: resize" in caplog.text


def test_without_tensorrt_one_sentence_says_so(monkeypatch: pytest.MonkeyPatch, exported: Path) -> None:
    monkeypatch.setitem(sys.modules, "tensorrt", None)
    with pytest.raises(MissingDependencyError, match=r"pip install 'ovseg\[tensorrt\]' --extra-index-url https://pypi.nvidia.com"):
        build(exported)


@pytest.mark.parametrize("version", ["10.16.1.11", "12.0.0", "8.6.1"])
def test_another_major_version_is_refused(machine: Machine, exported: Path, version: str) -> None:
    machine.install(version)
    with pytest.raises(MissingDependencyError, match=f"TensorRT {version} is installed, and ovseg needs 11"):
        build(exported)


def test_without_a_gpu_one_sentence_says_so(machine: Machine, exported: Path) -> None:
    machine.device.count = 0
    with pytest.raises(BackendError, match="No NVIDIA GPU answers on this machine .cudaErrorNoDevice."):
        build(exported)
    machine.device.count = 1
    with pytest.raises(InvalidArgumentError, match="There is no GPU 3"):
        build(exported, index=3)
    assert not (exported.parent / "engines").exists()


def test_without_cuda_bindings_one_sentence_says_so(machine: Machine, exported: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "cuda.bindings", None)
    with pytest.raises(MissingDependencyError, match="cuda-bindings"):
        build(exported)


@pytest.mark.parametrize(
    ("options", "error"),
    [
        ({"part": "text"}, InvalidArgumentError), ({"height": (16, 30, 64)}, InvalidArgumentError),
        ({"batch": (2, 1, 4)}, InvalidArgumentError), ({"optimization_level": 6}, InvalidArgumentError),
        ({"workspace": -1}, InvalidArgumentError), ({"hardware_compatibility": "any"}, InvalidArgumentError),
    ],
)  # fmt: skip
def test_wrong_wishes_are_refused(machine: Machine, exported: Path, options: dict[str, Any], error: type[OvsegError]) -> None:
    with pytest.raises(error):
        build(exported, **options)


def test_a_damaged_folder_is_refused(machine: Machine, exported: Path) -> None:
    data = exported / "image.onnx.data"
    data.write_bytes(data.read_bytes()[:-4] + b"\0\0\0\1")
    with pytest.raises(WeightsError, match="damaged or altered"):
        build(exported)


def test_models_that_are_no_folder_are_exported_first() -> None:
    for name in ("lseg-vit-l16", "hf-hub:owner/name"):
        with pytest.raises(InvalidArgumentError, match="ovseg export onnx"):
            plan_engine(name)


def test_the_embedded_model_can_be_planned_anywhere() -> None:
    plan = plan_engine("mini")
    assert plan.problems == ()
    assert plan.profiles["pixel_values"] == ((1, 3, 224, 224), (1, 3, 448, 448), (8, 3, 1024, 1024))
    assert set(plan.onnx_sha256) == {"image.onnx", "image.safetensors"}
    assert plan.memory.outputs == 8 * 384 * 256 * 256 * 4


def options(*words: str) -> argparse.Namespace:
    parser = argparse.ArgumentParser()
    export.declare(parser)
    return parser.parse_args(words)


def test_the_command_checks_without_a_gpu(exported: Path) -> None:
    said = export.run(options(str(exported), "--check", "--height", "16,32,64", "--width", "48", "--part", "segmenter"))
    assert "pixel_values: 1 x 3 x 16 x 48, 1 x 3 x 32 x 48, 1 x 3 x 64 x 48" in said
    assert "nothing is known" in said
    det = helper.make_node("Det", ["pixel_values"], ["y"])
    _break(exported, graph([det], [value("pixel_values", ["B", 3, "H", "W"])], [value("y", None)]))
    with pytest.raises(BackendError, match="would refuse(.|\n)*operator at Det"):
        export.run(options(str(exported), "--check"))


def test_labels_are_the_segmenters(exported: Path) -> None:
    with pytest.raises(InvalidArgumentError, match="--part segmenter"):
        export.run(options(str(exported), "--check", "--labels", "1,2,3"))
    with pytest.raises(InvalidArgumentError, match="--fused"):
        export.run(options("mini", "--check", "--part", "segmenter", "--labels", "1,2,3"))


def test_the_command_builds(machine: Machine, exported: Path) -> None:
    words = [str(exported), str(exported.parent / "engines"), "--workspace", "512", "--timing-cache", str(exported.parent / "timings")]
    said = export.run(options(*words, "--batch", "1,2,3", "--version-compatible", "--hardware-compatibility", "same-compute-capability"))
    assert "NVIDIA Test" in said and "11.4.0.106" in said
    record = json.loads((exported.parent / "engines" / "image.engine.json").read_text())
    assert record["workspace"] == 512_000_000 and record["version_compatible"] and record["profiles"]["pixel_values"][2][0] == 3
    with pytest.raises(InvalidArgumentError, match="ENGINE_FOLDER"):
        export.run(options(str(exported)))


@pytest.mark.parametrize("text", ["1,2", "a", "1,2,3,4", ""])
def test_ranges_on_the_command_line(text: str) -> None:
    with pytest.raises(SystemExit):
        options("folder", "--batch", text)


def test_flags_have_defaults_of_tensorrt() -> None:
    assert BuildFlags() == BuildFlags(0, 3, False, "")
