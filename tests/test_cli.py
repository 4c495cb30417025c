from __future__ import annotations

import json
import logging
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image

import ovseg
from ovseg import cli
from ovseg.cli import main
from ovseg.commands import tables
from ovseg.jobs import writing

Picture = NDArray[np.uint8]
Captured = pytest.CaptureFixture[str]


@pytest.fixture(autouse=True)
def loaded(segmenter: ovseg.Segmenter, monkeypatch: pytest.MonkeyPatch) -> Iterator[list[dict[str, Any]]]:
    """Let the commands use the model that is loaded already, and note what they asked `load` for."""
    calls: list[dict[str, Any]] = []
    real = ovseg.load

    def load(model: str, **options: Any) -> ovseg.Segmenter:
        calls.append({"model": model, **options})
        return segmenter if model == "mini" and not any(options.values()) else real(model, **options)

    monkeypatch.setattr("ovseg.segmenter.load", load)
    yield calls
    for handler in logging.root.handlers[:]:  # what logging.basicConfig set up for a command
        if type(handler) is logging.StreamHandler:
            logging.root.removeHandler(handler)


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, scene: Picture, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The current folder: two images, one that is broken, and a labels file."""
    monkeypatch.chdir(tmp_path)
    Image.fromarray(scene[:48, :64]).save("scene.png")
    Image.fromarray(scene[::-1][:40, :50]).save("other.jpg")
    Path("broken.png").write_bytes(Path("scene.png").read_bytes()[:300])
    Path("labels.txt").write_text("sky; heaven\n# a comment\ngrass\n", "utf-8")
    return tmp_path


def listed(folder: Path | str = ".") -> set[str]:
    """Names of the files that were not there at the start."""
    return {path.name for path in Path(folder).iterdir()} - {"scene.png", "other.jpg", "broken.png", "labels.txt"}


def segment(*words: str) -> int:
    return main(["segment", *words, "--size", "32"])


# ---------------------------------------------------------------------------------------------------------------- general


def test_no_command_shows_all_and_is_wrong_usage(capsys: Captured) -> None:
    assert main([]) == 2
    shown = capsys.readouterr().out
    assert all(command in shown for command in ("segment", "classify", "models", "eval"))
    assert main(["--help"]) == main(["-h"]) == 0
    assert capsys.readouterr().out == 2 * shown


def test_version(capsys: Captured) -> None:
    assert main(["--version"]) == main(["-V"]) == 0
    assert capsys.readouterr().out == 2 * f"ovseg {ovseg.__version__}\n"


@pytest.mark.parametrize("command", ["segmnt", "scene.png", "--nothing"])
def test_unknown_command(capsys: Captured, command: str) -> None:
    assert main([command, "sky"]) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert command in err
    assert ", ".join((*cli._COMMANDS, *cli._GROUPS)) in err


@pytest.mark.parametrize("command", list(cli._COMMANDS))
def test_each_command_has_help(capsys: Captured, command: str) -> None:
    with pytest.raises(SystemExit) as stop:
        main([command, "--help"])
    assert stop.value.code == 0
    shown = capsys.readouterr().out
    assert shown.startswith(f"usage: ovseg {command}")
    assert cli._COMMANDS[command][1] in shown


@pytest.mark.parametrize(
    "arguments",
    [
        ["segment", "scene.png", "sky", "--size", "big"],
        ["segment", "scene.png", "sky", "--format", "bmp"],
        ["segment", "scene.png", "sky", "--window", "round"],
        ["segment", "scene.png", "sky", "--threshold", "much"],
        ["segment", "scene.png", "sky", "--nothing"],
        ["classify", "scene.png", "sky", "--top", "all"],
        ["eval"],
    ],
    ids=" ".join,
)
def test_options_that_make_no_sense_are_wrong_usage(capsys: Captured, arguments: list[str]) -> None:
    with pytest.raises(SystemExit) as stop:
        main(arguments)
    assert stop.value.code == 2
    assert f"usage: ovseg {arguments[0]}" in capsys.readouterr().err


def test_model_options_reach_load(loaded: list[dict[str, Any]], capsys: Captured) -> None:
    assert segment("scene.png", "sky", "-m", "mini", "--device", "cpu", "--threads", "1", "-q") == 0
    given = {"model": "mini", "device": "cpu", "threads": 1, "local_files_only": False, "compile": False}
    assert {key: value for key, value in loaded[0].items() if value is not None} == given
    assert segment("scene.png", "sky", "--dtype", "float16") == 2
    assert loaded[-1]["dtype"] == "float16"
    assert "float16" in capsys.readouterr().err


@pytest.mark.parametrize(("model", "message"), [("mimi", "Did you mean 'mini'"), ("", "Unknown model ''")])
def test_unknown_model(capsys: Captured, model: str, message: str) -> None:
    assert segment("scene.png", "sky", "-m", model) == 2
    out, err = capsys.readouterr()
    assert (out, message in err) == ("", True)


def test_verbose_shows_where_an_error_comes_from() -> None:
    with pytest.raises(ovseg.InvalidImageError):
        main(["segment", "none.png", "sky", "-v"])


def test_a_key_press_stops_it_quietly(monkeypatch: pytest.MonkeyPatch, capsys: Captured, segmenter: ovseg.Segmenter) -> None:
    def stop(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(type(segmenter), "segment", stop)
    assert segment("scene.png", "sky") == 130
    assert capsys.readouterr() == ("", "")


# ---------------------------------------------------------------------------------------------------------------- segment


def test_segment_prints_a_table_and_writes_an_overlay(capsys: Captured, segmenter: ovseg.Segmenter) -> None:
    assert segment("scene.png", "sky", "grass", "wooden table") == 0
    out, err = capsys.readouterr()
    lines = out.splitlines()
    assert lines[0] == "scene.png  64 x 48"
    assert lines[-1] == "wrote scene.overlay.png"
    assert err == ""
    assert listed() == {"scene.overlay.png"}
    result = segmenter.segment("scene.png", ["sky", "grass", "wooden table"], size=32)
    with Image.open("scene.overlay.png") as picture:
        assert np.array_equal(np.asarray(picture.convert("RGB")), np.asarray(result.overlay()))
    shown = {line.split("%")[0].rsplit(None, 1)[0].strip(): line for line in lines[1:-1] if "%" in line}
    found = {label: share for label, share in result.coverage().items() if share}
    assert list(shown) == sorted(found, key=lambda label: -found[label])
    bars = [line.count("█") for line in shown.values()]
    assert bars == sorted(bars, reverse=True)
    assert bars[0] == tables.BAR
    missing = [label for label, share in result.coverage().items() if not share]
    assert ("not found" in out) == bool(missing)


def test_table_of_many_labels_is_short(capsys: Captured) -> None:
    Path("labels.txt").write_text("\n".join(f"object number {number}" for number in range(400)))
    assert segment("scene.png", "--labels", "labels.txt", "--templates", "none") == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[-2].startswith("  not found: ")
    assert lines[-2].endswith("more")
    assert lines[-2].count(",") == tables.NAMED - 1
    found = len(lines) - 3
    assert int(lines[-2].split()[-2]) == 400 - found - tables.NAMED


def test_shares_are_not_rounded_to_nothing() -> None:
    table = tables.bars([("sky", 0.9996), ("sea", 0.0004)])
    assert ">99.9%" in table
    assert "<0.1%" in table


def test_columns_line_up_for_wide_characters() -> None:
    rows = tables.bars([("sky", 0.5), ("日本語", 0.25), ("cafe\u0301", 0.25)]).splitlines()
    cells = [tables.columns(row.partition("%")[0]) for row in rows]
    assert len(set(cells)) == 1
    assert tables.columns("日本語") == 6
    assert tables.columns("cafe\u0301") == 4


@pytest.mark.parametrize(
    "words",
    [
        ["--size", "32", "scene.png", "sky", "grass", "-q"],
        ["scene.png", "--size", "32", "sky", "-q", "grass"],
        ["-q", "scene.png", "sky", "--size", "32", "grass"],
        ["scene.png", "sky", "grass", "--size=32", "-q"],
    ],
    ids=" ".join,
)
def test_options_may_stand_anywhere(capsys: Captured, words: list[str], segmenter: ovseg.Segmenter) -> None:
    assert main(["segment", *words, "-o", "map.npz"]) == 0
    assert capsys.readouterr().out == "wrote map.npz\n"
    assert ovseg.Segmentation.load("map.npz") == segmenter.segment("scene.png", ["sky", "grass"], size=32)


@pytest.mark.parametrize("suffix", ["png", "json", "npz", "PNG"])
def test_the_suffix_of_the_output_decides(segmenter: ovseg.Segmenter, suffix: str) -> None:
    assert segment("scene.png", "sky", "grass", "-o", f"map.{suffix}") == 0
    assert listed() == {f"map.{suffix}"}
    expected = segmenter.segment("scene.png", ["sky", "grass"], size=32)
    assert ovseg.Segmentation.load(f"map.{suffix}") == expected


def test_json_and_geojson_are_what_the_library_writes(segmenter: ovseg.Segmenter) -> None:
    assert segment("scene.png", "sky", "grass", "-o", "map.json") == 0
    coco = json.loads(Path("map.json").read_text("utf-8"))
    assert coco["images"][0]["file_name"] == "scene.png"
    assert [category["name"] for category in coco["categories"]] == ["sky", "grass"]
    assert segment("scene.png", "sky", "grass", "-o", "map.geojson") == 0
    expected = segmenter.segment("scene.png", ["sky", "grass"], size=32).to_geojson()
    assert json.loads(Path("map.geojson").read_text("utf-8")) == json.loads(json.dumps(expected))


def test_all_formats_into_a_new_folder(capsys: Captured) -> None:
    formats = [word for kind in writing.FORMATS for word in ("--format", kind)]
    assert segment("scene.png", "other.jpg", "sky", "grass", "-o", "deep/er", *formats, "-q") == 0
    names = {f"{stem}{suffix}" for stem in ("scene", "other") for suffix in (".overlay.png", ".png", ".json", ".geojson", ".npz")}
    assert {path.name for path in Path("deep/er").iterdir()} == names
    assert len(capsys.readouterr().out.splitlines()) == len(names)
    assert json.loads(Path("deep/er/other.json").read_text())["images"][0]["file_name"] == "other.jpg"


def test_a_format_without_a_folder_goes_here() -> None:
    assert segment("other.jpg", "sky", "grass", "--format", "png") == 0
    assert listed() == {"other.png"}


def test_an_overlay_beside_other_outputs() -> None:
    assert segment("other.jpg", "sky", "grass", "--overlay", "look.jpg", "--format", "npz") == 0
    assert listed() == {"look.jpg", "other.npz"}
    assert segment("other.jpg", "sky", "grass", "--overlay", "look.webp", "-o", "map.png") == 0
    assert listed() == {"look.jpg", "other.npz", "look.webp", "map.png"}
    with Image.open("look.jpg") as first, Image.open("look.webp") as second:
        assert (first.format, second.format) == ("JPEG", "WEBP")
        assert first.size == second.size


@pytest.mark.parametrize("suffix", ["webp", "jpg"])
def test_a_picture_too_large_for_its_format(suffix: str) -> None:
    result = ovseg.Segmentation(np.zeros((2, 70_000), np.uint8), ("sky",), 255)
    with pytest.raises(ovseg.OutputError):
        writing.write_result(result, Path(f"look.{suffix}"), "overlay")
    assert not listed()


def test_an_existing_folder_with_a_dot_is_a_folder() -> None:
    Path("out.v2").mkdir()
    assert segment("scene.png", "sky", "grass", "-o", "out.v2") == 0
    assert listed("out.v2") == {"scene.overlay.png"}


def test_labels_background_and_synonyms(segmenter: ovseg.Segmenter) -> None:
    words = ["road", "sky; heaven", "--background", "wall; floor", "--background", "grass", "--threshold", "0.3", "--templates", "a {}"]
    assert segment("scene.png", *words, "-o", "map.npz") == 0
    expected = segmenter.segment(
        "scene.png",
        ["road", ("sky", "heaven")],
        background=[("wall", "floor"), "grass"],
        threshold=0.3,
        templates=["a {}"],
        size=32,
    )
    assert ovseg.Segmentation.load("map.npz") == expected


@pytest.mark.parametrize(
    ("words", "background"),
    [(["auto"], "auto"), (["auto", "sand"], ["auto", "sand"]), (["auto;"], [("auto",)]), (["auto; car"], [("auto", "car")])],
)
def test_auto_is_a_list_and_with_a_semicolon_a_word(segmenter: ovseg.Segmenter, words: list[str], background: Any) -> None:
    given = [part for word in words for part in ("--background", word)]
    assert segment("scene.png", "sky", "grass", *given, "-o", "map.npz") == 0
    assert ovseg.Segmentation.load("map.npz") == segmenter.segment("scene.png", ["sky", "grass"], background=background, size=32)


def test_neither_labels_nor_hints_are_written_over(capsys: Captured) -> None:
    ovseg.Vocabulary(["sky", "grass"]).save("words.json")
    before = Path("words.json").read_bytes()
    assert segment("scene.png", "--labels", "words.json", "-o", "words.json") == 2
    assert "'words.json' would be written over its input 'words.json'" in capsys.readouterr().err
    assert Path("words.json").read_bytes() == before
    Image.new("L", Image.open("scene.png").size, 255).save("strokes.png")
    assert segment("scene.png", "sky", "grass", "--hints", "strokes.png", "-o", "strokes.png") == 2
    assert "over its input 'strokes.png'" in capsys.readouterr().err


def test_undecided_pixels_have_a_row(capsys: Captured) -> None:
    assert segment("scene.png", "sky", "grass", "--threshold", "1") == 0
    assert "(undecided)  100.0%" in capsys.readouterr().out


def test_labels_from_a_file(capsys: Captured, segmenter: ovseg.Segmenter) -> None:
    assert segment("scene.png", "other.jpg", "--labels", "labels.txt", "-o", "out", "--format", "npz") == 0
    expected = segmenter.segment("other.jpg", [("sky", "heaven"), "grass"], size=32)
    assert ovseg.Segmentation.load("out/other.npz") == expected


@pytest.mark.parametrize(("name", "message"), [("none.txt", "No such file"), ("scene.png", "binary"), (".", "directory")])
def test_a_labels_file_that_is_none(capsys: Captured, name: str, message: str) -> None:
    assert segment("other.jpg", "--labels", name) == 2
    assert message in capsys.readouterr().err


def test_labels_twice(capsys: Captured) -> None:
    assert segment("scene.png", "sky", "--labels", "labels.txt") == 2
    assert "Give one" in capsys.readouterr().err


def test_one_label_alone_earns_a_hint(capsys: Captured) -> None:
    assert segment("scene.png", "sky") == 0
    assert "one label alone" in capsys.readouterr().err
    assert segment("scene.png", "sky", "--background", "grass") == 0
    assert capsys.readouterr().err == ""


@pytest.mark.parametrize(
    ("words", "status", "message"),
    [
        ([], 2, "No image was given"),
        (["scene.png"], 2, "No labels were given"),
        (["none.png", "sky"], 1, "No such file: 'none.png'"),
        (["sky", "grass"], 1, "No such file: 'sky'"),
        (["scene.png", "none.jpg", "sky"], 1, "No such file: 'none.jpg'"),
        (["scene.png", "sky", "other.jpg"], 2, "'other.jpg' is an image and stands after the label 'sky'"),
        ([".", "sky"], 2, "'.' is a folder"),
        (["scene.png", "sky", "sky"], 2, "repeats"),
        (["scene.png", "sky", ""], 2, "blank"),
        (["scene.png", "sky", ";"], 2, "no word"),
        (["scene.png", "sky", "--background", "Sky"], 2, "both in labels and in background"),
        (["scene.png", "sky", "--threshold", "5"], 2, "threshold"),
        (["scene.png", "sky", "--templates", "imagnet"], 2, "Did you mean 'imagenet'"),
        (["scene.png", "sky", "-o", "map.jpg"], 2, "--overlay map.jpg"),
        (["scene.png", "sky", "-o", "map.tif"], 2, "not for scenes (-o map.tif)"),
        (["scene.png", "sky", "-o", "map.png", "--format", "npz"], 2, "--format is for a folder"),
        (["scene.png", "sky", "--overlay", "look.gif"], 2, "look.gif"),
        (["scene.png", "other.jpg", "sky", "--overlay", "look.png"], 2, "several images"),
        (["scene.png", "other.jpg", "sky", "-o", "map.png"], 2, "several images"),
        (["scene.png", "sky", "-o", "none/map.png"], 1, "does not exist"),
        (["scene.png", "sky", "--overlay", "none/look.png"], 1, "does not exist"),
        (["scene.png", "sky", "-o", "labels.txt/out"], 1, "Cannot make the folder"),
        (["scene.png", "sky", "--format", "png"], 2, "would be written over its input 'scene.png'"),
        (["scene.png", "sky", "-o", "scene.png"], 2, "would be written over its input 'scene.png'"),
        (["scene.png", "sky", "--overlay", "./scene.png"], 2, "would be written over its input 'scene.png'"),
        (["scene.png", "scene.png", "sky"], 2, "would be written twice"),
        (["scene.png", "sky", "--overlay", "a.png", "-o", "a.png"], 2, "would be written twice"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_what_goes_wrong_is_said(capsys: Captured, words: list[str], status: int, message: str) -> None:
    before = Path("scene.png").read_bytes()
    assert segment(*words) == status
    out, err = capsys.readouterr()
    assert message in err
    assert err.startswith("ovseg: ")
    assert "Traceback" not in err
    assert "wrote" not in out
    assert Path("scene.png").read_bytes() == before
    assert not {name for name in listed() if name.endswith((".png", ".npz", ".tif", ".tmp"))}


def test_size_out_of_range(capsys: Captured) -> None:
    assert main(["segment", "scene.png", "sky", "--size", "5"]) == 2
    assert "between 32 and 8192" in capsys.readouterr().err


def test_two_images_of_one_name_do_not_overwrite_each_other(capsys: Captured) -> None:
    Path("more").mkdir()
    Path("more/scene.png").write_bytes(Path("scene.png").read_bytes())
    assert segment("scene.png", "more/scene.png", "sky", "-o", "out") == 2
    assert "for scene.png and for more/scene.png" in capsys.readouterr().err
    assert not Path("out").exists()


def test_a_folder_named_like_a_label_is_no_image() -> None:
    Path("sky").mkdir()
    assert segment("scene.png", "sky", "grass", "-o", "map.png") == 0
    assert ovseg.Segmentation.load("map.png").labels == ("sky", "grass")


@pytest.mark.skipif(os.name == "nt" or not hasattr(os, "geteuid") or os.geteuid() == 0, reason="root may write everywhere")
def test_a_folder_that_may_not_be_written(capsys: Captured) -> None:
    Path("locked").mkdir(mode=0o555)
    assert segment("scene.png", "sky", "-o", "locked/map.png") == 1
    assert segment("scene.png", "sky", "-o", "locked/deeper") == 1
    assert capsys.readouterr().err.count("locked") == 2


def test_a_broken_image_does_not_stop_the_others(capsys: Captured) -> None:
    assert segment("scene.png", "broken.png", "other.jpg", "sky", "grass", "-o", "out") == 1
    out, err = capsys.readouterr()
    assert listed("out") == {"scene.overlay.png", "other.overlay.png"}
    assert "wrote out" in out
    assert len(err.splitlines()) == 1
    assert "broken.png" in err


def test_a_url_is_an_image(monkeypatch: pytest.MonkeyPatch, capsys: Captured) -> None:
    content = Path("scene.png").read_bytes()
    monkeypatch.setattr("ovseg.image.fetch", lambda url, **_: content)
    assert segment("HTTPS://example.org/a/beach.png?size=big", "sky", "grass") == 0
    assert listed() == {"beach.overlay.png"}
    assert segment("http://127.0.0.1/", "sky", "grass") == 0
    assert "image.overlay.png" in listed()


def test_labels_may_be_any_text(capsys: Captured) -> None:
    assert segment("scene.png", "👍", "日本語", "--", "-sky") == 0
    out = capsys.readouterr().out
    assert all(label in out for label in ("👍", "日本語", "-sky"))


# --------------------------------------------------------------------------------------------------------------- classify


def test_classify_prints_the_best(capsys: Captured, segmenter: ovseg.Segmenter) -> None:
    labels = ["sky", "grass", "cat", "dog", "horse", "bird", "car"]
    assert main(["classify", "scene.png", *labels]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == "scene.png"
    best = segmenter.classify("scene.png", labels).top(5)
    assert [line.split()[0] for line in lines[1:]] == [label for label, _ in best]
    assert main(["classify", "scene.png", "--top", "99", *labels]) == 0
    assert len(capsys.readouterr().out.splitlines()) == 8


def test_classify_prints_json_lines(capsys: Captured, segmenter: ovseg.Segmenter) -> None:
    words = ["sky", "日本語", "grass; lawn"]
    assert main(["classify", "scene.png", "broken.png", "other.jpg", *words, "--json", "--top", "2", "--templates", "imagenet-7"]) == 1
    out, err = capsys.readouterr()
    lines = [json.loads(line) for line in out.splitlines()]
    assert [line["image"] for line in lines] == ["scene.png", "other.jpg"]
    expected = segmenter.classify("scene.png", ["sky", "日本語", ("grass", "lawn")], templates="imagenet-7").top(2)
    assert list(lines[0]["scores"].items()) == expected
    assert "broken.png" in err


@pytest.mark.parametrize(
    ("words", "status", "message"),
    [
        (["scene.png"], 2, "No labels"),
        (["none.png", "sky"], 1, "No such file"),
        (["scene.png", "sky", "--top", "0"], 2, "at least 1"),
        (["scene.png", "sky", "sky"], 2, "repeats"),
    ],
)
def test_what_goes_wrong_in_classify_is_said(capsys: Captured, words: list[str], status: int, message: str) -> None:
    assert main(["classify", *words]) == status
    assert message in capsys.readouterr().err


# ----------------------------------------------------------------------------------------------------------- models, eval


def test_models(capsys: Captured) -> None:
    assert main(["models"]) == 0
    lines = capsys.readouterr().out.split("\n\n")[0].splitlines()
    assert [line.split()[0] for line in lines[1:]] == [card.name for card in ovseg.list_models()]
    assert main(["models", "--json"]) == 0
    rows = json.loads(capsys.readouterr().out)
    assert [row["name"] for row in rows] == [card.name for card in ovseg.list_models()]
    assert rows[0]["license"] == ovseg.list_models()[0].license


@pytest.fixture
def dataset(folder: Path, scene: Picture) -> Path:
    """Two images with their truth, and a third."""
    root = folder / "data"
    for name in ("images", "labels"):
        (root / name).mkdir(parents=True)
    truth = np.zeros((48, 64), np.uint8)
    truth[24:] = 1
    truth[:2] = 255
    for name, image in {"a": scene[:48, :64], "b": scene[30:78, :64], "c": scene[48:96, 64:]}.items():
        Image.fromarray(image).save(root / "images" / f"{name}.png")
        Image.fromarray(truth).save(root / "labels" / f"{name}.png")
    (root / "labels.txt").write_text("sky\ngrass\n")
    return root


def test_eval_prints_a_table_and_writes_json(capsys: Captured, dataset: Path) -> None:
    options = ["--size", "32", "--limit", "2", "--window", "sliding", "--templates", "a {}", "--json", "scores.json"]
    assert main(["eval", str(dataset), *options]) == 0
    out = capsys.readouterr().out
    assert "mIoU" in out
    assert "grass" in out
    scores = json.loads(Path("scores.json").read_text("utf-8"))
    assert scores["images"] == 2
    assert 0 <= scores["mean_iou"] <= 100
    assert f"{scores['mean_iou']:.2f}" in out
    assert scores["settings"] == {"templates": ["a {}"], "window": "sliding", "size": 32, "limit": 2}


def test_eval_of_several_datasets(capsys: Captured, dataset: Path) -> None:
    Path("names.txt").write_text("heaven\nlawn\n")
    assert main(["eval", str(dataset), str(dataset), "--size", "32", "--labels", "names.txt", "--json", "scores.json"]) == 0
    scores = json.loads(Path("scores.json").read_text("utf-8"))
    assert len(scores) == 2
    assert list(scores[0]["iou"]) == ["heaven", "lawn"]
    assert capsys.readouterr().out.count("mIoU") == 2


@pytest.mark.parametrize(
    ("arguments", "status", "message"),
    [
        (["nothing"], 1, "does not exist"),
        (["."], 1, "images"),
        (["data", "--limit", "0"], 2, "limit"),
        (["data", "--labels", "labels.txt"], 2, ""),
        (["data", "--json", "none/scores.json"], 1, "none/scores.json"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_what_goes_wrong_in_eval_is_said(
    capsys: Captured, dataset: Path, arguments: list[str], status: int, message: str
) -> None:
    Path("labels.txt").write_text("one name for two classes\n")
    assert main(["eval", *arguments, "--size", "32"]) == status
    assert message in capsys.readouterr().err


# ------------------------------------------------------------------------------------------------------------ as a process


def run(*arguments: str, **options: Any) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "ovseg.cli", *arguments]
    return subprocess.run(command, text=True, encoding="utf-8", check=False, **{"capture_output": True, **options})


def test_a_reader_that_went_away_is_no_error_message() -> None:
    for arguments in (["models"], ["--help"], ["segment", "--help"]):
        read, write = os.pipe()
        os.close(read)
        done = run(*arguments, capture_output=False, stdout=write, stderr=subprocess.PIPE)
        os.close(write)
        assert done.stderr == ""
        assert done.returncode == (0 if "segment" in arguments else 1)  # argparse does not mind


@pytest.mark.skipif(os.name == "nt", reason="the shell closes the stream")
def test_a_closed_stdout_is_no_error() -> None:
    done = subprocess.run(["sh", "-c", f"'{sys.executable}' -m ovseg.cli models >&-"], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")


def test_a_terminal_without_the_characters_shows_others() -> None:
    environment = {**os.environ, "PYTHONIOENCODING": "ascii", "PYTHONUTF8": "0"}
    done = run("segment", "scene.png", "日本語", "grass", "--size", "32", env=environment)
    assert done.returncode == 0, done.stderr
    assert "????" in done.stdout
    assert "wrote scene.overlay.png" in done.stdout


@pytest.mark.parametrize(("words", "status"), [([], 2), (["--help"], 0), (["nothing"], 2)])
def test_commands_of_two_words_say_what_they_know(capsys: Captured, words: list[str], status: int) -> None:
    assert main(["convert", *words]) == status
    out, err = capsys.readouterr()
    assert all(name in (err if status else out) for name in ("lseg", "radio", "dinotxt"))


@pytest.mark.parametrize("words", [["lseg", "none.ckpt", "out"], ["radio", "none.pth", ".", "out"], ["dinotxt", "a.pth", "b.pth", "out"]])
def test_converters_say_what_is_missing(capsys: Captured, words: list[str]) -> None:
    pytest.importorskip("torch")
    assert main(["convert", *words]) == 1
    err = capsys.readouterr().err
    assert "none." in err or "a.pth" in err
    assert not Path("out").exists()
