"""The main job: `load`, `Segmenter`, `segment`, `classify`."""

from __future__ import annotations

from functools import lru_cache
from numbers import Real
from pathlib import Path
from typing import Any, overload

import numpy as np
from numpy.typing import NDArray

from ovseg import similarity
from ovseg.errors import InvalidArgumentError, InvalidLabelsError, OvsegError, UnknownModelError
from ovseg.features import ImageFeatures
from ovseg.hub import HubOptions
from ovseg.image import ImageInput
from ovseg.loading import Request, Weights, load_model
from ovseg.registry import ModelCard, cards
from ovseg.result import Classification, Segmentation
from ovseg.runtime.base import ConditionalRuntime, Runtime
from ovseg.text import Tokenize, normalised
from ovseg.text_cache import TextCache
from ovseg.towers import Conditional, TwoTowers
from ovseg.vocabulary import Labels, Template, Templates, parse_labels, parse_templates

DEFAULT_MODEL = "mini"

Images = ImageInput | ImageFeatures
ImageList = list[Any] | tuple[Images, ...]
"""A list is invariant: `list[Images]` would refuse a `list[str]`."""


def load(
    model: str | Path = DEFAULT_MODEL,
    *,
    backend: str | None = None,
    device: str | None = None,
    dtype: str | None = None,
    threads: int | None = None,
    compile: bool = False,
    readout: str | None = None,
    proxy: str | None = None,
    weights: Weights | None = None,
    revision: str | None = None,
    cache_dir: str | Path | None = None,
    local_files_only: bool = False,
    token: str | bool | None = None,
) -> Segmenter:
    """Load a model.

    Args:
        model: A name of `list_models()`; "clip-<tower>-<pretrained>" for any tower of open_clip; "hf-hub:owner/name"; or a folder
            ("local-dir:PATH" or its path).
        backend: "onnx" (onnxruntime, no torch needed), "torch" or "tensorrt"; None for what the model runs with.
        device: "cpu", "cuda" or with torch any of its devices; None takes a GPU if there is one that works.
        dtype: "float32", "float16" or "bfloat16", with torch only; None is "float32".
        threads: CPU threads; None for the runtime's own choice. With torch this sets the threads of the whole process.
        compile: Whether to compile the network with torch.compile: faster on a GPU, after a first image that takes a minute.
        readout: How dense features are read out of a CLIP or TIPS tower ("naclip", "maskclip", "value", ...); None for the card's.
        proxy: With readout="proxyclip", the timm name of the network whose features give the attention.
        weights: Your own weights in the published layout: a .safetensors file, several, or a mapping of tensors; None fetches the
            published ones where there are any; "random" makes a network that knows nothing, to measure its speed.
        revision: Branch, tag or commit of the hub's repository; None for the card's.
        cache_dir: Where downloads are kept; None for the hub's own cache (HF_HOME).
        local_files_only: Whether to use only what is in the cache.
        token: Access token of the hub; None for the one that is logged in.

    Raises:
        UnknownModelError: If there is no such model; the message names the nearest.
        WeightsError: If its weights are missing, damaged, cannot be fetched, or are of another model.
        MissingDependencyError: If a package is not installed.
        BackendError: If the device cannot be used.
    """
    hub = HubOptions(revision=revision, cache_dir=cache_dir, local_files_only=local_files_only, token=token)
    loaded = load_model(model, Request(backend, device, dtype, threads, readout, proxy, weights, hub, compile))
    return Segmenter(loaded.card, loaded.runtime, loaded.tokenize, loaded.texts)


