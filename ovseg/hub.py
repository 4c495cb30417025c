"""Weights that are not in the package: from the Hugging Face Hub, or from a folder with a model card.

huggingface_hub downloads, so its cache is shared with every other library, and its environment variables hold here too: HF_HOME,
HF_HUB_CACHE, HF_HUB_OFFLINE, HF_TOKEN, HF_ENDPOINT, and the proxies. This module adds what it leaves open: the licence is
named before a download, files are compared with the card's hashes, nothing that could run a program is fetched, and a network
that is not there is noticed within two seconds and not after retries of half a minute.
"""

from __future__ import annotations

import json
import logging
import os
import re
import shutil
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from types import MappingProxyType
from typing import Any, Literal

from ovseg.errors import InvalidArgumentError, MissingDependencyError, UnknownModelError, WeightsError
from ovseg.hub_errors import Wanted, explain, line, not_cached, unreachable
from ovseg.integrity import PICKLES, check_name, file_problem
from ovseg.registry import ModelCard, cards, parse_card

logger = logging.getLogger(__name__)

MODEL_TYPES: Mapping[str, str] = MappingProxyType({"tipsv2": "tips", "clipseg": "clipseg", "sam3": "sam3", "sam3_video": "sam3"})
"""`model_type` in the config.json of transformers repositories -> our family."""

_REPO = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*", re.ASCII)
_REVISION = re.compile(r"\w[\w./-]*", re.ASCII)
_COMMIT = re.compile(r"[0-9a-f]{40}")
_SHA256 = re.compile(r"[0-9a-f]{64}")
_DESCRIPTIONS = ("card.md", "open_clip_config.json", "config.json", "README.md")  # the first that a repository has says what it is
_INDEX = "model.safetensors.index.json"
_WEIGHTS = {"open_clip_config.json": ("open_clip_model.safetensors", "model.safetensors"), "config.json": ("model.safetensors",)}
_KNOWN_FILES = (*_DESCRIPTIONS, "open_clip_model.safetensors", "model.safetensors", _INDEX, "tokenizer.json", "tokenizer.model")


@dataclass(frozen=True)
class HubOptions:
    """What a user says about downloads.

    Attributes:
        revision: Branch, tag or commit, in place of the card's; None for the card's.
        cache_dir: Folder of the cache; None for the one of huggingface_hub (HF_HUB_CACHE, or `hub` in HF_HOME).
        local_files_only: Use what the cache holds and no network, like HF_HUB_OFFLINE=1.
        token: Token for gated repositories; True for the one of `hf auth login` or HF_TOKEN, which must be there then; None for
            that one if there is one; False for none.
    """

    revision: str | None = None
    cache_dir: Path | str | None = None
    local_files_only: bool = False
    token: str | bool | None = field(default=None, repr=False)


@dataclass(frozen=True)
class Source:
    """What a user's word for a model means.

    Attributes:
        kind: "card" for the name of a card, "hub" for a repository, "folder" for a folder.
        value: The name, `owner/name`, or the path.
        revision: Of a repository: branch, tag or commit; "" where the word has none.
    """

    kind: Literal["card", "hub", "folder"]
    value: str
    revision: str = ""


@dataclass(frozen=True)
class HubModel:
    """The downloaded files of a repository.

    Attributes:
        kind: "ovseg" for a repository with a card of ovseg, else whose layout it has.
        repo: `owner/name`.
        revision: The commit.
        folder: Folder of the cache that holds them.
        files: Role -> path. "ovseg": the card's roles. "open_clip" and "transformers": "config", "weights" unless there are shards,
            and "tokenizer" where the model needs one and the repository has tokenizer.json.
        weights: "open_clip" and "transformers": the safetensors files, one or all shards.
        config: "open_clip" and "transformers": content of the configuration.
        card: "ovseg": the card.
        license: Licence that the repository names; "unknown" for none.
        access: A sentence about a gated repository; "" for others.
    """

    kind: Literal["ovseg", "open_clip", "transformers"]
    repo: str
    revision: str
    folder: Path
    files: Mapping[str, Path]
    weights: tuple[Path, ...] = ()
    config: Mapping[str, Any] = field(default_factory=dict, repr=False)
    card: ModelCard | None = None
    license: str = "unknown"
    access: str = ""


