"""The main job: `load`, `Segmenter`, `segment`, `classify`."""

from __future__ import annotations

from functools import lru_cache
from numbers import Real
from pathlib import Path
from typing import TYPE_CHECKING, Any, overload

import numpy as np
from numpy.typing import NDArray

from ovseg import similarity
from ovseg.errors import InvalidArgumentError, InvalidLabelsError, OvsegError, UnknownModelError, WeightsError
from ovseg.features import ImageFeatures
from ovseg.image import ImageInput, load_image
from ovseg.preprocess import Preprocess
from ovseg.registry import ModelCard, cards, find_card, weights_folder
from ovseg.result import Classification, Segmentation
from ovseg.text import TextTower, normalised
from ovseg.tiling import encode_windows
from ovseg.vocabulary import Labels, Template, Templates, parse_labels, parse_templates

if TYPE_CHECKING:
    from tokenizers import Tokenizer

    from ovseg.runtime.base import Runtime

DEFAULT_MODEL = "mini"
WINDOW = 512
"""Side of a sliding window [px]."""
WINDOW_STRIDE = 352
"""Distance between sliding windows [px]."""
MAX_FEATURE_BYTES = 512 << 20
"""Largest feature map that is made; making it takes about four times as much memory."""
CLASSIFY_SIZE = 224
"""Short side of the image for classification [px]: things are seen whole."""

Images = ImageInput | ImageFeatures
ImageList = list[Any] | tuple[Images, ...]
"""A list is invariant: `list[Images]` would refuse a `list[str]`."""


def load(
    model: str = DEFAULT_MODEL,
    *,
    backend: str | None = None,
    device: str | None = None,
    dtype: str | None = None,
    threads: int | None = None,
) -> Segmenter:
    """Load a model.

    Args:
        model: A name of `list_models()`.
        backend: "onnx" (onnxruntime, no torch needed) or "torch"; None is "onnx".
        device: "cpu", "cuda" or with torch any of its devices; None takes a GPU if there is one that works.
        dtype: "float32", "float16" or "bfloat16", with torch only; None is "float32".
        threads: CPU threads; None for the runtime's own choice. With torch this sets the threads of the whole process.

    Raises:
        UnknownModelError: If there is no such model; the message names the nearest.
        WeightsError: If its weights are missing or damaged.
        MissingDependencyError: If the backend is not installed.
        BackendError: If the device cannot be used.
    """
    card = _card(model)
    if backend not in (None, "onnx", "torch"):
        raise InvalidArgumentError(f"backend must be 'onnx', 'torch' or None; got {backend!r}.")
    from ovseg.runtime.onnx import OnnxRuntime

    folder = weights_folder(card)
    files = {role: folder / name for role, name in card.files.items()}
    runtime: Runtime
    if backend == "torch":
        from ovseg.runtime.torch import BUILDERS, TorchRuntime

        text_only = OnnxRuntime(files["image"], files["text"], "cpu", threads)
        runtime = TorchRuntime(lambda: BUILDERS[card.family](files["weights"]), text_only, device, dtype, threads)
    else:
        if dtype not in (None, "float32"):
            raise InvalidArgumentError(f"The onnx backend of {card.name!r} runs in float32; got dtype={dtype!r}. Use backend='torch'.")
        runtime = OnnxRuntime(files["image"], files["text"], device, threads)
    return Segmenter(card, runtime, _read_tokenizer(files["tokenizer"]))


def _card(model: str) -> ModelCard:
    if not isinstance(model, str):
        raise UnknownModelError(f"model must be a name of list_models(); got {type(model).__name__}.")
    return find_card(model)


def _read_tokenizer(path: Path) -> Tokenizer:
    from tokenizers import Tokenizer

    try:
        return Tokenizer.from_file(str(path))
    except Exception as error:  # tokenizers raises Exception itself
        raise WeightsError(f"The tokenizer {path} is damaged: {error}. Reinstall ovseg.") from error


