from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from ovseg.export.onnx import export_onnx

import ovseg
from ovseg.cli import main
from ovseg.errors import InvalidArgumentError, OutputError
from ovseg.evaluation import benchmark_command, floor, probe
from ovseg.evaluation.benchmark import BenchmarkResult, Entry, Spread, compare, interleave, peak_megabytes, picture, words
from ovseg.evaluation.benchmark_command import declare, plan_of, run
from ovseg.registry import find_card


@pytest.mark.parametrize("count", [1, 14, 1008, 1009, 20_000])
def test_made_up_labels_differ(count: int) -> None:
    assert len({word.casefold() for word in words(count)}) == count


def test_every_number_is_there(segmenter: ovseg.Segmenter) -> None:
    (result,) = compare([Entry(segmenter, "mini", 0.5)], (40, 60), (20, 2, 2), repeats=2, size=64, templates="none")
    assert (result.title, result.load_seconds) == ("mini, onnx:cpu, float32", 0.5)
    assert list(result.segment_seconds) == list(result.ask_seconds) == list(result.words_seconds) == [2, 20]
    assert result.encode_seconds is not None
    spreads = [*result.segment_seconds.values(), *result.ask_seconds.values(), result.encode_seconds]
    assert all(0 < spread.minimum <= spread.median <= spread.maximum < 60 and spread.count == 2 for spread in spreads)
    assert result.peak_megabytes is None or result.peak_megabytes > 20


@pytest.mark.parametrize("options", [{"repeats": 0}, {"counts": ()}, {"counts": (0,)}, {"image_size": (0, 4)}])
def test_nothing_to_measure_is_refused(segmenter: ovseg.Segmenter, options: dict[str, int]) -> None:
    with pytest.raises(InvalidArgumentError):
        compare([Entry(segmenter, "mini", 0)], **options)  # type: ignore[arg-type]


