"""The table of regularised losses on a toy dataset: its arithmetic, its shared first phase, and its scores against `ovseg eval`'s."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

torch = pytest.importorskip("torch")

from ovseg.errors import InvalidArgumentError  # noqa: E402
from ovseg.evaluation.datasets import Dataset  # noqa: E402
from ovseg.evaluation.evaluate import evaluate  # noqa: E402
from ovseg.learn.examples import read_examples  # noqa: E402
from ovseg.learn.table import ROWS, Row, format_table, lecture_table, score  # noqa: E402
from ovseg.learn.train import CHECKPOINT, Settings  # noqa: E402
from ovseg.learn.trainable import Trainable  # noqa: E402


@pytest.fixture
def data(tmp_path: Path) -> Path:
    root = tmp_path / "data"
    colours = np.array([(120, 180, 240), (60, 150, 50), (180, 80, 60)])
    for split in ("train", "test"):
        for kind in ("images", "labels"):
            (root / split / kind).mkdir(parents=True)
        for index in range(2):
            labels = np.full((64, 96), 1, np.uint8)
            labels[: 24 + index] = 0
            labels[30:58, 10:40] = 2
            noise = np.random.default_rng(index).integers(-15, 16, (64, 96, 3))
            Image.fromarray((colours[labels] + noise).clip(0, 255).astype(np.uint8)).save(root / split / f"images/{index}.png")
            Image.fromarray(labels).save(root / split / f"labels/{index}.png")
    (root / "labels.txt").write_text("sky\ngrass; lawn\nwall")
    return root


def test_rows_share_their_first_phase_and_are_not_trained_twice(data: Path, tmp_path: Path) -> None:
    settings = Settings(steps=3, warmup=2, batch=1, size=64, rate=1e-2)
    names = ("full", "PCE", "PCE+ENT")
    rows = lecture_table(data, tmp_path, settings=settings, rows=names, progress=False)
    assert [row.name for row in rows] == list(names)
    full, pce, ent = rows
    assert full.kept == 100 and pce.kept == pytest.approx(100 * pce.mean_iou / full.mean_iou)
    assert np.isnan(full.gap_closed) and np.isnan(pce.gap_closed)
    shared = torch.load(tmp_path / "first-phase" / CHECKPOINT, weights_only=True)
    assert shared["step"] == 2
    means = [json.loads((tmp_path / name / "log.jsonl").read_text().splitlines()[-1]) for name in names]
    assert ["entropy" in mean for mean in means] == [False, False, True]
    written = (tmp_path / "PCE" / CHECKPOINT).stat().st_mtime_ns
    again = lecture_table(data, tmp_path, settings=settings, rows=names, progress=False)
    assert [row.mean_iou for row in again] == [row.mean_iou for row in rows]
    assert (tmp_path / "PCE" / CHECKPOINT).stat().st_mtime_ns == written
    assert json.loads((tmp_path / "table-test.json").read_text())[2]["name"] == ent.name


def test_scores_are_those_of_eval(data: Path) -> None:
    model = Trainable("mini", device="cpu")
    got = score(model, read_examples(data / "test"), 64, progress=False)
    expected = evaluate(model.segmenter, Dataset.open(data / "test"), size=64, progress=False)
    assert got == pytest.approx((expected.mean_iou, expected.pixel_accuracy))


def test_the_gap_is_what_lies_between_seeds_alone_and_full_masks() -> None:
    text = format_table([Row("full", 60.0, 90.0, 100.0, float("nan")), Row("PCE+CRF", 57.0, 89.0, 95.0, 40.0)])
    assert "60.00" in text and "95.0 %" in text and "40 %" in text and "nan" not in text
    assert list(ROWS) == ["full", "PCE", "PCE+CRF", "PCE+ENT", "PCE+CRF+ENT", "PCE+CRF+ENT+cluster"]


def test_rows_that_do_not_exist_are_refused(data: Path, tmp_path: Path) -> None:
    with pytest.raises(InvalidArgumentError, match="no row 'SSL'"):
        lecture_table(data, tmp_path, rows=("SSL",))
    with pytest.raises(InvalidArgumentError, match="'masks'"):
        lecture_table(data, tmp_path, supervision="masks")
