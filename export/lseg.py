"""Turn LSeg's published checkpoint into a folder that `ovseg.load` takes: `ovseg convert lseg demo_e200.ckpt FOLDER`.

The checkpoint is a pickle that PyTorch Lightning wrote, with CLIP's image tower, an optimizer and half-precision tensors in it. The
folder holds what the network needs, in float32, and a model card.
"""

from __future__ import annotations

import argparse
import logging
import pickle
import zipfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ovseg.export.checkpoints import check_target, write_model

from ovseg.errors import InvalidArgumentError, MissingDependencyError, WeightsError
from ovseg.registry import ModelCard

if TYPE_CHECKING:
    from torch import Tensor

    from ovseg.models.lseg import LSeg

logger = logging.getLogger(__name__)

PREPROCESS: Mapping[str, Any] = {
    "mean": [0.5, 0.5, 0.5], "std": [0.5, 0.5, 0.5], "short_side": 480, "max_area": 460800, "multiple": 32, "resample": "bilinear",
    "square": None,
}  # fmt: skip
"""Arguments of `Preprocess` for every LSeg network."""
STRIDE = 2
"""Input pixels per cell of the feature map."""

_CHUNK = 1 << 20
_NAMED = 5  # tensors or classes that a message names
_LIGHTNING = ("pytorch_lightning.", "lightning.", "lightning_fabric.")  # packages whose objects say nothing about the network
_HEAD_BLOCK = "scratch.head_block."
_HYPER_PARAMETERS = ("arch_option", "block_depth", "activation")


@dataclass(frozen=True)
class Conversion:
    """What was converted.

    Attributes:
        folder: Where the model is now.
        options: Backbone, kind, depth and activation of the network.
        tensors: How many tensors were written.
        unused: How many known tensors were left away because the output does not depend on them.
        unexpected: Names of tensors that are no part of LSeg; they were left away too.
        megabytes: Size of the weights.
    """

    folder: Path
    options: Mapping[str, Any]
    tensors: int
    unused: int
    unexpected: tuple[str, ...]
    megabytes: float

    def format(self) -> str:
        """Say it in a few lines."""
        said = ", ".join(f"{key} {value}" for key, value in self.options.items())
        lines = [
            f"{self.folder}: LSeg with {said}",
            f"  {self.tensors} tensors, {self.megabytes:.0f} MB; {self.unused} left away that the output does not depend on",
        ]
        if self.unexpected:
            lines.append(f"  {len(self.unexpected)} left away that are no part of LSeg: {_some(self.unexpected)}")
        return "\n".join(lines)


def convert_lseg(
    checkpoint: Path,
    out: Path,
    allow_pickle: bool = False,
    arch_option: int | None = None,
    block_depth: int | None = None,
    activation: str | None = None,
) -> Conversion:
    """Convert a checkpoint of the code published with LSeg.

    Args:
        checkpoint: The file, for example demo_e200.ckpt.
        out: Folder to make; it may exist if it is empty. It appears when it is complete, or not at all.
        allow_pickle: Read a checkpoint that holds more than tensors and plain values, which runs whatever code it contains.
        arch_option: Kind of head blocks: 1 "bottleneck", 2 "depthwise". None for what the checkpoint says. Like the following two it
            matters only where there are head blocks.
        block_depth: Passes of the head block, likewise.
        activation: "relu", "lrelu" or "tanh", likewise.

    Returns:
        What was done.

    Raises:
        WeightsError: If the file is damaged, of another model, or holds objects and `allow_pickle` is false.
        InvalidArgumentError: If the checkpoint does not say which head blocks it has, or the arguments contradict it.
        OutputError: If the folder cannot be written.
    """
    check_target(out)
    state, hyper_parameters = _read(checkpoint, allow_pickle)
    given = {"arch_option": arch_option, "block_depth": block_depth, "activation": activation}
    options = _options(checkpoint, state, hyper_parameters, given)
    module, unused, unexpected = _build(options, state)
    tensors = {name: value.contiguous() for name, value in module.state_dict().items()}
    megabytes = round(sum(value.nbytes for value in tensors.values()) / 1e6, 1)
    card = _card(out.absolute().name, options, module.clip_pretrained.text_projection.shape[1], checkpoint.name)
    logger.info("Writing %.0f MB.", megabytes)
    write_model(out, tensors, card, {})
    return Conversion(out, options, len(tensors), unused, unexpected, megabytes)


# --------------------------------------------------------------------------------------------------------------------- read


