"""Model cards: Markdown files whose front matter is what the code knows of a model.

The front matter is YAML of the simplest kind, `key: value` on one line each; a value is a JSON value or bare text.
"""

from __future__ import annotations

import difflib
import hashlib
import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import MISSING, dataclass, field, fields
from functools import cache
from importlib import resources
from pathlib import Path
from typing import Any

from ovseg.errors import UnknownModelError, WeightsError

_CARD = re.compile(r"---\s*?\n(.*?)^---\s*?$\n?(.*)", re.DOTALL | re.MULTILINE)
_KEY = re.compile(r"([A-Za-z_][\w-]*):(?:\s+(.*))?$")
_KINDS: dict[str, tuple[str, tuple[type, ...]]] = {
    "str": ("text", (str,)),
    "int": ("a whole number", (int,)),
    "float": ("a number", (int, float)),
    "float | None": ("a number", (int, float)),
    "bool": ("true or false", (bool,)),
    "Sequence[str]": ("a JSON list", (list,)),
}
_FITS = ("crop", "squash")
SEAL = "front_matter_sha256"
"""Key of a card that hashes the rest of its front matter, so that a changed scale or mean is noticed as changed weights are."""


@dataclass(frozen=True)
class ModelCard:
    """What a card says in its front matter.

    Attributes:
        name: The word for `ovseg.load`.
        family: Which file of `ovseg.models` it belongs to.
        license: Licence of the weights.
        embed_dim: Size D of the shared space.
        stride: Input pixels per cell of the feature map.
        logit_scale: Multiplier of the cosine.
        templates: Name of the default prompt templates.
        preprocess: Arguments of `Preprocess`.
        files: Weights: role -> file name, relative to the weights' folder.
        sha256: File name -> hash of its content.
        scores: What it measures -> score.
        megabytes: Size of the weights.
        source: Where weights come from that are not in the package: {"hub": "owner/name", "files": {role: file}, "revision": ""};
            {"open_clip": [tower, pretrained]}; or {"manual": what to do}.
        access: A sentence about weights that are gated or not for commercial use; "" for others.
        options: What the family's `build` gets: variant, read-out, ...
        window: The model's own sliding windows, {"size": px, "stride": px}; {} to see the image whole.
        classify: How an image is fitted for classification, {"size": px, "fit": "crop" or "squash"}, with "scale" if the
            multiplier of the cosine is another one; {} for the mean feature.
        align_corners: Whether the outer cells of the feature map lie on the outer pixels.
        conditional: Whether the network runs once for each label; there are no features to keep then.
        activation: How logits of one label become its score: "softmax" over the labels, "sigmoid", or "none".
        threshold: Least score of a decided pixel where the user names none; None for 0.
        temperature: Logits are divided by it before they become scores; fitted, so that a score says how often it is right.
        background: Words for `background="auto"`; empty for a list that all models share.
        near: Cosine of two words' embeddings from which on the model can hardly tell them apart; None where that is not known.
        text: The prose under the front matter.
    """

    name: str
    family: str
    license: str
    embed_dim: int
    stride: int
    logit_scale: float
    templates: str
    preprocess: Mapping[str, Any]
    files: Mapping[str, str]
    sha256: Mapping[str, str]
    scores: Mapping[str, float]
    megabytes: float
    source: Mapping[str, Any] = field(default_factory=dict)
    access: str = ""
    options: Mapping[str, Any] = field(default_factory=dict)
    window: Mapping[str, int] = field(default_factory=dict)
    classify: Mapping[str, Any] = field(default_factory=dict)
    align_corners: bool = False
    conditional: bool = False
    activation: str = "softmax"
    threshold: float | None = None
    temperature: float = 1.0
    background: Sequence[str] = ()
    near: float | None = None
    text: str = field(repr=False, default="")


def seal_of(front: str) -> str:
    """Hash the lines of a front matter but the one that holds this hash; how lines end does not matter."""
    lines = [line.rstrip() for line in front.splitlines() if not line.startswith(f"{SEAL}:")]
    return hashlib.sha256("\n".join(lines).encode()).hexdigest()


