"""From a model's name to a network on a device: the card, the weights, the tokenizer, the runtime."""

from __future__ import annotations

import dataclasses
import importlib
import logging
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ovseg.errors import InvalidArgumentError, MissingDependencyError, UnknownModelError, WeightsError
from ovseg.file_tokenizer import file_tokenizer
from ovseg.hub import MODEL_TYPES, HubModel, HubOptions, Source, fetch_folder, hub_file, parse_source, read_folder
from ovseg.positions import PositionTable, read_tables
from ovseg.registry import ModelCard, cards, find_card, weights_folder
from ovseg.runtime.tensorrt import has_engine
from ovseg.tensors import read_tensors
from ovseg.text_cache import TextCache, tower_identity

if TYPE_CHECKING:
    from torch import Tensor

    from ovseg.runtime.base import ConditionalRuntime, Runtime
    from ovseg.text import Tokenize

logger = logging.getLogger(__name__)

MODULES = {
    "mini": "mini", "lseg": "lseg", "clip": "dense_clip", "tips": "tips", "dinotxt": "dinotxt", "radio": "radio",
    "clipseg": "clipseg", "sam3": "sam3",
}  # fmt: skip
"""Family of a model -> its file in `ovseg.models`."""

Weights = str | Path | Sequence[str | Path] | Mapping[str, Any]
BACKENDS = (None, "onnx", "torch", "tensorrt")
PROXYCLIP = "proxyclip"
"""The read-out that needs the weights of a second network."""
RANDOM = "random"
"""`weights=RANDOM` gives a network random weights: it knows nothing, but costs what the real one costs."""
_RANDOM_SEED = 0


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
    _need("open_clip", f"{model!r} needs open_clip")
    from ovseg.models.clip_names import card_for

    return card_for(model)


def clip_names() -> list[str]:
    """Name every tower of open_clip that works, each with every weights it was published with."""
    _need("open_clip", "The list of open_clip's towers needs open_clip")
    from ovseg.models.clip_names import names

    return names()


def _need(package: str, sentence: str) -> None:
    """Refuse where a package of the [torch] extra is missing; it is not imported, which takes seconds."""
    try:
        found = find_spec(package)
    except ValueError:  # a stand-in without a specification
        found = None
    if found is None:
        raise MissingDependencyError(f"{sentence}: pip install 'ovseg[torch]'")


def _need_torch(card: ModelCard) -> None:
    _need("torch", f"{card.name!r} needs torch here")


def load_model(model: str | os.PathLike[str], request: Request) -> Loaded:
    """Find, read and place a model.

    Raises:
        OvsegError: If any step fails; the message says which and what to do.
    """
    if request.backend not in BACKENDS:
        raise InvalidArgumentError(f"backend must be one of {', '.join(map(repr, BACKENDS[1:]))} or None; got {request.backend!r}.")
    if not isinstance(model, (str, os.PathLike)):
        raise UnknownModelError(f"model must be a name of list_models(); got {type(model).__name__}.")
    _check_weights(request.weights)
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


def _check_weights(weights: Weights | None) -> None:
    if weights is None or isinstance(weights, (str, Path)):
        return
    if not isinstance(weights, (Mapping, list, tuple)) or any(not isinstance(part, (str, Path)) for part in weights):
        raise InvalidArgumentError(f"weights must be a .safetensors file, several, or a mapping of tensors; got {type(weights).__name__}.")
    if not weights:
        raise InvalidArgumentError("weights is empty. Leave it out for the published weights.")


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
    _need("torch", f"{found.repo!r} needs torch")
    if found.kind == "open_clip":
        from ovseg.models.clip_names import card_from_config

        card = card_from_config(found.repo, found.config)
    else:
        card = _card_that_fits(found)
    return dataclasses.replace(card, license=found.license or "unknown", access=found.access, scores={}, sha256={}), files


