"""Exported folders against the torch models they were made of. The networks are cut down; their graphs are those of the real ones."""

from __future__ import annotations

import copy
import dataclasses
import json
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import pytest
from PIL import Image

import ovseg
from ovseg.errors import BackendError, InvalidArgumentError, OutputError, UnsupportedOperationError, WeightsError
from ovseg.hub import read_folder
from ovseg.loading import Request
from ovseg.network import RANDOM
from ovseg.registry import ModelCard, cards

torch = pytest.importorskip("torch")
onnx = pytest.importorskip("onnx")
open_clip = pytest.importorskip("open_clip")
pytest.importorskip("onnxscript")

from ovseg.export import check, networks, reference  # noqa: E402
from ovseg.export import onnx as export  # noqa: E402
from ovseg.export.report import BOUNDS, Report  # noqa: E402

from ovseg.models import dinotxt, lseg, tips  # noqa: E402

ROOT = Path(__file__).parents[1]
TOWER: dict[str, Any] = {
    "embed_dim": 32, "quick_gelu": True,
    "vision_cfg": {"image_size": 64, "layers": 2, "width": 64, "head_width": 32, "patch_size": 16},
    "text_cfg": {"context_length": 77, "vocab_size": 49408, "width": 32, "heads": 2, "layers": 1},
}  # fmt: skip
CLIP, LSEG = "clip-vit-b16-openai", "lseg-vit-b32"
TINY_LSEG = lseg.Variant(32, 2, (0, 1, 2, 3), 16, 6, (8, 16, 32, 32), (4, 2, 1, -2), (32, 1, 2, 384))
LABELS = ["sky", ("roof", "temple"), "tree", "stone", "grass"]


@pytest.fixture(autouse=True, scope="module")
def cut_down() -> Iterator[None]:
    """Make the models of the cards small."""
    small = {
        CLIP: dataclasses.replace(cards()[CLIP], embed_dim=32, classify={"size": 64, "fit": "crop"}, templates="none"),
        LSEG: dataclasses.replace(cards()[LSEG], embed_dim=384),
        "tipsv2-b14": dataclasses.replace(cards()["tipsv2-b14"], embed_dim=48, classify={"size": 112, "fit": "squash"}),
        "dinotxt-dinov2-l14": dataclasses.replace(cards()["dinotxt-dinov2-l14"], embed_dim=128),
        "dinotxt-dinov3-l16": dataclasses.replace(cards()["dinotxt-dinov3-l16"], embed_dim=128),
    }  # fmt: skip
    text = {"width": 128, "layers": 2, "heads": 2, "text_width": 32, "text_layers": 1, "text_heads": 2}
    dino = {name: dataclasses.replace(size, **text, grid=8 if size.grid else 0) for name, size in dinotxt.VARIANTS.items()}
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(open_clip, "get_model_config", lambda name: copy.deepcopy(TOWER))
        patch.setattr("ovseg.loading.find_card", lambda name: small.get(name) or cards()[name])
        patch.setitem(lseg.VARIANTS, "clip_vitb32_384", TINY_LSEG)
        patch.setitem(tips.VARIANTS, "b14", tips.Size(width=48, layers=2, heads=4, hidden=120, text_layers=2, grid=8, vocabulary=300))
        patch.setattr(dinotxt, "VARIANTS", dino)
        yield


def write(model: str, out: Path, readout: str | None = None, weights: Any = RANDOM, **options: Any) -> Report:
    return export.export_onnx(model, out, request=Request(readout=readout, weights=weights), **options)


