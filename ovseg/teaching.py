"""Carrying over: what was corrected on some images changes the labels for all further ones.

The features of the pixels that were pointed at are regressed on what the words got wrong there: with F (N, D) the features of the seeds and
R = Y - P (N, K) the residual, ridge regression gives each label the shift

    W = (F' F / N + strength I)^-1 F' R / N    (D, K),

which is added, times a step, to the embeddings of the label's words. A weak ridge destroys more than it mends, so strength and step are
chosen by leaving out one image at a time: the others' W comes from their sums F'F and F'R alone, which are those of all minus its own, and
the cross-entropy of the left-out image's seeds decides. No change is among the choices, and is taken unless another is better on average
by more than the standard error of the difference.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from ovseg.errors import InvalidArgumentError
from ovseg.examples import Shown, with_examples
from ovseg.features import ImageFeatures
from ovseg.hints import Hints
from ovseg.labels import Label
from ovseg.similarity import Axis
from ovseg.vocabulary import Labels, Vocabulary

if TYPE_CHECKING:
    from ovseg.segmenter import Segmenter

logger = logging.getLogger(__name__)

STRENGTHS = (1e-3, 1e-2, 1e-1, 1.0)
"""Ridges, beside the mean of the squared features, which is 1 / D in each direction."""
STEPS = (0.25, 1.0, 4.0)
"""How much of the shift is added."""
SEEDS_AN_IMAGE = 2_000
"""Seeds that are used of an image, evenly."""

Floats = NDArray[np.float64]


def teach(segmenter: Segmenter, images: Sequence[tuple[Any, Hints]], labels: Labels) -> list[Label]:
    """Learn from hints on some images, in closed form.

    Args:
        segmenter: The model; it must have features.
        images: At least two images (or their features), each with its hints. Hints of every label that occurs serve best: what is never
            pointed at is never defended.
        labels: The labels, as `Segmenter.segment` takes them.

    Returns:
        The labels, to be given to `segment` in place of the old ones and saved with `save_labels`. Where nothing that was tried does better
        on images that were left out, they are the old ones.

    Raises:
        InvalidArgumentError: If there are fewer than two images with pixels that were pointed at.
    """
    vocabulary = Vocabulary.of(labels)
    groups = [label.words for label in vocabulary.labels]
    vectors = segmenter.encode_text(labels).astype(np.float64)
    scale = segmenter.card.logit_scale / segmenter.card.temperature
    parts, model = [], ""
    for i, pair in enumerate(images):
        if not isinstance(pair, (tuple, list)) or len(pair) != 2 or not isinstance(pair[1], Hints):
            raise InvalidArgumentError(
                f"teach wants pairs (image, Hints), such as [(image_1, hints_1), (image_2, hints_2)]; number {i} is {_kinds(pair)}."
            )
        image, hints = pair
        features = image if isinstance(image, ImageFeatures) else segmenter.encode_image(image)
        model = features.model
        seeds = hints.seeds(features.image_size, groups)
        if len(seeds.pixels):
            keep = np.unique(np.linspace(0, len(seeds.pixels) - 1, min(len(seeds.pixels), SEEDS_AN_IMAGE)).astype(np.int64))
            parts.append((_features(features, seeds.pixels[keep]), seeds.labels[keep]))
    if len(parts) < 2:
        raise InvalidArgumentError(f"teach needs hints with pixels on at least two images, to check itself; got {len(parts)}.")
    shifts = _shifts(parts, vectors, scale)
    if shifts is None:
        logger.warning("Nothing that was tried did better on images that were left out: the labels stay as they were.")
        return list(vocabulary.labels)
    return [
        with_examples(label, (*label.examples, Shown.taught(shift, model)))
        for label, shift in zip(vocabulary.labels, shifts, strict=True)
    ]


def _kinds(pair: object) -> str:
    """Name the types of what was given in place of an image and its hints."""
    return f"({', '.join(type(part).__name__ for part in pair)})" if isinstance(pair, (tuple, list)) else type(pair).__name__


def _features(features: ImageFeatures, pixels: NDArray[np.int64]) -> Floats:
    """Take the features of the cells that pixels are in: (N, D) float64."""
    (height, width), (h, w) = features.image_size, features.embedding.shape[1:]
    y, x = np.divmod(pixels, width)
    rows, columns = Axis.make(height, h, features.extent[0]), Axis.make(width, w, features.extent[1])
    row = np.where(rows.weight < 0.5, rows.low, rows.high)[y]
    column = np.where(columns.weight < 0.5, columns.low, columns.high)[x]
    return np.asarray(features.embedding[:, row, column].T, np.float64)


def _softmax(logits: Floats) -> Floats:
    scores = np.exp(logits - logits.max(1, keepdims=True))
    return np.asarray(scores / scores.sum(1, keepdims=True))


def _shifts(parts: Sequence[tuple[Floats, NDArray[np.int64]]], vectors: Floats, scale: float) -> Floats | None:
    """Choose strength and step by leaving out one image at a time: (K, D) shifts, or None for no change."""
    count = len(vectors)
    weights = [1 / len(labels) for _, labels in parts]  # an image counts once, however much was painted on it
    grams = [w * (f.T @ f) for w, (f, _) in zip(weights, parts, strict=True)]
    rights = []
    for w, (f, labels) in zip(weights, parts, strict=True):
        rights.append(w * (f.T @ (np.eye(count)[labels] - _softmax(scale * f @ vectors.T))))
    gram, right, many = np.sum(grams, axis=0), np.sum(rights, axis=0), len(parts)
    before = np.array([_loss(f, labels, vectors, scale) for f, labels in parts])
    best: tuple[float, float, float] | None = None
    for strength in STRENGTHS:
        own = [
            np.linalg.solve((gram - grams[i]) / (many - 1) + strength * np.eye(len(gram)), (right - rights[i]) / (many - 1)).T
            for i in range(many)
        ]
        for step in STEPS:
            after = np.array([_loss(f, labels, vectors + step * own[i], scale) for i, (f, labels) in enumerate(parts)])
            gain = before - after
            sure = gain.mean() - gain.std(ddof=1) / np.sqrt(many)
            if sure > 0 and (best is None or gain.mean() > best[0]):
                best = (float(gain.mean()), strength, step)
    if best is None:
        return None
    _, strength, step = best
    return np.asarray(step * np.linalg.solve(gram / many + strength * np.eye(len(gram)), right / many).T)


def _loss(features: Floats, labels: NDArray[np.int64], vectors: Floats, scale: float) -> float:
    """Mean cross-entropy of seeds."""
    scores = _softmax(scale * features @ vectors.T)
    return float(-np.log(np.maximum(scores[np.arange(len(labels)), labels], 1e-12)).mean())
