"""Are these the files of a model, whole and unaltered? Names, sizes and hashes."""

from __future__ import annotations

import hashlib
import json
import os
import re
from pathlib import Path, PurePosixPath
from typing import Any

from ovseg.errors import WeightsError

KINDS = (".safetensors", ".json", ".txt", ".md", ".onnx", ".data", ".model")  # .onnx.data: tensors of a large graph; .model: SentencePiece
_MAX_HEADER = 100_000_000  # bytes; the limit of safetensors itself
PICKLES = (".bin", ".pt", ".pth", ".ckpt", ".pkl", ".pickle", ".joblib")


def check_name(name: Any, origin: str) -> None:
    """Refuse file names that lead elsewhere, and kinds of files that could run a program.

    Args:
        name: What should be a path relative to a folder or a repository.
        origin: What names it, for messages.

    Raises:
        WeightsError: If it is refused.
    """
    if not isinstance(name, str) or re.search(r"[\\:\0]", name) or any(part in ("", ".", "..") for part in name.split("/")):
        raise WeightsError(f"{origin}: a file is named by a relative path that stays inside; got {name!r}.")
    suffix = PurePosixPath(name).suffix.lower()
    if suffix in PICKLES:
        raise WeightsError(
            f"{origin}: {name} is a pickle, which could run any program when it is read; ovseg takes .safetensors only. Look for a "
            "safetensors file in the repository, or convert it on a machine where that does no harm."
        )
    if suffix not in KINDS:
        raise WeightsError(f"{origin}: {name} is not a kind of file that models are made of; expected {', '.join(KINDS)}.")


def sha256_of(path: Path) -> str:
    """Hash a file, in hexadecimal digits."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def file_problem(path: Path, sha256: str = "", *, trust_name: bool = False) -> str:
    """Say what is wrong with a file; "" for nothing.

    Args:
        path: An existing file. The size of a safetensors file is compared with its header in any case.
        sha256: Hash that it must have; "" for any.
        trust_name: Whether a link to a file that is named after the hash need not be read. Caches of huggingface_hub look so, where
            the name is the hash that the server told.
    """
    problem = _truncated(path) if path.suffix == ".safetensors" else ""
    sha256 = sha256.lower()
    if problem or not sha256 or (trust_name and path.is_symlink() and Path(os.readlink(path)).name == sha256):
        return problem
    got = sha256_of(path)
    return "" if got == sha256 else f"its sha256 is {got}, expected {sha256}"


def _truncated(path: Path) -> str:
    """Compare the size of a safetensors file with its header: 8 bytes of length, JSON, then the tensors at data_offsets.

    Source: https://huggingface.co/docs/safetensors/index#format.
    """
    size = path.stat().st_size
    try:
        with path.open("rb") as file:
            length = int.from_bytes(file.read(8), "little")
            if size < 8 or length > size - 8:
                return f"it has {size} bytes, fewer than its own header says, or is not a safetensors file"
            if length > _MAX_HEADER:
                return f"its header would take {length} bytes; safetensors allows {_MAX_HEADER}"
            header = json.loads(file.read(length))
        end = max((entry["data_offsets"][1] for key, entry in header.items() if key != "__metadata__"), default=0)
        expected = 8 + length + int(end)
    except (ValueError, LookupError, TypeError, AttributeError, RecursionError, OverflowError):
        return "its header is not one of a safetensors file"
    return "" if size == expected else f"it has {size} bytes, and its header speaks of {expected}"
