"""Model cards: Markdown files whose front matter is what the code knows of a model.

The front matter is YAML of the simplest kind, `key: value` on one line each; a value is a JSON value or bare text.
"""

from __future__ import annotations

import difflib
import json
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cache
from importlib import resources
from pathlib import Path
from typing import Any

from ovseg.errors import UnknownModelError, WeightsError

_KEY = re.compile(r"([A-Za-z_][\w-]*):(?:\s+(.*))?$")


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
    text: str = field(repr=False, default="")


def parse_card(content: str, origin: str) -> ModelCard:
    """Read a card.

    Args:
        content: The Markdown text.
        origin: Where it is from, for messages.
    """
    _, front, text = (*content.split("---\n", 2), "", "")[:3]
    values: dict[str, Any] = {}
    for number, line in enumerate(front.splitlines(), 2):
        if not line.strip() or line.startswith("#"):
            continue
        match = _KEY.match(line)
        if match is None:
            raise WeightsError(f"{origin}, line {number}: expected `key: value`; got {line!r}.")
        value = (match[2] or "").strip()
        try:
            values[match[1]] = json.loads(value)
        except json.JSONDecodeError:
            values[match[1]] = value
    known = {name for name in ModelCard.__dataclass_fields__ if name != "text"}
    missing = sorted(known - values.keys())
    if missing:
        raise WeightsError(f"{origin}: the front matter lacks {', '.join(missing)}.")
    return ModelCard(**{key: values[key] for key in known}, text=text)


@cache
def cards() -> Mapping[str, ModelCard]:
    """Read the installed cards, by name."""
    found = {}
    for entry in sorted(resources.files("ovseg.model_cards").iterdir(), key=lambda e: e.name):
        if entry.name.endswith(".md") and entry.name != "README.md":
            card = parse_card(entry.read_text("utf-8"), entry.name)
            found[card.name] = card
    return found


def find_card(name: str) -> ModelCard:
    """Return the card of a model, or say which names come near."""
    known = cards()
    if name in known:
        return known[name]
    near = difflib.get_close_matches(name, known, n=1)
    hint = f" Did you mean {near[0]!r}?" if near else ""
    raise UnknownModelError(
        f"Unknown model {name!r}.{hint} Known models: {', '.join(known)} (see ovseg.list_models())."
    )


def weights_folder(card: ModelCard) -> Path:
    """Return the folder of a model's files, which come with the package."""
    folder = Path(str(resources.files("ovseg"))) / "weights" / card.name
    for file in card.files.values():
        if not (folder / file).is_file():
            raise WeightsError(f"The weights of {card.name!r} are incomplete: {folder / file} is missing. Reinstall ovseg.")
    return folder
