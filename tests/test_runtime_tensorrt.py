"""Running engines, against stand-ins that compute on the CPU; and for real where a GPU and TensorRT are."""

from __future__ import annotations

import dataclasses
import gc
import json
import sys
import threading
from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytest.importorskip("onnx")
pytest.importorskip("onnxruntime")
from fake_tensorrt import Machine  # noqa: E402
from ovseg.export.tensorrt import export_tensorrt  # noqa: E402
from small_graphs import PATCH, exported_folder  # noqa: E402

from ovseg.errors import BackendError, InvalidArgumentError, MissingDependencyError, OvsegError, WeightsError  # noqa: E402
from ovseg.positions import PositionTable, Resize  # noqa: E402
from ovseg.registry import find_card, weights_folder  # noqa: E402
from ovseg.runtime.base import Runtime  # noqa: E402
from ovseg.runtime.cuda import Cuda  # noqa: E402
from ovseg.runtime.onnx import OnnxRuntime  # noqa: E402
from ovseg.runtime.tensorrt import SHAPES, TensorRTRuntime, has_engine  # noqa: E402

SIZES: dict[str, Any] = {"height": (16, 32, 64), "width": (24, 48, 96), "batch": (1, 2, 4)}
RANDOM = np.random.default_rng(0)


TABLE = PositionTable(RANDOM.standard_normal((5, 4, 6)).astype(np.float32), PATCH, Resize("bicubic", True))
positions = TABLE.of_image


class Others:
    """A runtime for all but the image tower, that says what it was asked."""

    name, encode_global = "fake", None

    @staticmethod
    def refine_logits(logits: Any) -> Any:
        return logits + 1

    def encode_image(self, pixel_values: Any) -> Any:
        raise AssertionError("the image tower is the engine's")

    def encode_text(self, input_ids: Any, attention_mask: Any) -> Any:
        return np.float32(input_ids + attention_mask)


@pytest.fixture
def machine(monkeypatch: pytest.MonkeyPatch) -> Machine:
    return Machine(monkeypatch)


@pytest.fixture
def engines(machine: Machine, tmp_path: Path) -> Path:
    exported = exported_folder(tmp_path / "exported")
    export_tensorrt(exported, tmp_path / "engines", **SIZES)
    export_tensorrt(exported, tmp_path / "engines", part="segmenter", labels=(1, 4, 10), **SIZES)
    return tmp_path / "engines"


def open_engines(folder: Path) -> TensorRTRuntime:
    return TensorRTRuntime(folder, Others(), {"positions": TABLE})


def pixels(*shape: int) -> np.ndarray[Any, Any]:
    return RANDOM.standard_normal(shape).astype(np.float32)


def reference(folder: Path, part: str, **feeds: Any) -> np.ndarray[Any, Any]:
    import onnxruntime

    session = onnxruntime.InferenceSession(str(folder.parent / "exported" / f"{part}.onnx"), providers=["CPUExecutionProvider"])
    result: np.ndarray[Any, Any] = session.run(None, feeds)[0]
    return result


