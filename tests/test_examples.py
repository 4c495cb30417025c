"""Labels that are shown, and what is carried over from hints: with features whose answer is known."""

from __future__ import annotations

import numpy as np
import pytest
from sklearn.linear_model import Ridge
from sklearn.model_selection import LeaveOneGroupOut

import ovseg
from ovseg import teaching
from ovseg.errors import InvalidArgumentError, InvalidLabelsError
from ovseg.examples import STEPS, Shown, _share, load_labels, look, save_labels, with_shown
from ovseg.features import ImageFeatures
from ovseg.hints import Hints
from ovseg.labels import Label
from ovseg.teaching import teach


def halves(model="toy"):
    """Features of which the left half points along the first axis, the right half along the second."""
    embedding = np.zeros((3, 6, 8), np.float32)
    embedding[0, :, :4], embedding[1, :, 4:] = 1, 1
    return ImageFeatures(embedding, (12, 16), (6.0, 8.0), model)


def right_half():
    mask = np.zeros((12, 16), bool)
    mask[:, 8:] = True
    return mask


def test_a_word_that_means_nothing_learns_from_a_picture():
    label = look(Label("rust", examples=[(halves(), right_half())]), None)
    (shown,) = label.examples
    assert shown.shift == pytest.approx([-1, 1, 0]) and shown.model == "toy"
    words = np.eye(3, dtype=np.float32)[[0, 2]]  # "metal" is the first axis, "rust" is nowhere
    after = with_shown(words, np.arange(2), [(), (shown,)], "toy")
    logits = after @ halves().embedding.reshape(3, -1)
    assert np.array_equal(logits.argmax(0).reshape(6, 8) == 1, np.arange(8) * np.ones((6, 1)) >= 4)
    assert np.array_equal(after[0], words[0])


def test_a_word_that_is_known_stays_as_it_is():
    (shown,) = look(Label("rust", examples=[(halves(), right_half())]), None).examples
    words = np.eye(3, dtype=np.float32)[[0, 1]]
    assert np.array_equal(with_shown(words, np.arange(2), [(), (shown,)], "toy"), words)
    alone = words[1:]
    assert np.array_equal(with_shown(alone, np.zeros(1, int), [(shown,)], "toy"), alone)  # nobody to be told from


def test_the_step_is_the_least_that_brings_half():
    chance = np.random.default_rng(0)
    shown = Shown(
        chance.normal(size=4).astype(np.float32), "toy", chance.normal(size=(50, 4)).astype(np.float32),
        chance.random(50).astype(np.float32), chance.random(50).astype(np.float32),
    )  # fmt: skip
    words = chance.normal(size=(3, 4)).astype(np.float32)
    result = with_shown(words, np.array([0, 1, 1]), [(shown,)], "toy")

    def covered(step):
        inside = outside = 0.0
        for cell, a, b in zip(shown.cells, shown.inside, shown.outside, strict=True):
            if cell @ (words[0] + step * shown.shift) > max(cell @ words[1], cell @ words[2]):
                inside, outside = inside + a, outside + b
        return inside / (shown.inside.sum() + outside)

    gains = [covered(step) - covered(0) for step in STEPS]
    expected = next(step for step, gain in zip(STEPS, gains, strict=True) if gain >= max(gains) / 2) if max(gains) >= 0.2 else 0
    assert result[0] == pytest.approx(words[0] + expected * shown.shift, abs=1e-6)


def test_boxes_and_masks():
    box = _share((8, 0, 16, 12), halves(), "")
    assert np.array_equal(box, _share(right_half(), halves(), ""))
    small = np.zeros((12, 16), bool)
    small[0, 0] = True
    assert _share(small, halves(), "")[0, 0] == pytest.approx(0.25) and _share(small, halves(), "").sum() == pytest.approx(0.25)


@pytest.mark.parametrize(
    "example",
    [
        3,
        (halves(),),
        (halves(), np.zeros((12, 16), bool)),
        (halves(), np.ones((3, 3), bool)),
        (halves(), np.ones((12, 16), np.uint8)),
        (halves(), (4, 4, 4, 8)),
        (halves(), (0, 0, 17, 8)),
        (halves(), "left"),
    ],
)
def test_garbage_is_refused(example):
    with pytest.raises(InvalidArgumentError, match="Example 0 of 'rust'"):
        look(Label("rust", examples=[example]), None)


def test_what_is_no_label_is_refused(tmp_path):
    with pytest.raises(InvalidLabelsError, match="Expected an ovseg.Label; got str"):
        look("rust", None)
    with pytest.raises(InvalidLabelsError, match="Expected an ovseg.Label; got str"):
        save_labels(tmp_path / "l.npz", ["rust"])
    for one in (Label("rust"), "rust"):
        with pytest.raises(InvalidLabelsError, match="list of labels"):
            save_labels(tmp_path / "l.npz", one)
    assert not any(tmp_path.iterdir())


