from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

import ovseg
from ovseg.errors import BackendError, InvalidArgumentError, UnsupportedOperationError, WeightsError
from ovseg.registry import ModelCard, find_card

Floats = NDArray[np.float32]


def card(**changes: Any) -> ModelCard:
    preprocess = {"mean": [0, 0, 0], "std": [1, 1, 1], "short_side": 32, "multiple": 8}
    fields = {"name": "fake", "embed_dim": 3, "stride": 8, "logit_scale": 10.0, "templates": "none", "preprocess": preprocess, "files": {}}
    return dataclasses.replace(find_card("mini"), **{**fields, **changes})


def tokenize(texts: list[str]) -> list[list[int]]:
    return [[ord(letter) for letter in text[:6].ljust(6)] for text in texts]


COLOURS = {"red": (1, 0, 0), "green": (0, 1, 0), "blue": (0, 0, 1)}


def word_of(ids: NDArray[np.int64]) -> str:
    return "".join(map(chr, ids)).strip()


class Colours:
    """Two towers in the space of RGB: a cell's feature is its mean colour."""

    name = "fake:cpu"
    encode_global: Any = None
    refine_logits: Any = None

    def __init__(self) -> None:
        self.seen: list[tuple[int, ...]] = []

    def encode_image(self, pixel_values: Floats) -> Floats:
        self.seen.append(pixel_values.shape)
        batch, _, height, width = pixel_values.shape
        cells = pixel_values.reshape(batch, 3, height // 8, 8, width // 8, 8).mean((3, 5)) + 1e-3
        return (cells / np.linalg.norm(cells, axis=1, keepdims=True)).astype(np.float32)

    def encode_text(self, input_ids: NDArray[np.int64], attention_mask: NDArray[np.int64]) -> Floats:
        return np.array([COLOURS[word_of(ids)] for ids in input_ids], np.float32)


class ColourMaps:
    """A conditional network: looks once, then gives a map of how much of a colour there is."""

    name = "fake:cpu"

    def __init__(self, gain: float = 20, middle: float = 0.5) -> None:
        self.gain, self.middle = gain, middle
        self.looks = 0
        self.batches: list[int] = []

    def look(self, pixel_values: Floats) -> Floats:
        self.looks += 1
        return pixel_values[0]

    def decode(self, state: Floats, input_ids: NDArray[np.int64]) -> Floats:
        self.batches.append(len(input_ids))
        words = [word_of(ids) for ids in input_ids]
        shades = [np.tensordot(COLOURS.get(word, (0.4, 0.4, 0.4)), state, 1) for word in words]
        return (self.gain * (np.stack(shades) - self.middle)).astype(np.float32)


@pytest.fixture
def flag() -> NDArray[np.uint8]:
    image = np.zeros((32, 48, 3), np.uint8)
    for i in range(3):
        image[:, 16 * i : 16 * (i + 1), i] = 255
    return image


def test_conditional_models_look_once_and_answer_like_the_others(flag: NDArray[np.uint8]) -> None:
    runtime = ColourMaps()
    segmenter = ovseg.Segmenter(card(conditional=True, activation="sigmoid", stride=1, threshold=0.5), runtime, tokenize)
    result = segmenter.segment(flag, ["blue", ("pinkish", "red"), "green"], scores=True)
    assert runtime.looks == 1
    assert runtime.batches == [4]
    expected = np.repeat([1, 2, 0], 16)[None].repeat(32, 0)
    np.testing.assert_array_equal(result.segmentation, expected)  # "pinkish" is grey and says little everywhere
    assert result.scores is not None and result.scores.shape == (3, 32, 48)
    assert result.scores.sum(0).max() > 1.1  # each label for itself
    alone = segmenter.segment(flag, "green")
    assert set(np.unique(alone.segmentation)) == {0, 255}
    np.testing.assert_array_equal(alone.segmentation == 0, expected == 2)
    everywhere = segmenter.segment(flag, "green", threshold=0)
    assert (everywhere.segmentation == 0).all()


def test_prompts_of_a_label_are_averaged_and_batched(flag: NDArray[np.uint8]) -> None:
    runtime = ColourMaps(1, 0)
    segmenter = ovseg.Segmenter(card(conditional=True, activation="none", stride=1), runtime, tokenize)
    one = segmenter.segment(flag, ["red", "blue"], scores=True)
    both = segmenter.segment(flag, ["red", "blue"], templates=["{}", lambda name: "white"], scores=True)
    white = segmenter.segment(flag, ["white"], scores=True)
    assert one.scores is not None and both.scores is not None and white.scores is not None
    np.testing.assert_allclose(both.scores, (one.scores + white.scores) / 2, atol=1e-5)
    runtime.batches.clear()
    segmenter.segment(flag, [f"w{number}" for number in range(70)])
    assert runtime.batches == [32, 32, 6]


def test_conditional_models_have_no_features(flag: NDArray[np.uint8]) -> None:
    segmenter = ovseg.Segmenter(card(conditional=True), ColourMaps(), tokenize)
    for call in (segmenter.encode_image, lambda image: segmenter.classify(image, ["red"]), lambda image: segmenter.encode_text("red")):
        with pytest.raises(UnsupportedOperationError, match="label by label"):
            call(flag)
    features = ovseg.Segmenter(card(), Colours(), tokenize).encode_image(flag)
    with pytest.raises(InvalidArgumentError, match="give the image"):
        segmenter.segment(features, ["red"])
    with pytest.raises(InvalidArgumentError, match="whole"):
        segmenter.segment(flag, ["red"], window="sliding")


def test_windows_of_the_card_are_the_default(flag: NDArray[np.uint8]) -> None:
    runtime = Colours()
    segmenter = ovseg.Segmenter(card(window={"size": 16, "stride": 8}), runtime, tokenize)
    expected = np.repeat([0, 1, 2], 16)[None].repeat(32, 0)
    np.testing.assert_array_equal(segmenter.segment(flag, list(COLOURS)).segmentation, expected)
    assert {shape[2:] for shape in runtime.seen} == {(16, 16)}
    runtime.seen.clear()
    np.testing.assert_array_equal(segmenter.segment(flag, list(COLOURS), window="whole").segmentation, expected)
    assert runtime.seen == [(1, 3, 32, 48)]


def test_a_head_may_refine_the_logits(flag: NDArray[np.uint8]) -> None:
    plain, refined = Colours(), Colours()
    refined.refine_logits = lambda logits: -logits
    first = ovseg.Segmenter(card(), plain, tokenize).segment(flag, list(COLOURS), scores=True)
    second = ovseg.Segmenter(card(), refined, tokenize).segment(flag, list(COLOURS), scores=True)
    assert first.scores is not None and second.scores is not None
    np.testing.assert_allclose(np.log(first.scores[0] / first.scores[1]), np.log(second.scores[1] / second.scores[0]), atol=1e-3)


def test_classification_uses_the_networks_own_embedding(flag: NDArray[np.uint8]) -> None:
    shapes = []

    def encode_global(pixel_values: Floats) -> Floats:
        shapes.append(pixel_values.shape)
        return np.array([[0.1, 0.2, 5]], np.float32)

    runtime = Colours()
    runtime.encode_global = encode_global
    segmenter = ovseg.Segmenter(card(classify={"size": 24, "fit": "crop"}), runtime, tokenize)
    answers = [segmenter.classify(flag, list(COLOURS)), segmenter.classify(segmenter.encode_image(flag), list(COLOURS))]
    assert [answer.label for answer in answers] == ["blue", "blue"]
    assert shapes == [(1, 3, 24, 24)] * 2
    # without such a card, the mean feature
    assert ovseg.Segmenter(card(), runtime, tokenize).classify(flag[:, :20], list(COLOURS)).label == "red"
    assert len(shapes) == 2


def test_many_scales_agree_with_one_on_a_plain_picture() -> None:
    image = np.zeros((60, 90, 3), np.uint8)
    image[:, :45, 0] = image[:, 45:, 2] = 255
    runtime = Colours()
    model = card(preprocess={"mean": [0, 0, 0], "std": [1, 1, 1], "short_side": 60, "multiple": 8})
    segmenter = ovseg.Segmenter(model, runtime, tokenize)
    result = segmenter.segment(image, list(COLOURS), window="multiscale", scores=True)
    assert result.scores is not None
    assert {shape[2:] for shape in runtime.seen} == {(480, 480)}
    assert (result.segmentation[:, :42] == 0).all() and (result.segmentation[:, 48:] == 2).all()
    plain = segmenter.segment(image, list(COLOURS), scores=True)
    assert plain.scores is not None
    np.testing.assert_allclose(result.scores[:, 30, 10], plain.scores[:, 30, 10], atol=1e-2)
    with pytest.raises(InvalidArgumentError, match="sizes of its own"):
        segmenter.segment(image, list(COLOURS), window="multiscale", size=64)
    with pytest.raises(InvalidArgumentError, match="for segment"):
        segmenter.encode_image(image, window="multiscale")


def test_numbers_that_are_not_finite_are_an_error_and_not_the_first_label(flag: NDArray[np.uint8]) -> None:
    class Broken(Colours):
        def encode_image(self, pixel_values: Floats) -> Floats:
            features = super().encode_image(pixel_values)
            features[0, 0, 1, 1] = np.nan
            return features

    with pytest.raises(BackendError, match="not finite"):
        ovseg.Segmenter(card(), Broken(), tokenize).segment(flag, list(COLOURS))
    with pytest.raises(WeightsError, match="do not belong together"):
        ovseg.Segmenter(card(embed_dim=4), Colours(), tokenize).encode_image(flag)


def test_a_setting_of_the_card_that_nobody_knows_is_said() -> None:
    with pytest.raises(WeightsError, match="card of 'fake' says of preprocess.*blur"):
        ovseg.Segmenter(card(preprocess={"blur": 2}), Colours(), tokenize)