def test_command(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    target = tmp_path / "speed.json"
    command = ["benchmark", "--image-size", "60x40", "--labels", "1,3", "--repeats", "1", "--size", "32", "--device", "cpu"]
    command += ["--only", "labels"]
    assert main([*command, "--json", str(target)]) == 0
    assert "labels" in capsys.readouterr().out
    assert json.loads(target.read_text())["models"][0]["segment_seconds"].keys() == {"1", "3"}
    assert main(["benchmark", "--image-size", "60"]) == 2
    assert "WxH" in capsys.readouterr().err


def test_spread() -> None:
    spread = Spread.of([3.0, 1.0, 2.5])
    assert spread == Spread(1.0, 2.5, 3.0, 3)
    assert spread.format_seconds() == "2.50 s (1.00 to 3.00)"
    assert Spread.of([0.0123]).format_seconds() == "12.3 ms"
    assert spread.format_ratio() == "2.5x (1.0 to 3.0)"


def test_actions_take_turns() -> None:
    seen: list[str] = []
    found = interleave({"a": lambda: seen.append("a"), "b": lambda: seen.append("b")}, 3, warm=False)
    assert seen == ["a", "b"] * 3
    assert [len(values) for values in found.values()] == [3, 3]


def test_models_side_by_side_read_words_they_have_not_read(segmenter: ovseg.Segmenter, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[list[str]] = []
    real = ovseg.Segmenter.encode_text

    def encode_text(self: ovseg.Segmenter, labels: Any, **options: Any) -> Any:
        asked.append(list(labels))
        return real(self, labels, **options)

    monkeypatch.setattr(ovseg.Segmenter, "encode_text", encode_text)
    results = compare([Entry(segmenter, "mini", 0), Entry(segmenter, "mini", 0, "float16", True)], (40, 60), (2, 5), 1, 64, None, "none")
    assert [result.title for result in results] == ["mini, onnx:cpu, float32", "mini, onnx:cpu, float16, random weights"]
    assert [len(labels) for labels in asked] == [1, 2, 5] * 2
    assert len({word for labels in asked[:3] for word in labels}) == 8


def test_what_would_take_too_long_is_left_out(segmenter: ovseg.Segmenter) -> None:
    (result,) = compare([Entry(segmenter, "mini", 0)], (40, 60), (2, 10**5), 1, 64, None, "none", limit=1.0)
    assert result.skipped == (10**5,)
    assert list(result.segment_seconds) == [2]


def test_the_picture_is_always_the_same_and_shows_something() -> None:
    image = picture(30, 50)
    assert image.shape == (30, 50, 3) and image.dtype == np.uint8 and image.std() > 10
    np.testing.assert_array_equal(image, picture(30, 50))


def test_memory_of_a_process_is_not_that_of_its_parent() -> None:
    ballast = np.ones(60_000_000)  # 480 MB
    mine = peak_megabytes()
    if mine is None:
        pytest.skip("this system does not tell")
    code = "from ovseg.evaluation.benchmark import peak_megabytes as p; print(p())"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert mine > ballast.nbytes / 1e6 > float(done.stdout) > 20


def test_probe_measures_in_a_process_of_its_own(tmp_path: Path) -> None:
    from PIL import Image

    Image.fromarray(picture(40, 60)).save(tmp_path / "a.png")
    options = {"size": 64, "templates": "none"}
    found = probe.measure({"model": "mini", "device": "cpu"}, options, tmp_path / "a.png", 3, {"OVSEG_CACHE": "off"})
    assert found["image_size"] == [40, 60]
    assert found["segment_seconds"] > 0 and (found["peak_megabytes"] or 99) > 50
    wrong = probe.measure({"model": "minni"}, {}, tmp_path / "a.png", 3)
    assert "minni" in wrong["error"] and list(wrong) == ["error"]


def test_work_counts_the_operations_of_the_network() -> None:
    import torch
    from torch import nn

    from ovseg.models.mini import build

    card = find_card("mini")
    work = floor.measure_work(card, (480, 640), 64)
    assert floor.network_input(card, (480, 640)) == ((448, 608), 1)
    network = build({}, None)
    shapes: list[int] = []
    for module in network.modules():
        if isinstance(module, nn.Conv2d):
            module.register_forward_hook(lambda conv, _, out: shapes.append(2 * out.numel() * conv.weight[0].numel()))  # type: ignore[arg-type]
    with torch.no_grad():
        network(torch.zeros(1, 3, 64, 96))
    total = sum(shapes)
    assert work.flops == pytest.approx(total, rel=1e-6)
    weights = 4 * sum(value.numel() for value in network.parameters())
    assert work.bytes > weights
    clip = find_card("clip-vit-b16-openai")
    assert floor.network_input(clip, (768, 1024)) == ((224, 224), 6)
    machine = floor.Machine(work.flops / 2, work.bytes, "x")
    assert work.floor_seconds(machine) == 2
    eight = floor.measure_work(card, (480, 640), 64, batch=8, dtype="float16")
    assert eight.flops == 8 * work.flops
    assert work.bytes / 2 < eight.bytes < 8 * work.bytes / 2  # half the precision; the weights are read once
    assert floor.measure_work(clip, (768, 1024), batch=6).flops == pytest.approx(floor.measure_work(clip, (768, 1024)).flops, rel=1e-2)


def test_the_floor_of_a_gpu_is_measured_with_torch(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(benchmark_command, "_GPU_REPEATS", 2)
    monkeypatch.setattr(benchmark_command, "measure_device", lambda device, dtype: floor.measure_device(device, dtype, 64))
    plan = plan_of(options_of("--backend", "torch", "--device", "cpu", "--image-size", "96x64", "--size", "64"))
    (model,) = benchmark_command._load_all(plan, [])
    result = BenchmarkResult("mini", "torch:cuda", (64, 96), 1, 1, Spread(1, 1, 1, 1), {}, {}, {}, None)
    report = benchmark_command.Report({})
    benchmark_command._measure_floor(plan, [model], [result], report)
    one, eight = report.floor
    assert eight["flops"] == 8 * one["flops"] and one["model"].endswith("1 at once") and eight["model"].endswith("8 at once")
    assert all(row["share"] == row["floor_seconds"] / row["encode_seconds"] > 0 for row in report.floor)
    assert "TFLOP/s" in report.notes[0] and not report.machine
    elsewhere = replace(result, device="tensorrt:cuda")
    benchmark_command._measure_floor(plan, [model], [elsewhere], report)
    assert len(report.floor) == 2 and "with torch on a GPU" in report.notes[1]


def options_of(*arguments: str) -> argparse.Namespace:
    parser = argparse.ArgumentParser()
    declare(parser)
    return parser.parse_args(arguments)


def test_plan() -> None:
    plan = plan_of(options_of())
    assert [model["model"] for model in plan.models] == ["mini"]
    assert plan.image_size == (480, 640) and tuple(plan.counts) == (1, 10, 100, 1000)
    plan = plan_of(options_of("-m", "a", "-m", "b", "--backend", "onnx", "--backend", "torch", "--dtype", "float16", "--full"))
    assert [(model["model"], model["backend"], model["dtype"]) for model in plan.models] == [
        ("a", "onnx", "float16"), ("a", "torch", "float16"), ("b", "onnx", "float16"), ("b", "torch", "float16"),
    ]  # fmt: skip
    assert plan.counts[-1] == 5000 and plan.megapixels[-1] == 100 and 1000 in plan.megapixel_counts
    wrongs = [
        ("--image-size", "60"), ("--labels", "a"), ("--labels", "0"), ("--megapixels", "0"), ("--repeats", "0"), ("--size", "x"),
        ("--threads", "0"),
    ]  # fmt: skip
    for wrong in wrongs:
        with pytest.raises(InvalidArgumentError):
            plan_of(options_of(*wrong))


def test_the_whole_report(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    made: list[Any] = []

    def make(image: Any) -> Any:
        return lambda count: made.append((image.shape, count))

    peer = benchmark_command.Peer("slow thing", "how", ("mini",), (48, 32), (1, 3), make)
    other = benchmark_command.Peer("other", "how", ("lseg",), None, (1,), make)
    missing = benchmark_command.Peer("missing", "how", ("mini",), None, (1,), lambda image: __import__("no_such_package"))
    monkeypatch.setattr(benchmark_command, "PEERS", (peer, other, missing))
    monkeypatch.setattr(benchmark_command, "measure_machine", lambda threads: floor.Machine(1e11, 1e10, "numpy"))
    monkeypatch.delenv("OVSEG_CACHE", raising=False)
    small = ["--image-size", "60x40", "--labels", "1,3", "--megapixels", "0.002", "--repeats", "1", "--threads", "1", "--device", "cpu"]
    files = ["--json", str(tmp_path / "a.json"), "--markdown", str(tmp_path / "a.md")]
    text = run(options_of(*small, *files, "--size", "64", "--templates", "none", "--dtype", "float32", "--dtype", "float16"))
    found = json.loads((tmp_path / "a.json").read_text())
    assert (tmp_path / "a.md").read_text() == text + "\n"
    assert found["models"][0]["segment_seconds"].keys() == {"1", "3"}
    assert [row["labels"] for row in found["peers"]] == [1, 3] and {row["peer"] for row in found["peers"]} == {"slow thing"}
    assert all(shape == (48, 32, 3) for shape, _ in made)
    assert found["megapixels"][0]["segment_seconds"] > 0
    assert found["start"][0]["seconds"]["median"] > 0
    assert 0 < found["floor"][0]["share"]
    assert any("float16" in note for note in found["notes"]) and any("missing" in note for note in found["notes"])
    for heading in ("Labels", "Megapixels", "Cold start", "Peers", "floor"):
        assert heading in text
    tables = [line for line in text.splitlines() if line.startswith("|")]
    assert len(tables) == 5 * 2 + 2 + 1 + 1 + 2 + 1  # head and rule of each; rows
    assert "OVSEG_CACHE" not in os.environ


def test_only_what_is_asked_for() -> None:
    small = ("--image-size", "60x40", "--labels", "2", "--repeats", "1", "--size", "64", "--device", "cpu")
    text = run(options_of(*small, "--only", "labels"))
    assert "## Labels" in text and text.count("## ") == 1
    text = run(options_of(*small, "--only", "floor"))
    assert "floor" in text and text.count("## ") == 1


def test_folders_of_one_model_are_told_apart_and_have_a_floor(tmp_path: Path) -> None:
    pytest.importorskip("torch")
    folders = [str(tmp_path / name) for name in ("first", "second")]
    for folder in folders:
        export_onnx("mini", folder)
    small = ("--image-size", "60x40", "--labels", "2", "--repeats", "1", "--size", "64", "--device", "cpu")
    text = run(options_of(*small, "-m", folders[0], "-m", folders[1], "--only", "labels", "--only", "floor"))
    for folder in folders:
        assert text.count(f"| mini in {folder}, onnx:cpu, float32 ") == 2


def test_what_cannot_be_written_is_said_before_anything_is_measured(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(benchmark_command, "run_plan", lambda plan: pytest.fail("it measured"))
    for option in ("--json", "--markdown"):
        for path in (tmp_path / "nowhere" / "file", tmp_path):
            with pytest.raises(OutputError, match="Cannot write"):
                run(options_of(option, str(path)))


def test_a_model_that_does_not_exist_is_an_error() -> None:
    with pytest.raises(ovseg.errors.OvsegError, match="minni"):
        run(options_of("-m", "minni", "--only", "labels"))