def _read(path: Path, allow_pickle: bool) -> tuple[dict[str, Tensor], Mapping[str, Any]]:
    """Read a checkpoint: its tensors, named without "net.", and its hyper-parameters ({} where it has none)."""
    try:
        import torch
    except ImportError as error:
        raise MissingDependencyError("Converting needs torch: pip install 'ovseg[torch]'") from error
    _check_archive(path)
    try:
        with torch.serialization.safe_globals(_stand_ins(path)):
            content = torch.load(path, map_location="cpu", weights_only=True, mmap=True)
    except pickle.UnpicklingError as error:
        if not allow_pickle:
            raise WeightsError(
                f"{path} holds more than tensors and plain values{_named(_objects(path))}, so reading it can run any code that its "
                "author put there. If you trust where it comes from, convert it with --allow-pickle (allow_pickle=True): that runs "
                "whatever code the file contains."
            ) from error
        content = _read_objects(path)
    except (RuntimeError, OSError, EOFError, ValueError, KeyError, AttributeError, TypeError, IndexError) as error:
        raise WeightsError(f"{path} is damaged or no checkpoint of PyTorch: {_first_line(error)}. Download it again.") from error

    state = content.get("state_dict", content) if isinstance(content, Mapping) else None
    if not isinstance(state, Mapping) or not state or not all(isinstance(value, torch.Tensor) for value in state.values()):
        raise WeightsError(f"{path} is of another model: it has no state_dict of tensors. Give a checkpoint of LSeg.")
    hyper_parameters = content.get("hyper_parameters", {}) if state is not content else {}
    if isinstance(hyper_parameters, argparse.Namespace):
        hyper_parameters = vars(hyper_parameters)
    from ovseg.models.lseg import PREFIX

    tensors = {str(name).removeprefix(PREFIX): value for name, value in state.items()}
    return tensors, hyper_parameters if isinstance(hyper_parameters, Mapping) else {}


def _check_archive(path: Path) -> None:
    """See that a file is a whole zip archive, which PyTorch's files have been since version 1.6."""
    from tqdm import tqdm

    try:
        size = path.stat().st_size
        with path.open("rb") as file:
            start = file.read(512)
    except OSError as error:
        raise WeightsError(f"The checkpoint {path} cannot be read: {error.strerror or error}.") from error
    if start.lstrip()[:15].lower().startswith((b"<!doctype html", b"<html")):
        raise WeightsError(f"{path} is a web page and no checkpoint: the download stopped at a question. Download it with a browser.")
    if not start.startswith(b"PK\x03\x04"):
        raise WeightsError(f"{path} is no checkpoint of PyTorch 1.6 or later. Give the .ckpt file that LSeg's authors published.")
    try:
        with zipfile.ZipFile(path) as archive, tqdm(total=size, desc="check", unit="B", unit_scale=True, delay=2, leave=False) as bar:
            for entry in archive.infolist():
                with archive.open(entry) as file:  # reading to the end compares the checksum
                    while part := file.read(_CHUNK):
                        bar.update(len(part))
    except (zipfile.BadZipFile, EOFError, OSError, NotImplementedError, RuntimeError) as error:
        raise WeightsError(f"{path} is cut short or damaged ({_first_line(error)}). Download it again.") from error


class _StandIn:
    """Takes the place of a class of PyTorch Lightning: it is made of anything, and does nothing."""

    def __new__(cls, *_: Any) -> _StandIn:
        return super().__new__(cls)

    def __setstate__(self, state: Any) -> None:
        """Forget what the object knew."""


def _stand_ins(path: Path) -> list[Any]:
    """Say how to read the classes that Lightning puts into its checkpoints, without Lightning and without its code."""
    lightning = [name for name in _objects(path) if name.startswith(_LIGHTNING)]
    return [argparse.Namespace, *((dict if name.endswith(".AttributeDict") else _StandIn, name) for name in lightning)]


def _objects(path: Path) -> list[str]:
    """Name the classes in a checkpoint that are not plain, as far as they can be found without running anything."""
    import torch

    try:
        return sorted(torch.serialization.get_unsafe_globals_in_checkpoint(path))
    except Exception:  # the pickle is stranger than that; torch.load will say so
        return []


def _named(objects: list[str]) -> str:
    strange = [name for name in objects if not name.startswith(_LIGHTNING)]
    return f" ({_some(strange)})" if strange else ""


def _read_objects(path: Path) -> Any:
    """Read a checkpoint with whatever it holds. This runs code of the file."""
    import torch

    logger.warning("Running the code that %s contains, as asked.", path)
    try:
        return torch.load(path, map_location="cpu", weights_only=False, mmap=True)
    except ImportError as error:
        raise WeightsError(f"{path} holds objects of a package that is not installed: {error}. Install it to convert.") from error
    except Exception as error:  # code of others may raise anything
        raise WeightsError(f"The objects in {path} cannot be read: {_first_line(error)}. Try the versions that wrote them.") from error


def _first_line(error: BaseException) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0][:200].rstrip(".")


def _some(names: tuple[str, ...] | list[str]) -> str:
    return ", ".join(names[:_NAMED]) + (f" and {len(names) - _NAMED} more" if len(names) > _NAMED else "")


