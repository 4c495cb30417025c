"""From a model's name to a model on a device: its card, what of it is here or in the hub, and the runtime that fits."""

from __future__ import annotations

import dataclasses
import logging
import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from ovseg.errors import InvalidArgumentError, UnknownModelError, WeightsError
from ovseg.file_tokenizer import file_tokenizer
from ovseg.hub import MODEL_TYPES, HubModel, HubOptions, Source, fetch_folder, parse_source, read_folder
from ovseg.network import (
    PROXYCLIP,
    RANDOM,
    Weights,
    build_network,
    builder,
    check_weights,
    fetch_missing,
    need_package,
    need_torch,
    stand_in_tokens,
    tokenizer_of,
)
from ovseg.positions import PositionTable, read_tables
from ovseg.registry import ModelCard, cards, find_card, weights_folder
from ovseg.runtime.tensorrt import has_engine
from ovseg.tensors import read_header, read_tensors
from ovseg.text_cache import TextCache, tower_identity

if TYPE_CHECKING:
    from ovseg.runtime.base import ConditionalRuntime, Runtime
    from ovseg.text import Tokenize

logger = logging.getLogger(__name__)

BACKENDS = (None, "onnx", "torch", "tensorrt")


@dataclass(frozen=True)
class Request:
    """How a model is wanted; the options of `ovseg.load`."""

    backend: str | None = None
    device: str | None = None
    dtype: str | None = None
    threads: int | None = None
    readout: str | None = None
    proxy: str | None = None
    weights: Weights | None = None
    hub: HubOptions = field(default_factory=HubOptions)
    compile: bool = False


@dataclass(frozen=True)
class Loaded:
    """A model that is ready to run.

    Attributes:
        card: Its card, with the options that were asked for.
        runtime: Runs its network.
        tokenize: Gives the ids of texts.
        texts: Embeddings of earlier texts; None where there are none to keep.
    """

    card: ModelCard
    runtime: Runtime | ConditionalRuntime
    tokenize: Tokenize
    texts: TextCache | None = None


def card_of(source: Source) -> ModelCard:
    """Return the card of a model that goes by name.

    Raises:
        UnknownModelError: If no model has this name; the message says which come near.
    """
    if source.value not in cards() and source.value.startswith("clip-"):
        return _clip_card(source.value)
    return find_card(source.value)


def _clip_card(model: str) -> ModelCard:
    """Make the card of any tower that open_clip knows."""
    need_package("open_clip", f"{model!r} needs open_clip")
    from ovseg.models.clip_names import card_for

    return card_for(model)


def clip_names() -> list[str]:
    """Name every tower of open_clip that works, each with every weights it was published with."""
    need_package("open_clip", "The list of open_clip's towers needs open_clip")
    from ovseg.models.clip_names import names

    return names()


def load_model(model: str | os.PathLike[str], request: Request) -> Loaded:
    """Find, read and place a model.

    Raises:
        OvsegError: If any step fails; the message says which and what to do.
    """
    if request.backend not in BACKENDS:
        raise InvalidArgumentError(f"backend must be one of {', '.join(map(repr, BACKENDS[1:]))} or None; got {request.backend!r}.")
    if not isinstance(model, (str, os.PathLike)):
        raise UnknownModelError(f"model must be a name of list_models(); got {type(model).__name__}.")
    check_weights(request.weights)
    source = parse_source(model)
    card, files = _locate(source, request)
    logger.log(logging.WARNING if card.access else logging.INFO, "%s: licence of the weights: %s. %s", card.name, card.license, card.access)
    if source.kind == "folder" and has_engine(Path(source.value)):
        return _load_engine(card, Path(source.value), files, request)
    if request.backend == "tensorrt":
        raise InvalidArgumentError(f"{card.name!r} has no TensorRT engine. Make one: ovseg export tensorrt ONNX_FOLDER ENGINE_FOLDER.")
    if "text" in files:
        return _load_graphs(card, files, request)
    return _load_torch(card, files, request)


def locate(model: str | os.PathLike[str], request: Request) -> tuple[ModelCard, dict[str, Path]]:
    """Find a model: its card, with the options that are asked for, and the files that are here already, by their roles.

    Raises:
        OvsegError: If it is not there, is damaged, or has no such options.
    """
    return _locate(parse_source(model), request)


def _locate(source: Source, request: Request) -> tuple[ModelCard, dict[str, Path]]:
    files: dict[str, Path] = {}
    if source.kind == "folder":
        card, files = read_folder(Path(source.value))
    elif source.kind == "hub":
        card, files = _from_hub(fetch_folder(source.value, request.hub, source.revision))
    else:
        card = card_of(source)
        if card.files:
            folder = weights_folder(card)
            files = {role: folder / name for role, name in card.files.items()}
    return _with_options(card, request), files


