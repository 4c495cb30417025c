"""The riddle of the bags: which colour is which word, when only the words of whole pictures are known?"""

from __future__ import annotations

import numpy as np
import pytest
from numpy.typing import NDArray

torch = pytest.importorskip("torch")

from ovseg.learn import losses  # noqa: E402
from ovseg.learn.activation_maps import class_activation_map, seeds_of_maps  # noqa: E402

WORDS = ("sky", "grass", "sand")
COLOURS = {"sky": (90, 160, 240), "grass": (70, 150, 60), "sand": (220, 190, 130)}
PICTURES = (("sky", "grass", "sand"), ("sky", "sand"), ("grass", "sand"))


def _pictures(seed: int = 0) -> tuple[torch.Tensor, torch.Tensor, NDArray[np.int64]]:
    """Three noisy pictures of bands in another order each, their tags, and the truth that nobody is told."""
    rng = np.random.default_rng(seed)
    images, tags, truths = [], np.zeros((3, 3), np.int64), []
    for index, words in enumerate(PICTURES):
        order = rng.permutation([WORDS.index(word) for word in words])
        truth = np.repeat(order, -(-24 // len(order)))[:24, None].repeat(16, 1)
        colours = np.array([COLOURS[word] for word in WORDS])[truth]
        images.append(colours + rng.normal(0, 8, (24, 16, 3)))
        tags[index, order] = 1
        truths.append(truth)
    pixels = torch.from_numpy(np.stack(images)).permute(0, 3, 1, 2).float() / 127.5 - 1
    return pixels, torch.from_numpy(tags), np.stack(truths)


def _learn(pixels: torch.Tensor, tags: torch.Tensor, pooling: str) -> torch.nn.Conv2d:
    """Fit one linear map from colours to words by tags alone; it begins undecided, as such losses have more than one minimum."""
    classifier = torch.nn.Conv2d(3, 3, 1)
    torch.nn.init.zeros_(classifier.weight)
    torch.nn.init.zeros_(classifier.bias)
    optimizer = torch.optim.Adam(classifier.parameters(), lr=0.1)
    for _ in range(300):
        optimizer.zero_grad()
        losses.tag_loss(classifier(pixels).softmax(1), tags, pooling, decay=0.98).backward()
        optimizer.step()
    return classifier


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("pooling", ["max", "log-sum-exp", "rank"])
def test_three_tagged_pictures_tell_every_pixel(pooling: str, seed: int) -> None:
    """Sand is in all three and so is its colour; sky and grass each miss once. No pixel was labelled, every pixel comes out right."""
    pixels, tags, truth = _pictures(seed)
    classifier = _learn(pixels, tags, pooling)
    assert (classifier(pixels).argmax(1).numpy() == truth).all()


def test_a_noisy_or_is_content_with_little_but_rules_out_what_is_absent() -> None:
    """One pixel is enough for it, so it may give all the rest to the word that is nowhere absent; what is not tagged it never sees."""
    pixels, tags, _ = _pictures()
    answer = _learn(pixels, tags, "noisy-or")(pixels).argmax(1)
    for said, one in zip(tags, answer, strict=True):
        assert set(one.unique().tolist()) <= set(said.nonzero().flatten().tolist())


def test_seeds_of_activation_maps_are_true() -> None:
    """SEC's way: a classifier of whole pictures, its activation maps, and seeds where they are strong."""
    pixels, tags, truth = _pictures()
    torch.manual_seed(0)
    # a picture is judged by its mean, as CAM wants; three pictures with all their mirror-like crops are the training set
    crops = [(pixels[i, :, top : top + 8], truth[i, top : top + 8]) for i in range(3) for top in range(0, 17, 2)]
    linear = torch.nn.Linear(8, 3)
    hidden = torch.nn.Conv2d(3, 8, 1)
    optimizer = torch.optim.Adam([*linear.parameters(), *hidden.parameters()], lr=0.05)
    present = torch.stack([torch.tensor([float(label in set(part.ravel())) for label in range(3)]) for _, part in crops])
    for _ in range(400):
        optimizer.zero_grad()
        logits = linear(torch.stack([hidden(crop[None]).relu().mean((2, 3))[0] for crop, _ in crops]))
        torch.nn.functional.binary_cross_entropy_with_logits(logits, present).backward()
        optimizer.step()
    maps = class_activation_map(hidden(pixels).relu(), linear.weight).detach().numpy()
    seeds = np.stack([seeds_of_maps(one, said == 1, level=0.6) for one, said in zip(maps, tags.numpy(), strict=True)])
    known = seeds != 255
    assert known.mean() > 0.3 and (seeds[known] == truth[known]).mean() > 0.95
