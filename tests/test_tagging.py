from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from numpy.typing import NDArray
from scipy import special
from skimage import data

from ovseg import load
from ovseg.errors import InvalidLabelsError
from ovseg.hints import Hints
from ovseg.segmenter import Segmenter
from ovseg.tagging import FLOOR, STRENGTH, SURE, UNLISTED, auto_prior, evidence, listed_prior, parse_tags

scores = hnp.arrays(np.float32, st.tuples(st.integers(1, 6), st.integers(1, 5), st.integers(1, 5)), elements=st.floats(0, 1, width=32))


@settings(max_examples=100, deadline=None)
@given(scores, st.integers(1, 5))
def test_evidence_is_the_greatest_score(values: NDArray[np.float32], step: int) -> None:
    strips = ((slice(top, top + step), values[:, top : top + step]) for top in range(0, values.shape[1], step))
    assert (evidence(strips, len(values)) == values.max((1, 2))).all()


@settings(max_examples=100, deadline=None)
@given(scores, st.data())
def test_prior_is_soft_and_in_order(values: NDArray[np.float32], data: st.DataObject) -> None:
    best = values[:, 0, 0]
    labels = data.draw(st.integers(1, len(best)))
    prior = auto_prior(best, labels)
    assert prior.dtype == np.float32 and prior.shape == best.shape
    assert ((prior >= FLOOR) & (prior <= 0)).all()
    assert (prior[labels:] == 0).all() and (prior[:labels][best[:labels] >= SURE] == 0).all()
    order = np.argsort(best[:labels], kind="stable")
    assert (np.diff(prior[:labels][order]) >= 0).all()


def test_prior_by_hand() -> None:
    best = np.array([0.8, SURE, SURE / 2, 0.0, 0.001], np.float32)
    assert auto_prior(best, 4) == pytest.approx([0, 0, STRENGTH * np.log(0.5), FLOOR, 0], abs=1e-5)


def test_tags_of_a_person() -> None:
    words = [("sky",), ("grass", "Lawn"), ("sea",), ("wall",)]
    assert listed_prior(["LAWN ", "sea"], words, 3).tolist() == [UNLISTED, 0, 0, 0]
    with pytest.raises(InvalidLabelsError, match="Did you mean 'grass'"):
        listed_prior(["gras"], words, 3)
    for wrong in ("wall", "", 3, None):  # a background word is no label
        with pytest.raises(InvalidLabelsError, match="tags must be among"):
            listed_prior([wrong], words, 3)  # type: ignore[list-item]


@pytest.mark.parametrize("tags", ["sky", "", [], 3, {"sky": 1}, True, b"auto"])
def test_what_is_no_list_of_tags(tags: Any) -> None:
    with pytest.raises(InvalidLabelsError, match="'auto' or a list"):
        parse_tags(tags)


# ------------------------------------------------------------------------------------------------------------ on a picture


@pytest.fixture(scope="module")
def segmenter() -> Segmenter:
    return load("mini")


LABELS = ["cat", "dog", "rabbit", "wall", "fire truck", "spoon"]


def test_a_list_is_a_bias_on_the_logits(segmenter: Segmenter) -> None:
    features = segmenter.encode_image(data.chelsea()[::2, ::2], size=128)
    plain, tagged = (segmenter.segment(features, LABELS, tags=tags, scores=True).scores for tags in (None, ["cat", "wall"]))
    assert plain is not None and tagged is not None
    prior = np.array([0, UNLISTED, UNLISTED, 0, UNLISTED, UNLISTED], np.float32)[:, None, None]
    assert tagged == pytest.approx(special.softmax(np.log(plain) + prior, 0), abs=2e-5)
    fast = segmenter.segment(features, LABELS, tags=["cat", "wall"]).segmentation
    assert (fast == tagged.argmax(0)).mean() > 0.999


def test_auto_takes_from_what_is_nowhere(segmenter: Segmenter) -> None:
    image = data.chelsea()
    plain, tagged = (segmenter.segment(image, LABELS, tags=tags, scores=True).scores for tags in (None, "auto"))
    assert plain is not None and tagged is not None
    change = np.log(np.maximum(tagged, 1e-20) / np.maximum(plain, 1e-20))
    change = np.median(change - change[0], axis=(1, 2))  # against the cat: what the prior says, wherever one looks
    assert change[LABELS.index("fire truck")] < -2
    assert change.min() >= FLOOR - 0.1
    again = segmenter.segment([image, image], LABELS, tags="auto", scores=True)
    assert all((one.scores == tagged).all() for one in again)


def test_without_the_image_the_features_tell(segmenter: Segmenter) -> None:
    from dataclasses import replace

    features = segmenter.encode_image(data.chelsea())
    blind = replace(features, image=None)
    assert segmenter.segment(blind, LABELS, tags="auto").coverage()["cat"] > 0.3


def test_background_and_hints_are_spared(segmenter: Segmenter) -> None:
    image = data.chelsea()

    def prior(**options: Any) -> NDArray[np.float64]:
        before = segmenter.segment(image, LABELS, background=["table"], scores=True).scores
        after = segmenter.segment(image, LABELS, background=["table"], scores=True, **options).scores
        assert before is not None and after is not None
        change = np.log(np.maximum(after, 1e-20) / np.maximum(before, 1e-20))
        return np.asarray(np.median(change - change[0], axis=(1, 2)))

    assert prior(tags=["cat"]) == pytest.approx([0, *[UNLISTED] * 5], abs=0.01)
    pointed = prior(tags=["cat"], hints=Hints.tags(["rabbit"]))  # the two lists are one
    assert pointed[2] == pytest.approx(0, abs=0.01) and pointed[1] == pytest.approx(UNLISTED, abs=0.01)


def test_wrong_tags(segmenter: Segmenter) -> None:
    with pytest.raises(InvalidLabelsError, match="Did you mean 'rabbit'"):
        segmenter.segment(data.chelsea(), LABELS, tags=["rabit"])
    with pytest.raises(InvalidLabelsError, match="'auto' or a list"):
        segmenter.segment(data.chelsea(), LABELS, tags="cat")
