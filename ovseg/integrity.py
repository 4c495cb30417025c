"""Are these the files of a model, whole and unaltered? Names, sizes and hashes."""

from __future__ import annotations

import hashlib
import os
import re
from pathlib import Path, PurePosixPath
from typing import Any

from ovseg.errors import WeightsError
from ovseg.tensors import read_header

KINDS = (".safetensors", ".json", ".txt", ".md", ".onnx", ".data", ".model")  # .onnx.data: tensors of a large graph; .model: SentencePiece
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
    if path.suffix == ".safetensors":
        try:
            read_header(path)
        except ValueError as error:
            return str(error)
    sha256 = sha256.lower()
    if not sha256 or (trust_name and path.is_symlink() and Path(os.readlink(path)).name == sha256):
        return ""
    got = sha256_of(path)
    return "" if got == sha256 else f"its sha256 is {got}, expected {sha256}"
