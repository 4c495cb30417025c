"""Losses that look at one pixel at a time: partial cross-entropy and entropy."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from ovseg.errors import InvalidArgumentError
from ovseg.learn.losses.checks import check_beside, check_map, check_mask

IGNORE = 255
"""Label of a pixel that nobody labelled."""


def partial_cross_entropy(logits: Tensor, labels: Tensor, ignore_index: int = IGNORE) -> Tensor:
    """Cross-entropy at the labelled pixels: the mean of -ln s_p[y_p] over the pixels p that have a label y_p, with s = softmax(logits).

    Source: Tang et al., "On Regularized Losses for Weakly-supervised CNN Segmentation", ECCV 2018, equation 2. Log-probabilities may be
    given as logits, for the softmax leaves them as they are; so one-hot predictions, 0 and -inf, give 0 where all seeds are
    obeyed and infinity where one is not: the hard constraint.

    Args:
        logits: (B, K, H, W).
        labels: (B, H, W) integers, the label of every pixel in [0, K), or `ignore_index`.
        ignore_index: Says that a pixel has no label.

    Returns:
        Scalar [nat], 0 where no pixel has a label.
    """
    logits = check_map(logits, "logits")
    check_beside(labels, (logits.shape[0], *logits.shape[2:]), "labels")
    if labels.is_floating_point():
        raise InvalidArgumentError(f"labels must be integers; got {labels.dtype}. Write labels.long().")
    known = labels != ignore_index
    if not known.any():
        return logits.sum() * 0
    target = labels[known].long()
    if int(target.min()) < 0 or int(target.max()) >= logits.shape[1]:
        raise InvalidArgumentError(
            f"labels must be in [0, {logits.shape[1]}) or {ignore_index}; got {int(target.min())} to {int(target.max())}."
        )
    return F.cross_entropy(logits.permute(0, 2, 3, 1)[known], target)


def entropy(probabilities: Tensor, mask: Tensor | None = None) -> Tensor:
    """Mean entropy of the pixels, H(s_p) = -sum_k s_p[k] ln s_p[k]: it is least where the network has made up its mind.

    Source: Grandvalet and Bengio, "Semi-supervised Learning by Entropy Minimization", NIPS 2004.

    Args:
        probabilities: (B, K, H, W), over K summing to 1.
        mask: (B, H, W) bool, the pixels that count; None for all.

    Returns:
        Scalar in [0, ln K] [nat].
    """
    probabilities = check_map(probabilities, "probabilities")
    tiny = torch.finfo(probabilities.dtype).tiny  # 0 ln 0 is 0, and its gradient must be a number
    each = -(probabilities * probabilities.clamp_min(tiny).log()).sum(1)
    if mask is None:
        return each.mean()
    check_mask(mask, tuple(each.shape))
    return (each * mask).sum() / mask.sum().clamp_min(1)
