"""Features of an image: what the image tower gives, ready to be asked with any words."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray


def largest_norm(embedding: NDArray[np.float32]) -> float:
    """Find the L2 norm of the longest vector of (D, h, w) float32; NaN or infinite where a number is."""
    with np.errstate(over="ignore", invalid="ignore"):
        return float(np.sqrt(np.einsum("dhw,dhw->hw", embedding, embedding).max(initial=0)))


@dataclass(frozen=True, slots=True, eq=False)
class ImageFeatures:
    """The dense features of one image; a value that never changes.

    Attributes:
        embedding: (D, h, w) float32, L2-normalised over D; read-only.
        image_size: (H, W) of the image [px].
        extent: How many cells (down, across) of the grid the image covers: (h, w), or less where the input was padded.
        model: The model they come from, with its read-out where it has a choice.
        image: (H, W, 3) uint8 RGB, kept for overlays; or None.
        norm: The largest L2 norm of a cell: 1, but for rounding. NaN or infinite where a number of the embedding is.
    """

    embedding: NDArray[np.float32]
    image_size: tuple[int, int]
    extent: tuple[float, float]
    model: str
    image: NDArray[np.uint8] | None = None
    norm: float = field(init=False, repr=False)

    def __post_init__(self) -> None:
        """Make the arrays read-only; those of the caller stay as they are. Measure them once, as many questions may follow."""
        for name in ("embedding", "image"):
            array = getattr(self, name)
            if array is not None:
                view = array.view()
                view.flags.writeable = False
                object.__setattr__(self, name, view)
        object.__setattr__(self, "norm", largest_norm(self.embedding))

    def __repr__(self) -> str:
        """Say the sizes, not the numbers."""
        return f"ImageFeatures(embedding={self.embedding.shape}, image_size={self.image_size}, model={self.model!r})"
