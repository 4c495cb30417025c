"""A model that can be trained: its network in torch, the parts of it that change, and the words that stay its classifier."""

from __future__ import annotations

import copy
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ovseg.errors import InvalidArgumentError, UnsupportedOperationError
from ovseg.loading import Request, load_model, locate
from ovseg.models.mini import MiniNetwork
from ovseg.network import Weights
from ovseg.preprocess import Preprocess
from ovseg.registry import ModelCard
from ovseg.segmenter import Segmenter

PARTS = ("head", "all")
"""What is trained: the light last part, or every parameter that sees the image."""

_PYRAMID = r"(lateral|context|narrow|refine|coarse_text|fine_text|gate)"
_HEADS = {
    "mini": _PYRAMID,
    "clip": (
        r"clip\.visual\.(ln_post\.|proj$|transformer\.resblocks\.{last}\.|attnpool\.|head\."  # open_clip's own towers
        r"|trunk\.(blocks\.{last}\.|norm\.|fc_norm\.|attn_pool\.|head\.))"  # those of timm
    ),
    "tips": r"vision_model\.(encoder\.layer\.{last}\.|layernorm\.)",
    "lseg": r"scratch\.",
    "dinotxt": r"visual_model\.head\.",
    "radio": r"_heads\.",
}
"""Family -> names of the parameters that are its head; `{last}` is the number of the image tower's last block."""
_BLOCK = re.compile(r"(?:clip\.visual|vision_model)\..*?(?:resblocks|blocks|layer)\.(\d+)\.")


def head_of(family: str, names: Sequence[str]) -> set[str]:
    """Choose from the names of a network's parameters those of its head; none where it is not known what that is."""
    if family not in _HEADS:
        return set()
    last = max((int(found[1]) for name in names if (found := _BLOCK.match(name))), default=0)
    pattern = re.compile(_HEADS[family].replace("{last}", str(last)))
    return {name for name in names if pattern.match(name)}