def test_files(tmp_path):
    label = look(Label("rust", "corrosion", color="#aa5500", threshold=0.3, examples=[(halves(), right_half())]), None)
    save_labels(tmp_path / "l.npz", [label, Label("sky")])
    again, sky = load_labels(tmp_path / "l.npz")
    assert again == label and sky == Label("sky")
    for name in ("shift", "cells", "inside", "outside", "model"):
        assert np.array_equal(getattr(again.examples[0], name), getattr(label.examples[0], name))
    with pytest.raises(InvalidLabelsError, match="look"):
        save_labels(tmp_path / "l.npz", [Label("rust", examples=[(halves(), right_half())])])
    (tmp_path / "other.npz").write_bytes(b"PK\x03\x04 no")
    np.savez(tmp_path / "else.npz", labels=np.array("{}"))
    for name in ("other.npz", "else.npz", "none.npz"):
        with pytest.raises(InvalidLabelsError):
            load_labels(tmp_path / name)


def test_of_another_model():
    (shown,) = look(Label("rust", examples=[(halves(), right_half())]), None).examples
    with pytest.raises(InvalidArgumentError, match="'toy', not to 'mini'"):
        with_shown(np.eye(3, dtype=np.float32), np.arange(3), [(shown,)], "mini")


def picture(seed=0, flip=False):
    """Green left, red right, noisy."""
    noise = np.random.default_rng(seed).integers(0, 40, (96, 128, 3))
    image = np.zeros((96, 128, 3))
    image[:, :64, 1] = image[:, 64:, 0] = 160
    return (image[:, ::-1] if flip else image + noise).clip(0, 255).astype(np.uint8)


def test_with_a_model():
    seg = ovseg.load("mini")
    mask = np.zeros((96, 128), bool)
    mask[:, 64:] = True
    label = Label("zorp", examples=[(picture(), mask)])
    before = seg.segment(picture(1), ["grass", "zorp"]).mask("zorp")
    after = seg.segment(picture(1), ["grass", label]).mask("zorp")
    looked = seg.segment(picture(1), ["grass", seg.look(label)]).mask("zorp")
    assert (before == mask).mean() < 0.6 and (after == mask).mean() > 0.65
    assert np.array_equal(after, looked)


def test_the_ridge_is_sklearns(monkeypatch):
    """The shift, and the choice of strength and step by leaving out one image, recomputed with sklearn."""
    chance = np.random.default_rng(0)
    vectors = chance.normal(size=(3, 5))
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    parts = []
    for _ in range(4):
        labels = chance.integers(0, 3, 40)
        f = vectors[(labels + 1) % 3] + 0.4 * chance.normal(size=(40, 5))  # the words stand for the wrong things
        parts.append((f / np.linalg.norm(f, axis=1, keepdims=True), labels))
    scale = 5.0
    f, y, group = np.concatenate([p[0] for p in parts]), np.concatenate([p[1] for p in parts]), np.repeat(np.arange(4), 40)

    def probability(f, vectors):
        e = np.exp(scale * f @ vectors.T)
        return e / e.sum(1, keepdims=True)

    residual = np.eye(3)[y] - probability(f, vectors)
    best = (0.0, None)
    for strength in teaching.STRENGTHS:
        for step in teaching.STEPS:
            gains = []
            for train, test in LeaveOneGroupOut().split(f, y, group):
                ridge = Ridge(alpha=strength * len(train), fit_intercept=False).fit(f[train], residual[train])
                old, new = probability(f[test], vectors), probability(f[test], vectors + step * ridge.coef_)
                pick = np.arange(len(test)), y[test]
                gains.append(np.log(new[pick]).mean() - np.log(old[pick]).mean())
            if np.mean(gains) > best[0] and np.mean(gains) > np.std(gains, ddof=1) / 2:
                best = (np.mean(gains), step * Ridge(alpha=strength * len(y), fit_intercept=False).fit(f, residual).coef_)
    assert teaching._shifts(parts, vectors, scale) == pytest.approx(best[1], abs=1e-8)


def test_what_cannot_be_learned_changes_nothing():
    chance = np.random.default_rng(0)
    vectors = np.eye(3, 5)
    parts = [(chance.normal(size=(30, 5)) / 3, chance.integers(0, 3, 30)) for _ in range(4)]  # labels by chance
    assert teaching._shifts(parts, vectors, 1e-6) is None


def test_teach_carries_over():
    seg = ovseg.load("mini")
    hints = Hints.clicks({"grass": (96, 48), "brick": (32, 48)}, radius=20)  # against what the words say
    labels = teach(seg, [(picture(0), hints), (picture(1), hints), (picture(2), hints)], ["grass", "brick"])
    assert [label.name for label in labels] == ["grass", "brick"]
    result = seg.segment(picture(5), labels)
    assert result.mask("grass")[:, 72:].mean() > 0.9 and result.mask("brick")[:, :56].mean() > 0.9
    with pytest.raises(InvalidArgumentError, match="two images"):
        teach(seg, [(picture(0), hints), (picture(1), Hints.tags("grass"))], ["grass", "brick"])
    for wrong, kinds in [(picture(1), "number 1 is ndarray"), ((picture(1), "grass"), r"number 1 is \(ndarray, str\)")]:
        with pytest.raises(InvalidArgumentError, match=kinds):
            teach(seg, [(picture(0), hints), wrong], ["grass", "brick"])
