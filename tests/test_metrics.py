from __future__ import annotations

import math
import warnings
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from numpy.typing import NDArray
from sklearn import metrics as sklearn_metrics

from ovseg.errors import InvalidArgumentError, OvsegError
from ovseg.evaluation import metrics
from ovseg.evaluation.metrics import ConfusionMatrix

IGNORE = 255
Maps = tuple[int, NDArray[np.uint8], NDArray[np.uint8]]


@st.composite
def maps(draw: st.DrawFn, *, ignored: bool = True, undecided: bool = True) -> Maps:
    """Draw K, a truth and a prediction; few classes, so that some are absent and some are hit."""
    num_classes = draw(st.integers(1, 5))
    shape = draw(hnp.array_shapes(min_dims=2, max_dims=2, min_side=1, max_side=8))
    classes = st.integers(0, num_classes - 1)
    truth_values = classes | st.just(IGNORE) if ignored else classes
    predicted_values = classes | st.just(IGNORE) if undecided else classes
    truth = draw(hnp.arrays(np.uint8, shape, elements=truth_values))
    predicted = draw(hnp.arrays(np.uint8, shape, elements=predicted_values))
    return num_classes, truth, predicted


def count(num_classes: int, truth: NDArray[Any], predicted: NDArray[Any]) -> ConfusionMatrix:
    confusion = ConfusionMatrix(num_classes)
    confusion.update(truth, predicted)
    return confusion


def reference(num_classes: int, truth: NDArray[Any], predicted: NDArray[Any]) -> dict[str, Any]:
    """Compute every metric from sets of pixels, without a matrix."""
    judged = {place for place, value in np.ndenumerate(truth) if value != IGNORE}
    expected: dict[str, Any] = {"iou": [], "recall": [], "precision": [], "share": []}
    hits = 0
    weighted = 0.0
    for index in range(num_classes):
        true = {place for place in judged if truth[place] == index}
        found = {place for place in judged if predicted[place] == index}
        both = len(true & found)
        hits += both
        union = len(true | found)
        expected["iou"].append(100 * both / union if union else math.nan)
        expected["recall"].append(100 * both / len(true) if true else math.nan)
        expected["precision"].append(100 * both / len(found) if found else math.nan)
        expected["share"].append(100 * len(true) / len(judged) if judged else math.nan)
        if true:
            weighted += len(true) / len(judged) * 100 * both / union
    for mean, values in (("mean_iou", "iou"), ("mean_accuracy", "recall")):
        known = [value for value in expected[values] if not math.isnan(value)]
        expected[mean] = sum(known) / len(known) if known else math.nan
    expected["pixel_accuracy"] = 100 * hits / len(judged) if judged else math.nan
    expected["frequency_weighted_iou"] = weighted if judged else math.nan
    return expected


@settings(max_examples=150, deadline=None)
@given(maps())
def test_every_metric_equals_that_of_pixel_sets(example: Maps) -> None:
    confusion = count(*example)
    for name, expected in reference(*example).items():
        np.testing.assert_allclose(getattr(confusion, name), expected, rtol=1e-12, err_msg=name)


@settings(max_examples=50, deadline=None)
@given(maps(ignored=False, undecided=False))
def test_scikit_learn_agrees(example: Maps) -> None:
    num_classes, truth, predicted = example
    confusion = count(*example)
    true, guess = truth.ravel(), predicted.ravel()
    labels = list(range(num_classes))
    occur = np.union1d(true, guess)  # the classes that jaccard_score averages over by default
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # it warns about classes that one side does not have
        matrix = sklearn_metrics.confusion_matrix(true, guess, labels=labels)
        scores = sklearn_metrics.jaccard_score(true, guess, labels=occur, average=None)
        recalls = sklearn_metrics.recall_score(
            true, guess, labels=labels, average=None, zero_division=np.nan
        )
        precisions = sklearn_metrics.precision_score(
            true, guess, labels=labels, average=None, zero_division=np.nan
        )
        mean = sklearn_metrics.jaccard_score(true, guess, average="macro")
        weighted = sklearn_metrics.jaccard_score(true, guess, average="weighted")
    np.testing.assert_array_equal(confusion.counts[:, :-1], matrix)
    np.testing.assert_allclose(confusion.iou[occur], 100 * scores)
    np.testing.assert_allclose(confusion.recall, 100 * recalls)
    np.testing.assert_allclose(confusion.precision, 100 * precisions)
    assert confusion.mean_iou == pytest.approx(100 * mean)
    assert confusion.frequency_weighted_iou == pytest.approx(100 * weighted)
    assert confusion.pixel_accuracy == pytest.approx(
        100 * sklearn_metrics.accuracy_score(true, guess)
    )


