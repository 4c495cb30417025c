from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image

import ovseg
from ovseg.cli import main
from ovseg.commands import segment_folder
from ovseg.jobs.folder import ENGINES
from ovseg.jobs.summary import KINDS

Captured = pytest.CaptureFixture[str]


@pytest.fixture(autouse=True)
def loaded(segmenter: ovseg.Segmenter, monkeypatch: pytest.MonkeyPatch) -> list[dict[str, Any]]:
    """Let the commands use the model that is loaded already, and note what they asked `load` for."""
    calls: list[dict[str, Any]] = []

    def load(model: str, **options: Any) -> ovseg.Segmenter:
        calls.append({"model": model, **options})
        return segmenter

    monkeypatch.setattr("ovseg.segmenter.load", load)
    return calls


def test_the_options_offer_all_that_a_folder_knows() -> None:
    """The command repeats these names, so that its help need not import what does the work."""
    assert (segment_folder.SUMMARIES, segment_folder.ENGINES) == (KINDS, ENGINES)


@pytest.fixture(autouse=True)
def photos(tmp_path: Path, scene: NDArray[np.uint8], monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    Path("photos/deep").mkdir(parents=True)
    for number in range(3):
        Image.fromarray(scene[number * 8 : 60 + number]).save(f"photos/{number}.png")
    Image.fromarray(scene).save("photos/deep/3.jpg")
    Image.fromarray(scene).save("scene.png")
    return tmp_path / "photos"


def segment(*words: str) -> int:
    return main(["segment", *words, "--size", "32"])


def listed(folder: str) -> set[str]:
    return {path.relative_to(folder).as_posix() for path in Path(folder).rglob("*") if path.is_file()}


def test_a_folder_gives_maps_a_manifest_and_a_table(capsys: Captured, segmenter: ovseg.Segmenter) -> None:
    assert segment("photos", "sky", "grass; lawn", "-o", "out/maps", "--threshold", "0.4") == 0
    out, err = capsys.readouterr()
    assert listed("out/maps") == {"0.png", "1.png", "2.png", "manifest.jsonl", "coverage.csv"}
    assert out.startswith("photos  3 images in ")
    assert out.endswith("wrote out/maps/coverage.csv\n")
    assert "sky" in out
    assert "3/3" in err  # the progress
    for number in range(3):
        expected = segmenter.segment(f"photos/{number}.png", ["sky", ("grass", "lawn")], size=32, threshold=0.4)
        assert ovseg.Segmentation.load(f"out/maps/{number}.png") == expected
    assert segment("photos", "sky", "grass; lawn", "-o", "out/maps", "--threshold", "0.4") == 0
    assert "3 were done before" in capsys.readouterr().out


def test_all_options_of_a_folder(capsys: Captured, loaded: list[dict[str, Any]]) -> None:
    pytest.importorskip("pyarrow")
    words = ["photos", "sky", "grass", "-o", "out", "-r", "-q", "--workers", "2", "--threads", "1", "--engine", "threads"]
    summary = ["--summary", "csv", "--summary", "parquet", "--summary", "coco"]
    assert segment(*words, *summary, "--format", "json", "--format", "overlay") == 0
    assert loaded[0]["threads"] == 1
    names = {"0", "1", "2", "deep/3"}
    tables = {"coverage.csv", "coverage.parquet", "coco.json", "manifest.jsonl"}
    assert listed("out") == {f"{name}.json" for name in names} | {f"{name}.overlay.png" for name in names} | tables
    out, err = capsys.readouterr()
    assert err == ""
    assert [line.split()[0] for line in out.splitlines()] == ["wrote"] * 3
    assert len(json.loads(Path("out/coco.json").read_text())["images"]) == 4


def test_labels_of_a_folder_may_come_from_a_file(capsys: Captured) -> None:
    Path("labels.txt").write_text("sky; heaven\ngrass\n")
    for option in ("--labels", "--vocabulary"):
        assert segment("photos", option, "labels.txt", "-o", option.strip("-")) == 0
    assert ovseg.Segmentation.load("labels/0.png").labels == ("sky", "grass")
    assert segment("photos", "sea", "--labels", "labels.txt", "-o", "other") == 2
    assert "Give one" in capsys.readouterr().err


def test_a_bad_image_is_reported_and_the_status_says_so(capsys: Captured) -> None:
    Path("photos/1.png").write_bytes(b"nothing")
    assert segment("photos", "sky", "grass", "-o", "out") == 1
    err = capsys.readouterr().err
    assert "photos/1.png" in err
    assert err.endswith("ovseg: 1 of 3 images could not be segmented: 1.png\n")
    assert listed("out") == {"0.png", "2.png", "manifest.jsonl", "coverage.csv"}
    assert segment("photos", "sky", "grass", "-o", "out", "--restart", "--fail-fast", "-q") == 1
    assert capsys.readouterr().err.startswith("ovseg: cannot read image")


def test_another_question_needs_restart(capsys: Captured) -> None:
    assert segment("photos", "sky", "grass", "-o", "out", "-q") == 0
    assert segment("photos", "sky", "sea", "-o", "out", "-q") == 2
    assert "another question" in capsys.readouterr().err
    assert segment("photos", "sky", "sea", "-o", "out", "-q", "--restart") == 0
    assert ovseg.Segmentation.load("out/2.png").labels == ("sky", "sea")


def test_only_the_first_word_is_a_folder(capsys: Captured) -> None:
    Path("sky").mkdir()
    assert segment("photos", "sky", "grass", "-o", "out") == 0
    assert "'sky' is taken for a label" in capsys.readouterr().err
    assert segment("scene.png", "sky", "grass", "-o", "map.png") == 0
    assert ovseg.Segmentation.load("map.png").labels == ("sky", "grass")


@pytest.mark.parametrize(
    ("words", "status", "message"),
    [
        (["photos", "sky"], 2, "Say where the results go, -o OUT"),
        (["photos", "-o", "out"], 2, "No labels"),
        (["photos", "sky", "-o", "out.png"], 2, "names one file"),
        (["photos", "sky", "-o", "out", "--overlay", "a.png"], 2, "--overlay names one file"),
        (["photos", "sky", "-o", "photos"], 2, "among the images"),
        (["photos", "sky", "-o", "scene.png/out"], 1, "scene.png' exists and is no folder. Name another folder for them (-o)"),
        (["photos", "sky", "-o", "labels.txt"], 1, "labels.txt' exists and is no folder. Name another folder for them (-o)"),
        (["photos", "sky", "-o", "out", "--workers", "0"], 2, "workers must be"),
        (["photos", "sky", "-o", "out", "--smooth", "1"], 2, "--smooth is for a video"),
        (["photos", "sky", "-o", "out", "--summary", "coco", "--format", "overlay"], 2, "label maps"),
        (["empty", "sky", "-o", "out"], 1, "no image in"),
        (["scene.png", "sky", "-r"], 2, "--recursive is for a folder of images"),
        (["scene.png", "sky", "--engine", "ray"], 2, "--engine is for a folder"),
        (["scene.png", "sky", "--every", "2"], 2, "--every is for a video"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_what_goes_wrong_is_said(capsys: Captured, words: list[str], status: int, message: str) -> None:
    Path("empty").mkdir()
    Path("labels.txt").write_text("sky")
    assert segment(*words, "-q") == status
    out, err = capsys.readouterr()
    assert message in err
    assert out == ""
    assert not Path("out").exists()