# ------------------------------------------------------------------------------------------------------------------ network


def _options(path: Path, state: Mapping[str, Tensor], hyper_parameters: Mapping[str, Any], given: Mapping[str, Any]) -> dict[str, Any]:
    """Find out which network the tensors are of: from their shapes, else from the arguments, else from the hyper-parameters."""
    from ovseg.models.lseg import check_options

    backbone = _backbone(path, state)
    if not any(name.startswith(_HEAD_BLOCK) for name in state):
        if given["arch_option"]:
            raise InvalidArgumentError(f"{path} has no head blocks; got arch_option {given['arch_option']}. Leave it out.")
        return check_options({"backbone": backbone})
    known = {key: given[key] if given[key] is not None else hyper_parameters.get(key) for key in _HYPER_PARAMETERS}
    missing = [key for key, value in known.items() if value is None]
    if missing:
        raise InvalidArgumentError(
            f"{path} has head blocks and does not say their {', '.join(missing)}. Give what it was trained with: "
            + " ".join(f"--{key.replace('_', '-')}" for key in missing)
            + "."
        )
    if known["arch_option"] == 0:
        raise InvalidArgumentError(f"{path} has head blocks; arch_option must be 1 or 2, got 0.")
    return check_options({"backbone": backbone, **known})


def _backbone(path: Path, state: Mapping[str, Tensor]) -> str:
    from ovseg.models.lseg import VARIANTS

    patches, text = state.get("pretrained.model.patch_embed.proj.weight"), state.get("clip_pretrained.text_projection")
    if patches is None or text is None:
        lacks = "an image tower" if patches is None else "a text tower"
        raise WeightsError(f"{path} is of another model: it has no tensors of {lacks} of LSeg ({_some(sorted(state))}).")
    for name, variant in VARIANTS.items():
        width, patch = variant.width, variant.patch
        if tuple(patches.shape) == (width, 3, patch, patch) and tuple(text.shape) == (variant.text[0], variant.text[3]):
            return name
    raise WeightsError(
        f"{path} is of another model: patches of {tuple(patches.shape)} and a text projection of {tuple(text.shape)} are none of "
        f"{', '.join(VARIANTS)}."
    )


def _build(options: Mapping[str, Any], state: Mapping[str, Tensor]) -> tuple[LSeg, int, tuple[str, ...]]:
    """Put the tensors into the network; return it, how many it does not need, and the names that are no part of it."""
    import torch

    from ovseg.models.lseg import UNUSED, build

    with torch.device("meta"):
        needed = build(options, None).state_dict().keys()
    rest = [name for name in state if name not in needed]
    unexpected = tuple(sorted(name for name in rest if not name.startswith(UNUSED)))
    module = build(options, {name: value for name, value in state.items() if name in needed})
    return module, len(rest) - len(unexpected), unexpected


# -------------------------------------------------------------------------------------------------------------------- write


def _card(name: str, options: Mapping[str, Any], embed_dim: int, origin: str) -> ModelCard:
    from ovseg.models.lseg import LOGIT_SCALE

    text = (
        f'\n# {name}\n\nLSeg (Li et al., "Language-driven Semantic Segmentation", ICLR 2022), converted from `{origin}`. Nobody has stated '
        "a licence for the published weights; the code they come with is under the MIT licence. The words of all things in the picture, "
        'or "other", should be among the labels.\n'
    )
    return ModelCard(
        name=name, family="lseg", license="unknown", embed_dim=embed_dim, stride=STRIDE, logit_scale=LOGIT_SCALE, templates="none",
        preprocess=PREPROCESS, files={}, sha256={}, scores={}, megabytes=0.0, options=options, align_corners=True, text=text,
    )  # fmt: skip


# ------------------------------------------------------------------------------------------------------------- command line


def declare(parser: argparse.ArgumentParser) -> None:
    """Declare the arguments of `ovseg convert lseg`."""
    parser.add_argument("checkpoint", type=Path, metavar="CKPT", help="the published file, for example demo_e200.ckpt")
    parser.add_argument("out", type=Path, metavar="OUT", help="folder to make")
    parser.add_argument("--allow-pickle", action="store_true", help="run whatever code the file contains, if it holds more than tensors")
    parser.add_argument("--arch-option", type=int, choices=(1, 2), help="head blocks: 1 bottleneck, 2 depthwise (what the file says)")
    parser.add_argument("--block-depth", type=int, help="passes of the head block (what the file says)")
    parser.add_argument("--activation", choices=("relu", "lrelu", "tanh"), help="of the head block (what the file says)")


def run(options: argparse.Namespace) -> str:
    """Convert as `declare` reads it, and return what there is to say."""
    return convert_lseg(
        options.checkpoint, options.out, options.allow_pickle, options.arch_option, options.block_depth, options.activation
    ).format()
