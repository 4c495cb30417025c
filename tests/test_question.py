from __future__ import annotations

import dataclasses
import warnings
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image
from random_towers import RandomTowers

import ovseg
from ovseg.errors import InvalidLabelsError
from ovseg.question import NEUTRAL, Question, tell_near
from ovseg.registry import find_card
from ovseg.vocabulary import Label, Vocabulary

Picture = NDArray[np.uint8]
LABELS = ["sky", "grass", "road", "car", "person"]
CARD = find_card("mini")


def agreement(first: NDArray[Any], second: NDArray[Any]) -> float:
    assert first.shape == second.shape
    return float((first == second).mean())


def logits(features: ovseg.ImageFeatures, text: NDArray[np.float32]) -> NDArray[np.float32]:
    """Logits of each text at each pixel, interpolated by Pillow and divided by the temperature: (K, H, W) float32."""
    height, width = features.image_size
    values = CARD.logit_scale / CARD.temperature * np.einsum("kd,dhw->khw", text, features.embedding)
    return np.stack([np.asarray(Image.fromarray(row).resize((width, height), Image.Resampling.BILINEAR)) for row in values])


def softmax(values: NDArray[np.float32]) -> NDArray[np.float32]:
    powers = np.exp(values - values.max(0))
    return powers / powers.sum(0)


@pytest.fixture(scope="module")
def features(segmenter: ovseg.Segmenter, scene: Picture) -> ovseg.ImageFeatures:
    return segmenter.encode_image(scene, size=64)


@pytest.fixture(scope="module")
def quick(segmenter: ovseg.Segmenter) -> ovseg.Segmenter:
    card = dataclasses.replace(CARD, templates="none", background=("wall", "water"), near=None)
    return ovseg.Segmenter(card, RandomTowers(), segmenter._model._text._tokenize)


# ------------------------------------------------------------------------------------------------------------ vocabularies


def test_a_plain_vocabulary_is_a_list(segmenter: ovseg.Segmenter, features: ovseg.ImageFeatures) -> None:
    words = ["sky", ("grass", "lawn"), "road"]
    for options in ({}, {"scores": True, "threshold": 0.3}, {"background": ["wall"]}):
        assert segmenter.segment(features, Vocabulary(words), **options) == segmenter.segment(features, words, **options)
    assert segmenter.classify(features, Vocabulary(words)) == segmenter.classify(features, words)
    assert np.array_equal(segmenter.encode_text(Vocabulary(words)), segmenter.encode_text(words))
    mixed = ["sky", Label("grass", "lawn"), "road"]
    assert segmenter.segment(features, mixed) == segmenter.segment(features, words)
    assert segmenter.segment(features, Label("sky"), background="grass") == segmenter.segment(features, "sky", background="grass")


def test_background_and_rules_come_with_the_vocabulary(segmenter: ovseg.Segmenter, features: ovseg.ImageFeatures) -> None:
    inside = Vocabulary(LABELS, background=["wall", ("floor", "ground")])
    asked = segmenter.segment(features, LABELS, background=["wall", ("floor", "ground")], scores=True)
    assert segmenter.segment(features, inside, scores=True) == asked
    assert segmenter.segment(features, inside, background=["tree"]) == segmenter.segment(features, LABELS, background=["tree"])
    with pytest.raises(InvalidLabelsError, match="'road' stands both in labels and in background"):
        segmenter.segment(features, Vocabulary(LABELS, background=["road"]))


def test_synonyms_by_the_largest_score(segmenter: ovseg.Segmenter, features: ovseg.ImageFeatures) -> None:
    groups = [("sky", "heaven"), ("grass", "lawn", "meadow"), ("road",)]
    words = softmax(logits(features, segmenter.encode_text([word for group in groups for word in group])))
    expected = np.stack([words[:2].max(0), words[2:5].max(0), words[5]])
    result = segmenter.segment(features, Vocabulary(groups, combine="max"), scores=True)
    assert np.abs(result.scores - expected).max() < 1e-3
    assert (result.scores.sum(0) < 1).all()
    best = segmenter.segment(features, groups)
    assert agreement(result.segmentation, best.segmentation) > 0.999
    assert agreement(segmenter.segment(features, Vocabulary(groups, combine="max")).segmentation, best.segmentation) == 1
    total = segmenter.classify(features, Vocabulary(groups, combine="max")).scores.sum()
    assert total == pytest.approx(1, abs=1e-5)


