from __future__ import annotations

import argparse
import hashlib
import json
import os
import sys
import types
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from ovseg.export import checkpoints
from ovseg.export import lseg as export
from ovseg.export.lseg import convert_lseg
from safetensors.torch import load_file
from synthetic import synthesise
from torch import Tensor

from ovseg.errors import InvalidArgumentError, OutputError, WeightsError
from ovseg.models import lseg
from ovseg.preprocess import Preprocess
from ovseg.registry import cards, parse_card

GOLDEN = Path(__file__).parent / "golden"
TINY = {
    "clip_vitl16_384": lseg.Variant(32, 2, (0, 1, 2, 3), 16, 4, (8, 16, 32, 32), (4, 2, 1, -2), (32, 1, 2, 16)),
    "clip_vitb32_384": lseg.Variant(24, 2, (0, 1, 2, 3), 32, 4, (8, 16, 24, 24), (8, 4, 2, 1), (32, 1, 2, 16)),
}
UNUSED = {
    "net.clip_pretrained.visual.proj": (16, 16), "net.clip_pretrained.logit_scale": (), "net.pretrained.model.head.weight": (10, 32),
    "net.pretrained.model.norm.bias": (32,), "net.scratch.refinenet4.resConfUnit1.bn1.running_var": (16,), "criterion.weight": (150,),
}  # fmt: skip


@pytest.fixture(autouse=True)
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    """Networks of the published layout, only smaller."""
    monkeypatch.setattr(lseg, "VARIANTS", TINY)
    monkeypatch.setattr(lseg, "FEATURES", 16)


class Witness:
    """An object in a pickle that leaves a trace when it is read."""

    def __init__(self, trace: Path) -> None:
        self.trace = trace

    def __reduce__(self) -> tuple[Callable[[str], Any], tuple[str]]:
        return os.mkdir, (str(self.trace),)


def network(backbone: str = "clip_vitl16_384", arch_option: int = 0) -> lseg.LSeg:
    module = lseg.build({"backbone": backbone, "arch_option": arch_option, "block_depth": 2, "activation": "tanh"}, None)
    synthesise(module)
    return module.eval().requires_grad_(False)


def lightning(module: lseg.LSeg, **more: Any) -> dict[str, Any]:
    """What Lightning saves after training: CLIP in half precision, an optimizer, and what the output does not need."""
    state = {f"net.{name}": value.half() if name.startswith("clip_pretrained.") else value for name, value in module.state_dict().items()}
    state.update({name: torch.ones(shape) for name, shape in UNUSED.items()})
    momentum = {i: {"momentum_buffer": torch.zeros(3)} for i in range(2)}
    return {
        "epoch": 200, "global_step": 1000, "pytorch-lightning_version": "1.3.5", "state_dict": state,
        "optimizer_states": [{"state": momentum, "param_groups": [{"lr": 0.004, "params": [0, 1]}]}], "lr_schedulers": [{}], **more,
    }  # fmt: skip


def save(content: Any, path: Path) -> Path:
    torch.save(content, path)
    return path


def left(folder: Path) -> list[str]:
    return sorted(entry.name for entry in folder.iterdir())


@pytest.mark.parametrize("backbone", list(TINY))
def test_convert(backbone: str, tmp_path: Path) -> None:
    module = network(backbone)
    checkpoint = save(lightning(module, hyper_parameters={"backbone": backbone, "arch_option": 0}), tmp_path / "demo.ckpt")
    report = convert_lseg(checkpoint, tmp_path / "model")
    assert left(tmp_path) == ["demo.ckpt", "model"]
    assert left(tmp_path / "model") == ["card.md", "model.safetensors"]
    assert report.options["backbone"] == backbone
    assert (report.tensors, report.unused, report.unexpected) == (len(module.state_dict()), len(UNUSED), ())

    tensors = load_file(tmp_path / "model" / "model.safetensors")
    assert set(tensors) == set(module.state_dict())
    assert {value.dtype for value in tensors.values()} == {torch.float32, torch.int64}
    for name, value in module.state_dict().items():
        expected = value.half().float() if name.startswith("clip_pretrained.") else value
        torch.testing.assert_close(tensors[name], expected, atol=0, rtol=0)

    card = parse_card((tmp_path / "model" / "card.md").read_text(), "card.md")
    assert (card.name, card.family, card.license, card.embed_dim, card.align_corners) == ("model", "lseg", "unknown", 16, True)
    assert card.files == {"weights": "model.safetensors"}
    digest = hashlib.sha256((tmp_path / "model" / "model.safetensors").read_bytes()).hexdigest()
    assert card.sha256 == {"model.safetensors": digest}
    assert card.logit_scale == pytest.approx(1 / 0.07)
    Preprocess(**card.preprocess)

    again = lseg.build(card.options, tensors).eval()
    images = torch.rand(1, 3, 64, 96)
    torch.testing.assert_close(again(images), module(images), atol=1e-6, rtol=0)
    assert images.shape[2] // again(images).shape[2] == card.stride