def parse_card(content: str, origin: str) -> ModelCard:
    """Read a card.

    Args:
        content: The Markdown text.
        origin: Where it is from, for messages.

    Raises:
        WeightsError: If the front matter is not there, cannot be read, lacks something, or is not the one that it was sealed as.
    """
    parts = _CARD.match(content)
    if parts is None:
        raise WeightsError(f"{origin}: a model card begins with front matter between two lines `---`; got {content[:40]!r}.")
    values: dict[str, Any] = {}
    for number, line in enumerate(parts[1].splitlines(), 2):
        if not line.strip() or line.startswith("#"):
            continue
        match = _KEY.match(line)
        if match is None:
            raise WeightsError(f"{origin}, line {number}: expected `key: value`; got {line!r}.")
        if match[1] in values:
            raise WeightsError(f"{origin}, line {number}: {match[1]} stands twice.")
        value = (match[2] or "").strip()
        try:
            values[match[1]] = json.loads(value)
        except json.JSONDecodeError:
            values[match[1]] = value
        except (ValueError, RecursionError) as error:  # a number of thousands of digits; thousands of brackets
            raise WeightsError(f"{origin}, line {number}: the value of {match[1]} cannot be read: {error}.") from error
    if SEAL in values and values[SEAL] != seal_of(parts[1]):
        raise WeightsError(
            f"{origin} is damaged or altered: its front matter does not have the hash in {SEAL}. Copy or export the model anew; if you "
            "changed it yourself, delete that line."
        )
    entries = [entry for entry in fields(ModelCard) if entry.name != "text"]
    needed = [entry.name for entry in entries if entry.default is MISSING and entry.default_factory is MISSING]
    missing = [name for name in needed if name not in values]
    known = {entry.name: str(entry.type) for entry in entries if entry.name in values}
    if missing:
        raise WeightsError(f"{origin}: the front matter lacks {', '.join(missing)}.")
    for key, kind in known.items():
        expected, types = _KINDS.get(kind, ("a JSON object", (dict,)))
        if type(values[key]) not in types:
            raise WeightsError(f"{origin}: {key} must be {expected}; got {values[key]!r}.")
    card = ModelCard(**{key: values[key] for key in known}, text=parts[2])
    if trouble := _trouble(card):
        raise WeightsError(f"{origin}: {trouble}")
    return card


def _trouble(card: ModelCard) -> str:
    """Say which value of a card cannot be right; "" if none."""
    if card.stride < 1 or card.embed_dim < 0 or not 0 < card.logit_scale < 1e6:
        return "stride and logit_scale must be positive, and embed_dim not negative."
    if card.activation not in ("softmax", "sigmoid", "none"):
        return f"activation must be softmax, sigmoid or none; got {card.activation!r}."
    if card.threshold is not None and not 0 <= card.threshold <= 1:
        return f"threshold must be in [0, 1]; got {card.threshold!r}."
    if not 0 < card.temperature < 1e6:
        return f"temperature must be positive; got {card.temperature!r}."
    if card.near is not None and not 0 < card.near <= 1:
        return f"near must be in (0, 1]; got {card.near!r}."
    if not all(isinstance(word, str) and word.strip() for word in card.background):
        return f"background must be a list of words; got {list(card.background)!r}."
    if card.window and not (card.window.keys() == {"size", "stride"} and all(type(v) is int and v > 0 for v in card.window.values())):
        return f"window must have a positive size and stride; got {dict(card.window)!r}."
    if card.classify and not (type(card.classify.get("size")) is int and card.classify["size"] > 0 and card.classify.get("fit") in _FITS):
        return f"classify must have a positive size and a fit ({', '.join(_FITS)}); got {dict(card.classify)!r}."
    if not all(isinstance(name, str) for name in card.files.values()):
        return "files must be names."
    if not all(isinstance(value, str) and re.fullmatch(r"[0-9a-fA-F]{64}", value) for value in card.sha256.values()):
        return "sha256 must be 64 hexadecimal digits for each file."
    return ""


@cache
def cards() -> Mapping[str, ModelCard]:
    """Read the installed cards, by name."""
    found = {}
    for entry in sorted(resources.files("ovseg.model_cards").iterdir(), key=lambda e: e.name):
        if entry.name.endswith(".md") and entry.name != "README.md":
            card = parse_card(entry.read_text("utf-8"), entry.name)
            if entry.name != f"{card.name}.md":
                raise WeightsError(f"{entry.name}: a card is named after its model; this one is of {card.name!r}.")
            found[card.name] = card
    return found


def find_card(name: str) -> ModelCard:
    """Return the card of a model, or say which names come near."""
    known = cards()
    if name in known:
        return known[name]
    near = _near(name, known)
    if near:
        raise UnknownModelError(f"Unknown model {name!r}. Did you mean {' or '.join(map(repr, near))}? All models: ovseg.list_models().")
    raise UnknownModelError(f"Unknown model {name!r}. Known models: {', '.join(known)} (see ovseg.list_models()).")


def _near(name: str, known: Mapping[str, ModelCard]) -> list[str]:
    """Return up to three names that may be meant: spelled alike, with other capitals or signs, or shortened."""
    plain = re.sub(r"[\s_/]+", "-", name.strip().casefold())
    if not plain:
        return []
    if plain in known:
        return [plain]
    tries = (plain, f"clip-{plain}", re.sub(r"vit-([blhg])-", r"vit-\1", plain), "clip-" + re.sub(r"vit-([blhg])-", r"vit-\1", plain))
    begun = [card for card in known if any(card.startswith(start) for start in tries)]
    if begun and len(plain) > 2:
        return sorted(begun, key=len)[:3]
    close = [match for start in tries for match in difflib.get_close_matches(start, known, n=2, cutoff=0.75)]
    return list(dict.fromkeys(close))[:3] or difflib.get_close_matches(plain, known, n=1)


def weights_folder(card: ModelCard) -> Path:
    """Return the folder of a model's files, which come with the package."""
    folder = Path(str(resources.files("ovseg"))) / "weights" / card.name
    for file in card.files.values():
        if not (folder / file).is_file():
            raise WeightsError(f"The weights of {card.name!r} are incomplete: {folder / file} is missing. Reinstall ovseg.")
    return folder
