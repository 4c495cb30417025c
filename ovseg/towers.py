"""How a model answers words about an image: by two towers that share a space, or prompt by prompt.

Both give a `similarity.Grid` and vectors of the names: the logit of name n in a cell is their product. Two towers give features and
text embeddings. A conditional network gives a map for each name; taken as features, its names are the unit vectors.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from copy import copy
from dataclasses import dataclass, replace
from itertools import islice, takewhile
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ovseg.errors import BackendError, InvalidArgumentError, UnsupportedOperationError, WeightsError
from ovseg.features import ImageFeatures
from ovseg.image import ImageInput, load_image
from ovseg.multiscale import CROP, SCALES, multiscale_logits
from ovseg.preprocess import Preprocess
from ovseg.registry import ModelCard
from ovseg.runtime.base import ConditionalRuntime, OnDevice, Runtime
from ovseg.runtime.batching import DynamicBatching
from ovseg.similarity import Grid, Indices, Labels, label_map, name_logits, upsampled
from ovseg.text import TextTower, Tokenize, progress
from ovseg.text_cache import TextCache
from ovseg.tiling import encode_windows
from ovseg.vocabulary import Template, build_prompts

WINDOW = 512
"""Side of a sliding window where the model has none of its own [px]."""
WINDOW_STRIDE = 352
"""Distance between sliding windows where the model has none of its own [px]."""
MAX_FEATURE_BYTES = 512 << 20
"""Largest feature map that is made; making it takes about four times as much memory."""
CLASSIFY_SIZE = 224
"""Short side of the image for classification by the mean feature [px], at most: things are seen whole."""
PROMPTS_AT_ONCE = 32
"""Prompts that a conditional network answers together."""
BATCH = 8
"""Windows that a GPU encodes together."""
PAIRWISE = ("naclip", "proxyclip", "radseg")
"""Read-outs that hold a matrix of all pairs of cells."""
MAX_PAIR_BYTES = 4 << 30
"""Largest such matrix."""
MAX_MULTISCALE_BYTES = 4 << 30
"""Largest logits of all names at all pixels that `window="multiscale"` adds up."""
WINDOWS = (None, "whole", "sliding")

Floats = NDArray[np.float32]


@dataclass(frozen=True)
class Answer:
    """The logits of all names on the grid of an image.

    Attributes:
        grid: Features of the cells.
        names: (N, D) vectors of the names.
        scale: The logit is `scale` times their product.
        image: (H, W, 3) uint8 RGB, or None.
    """

    grid: Grid
    names: Floats
    scale: float
    image: NDArray[np.uint8] | None


def _require_finite(finite: bool | np.bool_, model: str) -> None:
    """Refuse what would quietly become the first label everywhere."""
    if not finite:
        raise BackendError(
            f"{model!r} computed numbers that are not finite. In float16 it may have overflowed: use dtype='bfloat16' or 'float32'; "
            "otherwise its weights are damaged."
        )


class _Looker:
    """What both kinds share: reading and fitting images."""

    def __init__(self, card: ModelCard) -> None:
        self.card = card
        try:
            self._preprocess = Preprocess(**card.preprocess)
        except TypeError as error:
            raise WeightsError(f"The card of {card.name!r} says of preprocess what no version of ovseg here knows: {error}.") from error

    def _pixels(self, image: ImageInput) -> NDArray[np.uint8]:
        pixels = load_image(image)
        if pixels is image or not pixels.flags.owndata:  # the caller may go on writing to it
            pixels = pixels.copy()
        return pixels

    def require_embeddings(self) -> None:
        """Refuse what a network cannot do that answers label by label."""
        if self.card.conditional:
            raise UnsupportedOperationError(
                f"{self.card.name!r} has no embeddings: it answers label by label. Use segment(), or a model with two towers."
            )

    def glance(self, answer: Answer, names: Any) -> Answer:
        """Give an answer's logits cell by cell, without upsampling; towers look once more, at the image in small."""
        rows, columns = (max(1, round(cells)) for cells in answer.grid.extent)
        return replace(answer, grid=replace(answer.grid, image_size=(rows, columns)))

    def label_map(self, answer: Answer, owner: Indices) -> Labels:
        """Find the best label of every pixel."""
        return label_map(answer.grid, answer.names, owner, answer.scale)

    def label_map_of(
        self, image: ImageInput | ImageFeatures, names: Any, owner: Indices, size: int | str | None, window: str | None
    ) -> tuple[Labels, NDArray[np.uint8]] | None:
        """Find the best label of every pixel of an image without fetching its features, and its pixels; None where that is not possible."""
        return None

    def _extent(self, fitted: tuple[int, int]) -> tuple[float, float]:
        return fitted[0] / self.card.stride, fitted[1] / self.card.stride

    def _grid(self, embedding: Floats, image_size: tuple[int, int], extent: tuple[float, float], norm: float | None = None) -> Grid:
        return Grid(embedding, image_size, extent, self.card.stride if self.card.align_corners else None, norm)