def test_plain_state_dict(tmp_path: Path) -> None:
    module = network()
    report = convert_lseg(save(module.state_dict(), tmp_path / "plain.pt"), tmp_path / "model")
    assert (report.tensors, report.unused) == (len(module.state_dict()), 0)


def test_real_layouts(monkeypatch: pytest.MonkeyPatch) -> None:
    """The names and shapes of the published networks are recognised and complete, and nothing in them is unknown."""
    monkeypatch.undo()
    for name, backbone, head in (("lseg_vitl16", "clip_vitl16_384", 0), ("lseg_vitb32_depthwise", "clip_vitb32_384", 2)):
        shapes = json.loads((GOLDEN / f"{name}.shapes.json").read_text())
        state = {key.removeprefix("net."): torch.empty(shape, device="meta") for key, shape in shapes.items()}
        given: dict[str, Any] = {"arch_option": None, "block_depth": None, "activation": None}
        if head:
            given = {"arch_option": head, "block_depth": 1, "activation": "relu"}
        options = export._options(Path(name), state, {}, given)
        assert (options["backbone"], options["arch_option"]) == (backbone, head)
        module, unused, unexpected = export._build(options, state)
        assert unexpected == ()
        assert unused + len(module.state_dict()) == len(shapes)


def test_unexpected_tensors_are_reported(tmp_path: Path) -> None:
    content = lightning(network())
    content["state_dict"]["net.auxlayer.weight"] = torch.zeros(2)
    report = convert_lseg(save(content, tmp_path / "a.ckpt"), tmp_path / "model")
    assert report.unexpected == ("auxlayer.weight",)
    assert "auxlayer.weight" in report.format()


def test_missing_tensors(tmp_path: Path) -> None:
    content = lightning(network())
    del content["state_dict"]["net.scratch.head1.bias"]
    with pytest.raises(WeightsError, match=r"1 tensors are missing \(scratch.head1.bias\)"):
        convert_lseg(save(content, tmp_path / "a.ckpt"), tmp_path / "model")
    assert left(tmp_path) == ["a.ckpt"]


# ------------------------------------------------------------------------------------------------------------- head blocks


@pytest.mark.parametrize("kind", [dict, lambda **values: argparse.Namespace(**values)])
def test_hyper_parameters(kind: Callable[..., Any], tmp_path: Path) -> None:
    hyper_parameters = kind(arch_option=1, block_depth=2, activation="tanh", data_path="../datasets")
    checkpoint = save(lightning(network(arch_option=1), hyper_parameters=hyper_parameters), tmp_path / "a.ckpt")
    report = convert_lseg(checkpoint, tmp_path / "model")
    assert report.options == {"backbone": "clip_vitl16_384", "arch_option": 1, "block_depth": 2, "activation": "tanh"}
    card = parse_card((tmp_path / "model" / "card.md").read_text(), "card.md")
    assert card.options == report.options
    again = convert_lseg(checkpoint, tmp_path / "other", block_depth=3)
    assert again.options["block_depth"] == 3


def test_head_blocks_that_nobody_describes(tmp_path: Path) -> None:
    checkpoint = save(lightning(network(arch_option=2)), tmp_path / "a.ckpt")
    with pytest.raises(InvalidArgumentError, match="--arch-option --block-depth --activation"):
        convert_lseg(checkpoint, tmp_path / "model")
    with pytest.raises(InvalidArgumentError, match="--activation"):
        convert_lseg(checkpoint, tmp_path / "model", arch_option=2, block_depth=1)
    with pytest.raises(InvalidArgumentError, match="must be 1 or 2"):
        convert_lseg(checkpoint, tmp_path / "model", arch_option=0, block_depth=1, activation="relu")
    report = convert_lseg(checkpoint, tmp_path / "model", arch_option=2, block_depth=1, activation="relu")
    assert report.options["arch_option"] == 2


