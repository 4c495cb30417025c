"""What is exported: torch modules whose inputs and outputs are those of a graph, float32 at the border whatever they compute in."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ovseg.positions import resize


class ImageGraph(nn.Module):
    """Pixel values (B, 3, H, W), and (h, w, C) positions where the network has any, to (B, D, h, w) features of unit length.

    A second network inside takes positions of its own, `positions_proxy`.
    """

    def __init__(self, module: nn.Module, dtype: torch.dtype) -> None:
        super().__init__()
        self.module, self.dtype = module, dtype

    def forward(self, pixel_values: Tensor, positions: Tensor | None = None, positions_proxy: Tensor | None = None) -> Tensor:
        """Compute the features."""
        y: Tensor = self.module(pixel_values.to(self.dtype), *_given(positions, positions_proxy))
        return y


def _given(*tables: Tensor | None) -> list[Tensor]:
    """Return those that there are: networks without position embeddings know no such argument."""
    return [table for table in tables if table is not None]


class GlobalGraph(nn.Module):
    """Pixel values (B, 3, S, S) of the one size S that is classified to (B, D) image embeddings."""

    def __init__(self, module: Any, dtype: torch.dtype, size: int) -> None:
        super().__init__()
        self.module, self.dtype = module, dtype
        found = module.position_table(whole=True) if hasattr(module, "position_table") else None
        table = torch.zeros(0)
        if found is not None:  # a constant of the graph
            table = torch.from_numpy(resize(found.table.float().numpy(), (size // found.patch, size // found.patch), found.rule))
        self.positions: Tensor
        self.register_buffer("positions", table)
        self.has_positions = found is not None

    def forward(self, pixel_values: Tensor) -> Tensor:
        """Compute the embeddings."""
        pixels = pixel_values.to(self.dtype)
        y: Tensor = self.module.encode_global(pixels, self.positions) if self.has_positions else self.module.encode_global(pixels)
        return y.float()


class TextGraph(nn.Module):
    """Token ids (N, T) to (N, D) text embeddings. No tower needs the mask, which is there for those that will."""

    def __init__(self, module: Any) -> None:
        super().__init__()
        self.module = module

    def forward(self, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        """Compute the embeddings."""
        y: Tensor = self.module.encode_text(input_ids)
        return y.float()


class HeadGraph(nn.Module):
    """Logits (B, K, h, w) to as many: LSeg's head blocks, in float32."""

    def __init__(self, module: Any) -> None:
        super().__init__()
        self.module = module

    def forward(self, logits: Tensor) -> Tensor:
        """Refine them."""
        y: Tensor = self.module.refine_logits(logits)
        return y


@dataclass(frozen=True)
class Ending:
    """How features become a label map.

    Attributes:
        stride: Pixels per cell.
        align_corners: Whether the outer cells lie on the outer pixels.
        scale: The logit is `scale` times the cosine. It does not matter for the greatest, but for head blocks.
    """

    stride: int
    align_corners: bool
    scale: float


def winners(cosines: Tensor, ending: Ending, module: Any) -> Tensor:
    """Map (B, K, h, w) cosines to (B, H, W) int32: upsample, take the greatest."""
    logits = cosines
    if hasattr(module, "refine_logits"):
        logits = module.refine_logits(ending.scale * cosines)
    logits = F.interpolate(logits, scale_factor=float(ending.stride), mode="bilinear", align_corners=ending.align_corners)
    return logits.argmax(1).to(torch.int32)


def _cosines(text: Tensor, features: Tensor) -> Tensor:
    """Map (K, D) and (B, D, h, w) to (B, K, h, w)."""
    products = torch.matmul(text, features.flatten(2))
    return products.reshape(products.shape[0], products.shape[1], features.shape[2], features.shape[3])


class SegmenterGraph(nn.Module):
    """Pixel values (B, 3, H, W), (K, D) text embeddings of unit length, and positions, to (B, H, W) int32 indices of the best text."""

    def __init__(self, module: nn.Module, dtype: torch.dtype, ending: Ending) -> None:
        super().__init__()
        self.image, self.ending = ImageGraph(module, dtype), ending

    def forward(
        self, pixel_values: Tensor, text_embeddings: Tensor, positions: Tensor | None = None, positions_proxy: Tensor | None = None
    ) -> Tensor:
        """Compute the label map."""
        features = self.image(pixel_values, positions, positions_proxy)
        return winners(_cosines(text_embeddings, features), self.ending, self.image.module)