@settings(max_examples=50, deadline=None)
@given(maps(), st.integers(0, 8))
def test_images_can_be_counted_in_parts(example: Maps, row: int) -> None:
    num_classes, truth, predicted = example
    whole = count(*example)
    in_turn = ConfusionMatrix(num_classes)
    in_turn.update(truth[:row], predicted[:row])
    in_turn.update(truth[row:], predicted[row:])
    np.testing.assert_array_equal(in_turn.counts, whole.counts)


@settings(max_examples=25, deadline=None)
@given(maps(), st.sampled_from([np.int8, np.uint16, np.int32, np.int64, np.uint64]))
def test_the_result_does_not_depend_on_the_type_or_the_layout(
    example: Maps, dtype: type[np.integer[Any]]
) -> None:
    num_classes, truth, predicted = example
    with np.errstate(all="ignore"):
        cast = truth.astype(dtype), predicted.astype(dtype)
    ignore_index = int(np.array(IGNORE).astype(dtype))  # -1 for int8
    confusion = ConfusionMatrix(num_classes)
    confusion.update(cast[0].T, np.asfortranarray(cast[1]).T, ignore_index=ignore_index)
    np.testing.assert_array_equal(confusion.counts, count(*example).counts)


def test_the_mean_iou_is_over_the_dataset_and_not_over_images() -> None:
    # A large image where everything is right, and a small one where everything is wrong.
    confusion = ConfusionMatrix(2)
    confusion.update(np.repeat([0, 1], 450), np.repeat([0, 1], 450))
    confusion.update(np.repeat([0, 1], 50), np.repeat([1, 0], 50))
    # Each class: 450 right, 50 missed, 50 false: 450 / 550. The mean over images would be 50.
    assert confusion.mean_iou == pytest.approx(100 * 450 / 550)


def test_a_class_counts_in_the_mean_once_it_is_in_the_truth_or_predicted() -> None:
    absent = count(3, np.array([0, 0, 1]), np.array([0, 0, 1]))
    assert absent.mean_iou == 100
    assert math.isnan(absent.iou[2])
    invented = count(3, np.array([0, 0, 1, 1]), np.array([0, 0, 1, 2]))
    np.testing.assert_allclose(invented.iou, [100, 50, 0])
    assert invented.mean_iou == 50
    np.testing.assert_allclose(invented.recall, [100, 50, np.nan])
    assert invented.mean_accuracy == 75  # only over the classes in the truth


def test_an_undecided_pixel_is_a_miss_and_no_false_positive() -> None:
    confusion = count(2, np.array([0, 0, 1, 1]), np.array([0, IGNORE, 1, 1]))
    np.testing.assert_array_equal(confusion.counts, [[1, 0, 1], [0, 2, 0]])
    np.testing.assert_allclose(confusion.iou, [50, 100])
    np.testing.assert_allclose(confusion.precision, [100, 100])
    assert confusion.pixel_accuracy == 75


def test_the_undecided_index_may_differ_from_the_ignore_index() -> None:
    confusion = ConfusionMatrix(2)
    truth, predicted = np.array([0, 1, 255]), np.array([0, 65535, 1], np.uint16)
    confusion.update(truth, predicted, undecided_index=65535)
    np.testing.assert_array_equal(confusion.counts, [[1, 0, 0], [0, 0, 1]])
    with pytest.raises(InvalidArgumentError, match=r"predicted .* or undecided_index = 65535; got"):
        confusion.update(truth, np.array([0, 255, 1]), undecided_index=65535)


