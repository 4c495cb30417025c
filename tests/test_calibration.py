from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image
from scipy import optimize, special
from sklearn import calibration as sk_calibration
from sklearn import metrics

from ovseg.cli import main
from ovseg.errors import DatasetError, InvalidArgumentError, UnsupportedOperationError
from ovseg.evaluation import diagram
from ovseg.evaluation.calibrate import Calibration, calibrate
from ovseg.evaluation.calibration import (
    LIMITS,
    Quality,
    area_under_risk,
    change_temperature,
    expected_calibration_error,
    fit_temperature,
    negative_log_likelihood,
    reliability,
    selective_errors,
)
from ovseg.evaluation.datasets import Dataset
from ovseg.evaluation.diagram import draw_calibration
from ovseg.segmenter import load


def softmax_scores(logits: NDArray[Any]) -> NDArray[np.float32]:
    return np.asarray(special.softmax(logits, 1), np.float32)


def draw(temperature: float, count: int = 4000, classes: int = 6, seed: int = 0) -> tuple[NDArray[np.float32], NDArray[np.intp]]:
    """Scores of logits, and labels that follow the softmax of logits / temperature."""
    random = np.random.default_rng(seed)
    logits = random.normal(0, 3, (count, classes))
    chance = special.softmax(logits / temperature, 1)
    truth = (chance.cumsum(1) < random.random((count, 1))).sum(1)
    return softmax_scores(logits), truth.astype(np.intp)


@pytest.mark.parametrize("temperature", [0.5, 1.0, 2.5])
def test_the_temperature_is_that_of_a_search(temperature: float) -> None:
    scores, truth = draw(temperature)
    found = fit_temperature([(scores, truth)])

    def loss(value: float) -> float:
        return float(metrics.log_loss(truth, special.softmax(np.log(scores) / value, 1), labels=range(6)))

    best = optimize.minimize_scalar(loss, bounds=(0.1, 10), method="bounded", options={"xatol": 1e-7})
    assert found == pytest.approx(best.x, rel=1e-4)
    assert found == pytest.approx(temperature, rel=0.1)


def test_datasets_weigh_the_same() -> None:
    small, large = draw(0.6, 500, seed=1), draw(3.0, 5000, seed=2)
    twice = (np.concatenate([small[0]] * 10), np.concatenate([small[1]] * 10))
    assert fit_temperature([small, large]) == pytest.approx(fit_temperature([twice, large]), rel=1e-6)
    joint = (np.concatenate([twice[0], large[0]]), np.concatenate([twice[1], large[1]]))
    assert fit_temperature([small, large]) == pytest.approx(fit_temperature([joint]), rel=1e-6)


def test_temperatures_without_a_best() -> None:
    scores, _ = draw(1.0)
    assert fit_temperature([(scores, scores.argmax(1))]) == pytest.approx(LIMITS[0])
    assert fit_temperature([(scores, scores.argmin(1))]) == pytest.approx(LIMITS[1])
    alike = np.full((10, 4), 0.25, np.float32)
    assert LIMITS[0] <= fit_temperature([(alike, np.zeros(10, np.intp))]) <= LIMITS[1]
    certain = np.eye(4, dtype=np.float32)[[0, 1, 2, 3, 0]]  # scores of 0 have no logarithm
    assert np.isfinite(fit_temperature([(certain, np.array([0, 1, 2, 3, 1]))]))


def test_nothing_to_fit() -> None:
    scores, truth = draw(1.0, 10)
    for samples in ([], [(scores[:0], truth[:0])], [(scores, truth[:5])]):
        with pytest.raises(InvalidArgumentError, match="at least one labelled pixel"):
            fit_temperature(samples)


def test_change_of_temperature_is_that_of_the_logits() -> None:
    logits = np.random.default_rng(3).normal(0, 4, (50, 7))
    for factor in (0.3, 1.0, 4.0):
        changed = change_temperature(softmax_scores(logits), factor)
        assert changed == pytest.approx(special.softmax(logits / factor, 1), rel=1e-4, abs=1e-7)


def test_likelihood_as_sklearn_has_it() -> None:
    scores, truth = draw(2.0)
    whole = scores / scores.sum(1, keepdims=True, dtype=np.float64)
    assert negative_log_likelihood(scores, truth) == pytest.approx(metrics.log_loss(truth, whole), rel=1e-5)


def test_calibration_error_by_brute_force() -> None:
    scores, truth = draw(2.0, 3000)
    confidence, correct = scores.max(1), scores.argmax(1) == truth
    total = 0.0
    for i in range(15):
        inside = [j for j, score in enumerate(confidence.tolist()) if i / 15 < score <= (i + 1) / 15 or (i == 0 and score == 0)]
        if inside:
            total += abs(sum(confidence[inside].tolist()) - int(correct[inside].sum())) / len(truth)
    assert expected_calibration_error(reliability(confidence, correct)) == pytest.approx(total)


