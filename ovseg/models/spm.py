"""Read a SentencePiece model of the byte-pair kind with the `tokenizers` package, without SentencePiece or protobuf.

The file is a protocol buffer (github.com/google/sentencepiece, src/sentencepiece_model.proto); the few fields that matter:

    ModelProto      1 pieces, 2 trainer_spec, 3 normalizer_spec
    SentencePiece   1 text, 2 score, 3 kind
    TrainerSpec     3 model type (2 is byte pairs), 35 whether unknown characters become their bytes
    NormalizerSpec  2 character map
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from typing import Any

from ovseg.errors import MissingDependencyError, WeightsError

_BYTE_PAIRS = 2
_NORMAL, _UNKNOWN = 1, 2  # kinds of pieces


def _varint(data: bytes, at: int) -> tuple[int, int]:
    value = shift = 0
    while True:
        byte = data[at]
        value |= (byte & 127) << shift
        at, shift = at + 1, shift + 7
        if byte < 128:
            return value, at


def _fields(data: bytes) -> Iterator[tuple[int, Any]]:
    """Yield the number and the value of each field of a message: int, 4 or 8 raw bytes, or bytes of any length."""
    at = 0
    while at < len(data):
        tag, at = _varint(data, at)
        wire = tag & 7
        if wire == 0:
            value, at = _varint(data, at)
            yield tag >> 3, value
            continue
        if wire not in (1, 2, 5):
            raise ValueError(f"wire type {wire}")
        size = {1: 8, 5: 4}.get(wire, 0)
        if wire == 2:
            size, at = _varint(data, at)
        if at + size > len(data):
            raise ValueError("it ends early")
        yield tag >> 3, data[at : at + size]
        at += size


def _piece(data: bytes) -> tuple[str, float, int]:
    text, score, kind = "", 0.0, _NORMAL
    for number, value in _fields(data):
        if number == 1:
            text = value.decode()
        elif number == 2:
            score = struct.unpack("<f", value)[0]
        elif number == 3:
            kind = value
    return text, score, kind


def _merges(pieces: list[tuple[str, float, int]]) -> list[tuple[str, str]]:
    """List the pairs that may be joined, best first: SentencePiece joins the neighbours whose union has the highest score."""
    known = {text for text, _, kind in pieces if kind == _NORMAL}
    found = []
    for text, _, _ in sorted((piece for piece in pieces if piece[2] == _NORMAL), key=lambda piece: -piece[1]):
        found += [(text[:i], text[i:]) for i in range(1, len(text)) if text[:i] in known and text[i:] in known]
    return found


def read_byte_pairs(data: bytes, origin: str) -> Any:
    """Make a tokenizer of a SentencePiece model: lower case, the file's character map, "▁" before words, byte pairs.

    Args:
        data: Content of the file (tokenizer.model).
        origin: Where it is from, for messages.

    Returns:
        A `tokenizers.Tokenizer`. It adds no special tokens.

    Raises:
        WeightsError: If the content is no SentencePiece model of byte pairs.
        MissingDependencyError: If `tokenizers` is not installed.
    """
    try:
        from tokenizers import Tokenizer, models, normalizers, pre_tokenizers
    except ImportError as error:
        raise MissingDependencyError("This tokenizer needs the tokenizers package: pip install tokenizers") from error
    try:
        message = list(_fields(data))
        pieces = [_piece(value) for number, value in message if number == 1]
        trainer = {n: v for number, value in message if number == 2 for n, v in _fields(value)}
        charsmap = b"".join(v for number, value in message if number == 3 for n, v in _fields(value) if n == 2)
    except (IndexError, ValueError, TypeError, AttributeError, struct.error) as error:
        raise WeightsError(f"{origin} is no SentencePiece model ({error}). Download it again.") from error
    if not pieces or trainer.get(3, 1) != _BYTE_PAIRS:
        raise WeightsError(f"{origin}: expected a SentencePiece model of byte pairs; got {len(pieces)} pieces of another kind.")
    unknown = next((text for text, _, kind in pieces if kind == _UNKNOWN), None)
    tokenizer = Tokenizer(
        models.BPE(
            vocab={text: i for i, (text, _, _) in enumerate(pieces)},
            merges=_merges(pieces),
            unk_token=unknown,
            fuse_unk=True,
            byte_fallback=bool(trainer.get(35, 0)),
        )
    )
    steps = [normalizers.Lowercase(), *([normalizers.Precompiled(charsmap)] if charsmap else [])]
    tokenizer.normalizer = normalizers.Sequence(steps)
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.WhitespaceSplit(), pre_tokenizers.Metaspace(replacement="▁", prepend_scheme="always")]
    )
    return tokenizer