def _card_that_fits(found: HubModel) -> ModelCard:
    """Find the card of the architecture whose tensors are those of a file; for somebody's own training of a model we know."""
    from safetensors import safe_open

    shapes: dict[str, tuple[int, ...]] = {}
    for path in found.weights:
        with safe_open(path, framework="pt") as file:
            shapes.update({name: tuple(file.get_slice(name).get_shape()) for name in file.keys()})
    kind = MODEL_TYPES.get(str(found.config.get("model_type")))
    candidates = [card for card in cards().values() if card.family == kind]
    candidates.sort(key=lambda card: card.source.get("hub") != found.repo)
    for card in candidates:
        import torch

        with torch.device("meta"):
            try:
                _build(card, {name: torch.empty(shape) for name, shape in shapes.items()})
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
        _need_torch(card)
        from ovseg.models.clip_names import scale_of

        card = dataclasses.replace(card, logit_scale=scale_of(asked["readout"]))
    if card.options.get("readout") == PROXYCLIP:
        _need_torch(card)
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

        _need_torch(card)
        text_only = OnnxRuntime(files["text"], files["text"], "cpu", request.threads)  # no graph for images is opened
        build = _builder(card, {"weights": files["weights"]}, request.weights, request.hub)
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
    _need_torch(card)
    _check_before_fetching(card, request)
    files = _completed(card, files, request)
    build = _builder(card, files, request.weights, request.hub)
    tokenize = _tokenizer(card, files, request)
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
            _build(card, None)


def _completed(card: ModelCard, files: Mapping[str, Path], request: Request) -> dict[str, Path]:
    """Fetch what is not here yet; with weights of the user's own, nothing."""
    files = dict(files)
    if request.weights is None and not any(role.startswith("weights") for role in files):
        files.update(_download(card, request.hub))
    if request.weights is None and "tokenizer" in card.source.get("files", {}) and "tokenizer" not in files:
        files["tokenizer"] = _find_tokenizer(card, request)
    return files


def torch_network(card: ModelCard, files: Mapping[str, Path], request: Request) -> tuple[Any, dict[str, Path]]:
    """Build the torch module of a model that `locate` found, for an export.

    Returns:
        The module, on the CPU, float32, in evaluation mode and without gradients; and all files, with the tokenizer where the model has a
        file for it. With random weights it may not be there.

    Raises:
        OvsegError: If weights are missing, damaged, cannot be fetched, or are of another model.
    """
    _need_torch(card)
    files = _completed(card, files, request)
    if "tokenizer" in card.source.get("files", {}) and "tokenizer" not in files:
        try:
            files["tokenizer"] = _find_tokenizer(card, request)
        except WeightsError:
            if request.weights != RANDOM:
                raise
    module = _builder(card, files, request.weights, request.hub)()
    return module.eval().requires_grad_(False), files


def _builder(card: ModelCard, files: Mapping[str, Path], weights: Weights | None, hub: HubOptions) -> Callable[[], Any]:
    """Read the weights; return what makes the network with them."""
    state = _state(card, files, weights)
    if state is not None and card.options.get("readout") == PROXYCLIP and not any(name.startswith("proxy.") for name in state):
        proxy = read_safetensors([_download_proxy(card, hub)])
        state = {**state, **{f"proxy.{name}": value for name, value in proxy.items()}}
    if isinstance(weights, (str, Path)):
        origin = str(weights)
    else:
        origin = "weights" if weights is not None else ", ".join(str(files[role]) for role in files if role.startswith("weights"))

    def build() -> Any:
        try:
            return _build(card, state)
        except WeightsError as error:
            raise WeightsError(f"{origin}: {error}") from error

    return build


def _build(card: ModelCard, state: Mapping[str, Tensor] | None) -> Any:
    """Make the network of a card; without `state`, with random weights."""
    import torch

    module = importlib.import_module(f"ovseg.models.{MODULES[card.family]}")
    if state is not None:
        return module.build(card.options, state)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(_RANDOM_SEED)
        return module.build(card.options, None)


def _state(card: ModelCard, files: Mapping[str, Path], weights: Weights | None) -> Mapping[str, Tensor] | None:
    """Read the tensors of a model; None for random ones."""
    if weights == RANDOM:
        logger.warning("%s has random weights: it takes the time of the real one and knows nothing.", card.name)
        return None
    if isinstance(weights, Mapping):
        return weights
    if weights is None:
        return read_safetensors([path for role, path in sorted(files.items()) if role.startswith("weights")])
    return read_safetensors([weights] if isinstance(weights, (str, Path)) else weights)