class TwoTowers(_Looker):
    """A model whose image features live in the space of its text embeddings.

    Args:
        card: The model's card.
        runtime: Runs its two towers.
        tokenize: Gives the ids of texts.
        texts: Embeddings of earlier texts, on the disk; None for none.
    """

    def __init__(self, card: ModelCard, runtime: Runtime, tokenize: Tokenize, texts: TextCache | None = None) -> None:
        super().__init__(card)
        self._runtime = runtime
        self._encode_image: Callable[[Floats], Floats] = runtime.encode_image
        self._on_device = runtime if isinstance(runtime, OnDevice) else None
        self._encode_on_device: Callable[[Floats], Any] | None = None if self._on_device is None else self._on_device.encode_on_device
        self._text = TextTower(tokenize, runtime.encode_text, store=texts)

    def batched(self, limit: int | None) -> TwoTowers:
        """See `Segmenter.batched`."""
        limit = self._batch if limit is None else limit
        if limit == 1:
            return self
        shared = copy(self)
        shared._encode_image = DynamicBatching(self._runtime.encode_image, limit)
        if self._on_device is not None:
            shared._encode_on_device = DynamicBatching(self._on_device.encode_on_device, limit)
        return shared

    @property
    def device(self) -> str:
        """Runtime and device."""
        return self._runtime.name

    @property
    def identity(self) -> str:
        """What features are marked with: the model, and its read-out where it has a choice."""
        readout = self.card.options.get("readout")
        return f"{self.card.name} ({readout})" if readout else self.card.name

    def read(self, names: Sequence[str], templates: Sequence[Template]) -> Floats:
        """Embed names by prompt ensembles: (N, D) float32, L2-normalised."""
        return self._text.embed_names(names, templates)

    def answer(self, image: ImageInput | ImageFeatures, names: Floats, size: int | str | None, window: str | None) -> Answer:
        """Compute the logits of names that were read."""
        if window == "multiscale":
            return self._multiscale(image, names, size)
        features = self.features(image, size, window)
        grid = self._grid(features.embedding, features.image_size, features.extent, features.norm)
        if self._runtime.refine_logits is None:
            return Answer(grid, names, self.card.logit_scale, features.image)
        grid = self._grid(self._logits(grid, names), features.image_size, features.extent)
        return Answer(grid, np.eye(len(names), dtype=np.float32), 1.0, features.image)

    def glance(self, answer: Answer, names: Floats) -> Answer:
        """Answer once more with features in which things are seen whole, if there is an image to see."""
        if answer.image is not None:
            answer = self.answer(self.coarse(answer.image), names, None, None)
        return super().glance(answer, names)

    def label_map(self, answer: Answer, owner: Indices) -> Labels:
        """Find the best label of every pixel; on the GPU where the features come from there."""
        gpu = self._gpu
        if gpu is None:
            return super().label_map(answer, owner)
        return gpu.label_pixels(answer.grid.embedding, answer.grid.axes, answer.names, owner, answer.scale)

    def label_map_of(
        self, image: ImageInput | ImageFeatures, names: Floats, owner: Indices, size: int | str | None, window: str | None
    ) -> tuple[Labels, NDArray[np.uint8]] | None:
        """Do so on a GPU, where nothing but the label map leaves it then, if the image is seen whole and the logits are final."""
        gpu, encode = self._gpu, self._encode_on_device
        if gpu is None or encode is None or self._runtime.refine_logits is not None:
            return None
        if isinstance(image, ImageFeatures) or window == "multiscale" or self._slides(window):
            return None
        pixels = self._pixels(image)
        fitted = self._preprocess.input_size(pixels.shape[:2], size)
        self._check_size(fitted, False)
        features = encode(self._preprocess.pixel_values(pixels, fitted))[0]
        self._check_shape(tuple(features.shape), fitted)
        _require_finite(gpu.is_finite(features), self.card.name)
        grid = self._grid(features, pixels.shape[:2], self._extent(fitted))
        return gpu.label_pixels(features, grid.axes, names, owner, self.card.logit_scale), pixels

    @property
    def _gpu(self) -> OnDevice | None:
        """The runtime, if it runs on a GPU and can keep features there; onnxruntime may find only when it starts that it does not."""
        return self._on_device if self._runtime.name.endswith(":cuda") else None

    def _logits(self, grid: Grid, names: Floats) -> Floats:
        """Compute the final logits of all names on the whole grid: (N, h, w) float32."""
        logits, refine = name_logits(grid, names, self.card.logit_scale, slice(None), slice(None)), self._runtime.refine_logits
        return logits if refine is None else refine(logits[None])[0]

    def _multiscale(self, image: ImageInput | ImageFeatures, names: Floats, size: int | str | None) -> Answer:
        """Average the logits of many views of an image, at its own size."""
        if isinstance(image, ImageFeatures) or size is not None:
            raise InvalidArgumentError("window='multiscale' looks at the image at sizes of its own: give the image, and no size.")
        pixels, settings = self._pixels(image), self._preprocess
        need = 8 * len(names) * pixels.shape[0] * pixels.shape[1]
        if need > MAX_MULTISCALE_BYTES:
            raise InvalidArgumentError(
                f"window='multiscale' keeps the logits of all names at all pixels, here {need >> 30} GiB (limit "
                f"{MAX_MULTISCALE_BYTES >> 30}). Reduce the image, or use another window."
            )
        crop = -(-CROP // settings.multiple) * settings.multiple

        def logits_of(pixel_values: Floats) -> Floats:
            cells = [self._grid(part, (crop, crop), self._extent((crop, crop))) for part in self._encode_image(pixel_values)]
            return np.stack([upsampled(self._logits(grid, names), *grid.axes) for grid in cells])

        total = multiscale_logits(pixels, logits_of, mean=settings.mean, std=settings.std, crop=crop)
        total /= 2 * len(SCALES)  # the mean over scales and mirror images; the published sum has the same argmax
        grid = Grid(total, pixels.shape[:2], (float(pixels.shape[0]), float(pixels.shape[1])))
        return Answer(grid, np.eye(len(names), dtype=np.float32), 1.0, pixels)

    def pooled(self, image: ImageInput | ImageFeatures) -> Floats:
        """Embed the whole image: (D,) float32, L2-normalised."""
        encode, fit = self._runtime.encode_global, self.card.classify
        if isinstance(image, ImageFeatures):
            self._check_own(image)
        pixels = image.image if isinstance(image, ImageFeatures) else self._pixels(image)
        if encode is not None and fit and pixels is not None:
            vector: Floats = encode(self._preprocess.fitted(pixels, fit["size"], fit["fit"], fit.get("resample")))[0]
            _require_finite(np.isfinite(vector).all(), self.card.name)
        else:
            features = image if isinstance(image, ImageFeatures) else self.coarse(image)
            rows, columns = (max(1, round(cells)) for cells in features.extent)
            vector = features.embedding[:, :rows, :columns].mean((1, 2))
        vector = vector / np.float32(max(float(np.linalg.norm(vector)), 1e-12))
        return vector

    def coarse(self, image: ImageInput) -> ImageFeatures:
        """Compute features in which things are seen whole."""
        pixels, side = self._pixels(image), CLASSIFY_SIZE
        small = replace(self._preprocess, short_side=side, max_area=8 * side * side)
        return self._encode(pixels, small.input_size(pixels.shape[:2]), False)

    def _check_own(self, features: ImageFeatures) -> None:
        if features.model != self.identity:
            raise InvalidArgumentError(f"These features are of the model {features.model!r}, not of {self.identity!r}.")

    def features(self, image: ImageInput | ImageFeatures, size: int | str | None, window: str | None) -> ImageFeatures:
        """Compute the dense features of an image, or take those that are given.

        Args:
            image: An image, or its features.
            size: See `Segmenter.segment`.
            window: See `Segmenter.segment`.
        """
        sliding = self._slides(window)
        if isinstance(image, ImageFeatures):
            self._check_own(image)
            if size is not None or window is not None:
                raise InvalidArgumentError("Features have their size already: give size and window to encode_image.")
            return image
        pixels = self._pixels(image)
        fitted = self._preprocess.input_size(pixels.shape[:2], size)
        return self._encode(pixels, fitted, sliding)

    def _slides(self, window: str | None) -> bool:
        """Whether an image is seen through sliding windows."""
        if window not in WINDOWS:
            raise InvalidArgumentError(
                f"window must be None, 'whole' or 'sliding', or for segment() 'multiscale'; got {window!r}."
            )
        return window == "sliding" or (window is None and bool(self.card.window))

    @property
    def _batch(self) -> int:
        """How many windows to encode together: on a CPU that gains nothing and takes memory."""
        return 1 if self._runtime.name.endswith(":cpu") else BATCH

    def features_of(self, images: Sequence[ImageInput], size: int | str | None, window: str | None) -> list[ImageFeatures]:
        """Compute the features of many images; those of one size that are seen whole go through the network together on a GPU."""
        if window != "whole" or self._batch == 1 or any(isinstance(one, ImageFeatures) for one in images):
            return [self.features(one, size, window) for one in images]
        found: list[ImageFeatures] = []
        pixels = [self._pixels(one) for one in images]
        while len(found) < len(pixels):
            first = pixels[len(found)]
            part = list(takewhile(lambda one: one.shape == first.shape, pixels[len(found) : len(found) + self._batch]))  # noqa: B023
            fitted = self._preprocess.input_size(first.shape[:2], size)
            self._check_size(fitted, False)
            together = self._encode_image(np.concatenate([self._preprocess.pixel_values(one, fitted) for one in part]))
            found += [self._checked(embedding, one, fitted) for embedding, one in zip(together, part, strict=True)]
        return found

    def _encode(self, pixels: NDArray[np.uint8], fitted: tuple[int, int], sliding: bool) -> ImageFeatures:
        """Compute features of (H, W, 3) uint8 pixels, resized to `fitted`."""
        self._check_size(fitted, sliding)
        values = self._preprocess.pixel_values(pixels, fitted)
        if sliding:
            (side, step), even = self._windows(), bool(self.card.window)
            embedding = encode_windows(values, self._encode_image, side, step, self.card.stride, self._batch, even)
        else:
            embedding = self._encode_image(values)[0]
        return self._checked(embedding, pixels, fitted)

    def _cells(self, fitted: tuple[int, int]) -> tuple[int, int]:
        multiple, stride = self._preprocess.multiple, self.card.stride
        rows, columns = (-(-side // multiple) * multiple // stride for side in fitted)
        return rows, columns

    def _check_size(self, fitted: tuple[int, int], sliding: bool) -> None:
        """Refuse an input whose features would take too much memory."""
        cells = self._cells(fitted)
        need = 4 * self.card.embed_dim * cells[0] * cells[1]
        if need > MAX_FEATURE_BYTES:
            raise InvalidArgumentError(
                f"The features of {fitted[1]} x {fitted[0]} pixels would take {need >> 20} MiB (limit "
                f"{MAX_FEATURE_BYTES >> 20}). Choose a smaller size, or cut the image into parts."
            )
        if self.card.options.get("readout") in PAIRWISE and not sliding and (cells[0] * cells[1]) ** 2 * 4 > MAX_PAIR_BYTES:
            raise InvalidArgumentError(
                f"{self.identity!r} compares all {cells[0] * cells[1]} cells with each other, more than {MAX_PAIR_BYTES >> 30} GiB of "
                "numbers. Choose a smaller size, or window='sliding'."
            )

    def _checked(self, embedding: Floats, pixels: NDArray[np.uint8], fitted: tuple[int, int]) -> ImageFeatures:
        """Make (D, h, w) float32 that the network gave for an image into its features, if they are what the card promises."""
        self._check_shape(embedding.shape, fitted)
        features = ImageFeatures(np.ascontiguousarray(embedding), pixels.shape[:2], self._extent(fitted), self.identity, pixels)
        _require_finite(np.isfinite(features.norm), self.card.name)
        return features

    def _check_shape(self, shape: tuple[int, ...], fitted: tuple[int, int]) -> None:
        promised = (self.card.embed_dim, *self._cells(fitted))
        if shape != promised:
            raise WeightsError(
                f"{self.card.name!r} gives features of shape {shape} where its card promises {promised}: "
                "the card and the weights do not belong together."
            )

    def _windows(self) -> tuple[int, int]:
        multiple = self._preprocess.multiple
        if self.card.window:
            return self.card.window["size"], self.card.window["stride"]
        return round(WINDOW / multiple) * multiple, round(WINDOW_STRIDE / multiple) * multiple


class Conditional(_Looker):
    """A model that answers prompt by prompt: it looks at an image once and decodes a map for each prompt.

    Args:
        card: The model's card.
        runtime: Runs the network.
        tokenize: Gives the ids of texts, all of one length.
    """

    def __init__(self, card: ModelCard, runtime: ConditionalRuntime, tokenize: Tokenize) -> None:
        super().__init__(card)
        self._runtime, self._tokenize = runtime, tokenize

    def batched(self, limit: int | None) -> Conditional:
        """Return itself: the network looks at one image at a time."""
        return self

    @property
    def device(self) -> str:
        """Runtime and device."""
        return self._runtime.name

    def read(self, names: Sequence[str], templates: Sequence[Template]) -> list[list[list[int]]]:
        """Tokenize the prompts of each name."""
        return [self._tokenize(build_prompts(name, templates)) for name in names]

    def answer(
        self, image: ImageInput | ImageFeatures, names: list[list[list[int]]], size: int | str | None, window: str | None
    ) -> Answer:
        """Compute a map for each name that was read: the mean over its prompts."""
        if isinstance(image, ImageFeatures):
            raise InvalidArgumentError(f"{self.card.name!r} has no features to ask: give the image.")
        if window not in (None, "whole"):
            raise InvalidArgumentError(f"{self.card.name!r} sees the image whole; got window={window!r}.")
        pixels = self._pixels(image)
        fitted = self._preprocess.input_size(pixels.shape[:2], size)
        state = self._runtime.look(self._preprocess.pixel_values(pixels, fitted))
        maps = self._maps(state, names)
        _require_finite(np.isfinite(maps).all(), self.card.name)
        padded = [-(-side // self._preprocess.multiple) * self._preprocess.multiple for side in fitted]
        extent = tuple(cells * side / full for cells, side, full in zip(maps.shape[1:], fitted, padded, strict=True))
        grid = Grid(maps, pixels.shape[:2], (extent[0], extent[1]))
        return Answer(grid, np.eye(len(names), dtype=np.float32), 1.0, pixels)

    def _maps(self, state: Any, names: list[list[list[int]]]) -> Floats:
        prompts = iter([ids for group in names for ids in group])
        total: Floats | None = None
        owner = np.repeat(np.arange(len(names)), [len(group) for group in names])
        start = 0
        tell = progress(len(owner))
        while part := list(islice(prompts, PROMPTS_AT_ONCE)):
            maps = self._runtime.decode(state, np.asarray(part, np.int64))
            if total is None:
                total = np.zeros((len(names), *maps.shape[1:]), np.float32)
            np.add.at(total, owner[start : start + len(part)], maps)
            start += len(part)
            tell(len(part))
        if total is None:
            raise ValueError("there is at least one name")
        return total / np.bincount(owner).astype(np.float32)[:, None, None]

    def features(self, image: ImageInput | ImageFeatures, size: int | str | None, window: str | None) -> None:
        """Refuse: there are none."""
        self.require_embeddings()

    def features_of(self, images: Sequence[ImageInput], size: int | str | None, window: str | None) -> None:
        """Refuse: there are none."""
        self.require_embeddings()