class EndingGraph(nn.Module):
    """Features (B, D, h, w) and (K, D) text embeddings of unit length to (B, H, W) int32 indices of the best text.

    Args:
        module: The network.
        ending: How features become a label map.
        text: (N, D) embeddings of fixed names, which become part of the graph; None where they come with each call.
        owner: (N) label of each fixed name.
    """

    def __init__(self, module: Any, ending: Ending, text: Tensor | None = None, owner: Tensor | None = None) -> None:
        super().__init__()
        self.module, self.ending = module, ending
        self.text: Tensor | None
        self.owner: Tensor | None
        self.register_buffer("text", text)
        self.register_buffer("owner", None if owner is None else owner.to(torch.int32))

    def forward(self, features: Tensor, text_embeddings: Tensor | None = None) -> Tensor:
        """Compute the label map."""
        text = self.text if text_embeddings is None else text_embeddings
        if text is None:
            raise ValueError("there are neither fixed nor given embeddings")
        best = winners(_cosines(text, features), self.ending, self.module)
        return best if self.owner is None else self.owner[best.long()]


def fold(weight: Tensor, bias: Tensor | None, text: Tensor) -> tuple[Tensor, Tensor]:
    """Put fixed words into a last linear map, so that its cosines with them cost no vectors of the shared space.

    With y = W x + b, the cosine of y with the unit vector t is t y / |y|. The dividend is (t W) x + t b. With [W | b] = Q R, Q having
    orthonormal columns, |y| = |R [x; 1]|, and R has min(D, C + 1) rows.

    Args:
        weight: (D, C) W.
        bias: (D) b, or None.
        text: (N, D) unit vectors.

    Returns:
        (N + R, C) and (N + R): one linear map. Its first N outputs divided by the length of the rest are the cosines.
    """
    joint = weight if bias is None else torch.cat([weight, bias[:, None]], 1)
    upper = torch.linalg.qr(joint.double(), mode="r").R
    rows = torch.cat([text.double() @ joint.double(), upper]).to(weight.dtype)
    width = weight.shape[1]
    return rows[:, :width].contiguous(), rows[:, width].contiguous() if bias is not None else rows.new_zeros(len(rows))


class FixedSegmenterGraph(nn.Module):
    """Pixel values (B, 3, H, W), and positions, to (B, H, W) int32 indices of labels that are part of the graph.

    Args:
        module: The network.
        dtype: It computes in.
        ending: How features become a label map.
        text: (N, D) float32 embeddings of all names, of unit length.
        owner: (N) label of each name.
    """

    def __init__(self, module: Any, dtype: torch.dtype, ending: Ending, text: Tensor, owner: Tensor) -> None:
        super().__init__()
        self.image, self.ending, self.names = ImageGraph(module, dtype), ending, len(text)
        self.text: Tensor
        self.owner: Tensor
        self.register_buffer("owner", owner.to(torch.int32))
        self.one_name_each = bool((owner == torch.arange(len(owner))).all())
        last = module.projection() if hasattr(module, "projection") else None
        self.folded = last is not None and _is_cheaper(last[0], last[1], len(text))
        if last is not None and self.folded:
            rows, shift = fold(last[0].float(), None if last[1] is None else last[1].float(), text)
            self.last = nn.Conv2d(rows.shape[1], rows.shape[0], 1)
            self.last.weight = nn.Parameter(rows[:, :, None, None], requires_grad=False)
            self.last.bias = nn.Parameter(shift, requires_grad=False)
        else:
            self.register_buffer("text", text)

    def cosines(self, pixel_values: Tensor, positions: Tensor | None, positions_proxy: Tensor | None = None) -> Tensor:
        """Compute the (B, N, h, w) cosines of all names."""
        if not self.folded:
            return _cosines(self.text, self.image(pixel_values, positions, positions_proxy))
        network: Any = self.image.module
        x = network.before_projection(pixel_values.to(self.image.dtype), *_given(positions, positions_proxy))
        y = network.after_projection(self.last(x.float()))
        length = torch.linalg.vector_norm(y[:, self.names :], dim=1, keepdim=True).clamp_min(1e-12)
        cosines: Tensor = y[:, : self.names] / length
        return cosines

    def forward(self, pixel_values: Tensor, positions: Tensor | None = None, positions_proxy: Tensor | None = None) -> Tensor:
        """Compute the label map."""
        best = winners(self.cosines(pixel_values, positions, positions_proxy), self.ending, self.image.module)
        return best if self.one_name_each else self.owner[best.long()]


def _is_cheaper(weight: Tensor, bias: Tensor | None, names: int) -> bool:
    """Count multiplications for each cell: W x and T y against [T W; R] x. Where C > D, as in CLIP, nothing is gained."""
    dim, width = weight.shape
    rows = min(dim, width + (bias is not None))
    return (names + rows) * width < dim * width + names * dim
