"""Multiple-instance losses: an image is a bag of pixels, and a tag says that some of them, nobody says which, are of a label.

A box says the same of every row and every column inside it, and that nothing outside all boxes of a label is of it.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from ovseg.errors import InvalidArgumentError
from ovseg.learn.losses.checks import check_beside, check_choice, check_map, check_mask, check_positive, widened

POOLINGS = ("max", "log-sum-exp", "noisy-or", "rank")
UNKNOWN = -1
"""Tag of a label of which nobody said whether it is in the image."""
_LEAST = 1e-6  # probabilities are kept this far from 0 and 1 before the logarithm


def pooled_logs(
    probabilities: Tensor, pooling: str = "rank", *, sharpness: float = 5.0, decay: float = 0.996
) -> tuple[Tensor, Tensor]:
    """Probability that a label is anywhere in a bag, by the probabilities that it is at each of its N pixels.

    "max"          max_p s_p (Pathak et al., "Fully Convolutional Multi-Class Multiple Instance Learning", ICLR workshop 2015)
    "log-sum-exp"  ln(mean_p exp(r s_p)) / r with r = `sharpness` (Pinheiro and Collobert, CVPR 2015)
    "noisy-or"     1 - prod_p (1 - s_p) (Viola, Platt and Zhang, NIPS 2005)
    "rank"         sum_j d^j s_(j) / sum_j d^j, s_(0) the largest and d = `decay`: global weighted rank pooling (Kolesnikov and Lampert,
                   "Seed, Expand and Constrain", ECCV 2016)

    Args:
        probabilities: (K, N) in [0, 1].
        pooling: One of `POOLINGS`.
        sharpness: r of "log-sum-exp": near 0 it is the mean, at infinity the maximum.
        decay: d of "rank" in [0, 1]: 0 is the maximum, 1 the mean.

    Returns:
        (K,) logarithm of the probability, and (K,) of its complement.
    """
    check_choice(pooling, POOLINGS, "pooling")
    check_beside(probabilities, (-1, -1), "probabilities")
    if probabilities.shape[1] == 0:
        raise InvalidArgumentError("A bag must hold at least one pixel; got none.")
    probabilities = widened(probabilities)
    if pooling == "noisy-or":  # in the logarithm, for the product of thousands of factors is 0
        none = torch.log1p(-probabilities.clamp_max(1 - _LEAST)).sum(1).clamp_max(-_LEAST)
        return torch.log(-torch.expm1(none)), none
    if pooling == "max":
        pooled = probabilities.amax(1)
    elif pooling == "log-sum-exp":
        check_positive(sharpness, "sharpness")
        pooled = (torch.logsumexp(sharpness * probabilities, 1) - math.log(probabilities.shape[1])) / sharpness
    else:
        if not 0 <= decay <= 1:
            raise InvalidArgumentError(f"decay must be in [0, 1]; got {decay!r}.")
        ranks = torch.arange(probabilities.shape[1], device=probabilities.device, dtype=probabilities.dtype)
        weights = torch.as_tensor(decay, dtype=probabilities.dtype, device=probabilities.device) ** ranks
        pooled = (probabilities.sort(1, descending=True).values * weights).sum(1) / weights.sum()
    return torch.log(pooled.clamp_min(_LEAST)), torch.log1p(-pooled.clamp_max(1 - _LEAST))


def tag_loss(
    probabilities: Tensor,
    tags: Tensor,
    pooling: str = "rank",
    *,
    mask: Tensor | None = None,
    sharpness: float = 5.0,
    decay: float = 0.996,
) -> Tensor:
    """Cross-entropy of image tags: labels that are tagged should be somewhere, the others nowhere.

    The mean over the labels that are there plus the mean over those that are not, as in Kolesnikov and Lampert, ECCV 2016.

    Args:
        probabilities: (B, K, H, W), over K summing to 1.
        tags: (B, K): 1 for a label that is in the image, 0 for one that is not, -1 where that is unknown.
        pooling: See `pooled_logs`.
        mask: (B, H, W) bool, the pixels of the bag; None for all.
        sharpness: See `pooled_logs`.
        decay: See `pooled_logs`.

    Returns:
        Scalar, the mean over the images.
    """
    probabilities = check_map(probabilities, "probabilities")
    check_beside(tags, tuple(probabilities.shape[:2]), "tags")
    if not torch.isin(tags, torch.tensor([UNKNOWN, 0, 1], device=tags.device)).all():
        raise InvalidArgumentError(f"tags must be 1, 0 or {UNKNOWN} (unknown); got {sorted(set(tags.flatten().tolist()))[:8]}.")
    if mask is not None:
        check_mask(mask, (len(probabilities), *probabilities.shape[2:]))
    results = []
    for i, (one, said) in enumerate(zip(probabilities, tags, strict=True)):
        bag = one.flatten(1) if mask is None else one[:, mask[i]]
        if bag.shape[1] == 0:
            continue
        there, not_there = pooled_logs(bag, pooling, sharpness=sharpness, decay=decay)
        loss = one.sum() * 0
        if (said == 1).any():
            loss = loss - there[said == 1].mean()
        if (said == 0).any():
            loss = loss - not_there[said == 0].mean()
        results.append(loss)
    return torch.stack(results).mean() if results else probabilities.sum() * 0


def box_loss(probabilities: Tensor, boxes: Sequence[Tensor]) -> Tensor:
    """Boxes as labels: nothing outside the boxes of a label is of it, and every row and column of a box holds some of it.

    The first is -ln(1 - s_p), the second -ln max_p s_p over the line, as a box that is drawn tight touches its object on all four sides.
    Source: Lempitsky et al., "Image Segmentation with a Bounding Box Prior", ICCV 2009; for networks, Hsu et al., NeurIPS 2019. A label
    without a box is taken not to be in the image.

    Args:
        probabilities: (B, K, H, W), over K summing to 1.
        boxes: For each image (n, 5) integers: label, top, left, bottom, right [px]; bottom and right are the first outside.

    Returns:
        Scalar, the mean over the images.
    """
    probabilities = check_map(probabilities, "probabilities")
    batch, labels, height, width = probabilities.shape
    if len(boxes) != batch:
        raise InvalidArgumentError(f"There must be boxes for each of the {batch} images; got {len(boxes)}.")
    results = []
    for one, given in zip(probabilities, boxes, strict=True):
        check_beside(given, (-1, 5), "boxes")
        inside = torch.zeros((labels, height, width), dtype=torch.bool, device=one.device)
        lines = []
        for label, top, left, bottom, right in given.tolist():
            if not (0 <= label < labels and 0 <= top < bottom <= height and 0 <= left < right <= width):
                raise InvalidArgumentError(
                    f"A box is label, top, left, bottom, right with a label below {labels}, within {height} x {width} pixels; got "
                    f"{[label, top, left, bottom, right]}."
                )
            inside[label, top:bottom, left:right] = True
            part = one[label, top:bottom, left:right]
            lines += [part.amax(0), part.amax(1)]
        outside = one[~inside]
        loss = -torch.log1p(-outside.clamp_max(1 - _LEAST)).mean() if len(outside) else one.sum() * 0
        if lines:
            loss = loss - torch.log(torch.cat(lines).clamp_min(_LEAST)).mean()
        results.append(loss)
    return torch.stack(results).mean() if results else probabilities.sum() * 0
