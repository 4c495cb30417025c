"""ProxyCLIP's other network: a vision transformer of timm whose patches know what belongs together (DINO, DINOv2, DINOv3 ...)."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ovseg.errors import InvalidArgumentError, MissingDependencyError, UnsupportedOperationError
from ovseg.models.base import Positions
from ovseg.positions import Resize

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
        self._rotary = _is_dinov3(vit)
        own_mean, own_std = torch.tensor(vit.pretrained_cfg["mean"]), torch.tensor(vit.pretrained_cfg["std"])
        # (std x + mean - own_mean) / own_std in one step
        self.gain: Tensor
        self.shift: Tensor
        self.register_buffer("gain", (torch.tensor(std) / own_std).view(3, 1, 1), persistent=False)
        self.register_buffer("shift", ((torch.tensor(mean) - own_mean) / own_std).view(3, 1, 1), persistent=False)

    def forward(self, pixel_values: Tensor, positions: Tensor | None = None) -> Tensor:
        """Compute patch features.

        Args:
            pixel_values: (B, 3, H, W), normalised for CLIP. They are resized to the nearest multiples of this network's patch size, so its
                grid covers the same image.
            positions: (h, w, C) position embeddings, with which H and W must be h and w patches; None to resize the network's own.

        Returns:
            (B, C, h, w) after the network's last norm; h = round(H / patch).
        """
        (height, width), (down, across) = pixel_values.shape[2:], self.patch_size
        h = (height + down // 2) // down
        w = (width + across // 2) // across
        if positions is not None:
            h, w = positions.shape[:2]
        else:  # the identity at multiples
            pixel_values = F.interpolate(pixel_values, (h * down, w * across), mode="bilinear", align_corners=False)
        x = pixel_values * self.gain + self.shift
        own = positions is None and not self._rotary
        tokens: Tensor = self.vit.forward_features(x) if own else self._tokens(x, h, w, positions)
        patches = tokens[:, self.vit.num_prefix_tokens :].transpose(1, 2)
        return patches.reshape(patches.shape[0], patches.shape[1], h, w)

    def position_table(self) -> Positions | None:
        """Return the position embeddings as timm resizes them; None where the network has DINOv3's rotary ones, which fit every grid.

        Raises:
            UnsupportedOperationError: If they are others: their graph would be of one size.
        """
        vit = self.vit
        if self._rotary:
            return None
        if type(vit) is not _timm().models.VisionTransformer or vit.pos_embed is None or self.patch_size[0] != self.patch_size[1]:
            raise UnsupportedOperationError(
                f"This proxy, timm's {type(vit).__name__}, cannot be exported: a graph for every size is known only for tables of position "
                f"embeddings as in DINO and DINOv2 and for rotary ones as in DINOv3. Use one of those, as proxy={DEFAULT_PROXY!r}."
            )
        first = 0 if vit.no_embed_class else vit.num_prefix_tokens
        table = vit.pos_embed[0, first:].unflatten(0, tuple(vit.patch_embed.grid_size))
        return Positions(table, self.patch_size[0], Resize("bicubic", antialias=True))

    def _tokens(self, x: Tensor, h: int, w: int, positions: Tensor | None) -> Tensor:
        """Do what timm's `forward_features` does, for every (h, w): with position embeddings that are given, or DINOv3's rotary ones."""
        vit = self.vit
        patches = vit.patch_embed(x)  # (B, h, w, C)
        if positions is not None:
            patches = patches + positions.to(patches.dtype)
        tokens = patches.flatten(1, 2)
        prefix = [token for token in (vit.cls_token, vit.reg_token) if token is not None]
        if prefix:
            first = torch.cat(prefix, 1)
            if positions is not None and not vit.no_embed_class:
                first = first + vit.pos_embed[:, : vit.num_prefix_tokens]
            tokens = torch.cat([first.expand(tokens.shape[0], -1, -1), tokens], 1)
        rotary = {"rope": _rotation(h, w, vit.rope.periods)} if self._rotary else {}
        tokens = vit.norm_pre(tokens)
        for block in vit.blocks:
            tokens = block(tokens, **rotary)
        normed: Tensor = vit.norm(tokens)
        return normed


def _is_dinov3(vit: Any) -> bool:
    """Say whether places are told by DINOv3's rotation alone, one for all blocks."""
    rope = getattr(vit, "rope", None)
    usual = {"normalize_coords": "separate", "grid_offset": 0.0, "grid_indexing": "ij", "rotate_half": True}
    return (
        type(rope).__name__ == "RotaryEmbeddingDinoV3"
        and vit.pos_embed is None
        and not getattr(vit, "rope_mixed", False)
        and all(getattr(rope, name) == value for name, value in usual.items())
    )


def _rotation(h: int, w: int, periods: Tensor) -> Tensor:
    """Return sines and cosines of 2 pi c / period, c the centres of the patches in [-1, 1] on either axis (DINOv3, section 3.2).

    timm's own makes numbers of h and w, which would fix them in a graph.

    Args:
        h: Rows of patches.
        w: Columns.
        periods: (d / 4), d the channels of a head.

    Returns:
        (h w, 2 d) float32, as timm's blocks take it.
    """
    y, x = ((torch.arange(count, device=periods.device) + 0.5) / count * 2 - 1 for count in (h, w))
    places = torch.stack([y[:, None].expand(h, w), x[None].expand(h, w)], -1).flatten(0, 1)  # (h w, 2)
    angles = (2 * math.pi * places[:, :, None] / periods.float()).flatten(1).repeat(1, 2)
    return torch.cat([angles.sin(), angles.cos()], -1)


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


def proxy_license(name: str) -> str | None:
    """Return what timm says is the licence of a proxy's published weights; None if it says nothing."""
    known = _known(name)
    return None if known is None else known.license


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