def test_head_blocks_that_are_not_there(tmp_path: Path) -> None:
    with pytest.raises(InvalidArgumentError, match="no head blocks"):
        convert_lseg(save(lightning(network()), tmp_path / "a.ckpt"), tmp_path / "model", arch_option=1)


# ----------------------------------------------------------------------------------------------------------------- objects


def test_objects_are_not_read_unasked(tmp_path: Path) -> None:
    trace = tmp_path / "trace"
    checkpoint = save(lightning(network(), callbacks={"checkpoint": Witness(trace)}), tmp_path / "a.ckpt")
    with pytest.raises(WeightsError, match=r"mkdir.*--allow-pickle.*runs whatever code the file contains"):
        convert_lseg(checkpoint, tmp_path / "model")
    assert left(tmp_path) == ["a.ckpt"]
    report = convert_lseg(checkpoint, tmp_path / "model", allow_pickle=True)
    assert trace.is_dir()
    assert report.tensors


def test_lightning_is_not_needed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its checkpoints name its own classes; they are read without it, and without running anything."""
    trace = tmp_path / "trace"
    module = types.ModuleType("pytorch_lightning.stand_in")

    class ModelCheckpoint:
        pass

    class AttributeDict(dict[str, Any]):
        pass

    def leave_trace(path: str) -> None:
        os.mkdir(path)

    class Caller:
        def __reduce__(self) -> tuple[Callable[[str], None], tuple[str]]:
            return leave_trace, (str(trace),)

    for thing in (ModelCheckpoint, AttributeDict, leave_trace):
        thing.__module__, thing.__qualname__ = module.__name__, thing.__name__
        setattr(module, thing.__name__, thing)
    for name, entry in (("pytorch_lightning", types.ModuleType("pytorch_lightning")), (module.__name__, module)):
        monkeypatch.setitem(sys.modules, name, entry)
    content = lightning(
        network(arch_option=1),
        callbacks={ModelCheckpoint: {"best": ModelCheckpoint()}, "other": Caller()},
        hyper_parameters=AttributeDict(arch_option=1, block_depth=3, activation="relu"),
    )
    checkpoint = save(content, tmp_path / "a.ckpt")
    monkeypatch.delitem(sys.modules, module.__name__)
    report = convert_lseg(checkpoint, tmp_path / "model")
    assert report.options == {"backbone": "clip_vitl16_384", "arch_option": 1, "block_depth": 3, "activation": "relu"}
    assert not trace.exists()


def test_objects_that_cannot_be_read(tmp_path: Path) -> None:
    trace = tmp_path / "trace"
    trace.mkdir()  # so that reading the object fails
    checkpoint = save(lightning(network(), callbacks=Witness(trace)), tmp_path / "a.ckpt")
    with pytest.raises(WeightsError, match="cannot be read"):
        convert_lseg(checkpoint, tmp_path / "model", allow_pickle=True)


# ------------------------------------------------------------------------------------------------------------ broken files


def cut(content: bytes) -> bytes:
    return content[: len(content) // 2]


def flip(content: bytes) -> bytes:
    middle = len(content) // 2
    return content[:middle] + bytes([content[middle] ^ 255]) + content[middle + 1 :]


@pytest.mark.parametrize(
    ("damage", "says"),
    [
        (cut, "cut short or damaged"),
        (flip, "cut short or damaged"),
        (lambda _: b"", "no checkpoint"),
        (lambda _: b"hello" * 99, "no checkpoint"),
        (lambda _: b"\n<!DOCTYPE html><html>Google Drive can't scan this file", "web page"),
        (lambda content: content[:99], "cut short"),
    ],
)
def test_damaged_files(damage: Callable[[bytes], bytes], says: str, tmp_path: Path) -> None:
    checkpoint = save(lightning(network()), tmp_path / "a.ckpt")
    checkpoint.write_bytes(damage(checkpoint.read_bytes()))
    for allow_pickle in (False, True):
        with pytest.raises(WeightsError, match=says) as caught:
            convert_lseg(checkpoint, tmp_path / "model", allow_pickle=allow_pickle)
        assert "\n" not in str(caught.value)
    assert left(tmp_path) == ["a.ckpt"]


def test_file_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(WeightsError, match="No such file"):
        convert_lseg(tmp_path / "a.ckpt", tmp_path / "model")


def test_zip_that_is_no_checkpoint(tmp_path: Path) -> None:
    import zipfile

    with zipfile.ZipFile(tmp_path / "a.ckpt", "w") as archive:
        archive.writestr("readme.txt", "hello")
    with pytest.raises(WeightsError, match="no checkpoint"):
        convert_lseg(tmp_path / "a.ckpt", tmp_path / "model")


OTHERS: dict[str, Callable[[dict[str, Tensor]], Any]] = {
    "another network": lambda state: {"state_dict": {"conv.weight": torch.zeros(3)}},
    "ResNet-101": lambda state: {"state_dict": {name: v for name, v in state.items() if ".pretrained.model." not in name}},
    "another width": lambda state: {"state_dict": {**state, "net.pretrained.model.patch_embed.proj.weight": torch.zeros(7, 3, 16, 16)}},
    "no tensors": lambda state: {"state_dict": {"a": 1}},
    "no dict": lambda state: [1, 2],
    "empty": lambda state: {},
}


@pytest.mark.parametrize("kind", list(OTHERS))
def test_other_models(kind: str, tmp_path: Path) -> None:
    checkpoint = save(OTHERS[kind](lightning(network())["state_dict"]), tmp_path / "a.ckpt")
    with pytest.raises(WeightsError, match="of another model"):
        convert_lseg(checkpoint, tmp_path / "model")
    assert left(tmp_path) == ["a.ckpt"]


# -------------------------------------------------------------------------------------------------------------- the folder


def test_target(tmp_path: Path) -> None:
    checkpoint = save(lightning(network()), tmp_path / "a.ckpt")
    with pytest.raises(OutputError, match="not empty"):
        convert_lseg(checkpoint, tmp_path)
    with pytest.raises(OutputError, match="no folder"):
        convert_lseg(checkpoint, checkpoint)
    with pytest.raises(OutputError, match="does not exist"):
        convert_lseg(checkpoint, tmp_path / "no" / "model")
    (tmp_path / "empty").mkdir()
    convert_lseg(checkpoint, tmp_path / "empty")
    assert left(tmp_path / "empty") == ["card.md", "model.safetensors"]


def test_never_half_a_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    checkpoint = save(lightning(network()), tmp_path / "a.ckpt")

    def full(*_: Any) -> str:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(checkpoints, "sha256_of", full)
    with pytest.raises(OutputError, match="No space left"):
        convert_lseg(checkpoint, tmp_path / "model")
    assert left(tmp_path) == ["a.ckpt"]


def test_names_of_folders_stay_text(tmp_path: Path) -> None:
    convert_lseg(save(lightning(network()), tmp_path / "a.ckpt"), tmp_path / "12")
    assert parse_card((tmp_path / "12" / "card.md").read_text(), "card.md").name == "12"


def test_command(tmp_path: Path) -> None:
    checkpoint = save(lightning(network(arch_option=1)), tmp_path / "a.ckpt")
    parser = argparse.ArgumentParser()
    export.declare(parser)
    more = ["--arch-option", "1", "--block-depth", "2", "--activation", "lrelu"]
    said = export.run(parser.parse_args([str(checkpoint), str(tmp_path / "model"), *more]))
    assert "block_depth 2" in said
    assert f"{len(UNUSED)} left away" in said
    assert (tmp_path / "model" / "card.md").is_file()


@pytest.mark.parametrize("name", ["lseg-vit-l16", "lseg-vit-b32"])
def test_installed_cards_say_the_same(name: str) -> None:
    card = cards()[name]
    assert card.preprocess == export.PREPROCESS
    assert (card.family, card.stride, card.templates, card.align_corners) == ("lseg", export.STRIDE, "none", True)
    assert card.logit_scale == lseg.LOGIT_SCALE
    assert card.embed_dim == 512
    assert lseg.check_options(card.options)["backbone"] in lseg.VARIANTS
