"""From an RGB image to the pixel values a model was trained on. The settings come with the weights, in the model card."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from ovseg.errors import InvalidArgumentError

_FILTERS = {"bilinear": Image.Resampling.BILINEAR, "bicubic": Image.Resampling.BICUBIC}
MAX_UPSCALE = 4.0
"""A small image is enlarged by at most this factor: more pixels than that carry no information."""


@dataclass(frozen=True)
class Preprocess:
    """How a model sees images.

    Attributes:
        mean: RGB mean, subtracted after scaling to [0, 1].
        std: RGB standard deviation, divided by.
        short_side: Short side the model's own policy aims at [px].
        max_area: Largest area that policy aims at [px]; rounding to multiples may add up to a third.
        multiple: Height and width of the network's input are multiples of this [px].
        resample: "bilinear" or "bicubic".
        square: Side of the square that every image is squeezed to [px], for networks that see only squares; None for others.
    """

    mean: tuple[float, float, float] = (0.5, 0.5, 0.5)
    std: tuple[float, float, float] = (0.5, 0.5, 0.5)
    short_side: int = 448
    max_area: int = 448 * 896
    multiple: int = 32
    resample: str = "bilinear"
    square: int | None = None

    def __post_init__(self) -> None:
        """Check what a card says."""
        for name in ("mean", "std"):
            values = getattr(self, name)
            if not isinstance(values, (list, tuple)) or len(values) != 3 or not all(isinstance(value, (int, float)) for value in values):
                raise InvalidArgumentError(f"{name} must be three numbers; got {values!r}.")
        if not all(value > 0 for value in self.std):
            raise InvalidArgumentError(f"std must be positive; got {self.std!r}.")
        for name in ("short_side", "max_area", "multiple", "square"):
            value = getattr(self, name)
            if (value is not None or name != "square") and (not isinstance(value, int) or isinstance(value, bool) or value < 1):
                raise InvalidArgumentError(f"{name} must be a positive whole number; got {value!r}.")
        if self.resample not in _FILTERS:
            raise InvalidArgumentError(f"resample must be one of {', '.join(_FILTERS)}; got {self.resample!r}.")

    def input_size(self, image_size: tuple[int, int], size: int | str | None = None) -> tuple[int, int]:
        """Choose the (height, width) an image is resized to.

        Args:
            image_size: (H, W) of the image [px].
            size: None for the model's own policy, an int for the short side [px], "native" for the pixels as they are.

        Returns:
            (height, width) [px]. Multiples of `multiple`, except for "native", which is padded instead of resized.
        """
        height, width = image_size
        if isinstance(size, str):
            if size != "native":
                raise InvalidArgumentError(f"size must be None, a number of pixels or 'native'; got {size!r}.")
            if self.square is not None:
                raise InvalidArgumentError("This model sees squares only: size='native' has no meaning for it. Give a number, or None.")
            return height, width
        if size is None and self.square is not None:
            return self.square, self.square
        if size is None:
            scale = min(self.short_side / min(height, width), math.sqrt(self.max_area / (height * width)), MAX_UPSCALE)
        else:
            if isinstance(size, bool) or not isinstance(size, (int, np.integer)):
                raise InvalidArgumentError(f"size must be None, a number of pixels or 'native'; got {size!r}.")
            if not self.multiple <= size <= 8192:
                raise InvalidArgumentError(f"size must be between {self.multiple} and 8192 pixels; got {size}.")
            if self.square is not None:
                side = round(size / self.multiple) * self.multiple
                return side, side
            scale = size / min(height, width)
        # A strip of a few pixels by thousands must not become thousands by hundreds of thousands.
        longest = max(self.max_area / self.multiple if size is None else 8192.0 * 4, self.multiple)
        scale = min(scale, longest / max(height, width))
        fitted = [max(self.multiple, round(side * scale / self.multiple) * self.multiple) for side in image_size]
        return fitted[0], fitted[1]

    def pixel_values(self, image: NDArray[np.uint8], size: tuple[int, int]) -> NDArray[np.float32]:
        """Resize, scale and pad an image for the network.

        Args:
            image: (H, W, 3) uint8 RGB.
            size: (height, width) to resize to; padded at the bottom and the right to multiples of `multiple`.

        Returns:
            (1, 3, height', width') float32, normalised. Padding repeats the last row and column.
        """
        if image.shape[:2] != size:
            resized = Image.fromarray(image).resize(size[::-1], _FILTERS[self.resample])
            image = np.asarray(resized)
        values = self._normalised(image)
        pad = [(0, -side % self.multiple) for side in size]
        if any(after for _, after in pad):
            values = np.pad(values, (*pad, (0, 0)), mode="edge")
        return np.ascontiguousarray(values.transpose(2, 0, 1)[None])

    def fitted(self, image: NDArray[np.uint8], side: int, fit: str, resample: str | None = None) -> NDArray[np.float32]:
        """Fit an image into the square that a network classifies.

        Args:
            image: (H, W, 3) uint8 RGB.
            side: Side of the square [px].
            fit: "crop": the short side becomes `side` and the middle is cut out; "squash": both sides become `side`.
            resample: "bilinear" or "bicubic"; None for the one of this.

        Returns:
            (1, 3, side, side) float32, normalised.
        """
        picture, kernel = Image.fromarray(image), _FILTERS[resample or self.resample]
        if fit == "squash":
            picture = picture.resize((side, side), kernel)
        else:
            short = min(picture.size)
            if max(picture.size) > 8 * short:  # of a long strip only the middle is seen: do not enlarge all of it
                left, top = (max(0, (length - 8 * short) // 2) for length in picture.size)
                picture = picture.crop((left, top, picture.width - left, picture.height - top))
            size = [max(side, int(side * length / short)) for length in picture.size]
            left, top = (round((length - side) / 2) for length in size)
            picture = picture.resize((size[0], size[1]), kernel).crop((left, top, left + side, top + side))
        return np.ascontiguousarray(self._normalised(np.asarray(picture)).transpose(2, 0, 1)[None])

    def _normalised(self, image: NDArray[np.uint8]) -> NDArray[np.float32]:
        values = image.astype(np.float32)
        values -= 255 * np.asarray(self.mean, np.float32)
        values /= 255 * np.asarray(self.std, np.float32)
        return values