def test_synonyms_by_the_mean_of_embeddings(segmenter: ovseg.Segmenter, features: ovseg.ImageFeatures) -> None:
    groups = [("sky", "heaven"), ("grass", "lawn", "meadow"), ("road",)]
    expected = softmax(logits(features, segmenter.encode_text(groups)))  # which averages synonyms
    for options in ({}, {"background": [("wall", "plaster")]}):
        result = segmenter.segment(features, Vocabulary(groups, combine="mean"), scores=True, **options)
        if not options:
            assert np.abs(result.scores - expected).max() < 1e-4
        plain = segmenter.segment(features, Vocabulary(groups, combine="mean"), **options)
        assert agreement(plain.segmentation, result.segmentation) > 0.999


def test_all_labels_alike(segmenter: ovseg.Segmenter, features: ovseg.ImageFeatures) -> None:
    one = Vocabulary([["grass", "lawn", "turf", "meadow", "greensward"]], background="sky")
    maps = {}
    for combine in ("best", "max", "mean"):
        result = segmenter.segment(features, dataclasses.replace(one, combine=combine), scores=True)
        assert set(np.unique(result.segmentation)) == {0, 255}
        assert 0 < result.scores.min() <= result.scores.max() < 1
        maps[combine] = result.segmentation
    assert agreement(maps["best"], maps["max"]) > 0.999


def test_a_label_has_templates_of_its_own(segmenter: ovseg.Segmenter, features: ovseg.ImageFeatures) -> None:
    own = Vocabulary(["sky", Label("grass", "lawn", templates="a drawing of a {}"), "road"])
    words = segmenter.encode_text(["sky", "a drawing of a grass", "a drawing of a lawn", "road"], templates="none")
    values = logits(features, words)
    expected = softmax(np.stack([values[0], values[1:3].max(0), values[3]]))
    result = segmenter.segment(features, own, templates="none", scores=True)
    assert np.abs(result.scores - expected).max() < 1e-3
    assert np.abs(segmenter.encode_text(own, templates="none")[[0, 2]] - words[[0, 3]]).max() < 1e-6


def test_thresholds_of_labels_go_before_that_of_all(segmenter: ovseg.Segmenter, features: ovseg.ImageFeatures) -> None:
    plain = segmenter.segment(features, LABELS, scores=True)
    best = plain.scores.max(0)
    for default in (None, 0.6):
        asked = ["sky", Label("grass", threshold=0.95), *LABELS[2:]]
        limit = np.where(plain.segmentation == 1, 0.95, default or 0)
        expected = np.where(best < limit, 255, plain.segmentation)
        assert agreement(segmenter.segment(features, asked, threshold=default).segmentation, expected) > 0.999
    assert (expected == 255).any()


def test_a_margin_leaves_pixels_undecided(segmenter: ovseg.Segmenter, features: ovseg.ImageFeatures) -> None:
    plain = segmenter.segment(features, LABELS, scores=True)
    first, second = np.sort(plain.scores, 0)[[-1, -2]]
    expected = np.where(first - second < 0.4, 255, plain.segmentation)
    assert 0 < (expected == 255).mean() < 1
    assert agreement(segmenter.segment(features, LABELS, margin=0.4).segmentation, expected) > 0.999
    assert segmenter.segment(features, LABELS, margin=0) == segmenter.segment(features, LABELS)


@pytest.mark.parametrize("margin", [-0.1, 1.1, float("nan"), "0.5", True])
def test_bad_margin_is_refused(segmenter: ovseg.Segmenter, features: ovseg.ImageFeatures, margin: Any) -> None:
    with pytest.raises(ovseg.InvalidArgumentError, match="margin"):
        segmenter.segment(features, LABELS, margin=margin)