class Segmenter:
    """A loaded model. Make one with `load`.

    Calls do not change it, apart from a cache of text embeddings; threads may share it.

    Args:
        card: The model's card.
        runtime: Runs its network.
        tokenize: Gives the token ids of texts.
        texts: Embeddings of earlier texts, on the disk; None for none.
    """

    def __init__(
        self, card: ModelCard, runtime: Runtime | ConditionalRuntime, tokenize: Tokenize, texts: TextCache | None = None
    ) -> None:
        self._card = card
        made: Any = runtime  # of the kind that the card says
        # Any: the two differ in what they make of words, which only they look into
        self._model: Any = Conditional(card, made, tokenize) if card.conditional else TwoTowers(card, made, tokenize, texts)

    @property
    def card(self) -> ModelCard:
        """What the model's card says: licence, size, scores, preprocessing."""
        return self._card

    @property
    def name(self) -> str:
        """The model's name."""
        return self._card.name

    @property
    def device(self) -> str:
        """Runtime and device: "onnx:cpu", "torch:cuda", ..."""
        name: str = self._model.device
        return name

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
            threshold: Pixels whose best score is below it get `ignore_index`; in [0, 1]. None for the model's own, most often 0.
            size: None for the model's own policy, an int for the short side [px], "native" for the pixels as they are. Belongs
                to `encode_image` where features are given, as does `window`.
            window: "whole" to see the image at once, "sliding" for overlapping windows, "multiscale" for the mean over six scales and
                mirror images of LSeg's evaluation (forty times slower); None for the model's own policy.
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
        if threshold is None:
            threshold = self._card.threshold
        words = self._model.read(names.words, self._templates(templates))
        if isinstance(image, (list, tuple)):
            return [self._segment_one(one, names, words, threshold, size, window, scores) for one in image]
        return self._segment_one(image, names, words, threshold, size, window, scores)

    def _segment_one(
        self,
        image: Images,
        names: _Names,
        words: Any,
        threshold: float | None,
        size: int | str | None,
        window: str | None,
        scores: bool,
    ) -> Segmentation:
        answer = self._model.answer(image, words, size, window)
        grid, count = answer.grid, len(names.labels)
        kind, ignore_index = (np.uint8, 255) if count <= 255 else (np.uint16, 65535)
        result = np.empty(grid.image_size, kind)
        kept = _room_for_scores(count, grid.image_size) if scores else None
        if scores or threshold is not None:
            strips = similarity.score_strips(grid, answer.names, names.owner, answer.scale, activation=self._card.activation)
            for rows, part in strips:
                best = part.argmax(0)
                undecided = best >= count
                if threshold is not None:
                    undecided |= part.max(0) < threshold
                result[rows] = np.where(undecided, ignore_index, best)
                if kept is not None:
                    kept[:, rows] = part[:count]
        else:
            best = self._model.label_map(answer, names.owner)
            result[:] = np.where(best >= count, ignore_index, best)
        return Segmentation(result, names.labels, ignore_index, kept, answer.image, self.name)

    @overload
    def classify(self, image: ImageList, labels: Labels, *, templates: Templates = None) -> list[Classification]: ...

    @overload
    def classify(self, image: Images, labels: Labels, *, templates: Templates = None) -> Classification: ...

    def classify(
        self, image: Images | ImageList, labels: Labels, *, templates: Templates = None
    ) -> Classification | list[Classification]:
        """Say which of the labels the whole image shows (zero-shot classification).

        The same weights answer: the embedding of the whole image, or the mean of its features where the network has none, is compared with
        the prompts of each label.

        Args:
            image: As for `segment`. Features made for `segment` are finer than those made here, and may score otherwise.
            labels: As for `segment`.
            templates: As for `segment`.

        Returns:
            A `Classification` with scores that sum to 1; for a list of images a list of them.
        """
        names = _Names.of(labels, None)
        self._model.require_embeddings()
        text = self._model.read(names.words, self._templates(templates))
        if isinstance(image, (list, tuple)):
            return [self._classify_one(one, names, text) for one in image]
        return self._classify_one(image, names, text)

    def _classify_one(self, image: Images, names: _Names, text: NDArray[np.float32]) -> Classification:
        scale = self._card.classify.get("scale", self._card.logit_scale)
        logits = np.maximum.reduceat(scale * (text @ self._model.pooled(image)), names.starts)
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
            return [self._model.features(one, size, window) for one in image]
        features: ImageFeatures = self._model.features(image, size, window)
        return features

    def encode_text(self, labels: Labels, *, templates: Templates = None) -> NDArray[np.float32]:
        """Compute text embeddings.

        Args:
            labels: As for `segment`; the embeddings of synonyms are averaged.
            templates: As for `segment`.

        Returns:
            (K, D) float32, L2-normalised.
        """
        names = _Names.of(labels, None)
        self._model.require_embeddings()
        vectors = self._model.read(names.words, self._templates(templates))
        return normalised(np.add.reduceat(vectors, names.starts, axis=0))

    def _templates(self, templates: Templates) -> tuple[Template, ...]:
        return parse_templates(templates, default=self._card.templates)


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


def _shared(model: str | Path, device: str | None) -> Segmenter:
    if device is not None and not isinstance(device, str):
        raise InvalidArgumentError(f"device must be 'cpu', 'cuda' or None; got {device!r}.")
    if not isinstance(model, (str, Path)):
        raise UnknownModelError(f"model must be a name of list_models(); got {type(model).__name__}.")
    return _loaded(model, device)


@lru_cache(maxsize=2)
def _loaded(model: str | Path, device: str | None) -> Segmenter:
    return load(model, device=device)


@overload
def segment(
    image: ImageList,
    labels: Labels,
    *,
    model: str | Path = DEFAULT_MODEL,
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
    model: str | Path = DEFAULT_MODEL,
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
    model: str | Path = DEFAULT_MODEL,
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
    model: str | Path = DEFAULT_MODEL,
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
    model: str | Path = DEFAULT_MODEL,
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