def parse_source(name: str | os.PathLike[str]) -> Source:
    """Tell what a user's word for a model means.

    `hf-hub:owner/name[@revision]` is a repository, `local-dir:path` and any path object a folder. Of other words, installed cards
    come first, so that a folder that happens to be called `mini` hides nothing; then folders that exist. What is left is taken
    for the name of a card, and `find_card` says what is wrong with it.

    Raises:
        InvalidArgumentError: The word is malformed.
        UnknownModelError: The word must be a folder and is not, or would be a repository with `hf-hub:` before it.
    """
    if isinstance(name, str) and name.startswith("hf-hub:"):
        repo, at, revision = name.removeprefix("hf-hub:").partition("@")
        if not _REPO.fullmatch(repo) or ".." in name or (at and not _REVISION.fullmatch(revision)):
            raise InvalidArgumentError(f"A model on the Hub is named hf-hub:owner/name or hf-hub:owner/name@revision; got {name!r}.")
        return Source("hub", repo, revision)
    path = os.fspath(name).removeprefix("local-dir:")
    plain = path == name
    if plain and (not path or path in cards()):
        return Source("card", path)
    try:
        folder = Path(path).expanduser()
        found = bool(path) and folder.is_dir()
    except (RuntimeError, ValueError):  # no such user, or a zero byte
        folder, found = Path(path), False
    if found:
        return Source("folder", str(folder))
    if plain and _REPO.fullmatch(path):
        raise UnknownModelError(f"There is no folder {path!r}. For the model of that name on the Hugging Face Hub say 'hf-hub:{path}'.")
    if not plain or "/" in path or os.sep in path:
        raise UnknownModelError(f"There is no folder {path!r}; expected one that holds card.md and the files it names.")
    return Source("card", path)


def read_folder(path: Path) -> tuple[ModelCard, dict[str, Path]]:
    """Read the card of a folder and check the files that it names.

    Args:
        path: A folder with card.md.

    Returns:
        The card, and role -> path of its files.

    Raises:
        WeightsError: There is no card, it cannot be read, or a file is missing, damaged, altered or not inside the folder.
    """
    card = _read_card(path / "card.md")
    files = {}
    for role, name in card.files.items():
        check_name(name, str(path / "card.md"))
        file = path / name
        if not file.is_file():
            raise WeightsError(f"{path / 'card.md'} names {name} ({role}), and the folder has no such file. Copy or export the model anew.")
        if problem := file_problem(file, card.sha256.get(name, "")):
            raise WeightsError(f"{file} is damaged or altered: {problem}. Copy or export the model anew.")
        files[role] = file
    return card, files


