"""Read published torch checkpoints, and write a folder that `ovseg.load` takes.

A torch checkpoint is a pickle, and reading a pickle can run any code. torch's restricted reader refuses what is more than data; the
unrestricted one is used only where the caller says so.
"""

from __future__ import annotations

import dataclasses
import json
import os
import pickle
import re
import shutil
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ovseg.errors import OutputError, WeightsError
from ovseg.integrity import sha256_of
from ovseg.registry import SEAL, ModelCard, seal_of

if TYPE_CHECKING:
    from torch import Tensor

WEIGHTS = "model.safetensors"
"""Name of the weights in a written folder."""


def read_checkpoint(path: Path, allow_pickle: bool = False, inert: Sequence[type] = ()) -> Any:
    """Read a torch checkpoint.

    Args:
        path: The file.
        allow_pickle: Whether a file that is more than data may be read all the same, which can run code from it.
        inert: Classes beyond torch's own list that hold data and do nothing when read.

    Raises:
        WeightsError: If the file is not there, is damaged, or is more than data and `allow_pickle` is false.
    """
    import torch

    try:
        with torch.serialization.safe_globals(list(inert)):
            return torch.load(path, map_location="cpu", weights_only=True)
    except FileNotFoundError as error:
        raise WeightsError(f"The checkpoint {path} is not there.") from error
    except pickle.UnpicklingError as error:
        if not allow_pickle:
            named = re.search(r"GLOBAL (\S+)", str(error))
            raise WeightsError(
                f"{path} holds more than tensors and plain data ({named[1] if named else 'or is damaged'}), so reading it could run code. "
                "If you trust where it came from, pass allow_pickle=True."
            ) from error
    except Exception as error:  # torch's reader does not check what it reads: damaged bytes raise anything
        raise WeightsError(f"{path} is no torch checkpoint, or is damaged: {error}. Get it again.") from error
    try:
        return torch.load(path, map_location="cpu", weights_only=False)
    except Exception as error:  # unpickling can raise anything
        raise WeightsError(f"{path} is no torch checkpoint, or is damaged: {error}. Get it again.") from error


def card_text(card: ModelCard) -> str:
    """Write a card as Markdown: its front matter, one JSON value a line and sealed with its hash, then its prose."""
    values = {field.name: getattr(card, field.name) for field in dataclasses.fields(card) if field.name != "text"}
    lines = ["library_name: ovseg", "pipeline_tag: image-segmentation"]
    lines += [f"{key}: {json.dumps(value)}" for key, value in values.items() if value is not None]
    return "\n".join(["---", *lines, f'{SEAL}: "{seal_of(chr(10).join(lines))}"', "---", card.text])


def check_target(out: Path) -> None:
    """Refuse a folder that cannot be made or has something in it, before the work is done.

    Raises:
        OutputError: In that case.
    """
    if out.is_dir():
        if any(out.iterdir()):
            raise OutputError(f"The folder {str(out)!r} is not empty. Name a new one.")
    elif os.path.lexists(out):
        raise OutputError(f"{str(out)!r} is there and is no folder. Name a new one.")
    if not out.absolute().parent.is_dir():
        raise OutputError(f"The folder {str(out.absolute().parent)!r} does not exist; create it first.")


@contextmanager
def new_folder(out: Path) -> Iterator[Path]:
    """Give a folder to write to, which gets its name when it is complete, and is gone if anything fails.

    Args:
        out: Its name; there must be nothing of that name, or an empty folder. The folder that it is in exists.

    Yields:
        Where to write for now.

    Raises:
        OutputError: If it cannot be written.
    """
    out = out.absolute()
    try:
        with tempfile.TemporaryDirectory(dir=out.parent, prefix=f".{out.name}-") as scratch:
            folder = Path(scratch) / "model"
            folder.mkdir()
            yield folder
            if out.is_dir():
                out.rmdir()  # it is empty
            folder.rename(out)
    except OutputError:
        raise
    except OSError as error:
        raise OutputError(f"Cannot write {str(out)!r}: {error.strerror or error}.") from error


def write_model(out: Path, tensors: Mapping[str, Tensor], card: ModelCard, copies: Mapping[str, Path]) -> None:
    """Write a folder with weights, other files and a card; all of it or nothing.

    Args:
        out: The folder; it must not exist, or be empty.
        tensors: Name -> tensor.
        card: Its files, hashes and size are filled in here.
        copies: Role -> file to copy.

    Raises:
        OutputError: If the folder has something in it, or cannot be written.
    """
    from safetensors import SafetensorError
    from safetensors.torch import save_file

    check_target(out)
    try:
        with new_folder(out) as folder:
            save_file({name: value.detach().contiguous() for name, value in tensors.items()}, folder / WEIGHTS)
            for file in copies.values():
                shutil.copyfile(file, folder / file.name)
            files = {"weights": WEIGHTS, **{role: file.name for role, file in copies.items()}}
            full = dataclasses.replace(
                card,
                files=files,
                sha256={name: sha256_of(folder / name) for name in files.values()},
                megabytes=round(sum(value.numel() for value in tensors.values()) * 4 / 1e6, 1),
            )
            (folder / "card.md").write_text(card_text(full), "utf-8")
    except SafetensorError as error:
        raise OutputError(f"Cannot write {str(out)!r}: {error}.") from error
