"""What the architectures share: reading published weights strictly, activations, position embeddings of any grid."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ovseg.errors import WeightsError
from ovseg.positions import Resize

_NAMED = 5  # tensors that a message names


@dataclass(frozen=True)
class Positions:
    """The position embeddings of an image tower, for an export that gives them to the graph from outside.

    Attributes:
        table: (h, w, C) of the grid that the model was trained on.
        patch: Input pixels per cell of that grid.
        rule: How they are resized to another.
    """

    table: Tensor
    patch: int
    rule: Resize


class QuickGELU(nn.Module):
    """x * sigmoid(1.702 x), the activation of OpenAI's CLIP."""

    def forward(self, x: Tensor) -> Tensor:
        """Map any tensor to one of the same shape."""
        return x * torch.sigmoid(1.702 * x)


class LayerScale(nn.Module):
    """A learned factor for each channel.

    Args:
        width: Channels.
        start: What the factors are before weights are loaded.
    """

    def __init__(self, width: int, start: float = 1.0) -> None:
        super().__init__()
        self.gamma = nn.Parameter(torch.full((width,), start))

    def forward(self, x: Tensor) -> Tensor:
        """Map (..., C) to the same shape."""
        return x * self.gamma


class Mlp(nn.Module):
    """The MLP of a vision transformer's block, with timm's names: two linear layers around a GELU, four times as wide between them."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.fc1 = nn.Linear(width, 4 * width)
        self.fc2 = nn.Linear(4 * width, width)

    def forward(self, x: Tensor) -> Tensor:
        """Map (..., C) to the same shape."""
        y: Tensor = self.fc2(F.gelu(self.fc1(x)))
        return y


def unit(x: Tensor, dim: int = 1) -> Tensor:
    """Scale vectors along `dim` to length 1 in float32: lengths overflow in half precision."""
    return F.normalize(x.float(), dim=dim)


def resize_positions(
    table: Tensor, size: tuple[int, int], mode: str = "bicubic", antialias: bool = False, align_corners: bool = False
) -> Tensor:
    """Resize a table of position embeddings to another grid.

    Args:
        table: (h, w, C) embeddings of the grid that the model was trained on.
        size: (h', w') of the grid that is wanted.
        mode: "bicubic" or "bilinear".
        antialias: Whether to low-pass when the grid shrinks.
        align_corners: Whether the outer cells keep their place.

    Returns:
        (h', w', C), of the dtype of `table`; `table` itself where the grids agree.
    """
    if tuple(table.shape[:2]) == tuple(size):
        return table
    grid = table.permute(2, 0, 1)[None].float()
    grid = F.interpolate(grid, size, mode=mode, align_corners=align_corners, antialias=antialias)
    return grid[0].permute(1, 2, 0).to(table.dtype)


def _some(names: Iterable[str]) -> str:
    listed = sorted(names)
    return ", ".join(listed[:_NAMED]) + (f" and {len(listed) - _NAMED} more" if len(listed) > _NAMED else "")


def load_strict(module: nn.Module, state: Mapping[str, Tensor], origin: str, ignore: tuple[str, ...] = ()) -> None:
    """Put published tensors into a module; every one must be known, and every parameter given.

    Args:
        module: Its parameters are replaced. Floating-point tensors become float32.
        state: Name -> tensor, named as in `module.state_dict()`.
        origin: What the weights are of, for messages.
        ignore: Beginnings of names that may be in `state` and are not needed, or in the module and are not published.

    Raises:
        WeightsError: If tensors are missing, unknown, or of another shape.
    """
    own = module.state_dict()
    given = {name: value for name, value in state.items() if name in own or not name.startswith(ignore or ("\0",))}
    missing = [name for name in own if name not in given and not name.startswith(ignore or ("\0",))]
    unknown = [name for name in given if name not in own]
    if missing or unknown:
        parts = [f"{len(missing)} tensors are missing ({_some(missing)})"] if missing else []
        parts += [f"{len(unknown)} are unknown ({_some(unknown)})"] if unknown else []
        raise WeightsError(f"These are not weights of {origin}: {'; '.join(parts)}. Give the file of this very model.")
    for name, value in given.items():
        if value.shape != own[name].shape:
            raise WeightsError(
                f"These are not weights of {origin}: {name} has the shape {tuple(value.shape)}, expected {tuple(own[name].shape)}. "
                "Give the file of this very model."
            )
    floats = {name: value.float() if value.is_floating_point() else value for name, value in given.items()}
    module.load_state_dict(floats, strict=False, assign=any(p.is_meta for p in module.parameters()))
