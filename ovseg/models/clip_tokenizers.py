"""Tokenizers of open_clip's text towers that are not CLIP's own: those that the Hugging Face Hub keeps as `tokenizer.json`."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from ovseg.errors import WeightsError

_PADDING = ("<pad>", "[PAD]")


def _token(value: Any) -> str:
    """Return the text of a special token, which a config stores as text or as an object."""
    return str(value["content"] if isinstance(value, dict) else value)


def prepared_tokenizer(
    file: Path, config: Path | None, length: int, strip_separator: bool, padding: str | None = None
) -> tuple[Any, int | None]:
    """Read a tokenizer of the Hugging Face Hub and make it cut and pad.

    Args:
        file: Its `tokenizer.json`.
        config: Its `tokenizer_config.json`; None looks for one beside `file`.
        length: Texts are cut and padded to this many ids.
        strip_separator: Whether the separator becomes 0, as CLIPA wants it.
        padding: The token that pads; None asks the config, then the file, then takes what is named like it.

    Returns:
        A `tokenizers.Tokenizer`, and the id that must become 0, or None.

    Raises:
        WeightsError: If the file cannot be read, or nothing says which token pads.
    """
    from tokenizers import Tokenizer

    beside = config if config is not None else file.with_name("tokenizer_config.json")
    try:
        special = json.loads(beside.read_text("utf-8")) if config is not None or beside.is_file() else {}
        tokenizer = Tokenizer.from_file(str(file))
    except Exception as error:  # tokenizers raises plain Exception
        raise WeightsError(f"The tokenizer {file} cannot be read: {error}. Fetch it again.") from error
    if padding is None and special.get("pad_token"):
        padding = _token(special["pad_token"])
    elif padding is None and tokenizer.padding is not None:
        padding = str(tokenizer.padding["pad_token"])
    elif padding is None:
        padding = next((token for token in _PADDING if tokenizer.token_to_id(token) is not None), "")
    index = tokenizer.token_to_id(padding)
    if index is None:
        raise WeightsError(f"The tokenizer {file} does not say which token pads; put its tokenizer_config.json beside it.")
    separator = tokenizer.token_to_id(_token(special.get("sep_token") or "[SEP]")) if strip_separator else None
    tokenizer.enable_truncation(length)
    tokenizer.enable_padding(length=length, pad_id=index, pad_token=padding)
    return tokenizer, separator


def file_tokenizer(
    file: Path, config: Path | None, length: int, clean: str, strip_separator: bool, padding: str | None = None
) -> Callable[[Sequence[str]], list[list[int]]]:
    """Return a tokenizer of the Hugging Face Hub, used as open_clip uses it.

    Args:
        file: See `prepared_tokenizer`.
        config: Likewise.
        length: Likewise.
        clean: What open_clip does to a text first: "whitespace", "lower" or "canonicalize" (lower case, no punctuation).
        strip_separator: See `prepared_tokenizer`.
        padding: Likewise.

    Raises:
        WeightsError: If the file cannot be read, or nothing says which token pads.
    """
    from open_clip.tokenizer import get_clean_fn

    tokenizer, separator = prepared_tokenizer(file, config, length, strip_separator, padding)
    prepare = get_clean_fn(clean)

    def encode(texts: Sequence[str]) -> list[list[int]]:
        rows = tokenizer.encode_batch([prepare(text) for text in texts])
        return [[0 if token == separator else token for token in row.ids] for row in rows]

    return encode