def test_confidence_is_the_best_score_and_entropy_its_doubt(segmenter: ovseg.Segmenter, features: ovseg.ImageFeatures) -> None:
    result = segmenter.segment(features, LABELS, scores=True, confidence=True)
    assert np.array_equal(result.confidence, result.scores.max(0))
    share = result.scores.astype(np.float64)
    expected = -(share * np.log(np.maximum(share, 1e-300))).sum(0) / np.log(5)
    assert np.abs(result.entropy - expected).max() < 1e-5
    assert segmenter.segment(features, LABELS).confidence is None
    with pytest.raises(ValueError, match="read-only"):
        result.entropy[0] = 0


# --------------------------------------------------------------------------------------------------------------- hierarchy


def test_the_score_of_a_parent_is_the_sum(segmenter: ovseg.Segmenter, features: ovseg.ImageFeatures) -> None:
    vocabulary = Vocabulary(
        ["sky", Label("grass", parent="ground"), Label("car", parent="vehicle"), Label("road", parent="ground"), "vehicle"],
        background=["person"],
    )
    leaves = segmenter.segment(features, vocabulary, scores=True)
    assert leaves.labels == ("sky", "grass", "car", "road", "vehicle")
    top = segmenter.segment(features, vocabulary.at(0), scores=True, confidence=True)
    assert top.labels == ("sky", "ground", "vehicle")
    expected = np.stack([leaves.scores[0], leaves.scores[1] + leaves.scores[3], leaves.scores[2] + leaves.scores[4]])
    assert np.abs(top.scores - expected).max() < 1e-6
    rest = 1 - leaves.scores.sum(0)
    best = np.where(rest > expected.max(0), 255, expected.argmax(0))
    assert agreement(top.segmentation, best) > 0.999
    assert agreement(segmenter.segment(features, vocabulary.at(0)).segmentation, top.segmentation) == 1
    answer, parts = (segmenter.classify(features, each).to_dict() for each in (vocabulary.at(0), vocabulary))
    assert answer["vehicle"] == pytest.approx(parts["car"] + parts["vehicle"], abs=1e-6)
    assert segmenter.encode_text(vocabulary.at(0)).shape == (3, 384)


# ------------------------------------------------------------------------------------------------- priorities, exclusions


def test_priorities_move_pixels_to_the_winner(segmenter: ovseg.Segmenter, features: ovseg.ImageFeatures) -> None:
    plain = segmenter.segment(features, LABELS, scores=True)
    sky, grass = plain.scores[:2]
    for ratio in (0.01, 0.5):
        result = segmenter.segment(features, Vocabulary(LABELS, priorities=[("grass", "sky", ratio)]))
        expected = np.where((plain.segmentation == 0) & (grass >= np.float32(ratio) * sky), 1, plain.segmentation)
        assert agreement(result.segmentation, expected) > 0.999
    assert (expected != plain.segmentation).any()
    groups = Vocabulary([Label("sky", parent="top"), *LABELS[1:]], priorities=["grass > sky"])
    assert not Question.of(groups.at(0), None, None, CARD, None, 0).rules.priorities  # "sky" is no answer there


def test_of_labels_that_exclude_each_other_one_stays(segmenter: ovseg.Segmenter, features: ovseg.ImageFeatures) -> None:
    plain = segmenter.segment(features, LABELS, scores=True)
    totals = plain.scores.sum((1, 2))
    assert totals[0] > totals[2] and totals[1] > totals[2]
    result = segmenter.segment(features, Vocabulary(LABELS, exclusive=[("road", "grass")]), scores=True)
    without = segmenter.segment(features, ["sky", "grass", "car", "person"], scores=True)
    assert np.abs(result.scores[[0, 1, 3, 4]] - without.scores).max() < 1e-4
    assert result.scores[2].max() == 0
    assert agreement(result.segmentation, np.array([0, 1, 3, 4])[without.segmentation]) > 0.999
    fast = segmenter.segment(features, Vocabulary(LABELS, exclusive=[("road", "grass")]))
    assert agreement(fast.segmentation, result.segmentation) > 0.999


