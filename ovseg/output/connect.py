"""Results in the types of other libraries, which are imported only here and only when asked for."""

from __future__ import annotations

import importlib
from collections.abc import Sequence
from typing import Any

import numpy as np

from ovseg.errors import MissingDependencyError
from ovseg.output import LabelMap
from ovseg.output.rle import find_runs


def make_supervision(segmentation: LabelMap, labels: Sequence[str]) -> Any:
    """Make a `supervision.Detections` with one mask per label that has pixels."""
    supervision = _import("supervision")
    runs = find_runs(segmentation, len(labels))
    found = np.array([i for i, run in enumerate(runs) if len(run.starts)], np.int64)
    boxes = np.array([runs[i].box() for i in found], np.float32).reshape(-1, 4)
    boxes[:, 2:] += boxes[:, :2]
    masks = np.zeros((len(found), *segmentation.shape), bool)
    for mask, index in zip(masks, found, strict=True):
        np.equal(segmentation, index, out=mask)
    names = np.array([labels[i] for i in found], str)
    return supervision.Detections(
        xyxy=boxes, mask=masks, class_id=found, data={"class_name": names}
    )


def make_fiftyone(segmentation: LabelMap) -> Any:
    """Make a `fiftyone.Segmentation` that holds index + 1, and 0 for undecided pixels."""
    fiftyone = _import("fiftyone")
    # The largest value, ignore_index, becomes 0 by overflow, and every index one more.
    return fiftyone.Segmentation(mask=segmentation + segmentation.dtype.type(1))


def _import(name: str) -> Any:
    try:
        return importlib.import_module(name)
    except ImportError as error:
        raise MissingDependencyError(
            f"This needs the package {name}, which cannot be imported ({error}). "
            f"Install it: pip install {name}"
        ) from error
