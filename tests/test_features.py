from __future__ import annotations

import copy
import dataclasses
import pickle

import numpy as np
import pytest

from ovseg.features import ImageFeatures, largest_norm


def make() -> ImageFeatures:
    return ImageFeatures(np.ones((2, 3, 4), np.float32), (12, 16), (3, 4), "mini", np.zeros((12, 16, 3), np.uint8))


def test_features_cannot_be_changed() -> None:
    features = make()
    with pytest.raises(dataclasses.FrozenInstanceError):
        features.model = "other"  # type: ignore[misc]
    for array in (features.embedding, features.image):
        assert array is not None
        with pytest.raises(ValueError, match="read-only"):
            array[0] = 0


def test_the_arrays_of_the_caller_stay_writable() -> None:
    embedding, image = np.ones((2, 3, 4), np.float32), np.zeros((12, 16, 3), np.uint8)
    features = ImageFeatures(embedding, (12, 16), (3, 4), "mini", image)
    embedding[0] = 2
    image[0] = 2
    assert features.embedding.shape == (2, 3, 4)


def test_the_image_may_be_left_out() -> None:
    features = ImageFeatures(np.ones((2, 3, 4), np.float32), (12, 16), (3, 4), "mini")
    assert features.image is None


def test_repr_shows_sizes() -> None:
    assert repr(make()) == "ImageFeatures(embedding=(2, 3, 4), image_size=(12, 16), model='mini')"


def test_features_can_be_copied_and_pickled() -> None:
    features = make()
    for other in (copy.copy(features), copy.deepcopy(features), pickle.loads(pickle.dumps(features))):
        np.testing.assert_array_equal(other.embedding, features.embedding)
        assert (other.image_size, other.extent, other.model) == ((12, 16), (3, 4), "mini")


@pytest.mark.parametrize(("value", "norm"), [(3, 5), (np.nan, np.nan), (-np.inf, np.inf), (1e30, np.inf)])
def test_the_longest_cell_is_known(value: float, norm: float) -> None:
    embedding = np.zeros((2, 3, 4), np.float32)
    embedding[:, 1, 2] = value, 4
    embedding[0, 2, 0] = 2
    features = ImageFeatures(embedding, (12, 16), (3, 4), "mini")
    np.testing.assert_equal(features.norm, norm)
    np.testing.assert_equal(largest_norm(np.zeros((2, 0, 4), np.float32)), 0)
