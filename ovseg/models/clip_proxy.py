"""ProxyCLIP's other network: a vision transformer of timm whose patches know what belongs together (DINO, DINOv2, DINOv3 ...)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ovseg.errors import InvalidArgumentError, MissingDependencyError, UnsupportedOperationError

DEFAULT_PROXY = "vit_base_patch16_224.dino"
"""A quarter of the cost of the paper's DINO-B/8 (vit_base_patch8_224.dino), which sees finer."""


class ProxyEncoder(nn.Module):
    """Patch features of a timm vision transformer, from pixel values that were normalised for CLIP.

    Args:
        vit: A timm `VisionTransformer` or `Eva` made with `dynamic_img_size=True`.
        mean: (3) mean that the incoming pixel values were normalised with, RGB in [0, 1].
        std: (3) their standard deviation.
    """

    def __init__(self, vit: Any, mean: Sequence[float], std: Sequence[float]) -> None:
        super().__init__()
        self.vit = vit
        self.patch_size: tuple[int, int] = tuple(vit.patch_embed.patch_size)
        own_mean, own_std = torch.tensor(vit.pretrained_cfg["mean"]), torch.tensor(vit.pretrained_cfg["std"])
        # (std x + mean - own_mean) / own_std in one step
        self.gain: Tensor
        self.shift: Tensor
        self.register_buffer("gain", (torch.tensor(std) / own_std).view(3, 1, 1), persistent=False)
        self.register_buffer("shift", ((torch.tensor(mean) - own_mean) / own_std).view(3, 1, 1), persistent=False)

    def forward(self, pixel_values: Tensor) -> Tensor:
        """Compute patch features.

        Args:
            pixel_values: (B, 3, H, W), normalised for CLIP. They are resized to the nearest multiples of this network's patch size, so its
                grid covers the same image.

        Returns:
            (B, C, h, w) after the network's last norm; h = round(H / patch).
        """
        (height, width), (down, across) = pixel_values.shape[2:], self.patch_size
        h = (height + down // 2) // down
        w = (width + across // 2) // across
        x = F.interpolate(pixel_values, (h * down, w * across), mode="bilinear", align_corners=False)  # the identity at multiples
        tokens: Tensor = self.vit.forward_features(x * self.gain + self.shift)
        patches = tokens[:, self.vit.num_prefix_tokens :].transpose(1, 2)
        return patches.reshape(patches.shape[0], patches.shape[1], h, w)


def _timm() -> Any:
    try:
        import timm
    except ImportError as error:
        raise MissingDependencyError("The read-out proxyclip needs timm: pip install 'ovseg[torch]'") from error
    return timm


def _known(name: str) -> Any:
    """Return what timm knows of published weights; None if there are none."""
    try:
        return _timm().models.get_pretrained_cfg(name)
    except RuntimeError:  # the architecture exists, the tag does not
        return None


def proxy_location(name: str) -> tuple[str, str]:
    """Return the repository and the file of the Hugging Face Hub that hold the weights of a proxy.

    Args:
        name: timm's name of a vision transformer; without the tag of its weights, timm's usual ones.

    Raises:
        InvalidArgumentError: If timm knows no such weights in the hub.
    """
    known = _known(name)
    repository = known.hf_hub_id if known is not None else None
    if not repository:
        raise InvalidArgumentError(f"timm has no weights {name!r} in the Hugging Face Hub; proxy={DEFAULT_PROXY!r} has some.")
    if repository.endswith("/"):  # timm's short form: the organisation alone
        repository += f"{known.architecture}.{known.tag}" if known.tag else known.architecture
    return repository, known.hf_hub_filename or "model.safetensors"


def build_proxy(name: str, mean: Sequence[float], std: Sequence[float]) -> ProxyEncoder:
    """Build a proxy with random weights.

    Args:
        name: timm's name of a vision transformer, with or without the tag of its weights.
        mean: Mean that CLIP's pixel values are normalised with.
        std: Their standard deviation.

    Raises:
        InvalidArgumentError: If timm has no such model.
        UnsupportedOperationError: If it is no plain vision transformer with patch tokens.
    """
    timm = _timm()
    if not timm.is_model(name) or ("." in name and _known(name) is None):
        raise InvalidArgumentError(f"proxy must be the name of a vision transformer of timm, such as {DEFAULT_PROXY!r}; got {name!r}.")
    needed = ("patch_embed", "blocks", "num_prefix_tokens", "forward_features")
    try:
        vit = timm.create_model(name, pretrained=False, num_classes=0, dynamic_img_size=True)
    except TypeError:  # what is no vision transformer does not know the argument
        vit = None
    if vit is None or not all(hasattr(vit, attribute) for attribute in needed) or not hasattr(vit.patch_embed, "patch_size"):
        raise UnsupportedOperationError(
            f"{name!r} cannot be a proxy: it is no plain vision transformer. Use one, such as {DEFAULT_PROXY!r}, "
            "'vit_base_patch14_reg4_dinov2.lvd142m' or 'vit_base_patch16_dinov3.lvd1689m'."
        )
    return ProxyEncoder(vit, mean, std)
