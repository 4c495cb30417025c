"""Metrics of semantic segmentation, all read off one confusion matrix.

The matrix is summed over every pixel of a dataset, and only then divided: the mIoU is the
dataset-level one that papers report (sum of intersections over sum of unions for each class, then
the mean over the classes that occur in the truth or in the prediction), as mmsegmentation's
`IoUMetric` computes it. It is not the mean of the mIoUs of single images, which weighs the pixels
of a small object in a nearly empty image like a thousand elsewhere.

All metrics are in percent. Where one is not defined it is NaN: for a class without pixels, and for
means without a class to average.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ovseg.errors import InvalidArgumentError

_CHUNK_PIXELS = 2**20  # pixels are counted 8 bytes each, this many at a time


class ConfusionMatrix:
    """Counts how often a pixel of one class was predicted as another.

    Takes 8 * K * (K + 1) bytes for K classes, however many pixels are counted.
    """

    def __init__(self, num_classes: int) -> None:
        """Start with no pixels.

        Args:
            num_classes: K, the number of classes; their indices are 0 to K - 1.

        Raises:
            InvalidArgumentError: If there is not at least one class.
        """
        if isinstance(num_classes, bool) or not isinstance(num_classes, int) or num_classes < 1:
            raise InvalidArgumentError(
                f"num_classes must be an integer of at least 1; got {num_classes!r}."
            )
        self._counts = np.zeros((num_classes, num_classes + 1), np.int64)

    def update(
        self,
        truth: NDArray[Any],
        predicted: NDArray[Any],
        *,
        ignore_index: int = 255,
        undecided_index: int | None = None,
    ) -> None:
        """Count the pixels of one image, or of any arrays of equal shape.

        A pixel left undecided by the prediction is a miss of its true class (a false negative), but
        no other class is charged with it (no false positive).

        Args:
            truth: Integers of any shape in [0, K), or `ignore_index` where a pixel does not count.
            predicted: Integers of the same shape in [0, K), or `undecided_index`. Where the truth
                is ignored, any value.
            ignore_index: Value in the truth that is no class.
            undecided_index: Value in the prediction that is no class; None takes `ignore_index`.

        Raises:
            InvalidArgumentError: If the arrays do not fit each other or hold other values. Nothing
                has been counted then.
        """
        if undecided_index is None:
            undecided_index = ignore_index
        for name, index in (("ignore_index", ignore_index), ("undecided_index", undecided_index)):
            if 0 <= index < self.num_classes:
                raise InvalidArgumentError(
                    f"{name} must not be the index of a class; got {index} with "
                    f"{self.num_classes} classes. Choose another value, such as 65535."
                )
        _check_arrays(truth, predicted)
        columns = self.num_classes + 1
        counts = np.zeros(self._counts.size, np.int64)
        for true, guess in _chunks(truth, predicted):
            judged = true != ignore_index
            true, guess = true[judged], guess[judged]
            undecided = guess == undecided_index
            guess[undecided] = 0  # a class, for the check
            self._check_values(true, "truth", f"ignore_index = {ignore_index}")
            self._check_values(guess, "predicted", f"undecided_index = {undecided_index}")
            guess[undecided] = self.num_classes
            counts += np.bincount(true * columns + guess, minlength=counts.size)
        self._counts += counts.reshape(self._counts.shape)

    @property
    def num_classes(self) -> int:
        """K, the number of classes."""
        return len(self._counts)

    @property
    def counts(self) -> NDArray[np.int64]:
        """(K, K + 1) int64 pixels: true class by predicted class, undecided in the last column."""
        return self._counts.copy()

    @property
    def truth_counts(self) -> NDArray[np.int64]:
        """(K,) int64 pixels of each class in the truth."""
        return np.asarray(self._counts.sum(axis=1))

    @property
    def predicted_counts(self) -> NDArray[np.int64]:
        """(K,) int64 pixels predicted as each class, where the truth is not ignored."""
        return np.asarray(self._counts[:, :-1].sum(axis=0))

    @property
    def iou(self) -> NDArray[np.float64]:
        """(K,) float64 intersection over union; NaN in neither truth nor prediction."""
        hits = self._hits
        return _percent(hits, self.truth_counts + self.predicted_counts - hits)

    @property
    def recall(self) -> NDArray[np.float64]:
        """(K,) float64 part of each class that was found, its accuracy; NaN if not in the truth."""
        return _percent(self._hits, self.truth_counts)

    @property
    def precision(self) -> NDArray[np.float64]:
        """(K,) float64 part of the pixels predicted as a class that are; NaN if never predicted."""
        return _percent(self._hits, self.predicted_counts)

    @property
    def share(self) -> NDArray[np.float64]:
        """(K,) float64 part of all pixels of the truth that are of each class."""
        return _percent(self.truth_counts, self._counts.sum())

    @property
    def mean_iou(self) -> float:
        """Dataset-level mIoU: mean of `iou` over the classes in the truth or the prediction."""
        return _mean(self.iou)

    @property
    def mean_accuracy(self) -> float:
        """Mean of `recall` over the classes in the truth (mAcc)."""
        return _mean(self.recall)

    @property
    def pixel_accuracy(self) -> float:
        """Part of all pixels that are right (aAcc)."""
        return float(_percent(self._hits.sum(), self._counts.sum()))

    @property
    def frequency_weighted_iou(self) -> float:
        """Mean of `iou`, each class weighted by its `share` (FWIoU)."""
        present = self.truth_counts > 0  # the others weigh nothing, and their IoU may be NaN
        if not present.any():
            return float("nan")
        return float(self.share[present] @ self.iou[present] / 100)

    @property
    def _hits(self) -> NDArray[np.int64]:
        return np.diagonal(self._counts)

    def _check_values(self, values: NDArray[np.int64], name: str, other: str) -> None:
        if values.size and (values.min() < 0 or values.max() >= self.num_classes):
            wrong = int(values[(values < 0) | (values >= self.num_classes)][0])
            raise InvalidArgumentError(
                f"{name} must hold class indices from 0 to {self.num_classes - 1}, or {other}; "
                f"got {wrong}."
            )

    def __repr__(self) -> str:
        """Say what has been counted."""
        return (
            f"<ConfusionMatrix of {self.num_classes} classes: {int(self._counts.sum()):,} pixels, "
            f"mIoU {self.mean_iou:.2f} %>"
        )


def _percent(part: Any, whole: Any) -> NDArray[np.float64]:
    """Divide counts, a whole for each part or one for all, into percent; NaN for 0 / 0."""
    percent = np.full(np.shape(part), np.nan)
    np.divide(100.0 * np.asarray(part), whole, out=percent, where=np.greater(whole, 0))
    return percent


def _mean(values: NDArray[np.float64]) -> float:
    known = values[~np.isnan(values)]
    return float(known.mean()) if known.size else float("nan")


def _chunks(
    truth: NDArray[Any], predicted: NDArray[Any]
) -> Iterator[tuple[NDArray[np.int64], NDArray[np.int64]]]:
    """Cut two arrays into flat pieces that are copies."""
    flat_truth, flat_predicted = truth.reshape(-1), predicted.reshape(-1)
    for start in range(0, flat_truth.size, _CHUNK_PIXELS):
        piece = slice(start, start + _CHUNK_PIXELS)
        yield flat_truth[piece].astype(np.int64), flat_predicted[piece].astype(np.int64)


def _check_arrays(truth: NDArray[Any], predicted: NDArray[Any]) -> None:
    for name, array in (("truth", truth), ("predicted", predicted)):
        if not isinstance(array, np.ndarray) or array.dtype.kind not in "iu":
            kind = array.dtype if isinstance(array, np.ndarray) else type(array).__name__
            raise InvalidArgumentError(f"{name} must be a NumPy array of integers; got {kind}.")
    if truth.shape != predicted.shape:
        raise InvalidArgumentError(
            f"truth and predicted must have the same shape; got {truth.shape} and "
            f"{predicted.shape}. Resize the prediction to the size of the truth."
        )
