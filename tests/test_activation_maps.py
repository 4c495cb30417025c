"""Class activation and gradient maps against their formulas computed by hand, and the seeds that come of them."""

from __future__ import annotations

import numpy as np
import pytest
from numpy.typing import NDArray

import ovseg

torch = pytest.importorskip("torch")
from torch import Tensor, nn  # noqa: E402

from ovseg.errors import InvalidArgumentError  # noqa: E402
from ovseg.learn.activation_maps import (  # noqa: E402
    class_activation_map,
    gradient_map,
    seeds_of_maps,
    text_activation_map,
    text_gradient_map,
)  # fmt: skip


class _Classifier(nn.Module):
    """Convolutions, the mean, a linear layer."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.body = nn.Sequential(nn.Conv2d(3, 6, 3, 2, 1), nn.ReLU(), nn.Conv2d(6, 8, 3, 2, 1), nn.ReLU())
        self.linear = nn.Linear(8, 5)
        self.requires_grad_(False)

    def forward(self, x: Tensor) -> Tensor:
        logits: Tensor = self.linear(self.body(x).mean((2, 3)))
        return logits


@pytest.fixture
def classifier() -> _Classifier:
    return _Classifier().double()


@pytest.fixture
def pixels() -> Tensor:
    return torch.rand((2, 3, 24, 32), dtype=torch.float64, generator=torch.Generator().manual_seed(1))


def test_the_mean_of_a_class_activation_map_is_the_logit(classifier: _Classifier, pixels: Tensor) -> None:
    features = classifier.body(pixels)
    maps = class_activation_map(features, classifier.linear.weight, classifier.linear.bias)
    torch.testing.assert_close(maps.mean((2, 3)), classifier(pixels))
    by_hand = sum(classifier.linear.weight[3, k] * features[1, k, 2, 5] for k in range(8)) + classifier.linear.bias[3]
    assert float(maps[1, 3, 2, 5]) == pytest.approx(float(by_hand))


@pytest.mark.parametrize("label", range(5))
def test_the_gradient_map_of_an_averaging_classifier_is_its_activation_map(classifier: _Classifier, pixels: Tensor, label: int) -> None:
    got = gradient_map(classifier, classifier.body, pixels, lambda logits: logits[:, label])
    maps = class_activation_map(classifier.body(pixels), classifier.linear.weight)[:, label]
    torch.testing.assert_close(got, maps.relu() / maps[0].numel())


def test_the_gradient_map_of_an_inner_layer_is_its_formula_by_finite_differences(classifier: _Classifier, pixels: Tensor) -> None:
    layer, label, step = classifier.body[0], 2, 1e-6
    inner = layer(pixels[:1])

    def logit(values: Tensor) -> float:
        return float(classifier.linear(classifier.body[1:](values).mean((2, 3)))[0, label])

    alpha = []
    for k in range(inner.shape[1]):  # the mean gradient to a channel: all its cells moved together, over their number
        moved = inner.clone()
        moved[0, k] += step
        alpha.append((logit(moved) - logit(inner)) / step / inner[0, 0].numel())
    expected = sum(a * inner[0, k] for k, a in enumerate(alpha)).relu()
    torch.testing.assert_close(gradient_map(classifier, layer, pixels[:1], lambda y: y[:, label])[0], expected, rtol=1e-4, atol=1e-8)


def test_nothing_is_left_behind(classifier: _Classifier, pixels: Tensor) -> None:
    gradient_map(classifier, classifier.body[2], pixels, lambda y: y[:, 0])
    assert not classifier.body[2]._forward_hooks
    assert all(p.grad is None and not p.requires_grad for p in classifier.parameters())


def test_tokens_become_a_grid_without_the_class_token() -> None:
    class Tokens(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner = nn.Identity()

        def forward(self, x: Tensor) -> Tensor:
            tokens = torch.cat([x.new_full((len(x), 1, 3), 7.0), x.flatten(2).transpose(1, 2)], 1)
            return self.inner(tokens)[:, 1:].mean(1)

    x = torch.rand(1, 3, 2, 3)
    network = Tokens()
    got = gradient_map(network, network.inner, x, lambda y: y[:, 1], grid=(2, 3))
    torch.testing.assert_close(got, x[:, 1] / 6)  # the class token counts neither in the map nor in the mean gradient
    with pytest.raises(InvalidArgumentError, match="grid"):
        gradient_map(network, network.inner, x, lambda y: y[:, 1])


def test_layers_that_cannot_explain_are_refused(classifier: _Classifier, pixels: Tensor) -> None:
    with pytest.raises(InvalidArgumentError, match="no part"):
        gradient_map(classifier, nn.Identity(), pixels, lambda y: y[:, 0])
    with pytest.raises(InvalidArgumentError, match="does not depend"):
        gradient_map(classifier, classifier.body, pixels, lambda y: torch.ones(2))
    with pytest.raises(InvalidArgumentError, match="tokens"):
        gradient_map(classifier, classifier.linear, pixels, lambda y: y[:, 0])


def test_maps_of_words_average_to_the_answer_for_the_whole_image(segmenter: ovseg.Segmenter, scene: NDArray[np.uint8]) -> None:
    labels = ["sky", ("grass", "meadow"), "road"]
    features = segmenter.encode_image(scene)
    maps = text_activation_map(segmenter, features, labels)
    mean = features.embedding.mean((1, 2))
    logits = segmenter.card.logit_scale * segmenter.encode_text(labels) @ (mean / np.linalg.norm(mean))
    np.testing.assert_allclose(maps.mean((1, 2)), logits, rtol=1e-4)
    scores = segmenter.classify(features, ["sky", "grass", "road"]).scores  # one name each: classify takes the best of synonyms
    single = text_activation_map(segmenter, features, ["sky", "grass", "road"]).mean((1, 2)) / segmenter.card.temperature
    np.testing.assert_allclose(np.exp(single) / np.exp(single).sum(), scores, rtol=1e-3)
    half = maps.shape[1] // 2
    assert maps[0, :half].mean() > maps[0, half:].mean() and maps[1, half:].mean() > maps[1, :half].mean()


def test_gradients_find_words_too(scene: NDArray[np.uint8]) -> None:
    from ovseg.learn.trainable import Trainable

    model = Trainable("mini", device="cpu")
    pixels = model.pixel_values(scene, (96, 128))
    maps = text_gradient_map(model.segmenter, model.network, model.network.refine4, pixels, ["sky", "grass"])
    assert maps.shape == (2, 24, 32) and (maps >= 0).all() and maps.max() > 0
    above = maps[:, :12].sum((1, 2)) / maps.sum((1, 2))
    assert above[0] > 0.7 and above[0] > above[1] + 0.1  # the sky is above, the meadow is not


def test_seeds_are_the_strong_cells_and_small_claims_win() -> None:
    maps = np.zeros((4, 4, 6), np.float32)
    maps[0] = 1.0  # claims everything
    maps[0, 0, 0] = 0.1  # but this
    maps[1, 1:3, 1:3] = [[5.0, 1.0], [0.9, 5.0]]  # 0.9 is below a fifth of 5
    maps[2, 1, 1] = 3.0  # not tagged
    maps[3] = -1.0  # tagged, and nowhere
    seeds = seeds_of_maps(maps, [True, True, False, True])
    expected = np.zeros((4, 6), np.uint8)
    expected[0, 0] = 255
    expected[[1, 1, 2], [1, 2, 2]] = 1
    assert (seeds == expected).all()
    assert (seeds_of_maps(maps, [False] * 4) == 255).all()


@pytest.mark.parametrize(("tags", "level"), [([True] * 3, 0.2), ([True] * 4, 0.0), ([True] * 4, 1.5)])
def test_seeds_of_nonsense_are_refused(tags: list[bool], level: float) -> None:
    with pytest.raises(InvalidArgumentError):
        seeds_of_maps(np.zeros((4, 2, 2), np.float32), tags, level)