@pytest.fixture(scope="module")
def clip(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """NACLIP with a fused graph, from weights in a file."""
    folder = tmp_path_factory.mktemp("clip")
    write(CLIP, folder / "out", fused=True)
    return folder / "out"


@pytest.fixture
def altered(clip: Path, tmp_path: Path) -> Path:
    """A copy of that folder, to be broken."""
    shutil.copytree(clip, tmp_path / "copy")
    return tmp_path / "copy"


def graph_ops(folder: Path, role: str) -> list[Any]:
    return list(onnx.load(folder / f"{role}.onnx", load_external_data=False).graph.node)


_WITHOUT_TORCH = """
import json, sys
class Refuse:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in ("torch", "open_clip", "transformers", "timm", "safetensors", "onnx"):
            raise ImportError(f"{name} is not installed")
sys.meta_path.insert(0, Refuse())
import numpy as np, ovseg
folder, labels, images, out = json.loads(sys.argv[1])
labels = [tuple(label) if isinstance(label, list) else label for label in labels]
seg = ovseg.load(folder, device="cpu")
np.savez(out, *[seg.segment(image, labels).segmentation for image in images], scores=seg.classify(images[0], labels).scores)
from ovseg.export.check import check_folder
assert check_folder(folder).measured.agreement >= 0.999
assert not {"torch", "open_clip", "onnx"} & set(sys.modules)
"""


def test_the_folder_segments_photographs_as_torch_does_without_torch(clip: Path, tmp_path: Path) -> None:
    images = [str(ROOT / "docs" / "images" / f"{name}.jpg") for name in ("china", "coffee", "chelsea")]
    arguments = json.dumps([str(clip), LABELS, images, str(tmp_path / "found.npz")])
    subprocess.run([sys.executable, "-c", _WITHOUT_TORCH, arguments], check=True, cwd=ROOT)
    original = ovseg.load(CLIP, weights=RANDOM, device="cpu", threads=1)
    with np.load(tmp_path / "found.npz") as found:
        for i, image in enumerate(images):
            expected = original.segment(image, LABELS).segmentation
            assert np.unique(expected).size > 1
            assert (found[f"arr_{i}"] == expected).mean() >= 0.9995
        np.testing.assert_allclose(found["scores"], original.classify(images[0], LABELS).scores, atol=1e-4)


def test_the_graphs_take_any_size_and_have_no_resize_of_positions(clip: Path) -> None:
    for role in ("image", "text", "global"):
        assert not [node for node in graph_ops(clip, role) if node.op_type == "Resize"], role
    (resize,) = [node for node in graph_ops(clip, "segmenter") if node.op_type == "Resize"]
    assert not any(attribute.name == "antialias" and attribute.i for attribute in resize.attribute)
    graph = onnx.load(clip / "segmenter.onnx", load_external_data=False).graph
    dims = {value.name: [dim.dim_param or dim.dim_value for dim in value.type.tensor_type.shape.dim] for value in graph.input}
    assert set(dims) == {"pixel_values", "text_embeddings", "positions"}
    assert [isinstance(dim, str) for dim in dims["pixel_values"]] == [True, False, True, True]
    assert dims["text_embeddings"][1] == 32 and isinstance(dims["text_embeddings"][0], str)
    runtime = ovseg.load(clip, device="cpu")._model._runtime
    for shape in ((1, 3, 16, 16), (5, 3, 160, 32), (2, 3, 64, 64)):
        values = np.random.default_rng(0).standard_normal(shape).astype(np.float32)
        features = runtime.encode_image(values)
        assert features.shape == (shape[0], 32, shape[2] // 16, shape[3] // 16)
        held = runtime.encode_on_device(values[:, ::-1])  # no copy of it is kept by others
        assert len(held) == shape[0] and held[0].shape == features.shape[1:]
        np.testing.assert_array_equal(held[0].batch.numpy(), runtime.encode_image(values[:, ::-1]))
        for count in (1, 4):
            labels = runtime.label_map(np.zeros(shape, np.float32), np.eye(count, 32, dtype=np.float32))
            assert labels.shape == (shape[0], *shape[2:]) and labels.dtype == np.int32


def test_nothing_of_this_machine_is_in_the_folder(clip: Path) -> None:
    for path in clip.iterdir():
        if path.name not in ("weights.data", "reference.safetensors", "positions.safetensors"):
            assert str(ROOT).encode() not in path.read_bytes(), path.name
            assert b"site-packages" not in path.read_bytes(), path.name


def test_tensors_that_graphs_share_are_stored_once(clip: Path) -> None:
    network = open_clip.CLIP(**copy.deepcopy(TOWER))
    size = sum(value.numel() for value in network.parameters()) * 4
    assert (clip / "weights.data").stat().st_size < 1.1 * size


@pytest.mark.parametrize("file", [
    "image.onnx", "text.onnx", "segmenter.onnx", "global.onnx", "weights.data", "positions.safetensors", "tokenizer.json", "parity.json",
    "reference.safetensors",
])  # fmt: skip
def test_an_altered_folder_is_refused(altered: Path, file: str) -> None:
    content = bytearray((altered / file).read_bytes())
    content[len(content) // 2] ^= 1
    (altered / file).write_bytes(content)
    for read in (ovseg.load, check.check_folder):
        with pytest.raises(WeightsError, match=f"{file} is damaged or altered"):
            read(altered)
    (altered / file).unlink()
    with pytest.raises(WeightsError, match="no such file"):
        ovseg.load(altered)


def rehash(folder: Path) -> None:
    """Make the card true again, as somebody who alters a folder on purpose would."""
    from hashlib import sha256

    from ovseg.export.checkpoints import card_text

    from ovseg.registry import parse_card

    card = parse_card((folder / "card.md").read_text("utf-8"), "card.md")
    hashes = {name: sha256((folder / name).read_bytes()).hexdigest() for name in card.files.values()}
    (folder / "card.md").write_text(card_text(dataclasses.replace(card, sha256=hashes)), "utf-8")


def test_a_check_sees_other_weights(altered: Path) -> None:
    assert check.check_folder(altered).measured.features <= 1e-5
    weights = np.fromfile(altered / "weights.data", np.float32)
    weights[::7] *= 1.05
    weights.tofile(altered / "weights.data")
    rehash(altered)
    with pytest.raises(BackendError, match="features differ by"):
        check.check_folder(altered)


def test_a_check_sees_positions_of_another_rule(altered: Path) -> None:
    card = (altered / "card.md").read_text("utf-8")
    assert '"shift": 0.1' in card
    (altered / "card.md").write_text(card.replace('"shift": 0.1', '"shift": 0.0'), "utf-8")
    with pytest.raises(WeightsError, match="card.md is damaged or altered"):
        check.check_folder(altered)
    unsealed = "\n".join(line for line in card.split("\n") if not line.startswith("front_matter_sha256"))
    (altered / "card.md").write_text(unsealed.replace('"shift": 0.1', '"shift": 0.0'), "utf-8")
    with pytest.raises(BackendError, match="features differ by"):
        check.check_folder(altered)


def test_a_bad_export_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    original = reference.compute

    def other(*given: Any) -> dict[str, Any]:
        return {name: -values if "features" in name else values for name, values in original(*given).items()}

    monkeypatch.setattr(reference, "compute", other)
    with pytest.raises(BackendError, match=r"does not answer as torch does: .*Nothing was written"):
        write("mini", tmp_path / "out")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(("readout", "options"), [
    ("sclip", {"dtype": "float16", "opset": 20}), ("clearclip", {"opset": 23}),
])  # fmt: skip
def test_readouts_export_in_other_types_and_opsets(tmp_path: Path, readout: str, options: dict[str, Any]) -> None:
    report = write(CLIP, tmp_path / "out", readout, **options)
    assert report.facts["readout"] == readout
    assert not report.measured.problems(BOUNDS[options.get("dtype", "float32")])
    model = onnx.load(tmp_path / "out" / "image.onnx", load_external_data=False)
    assert model.opset_import[0].version == options.get("opset", 18)
    kinds = {value.data_type for value in model.graph.initializer if np.prod(value.dims) > 999}
    assert kinds == {onnx.TensorProto.FLOAT16 if options.get("dtype") == "float16" else onnx.TensorProto.FLOAT}
    assert model.graph.input[0].type.tensor_type.elem_type == onnx.TensorProto.FLOAT
    seg = ovseg.load(tmp_path / "out", device="cpu", dtype=options.get("dtype"))
    assert seg.segment(np.zeros((40, 50, 3), np.uint8), ["sky", "sea"]).segmentation.shape == (40, 50)
    with pytest.raises(InvalidArgumentError, match="compute in"):
        ovseg.load(tmp_path / "out", dtype="bfloat16")
    with pytest.raises(InvalidArgumentError, match="no choice of readout"):
        ovseg.load(tmp_path / "out", readout="kk")


@pytest.mark.parametrize("head", [None, {"arch_option": 1, "block_depth": 2, "activation": "lrelu"}])
def test_lseg_exports_with_its_head_blocks(tmp_path: Path, head: dict[str, Any] | None, monkeypatch: pytest.MonkeyPatch) -> None:
    card = dataclasses.replace(cards()[LSEG], embed_dim=384, options={"backbone": "clip_vitb32_384", **(head or {})})
    monkeypatch.setattr("ovseg.loading.find_card", lambda name: card)
    labels = tmp_path / "labels.txt"
    labels.write_text("sky\ngrass; lawn\nroad\n")
    report = write(LSEG, tmp_path / "out", fused=head is not None, vocabulary=None if head else labels)
    assert report.measured.fused is not None
    assert (report.facts.get("folded"), report.facts.get("labels")) == ((None, None) if head else (True, ["sky", "grass", "road"]))
    picture = np.random.default_rng(0).integers(0, 256, (90, 120, 3)).astype(np.uint8)
    maps = [ovseg.load(model, weights=weights, device="cpu").segment(picture, ["sky", "sea", "road"], size=96).segmentation
            for model, weights in ((LSEG, RANDOM), (tmp_path / "out", None))]  # fmt: skip
    assert (maps[0] == maps[1]).mean() >= 0.9995


@pytest.mark.parametrize("model", ["tipsv2-b14", "dinotxt-dinov3-l16"])
def test_other_families_export(tmp_path: Path, model: str) -> None:
    report = write(model, tmp_path / "out")
    assert (tmp_path / "out" / "positions.safetensors").exists() == (model != "dinotxt-dinov3-l16")
    assert (report.measured.whole is None) == model.startswith("dinotxt")
    assert check.check_folder(tmp_path / "out").measured.agreement >= 0.999
    assert "random" in (tmp_path / "out" / "card.md").read_text("utf-8")
    assert ovseg.load(tmp_path / "out", device="cpu").segment(np.zeros((40, 50, 3), np.uint8), ["sky", "sea"]).labels == ("sky", "sea")


def test_mini_is_copied_and_may_get_a_segmenter(tmp_path: Path, segmenter: ovseg.Segmenter, scene: Any) -> None:
    labels = tmp_path / "labels.txt"
    labels.write_text("sky\nmeadow; grass\nroad\n")
    report = write("mini", tmp_path / "out", weights=None, vocabulary=labels)
    assert (report.measured.fused or 0) >= 0.999 and report.facts["folded"] is False
    card, files = read_folder(tmp_path / "out")
    assert card.name == "mini" and {"image", "weights", "text", "tokenizer", "segmenter", "labels"} <= files.keys()
    ours = ovseg.load(tmp_path / "out", device="cpu")
    wanted = ["sky", ("meadow", "grass"), "road"]
    np.testing.assert_array_equal(ours.segment(scene, wanted).segmentation, segmenter.segment(scene, wanted).segmentation)
    fixed = ours._model._runtime.label_map
    pixels = (scene.astype(np.float32).transpose(2, 0, 1) / 127.5 - 1)[None]
    assert (fixed(pixels)[0] == segmenter.segment(scene, wanted, size="native").segmentation).mean() >= 0.999


def test_mini_in_another_opset_is_made_anew_and_says_so_of_its_text(tmp_path: Path, segmenter: ovseg.Segmenter, scene: Any) -> None:
    report = write("mini", tmp_path / "out", weights=None, opset=20)
    assert (report.facts["opset"], report.facts["text_opset"]) == (20, 18)
    for role, opset in (("image", 20), ("text", 18)):
        assert onnx.load(tmp_path / "out" / f"{role}.onnx", load_external_data=False).opset_import[0].version == opset
    assert "text.onnx is that of the original, opset 18" in (tmp_path / "out" / "card.md").read_text("utf-8")
    ours = ovseg.load(tmp_path / "out", device="cpu").segment(scene, LABELS)
    assert (ours.segmentation == segmenter.segment(scene, LABELS).segmentation).mean() >= 0.999


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize(("dim", "width"), [(24, 9), (9, 24), (10, 9), (9, 9)])
def test_folded_words_are_an_equality(dim: int, width: int, bias: bool) -> None:
    generator = torch.Generator().manual_seed(0)
    weight, shift, x = (torch.randn(*shape, generator=generator) for shape in ((dim, width), (dim,), (50, width)))
    text = torch.nn.functional.normalize(torch.randn(7, dim, generator=generator))
    rows, more = networks.fold(weight, shift if bias else None, text)
    assert len(rows) == 7 + min(dim, width + bias)
    y = x @ rows.T + more
    expected = torch.nn.functional.normalize(x @ weight.T + (shift if bias else 0)) @ text.T
    torch.testing.assert_close(y[:, :7] / torch.linalg.vector_norm(y[:, 7:], dim=1, keepdim=True), expected, rtol=0, atol=1e-5)


@pytest.mark.parametrize("name", ["lseg", "clip"])
def test_a_folded_network_has_the_cosines_of_the_unfolded(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(networks, "_is_cheaper", lambda weight, bias, names: True)  # also where it gains nothing
    if name == "lseg":
        module: Any = lseg.LSeg(TINY_LSEG)
    else:
        from ovseg.models.dense_clip import build

        module = build({"config": copy.deepcopy(TOWER), "readout": "naclip"}, None)
    module = module.eval().requires_grad_(False)
    dim = len(module.projection()[0])
    text = torch.nn.functional.normalize(torch.randn(6, dim, generator=torch.Generator().manual_seed(1)))
    ending = networks.Ending(2, True, 14.0)
    pixels = torch.randn(2, 3, 64, 96, generator=torch.Generator().manual_seed(2))
    graph = networks.FixedSegmenterGraph(module, torch.float32, ending, text, torch.arange(6))
    assert graph.folded
    expected = torch.einsum("kd,bdhw->bkhw", text, module(pixels))
    torch.testing.assert_close(graph.cosines(pixels, None), expected, rtol=0, atol=1e-5)


@pytest.mark.parametrize(("model", "options", "kind", "message"), [
    ("clipseg-rd64", {}, UnsupportedOperationError, "label by label"),
    ("radseg-c-radio-v3-b", {}, UnsupportedOperationError, "windows"),
    (CLIP, {"opset": 17}, InvalidArgumentError, "opset"),
    (CLIP, {"dtype": "bfloat16"}, InvalidArgumentError, "dtype"),
    ("mini", {"dtype": "int8", "weights": None}, InvalidArgumentError, "calibration"),
    (CLIP, {"tokenizer": "nowhere/tokenizer.json"}, InvalidArgumentError, "no tokenizer file"),
])  # fmt: skip
def test_what_cannot_be_exported_is_said(tmp_path: Path, model: str, options: dict[str, Any], kind: type[Exception], message: str) -> None:
    with pytest.raises(kind, match=message):
        write(model, tmp_path / "out", **options)
    assert list(tmp_path.iterdir()) == []


def test_a_folder_with_something_in_it_is_left_alone(clip: Path) -> None:
    before = sorted(clip.iterdir())
    with pytest.raises(OutputError, match="not empty"):
        write(CLIP, clip)
    assert sorted(clip.iterdir()) == before


def test_an_exported_model_is_not_exported_again(clip: Path, tmp_path: Path) -> None:
    with pytest.raises(InvalidArgumentError, match="exported model already"):
        export.export_onnx(clip, tmp_path / "out")


def test_a_folder_that_was_never_compared_is_refused(tmp_path: Path) -> None:
    card: ModelCard = cards()["mini"]
    for name in card.files.values():
        shutil.copyfile(ROOT / "ovseg" / "weights" / "mini" / name, tmp_path / name)
    shutil.copyfile(ROOT / "model_cards" / "mini.md", tmp_path / "card.md")
    with pytest.raises(WeightsError, match="parity.json"):
        check.check_folder(tmp_path)


def test_the_commands_say_what_was_measured(clip: Path, tmp_path: Path) -> None:
    import argparse

    parser = argparse.ArgumentParser()
    check.declare(parser)
    said = check.run(parser.parse_args([str(clip)]))
    assert "features" in said and "same, fused" in said
    assert json.loads(check.run(parser.parse_args([str(clip), "--json"])))["bounds"]["features"] == 1e-4
    parser = argparse.ArgumentParser()
    export.declare(parser)
    said = export.run(parser.parse_args(["mini", str(tmp_path / "out")]))
    assert "mini" in said and "same labels" in said
    assert (tmp_path / "out" / "image.onnx").exists()
    assert "Not yet measured on a GPU" in (tmp_path / "out" / "card.md").read_text("utf-8")


@pytest.mark.parametrize(("words", "belongs"), [
    (["--templates", "none"], "--vocabulary"), (["--max-cost", "2"], "--cost"), (["--limit", "3"], "--cost"),
])  # fmt: skip
def test_an_option_that_would_do_nothing_is_refused(tmp_path: Path, words: list[str], belongs: str) -> None:
    import argparse

    parser = argparse.ArgumentParser()
    export.declare(parser)
    with pytest.raises(InvalidArgumentError, match=f"{words[0]} belongs to {belongs}"):
        export.run(parser.parse_args(["mini", str(tmp_path / "out"), *words]))
    assert list(tmp_path.iterdir()) == []


def test_another_program_needs_only_what_the_card_says(tmp_path: Path) -> None:
    """The example of docs/shipping.md, with numbers from the card: onnxruntime, numpy and pillow alone."""
    folder = tmp_path / "mini"
    export.export_onnx("mini", folder, fused=True)
    words = ["sky", "tree", "temple", "lake"]
    seg = ovseg.load(folder)
    said = seg.card.preprocess
    assert {"mean", "std", "multiple", "resample"} <= set(said)
    image = Image.open(ROOT / "docs" / "images" / "china.jpg").convert("RGB").resize((672, 448))
    assert not 672 % said["multiple"] and not 448 % said["multiple"]
    pixels = (np.asarray(image, np.float32) / 255 - np.float32(said["mean"])) / np.float32(said["std"])
    session = onnxruntime.InferenceSession(folder / "segmenter.onnx")
    found = session.run(None, {"pixel_values": pixels.transpose(2, 0, 1)[None], "text_embeddings": seg.encode_text(words)})[0]
    assert found.shape == (1, 448, 672) and found.dtype == np.int32
    assert (found[0] == seg.segment(image, words, size=448).segmentation).mean() > 0.999