def hub_file(
    repo: str,
    filename: str,
    *,
    revision: str = "",
    sha256: str = "",
    options: HubOptions,
    access: str = "",
    license: str = "",
    model: str = "",
) -> Path:
    """Return the path of a repository's file in the cache, after downloading it where needed.

    A cached file is used without any request when its revision is a commit, when it has the hash that is asked for, and in offline
    mode. Otherwise one request asks whether the revision has moved; the cached file is used if nobody answers.

    Args:
        repo: `owner/name`.
        filename: Path of the file in the repository.
        revision: Branch, tag or commit that the card names; "" for the main branch.
        sha256: Hash of the content that the card names; "" for none. It is not checked where `options` name another revision.
        options: What the user says.
        access: What the card says about gated or non-commercial weights. It is logged as a warning before the download.
        license: Licence of the weights, logged before the download.
        model: Name for messages.

    Raises:
        MissingDependencyError: huggingface_hub is not installed.
        WeightsError: The file cannot be had, is of a kind that could run a program, or is damaged or altered.
    """
    hub = _huggingface_hub()
    check_name(filename, repo)
    sha256 = sha256.lower()
    target = options.revision or revision or "main"
    if sha256 and target != (revision or "main"):
        logger.warning("%s of %s: the card's sha256 is not of revision %s and is not checked.", filename, repo, target)
        sha256 = ""
    wanted = Wanted(repo, filename, target, _cache(hub, options), hub.constants.ENDPOINT, access)
    cached = _cached(hub, wanted)
    if options.local_files_only or hub.constants.HF_HUB_OFFLINE:
        if cached is None:
            raise not_cached(wanted)
        return _checked(cached, sha256)
    if cached is not None and (_COMMIT.fullmatch(target) or (sha256 and not file_problem(cached, sha256, trust_name=True))):
        return _checked(cached, sha256)
    try:
        meta = _ask(hub, wanted, options)
    except Exception as error:  # the HTTP client's own exceptions too: httpx in one version of huggingface_hub, httpx2 in the next
        final = (hub.errors.EntryNotFoundError, hub.errors.RevisionNotFoundError, hub.errors.LocalTokenNotFoundError)
        if cached is None or isinstance(error, final):
            raise explain(error, wanted) from error
        logger.info("%s is taken from the cache. %s", wanted, explain(error, wanted))
        return _checked(cached, sha256)
    if cached is not None and meta.commit_hash == _commit(cached, filename):
        return _checked(cached, sha256)
    if sha256 and _SHA256.fullmatch(meta.etag or "") and meta.etag != sha256:
        raise WeightsError(
            f"{wanted} is not the file that the card describes: its sha256 is {meta.etag}, expected {sha256}. Its owner changed it; "
            "update ovseg, or name a revision= that you trust."
        )
    _announce(wanted, meta.size or 0, license, model or repo)
    try:
        path = hub.hf_hub_download(
            repo, filename, revision=target, cache_dir=wanted.cache, token=options.token, library_name="ovseg"
        )  # fmt: skip
    except Exception as error:
        raise explain(error, wanted) from error
    return _checked(Path(path), sha256, fresh=True)


def fetch_folder(repo: str, options: HubOptions, revision: str = "") -> HubModel:
    """Download the model of a repository that a user named.

    It may hold card.md, or README.md with the same front matter; or it has the layout of open_clip or of a transformers model that
    ovseg has a family for. Code in it is neither fetched nor run.

    Args:
        repo: `owner/name`.
        options: What the user says.
        revision: Branch, tag or commit in the user's word; "" for the main branch. That of `options` comes first.

    Raises:
        MissingDependencyError: huggingface_hub is not installed.
        WeightsError: As for `hub_file`, or the repository is none of these.
    """
    branch = options.revision or revision or "main"
    options = replace(options, revision=None)
    names, license, access = _listing(repo, branch, options)
    main = next((name for name in _DESCRIPTIONS if name in names), None)
    if main is None:
        raise _not_a_model(repo, "it holds none of them")
    first = hub_file(repo, main, revision=branch, options=options, license=license, model=repo)
    commit = _commit(first, main)

    def take(name: str, sha256: str = "", access: str = "", license: str = license) -> Path:
        return hub_file(repo, name, revision=commit, sha256=sha256, options=options, access=access, license=license, model=repo)

    if main not in _WEIGHTS:
        try:
            card = _read_card(first)
        except WeightsError as error:
            if main == "card.md":
                raise
            raise _not_a_model(repo, "its README.md is not a card of ovseg") from error
        say = card.access or access
        said = next(iter(card.files), "")  # once is enough
        files = {
            role: take(name, card.sha256.get(name, ""), say if role == said else "", card.license) for role, name in card.files.items()
        }
        return HubModel("ovseg", repo, commit, first.parent, files, card=card, license=card.license, access=say)
    config = _read_json(first)
    if main == "config.json" and config.get("model_type") not in MODEL_TYPES:
        raise _not_a_model(repo, f"its model_type is {config.get('model_type')!r}")
    kind: Literal["open_clip", "transformers"] = "transformers" if main == "config.json" else "open_clip"
    single = next((name for name in (*_WEIGHTS[main], _INDEX) if name in names), None)
    if single is None:
        pickled = sorted(name for name in names if name.endswith(PICKLES))
        only = f"; its {pickled[0]} is a pickle, which could run any program when it is read" if pickled else ""
        raise WeightsError(f"{repo} has no {_WEIGHTS[main][0]}{only}. Look for a revision with safetensors, or convert the file.")
    parts = _shards(take(_INDEX), repo) if single == _INDEX else [single]
    weights = tuple(take(name, access=access if name == parts[0] else "") for name in parts)
    files = {"config": first}
    if single != _INDEX:
        files["weights"] = weights[0]
    if kind == "transformers" or _has_own_tokenizer(config):
        for name in ("tokenizer.json", "tokenizer.model"):
            if name in names:
                files["tokenizer"] = take(name)
                break
    return HubModel(kind, repo, commit, first.parent, files, weights, config, license=license, access=access)