def test_a_group_may_be_excluded(segmenter: ovseg.Segmenter, features: ovseg.ImageFeatures) -> None:
    labels = ["sky", Label("car", parent="vehicle"), Label("boat", parent="vehicle"), "grass"]
    totals = segmenter.segment(features, labels, scores=True).scores.sum((1, 2))
    shares = segmenter.segment(features, Vocabulary(labels, exclusive=[("vehicle", "grass")])).coverage()
    vehicle = shares["car"] + shares["boat"]
    assert (vehicle > 0, shares["grass"] > 0) == ((True, False) if totals[1] + totals[2] > totals[3] else (False, True))
    assert shares["sky"] > 0


# ----------------------------------------------------------------------------------------------------------- auto background


def test_one_label_alone_has_a_score_of_its_own(segmenter: ovseg.Segmenter, features: ovseg.ImageFeatures) -> None:
    alone = segmenter.segment(features, "sky", scores=True)
    assert alone == segmenter.segment(features, ["sky"], background="auto", scores=True)
    assert alone == segmenter.segment(features, Vocabulary("sky", background="auto"), scores=True)
    assert 0.3 < alone.coverage()["sky"] < 0.7
    assert alone.scores.max() < 1
    assert alone.mask("sky")[:40].mean() > 0.9
    assert alone.mask("sky")[60:].mean() < 0.1
    assert segmenter.classify(features, "sky").scores.tolist() == [1]


def test_words_that_are_labels_are_no_background(segmenter: ovseg.Segmenter, features: ovseg.ImageFeatures) -> None:
    card = dataclasses.replace(CARD, background=("sky", "lawn", "cars", "wall"), near=None)
    question = Question.of(["Sky", "grass", "car"], "auto", None, card, None, 0)
    assert question.words == ("Sky", "grass", "car", "wall")
    empty = Question.of(["Sky", "grass", "car", "wall"], "auto", None, card, None, 0)
    assert empty.rows == 4
    shared = Question.of("temple", "auto", None, dataclasses.replace(card, background=()), None, 0)
    assert shared.words == ("temple", *NEUTRAL)


def test_words_near_a_label_to_the_model_are_no_background(segmenter: ovseg.Segmenter) -> None:
    words = ["doggy", "big dog", "grass", "wall"]
    vectors = segmenter.encode_text(words)
    near = float(vectors[0] @ vectors[1]) - 1e-3
    assert (vectors[0] @ vectors[2:].T).max() < near
    card = dataclasses.replace(CARD, background=tuple(words[1:]))
    for vocabulary in (Vocabulary("doggy"), Vocabulary([Label("doggy", parent="pet")]).at(0)):
        question, found = Question.of(vocabulary, "auto", None, card, None, 0).read(segmenter._model, near)
        assert question.words == ("doggy", "grass", "wall")
        assert np.abs(found - vectors[[0, 2, 3]]).max() < 1e-6
        assert question.owner.tolist() == [0, 1, 2]
        assert question.members is None or question.members.tolist() == [0, 1, 2]


def test_the_list_may_stand_beside_words(segmenter: ovseg.Segmenter, features: ovseg.ImageFeatures) -> None:
    card = dataclasses.replace(CARD, background=("wall", "lawn", "street", "sandbank", "water"), near=None)
    sand = ("sand", "sandbank")
    for background in (["auto", sand], [sand, "auto"], Vocabulary("x", background=["auto", sand]).background):
        question = Question.of(["grass"], background, None, card, None, 0)
        assert question.words == ("grass", "sand", "sandbank", "wall", "street", "water")  # without what is near to a label or a word
        assert question.owner.tolist() == [0, 1, 1, 2, 3, 4]
    assert segmenter.segment(features, LABELS, background=["auto"]) == segmenter.segment(features, LABELS, background="auto")
    assert Question.of("grass", [("auto",)], None, card, None, 0).words == ("grass", "auto")
    with pytest.raises(InvalidLabelsError, match="'Grass' stands both"):
        Question.of("grass", ["auto", "Grass"], None, card, None, 0)