def test_features_are_those_of_the_graph(engines: Path) -> None:
    runtime: Runtime = open_engines(engines)
    assert runtime.name == "tensorrt:cuda"
    assert runtime.encode_global is None
    assert runtime.refine_logits is not None and runtime.refine_logits(pixels(1, 2, 3, 3)).shape == (1, 2, 3, 3)
    np.testing.assert_array_equal(runtime.encode_text(np.array([[1, 2]]), np.array([[1, 0]])), [[2, 2]])
    for shape in ((1, 3, 32, 48), (2, 3, 64, 24), (1, 3, 32, 48), (1, 3, 32, 48), (4, 3, 16, 96)):
        values = pixels(*shape)
        found = runtime.encode_image(values)
        assert found.dtype == np.float32 and found.shape == (shape[0], 6, shape[2] // PATCH, shape[3] // PATCH)
        np.testing.assert_array_equal(found, reference(engines, "image", pixel_values=values, positions=positions(*shape[2:])))


def test_the_embedded_model_gives_the_same_through_an_engine(machine: Machine, tmp_path: Path) -> None:
    folder, card = tmp_path / "mini", find_card("mini")
    export_tensorrt("mini", folder, height=(32, 64, 96), width=(32, 64, 96), batch=(1, 1, 2))
    source = weights_folder(card)
    onnx_runtime = OnnxRuntime(source / "image.onnx", source / "text.onnx", "cpu", 1)
    runtime = TensorRTRuntime(folder, onnx_runtime)
    values = pixels(3, 3, 64, 96)
    np.testing.assert_allclose(runtime.encode_image(values), onnx_runtime.encode_image(values), rtol=0, atol=1e-5)
    ids, mask = np.array([[101, 3712, 102]]), np.ones((1, 3), np.int64)
    np.testing.assert_array_equal(runtime.encode_text(ids, mask), onnx_runtime.encode_text(ids, mask))


def test_a_result_does_not_change_when_the_next_comes(engines: Path) -> None:
    runtime = open_engines(engines)
    first = runtime.encode_image(pixels(1, 3, 32, 48))
    kept = first.copy()
    runtime.encode_image(pixels(1, 3, 32, 48))
    np.testing.assert_array_equal(first, kept)


def test_the_second_run_of_a_shape_is_recorded_and_later_ones_replay_it(machine: Machine, engines: Path) -> None:
    runtime, device = open_engines(engines), machine.device
    runtime.encode_image(pixels(1, 3, 32, 48))
    assert (device.count_calls("cudaStreamBeginCapture"), device.count_calls("cudaGraphLaunch")) == (0, 0)
    copies = device.count_calls("cudaMemcpyAsync")
    runtime.encode_image(pixels(1, 3, 32, 48))
    assert (device.count_calls("cudaStreamBeginCapture"), device.count_calls("cudaGraphLaunch")) == (1, 1)
    for _ in range(3):
        runtime.encode_image(pixels(1, 3, 32, 48))
    assert (device.count_calls("cudaStreamBeginCapture"), device.count_calls("cudaGraphLaunch")) == (1, 4)
    assert device.count_calls("cudaMemcpyAsync") == copies + 3  # two inputs, one output, once for the recording
    assert device.graphs == {} and len(device.ready) == 1


def test_shapes_take_turns_without_disturbing_each_other(machine: Machine, engines: Path) -> None:
    runtime = open_engines(engines)
    for _ in range(3):
        for shape in ((1, 3, 32, 48), (1, 3, 64, 48)):
            values = pixels(*shape)
            expected = reference(engines, "image", pixel_values=values, positions=positions(*shape[2:]))
            np.testing.assert_array_equal(runtime.encode_image(values), expected)
    assert machine.trace.contexts == 2 and len(machine.device.ready) == 2


def test_only_a_few_shapes_are_kept(machine: Machine, engines: Path) -> None:
    runtime = open_engines(engines)
    widths = range(24, 97, 8)
    assert len(widths) > SHAPES
    for width in widths:
        for _ in range(2):
            runtime.encode_image(pixels(1, 3, 16, width))
    gc.collect()
    assert len(machine.device.ready) == SHAPES
    assert len(machine.device.memory) == 1 + 6 * SHAPES  # scratch; for each shape three tensors, on the device and on the host
    runtime.encode_image(pixels(1, 3, 16, widths[-SHAPES]))  # the oldest of those that are kept, which is the youngest now
    assert machine.trace.contexts == len(widths)
    runtime.encode_image(pixels(1, 3, 16, widths[1]))
    runtime.encode_image(pixels(1, 3, 16, widths[-SHAPES]))
    assert machine.trace.contexts == len(widths) + 1
    runtime.encode_image(pixels(1, 3, 16, widths[0]))
    assert machine.trace.contexts == len(widths) + 2


def test_all_memory_is_given_back(machine: Machine, engines: Path) -> None:
    runtime = open_engines(engines)
    for _ in range(3):
        runtime.encode_image(pixels(1, 3, 32, 48))
        assert runtime.label_map is not None
        runtime.label_map(pixels(1, 3, 32, 48), pixels(4, 6))
    assert machine.device.memory and machine.device.ready
    del runtime
    gc.collect()
    assert machine.device.memory == {} and machine.device.ready == {}


def test_an_engine_that_cannot_be_recorded_runs_without(machine: Machine, engines: Path) -> None:
    runtime = open_engines(engines)
    machine.device.capture_fails = True
    for _ in range(4):
        values = pixels(1, 3, 32, 48)
        expected = reference(engines, "image", pixel_values=values, positions=positions(32, 48))
        np.testing.assert_array_equal(runtime.encode_image(values), expected)
    assert machine.device.count_calls("cudaStreamBeginCapture") == 1
    assert machine.device.count_calls("cudaGraphLaunch") == 0


def test_batches_beyond_the_engines_are_run_in_parts(engines: Path) -> None:
    values = pixels(9, 3, 32, 48)
    expected = reference(engines, "image", pixel_values=values, positions=positions(32, 48))
    np.testing.assert_allclose(open_engines(engines).encode_image(values), expected, rtol=0, atol=1e-6)


@pytest.mark.parametrize("shape", [(1, 3, 8, 48), (1, 3, 72, 48), (1, 3, 32, 104), (1, 4, 32, 48)])
def test_images_outside_the_profile_are_refused(engines: Path, shape: tuple[int, ...]) -> None:
    with pytest.raises(InvalidArgumentError, match=r"was built for pixel_values from 1 x 3 x 16 x 24 to 4 x 3 x 64 x 96; got 1 x"):
        open_engines(engines).encode_image(pixels(*shape))


def test_the_segmenter_answers_with_indices(engines: Path) -> None:
    label_map = open_engines(engines).label_map
    assert label_map is not None
    values, text = pixels(2, 3, 32, 48), pixels(7, 6)
    found = label_map(values, text)
    assert found.dtype == np.int32 and found.shape == (2, 4, 6)
    assert len(np.unique(found)) > 2
    expected = reference(engines, "segmenter", pixel_values=values, text_embeddings=text, positions=positions(32, 48))
    np.testing.assert_array_equal(found, expected)
    with pytest.raises(InvalidArgumentError, match="text_embeddings from 1 x 6 to 10 x 6; got 11 x 6"):
        label_map(values, pixels(11, 6))
    with pytest.raises(BackendError, match="takes pixel_values, positions, text_embeddings"):
        label_map(values)


def test_without_a_segmenter_there_is_no_label_map(engines: Path) -> None:
    (engines / "segmenter.engine.json").unlink()
    assert open_engines(engines).label_map is None
    assert has_engine(engines) and not has_engine(engines, "segmenter")


def test_positions_that_the_engine_takes_must_be_known(engines: Path) -> None:
    with pytest.raises(WeightsError, match="positions"):
        TensorRTRuntime(engines, Others())


def test_threads_share_a_runtime(machine: Machine, engines: Path) -> None:
    runtime, failures = open_engines(engines), []
    machine.device.pause = 0.001  # so that threads take turns in the middle of a run
    values = {width: pixels(1, 3, 32, width) for width in (24, 48, 72, 96)}
    expected = {w: reference(engines, "image", pixel_values=v, positions=positions(32, w)) for w, v in values.items()}

    def work(width: int) -> None:
        for _ in range(8):
            try:
                np.testing.assert_array_equal(runtime.encode_image(values[width]), expected[width])
            except Exception as error:
                failures.append(error)

    threads = [threading.Thread(target=work, args=(width,)) for width in values]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert failures == []


# ------------------------------------------------------------------------------------------------------------ what is refused


def edit(folder: Path, **changes: Any) -> None:
    path = folder / "image.engine.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))


@pytest.mark.parametrize(
    ("record", "now", "message"),
    [
        ({}, "11.4.0.106", ""),
        ({}, "11.5.0.1", "was built by TensorRT 11.4.0.106, and 11.5.0.1 is installed.*--version-compatible"),
        ({}, "11.3.0.1", "was built by TensorRT 11.4.0.106"),
        ({"version_compatible": True}, "11.5.0.1", ""),
        ({"version_compatible": True}, "11.10.0.1", ""),
        ({"version_compatible": True}, "11.3.0.1", "11.4.0.106 or later"),
    ],
)
def test_versions(machine: Machine, engines: Path, record: dict[str, Any], now: str, message: str) -> None:
    edit(engines, **record)
    machine.install(now)
    if message:
        with pytest.raises(BackendError, match=message):
            open_engines(engines)
    else:
        open_engines(engines)
        assert machine.trace.runtimes[-1].engine_host_code_allowed == bool(record)


@pytest.mark.parametrize(
    ("level", "gpu", "capability", "fits"),
    [
        ("", "NVIDIA Test", (9, 0), True),
        ("", "NVIDIA Other", (9, 0), False),
        ("", "NVIDIA Test", (8, 0), False),
        ("same-compute-capability", "NVIDIA Other", (9, 0), True),
        ("same-compute-capability", "NVIDIA Other", (10, 0), False),
        ("ampere-plus", "NVIDIA Other", (12, 0), True),
        ("ampere-plus", "NVIDIA Other", (8, 0), True),
        ("ampere-plus", "NVIDIA Other", (7, 5), False),
    ],
)
def test_gpus(machine: Machine, engines: Path, level: str, gpu: str, capability: tuple[int, int], fits: bool) -> None:
    edit(engines, hardware_compatibility=level)
    machine.device.gpu, machine.device.capability = gpu, capability
    if fits:
        open_engines(engines)
    else:
        with pytest.raises(BackendError, match=f"and this is {gpu} .*Build it again here with `ovseg export tensorrt"):
            open_engines(engines)


def test_another_driver_is_no_reason(machine: Machine, engines: Path) -> None:
    machine.device.driver = 12080
    open_engines(engines)


@pytest.mark.parametrize(
    ("damage", "error", "message"),
    [
        (lambda f: next(f.glob("image-*")).write_bytes(b"{}"), WeightsError, "damaged or altered"),
        (lambda f: next(f.glob("image-*")).unlink(), WeightsError, "incomplete"),
        (lambda f: (f / "card.md").write_text((f / "card.md").read_text() + "\n"), WeightsError, "another card.md"),
        (lambda f: (f / "card.md").unlink(), WeightsError, "card.md is missing"),
        (lambda f: (f / "image.engine.json").unlink(), WeightsError, "has no image engine"),
        (lambda f: (f / "image.engine.json").write_text("{"), WeightsError, "is damaged"),
        (lambda f: (f / "image.engine.json").write_text("[]"), WeightsError, "is damaged"),
        (lambda f: edit(f, engine="../x.engine"), WeightsError, "is damaged"),
        (lambda f: edit(f, tensorrt=11), WeightsError, "is damaged"),
        (lambda f: edit(f, part="segmenter"), WeightsError, "is damaged"),
        (lambda f: edit(f, profiles={"pixel_values": [[1], [2]]}), WeightsError, "is damaged"),
        (lambda f: edit(f, more=1), WeightsError, "is damaged"),
    ],
)
def test_damaged_folders(engines: Path, damage: Any, error: type[OvsegError], message: str) -> None:
    damage(engines)
    with pytest.raises(error, match=message):
        open_engines(engines)


def test_an_engine_that_tensorrt_cannot_read(machine: Machine, engines: Path) -> None:
    from ovseg.integrity import sha256_of

    path = next(engines.glob("image-*"))
    path.write_bytes(b"no engine")
    edit(engines, engine_sha256=sha256_of(path))
    with pytest.raises(WeightsError, match="cannot read.*magicTag does not match"):
        open_engines(engines)


def test_a_machine_without_the_means(machine: Machine, engines: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    machine.device.count = 0
    with pytest.raises(BackendError, match="No NVIDIA GPU answers"):
        open_engines(engines)
    monkeypatch.setitem(sys.modules, "cuda.bindings", None)
    with pytest.raises(MissingDependencyError, match="cuda-bindings"):
        open_engines(engines)
    machine.install("10.16.1.11")
    with pytest.raises(MissingDependencyError, match="10.16.1.11 is installed, and ovseg needs 11"):
        open_engines(engines)
    monkeypatch.setitem(sys.modules, "tensorrt", None)
    with pytest.raises(MissingDependencyError, match="cannot be imported"):
        open_engines(engines)


def test_a_failure_of_cuda_is_named(machine: Machine) -> None:
    cuda = Cuda()
    machine.runtime.cudaMalloc = lambda size: (machine.runtime.cudaError_t.cudaErrorNoDevice, None)
    with pytest.raises(BackendError, match="cudaMalloc failed on GPU 0: cudaErrorNoDevice"):
        cuda.device_buffer(10)


def test_neither_engine_nor_runtime_imports_torch(engines: Path) -> None:
    import subprocess

    code = "import sys, ovseg.runtime.tensorrt, ovseg.runtime.cuda; sys.exit('torch' in sys.modules or 'tensorrt' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0


# ------------------------------------------------------------------------------------------------------------------ for real


def _real() -> str:
    """Say why the real thing cannot be tried; "" where it can."""
    from ovseg.runtime.tensorrt_engine import load_tensorrt

    try:
        load_tensorrt()
        Cuda()
    except OvsegError as error:
        return str(error)
    return ""


def test_a_real_engine_gives_what_the_graph_gives(tmp_path: Path) -> None:
    if reason := _real():
        pytest.skip(reason)
    source = weights_folder(find_card("mini"))
    onnx_runtime = OnnxRuntime(source / "image.onnx", source / "text.onnx", "cpu")
    export_tensorrt("mini", tmp_path / "mini", height=(64, 128, 256), width=(64, 128, 256), batch=(1, 1, 2), optimization_level=1)
    runtime = TensorRTRuntime(tmp_path / "mini", onnx_runtime)
    for shape in ((1, 3, 128, 128), (2, 3, 64, 256), (1, 3, 128, 128), (1, 3, 128, 128)):
        values = pixels(*shape)
        np.testing.assert_allclose(runtime.encode_image(values), onnx_runtime.encode_image(values), rtol=0, atol=5e-3)  # TF32
    assert dataclasses.is_dataclass(runtime._image.record)