def _huggingface_hub() -> Any:
    try:
        import huggingface_hub
        import huggingface_hub.constants
        import huggingface_hub.errors
    except ImportError as error:
        raise MissingDependencyError("Downloading weights needs huggingface_hub; install it with: pip install 'ovseg[torch]'") from error
    return huggingface_hub


def _cache(hub: Any, options: HubOptions) -> Path:
    return Path(hub.constants.HF_HUB_CACHE if options.cache_dir is None else options.cache_dir).expanduser()


def _cached(hub: Any, wanted: Wanted) -> Path | None:
    try:
        found = hub.try_to_load_from_cache(wanted.repo, wanted.filename, cache_dir=wanted.cache, revision=wanted.revision)
    except (OSError, ValueError) as error:
        raise explain(error, wanted) from error
    return Path(found) if isinstance(found, str) else None  # huggingface_hub has an object for files known not to exist


def _ask(hub: Any, wanted: Wanted, options: HubOptions) -> Any:
    """Ask for hash, size and commit of a file, without retries."""
    if (reason := unreachable(wanted.endpoint)) is not None:
        raise reason
    url = hub.hf_hub_url(wanted.repo, wanted.filename, revision=wanted.revision)
    meta = hub.get_hf_file_metadata(url, token=options.token, timeout=hub.constants.HF_HUB_ETAG_TIMEOUT, library_name="ovseg")
    if meta.commit_hash is None or meta.etag is None:
        raise hub.errors.FileMetadataError(f"{url} came without a commit and a hash")
    return meta


def _announce(wanted: Wanted, size: int, license: str, model: str) -> None:
    """Say what is downloaded under which terms; refuse what cannot fit, where huggingface_hub would fill the disk."""
    place = next((folder for folder in (wanted.cache, *wanted.cache.parents) if folder.is_dir()), None)
    free = shutil.disk_usage(place).free if place else size
    if free < size:
        raise WeightsError(
            f"{wanted} needs {size / 1e6:.0f} MB, and {wanted.cache} has {free / 1e6:.0f} MB left. Free some, or set HF_HUB_CACHE or "
            "cache_dir to another disk."
        )
    terms = f"licence {license}" if license not in ("", "unknown") else "licence unknown"
    logger.info("%s: downloading %s, %.1f MB, %s.", model, wanted, size / 1e6, terms)
    if wanted.access:
        logger.warning("%s: %s", model, wanted.access)


