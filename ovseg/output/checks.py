"""Checks of what results are made of; every message says what was expected and what came."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from types import MappingProxyType
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ovseg.errors import InvalidArgumentError, InvalidLabelsError
from ovseg.output import LabelMap
from ovseg.output.palette import RGB
from ovseg.output.render import count_pixels


def check_labels(labels: object) -> tuple[str, ...]:
    """Check that labels are different names, and return them as a tuple."""
    if isinstance(labels, str) or not isinstance(labels, tuple | list) or not labels:
        raise InvalidLabelsError(f"labels must be a non-empty tuple of names; got {labels!r:.200}.")
    for position, label in enumerate(labels):
        if not isinstance(label, str) or not label.strip() or "\0" in label:
            raise InvalidLabelsError(
                f"labels must be non-blank text; got {label!r:.200} at position {position}."
            )
        try:
            label.encode()
        except UnicodeEncodeError as error:
            raise InvalidLabelsError(
                f"labels must be text that UTF-8 can write; got {label!a:.200} at position "
                f"{position}."
            ) from error
    if len(set(labels)) < len(labels):
        again, _ = Counter(labels).most_common(1)[0]
        raise InvalidLabelsError(f"labels must differ; {again!r} comes more than once.")
    if len(labels) > 65535:
        raise InvalidLabelsError(f"There can be at most 65535 labels; got {len(labels)}.")
    return tuple(labels)


def check_segmentation(segmentation: LabelMap, num_labels: int, ignore_index: int) -> None:
    """Check that an index map fits the number of labels."""
    check_array(segmentation, "segmentation", "(H, W) uint8 or uint16", ndim=2)
    dtype: type[np.uint8] | type[np.uint16] = np.uint8 if num_labels <= 255 else np.uint16
    if segmentation.dtype != dtype or segmentation.size == 0:
        raise InvalidArgumentError(
            f"segmentation must be a (H, W) array of {dtype.__name__} with at least one pixel "
            f"for {num_labels} labels (uint8 up to 255 labels, uint16 above); "
            f"got shape {segmentation.shape} {segmentation.dtype}."
        )
    if ignore_index != np.iinfo(dtype).max:
        raise InvalidArgumentError(
            f"ignore_index must be {np.iinfo(dtype).max} for {dtype.__name__}; "
            f"got {ignore_index!r}."
        )
    if segmentation.max() < num_labels:
        return
    counts = count_pixels(segmentation, ignore_index)
    if counts[num_labels:].any():
        value = num_labels + int(counts[num_labels:].argmax())
        raise InvalidArgumentError(
            f"segmentation must hold indices below {num_labels} (the number of labels) "
            f"or {ignore_index} (ignore_index); got {value}."
        )


def check_array(array: object, name: str, expected: str, *, ndim: int) -> None:
    """Check that something is an array with as many axes as `expected` describes."""
    if not isinstance(array, np.ndarray) or array.ndim != ndim:
        got = f"shape {array.shape}" if isinstance(array, np.ndarray) else type(array).__name__
        raise InvalidArgumentError(f"{name} must be a NumPy array {expected}; got {got}.")


def check_like(
    array: NDArray[Any], name: str, shape: tuple[int, ...], dtype: type[np.generic]
) -> None:
    """Check the shape and type of an array against the other fields."""
    if array.shape != shape or array.dtype != dtype:
        raise InvalidArgumentError(
            f"{name} must have shape {shape} and type {dtype.__name__}, to fit the other fields; "
            f"got shape {array.shape} {array.dtype}."
        )


def check_range(scores: NDArray[np.float32], name: str = "scores") -> None:
    """Check that scores are in [0, 1]."""
    low, high = float(scores.min()), float(scores.max())
    if not (low >= 0 and high <= 1):  # also catches NaN
        raise InvalidArgumentError(f"{name} must be in [0, 1]; they go from {low:g} to {high:g}.")


def check_colors(colors: object, labels: Sequence[str]) -> Mapping[str, RGB]:
    """Check that colours are RGB, and return those of the labels as a mapping that cannot be changed."""
    if not isinstance(colors, Mapping):
        raise InvalidArgumentError(f"colors must map labels to (red, green, blue); got {colors!r:.80}.")
    checked: dict[str, RGB] = {}
    for label in labels:
        if label not in colors:
            continue
        color = colors[label]
        if not isinstance(color, tuple) or len(color) != 3 or not all(type(value) is int and 0 <= value <= 255 for value in color):
            raise InvalidArgumentError(f"colors must be (red, green, blue), each 0 to 255; got {color!r:.80} for {label!r:.80}.")
        checked[label] = color
    return MappingProxyType(checked)


def check_model(model: object) -> None:
    """Check that the name of a model is text."""
    if not isinstance(model, str):
        raise InvalidArgumentError(f"model must be the name of a model as text; got {model!r:.80}.")


def read_only(array: NDArray[Any] | None) -> NDArray[Any] | None:
    """Return a view that cannot be written to; the array of the caller stays as it is."""
    if array is None:
        return None
    view = array.view()
    view.flags.writeable = False
    return view
