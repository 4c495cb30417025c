"""Turn a C-RADIO checkpoint and SigLIP 2's text tower into one folder: `ovseg convert radio CKPT TEXT OUT`.

CHECKPOINT is the file of torch.hub, for example c-radio_v3-b_half.pth.tar of huggingface.co/nvidia/C-RADIOv3-B: the only published
file with the adaptors. Beside tensors it holds an `argparse.Namespace`, which is data, so torch's restricted reader takes it as far as
public code tells; other objects need --allow-pickle. TEXT is a folder with the safetensors and the tokenizer.json of
google/siglip2-so400m-patch16-naflex (adaptor "siglip2") or google/siglip2-giant-opt-patch16-384 (adaptor "siglip2-g").
"""

from __future__ import annotations

import argparse
import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ovseg.export.checkpoints import read_checkpoint, write_model

from ovseg.errors import WeightsError
from ovseg.registry import find_card

if TYPE_CHECKING:
    from torch import Tensor

_PARTS = ("base_model.", "input_conditioner.", "_feature_normalizer.", "_heads.")  # the rest is of training, or of other teachers
_EMBEDDER = "base_model.patch_generator.embedder.weight"
CLASSIFY = {"size": 512, "fit": "crop"}
"""How images are fitted for classification: the size that NVIDIA names as preferred for C-RADIOv3."""


def convert_radio(checkpoint: str | Path, text: str | Path, out: str | Path, adaptor: str = "siglip2", allow_pickle: bool = False) -> None:
    """Write a folder for `ovseg.load` from published files.

    Args:
        checkpoint: NVIDIA's torch.hub file.
        text: Folder with SigLIP 2's safetensors and tokenizer.json.
        out: Folder to write; it must not exist, or be empty. It gets model.safetensors, tokenizer.json and card.md.
        adaptor: Which adaptor to keep: "siglip2" or "siglip2-g".
        allow_pickle: Whether to read a checkpoint that holds more than data, which can run code from it.

    Raises:
        WeightsError: If a file is missing or damaged, or has other tensors than the model.
        OutputError: If the folder cannot be written.
    """
    from ovseg.models.radio import VARIANTS, build

    content = read_checkpoint(Path(checkpoint), allow_pickle, (argparse.Namespace,))
    tensors, summary = select(content, adaptor)
    if _EMBEDDER not in tensors:
        raise WeightsError(f"{checkpoint} has no tensor {_EMBEDDER}: it is no C-RADIO ViT checkpoint of torch.hub.")
    width = tensors[_EMBEDDER].shape[0]
    variant = next((name for name, sizes in VARIANTS.items() if sizes.width == width), None)
    if variant is None:
        raise WeightsError(f"{checkpoint} is a C-RADIO of width {width}; known are {', '.join(VARIANTS)}.")
    folder = Path(text)
    tensors.update(read_text_tower(folder))
    card = find_card(f"radseg-{variant.replace('_', '-')}")
    options = {**card.options, "variant": variant, "adaptor": adaptor, "summary_token": summary}
    network = build(options, tensors)  # refuses what does not fit
    card = dataclasses.replace(
        card,
        embed_dim=network.text_model.head.out_features,
        options=options,
        classify={} if summary is None else CLASSIFY,
        source={},
    )
    write_model(Path(out), tensors, card, {"tokenizer": folder / "tokenizer.json"})


def select(checkpoint: Any, adaptor: str) -> tuple[dict[str, Tensor], int | None]:
    """Pick the tensors of the backbone and of one adaptor from a torch.hub checkpoint.

    Args:
        checkpoint: What the file holds: "state_dict" or "state_dict_ema", and "args" with the list of teachers.
        adaptor: Name of a teacher. Older files number the adaptors by teacher instead of naming them.

    Returns:
        The tensors, named as in the file but for numbers; and the place of the adaptor's summary among the first tokens, if the file
        tells.
    """
    from ovseg.models.radio import is_used, published_name

    state = checkpoint.get("state_dict_ema", checkpoint.get("state_dict")) if isinstance(checkpoint, Mapping) else None
    if not isinstance(state, Mapping):
        raise WeightsError("This is no C-RADIO checkpoint of torch.hub: it has no state_dict.")
    args = checkpoint.get("args")
    teachers = list(getattr(args, "teachers", None) or [])
    names = [str(teacher.get("name")) for teacher in teachers]
    if names and adaptor not in names:
        raise WeightsError(f"The checkpoint has no adaptor {adaptor!r}; it has {', '.join(dict.fromkeys(names))}.")
    place = names.index(adaptor) if names else None
    numbered = f"_heads.{place}."
    tensors: dict[str, Tensor] = {}
    for name, value in state.items():
        full = published_name(name)
        if full.startswith(numbered):
            full = f"_heads.{adaptor}.{full.removeprefix(numbered)}"
        if full.startswith(_PARTS) and is_used(full, adaptor):
            tensors[full] = value
    if place is None:
        return tensors, None
    return tensors, int(teachers[place].get("token_slot", place)) if getattr(args, "cls_token_per_teacher", True) else 0


def read_text_tower(folder: Path) -> dict[str, Tensor]:
    """Read the tensors of SigLIP 2's text tower from the safetensors in a folder, in one file or several."""
    from safetensors import SafetensorError, safe_open

    if not (folder / "tokenizer.json").is_file():
        raise WeightsError(f"{folder} has no tokenizer.json. Download it from the same repository as the text tower's weights.")
    tensors: dict[str, Tensor] = {}
    for path in sorted(folder.glob("*.safetensors")):
        try:
            with safe_open(path, framework="pt") as file:
                tensors.update({name: file.get_tensor(name) for name in file.keys() if name.startswith("text_model.")})  # noqa: SIM118
        except (OSError, SafetensorError) as error:
            raise WeightsError(f"The weights {path} cannot be read: {error}. Get them again.") from error
    if not tensors:
        raise WeightsError(f"{folder} has no .safetensors file with a text tower (tensors text_model.*).")
    return tensors


# ------------------------------------------------------------------------------------------------------------- command line


def declare(parser: argparse.ArgumentParser) -> None:
    """Declare the arguments of `ovseg convert radio`."""
    parser.add_argument("checkpoint", type=Path, metavar="CKPT", help="NVIDIA's file, for example c-radio_v3-b_half.pth.tar")
    parser.add_argument("text", type=Path, metavar="TEXT", help="folder with the safetensors and tokenizer.json of SigLIP 2")
    parser.add_argument("out", type=Path, metavar="OUT", help="folder to make")
    parser.add_argument("--adaptor", default="siglip2", help="which adaptor to keep (siglip2)")
    parser.add_argument("--allow-pickle", action="store_true", help="run whatever code the file contains, if it holds more than tensors")


def run(options: argparse.Namespace) -> str:
    """Convert as `declare` reads it, and return what there is to say."""
    convert_radio(options.checkpoint, options.text, options.out, options.adaptor, options.allow_pickle)
    return f"{options.out}: C-RADIO with its {options.adaptor} adaptor"