def _from_hub(found: HubModel) -> tuple[ModelCard, dict[str, Path]]:
    """Find the card that a downloaded repository goes with: its own, or that of an architecture we know."""
    files = dict(found.files)
    if found.kind == "ovseg" and found.card is not None:
        return found.card, files
    files.update({f"weights{i}": path for i, path in enumerate(found.weights)})
    files.pop("weights", None)
    need_package("torch", f"{found.repo!r} needs torch")
    if found.kind == "open_clip":
        from ovseg.models.clip_names import card_from_config

        card = card_from_config(found.repo, found.config)
    else:
        card = _card_that_fits(found)
    return dataclasses.replace(card, license=found.license or "unknown", access=found.access, scores={}, sha256={}), files


def _card_that_fits(found: HubModel) -> ModelCard:
    """Find the card of the architecture whose tensors are those of a file; for somebody's own training of a model we know."""
    shapes: dict[str, tuple[int, ...]] = {}
    for path in found.weights:
        shapes.update({name: entry.shape for name, entry in read_header(path).items()})
    kind = MODEL_TYPES.get(str(found.config.get("model_type")))
    candidates = [card for card in cards().values() if card.family == kind]
    candidates.sort(key=lambda card: card.source.get("hub") != found.repo)
    for card in candidates:
        import torch

        with torch.device("meta"):
            try:
                build_network(card, {name: torch.empty(shape) for name, shape in shapes.items()})
            except WeightsError:
                continue
        return dataclasses.replace(card, name=f"hf-hub:{found.repo}")
    known = ", ".join(card.name for card in candidates) or "none of this kind"
    raise WeightsError(f"The tensors of {found.repo} are those of no model that ovseg knows ({known}).")


def _with_options(card: ModelCard, request: Request) -> ModelCard:
    """Return the card with the read-out that the user wants."""
    asked = {key: value for key, value in (("readout", request.readout), ("proxy", request.proxy)) if value is not None}
    for key in asked:
        wants_clip = key == "proxy" or asked[key] == PROXYCLIP
        if "readout" not in card.options or (wants_clip and card.family != "clip"):
            raise InvalidArgumentError(f"{card.name!r} has no choice of {key}={asked[key]!r}; leave {key}= out.")
    if "proxy" in asked and asked.get("readout", card.options["readout"]) != PROXYCLIP:
        raise InvalidArgumentError("proxy= belongs to readout='proxyclip'.")
    card = dataclasses.replace(card, options={**card.options, **asked})
    if card.family == "clip" and "readout" in asked:
        need_torch(card)
        from ovseg.models.clip_names import scale_of

        card = dataclasses.replace(card, logit_scale=scale_of(asked["readout"]))
    if card.options.get("readout") == PROXYCLIP:
        need_torch(card)
        from ovseg.models.dense_clip import DEFAULT_PROXY, grid_of

        card = dataclasses.replace(card, options={"proxy": DEFAULT_PROXY, **card.options})
        stride, multiple = grid_of(card.options)  # the cells are the proxy's
        side, step = (max(1, round(length / multiple)) * multiple for length in (336, 112))  # ProxyCLIP's windows
        preprocess = {**card.preprocess, "multiple": multiple}
        card = dataclasses.replace(card, stride=stride, preprocess=preprocess, window={"size": side, "stride": step})
    return card


def _load_graphs(card: ModelCard, files: Mapping[str, Path], request: Request) -> Loaded:
    """Run ONNX files; with backend="torch" or weights that no graph was made of, the torch module of the image tower."""
    from ovseg.runtime.onnx import OnnxRuntime

    own = request.weights is not None or "image" not in files  # the user's weights, or those of a training
    if own and (request.backend == "onnx" or "weights" not in files):
        raise InvalidArgumentError(f"{card.name!r} has no ONNX file of these weights: leave out backend= or weights=, or export the model.")
    runtime: Runtime
    if own or request.backend == "torch":
        if "weights" not in files:
            raise InvalidArgumentError(f"{card.name!r} is an exported model; it runs with backend='onnx' only.")
        from ovseg.runtime.torch import TorchRuntime

        need_torch(card)
        text_only = OnnxRuntime(files["text"], files["text"], "cpu", request.threads)  # no graph for images is opened
        build = builder(card, {"weights": files["weights"]}, request.weights, request.hub)
        runtime = TorchRuntime(build, text_only, request.device, request.dtype, request.threads, request.compile)
    else:
        if request.compile:
            other = ", or use backend='torch'" if "weights" in files else ""
            raise InvalidArgumentError(f"compile=True is for torch, and {card.name!r} runs with onnxruntime here. Leave it out{other}.")
        dtype = card.options.get("export", {}).get("dtype", "float32")
        if request.dtype not in (None, dtype):
            raise InvalidArgumentError(
                f"The graphs of {card.name!r} compute in {dtype}; got dtype={request.dtype!r}. "
                + ("Export the model with that dtype." if "weights" not in files else "Use backend='torch'.")
            )
        more = {role: files[role] for role in ("global", "head", "segmenter") if role in files}
        positions = position_tables(card, files)
        runtime = OnnxRuntime(files["image"], files["text"], request.device, request.threads, more=more, positions=positions)
    return Loaded(card, runtime, _graph_tokenizer(card, files), _text_cache(card, runtime.name, files, request))