def test_reliability_as_sklearn_has_it() -> None:
    scores, truth = draw(2.0)
    confidence, correct = scores.max(1).astype(np.float64), scores.argmax(1) == truth
    table = [entry for entry in reliability(confidence, correct, bins=10) if entry.pixels]
    accuracy, score = sk_calibration.calibration_curve(correct, confidence, n_bins=10)
    assert [entry.accuracy for entry in table] == pytest.approx(accuracy)
    assert [entry.confidence for entry in table] == pytest.approx(score)
    assert sum(entry.pixels for entry in table) == len(truth)


def test_scores_at_the_edges_of_bins() -> None:
    confidence = np.array([0.0, 0.5, 0.5, 1.0])
    table = reliability(confidence, np.array([False, True, False, True]), bins=2)
    assert [entry.pixels for entry in table] == [3, 1]
    assert table[0].accuracy == pytest.approx(1 / 3) and table[1].accuracy == 1
    alone = reliability(np.array([1.0]), np.array([True]), bins=4)
    assert expected_calibration_error(alone) == 0


def test_errors_against_coverage_by_brute_force() -> None:
    random = np.random.default_rng(5)
    confidence = random.permutation(300) / 300
    correct = random.random(300) < confidence
    ordered, errors = selective_errors(confidence, correct)
    by_hand = sorted(zip(confidence.tolist(), correct.tolist(), strict=True), reverse=True)
    for n in (1, 2, 17, 300):
        assert errors[n - 1] == pytest.approx(sum(not right for _, right in by_hand[:n]) / n)
        assert ordered[n - 1] == by_hand[n - 1][0]
    assert area_under_risk(errors) == pytest.approx(
        sum(sum(not right for _, right in by_hand[:n]) / n for n in range(1, 301)) / 300
    )


def test_equal_scores_are_the_mean_over_orders() -> None:
    random = np.random.default_rng(6)
    confidence = random.integers(0, 3, 60) / 3
    correct = random.random(60) < 0.5
    _, errors = selective_errors(confidence, correct)
    total = np.zeros(60)
    for _ in range(4000):
        order = random.permutation(60)
        _, shuffled = selective_errors(confidence[order] - np.arange(60) * 1e-9, correct[order])
        total += shuffled
    assert errors == pytest.approx(total / 4000, abs=0.03)


def test_quality_of_perfect_scores() -> None:
    truth = np.arange(4, dtype=np.intp)
    quality = Quality.of(np.eye(4, dtype=np.float32), truth, 1.0)
    assert (quality.nll, quality.ece, quality.aurc, quality.mean_score) == (0, 0, 0, 1)
    assert all(choice.accuracy == 1 for choice in quality.selections)
    assert quality.selections[-1].coverage == 1


def test_a_temperature_mends_scores_that_only_need_one() -> None:
    scores, truth = draw(2.5, 20000)
    factor = fit_temperature([(scores, truth)])
    before, after = Quality.of(scores, truth, 1.0), Quality.of(change_temperature(scores, factor), truth, factor)
    assert before.ece > 0.1 and after.ece < 0.02 and after.nll < before.nll
    assert before.bins[-1].accuracy == pytest.approx((truth == scores.argmax(1))[scores.max(1) > 14 / 15].mean())


# ------------------------------------------------------------------------------------------------------------- on pictures


@pytest.fixture(scope="module")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> Dataset:
    """Sky above grass, with noise, half of it mislabelled in a third image."""
    folder = tmp_path_factory.mktemp("beach")
    for part in ("images", "labels"):
        (folder / part).mkdir()
    random = np.random.default_rng(0)
    for i in range(3):
        picture = np.zeros((96, 128, 3))
        picture[:50] = (120, 180, 240)
        picture[50:] = (60, 130, 40)
        picture += random.normal(0, 15, picture.shape)
        truth = np.zeros((96, 128), np.uint8)
        truth[50:] = 1
        truth[:4] = 255
        if i == 2:
            truth[:] = 255
        Image.fromarray(picture.clip(0, 255).astype(np.uint8)).save(folder / f"images/{i}.png")
        Image.fromarray(truth).save(folder / f"labels/{i}.png")
    (folder / "labels.txt").write_text("sky\ngrass\nfire truck\n")
    return Dataset.open(folder)


@pytest.fixture(scope="module")
def found(dataset: Dataset) -> Calibration:
    return calibrate(load("mini"), [dataset], fit_on=[dataset], pixels=200, progress=False)