class Segmenter:
    """A loaded model. Make one with `load`.

    Calls do not change it, apart from a cache of text embeddings; threads may share it.

    Args:
        card: The model's card.
        runtime: Runs its two towers.
        tokenizer: A `tokenizers.Tokenizer`.
    """

    def __init__(self, card: ModelCard, runtime: Runtime, tokenizer: Tokenizer) -> None:
        self._card = card
        self._runtime = runtime
        self._text = TextTower(tokenizer, runtime.encode_text)
        self._preprocess = Preprocess(**card.preprocess)

    @property
    def name(self) -> str:
        """The model's name."""
        return self._card.name

    @property
    def device(self) -> str:
        """Runtime and device: "onnx:cpu", "torch:cuda", ..."""
        return self._runtime.name

    def __repr__(self) -> str:
        """Name the model and where it runs."""
        return f"Segmenter({self.name!r}, {self.device!r})"

    @overload
    def segment(
        self,
        image: ImageList,
        labels: Labels,
        *,
        templates: Templates = None,
        background: Labels | None = None,
        threshold: float | None = None,
        size: int | str | None = None,
        window: str | None = None,
        scores: bool = False,
    ) -> list[Segmentation]: ...

    @overload
    def segment(
        self,
        image: Images,
        labels: Labels,
        *,
        templates: Templates = None,
        background: Labels | None = None,
        threshold: float | None = None,
        size: int | str | None = None,
        window: str | None = None,
        scores: bool = False,
    ) -> Segmentation: ...

    def segment(
        self,
        image: Images | ImageList,
        labels: Labels,
        *,
        templates: Templates = None,
        background: Labels | None = None,
        threshold: float | None = None,
        size: int | str | None = None,
        window: str | None = None,
        scores: bool = False,
    ) -> Segmentation | list[Segmentation]:
        """Say for every pixel which of the labels it is.

        Args:
            image: A path, URL, PIL image, bytes, array, tensor or `ImageFeatures`; or a list of these.
            labels: A word, a list of words, tuples of synonyms among them, or a `Path` to a labels file. The best of the synonyms
                speaks for a label. One label alone takes every pixel: give it a rival, or a `background`.
            templates: Prompt templates: the name of a set ("imagenet", "food", ...), a string with `{}`, a function, or a list of
                these; None for the model's own.
            background: Words for everything else. Pixels that look more like one of them than like any label get `ignore_index`.
            threshold: Pixels whose best score is below it get `ignore_index`; in [0, 1].
            size: None for the model's own policy, an int for the short side [px], "native" for the pixels as they are. Belongs
                to `encode_image` where features are given, as does `window`.
            window: None or "whole" to see the image at once, "sliding" for overlapping windows of 512 px.
            scores: Whether to keep the score of every label at every pixel, (K, H, W) float32; with `background` they sum to
                less than 1.

        Returns:
            A `Segmentation`; for a list of images a list of them.

        Raises:
            InvalidImageError: If an image cannot be read.
            InvalidLabelsError: If the labels or templates are empty, double or no text.
            InvalidArgumentError: If an option is outside its range.
        """
        names = _Names.of(labels, background)
        if threshold is not None and (isinstance(threshold, bool) or not isinstance(threshold, Real) or not 0 <= threshold <= 1):
            raise InvalidArgumentError(f"threshold must be a number in [0, 1] or None; got {threshold!r}.")
        text = self._text.embed_names(names.words, self._templates(templates))
        if isinstance(image, (list, tuple)):
            return [self._segment_one(one, names, text, threshold, size, window, scores) for one in image]
        return self._segment_one(image, names, text, threshold, size, window, scores)

    def _segment_one(
        self,
        image: Images,
        names: _Names,
        text: NDArray[np.float32],
        threshold: float | None,
        size: int | str | None,
        window: str | None,
        scores: bool,
    ) -> Segmentation:
        features = self._features(image, size, window)
        grid = similarity.Grid(features.embedding, features.image_size, features.extent)
        scale, count = self._card.logit_scale, len(names.labels)
        kind, ignore_index = (np.uint8, 255) if count <= 255 else (np.uint16, 65535)
        result = np.empty(features.image_size, kind)
        kept = _room_for_scores(count, features.image_size) if scores else None
        if scores or threshold is not None:
            for rows, part in similarity.score_strips(grid, text, names.owner, scale):
                best = part.argmax(0)
                undecided = best >= count
                if threshold is not None:
                    undecided |= part.max(0) < threshold
                result[rows] = np.where(undecided, ignore_index, best)
                if kept is not None:
                    kept[:, rows] = part[:count]
        else:
            best = similarity.label_map(grid, text, names.owner, scale)
            result[:] = np.where(best >= count, ignore_index, best)
        return Segmentation(result, names.labels, ignore_index, kept, features.image, self.name)

    @overload
    def classify(self, image: ImageList, labels: Labels, *, templates: Templates = None) -> list[Classification]: ...

    @overload
    def classify(self, image: Images, labels: Labels, *, templates: Templates = None) -> Classification: ...

    def classify(
        self, image: Images | ImageList, labels: Labels, *, templates: Templates = None
    ) -> Classification | list[Classification]:
        """Say which of the labels the whole image shows (zero-shot classification).

        The same weights answer: the mean of the image's features is compared with the prompts of each label.

        Args:
            image: As for `segment`. Features made for `segment` are finer than those made here, and may score otherwise.
            labels: As for `segment`.
            templates: As for `segment`.

        Returns:
            A `Classification` with scores that sum to 1; for a list of images a list of them.
        """
        names = _Names.of(labels, None)
        text = self._text.embed_names(names.words, self._templates(templates))
        if isinstance(image, (list, tuple)):
            return [self._classify_one(one, names, text) for one in image]
        return self._classify_one(image, names, text)

    def _classify_one(self, image: Images, names: _Names, text: NDArray[np.float32]) -> Classification:
        features = self._features(image, None if isinstance(image, ImageFeatures) else CLASSIFY_SIZE, None)
        rows, columns = (max(1, round(cells)) for cells in features.extent)
        pooled = features.embedding[:, :rows, :columns].mean((1, 2))
        pooled /= max(float(np.linalg.norm(pooled)), 1e-12)
        logits = np.maximum.reduceat(self._card.logit_scale * (text @ pooled), names.starts)
        scores = np.exp(logits - logits.max())
        return Classification(names.labels, (scores / scores.sum()).astype(np.float32), self.name)

    @overload
    def encode_image(
        self, image: ImageList, *, size: int | str | None = None, window: str | None = None
    ) -> list[ImageFeatures]: ...

    @overload
    def encode_image(self, image: ImageInput, *, size: int | str | None = None, window: str | None = None) -> ImageFeatures: ...

    def encode_image(
        self, image: ImageInput | ImageList, *, size: int | str | None = None, window: str | None = None
    ) -> ImageFeatures | list[ImageFeatures]:
        """Compute an image's dense features once, to ask about them many times.

        Args:
            image: As for `segment`.
            size: As for `segment`.
            window: As for `segment`.

        Returns:
            `ImageFeatures`, to be given to `segment` and `classify` in place of the image; for a list of images a list of them.
        """
        if isinstance(image, (list, tuple)):
            return [self._features(one, size, window) for one in image]
        return self._features(image, size, window)

    def encode_text(self, labels: Labels, *, templates: Templates = None) -> NDArray[np.float32]:
        """Compute text embeddings.

        Args:
            labels: As for `segment`; the embeddings of synonyms are averaged.
            templates: As for `segment`.

        Returns:
            (K, D) float32, L2-normalised.
        """
        names = _Names.of(labels, None)
        vectors = self._text.embed_names(names.words, self._templates(templates))
        return normalised(np.add.reduceat(vectors, names.starts, axis=0))

    def _templates(self, templates: Templates) -> tuple[Template, ...]:
        return parse_templates(templates, default=self._card.templates)

    def _features(self, image: Images, size: int | str | None, window: str | None) -> ImageFeatures:
        if window not in (None, "whole", "sliding"):
            raise InvalidArgumentError(f"window must be None, 'whole' or 'sliding'; got {window!r}.")
        if isinstance(image, ImageFeatures):
            if image.model != self.name:
                raise InvalidArgumentError(f"These features are of the model {image.model!r}, not of {self.name!r}.")
            if size is not None or window is not None:
                raise InvalidArgumentError("Features have their size already: give size and window to encode_image.")
            return image
        pixels = load_image(image)
        if pixels is image or not pixels.flags.owndata:  # the caller may go on writing to it
            pixels = pixels.copy()
        fitted = self._preprocess.input_size(pixels.shape[:2], size)
        cells = [-(-side // self._preprocess.multiple) * self._preprocess.multiple // self._card.stride for side in fitted]
        need = 4 * self._card.embed_dim * cells[0] * cells[1]
        if need > MAX_FEATURE_BYTES:
            raise InvalidArgumentError(
                f"The features of {fitted[1]} x {fitted[0]} pixels would take {need >> 20} MiB (limit "
                f"{MAX_FEATURE_BYTES >> 20}). Choose a smaller size, or cut the image into parts."
            )
        values = self._preprocess.pixel_values(pixels, fitted)
        if window == "sliding":
            embedding = encode_windows(values, self._runtime.encode_image, WINDOW, WINDOW_STRIDE, self._card.stride)
        else:
            embedding = self._runtime.encode_image(values)[0]
        extent = (fitted[0] / self._card.stride, fitted[1] / self._card.stride)
        return ImageFeatures(np.ascontiguousarray(embedding), pixels.shape[:2], extent, self.name, pixels)



class _Names:
    """Labels and background words with their synonyms, flattened."""

    def __init__(self, labels: tuple[str, ...], words: list[str], owner: NDArray[np.intp]) -> None:
        self.labels, self.words, self.owner = labels, words, owner

    @property
    def starts(self) -> NDArray[np.intp]:
        """Index of the first name of each label, for `reduceat`."""
        return np.flatnonzero(np.diff(self.owner, prepend=-1))

    @classmethod
    def of(cls, labels: Labels, background: Labels | None) -> _Names:
        groups = parse_labels(labels)
        try:
            others = parse_labels(background) if background is not None else ()
        except InvalidLabelsError as error:
            raise InvalidLabelsError(f"In background: {error}") from error
        taken = {word.casefold() for group in groups for word in group}
        for group in others:
            for word in group:
                if word.casefold() in taken:
                    raise InvalidLabelsError(f"{word!r} stands both in labels and in background. Take it out of one of them.")
        both = (*groups, *others)
        owner = np.repeat(np.arange(len(both)), [len(group) for group in both])
        return cls(tuple(group[0] for group in groups), [word for group in both for word in group], owner)


def _room_for_scores(count: int, size: tuple[int, int]) -> NDArray[np.float32]:
    try:
        return np.empty((count, *size), np.float32)
    except MemoryError as error:
        raise InvalidArgumentError(
            f"The scores of {count} labels at {size[1]} x {size[0]} pixels take {4 * count * size[0] * size[1] / 2**30:.1f} GiB, "
            "more than there is. Leave out scores=True, or reduce the image."
        ) from error


def _shared(model: str, device: str | None) -> Segmenter:
    if device is not None and not isinstance(device, str):
        raise InvalidArgumentError(f"device must be 'cpu', 'cuda' or None; got {device!r}.")
    return _loaded(_card(model).name, device)


@lru_cache(maxsize=2)
def _loaded(model: str, device: str | None) -> Segmenter:
    return load(model, device=device)


@overload
def segment(
    image: ImageList,
    labels: Labels,
    *,
    model: str = DEFAULT_MODEL,
    device: str | None = None,
    templates: Templates = None,
    background: Labels | None = None,
    threshold: float | None = None,
    size: int | str | None = None,
    window: str | None = None,
    scores: bool = False,
) -> list[Segmentation]: ...


@overload
def segment(
    image: Images,
    labels: Labels,
    *,
    model: str = DEFAULT_MODEL,
    device: str | None = None,
    templates: Templates = None,
    background: Labels | None = None,
    threshold: float | None = None,
    size: int | str | None = None,
    window: str | None = None,
    scores: bool = False,
) -> Segmentation: ...


def segment(
    image: Images | ImageList,
    labels: Labels,
    *,
    model: str = DEFAULT_MODEL,
    device: str | None = None,
    templates: Templates = None,
    background: Labels | None = None,
    threshold: float | None = None,
    size: int | str | None = None,
    window: str | None = None,
    scores: bool = False,
) -> Segmentation | list[Segmentation]:
    """Say for every pixel of an image which of the labels it is.

    Loads the model at the first call and keeps it. See `Segmenter.segment` for the options.

    Args:
        image: A path, URL, PIL image, bytes, array or tensor; or a list of these.
        labels: A word, a list of words, tuples of synonyms among them, or a `Path` to a labels file.
        model: A name of `list_models()`.
        device: "cpu", "cuda" or None.
        templates: Prompt templates.
        background: Words for everything else.
        threshold: Least score of a decided pixel.
        size: Size of the network's input.
        window: "whole" or "sliding".
        scores: Whether to keep the scores.

    Returns:
        A `Segmentation`; for a list of images a list of them.
    """
    return _shared(model, device).segment(
        image, labels, templates=templates, background=background, threshold=threshold, size=size, window=window, scores=scores
    )


@overload
def classify(
    image: ImageList,
    labels: Labels,
    *,
    model: str = DEFAULT_MODEL,
    device: str | None = None,
    templates: Templates = None,
) -> list[Classification]: ...


@overload
def classify(
    image: Images, labels: Labels, *, model: str = DEFAULT_MODEL, device: str | None = None, templates: Templates = None
) -> Classification: ...


def classify(
    image: Images | ImageList,
    labels: Labels,
    *,
    model: str = DEFAULT_MODEL,
    device: str | None = None,
    templates: Templates = None,
) -> Classification | list[Classification]:
    """Say which of the labels an image shows.

    Loads the model at the first call and keeps it. See `Segmenter.classify`.

    Args:
        image: A path, URL, PIL image, bytes, array or tensor; or a list of these.
        labels: A word, a list of words, tuples of synonyms among them, or a `Path` to a labels file.
        model: A name of `list_models()`.
        device: "cpu", "cuda" or None.
        templates: Prompt templates.

    Returns:
        A `Classification`; for a list of images a list of them.
    """
    return _shared(model, device).classify(image, labels, templates=templates)


def list_models() -> list[ModelCard]:
    """Return the cards of all models: name, licence of the weights, size, scores."""
    return list(cards().values())


__all__ = ["ImageFeatures", "OvsegError", "Segmenter", "classify", "list_models", "load", "segment"]