def _graph_tokenizer(card: ModelCard, files: Mapping[str, Path]) -> Tokenize:
    if "tokenizer" not in files and card.options.get("export", {}).get("weights") == RANDOM:
        return stand_in_tokens
    return file_tokenizer(files["tokenizer"], card.options.get("tokenizer"))


def _load_engine(card: ModelCard, folder: Path, files: Mapping[str, Path], request: Request) -> Loaded:
    """Run a TensorRT engine; words go through the ONNX graph of the text tower."""
    from ovseg.runtime.onnx import OnnxRuntime
    from ovseg.runtime.tensorrt import TensorRTRuntime

    if request.backend not in (None, "tensorrt"):
        raise InvalidArgumentError(f"{folder} holds a TensorRT engine; got backend={request.backend!r}. Load the exported folder instead.")
    if request.device not in (None, "cuda") or request.dtype is not None or request.weights is not None or request.compile:
        raise InvalidArgumentError(f"The engine in {folder} runs on the GPU as it was built: leave out device, dtype, weights and compile.")
    more = {role: files[role] for role in ("global", "head") if role in files}
    others = OnnxRuntime(folder / "image.onnx", files["text"], "cpu", request.threads, more=more)  # the image graph is not opened
    runtime = TensorRTRuntime(folder, others, position_tables(card, files))
    return Loaded(card, runtime, _graph_tokenizer(card, files), _text_cache(card, others.name, files, request))


def _text_cache(card: ModelCard, runtime: str, files: Mapping[str, Path], request: Request) -> TextCache | None:
    """Open the cache of text embeddings; None for weights that have no name."""
    weights = request.weights
    if weights == RANDOM or isinstance(weights, Mapping) or card.options.get("export", {}).get("weights") == RANDOM:
        return None
    given = [] if weights is None else [weights] if isinstance(weights, (str, Path)) else list(weights)
    paths = [path for role, path in files.items() if role != "proxy"] if not given else [*map(Path, given)]
    tokenizer = [files["tokenizer"]] if "tokenizer" in files else []
    identity = tower_identity(card.name, runtime, request.dtype or "float32", card.options, {*paths, *tokenizer}, card.sha256)
    return TextCache.of(identity)


def position_tables(card: ModelCard, files: Mapping[str, Path]) -> dict[str, PositionTable]:
    """Read the position embeddings that the graphs of an exported model take, by the names of these inputs.

    Raises:
        WeightsError: If the card or the file does not fit.
    """
    return read_tables(read_tensors(files["positions"]), card.options) if "positions" in files else {}


def _load_torch(card: ModelCard, files: Mapping[str, Path], request: Request) -> Loaded:
    """Build the network in torch and give it its weights, fetched if need be."""
    if request.backend == "onnx":
        raise InvalidArgumentError(f"{card.name!r} runs with torch; leave backend= out, or export it first.")
    need_torch(card)
    _check_before_fetching(card, request)
    files = fetch_missing(card, files, request.weights, request.hub)
    build = builder(card, files, request.weights, request.hub)
    tokenize = tokenizer_of(card, files, request.weights, request.hub)
    from ovseg.runtime.torch import TorchConditionalRuntime, TorchRuntime

    if card.conditional:
        return Loaded(card, TorchConditionalRuntime(build, request.device, request.dtype, request.threads, request.compile), tokenize)
    runtime = TorchRuntime(build, None, request.device, request.dtype, request.threads, request.compile)
    return Loaded(card, runtime, tokenize, _text_cache(card, runtime.name, files, request))


def _check_before_fetching(card: ModelCard, request: Request) -> None:
    """Refuse what would be refused after gigabytes have come."""
    if request.readout is None and request.device is None and request.dtype is None:
        return  # importing torch takes seconds, too long where the network is not there
    import torch

    from ovseg.runtime.torch import check_place

    check_place(request.device, request.dtype)
    if request.readout is not None:
        with torch.device("meta"):
            build_network(card, None)
