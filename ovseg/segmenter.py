"""The main job: `load`, `Segmenter`, `segment`, `classify`."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from copy import copy
from dataclasses import dataclass, replace
from functools import lru_cache
from numbers import Real
from pathlib import Path
from typing import Any, TypedDict, Unpack, overload

import numpy as np
from numpy.typing import NDArray

from ovseg import decide, similarity, tagging
from ovseg.alike import Cells, View
from ovseg.cores import single_threaded
from ovseg.correct import Corrected, corrected
from ovseg.errors import InvalidArgumentError, OvsegError, UnknownModelError
from ovseg.examples import Shown, look, with_shown
from ovseg.features import ImageFeatures
from ovseg.hints import Hints, Seeds, each_hints, one_hints
from ovseg.hub import HubOptions
from ovseg.image import ImageInput
from ovseg.labels import Label
from ovseg.loading import Request, load_model
from ovseg.network import Weights
from ovseg.question import Question, tell_near
from ovseg.refine import check_method, working_step
from ovseg.refine import refine as refine_scores
from ovseg.registry import ModelCard, cards
from ovseg.result import Classification, Segmentation
from ovseg.runtime.base import ConditionalRuntime, Runtime
from ovseg.tagging import Tags
from ovseg.text import Tokenize
from ovseg.text_cache import TextCache
from ovseg.towers import Answer, Conditional, TwoTowers
from ovseg.vocabulary import Labels, Templates

DEFAULT_MODEL = "mini"
MAX_COMPARED = 1000
"""Vocabularies that a segmenter remembers having compared."""

Images = ImageInput | ImageFeatures
ImageList = list[Any] | tuple[Images, ...]
"""A list is invariant: `list[Images]` would refuse a `list[str]`."""


ImageHints = Hints | Sequence[Hints | None] | None
"""Hints of one image, or of each image of a list."""


class SegmentOptions(TypedDict, total=False):
    """The options of `Segmenter.segment`, which explains them."""

    templates: Templates
    background: Labels | None
    threshold: float | None
    margin: float | None
    size: int | str | None
    window: str | None
    tags: Tags | None
    hints: ImageHints
    refine: str | None
    scores: bool
    confidence: bool


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
        compile: Whether torch.compile makes the kernels, once for all sizes: faster on a GPU, after a first image that takes a minute.
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
        self._looked: dict[int, tuple[tuple[Any, ...], tuple[Shown, ...]]] = {}  # by the identity of examples, which are kept alive
        self._compared: set[int] = set()  # vocabularies whose labels were compared with each other

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

    def batched(self, limit: int | None = None) -> Segmenter:
        """Let threads share the network in batches: images of one input size that they ask about at the same time go through it together.

        Nothing waits for company, so an image alone takes as long as before. It pays on a GPU; on a CPU batches are mostly slower.

        Args:
            limit: Images in a batch at most; None for 8 on a GPU and 1, which changes nothing, on a CPU.

        Returns:
            A segmenter that shares all else with this one.

        Raises:
            InvalidArgumentError: If `limit` is not a positive whole number.
        """
        if limit is not None and (isinstance(limit, bool) or not isinstance(limit, int) or limit < 1):
            raise InvalidArgumentError(f"A batch has a positive whole number of images or None for the device's own; got {limit!r}.")
        shared = copy(self)
        shared._model = self._model.batched(limit)
        return shared

    def __repr__(self) -> str:
        """Name the model and where it runs."""
        return f"Segmenter({self.name!r}, {self.device!r})"

    @overload
    def segment(self, image: ImageList, labels: Labels, **options: Unpack[SegmentOptions]) -> list[Segmentation]: ...

    @overload
    def segment(self, image: Images, labels: Labels, **options: Unpack[SegmentOptions]) -> Segmentation: ...

    def segment(
        self,
        image: Images | ImageList,
        labels: Labels,
        *,
        templates: Templates = None,
        background: Labels | None = None,
        threshold: float | None = None,
        margin: float | None = None,
        size: int | str | None = None,
        window: str | None = None,
        tags: Tags | None = None,
        hints: ImageHints = None,
        refine: str | None = None,
        scores: bool = False,
        confidence: bool = False,
    ) -> Segmentation | list[Segmentation]:
        """Say for every pixel which of the labels it is.

        Args:
            image: A path, URL, PIL image, bytes, array, tensor or `ImageFeatures`; or a list of these.
            labels: A word, a list of words, tuples of synonyms and `Label`s among them, a `Path` to a labels file, or a `Vocabulary`.
                The best of the synonyms speaks for a label. One label alone is held against `background="auto"`.
            templates: Prompt templates: the name of a set ("imagenet", "food", ...), a string with `{}`, a function, or a list of
                these; None for the model's own.
            background: Words for everything else. Pixels that look more like one of them than like any label get `ignore_index`.
                "auto", alone or among them, stands for the model's own list, but the words that mean nearly the same as a label;
                None for the vocabulary's.
            threshold: Pixels whose best score is below it get `ignore_index`; in [0, 1]. None for the model's own, most often 0.
                A label's own threshold goes before it.
            margin: Pixels whose best score is less than this ahead of the second get `ignore_index`; in [0, 1]. None for 0.
            size: None for the model's own policy, an int for the short side [px], "native" for the pixels as they are. Belongs
                to `encode_image` where features are given, as does `window`.
            window: "whole" to see the image at once, "sliding" for overlapping windows, "multiscale" for the mean over six scales and
                mirror images of LSeg's evaluation (forty times slower); None for the model's own policy.
            tags: Which of the labels are in the picture, where the list is long: the others get a lower score, and are still found where
                they are plain to see. "auto" decides that by a glance at the image in small; None treats all labels alike. Labels that
                `hints` speak of count as tagged.
            hints: What a person says about the image: strokes, clicks, boxes, polygons, tags. Their words are among the labels, synonyms or
                background words. For a list of images a list of `Hints` or None.
            refine: Draws the scores to the edges of the image: "guided" (fast), "crf" or "pamr"; None leaves them. See `ovseg.refine`.
            scores: Whether to keep the score of every label at every pixel, (K, H, W) float32; with `background` they sum to
                less than 1.
            confidence: Whether to keep, for every pixel, how sure the answer is: `confidence` and `entropy` of the result.

        Returns:
            A `Segmentation`; for a list of images a list of them.

        Raises:
            InvalidImageError: If an image cannot be read.
            InvalidLabelsError: If the labels or templates are empty, double or no text.
            InvalidArgumentError: If an option is outside its range.
        """
        asked = _Asked(size, window, refine, scores, confidence, tagging.parse_tags(tags))
        limit = self._card.threshold if threshold is None else _part("threshold", threshold)
        ahead = 0.0 if margin is None else _part("margin", margin)
        question, words = self._read(Question.of(labels, background, templates, self._card, limit, ahead))
        with single_threaded():
            if isinstance(image, (list, tuple)):
                each = each_hints(hints, len(image))
                return [self._segment_one(one, question, words, replace(asked, hints=said)) for one, said in zip(image, each, strict=True)]
            return self._segment_one(image, question, words, replace(asked, hints=one_hints(hints)))

    def _segment_one(self, image: Images, question: Question, words: Any, asked: _Asked) -> Segmentation:
        if question.direct and not asked.more and asked.tags is None and asked.hints is None:
            found = self._model.label_map_of(image, words, question.owner, asked.size, asked.window)
            if found is not None:
                best, pixels = found
                return self._result(decide.from_map(best, question.rules), question, pixels)
        if asked.hints is not None and not self._card.conditional and asked.window != "multiscale":
            image = self._model.features(image, asked.size, asked.window)  # the solve compares them, whatever becomes of the logits
            asked = replace(asked, size=None, window=None)
        answer = self._model.answer(image, words, asked.size, asked.window)
        if asked.hints is not None:
            features = image if isinstance(image, ImageFeatures) else None
            asked = replace(asked, seeds=asked.hints.seeds(answer.grid.image_size, question.answer_words), features=features)
        if asked.tags is not None or (asked.seeds is not None and asked.seeds.tags):
            answer = self._biased(answer, question, self._tag_prior(answer, question, words, asked.tags, asked.seeds))
        if question.exclusive:
            answer = self._biased(answer, question, question.exclusion(self._row_strips(answer, question)))
        return self._result(self._decide(answer, question, asked), question, answer.image)

    def _result(self, decision: decide.Decision, question: Question, image: NDArray[np.uint8] | None) -> Segmentation:
        return Segmentation(
            decision.segmentation, question.labels, decision.ignore_index, decision.scores, image, self.name,
            confidence=decision.confidence, entropy=decision.entropy, colors=question.colors,
        )  # fmt: skip

    def _decide(self, answer: Answer, question: Question, asked: _Asked) -> decide.Decision:
        """Decide about every pixel; where nothing but the best label is asked for, without making all scores."""
        rules, size = question.rules, answer.grid.image_size
        hinted = self._corrected(answer, question, asked.seeds, asked.features) if asked.seeds is not None and asked.pointed else None
        if rules.plain and not asked.more and (hinted is not None or question.plain):
            best = self._model.label_map(answer, question.owner) if hinted is None else hinted.label_map()
            return decide.from_map(best, rules)
        strips = question.answered(self._row_strips(answer, question)) if hinted is None else hinted.strips()
        if asked.refine is not None:
            dense = decide.gather(strips, rules.count + question.others, size)
            refined = self._refined(dense, answer, asked.refine)
            if hinted is not None:
                hinted.set_painted(slice(0, size[0]), refined)
            strips = decide.cut(refined)
        return decide.decide(strips, size, rules, scores=asked.scores, confidence=asked.confidence)

    def _read(self, question: Question) -> tuple[Question, Any]:
        """Let the model read the words, and warn once of labels that mean nearly the same."""
        question, words = question.read(self._model, self._card.near)
        if any(question.examples):
            words = self._shown(question, words)
        key = hash((question.words, question.owner.tobytes()))
        if key not in self._compared:
            if len(self._compared) >= MAX_COMPARED:
                self._compared.clear()
            self._compared.add(key)
            if trouble := tell_near(question, words, self._card.near):
                warnings.warn(trouble, UserWarning, stacklevel=3)
        return question, words

    def look(self, label: Label) -> Label:
        """Look at the examples of a label once: it then needs the images no more, and `ovseg.save_labels` can save it.

        Args:
            label: A label whose examples are (image, mask or box). The mask is (H, W) bool; a box is (left, top, right, bottom) [px].

        Raises:
            InvalidArgumentError: If an example is no image with a region in it.
        """
        self._model.require_embeddings()
        return look(label, lambda image: self.encode_image(image))

    def _shown(self, question: Question, words: NDArray[np.float32]) -> NDArray[np.float32]:
        """Let examples speak beside the words."""
        self._model.require_embeddings()
        shown = []
        for label, examples in zip(question.labels_of_rows, question.examples, strict=True):
            key = id(examples)
            if examples and key not in self._looked:
                if len(self._looked) >= MAX_COMPARED:
                    self._looked.clear()
                self._looked[key] = (examples, self.look(Label(label, examples=examples)).examples)
            shown.append(self._looked[key][1] if examples else ())
        return with_shown(words, question.owner, shown, self._model.identity)

    @property
    def _temperature(self) -> float:
        return 1.0 if self._card.activation == "none" else self._card.temperature

    def _tag_prior(
        self, answer: Answer, question: Question, words: Any, tags: Tags | None, seeds: Seeds | None
    ) -> NDArray[np.float32]:
        """Say how likely it is that each row is in the picture at all: (R,) float32 log-prior; what a person pointed at surely is."""
        labels = question.rows - question.others
        if tags == tagging.AUTO:
            small = self._model.glance(answer, words)
            prior = tagging.auto_prior(tagging.evidence(self._row_strips(small, question), question.rows), labels)
        elif tags is not None:
            answers = question.row_answers.tolist()  # a tag may be what is answered, of which a row may be only a part
            names = [[*group, *question.labels[row : row + 1]] for row, group in zip(answers, question.groups, strict=True)]
            prior = tagging.listed_prior(tags, names, labels)
        else:
            prior = tagging.listed_prior((), question.groups, labels)
        if seeds is not None:
            prior[np.isin(question.row_answers, sorted(seeds.tags | seeds.pointed_at))] = 0
        return prior

    def _biased(self, answer: Answer, question: Question, bias: NDArray[np.float32]) -> Answer:
        """Give labels and background words a head start: (R,) float32 is added to what the softmax gets; the fast path heeds it, too."""
        each = (bias * np.float32(self._temperature))[question.owner]
        grid, names = similarity.with_bias(answer.grid, answer.names, answer.scale, each, self._card.activation)
        return replace(answer, grid=grid, names=names)

    def _row_strips(self, answer: Answer, question: Question) -> decide.Strips:
        """Make the scores of all labels, then of background words; in [0, 1]."""
        return similarity.score_strips(
            answer.grid, answer.names, question.owner, answer.scale / self._temperature, activation=self._card.activation,
            by_name=question.combine == "max",
        )  # fmt: skip

    def _corrected(self, answer: Answer, question: Question, seeds: Seeds, features: ImageFeatures | None) -> Corrected:
        """Let hints correct the scores of what is answered, and of background words."""
        view = View.make(answer.grid.image_size, answer.image, self._grid_of(features))
        stride = min(int(pixels / cells) for pixels, cells in zip(answer.grid.image_size, answer.grid.extent, strict=True))
        cells = Cells(view.cells.image_size, max(1, min(view.cells.side, stride)))  # none coarser than the answer itself
        strips = question.answered(self._row_strips(replace(answer, grid=cells.read(answer.grid)), question))
        return corrected(decide.gather(strips, question.rules.count + question.others, cells.size), cells, seeds, view)

    def _grid_of(self, features: ImageFeatures | None) -> similarity.Grid | None:
        if features is None:
            return None
        corners = self._card.stride if self._card.align_corners else None
        return similarity.Grid(features.embedding, features.image_size, features.extent, corners, features.norm)

    def _refined(self, scores: NDArray[np.float32], answer: Answer, method: str) -> NDArray[np.float32]:
        """Draw scores to the edges of their image."""
        if answer.image is None:
            raise InvalidArgumentError("refine needs the image, and these features were made without: give them their `image`.")
        return refine_scores(scores, answer.image, method, step=working_step(answer.grid.image_size, answer.grid.extent))

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
        self._model.require_embeddings()
        question, text = self._read(Question.of_labels(labels, templates, self._card))
        if isinstance(image, (list, tuple)):
            return [self._classify_one(one, question, text) for one in image]
        return self._classify_one(image, question, text)

    def _classify_one(self, image: Images, question: Question, text: NDArray[np.float32]) -> Classification:
        scale = self._card.classify.get("scale", self._card.logit_scale) / self._card.temperature
        return Classification(question.labels, question.class_scores(scale * (text @ self._model.pooled(image))), self.name)

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
            many: list[ImageFeatures] = self._model.features_of(image, size, window)
            return many
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
        self._model.require_embeddings()
        question, vectors = Question.of_labels(labels, templates, self._card).read(self._model, None)
        return question.mean_vectors(vectors)


@dataclass(frozen=True)
class _Asked:
    """What is asked of one image beyond the words."""

    size: int | str | None
    window: str | None
    refine: str | None
    scores: bool
    confidence: bool
    tags: Tags | None = None
    hints: Hints | None = None
    seeds: Seeds | None = None
    features: ImageFeatures | None = None

    def __post_init__(self) -> None:
        """Refuse what is no method before the image is looked at."""
        if self.refine is not None:
            check_method(self.refine)

    @property
    def pointed(self) -> bool:
        """Whether there are hints with pixels."""
        return self.seeds is not None and len(self.seeds.pixels) > 0

    @property
    def more(self) -> bool:
        """Whether more than the best label is asked for."""
        return self.scores or self.confidence or self.refine is not None


def _part(name: str, value: float) -> float:
    if isinstance(value, bool) or not isinstance(value, Real) or not 0 <= value <= 1:
        raise InvalidArgumentError(f"{name} must be a number in [0, 1] or None; got {value!r}.")
    return float(value)


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
    image: ImageList, labels: Labels, *, model: str | Path = ..., device: str | None = ..., **options: Unpack[SegmentOptions]
) -> list[Segmentation]: ...


@overload
def segment(
    image: Images, labels: Labels, *, model: str | Path = ..., device: str | None = ..., **options: Unpack[SegmentOptions]
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
    margin: float | None = None,
    size: int | str | None = None,
    window: str | None = None,
    tags: Tags | None = None,
    hints: ImageHints = None,
    refine: str | None = None,
    scores: bool = False,
    confidence: bool = False,
) -> Segmentation | list[Segmentation]:
    """Say for every pixel of an image which of the labels it is.

    Loads the model at the first call and keeps it. See `Segmenter.segment` for the options.

    Args:
        image: A path, URL, PIL image, bytes, array or tensor; or a list of these.
        labels: A word, a list of words, tuples of synonyms among them, a `Path` to a labels file, or a `Vocabulary`.
        model: A name of `list_models()`.
        device: "cpu", "cuda" or None.
        templates: Prompt templates.
        background: Words for everything else, or "auto".
        threshold: Least score of a decided pixel.
        margin: Least distance of the best score from the second.
        size: Size of the network's input.
        window: "whole" or "sliding".
        tags: Labels that are in the picture, or "auto".
        hints: What a person says about the image, or for a list of images about each.
        refine: "guided", "crf" or "pamr": draws the scores to the edges of the image.
        scores: Whether to keep the scores.
        confidence: Whether to keep confidence and entropy.

    Returns:
        A `Segmentation`; for a list of images a list of them.
    """
    return _shared(model, device).segment(
        image, labels, templates=templates, background=background, threshold=threshold, margin=margin, size=size, window=window,
        tags=tags, hints=hints, refine=refine, scores=scores, confidence=confidence,
    )  # fmt: skip


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
