"""Join Meta's files of dino.txt into a folder that `ovseg.load` takes: `ovseg convert dinotxt BACKBONE HEAD OUT [--text FILE]`."""

from __future__ import annotations

import argparse
import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ovseg.export.checkpoints import check_target, read_checkpoint, write_model

from ovseg.errors import WeightsError
from ovseg.registry import find_card

if TYPE_CHECKING:
    from torch import Tensor


def convert_dinotxt(backbone: Path, head: Path, out: Path, text: Path | None = None, allow_pickle: bool = False) -> str:
    """Write a folder for `ovseg.load` from published files.

    Args:
        backbone: The DINO network.
        head: DINOv3: the file of vision head and text encoder. DINOv2: the vision head.
        out: Folder to make; it must not exist, or be empty.
        text: DINOv2: the text encoder; None for DINOv3.
        allow_pickle: Whether to read files that hold more than data, which can run code from them.

    Returns:
        The name of the model.

    Raises:
        WeightsError: If a file is missing or damaged, or has other tensors than the model.
        OutputError: If the folder cannot be written.
    """
    from ovseg.models.dinotxt import build, merge_files

    check_target(out)
    card = find_card("dinotxt-dinov3-l16" if text is None else "dinotxt-dinov2-l14")
    parts = [_tensors(read_checkpoint(path, allow_pickle), path) for path in (backbone, head, text) if path is not None]
    state = merge_files(*parts)
    build(card.options, state)  # refuses what does not fit
    write_model(out, state, dataclasses.replace(card, source={}), {})
    return card.name


def _tensors(content: Any, path: Path) -> Mapping[str, Tensor]:
    import torch

    if not isinstance(content, Mapping) or not all(isinstance(value, torch.Tensor) for value in content.values()):
        raise WeightsError(f"{path} is no state dict of tensors. Give the file as Meta publishes it.")
    return content


# ------------------------------------------------------------------------------------------------------------- command line


def declare(parser: argparse.ArgumentParser) -> None:
    """Declare the arguments of `ovseg convert dinotxt`."""
    parser.add_argument("backbone", type=Path, metavar="BACKBONE", help="the DINO file, for example dinov2_vitl14_reg4_pretrain.pth")
    parser.add_argument("head", type=Path, metavar="HEAD", help="the dino.txt file: vision head, with DINOv3 the text encoder too")
    parser.add_argument("out", type=Path, metavar="OUT", help="folder to make")
    parser.add_argument("--text", type=Path, metavar="FILE", help="the text encoder, of DINOv2 only")
    parser.add_argument("--allow-pickle", action="store_true", help="run whatever code the files contain, if they hold more than tensors")


def run(options: argparse.Namespace) -> str:
    """Convert as `declare` reads it, and return what there is to say."""
    name = convert_dinotxt(options.backbone, options.head, options.out, options.text, options.allow_pickle)
    return f"{options.out}: {name}"
