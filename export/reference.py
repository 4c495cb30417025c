"""What torch answers: the numbers that an exported folder is compared with, on the machine that made it and on every other."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from ovseg.export import check, networks
from torch import Tensor

from ovseg.registry import ModelCard
from ovseg.text import normalised


def compute(
    card: ModelCard, module: Any, words: NDArray[np.float32], fixed: tuple[NDArray[np.float32], NDArray[np.intp]] | None
) -> dict[str, NDArray[Any]]:
    """Compute what `check.measure` compares with, all of it in torch and float32.

    Args:
        card: Of the model.
        module: The network.
        words: (N, D) unit embeddings of `check.VOCABULARIES`, one after the other.
        fixed: (N, D) embeddings of fixed names and (N) their labels; None without.
    """
    ending = networks.Ending(card.stride, card.align_corners, card.logit_scale)
    text = torch.from_numpy(words)
    found: dict[str, NDArray[Any]] = {"text": words}

    def cosines(features: Tensor, part: Tensor) -> Tensor:
        return torch.einsum("kd,bdhw->bkhw", part, features)

    for case in check.cases(card):
        features = module(torch.from_numpy(case.pixel_values()))
        n = check.step(tuple(features.shape))
        found[f"{case.name}.features"] = features[:, :, ::n, ::n].numpy()
        start = 0
        for number, vocabulary in enumerate(check.VOCABULARIES):
            part = text[start : start + len(vocabulary)]
            start += len(vocabulary)
            near = cosines(features, part)
            if hasattr(module, "refine_logits"):
                near = module.refine_logits(card.logit_scale * near) / card.logit_scale
            found[f"{case.name}.{number}.cosines"] = near[:, :, ::n, ::n].numpy()
            labels = networks.winners(cosines(features, part), ending, module)
            found[f"{case.name}.{number}.labels"] = labels.numpy().astype(np.uint8)
        if fixed is not None:
            best = networks.winners(cosines(features, torch.from_numpy(fixed[0])), ending, module).numpy()
            owner = fixed[1]
            found[f"{case.name}.fixed.labels"] = owner[best].astype(np.uint16)
    if card.classify and hasattr(module, "encode_global"):
        square = check.Case(2, card.classify["size"], card.classify["size"]).pixel_values()
        found["global"] = normalised(module.encode_global(torch.from_numpy(square)).float().numpy())
    return {name: np.ascontiguousarray(value) for name, value in found.items()}
