"""The results: what they check, what they answer."""

from __future__ import annotations

import copy
import dataclasses
import io
import pickle
import subprocess
import sys
import types
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import array_shapes, arrays
from numpy.typing import NDArray
from PIL import Image

from ovseg.errors import (
    InvalidArgumentError,
    InvalidImageError,
    InvalidLabelsError,
    MissingDependencyError,
)
from ovseg.result import Classification, Segmentation

LABELS = ("sky", "grass", "sand")
MAP = np.array([[0, 0, 1, 1], [0, 255, 1, 1], [0, 0, 0, 1]], np.uint8)


def make(**changes: Any) -> Segmentation:
    fields: dict[str, Any] = {"segmentation": MAP.copy(), "labels": LABELS, "ignore_index": 255}
    return Segmentation(**(fields | changes))


# --- construction


def test_fields() -> None:
    result = make(model="mini")
    assert result.labels == LABELS and result.ignore_index == 255 and result.model == "mini"
    assert result.scores is None and result.image is None
    assert make(labels=list(LABELS)).labels == LABELS


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"segmentation": MAP.astype(np.int64)}, r"uint8 .* got shape \(3, 4\) int64"),
        ({"segmentation": MAP.astype(np.uint16)}, "for 3 labels .* got .* uint16"),
        ({"segmentation": MAP[None]}, r"\(H, W\) .* got shape \(1, 3, 4\)"),
        ({"segmentation": MAP[:0]}, "at least one pixel"),
        ({"segmentation": MAP.tolist()}, "got list"),
        ({"segmentation": MAP + np.uint8(2)}, r"below 3 .* got 3"),
        ({"ignore_index": 0}, "ignore_index must be 255 .* got 0"),
        ({"ignore_index": 65535}, "ignore_index must be 255"),
        ({"scores": np.zeros((3, 3, 4), np.float64)}, "float32.* got .* float64"),
        ({"scores": np.zeros((2, 3, 4), np.float32)}, r"\(3, 3, 4\) .* got shape \(2, 3, 4\)"),
        ({"scores": np.zeros((3, 4), np.float32)}, r"got shape \(3, 4\)"),
        ({"scores": np.full((3, 3, 4), 1.5, np.float32)}, "from 1.5 to 1.5"),
        ({"scores": np.full((3, 3, 4), np.nan, np.float32)}, "nan"),
        ({"image": np.zeros((3, 4), np.uint8)}, r"\(H, W, 3\).* got shape \(3, 4\)"),
        ({"image": np.zeros((4, 3, 3), np.uint8)}, r"\(3, 4, 3\) .* got shape \(4, 3, 3\)"),
        ({"image": np.zeros((3, 4, 3), np.float32)}, "uint8.* got .* float32"),
        ({"model": 3}, "model must be .* got 3"),
    ],
)
def test_wrong_fields(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(InvalidArgumentError, match=message):
        make(**changes)


@pytest.mark.parametrize(
    ("labels", "message"),
    [
        ((), "non-empty"),
        ("sky", "tuple of names; got 'sky'"),
        (("sky", " ", "sand"), "' ' at position 1"),
        (("sky", 3, "sand"), "3 at position 1"),
        (("sky", "a\0b", "sand"), "position 1"),
        (("sky", "\ud800", "sand"), "UTF-8"),
        (("sky", "grass", "sky"), "'sky' comes more than once"),
        (tuple(f"{i}" for i in range(65536)), "65535 labels; got 65536"),
    ],
)
def test_wrong_labels(labels: Any, message: str) -> None:
    with pytest.raises(InvalidLabelsError, match=message):
        make(labels=labels)


def test_dtype_follows_the_number_of_labels() -> None:
    names = tuple(f"label {i}" for i in range(256))
    Segmentation(np.array([[254, 255]], np.uint8), names[:255], 255)
    result = Segmentation(np.array([[255, 65535]], np.uint16), names, 65535)
    assert result.mask("label 255").tolist() == [[True, False]]
    with pytest.raises(InvalidArgumentError, match="uint16 .* 256 labels"):
        Segmentation(np.array([[254, 255]], np.uint8), names, 255)


def test_arrays_are_read_only_but_the_callers_stay_writable() -> None:
    segmentation = MAP.copy()
    scores = np.full((3, 3, 4), 0.5, np.float32)
    image = np.zeros((3, 4, 3), np.uint8)
    result = make(segmentation=segmentation, scores=scores, image=image)
    for array in (result.segmentation, result.scores, result.image):
        assert array is not None
        with pytest.raises(ValueError, match="read-only"):
            array[0] = 0
    assert segmentation.flags.writeable and scores.flags.writeable and image.flags.writeable
    assert result.scores is not None and np.shares_memory(result.scores, scores)


def test_frozen_and_closed() -> None:
    result = make()
    with pytest.raises(dataclasses.FrozenInstanceError):
        result.model = "x"  # type: ignore[misc]
    assert not hasattr(result, "__dict__")


# --- questions


def test_mask() -> None:
    mask = make().mask("sky")
    assert mask.dtype == bool
    np.testing.assert_array_equal(mask, MAP == 0)
    assert not make().mask("sand").any()


def test_mask_ignores_case_where_that_is_clear() -> None:
    np.testing.assert_array_equal(make().mask("Sky"), MAP == 0)
    result = make(labels=("Sky", "sky", "sand"))
    np.testing.assert_array_equal(result.mask("sky"), MAP == 1)
    np.testing.assert_array_equal(result.mask("Sky"), MAP == 0)
    with pytest.raises(InvalidLabelsError, match="SKY"):
        result.mask("SKY")


def test_unknown_label() -> None:
    with pytest.raises(InvalidLabelsError, match=r"'gras'.*Did you mean 'grass'\?.*'sky', 'grass'"):
        make().mask("gras")
    with pytest.raises(InvalidLabelsError) as caught:
        make().mask("zebra")
    assert "Did you mean" not in str(caught.value)
    with pytest.raises(InvalidLabelsError, match="got 1"):
        make().mask(1)  # type: ignore[arg-type]


@settings(max_examples=50, deadline=None)
@given(
    arrays(
        np.uint8,
        array_shapes(min_dims=2, max_dims=2, max_side=20),
        elements=st.sampled_from([0, 1, 2, 255]),
    )
)
def test_coverage(segmentation: NDArray[np.uint8]) -> None:
    coverage = make(segmentation=segmentation).coverage()
    assert list(coverage) == list(LABELS)
    for index, share in enumerate(coverage.values()):
        assert type(share) is float
        assert share == pytest.approx((segmentation == index).mean())
    undecided = (segmentation == 255).mean()
    assert sum(coverage.values()) == pytest.approx(1 - undecided)


def test_repr() -> None:
    text = repr(make(model="mini"))
    assert text == (
        "<Segmentation 3 x 4 (height x width): 'sky' 50.0%, 'grass' 41.7%, 1 not found, "
        "undecided 8.3%, model='mini'>"
    )
    many = Segmentation(
        np.arange(100, dtype=np.uint8).reshape(10, 10), tuple(f"{i}" for i in range(100)), 255
    )
    assert len(repr(many)) < 300 and "92 more" in repr(many)
    assert "with scores" in repr(make(scores=np.full((3, 3, 4), 0.5, np.float32)))


def test_equality() -> None:
    scores = np.full((3, 3, 4), 0.5, np.float32)
    assert make() == make(image=np.zeros((3, 4, 3), np.uint8))
    assert make(scores=scores) == make(scores=scores.copy())
    other = MAP.copy()
    other[0, 0] = 2
    for different in (
        make(segmentation=other),
        make(segmentation=MAP[:2]),
        make(labels=("sky", "grass", "mud")),
        make(model="x"),
        make(scores=scores),
    ):
        assert make() != different
    assert make(scores=scores) != make(scores=scores / 2)
    assert make() != "something else"


def test_copies_and_pickles_stay_read_only() -> None:
    image = np.zeros((3, 4, 3), np.uint8)
    result = make(scores=np.full((3, 3, 4), 0.5, np.float32), image=image, model="mini")
    for other in (copy.deepcopy(result), pickle.loads(pickle.dumps(result))):
        assert other == result
        assert other.image is not None and other.image.shape == image.shape
        assert not other.segmentation.flags.writeable and not other.image.flags.writeable
    assert dataclasses.replace(result, model="x").model == "x"


# --- pictures


def test_overlay_takes_any_image(tmp_path: Path) -> None:
    photo = np.random.default_rng(0).integers(0, 256, (3, 4, 3)).astype(np.uint8)
    expected = make(image=photo).overlay(legend=False)
    assert expected.size == (4, 3)
    Image.fromarray(photo).save(tmp_path / "photo.png")
    for image in (
        photo,
        Image.fromarray(photo),
        tmp_path / "photo.png",
        str(tmp_path / "photo.png"),
    ):
        assert make().overlay(image, legend=False).tobytes() == expected.tobytes()
    inverted = make(image=photo).overlay(255 - photo, legend=False)
    assert inverted.tobytes() != expected.tobytes()


def test_overlay_checks_the_image(tmp_path: Path) -> None:
    with pytest.raises(InvalidArgumentError, match=r"\(3, 4\); got \(4, 3\)"):
        make().overlay(np.zeros((4, 3, 3), np.uint8))
    with pytest.raises(InvalidImageError):
        make().overlay(tmp_path / "none.png")
    with pytest.raises(InvalidArgumentError, match="opacity must be between 0 .* got 1.5"):
        make().overlay(opacity=1.5)


@pytest.mark.parametrize("with_image", [False, True])
def test_notebook_picture(with_image: bool) -> None:
    segmentation = np.zeros((600, 3000), np.uint8)
    segmentation[:, 1500:] = 1
    image = np.full((600, 3000, 3), 90, np.uint8) if with_image else None
    picture = Image.open(io.BytesIO(make(segmentation=segmentation, image=image)._repr_png_()))
    assert picture.format == "PNG" and picture.width == 1000 and 200 < picture.height < 400


# --- other libraries


def test_polygons_of_all_labels() -> None:
    polygons = make().to_polygons()
    assert list(polygons) == list(LABELS)
    assert [len(regions) for regions in polygons.values()] == [1, 1, 0]
    assert len(polygons["sky"][0].interiors) == 0


def test_mask_targets() -> None:
    assert make().mask_targets == {1: "sky", 2: "grass", 3: "sand"}


def test_supervision(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(
        sys.modules, "supervision", types.SimpleNamespace(Detections=types.SimpleNamespace)
    )
    detections = make().to_supervision()
    np.testing.assert_array_equal(detections.class_id, [0, 1])
    assert detections.data["class_name"].tolist() == ["sky", "grass"]
    assert detections.mask.dtype == bool
    np.testing.assert_array_equal(detections.mask, [MAP == 0, MAP == 1])
    np.testing.assert_array_equal(detections.xyxy, [(0, 0, 3, 3), (2, 0, 4, 3)])
    nothing = make(segmentation=np.full((3, 4), 255, np.uint8)).to_supervision()
    assert nothing.mask.shape == (0, 3, 4) and nothing.xyxy.shape == (0, 4)


def test_supervision_itself() -> None:
    supervision = pytest.importorskip("supervision")
    detections = make().to_supervision()
    assert isinstance(detections, supervision.Detections) and len(detections) == 2
    np.testing.assert_array_equal(detections.area, [6, 5])


def test_fiftyone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(
        sys.modules, "fiftyone", types.SimpleNamespace(Segmentation=types.SimpleNamespace)
    )
    mask = make().to_fiftyone().mask
    assert mask.dtype == np.uint8
    np.testing.assert_array_equal(mask, [[1, 1, 2, 2], [1, 0, 2, 2], [1, 1, 1, 2]])
    labels = tuple(str(i) for i in range(65535))
    large = Segmentation(np.array([[65534, 65535]], np.uint16), labels, 65535)
    np.testing.assert_array_equal(large.to_fiftyone().mask, [[65535, 0]])


@pytest.mark.parametrize("name", ["supervision", "fiftyone"])
def test_missing_packages(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, name, None)
    with pytest.raises(MissingDependencyError, match=f"pip install {name}"):
        getattr(make(), f"to_{name}")()


def test_import_is_light() -> None:
    code = (
        "import sys, ovseg.result; heavy = {'torch', 'onnxruntime', 'supervision', 'fiftyone', "
        "'scipy', 'cv2', 'matplotlib', 'urllib.request', 'http.client'}; "
        "print(sorted(heavy & set(sys.modules)))"
    )
    printed = subprocess.run(
        [sys.executable, "-c", code],
        env={"PYTHONPATH": ":".join(path for path in sys.path if path)},
        capture_output=True,
        text=True,
        check=True,
    ).stdout
    assert printed.strip() == "[]"


# --- classification


def classified(*scores: float, labels: tuple[str, ...] = LABELS) -> Classification:
    return Classification(labels, np.array(scores, np.float32), "mini")


def test_classification() -> None:
    answer = classified(0.2, 0.7, 0.1)
    assert answer.label == "grass" and answer.score == pytest.approx(0.7)
    assert answer.to_dict() == pytest.approx({"sky": 0.2, "grass": 0.7, "sand": 0.1})
    assert [label for label, _ in answer.top(2)] == ["grass", "sky"]
    assert all(type(score) is float for _, score in answer.top(9))
    assert len(answer.top()) == 3
    text = "<Classification: 'grass' 70.0%, 'sky' 20.0%, 'sand' 10.0%, model='mini'>"
    assert repr(answer) == text


def test_ties_keep_the_order_of_the_labels() -> None:
    answer = classified(0.25, 0.5, 0.25)
    assert [label for label, _ in answer.top()] == ["grass", "sky", "sand"]
    assert classified(0.5, 0.5, 0).label == "sky"


def test_classification_is_a_value() -> None:
    answer = classified(0.2, 0.7, 0.1)
    assert answer == classified(0.2, 0.7, 0.1) and answer != classified(0.7, 0.2, 0.1)
    assert answer != "grass" and answer != dataclasses.replace(answer, model="x")
    again = pickle.loads(pickle.dumps(answer))
    assert again == answer and not again.scores.flags.writeable
    with pytest.raises(ValueError, match="read-only"):
        answer.scores[0] = 1


@pytest.mark.parametrize(
    ("scores", "message"),
    [
        (np.array([0.5, 0.5], np.float32), r"\(3,\) .* got shape \(2,\)"),
        (np.array([0.5, 0.5, 0.0]), "float32.* got .* float64"),
        (np.array([[0.5, 0.5, 0.0]], np.float32), r"got shape \(1, 3\)"),
        ([0.5, 0.5, 0.0], "got list"),
        (np.array([0.5, 0.5, 0.5], np.float32), "sum to 1; they sum to 1.5"),
        (np.array([1.5, -0.5, 0.0], np.float32), "from -0.5 to 1.5"),
        (np.array([np.nan, 0.5, 0.5], np.float32), "nan"),
    ],
)
def test_wrong_scores(scores: Any, message: str) -> None:
    with pytest.raises(InvalidArgumentError, match=message):
        Classification(LABELS, scores)


def test_wrong_k_and_labels() -> None:
    with pytest.raises(InvalidArgumentError, match="k must be at least 1; got 0"):
        classified(0.2, 0.7, 0.1).top(0)
    with pytest.raises(InvalidLabelsError):
        classified(0.5, 0.5, labels=("a", "a"))