def test_of_background_words_only_those_of_the_list_yield(segmenter: ovseg.Segmenter) -> None:
    words = ["doggy", "big dog", "grass", "wall"]
    vectors = segmenter.encode_text(words)
    near = float(vectors[0] @ vectors[1]) - 1e-3
    for combine, more in (("best", 2), ("mean", 1)):
        for level in (None, 0):
            vocabulary = Vocabulary([Label("doggy", parent="pet")], background=["auto", ("big dog", "hound")], combine=combine, level=level)
            question = Question.of(vocabulary, None, None, dataclasses.replace(CARD, background=("big dogs", "wall")), None, 0)
            question, found = question.read(segmenter._model, near)
            assert (question.rows, question.others, question.yielding) == (3, 2, 1)
            assert question.owner.tolist() == [0, *[1] * more, 2]
            assert question.words[-1] == "wall"
            assert len(found) == 2 + more
            assert question.members is None or question.members.tolist() == [0, 1, 2]


def test_a_model_that_scores_each_label_alone_needs_no_background() -> None:
    card = find_card("clipseg-rd64-refined")
    assert Question.of("sky", None, None, card, None, 0).words == ("sky",)
    assert len(Question.of("sky", "auto", None, card, None, 0).words) > 1


# ------------------------------------------------------------------------------------------------------------- temperature


def test_scores_are_softened_by_the_temperature(segmenter: ovseg.Segmenter, scene: Picture) -> None:
    warm = ovseg.Segmenter(dataclasses.replace(CARD, temperature=2.5), segmenter._model._runtime, segmenter._model._text._tokenize)
    features = segmenter.encode_image(scene, size=64)
    expected = softmax(logits(features, segmenter.encode_text(LABELS)) * CARD.temperature / 2.5)
    result = warm.segment(features, LABELS, scores=True)
    assert np.abs(result.scores - expected).max() < 1e-4
    assert agreement(warm.segment(features, LABELS).segmentation, segmenter.segment(features, LABELS).segmentation) == 1
    exclusive = Vocabulary(LABELS, exclusive=[("road", "grass")])
    assert warm.segment(features, exclusive, scores=True).scores[2].max() == 0


# --------------------------------------------------------------------------------------------------------------- warnings


def test_near_duplicates_are_told_once(segmenter: ovseg.Segmenter, features: ovseg.ImageFeatures) -> None:
    fresh = ovseg.Segmenter(CARD, segmenter._model._runtime, segmenter._model._text._tokenize)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        for _ in range(3):
            fresh.segment(features, ["sofa", "couch", "sky"])
        fresh.segment(features, ["sofa", "sky"])
        fresh.segment(features, [("sofa", "couch"), "sky"])
        fresh.segment(features, [Label("car", parent="vehicle"), "vehicle"])  # one below the other
    assert [str(entry.message).partition(":")[2][:20] for entry in caught] == [" 'sofa' and 'couch'."]
    assert caught[0].filename == __file__


def test_what_the_model_can_hardly_tell_apart_is_told(segmenter: ovseg.Segmenter, features: ovseg.ImageFeatures) -> None:
    vectors = segmenter.encode_text(["left hand", "right hand"])
    assert vectors[0] @ vectors[1] > 0.9
    close = ovseg.Segmenter(dataclasses.replace(CARD, near=0.9), segmenter._model._runtime, segmenter._model._text._tokenize)
    with pytest.warns(UserWarning, match="'left hand' and 'right hand'"):
        close.segment(features, ["sky", "left hand", "right hand"])
    blind = ovseg.Segmenter(dataclasses.replace(CARD, near=None), segmenter._model._runtime, segmenter._model._text._tokenize)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        blind.segment(features, ["sky", "left hand", "right hand"])


def test_a_background_word_near_a_label_is_told(segmenter: ovseg.Segmenter, features: ovseg.ImageFeatures) -> None:
    fresh = ovseg.Segmenter(CARD, segmenter._model._runtime, segmenter._model._text._tokenize)
    with pytest.warns(UserWarning, match=r"'sky' and 'skies' \(background\)\. Take words of the background out that mean a label\.$"):
        fresh.segment(features, ["road", "sky"], background=["skies", "wall"])
    with pytest.warns(UserWarning, match=r"'car' and 'automobile', 'sky' and 'skies' \(background\)\. Put .*'automobile'\)\. Take"):
        fresh.segment(features, ["car", "sky", "automobile"], background=["skies", "auto"])
    close = ovseg.Segmenter(dataclasses.replace(CARD, near=0.9), segmenter._model._runtime, segmenter._model._text._tokenize)
    with pytest.warns(UserWarning, match=r"'left hand' and 'right hand' \(background\)"):  # to the model
        close.segment(features, ["sky", "left hand"], background=["right hand"])
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        fresh.segment(features, ["road", "person"], background=["sofa", "couch"])  # whichever wins, the answer is the same
        fresh.segment(features, ["road", "sky"], background="auto")  # yields


