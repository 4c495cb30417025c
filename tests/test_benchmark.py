from __future__ import annotations

import json
from pathlib import Path

import pytest

import ovseg
from ovseg.cli import main
from ovseg.errors import InvalidArgumentError
from ovseg.evaluation.benchmark import benchmark, words


@pytest.mark.parametrize("count", [1, 14, 15, 300, 1000])
def test_made_up_labels_differ(count: int) -> None:
    assert len({word.casefold() for word in words(count)}) == count


def test_every_number_is_there(segmenter: ovseg.Segmenter) -> None:
    result = benchmark(lambda: segmenter, (40, 60), (20, 2, 2), repeats=2, size=64, templates="none")
    assert list(result.segment_seconds) == list(result.ask_seconds) == list(result.words_seconds) == [2, 20]
    assert result.encode_seconds is not None
    seconds = [*result.segment_seconds.values(), *result.ask_seconds.values(), result.encode_seconds]
    assert all(0 < value < 60 for value in seconds)
    assert result.peak_megabytes is None or result.peak_megabytes > 20
    table = result.format_table()
    assert "mini on onnx:cpu, 60 x 40 px" in table
    assert len(table.splitlines()) == 5


@pytest.mark.parametrize("options", [{"repeats": 0}, {"counts": ()}, {"counts": (0,)}, {"image_size": (0, 4)}])
def test_nothing_to_measure_is_refused(segmenter: ovseg.Segmenter, options: dict[str, int]) -> None:
    with pytest.raises(InvalidArgumentError):
        benchmark(lambda: segmenter, **options)  # type: ignore[arg-type]


def test_command(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    target = tmp_path / "speed.json"
    command = ["benchmark", "--image-size", "60x40", "--labels", "1,3", "--repeats", "1", "--size", "32", "--device", "cpu"]
    assert main([*command, "--json", str(target)]) == 0
    assert "labels" in capsys.readouterr().out
    assert json.loads(target.read_text())["segment_seconds"].keys() == {"1", "3"}
    assert main(["benchmark", "--image-size", "60"]) == 2
    assert "WxH" in capsys.readouterr().err