def test_ignored_pixels_may_be_predicted_as_anything() -> None:
    confusion = count(2, np.array([IGNORE, 1]), np.array([77, 1]))
    assert confusion.counts.sum() == 1


@pytest.mark.parametrize(
    ("truth", "predicted"),
    [
        (np.full((3, 4), IGNORE), np.zeros((3, 4), int)),
        (np.zeros((0, 4), np.uint8), np.zeros((0, 4), np.uint8)),
    ],
    ids=["all ignored", "empty"],
)
def test_without_a_pixel_every_metric_is_nan_without_a_warning(
    truth: NDArray[Any], predicted: NDArray[Any]
) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        confusion = count(2, truth, predicted)
        for name in ("mean_iou", "pixel_accuracy", "mean_accuracy", "frequency_weighted_iou"):
            assert math.isnan(getattr(confusion, name)), name
        for name in ("iou", "recall", "precision", "share"):
            assert np.isnan(getattr(confusion, name)).all(), name


def test_many_pixels_are_counted_in_pieces(monkeypatch: pytest.MonkeyPatch) -> None:
    rng = np.random.default_rng(0)
    truth, predicted = rng.integers(0, 4, (2, 13, 17))
    whole = count(4, truth, predicted)
    monkeypatch.setattr(metrics, "_CHUNK_PIXELS", 10)
    np.testing.assert_array_equal(count(4, truth, predicted).counts, whole.counts)


def test_a_wrong_value_late_in_an_image_leaves_the_counts_alone(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(metrics, "_CHUNK_PIXELS", 2)
    confusion = ConfusionMatrix(2)
    for truth, predicted in (([0, 0, 0, 2], [0, 0, 0, 0]), ([0, 0, 0, 0], [0, 0, 0, 2])):
        with pytest.raises(InvalidArgumentError, match=r"from 0 to 1, .*got 2"):
            confusion.update(np.array(truth), np.array(predicted))
    assert confusion.counts.sum() == 0


def test_more_than_255_classes() -> None:
    confusion = ConfusionMatrix(300)
    truth = np.array([255, 299, 65535], np.uint16)
    confusion.update(truth, np.array([255, 299, 0], np.uint16), ignore_index=65535)
    assert confusion.truth_counts[[255, 299]].tolist() == [1, 1]
    assert confusion.mean_iou == 100
    with pytest.raises(InvalidArgumentError, match="ignore_index must not be the index of a class"):
        confusion.update(truth, truth)


@pytest.mark.parametrize(
    ("truth", "predicted", "message"),
    [
        (np.zeros((2, 3), int), np.zeros((3, 2), int), r"same shape; got \(2, 3\) and \(3, 2\)"),
        (np.zeros(4), np.zeros(4, int), "truth must be a NumPy array of integers; got float64"),
        (np.zeros(4, int), np.zeros(4, bool), "predicted .* of integers; got bool"),
        ([0], np.zeros(1, int), "truth must be a NumPy array of integers; got list"),
        (np.array([-1]), np.array([0]), "truth must hold .* got -1"),
        (np.array([0]), np.array([-1]), "predicted must hold .* got -1"),
    ],
)
def test_bad_arrays_are_refused(truth: Any, predicted: Any, message: str) -> None:
    with pytest.raises(InvalidArgumentError, match=message) as caught:
        ConfusionMatrix(2).update(truth, predicted)
    assert isinstance(caught.value, OvsegError) and isinstance(caught.value, ValueError)


@pytest.mark.parametrize("num_classes", [0, -1, 2.0, True, None])
def test_the_number_of_classes_is_checked(num_classes: Any) -> None:
    with pytest.raises(InvalidArgumentError, match="num_classes must be an integer"):
        ConfusionMatrix(num_classes)


def test_the_counts_cannot_be_changed_from_outside() -> None:
    confusion = count(1, np.array([0]), np.array([0]))
    confusion.counts[:] = 7
    assert confusion.counts.tolist() == [[1, 0]]
    assert repr(confusion) == "<ConfusionMatrix of 1 classes: 1 pixels, mIoU 100.00 %>"