def test_calibrate_agrees_with_the_scores_of_segment(dataset: Dataset, found: Calibration) -> None:
    segmenter = load("mini")
    (one,) = found.datasets
    assert (one.images, one.pixels) == (2, 400)  # nothing is labelled in the third
    scores, truths = [], []
    for sample in list(dataset)[:2]:
        image, truth = sample.load()
        kept = segmenter.segment(image, dataset.labels, scores=True).scores
        assert kept is not None
        scores.append(kept[:, truth != 255].T)
        truths.append(truth[truth != 255].astype(np.intp))
    everything = Quality.of(np.concatenate(scores), np.concatenate(truths), 1.0)
    assert one.before.mean_score == pytest.approx(everything.mean_score, abs=0.03)
    assert one.before.nll == pytest.approx(everything.nll, abs=0.1)
    assert one.before.temperature == found.previous == segmenter.card.temperature
    assert one.own_temperature == found.temperature == one.after.temperature
    assert found.fitted_on == (dataset.name,)


def test_calibrate_is_repeatable(dataset: Dataset, found: Calibration) -> None:
    assert calibrate(load("mini"), [dataset], fit_on=[dataset], pixels=200, progress=False) == found


def test_without_another_dataset_the_first_half_is_for_fitting(dataset: Dataset) -> None:
    segmenter = load("mini")
    halves = calibrate(segmenter, [dataset], pixels=200, progress=False)  # images 0; 1 and 2, of which 2 has no labels
    alone = calibrate(segmenter, [dataset], fit_on=[dataset], pixels=200, limit=2, progress=False)  # images 0 and 2
    assert halves.fitted_on == (f"first half of {dataset.name}",)
    assert halves.datasets[0].images == 1
    assert halves.temperature == alone.temperature != halves.datasets[0].own_temperature
    with pytest.raises(InvalidArgumentError, match="there is one"):
        calibrate(segmenter, [dataset], limit=1)


def test_calibrate_on_another_dataset(dataset: Dataset, found: Calibration, tmp_path: Path) -> None:
    again = calibrate(load("mini"), [dataset], fit_on=[dataset], pixels=200, limit=1, progress=False)
    assert again.datasets[0].images == 1
    other = Dataset.open(dataset.folder, labels=["heavens", "lawn", "fire truck"])
    assert calibrate(load("mini"), [other], fit_on=[other], pixels=50, progress=False).datasets[0].pixels == 100


def test_files_and_picture(found: Calibration, tmp_path: Path) -> None:
    found.save(tmp_path / "a.json")
    content = json.loads((tmp_path / "a.json").read_text())
    assert content["temperature"] == found.temperature
    assert sum(entry["pixels"] for entry in content["datasets"][0]["after"]["bins"]) == 400
    picture = draw_calibration(found)
    assert picture.mode == "RGB" and picture.width > 900
    values = np.asarray(picture)
    assert len(np.unique(values.reshape(-1, 3), axis=0)) > 5
    below = [values[diagram._TOP + diagram._SIDE + 40 :, part] for part in (slice(0, 372), slice(372, 744), slice(744, None))]
    for colour in (diagram._BAR, diagram._GAP, diagram._INK):  # the legend says what each is; letters are no squares
        squares = [int((part == colour).all(-1).sum()) >= 11 * 11 for part in below]
        assert squares == [True, True, False]
    assert found.datasets[0].dataset in found.format_table()


def test_command(dataset: Dataset, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = str(dataset.folder)
    files = ["--json", str(tmp_path / "a.json"), "--diagram", str(tmp_path / "a.png")]
    assert main(["eval", folder, "--calibrate", "--fit-on", folder, "--limit", "1", *files]) == 0
    assert "temperature" in capsys.readouterr().out
    assert (tmp_path / "a.json").exists() and Image.open(tmp_path / "a.png").mode == "RGB"
    assert main(["eval", folder, "--diagram", "a.png"]) == 2
    assert main(["eval", folder, "--calibrate", "--diagram", "a.jpg"]) == 2


class OneByOne:
    name = "one by one"

    class card:  # noqa: N801
        activation = "sigmoid"
        temperature = 1.0


def test_what_cannot_be_calibrated(dataset: Dataset, tmp_path: Path) -> None:
    with pytest.raises(UnsupportedOperationError, match="softmax"):
        calibrate(OneByOne(), [dataset])  # type: ignore[arg-type]
    for pixels in (0, 1.5, True):
        with pytest.raises(InvalidArgumentError, match="pixels"):
            calibrate(load("mini"), [dataset], pixels=pixels)  # type: ignore[arg-type]
    empty = tmp_path / "empty"
    (empty / "images").mkdir(parents=True)
    (empty / "labels").mkdir()
    Image.fromarray(np.zeros((9, 9, 3), np.uint8)).save(empty / "images/a.png")
    Image.fromarray(np.full((9, 9), 255, np.uint8)).save(empty / "labels/a.png")
    (empty / "labels.txt").write_text("sky\n")
    with pytest.raises(DatasetError, match="No pixel"):
        calibrate(load("mini"), [dataset], fit_on=[Dataset.open(empty)], progress=False)