def _checked(path: Path, sha256: str, *, fresh: bool = False) -> Path:
    """Return a cached file if it is whole and the right one. All of a fresh download is hashed."""
    problem = file_problem(path, sha256, trust_name=not fresh)
    if not problem:
        return path
    blob = path.resolve()
    if not fresh:
        raise WeightsError(f"{path} is damaged or altered: {problem}. Delete {blob} to download it again.")
    link = path.parent / os.readlink(path) if path.is_symlink() else path
    for file in (path, link, blob):  # or the next call would trust it
        file.unlink(missing_ok=True)
    raise WeightsError(
        f"The download of {path.name} is damaged or altered and was deleted: {problem}. Try again; if it stays so, its owner or someone "
        "on the way has changed it."
    )


def _commit(path: Path, name: str) -> str:
    """Return the commit of a cached file, whose path is .../snapshots/<commit>/<name>."""
    return path.parents[name.count("/")].name


def _listing(repo: str, revision: str, options: HubOptions) -> tuple[set[str], str, str]:
    """Return names of a repository's files, its licence, and a sentence if it is gated; what the cache has if nobody answers."""
    hub = _huggingface_hub()
    wanted = Wanted(repo, "", revision, _cache(hub, options), hub.constants.ENDPOINT)
    cached = {name for name in _KNOWN_FILES if _cached(hub, replace(wanted, filename=name)) is not None}
    if options.local_files_only or hub.constants.HF_HUB_OFFLINE:
        if not cached:
            raise not_cached(wanted)
        return cached, "unknown", ""
    try:
        if (reason := unreachable(wanted.endpoint)) is not None:
            raise reason
        info = hub.HfApi().model_info(repo, revision=revision, token=options.token, timeout=hub.constants.HF_HUB_ETAG_TIMEOUT)
    except Exception as error:
        if not cached or isinstance(error, hub.errors.RevisionNotFoundError):
            raise explain(error, wanted) from error
        logger.info("%s is taken from the cache. %s", repo, explain(error, wanted))
        return cached, "unknown", ""
    access = f"The repository is gated: ask for access at https://huggingface.co/{repo}." if info.gated else ""
    license = getattr(info.card_data, "license", None)
    return {file.rfilename for file in info.siblings or ()}, license if isinstance(license, str) else "unknown", access


def _not_a_model(repo: str, why: str) -> WeightsError:
    return WeightsError(
        f"{repo} is not a model that ovseg can read: {why}. Expected card.md, open_clip_config.json, or config.json with a "
        f"model_type out of {', '.join(MODEL_TYPES)}."
    )


def _shards(index: Path, repo: str) -> list[str]:
    names = _read_json(index).get("weight_map")
    if not isinstance(names, dict) or not names or not all(isinstance(name, str) for name in names.values()):
        raise WeightsError(f"{_INDEX} of {repo} has no weight_map that names the file of each tensor.")
    for name in names.values():
        check_name(name, repo)
        if not name.endswith(".safetensors"):
            raise WeightsError(f"{_INDEX} of {repo} names {name!r} as weights; expected .safetensors files.")
    return sorted(set(names.values()))


def _has_own_tokenizer(config: Mapping[str, Any]) -> bool:
    """Tell whether an open_clip model reads texts with another tokenizer than CLIP's."""
    model = config.get("model_cfg")
    text = model.get("text_cfg") if isinstance(model, dict) else None
    return isinstance(text, dict) and bool(text.get("hf_tokenizer_name"))


def _read_card(path: Path) -> ModelCard:
    try:
        return parse_card(path.read_text("utf-8"), str(path))
    except FileNotFoundError as error:
        raise WeightsError(f"{path.parent} holds no {path.name}; a model in a folder is a card and the files it names.") from error
    except (OSError, UnicodeDecodeError) as error:
        raise WeightsError(f"{path} cannot be read: {line(error)}.") from error


def _read_json(path: Path) -> dict[str, Any]:
    try:
        content = json.loads(path.read_text("utf-8"))
    except (OSError, ValueError) as error:
        raise WeightsError(f"{path} is not JSON: {line(error)}. Delete {path.resolve()} to download it again.") from error
    if not isinstance(content, dict):
        raise WeightsError(f"{path} must hold a JSON object; got {type(content).__name__}.")
    return content
