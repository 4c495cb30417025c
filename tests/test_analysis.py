from __future__ import annotations

import csv
import json
import math
import os
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from sklearn import metrics

from ovseg.analysis import compare, compare_folders, report
from ovseg.cli import main
from ovseg.errors import InvalidArgumentError, InvalidImageError
from ovseg.result import Segmentation

RANDOM = np.random.default_rng(7)


def make(size: tuple[int, int] = (30, 40), labels: tuple[str, ...] = ("sky", "grass", "sand"), undecided: bool = True) -> Segmentation:
    values = RANDOM.integers(0, len(labels) + undecided, size).astype(np.uint8)
    values[values == len(labels)] = 255
    return Segmentation(values, labels, 255, model="mini")


def read_csv(path: Path) -> list[dict[str, str]]:
    with open(path, encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


# ---------------------------------------------------------------------------------------------------------------- compare


def test_comparison_as_sklearn_has_it() -> None:
    a, b = make(), make()
    found = compare(a, b)
    true, guess = (np.where(x.segmentation == 255, 3, x.segmentation).ravel() for x in (a, b))
    assert (found.transitions == metrics.confusion_matrix(true, guess, labels=range(4))).all()
    jaccard = metrics.jaccard_score(true, guess, labels=range(3), average=None)
    assert list(found.iou.values()) == pytest.approx(jaccard)
    assert found.mean_iou == pytest.approx(jaccard.mean())
    assert found.kappa == pytest.approx(metrics.cohen_kappa_score(true, guess))
    assert found.agreement == pytest.approx(metrics.accuracy_score(true, guess))
    assert found.changed is not None and (found.changed == (a.segmentation != b.segmentation)).all()
    assert found.changed_pixels == found.changed.sum()
    assert found.pixels == 1200


def test_labels_are_matched_by_name() -> None:
    a = Segmentation(np.array([[0, 0, 1, 255]], np.uint8), ("sky", "grass"), 255)
    b = Segmentation(np.array([[2, 1, 0, 0]], np.uint8), ("grass", "sea", "sky"), 255)
    found = compare(a, b)
    assert found.labels == ("sky", "grass", "sea")
    assert found.before == {"sky": 2, "grass": 1, "sea": 0}
    assert found.after == {"sky": 1, "grass": 2, "sea": 1}
    assert found.iou == {"sky": 0.5, "grass": 0.5, "sea": 0}
    assert found.changed is not None and found.changed.tolist() == [[False, True, False, True]]
    assert sorted(found.largest_changes()) == [("(undecided)", "grass", 1), ("sky", "sea", 1)]


def test_the_same_map_and_labels_nowhere() -> None:
    a = Segmentation(np.zeros((2, 2), np.uint8), ("sky", "grass"), 255)
    found = compare(a, a)
    assert found.changed_pixels == 0 and found.mean_iou == 1 and math.isnan(found.iou["grass"]) and math.isnan(found.kappa)
    assert found.largest_changes() == []
    assert "grass" not in found.format_table()
    assert found.as_dict()["iou"] == {"sky": 1.0, "grass": None}


def test_more_labels_than_bytes_hold() -> None:
    names = tuple(f"label {i}" for i in range(400))
    a = Segmentation(RANDOM.integers(0, 400, (50, 60)).astype(np.uint16), names, 65535)
    b = Segmentation(a.segmentation[:, ::-1].copy(), names, 65535)
    found = compare(a, b)
    assert (found.transitions == found.transitions.T).all()
    assert found.changed_pixels == (a.segmentation != b.segmentation).sum()


def test_what_cannot_be_compared(tmp_path: Path) -> None:
    with pytest.raises(InvalidArgumentError, match="same size"):
        compare(make(), make((5, 5)))
    with pytest.raises(InvalidArgumentError, match="no label in common"):
        compare(make(), make(labels=("a", "b", "c")))
    with pytest.raises(InvalidImageError, match="Cannot load"):
        compare(make(), tmp_path / "missing.png")


def test_comparison_of_folders_is_the_sum(tmp_path: Path) -> None:
    total = np.zeros((4, 4), np.int64)
    for folder in ("a", "b"):
        (tmp_path / folder / "deep").mkdir(parents=True)
    for name, suffix in (("one", ".png"), ("deep/two", ".npz"), ("three", ".json")):
        a, b = make(), make()
        a.save((tmp_path / "a" / name).with_suffix(suffix))
        b.save((tmp_path / "b" / name).with_suffix(".png"))
        total += compare(a, b).transitions
    make().save(tmp_path / "a/lonely.png")
    make((3, 3)).save(tmp_path / "a/other.png")
    make((4, 4)).save(tmp_path / "b/other.png")
    found = compare_folders(tmp_path / "a", tmp_path / "b", progress=False)
    assert (found.transitions == total).all() and found.maps == 3 and found.changed is None
    assert set(found.unpaired) == {"lonely", "other"}
    assert "same size" in found.unpaired["other"] and "only in" in found.unpaired["lonely"]


def test_folders_whose_labels_grow(tmp_path: Path) -> None:
    for folder in ("a", "b"):
        (tmp_path / folder).mkdir()
        Segmentation(np.array([[0, 255]], np.uint8), ("sky",), 255).save(tmp_path / folder / "1.png")
        Segmentation(np.array([[0, 1]], np.uint8), ("sea", "sky"), 255).save(tmp_path / folder / "2.png")
    found = compare_folders(tmp_path / "a", tmp_path / "b", progress=False)
    assert found.labels == ("sky", "sea")
    assert found.transitions.tolist() == [[2, 0, 0], [0, 1, 0], [0, 0, 1]]


def test_folders_without_a_pair(tmp_path: Path) -> None:
    for folder in ("a", "b"):
        (tmp_path / folder).mkdir()
    make().save(tmp_path / "a/one.png")
    with pytest.raises(InvalidImageError, match="only in"):
        compare_folders(tmp_path / "a", tmp_path / "b", progress=False)
    with pytest.raises(InvalidImageError, match="does not exist"):
        compare_folders(tmp_path / "a", tmp_path / "c", progress=False)


def test_saved_comparison(tmp_path: Path) -> None:
    found = compare(make(), make())
    found.save(tmp_path / "a.json")
    assert json.loads((tmp_path / "a.json").read_text())["transitions"] == found.transitions.tolist()
    found.save(tmp_path / "a.csv")
    rows = read_csv(tmp_path / "a.csv")
    assert [int(row["grass"]) for row in rows] == found.transitions[:, 1].tolist()
    with pytest.raises(InvalidArgumentError, match=".json or .csv"):
        found.save(tmp_path / "a.txt")


# ----------------------------------------------------------------------------------------------------------------- report


@pytest.fixture
def results(tmp_path: Path) -> Path:
    folder = tmp_path / "out"
    (folder / "more").mkdir(parents=True)
    first = Segmentation(np.array([[0, 0, 1], [0, 255, 1]], np.uint8), ("sky", "grass"), 255)
    second = Segmentation(np.array([[1, 1], [1, 1]], np.uint8), ("sea", "sky"), 255)
    first.save(folder / "first.png")
    first.save(folder / "first.json")  # the same result once more
    first.overlay().save(folder / "first.overlay.png")
    second.save(folder / "more/second.npz")
    (folder / ".hidden.png").write_bytes(b"")
    (folder / "notes.txt").write_text("nothing")
    (folder / "coco.json").write_text("{}")
    return folder


def test_report_counted_by_hand(results: Path) -> None:
    found = report(results, pixel_size=0.5, progress=False)
    assert found.names == ("first", "more/second") and found.labels == ("sky", "grass", "sea") and not found.skipped
    assert found.pixels.tolist() == [[3, 2, 0, 1], [4, 0, 0, 0]]
    assert found.asked.tolist() == [[True, True, False], [True, False, True]]
    rows = {row.pop("label"): row for row in found.rows()}
    assert list(rows) == ["sky", "grass", "sea", "(undecided)"]
    assert rows["sky"] == {"asked": 2, "found": 2, "pixels": 7, "share": 0.7, "mean_share": 0.75, "largest_share": 1, "area": 1.75}
    assert rows["sea"] == {"asked": 1, "found": 0, "pixels": 0, "share": 0, "mean_share": 0, "largest_share": 0, "area": 0}
    assert rows["(undecided)"]["pixels"] == 1
    assert found.regions is None
    with pytest.raises(InvalidArgumentError, match="regions=True"):
        found.save_regions(results / "regions.csv")


def test_report_agrees_with_the_results(tmp_path: Path) -> None:
    made = {f"{i:02}": make() for i in range(6)}
    for name, result in made.items():
        result.save(tmp_path / f"{name}.png")
    found = report(tmp_path, regions=True, min_pixels=3, progress=False)
    for i, result in enumerate(made.values()):
        assert dict(zip(found.labels, found.pixels[i], strict=False)) == result.areas()
    shares = np.array([list(result.coverage().values()) for result in made.values()])
    mean = {row["label"]: row["mean_share"] for row in found.rows()}
    assert [mean[label] for label in found.labels] == pytest.approx(shares.mean(0))
    assert found.regions == [(name, region) for name, result in made.items() for region in result.regions(min_pixels=3)]


def test_files_of_a_report(results: Path, tmp_path: Path) -> None:
    found = report(results, regions=True, progress=False)
    found.save(tmp_path / "labels.csv")
    assert [(row["label"], row["pixels"], row["area"]) for row in read_csv(tmp_path / "labels.csv")][0] == ("sky", "7", "")
    found.save_images(tmp_path / "images.csv")
    assert read_csv(tmp_path / "images.csv") == [
        {"image": "first", "sky": "3", "grass": "2", "sea": "", "(undecided)": "1"},
        {"image": "more/second", "sky": "4", "grass": "", "sea": "0", "(undecided)": "0"},
    ]
    found.save_regions(tmp_path / "regions.csv")
    assert [(row["image"], row["label"], row["pixels"]) for row in read_csv(tmp_path / "regions.csv")] == [
        ("first", "sky", "3"), ("first", "grass", "2"), ("more/second", "sky", "4"),
    ]  # fmt: skip
    found.save(tmp_path / "all.json")
    content = json.loads((tmp_path / "all.json").read_text())
    assert content["images"][1] == {"name": "more/second", "pixels": {"sky": 4, "sea": 0}, "undecided": 0}
    assert len(content["regions"]) == 3
    with pytest.raises(InvalidArgumentError, match=".json or .csv"):
        found.save(tmp_path / "all.xml")


@pytest.mark.skipif(sys.platform != "linux", reason="names of files are bytes on Linux alone")
def test_names_that_are_no_unicode(results: Path, tmp_path: Path) -> None:
    name = os.fsdecode(b"b\xffd")
    (results / "first.png").rename(results / f"{name}.png")
    found = report(results, regions=True, progress=False)
    assert name in found.names
    found.save(tmp_path / "all.json")
    assert name in [entry["name"] for entry in json.loads((tmp_path / "all.json").read_text())["images"]]
    found.save_images(tmp_path / "images.csv")
    found.save_regions(tmp_path / "regions.csv")
    for table in ("images.csv", "regions.csv"):
        assert b"\nb\xffd," in (tmp_path / table).read_bytes()


def test_files_that_hold_no_result_are_named(results: Path) -> None:
    (results / "broken.npz").write_bytes(b"PK\3\4 broken")
    (results / "manifest.json").write_text('{"files": []}')
    found = report(results, progress=False)
    assert set(found.skipped) == {"broken", "manifest"} and len(found.names) == 2
    assert "broken" in found.format_table()


def test_a_damaged_format_does_not_hide_a_good_one(results: Path) -> None:
    (results / "first.png").write_bytes(b"damaged")
    found = report(results, progress=False)
    assert found.names == ("first", "more/second") and not found.skipped


def test_folders_without_results(tmp_path: Path) -> None:
    with pytest.raises(InvalidImageError, match="no result"):
        report(tmp_path, progress=False)
    with pytest.raises(InvalidImageError, match="does not exist"):
        report(tmp_path / "missing", progress=False)
    (tmp_path / "file").write_text("")
    with pytest.raises(InvalidImageError, match="is a file"):
        report(tmp_path / "file", progress=False)
    (tmp_path / "a.png").write_bytes(b"no picture")
    with pytest.raises(InvalidImageError, match="of 1 such files"):
        report(tmp_path, progress=False)


# ---------------------------------------------------------------------------------------------------------------- commands


def test_commands(results: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    def run(*words: Any) -> tuple[int, str]:
        status = main([str(word) for word in words])
        return status, capsys.readouterr().out

    status, text = run(
        "report", results, "--pixel-size", "2", "--csv", tmp_path / "l.csv", "--images", tmp_path / "i.csv",
        "--regions", tmp_path / "r.csv", "--json", tmp_path / "a.json",
    )  # fmt: skip
    assert status == 0 and "28.0" in text and "3 regions" in text
    assert all((tmp_path / name).exists() for name in ("l.csv", "i.csv", "r.csv", "a.json"))
    first = results / "first.png"
    status, text = run("compare", first, first, "--json", tmp_path / "c.json", "--csv", tmp_path / "c.csv", "--changed", tmp_path / "c.png")
    assert status == 0 and "0 changed" in text
    assert all((tmp_path / name).exists() for name in ("c.json", "c.csv", "c.png"))
    assert run("compare", results, results)[0] == 0
    assert run("compare", results, first)[0] == 2
    assert run("compare", results, results, "--changed", tmp_path / "x.png")[0] == 2
    assert run("report", tmp_path / "missing")[0] == 1
    assert run("report", results, "--pixel-size", "-2")[0] == 2
    assert run("report", results, "--pixel-size", tmp_path / "missing.tif")[0] == 1
    (results / "bad.json").write_text("{")
    assert run("report", results)[0] == 1
