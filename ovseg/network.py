"""From a card to its network in torch: the weights are found or fetched, read, and put into the modules; and its tokenizer."""

from __future__ import annotations

import dataclasses
import importlib
import logging
from collections.abc import Callable, Mapping, Sequence
from functools import cache
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ovseg.errors import InvalidArgumentError, MissingDependencyError, WeightsError
from ovseg.hub import HubOptions, hub_file
from ovseg.registry import ModelCard

if TYPE_CHECKING:
    from torch import Tensor

    from ovseg.text import Tokenize

logger = logging.getLogger(__name__)

MODULES = {
    "mini": "mini", "lseg": "lseg", "clip": "dense_clip", "tips": "tips", "dinotxt": "dinotxt", "radio": "radio",
    "clipseg": "clipseg", "sam3": "sam3",
}  # fmt: skip
"""Family of a model -> its file in `ovseg.models`."""

Weights = str | Path | Sequence[str | Path] | Mapping[str, Any]
PROXYCLIP = "proxyclip"
"""The read-out that needs the weights of a second network."""
RANDOM = "random"
"""`weights=RANDOM` gives a network random weights: it knows nothing, but costs what the real one costs."""
_RANDOM_SEED = 0


def need_package(package: str, sentence: str) -> None:
    """Refuse where a package of the [torch] extra is missing; it is not imported, which takes seconds."""
    try:
        found = find_spec(package)
    except ValueError:  # a stand-in without a specification
        found = None
    if found is None:
        raise MissingDependencyError(f"{sentence}: pip install 'ovseg[torch]'")


def need_torch(card: ModelCard) -> None:
    """Refuse a model that needs torch where there is none."""
    need_package("torch", f"{card.name!r} needs torch here")


def check_weights(weights: Weights | None) -> None:
    """Refuse what cannot be weights, before anything is fetched or read."""
    if weights is None or isinstance(weights, (str, Path)):
        return
    if not isinstance(weights, (Mapping, list, tuple)) or any(not isinstance(part, (str, Path)) for part in weights):
        raise InvalidArgumentError(f"weights must be a .safetensors file, several, or a mapping of tensors; got {type(weights).__name__}.")
    if not weights:
        raise InvalidArgumentError("weights is empty. Leave it out for the published weights.")


def fetch_missing(card: ModelCard, files: Mapping[str, Path], weights: Weights | None, hub: HubOptions) -> dict[str, Path]:
    """Fetch what is not here yet; with weights of the user's own, nothing."""
    files = dict(files)
    if weights is None and not any(role.startswith("weights") for role in files):
        files.update(_download(card, hub))
    if weights is None and "tokenizer" in card.source.get("files", {}) and "tokenizer" not in files:
        files["tokenizer"] = _find_tokenizer(card, weights, hub)
    return files


def torch_network(card: ModelCard, files: Mapping[str, Path], weights: Weights | None, hub: HubOptions) -> tuple[Any, dict[str, Path]]:
    """Build the torch module of a model that `ovseg.loading.locate` found, for an export.

    Returns:
        The module, on the CPU, float32, in evaluation mode and without gradients; and all files, with the tokenizer where the model has a
        file for it. With random weights it may not be there.

    Raises:
        OvsegError: If weights are missing, damaged, cannot be fetched, or are of another model.
    """
    need_torch(card)
    files = fetch_missing(card, files, weights, hub)
    if "tokenizer" in card.source.get("files", {}) and "tokenizer" not in files:
        try:
            files["tokenizer"] = _find_tokenizer(card, weights, hub)
        except WeightsError:
            if weights != RANDOM:
                raise
    module = builder(card, files, weights, hub)()
    return module.eval().requires_grad_(False), files


def builder(card: ModelCard, files: Mapping[str, Path], weights: Weights | None, hub: HubOptions) -> Callable[[], Any]:
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
            return build_network(card, state)
        except WeightsError as error:
            raise WeightsError(f"{origin}: {error}") from error

    return build


def build_network(card: ModelCard, state: Mapping[str, Tensor] | None) -> Any:
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


def tokenizer_of(card: ModelCard, files: Mapping[str, Path], weights: Weights | None, hub: HubOptions) -> Tokenize:
    """Make the tokenizer; with weights of the user's own it is looked for when the first text comes, as images need none."""
    module = importlib.import_module(f"ovseg.models.{MODULES[card.family]}")
    if weights is None or "tokenizer" in files or "tokenizer" not in card.source.get("files", {}):
        tokenize: Tokenize = module.build_tokenizer(card.options, files)
        return tokenize

    @cache
    def found() -> Tokenize:
        try:
            path = _find_tokenizer(card, weights, hub)
        except WeightsError:
            if weights == RANDOM:
                return stand_in_tokens
            raise
        late: Tokenize = module.build_tokenizer(card.options, {**files, "tokenizer": path})
        return late

    return lambda texts: found()(texts)


def _find_tokenizer(card: ModelCard, weights: Weights | None, hub: HubOptions) -> Path:
    """Find the tokenizer of a model whose weights are the user's: beside them, else in the hub."""
    source = card.source
    name = source["files"]["tokenizer"]
    if isinstance(weights, (str, Path)) and weights != RANDOM:
        beside = Path(weights).with_name(name)
        if beside.is_file():
            return beside
    options = hub if "weights" in source["files"] else dataclasses.replace(hub, revision=None)  # another repository's
    revision = source.get("revision", "")
    return hub_file(source["hub"], name, revision=revision, options=options, license=card.license, model=card.name)


def stand_in_tokens(texts: Sequence[str]) -> list[list[int]]:
    """Give ids to texts where words mean nothing anyway: one for each letter, 64 of them."""
    return [[2 + ord(letter) % 250 for letter in text[:63].ljust(63)] + [1] for text in texts]