def read_safetensors(paths: Sequence[str | Path]) -> dict[str, Tensor]:
    """Read the tensors of one or several files.

    Raises:
        WeightsError: If a file is not there, is no safetensors file, is damaged, or has a tensor that another has too.
    """
    try:
        from safetensors import SafetensorError
        from safetensors.torch import load_file
    except ImportError as error:
        raise MissingDependencyError("Reading weights needs safetensors: pip install 'ovseg[torch]'") from error
    tensors: dict[str, Tensor] = {}
    for path in map(Path, paths):
        if path.suffix != ".safetensors":
            raise WeightsError(
                f"{path} is no .safetensors file. Other kinds can run code when they are read; `ovseg convert` turns published ones "
                "into safetensors."
            )
        try:
            part = load_file(path)
        except FileNotFoundError as error:
            raise WeightsError(f"The weights {path} are not there.") from error
        except (OSError, SafetensorError) as error:
            raise WeightsError(f"The weights {path} cannot be read: {error}. Get them again.") from error
        if twice := sorted(part.keys() & tensors.keys()):
            raise WeightsError(f"{path} has tensors that another of the files has too: {twice[0]}, ...")
        tensors.update(part)
    return tensors


def _download(card: ModelCard, options: HubOptions) -> dict[str, Path]:
    """Fetch the files of a card's source."""
    source = card.source
    if "manual" in source:
        raise WeightsError(f"The weights of {card.name!r} cannot be fetched: {source['manual']}")
    if "weights" not in source.get("files", {}):
        from ovseg.models.clip_names import hub_location

        repository, names = hub_location(*source["open_clip"])
    else:
        repository, names = source["hub"], dict(source["files"])
    revision, hashes = source.get("revision", ""), card.sha256
    found = {}
    for role, name in names.items():
        found[role] = hub_file(
            repository, name, revision=revision, sha256=hashes.get(name, ""), options=options,
            access=card.access if role == "weights" else "", license=card.license, model=card.name,
        )  # fmt: skip
    return found


def _download_proxy(card: ModelCard, options: HubOptions) -> Path:
    """Fetch the network that gives ProxyCLIP its attention."""
    from ovseg.models.dense_clip import proxy_location

    repository, name = proxy_location(card.options["proxy"])
    plain = dataclasses.replace(options, revision=None)  # the user's revision is of the other repository
    return hub_file(repository, name, options=plain, model=card.options["proxy"])


def _tokenizer(card: ModelCard, files: Mapping[str, Path], request: Request) -> Tokenize:
    """Make the tokenizer; with weights of the user's own it is looked for when the first text comes, as images need none."""
    module = importlib.import_module(f"ovseg.models.{MODULES[card.family]}")
    if request.weights is None or "tokenizer" in files or "tokenizer" not in card.source.get("files", {}):
        tokenize: Tokenize = module.build_tokenizer(card.options, files)
        return tokenize

    @cache
    def found() -> Tokenize:
        try:
            path = _find_tokenizer(card, request)
        except WeightsError:
            if request.weights == RANDOM:
                return stand_in_tokens
            raise
        late: Tokenize = module.build_tokenizer(card.options, {**files, "tokenizer": path})
        return late

    return lambda texts: found()(texts)


def _find_tokenizer(card: ModelCard, request: Request) -> Path:
    """Find the tokenizer of a model whose weights are the user's: beside them, else in the hub."""
    source = card.source
    name = source["files"]["tokenizer"]
    if isinstance(request.weights, (str, Path)) and request.weights != RANDOM:
        beside = Path(request.weights).with_name(name)
        if beside.is_file():
            return beside
    options = request.hub if "weights" in source["files"] else dataclasses.replace(request.hub, revision=None)  # another repository's
    revision = source.get("revision", "")
    return hub_file(source["hub"], name, revision=revision, options=options, license=card.license, model=card.name)


def stand_in_tokens(texts: Sequence[str]) -> list[list[int]]:
    """Give ids to texts where words mean nothing anyway: one for each letter, 64 of them."""
    return [[2 + ord(letter) % 250 for letter in text[:63].ljust(63)] + [1] for text in texts]