def test_many_near_duplicates_are_told_shortly(quick: ovseg.Segmenter) -> None:
    close = dataclasses.replace(quick.card, near=0.5)
    vectors = np.ones((3000, 8), np.float32) / np.sqrt(8)
    question = Question.of_labels([f"thing {number}" for number in range(3000)], None, close)
    told = tell_near(question, vectors, 0.5)
    assert "and more" in told
    assert len(told) < 400
    assert not tell_near(question, vectors * np.linspace(0, 1, 3000, dtype=np.float32)[:, None], 1.1)


# ------------------------------------------------------------------------------------------------------------------ absurd


def test_five_thousand_labels_with_everything(quick: ovseg.Segmenter) -> None:
    labels = [Label(f"thing {i}", parent=f"group {i % 7}" if i % 3 else None) for i in range(5000)]
    vocabulary = Vocabulary(labels, background="auto", priorities=["thing 7 > thing 8"], exclusive=[("thing 1", "thing 2")])
    features = quick.encode_image(np.zeros((8, 10, 3), np.uint8), size=32)
    leaves = quick.segment(features, vocabulary, confidence=True)
    assert (leaves.segmentation.dtype, leaves.ignore_index, len(leaves.labels)) == (np.uint16, 65535, 5000)
    assert 0 <= leaves.entropy.min() <= leaves.entropy.max() <= 1
    top = quick.segment(features, vocabulary.at(0))
    assert len(top.labels) == 5000 - 3333 + 7


@pytest.mark.parametrize("labels", [["👍", "👎"], ["🍎"], ["日本語", "кошка", "a" * 1000], ["?", "!"]], ids=str)
def test_words_that_say_nothing(segmenter: ovseg.Segmenter, features: ovseg.ImageFeatures, labels: list[str]) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        result = segmenter.segment(features, labels, scores=True, confidence=True, margin=0.1, threshold=0.1)
    assert result.labels == tuple(labels)
    assert np.isfinite(result.scores).all()


# ------------------------------------------------------------------------------------------------------------------ colours


def test_colours_of_labels_reach_pictures_and_files(segmenter: ovseg.Segmenter, features: ovseg.ImageFeatures, tmp_path: Any) -> None:
    red, green = (255, 0, 0), (1, 200, 3)
    labels = [Label("sky", color=red), Label("grass", color="#01c803"), "road"]
    result = segmenter.segment(features, labels)
    assert dict(result.colors) == {"sky": red, "grass": green}
    flat = np.asarray(result.overlay(opacity=1, outline=False, legend=False))
    assert (flat[result.mask("sky")] == red).all()
    assert (flat[result.mask("grass")] == green).all()
    for suffix in (".png", ".npz", ".json"):
        result.save(tmp_path / f"map{suffix}")
        assert ovseg.Segmentation.load(tmp_path / f"map{suffix}") == result
    with Image.open(tmp_path / "map.png") as picture:
        assert np.array_equal(np.asarray(picture.convert("RGB"))[result.mask("sky")], flat[result.mask("sky")])
    assert segmenter.segment(features, ["sky", "grass", "road"]) != result


def test_confidence_is_kept_in_archives(segmenter: ovseg.Segmenter, features: ovseg.ImageFeatures, tmp_path: Any) -> None:
    result = segmenter.segment(features, LABELS, confidence=True)
    result.save(tmp_path / "map.npz")
    again = ovseg.Segmentation.load(tmp_path / "map.npz")
    assert again == result
    assert np.array_equal(again.entropy, result.entropy)
    result.save(tmp_path / "map.png")
    assert ovseg.Segmentation.load(tmp_path / "map.png").confidence is None
