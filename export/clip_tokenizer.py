"""Tokenizers of torch models as one tokenizer.json each, which the `tokenizers` package reads alone.

CLIP's byte-pair encoding comes with open_clip as a list of merges; the others are published as files already. A file says where texts
are cut and padded; what it cannot say (how open_clip cleans a text) goes to the card.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ovseg.errors import WeightsError
from ovseg.models.clip_text import CONTEXT

_WORDS = r"'s|'t|'re|'ve|'m|'ll|'d|[\p{L}]+|[\p{N}]|[^\s\p{L}\p{N}]+"
"""What CLIP takes for a word (Radford et al., 2021; the pattern of open_clip.tokenizer.SimpleTokenizer)."""


def clip_tokenizer(context: int = CONTEXT) -> Any:
    """Make CLIP's tokenizer: a `tokenizers.Tokenizer` that gives start, at most `context` - 2 tokens, and end; no padding.

    Texts must be cleaned before ("lower" in `ovseg.file_tokenizer`). Its lower case is there for those who use the file alone.
    """
    from open_clip.tokenizer import SimpleTokenizer
    from tokenizers import Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors

    original = SimpleTokenizer()
    merges = sorted(original.bpe_ranks, key=original.bpe_ranks.__getitem__)
    model = models.BPE(vocab=dict(original.encoder), merges=merges, end_of_word_suffix="</w>", fuse_unk=False)
    tokenizer = Tokenizer(model)
    tokenizer.normalizer = normalizers.Sequence([normalizers.NFC(), normalizers.Replace(Regex(r"\s+"), " "), normalizers.Lowercase()])
    split = pre_tokenizers.Split(Regex(_WORDS), behavior="removed", invert=True)
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence([split, pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)])
    tokenizer.decoder = decoders.ByteLevel()
    start, end = original.sot_token_id, original.eot_token_id
    names = {index: token for token, index in original.encoder.items() if index in (start, end)}
    tokenizer.post_processor = processors.TemplateProcessing(
        single=f"{names[start]} $A {names[end]}", special_tokens=[(names[start], start), (names[end], end)]
    )
    tokenizer.enable_truncation(context)
    return tokenizer


def _open(path: Path) -> Any:
    from tokenizers import Tokenizer

    try:
        return Tokenizer.from_file(str(path))
    except Exception as error:  # the package raises nothing narrower
        raise WeightsError(f"{path} is no tokenizer ({error}). Download it again.") from error


def _tips(path: Path) -> Any:
    """Return TIPSv2's tokenizer: lower case, no marks, cut at its context."""
    from tokenizers import Tokenizer

    from ovseg.models.spm import read_byte_pairs
    from ovseg.models.tips import CONTEXT as context

    data = path.read_bytes()
    tokenizer: Any = _open(path) if data.lstrip()[:1] == b"{" else read_byte_pairs(data, str(path))
    tokenizer = Tokenizer.from_str(_without_marks(tokenizer.to_str()))
    tokenizer.no_padding()
    tokenizer.enable_truncation(context)
    return tokenizer


def _without_marks(content: str) -> str:
    """Remove from a tokenizer.json what adds marks of start and end."""
    return json.dumps({**json.loads(content), "post_processor": None})


def _from_hub(path: Path, config: Path | None, text: Mapping[str, Any]) -> tuple[Any, dict[str, Any]]:
    """Return the tokenizer of an open_clip tower that has one of the Hugging Face Hub, and what the card must say."""
    from ovseg.models.clip_tokenizers import prepared_tokenizer

    extra = text.get("tokenizer_kwargs") or {}
    padding = "</s>" if re.search(r"SigLIP(?!2)", str(text["hf_tokenizer_name"])) else None
    length = int(text.get("context_length", CONTEXT))
    tokenizer, separator = prepared_tokenizer(path, config, length, bool(extra.get("strip_sep_token")), padding)
    return tokenizer, {"clean": str(extra.get("clean", "whitespace")), "zero": separator}


def write_tokenizer(family: str, options: Mapping[str, Any], files: Mapping[str, Path], out: Path) -> tuple[dict[str, Any], int | None]:
    """Write the tokenizer.json of a torch model.

    Args:
        family: Of the model.
        options: Of its card.
        files: "tokenizer" and "tokenizer_config" where it has such files.
        out: File to write.

    Returns:
        What the card must say of it (`ovseg.file_tokenizer`), and the length to which it pads all texts; None where it does not.

    Raises:
        WeightsError: If a file is missing or damaged.
    """
    facts: dict[str, Any] = {"clean": "lower"}
    if family == "tips":
        tokenizer, facts = _tips(_needed(files)), {"clean": "case", "needs_words": True}
    elif family == "clip":
        from ovseg.models.dense_clip import text_config

        text = text_config(options)
        if text.get("hf_tokenizer_name"):
            tokenizer, facts = _from_hub(_needed(files), files.get("tokenizer_config"), text)
        else:
            tokenizer = clip_tokenizer(int(text.get("context_length", CONTEXT)))
    else:
        tokenizer = clip_tokenizer()
    tokenizer.save(str(out), pretty=False)
    return {key: value for key, value in facts.items() if value is not None}, (tokenizer.padding or {}).get("length")


def _needed(files: Mapping[str, Path]) -> Path:
    if "tokenizer" not in files:
        raise WeightsError("This model reads texts with a file of its own, and none came: give tokenizer= (--tokenizer FILE).")
    return files["tokenizer"]