class Trainable:
    """A two-tower model whose image side can be trained. The text side stays as it is, and with it the open vocabulary.

    Args:
        model: See `ovseg.load`.
        part: "head" or "all".
        weights: See `ovseg.load`.
        device: See `ovseg.load`.

    Attributes:
        card: The model's card.
        network: The torch module; `segmenter` runs it too, so that what is trained can be asked at once.
        segmenter: The model behind ovseg's own surface.
        device: Where the network is.

    Raises:
        UnsupportedOperationError: If the model has no features that could be trained, or no known head.
    """

    def __init__(
        self, model: str | Path = "mini", *, part: str = "head", weights: Weights | None = None, device: str | None = None
    ) -> None:
        if part not in PARTS:
            raise InvalidArgumentError(f"The part to train must be one of {', '.join(PARTS)}; got {part!r}.")
        self._model = model
        request = Request(backend="torch", device=device, weights=weights)
        card, _ = locate(model, request)
        if card.conditional:  # said before a large network is made
            raise UnsupportedOperationError(f"{card.name!r} answers label by label; only models with two towers can be trained.")
        loaded = load_model(model, request)
        made: Any = loaded.runtime
        self.card: ModelCard = loaded.card
        self.network: nn.Module = made.module
        self.segmenter = Segmenter(loaded.card, loaded.runtime, loaded.tokenize, loaded.texts)
        self.device: torch.device = next(self.network.parameters()).device
        self.part = part
        self._preprocess = Preprocess(**self.card.preprocess)
        parameters = dict(self.network.named_parameters())
        changing = set(parameters) if part == "all" else head_of(self.card.family, list(parameters))  # of all, what sees the image
        for name, parameter in parameters.items():
            parameter.requires_grad_(name in changing)
        if not changing:
            raise UnsupportedOperationError(f"It is not known what the head of {self.card.name!r} is. Train all of it.")

    @property
    def other_files(self) -> dict[str, Path]:
        """Return the files that a folder with the trained weights needs beside them, by their roles."""
        _, files = locate(self._model, Request())
        return {role: path for role, path in files.items() if role in ("text", "tokenizer")}

    def trained(self) -> dict[str, nn.Parameter]:
        """Return the parameters that change, by name."""
        return {name: parameter for name, parameter in self.network.named_parameters() if parameter.requires_grad}

    @property
    def cacheable(self) -> bool:
        """Whether `frozen` saves work when its results are kept."""
        return self.part == "head" and isinstance(self.network, MiniNetwork)

    def input_size(self, image_size: tuple[int, int], size: int | None) -> tuple[int, int]:
        """Choose the (height, width) that an image is resized to; multiples of what the network needs."""
        return self._preprocess.input_size(image_size, size)

    def pixel_values(self, image: np.ndarray[Any, np.dtype[np.uint8]], size: tuple[int, int]) -> Tensor:
        """Resize and normalise an image (H, W, 3) uint8 RGB: (1, 3, height, width) float32 on the device."""
        return torch.from_numpy(self._preprocess.pixel_values(image, size)).to(self.device)

    def frozen(self, pixel_values: Tensor) -> tuple[Tensor, ...]:
        """Compute what does not change in training, which may be kept: the inputs of the head, or just the pixels."""
        if self.part == "head" and isinstance(self.network, MiniNetwork):
            with torch.no_grad():
                return self.network.backbone(pixel_values)
        return (pixel_values,)

    def vectors(self, parts: Sequence[Tensor], network: nn.Module | None = None) -> Tensor:
        """Compute the vectors of the cells from what `frozen` returned, with gradients; their length means nothing.

        Args:
            parts: What `frozen` returned.
            network: Another network of the same kind, such as an earlier state; None for this one.

        Returns:
            (B, D, h, w), before `normalised`.
        """
        network = self.network if network is None else network
        if isinstance(network, MiniNetwork):
            return network.pyramid(*parts) if self.part == "head" else network.forward_features(parts[0])[0]
        vectors: Tensor = network(parts[0])
        return vectors

    def normalised(self, vectors: Tensor) -> Tensor:
        """Make features of vectors: (B, D, h, w) float32, L2-normalised over D."""
        if isinstance(self.network, MiniNetwork):
            return self.network.normalised(vectors)
        return F.normalize(vectors.float(), dim=1)

    def logits(self, vectors: Tensor, text: Tensor, owner: Tensor) -> Tensor:
        """Compare vectors with names; the best of a label's names speaks for it, as in `Segmenter.segment`.

        Args:
            vectors: (B, D, h, w).
            text: (N, D) embeddings of all names.
            owner: (N,) the label of each name, not decreasing.

        Returns:
            (B, K, h, w) float32.
        """
        vectors = vectors.float()
        if isinstance(self.network, MiniNetwork):
            # <t, unit(unit(v) - m)> by products alone: dividing and shifting a few logits is cheaper than doing so to the features
            mean = self.network.mean.flatten().float()
            products = torch.einsum("bdhw,nd->bnhw", vectors, torch.cat([text, mean[None]]).to(vectors))
            length = vectors.square().sum(1, keepdim=True).clamp_min(1e-24).sqrt()
            shifted = (1 - 2 * products[:, -1:] / length + mean @ mean).clamp_min(1e-24).sqrt()
            cosines = (products[:, :-1] / length - (text @ mean)[:, None, None]) / shifted
        else:
            cosines = torch.einsum("bdhw,nd->bnhw", F.normalize(vectors, dim=1), text.to(vectors))
        names = cosines * self.card.logit_scale
        refine = getattr(self.network, "refine_logits", None)
        if refine is not None:
            names = refine(names)
        if len(owner) == int(owner[-1]) + 1:
            return names
        parts = torch.split(names, torch.bincount(owner).tolist(), dim=1)
        return torch.stack([part.amax(1) for part in parts], 1)

    def words(self, labels: Sequence[tuple[str, ...]]) -> tuple[Tensor, Tensor]:
        """Embed the names of labels with the model's own templates: (N, D) float32, and (N,) the label of each."""
        names = [word for group in labels for word in group]
        text = torch.from_numpy(self.segmenter.encode_text(names)).to(self.device)
        owner = torch.tensor([i for i, group in enumerate(labels) for _ in group])
        return text, owner

    def copy_of_network(self) -> nn.Module:
        """Return the network as it is now, which will not change."""
        return copy.deepcopy(self.network).requires_grad_(False)

    def state(self) -> dict[str, Tensor]:
        """Return all tensors of the network in the layout of its published file, for `ovseg.load(model, weights=...)`."""
        tensors = self.network.state_dict()
        prefix = "clip." if self.card.family == "clip" else ""
        return {name.removeprefix(prefix): value.detach().cpu().contiguous() for name, value in tensors.items()}

    def load_trained(self, tensors: Mapping[str, Tensor]) -> None:
        """Put back parameters that `trained` named."""
        own = self.trained()
        if own.keys() != tensors.keys():
            raise InvalidArgumentError("The checkpoint is of another model, or another part of it was trained.")
        with torch.no_grad():
            for name, parameter in own.items():
                parameter.copy_(tensors[name])


def start_anew(network: MiniNetwork, seed: int) -> None:
    """Forget what the pyramid of `mini` has learned: random weights, the read-out of ImageNet classes off, no mean.

    The backbone stays. It is the starting point of a fair comparison of supervisions: nothing that is trained has seen a label.

    Args:
        network: Changed in place.
        seed: Of the random weights.
    """
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, parameter in network.named_parameters():
            if not re.match(_PYRAMID, name):
                continue
            if parameter.ndim == 1:
                parameter.zero_()
                continue
            fan = parameter[0].numel()  # of one output
            deviation = fan**-0.5 * (0.3 if ".pointwise" in name else 1.0)  # the residual blocks begin near the identity
            parameter.copy_(torch.randn(parameter.shape, generator=generator) * deviation)
        network.gate.weight.zero_()
        network.class_text.weight.zero_()
        network.mean.zero_()


def standardise(network: MiniNetwork, pixels: Tensor) -> None:
    """Give the inputs of the pyramid unit scale, measured on some images, as random weights assume.

    Args:
        network: Its lateral layers are changed in place.
        pixels: (B, 3, H, W) pixel values.
    """
    with torch.no_grad():
        fine, middle, coarse, last, _ = network.backbone(pixels)
        taps = ((network.lateral4, fine), (network.lateral8, middle), (network.lateral16, coarse), (network.lateral32, last))
        for layer, values in (*taps, (network.context, last)):
            layer.weight.div_(F.conv2d(values, layer.weight).std() + 1e-6)
