"""Exports of ProxyCLIP: two networks in a graph. They are cut down; their graphs are those of the real ones."""

from __future__ import annotations

import copy
import dataclasses
import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import ovseg
from ovseg.cli import main
from ovseg.errors import BackendError, UnsupportedOperationError
from ovseg.loading import Request
from ovseg.network import RANDOM
from ovseg.registry import cards, parse_card

torch = pytest.importorskip("torch")
timm = pytest.importorskip("timm")
onnx = pytest.importorskip("onnx")
open_clip = pytest.importorskip("open_clip")
pytest.importorskip("onnxscript")

from ovseg.export import check  # noqa: E402
from ovseg.export import onnx as export  # noqa: E402
from ovseg.export.report import BOUNDS, Report, bounds_of  # noqa: E402
from ovseg.export.tensorrt import plan_engine  # noqa: E402
from ovseg.export.tensorrt_rules import lint_graph  # noqa: E402
from test_export_onnx import _WITHOUT_TORCH, CLIP, LABELS, ROOT, TOWER  # noqa: E402
from test_export_precision import photographs  # noqa: E402, F401

from ovseg.models.clip_proxy import ProxyEncoder  # noqa: E402

PATCH = 14
DINO, DINO3, EVA = "vit_small_patch16_224.dino", "vit_small_patch16_dinov3.lvd1689m", "eva02_small_patch14_224.mim_in22k"


def small_proxy(name: str, mean: Any, std: Any) -> ProxyEncoder:
    vit = timm.create_model(name, depth=1, embed_dim=48, num_heads=3, num_classes=0, dynamic_img_size=True)
    with torch.no_grad():
        for value in vit.parameters():  # timm's own are too small to tell a mistake from rounding
            value.add_(0.05 * torch.randn_like(value))
    return ProxyEncoder(vit, mean, std)


CARD = dataclasses.replace(cards()[CLIP], embed_dim=32, classify={"size": 4 * PATCH, "fit": "crop"}, templates="none")


@pytest.fixture(autouse=True, scope="module")
def cut_down() -> Iterator[None]:
    tower = copy.deepcopy(TOWER)
    tower["vision_cfg"] |= {"image_size": 4 * PATCH, "patch_size": PATCH}
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(open_clip, "get_model_config", lambda name: copy.deepcopy(tower))
        patch.setattr("ovseg.loading.find_card", lambda name: CARD if name == CLIP else cards()[name])
        patch.setattr("ovseg.models.dense_clip.build_proxy", small_proxy)
        yield


@pytest.fixture
def dense_only(monkeypatch: pytest.MonkeyPatch) -> None:
    """Write no graph for whole images, which has no proxy in it and takes seconds."""
    monkeypatch.setattr("ovseg.loading.find_card", lambda name: dataclasses.replace(CARD, classify={}))


def write(out: Path, proxy: str = DINO, **options: Any) -> Report:
    return export.export_onnx(CLIP, out, request=Request(readout="proxyclip", proxy=proxy, weights=RANDOM), **options)


@pytest.fixture(scope="module")
def proxied(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """CLIP with patches of 14 pixels and DINO with 16: grids of 8 and 7 cells."""
    folder = tmp_path_factory.mktemp("proxied")
    write(folder / "out", fused=True)
    return folder / "out"


def inputs_of(path: Path) -> dict[str, list[Any]]:
    graph = onnx.load(path, load_external_data=False).graph
    return {value.name: [dim.dim_param or dim.dim_value for dim in value.type.tensor_type.shape.dim] for value in graph.input}


def test_the_folder_segments_as_torch_does_without_torch_and_timm(proxied: Path, tmp_path: Path) -> None:
    images = [str(ROOT / "docs" / "images" / f"{name}.jpg") for name in ("china", "chelsea")]
    arguments = json.dumps([str(proxied), LABELS, images, str(tmp_path / "found.npz")])
    subprocess.run([sys.executable, "-c", _WITHOUT_TORCH, arguments], check=True, cwd=ROOT)
    original = ovseg.load(CLIP, weights=RANDOM, readout="proxyclip", proxy=DINO, device="cpu", threads=1)
    with np.load(tmp_path / "found.npz") as found:
        for i, image in enumerate(images):
            expected = original.segment(image, LABELS).segmentation
            assert np.unique(expected).size > 1
            assert (found[f"arr_{i}"] == expected).mean() >= 0.9995
        np.testing.assert_allclose(found["scores"], original.classify(images[0], LABELS).scores, atol=1e-4)


def test_the_card_names_the_proxy_and_its_licence(proxied: Path) -> None:
    said = (proxied / "card.md").read_text("utf-8")
    assert f"by {DINO}, whose weights are inside and have a licence of their own (apache-2.0)" in said


def test_one_graph_holds_both_networks_for_every_size(proxied: Path) -> None:
    taken = inputs_of(proxied / "image.onnx")
    assert taken == {
        "pixel_values": ["batch", 3, "112*rows", "112*columns"], "positions": ["8*rows", "8*columns", 64],
        "positions_proxy": ["7*rows", "7*columns", 48],
    }  # fmt: skip
    assert list(inputs_of(proxied / "segmenter.onnx")) == ["pixel_values", "text_embeddings", "positions", "positions_proxy"]
    original = ovseg.load(CLIP, weights=RANDOM, readout="proxyclip", proxy=DINO, device="cpu", threads=1)._model._runtime
    runtime = ovseg.load(proxied, device="cpu", threads=1)._model._runtime
    for shape in ((1, 3, 112, 112), (5, 3, 112, 224), (2, 3, 336, 112)):
        pixels = np.random.default_rng(0).standard_normal(shape).astype(np.float32)
        found, expected = runtime.encode_image(pixels), original.encode_image(pixels)
        assert found.shape == (shape[0], 32, shape[2] // 16, shape[3] // 16)
        assert (np.abs(found - expected).max(1) <= 1e-5).mean() >= 0.99
        labels = runtime.label_map(pixels, np.eye(3, 32, dtype=np.float32))
        assert labels.shape == (shape[0], *shape[2:])


def test_tensorrt_would_take_it(proxied: Path) -> None:
    for role in ("image", "segmenter"):
        assert lint_graph(proxied / f"{role}.onnx") == []
    plan = plan_engine(proxied, batch=(1, 2, 4), height=(112, 224, 336), width=(112, 112, 448))
    assert plan.profiles["positions"] == ((8, 8, 64), (16, 8, 64), (24, 32, 64))
    assert plan.profiles["positions_proxy"] == ((7, 7, 48), (14, 7, 48), (21, 28, 48))


def test_a_check_sees_positions_of_the_proxy_of_another_rule(proxied: Path, tmp_path: Path) -> None:
    import shutil

    shutil.copytree(proxied, tmp_path / "copy")
    path = tmp_path / "copy" / "card.md"
    text = "\n".join(line for line in path.read_text("utf-8").split("\n") if not line.startswith("front_matter_sha256"))
    facts = parse_card(text, "card.md").options["positions_proxy"]
    assert facts == {"patch": 16, "mode": "bicubic", "antialias": True, "shift": 0.0}
    (line,) = [line for line in text.split("\n") if '"positions_proxy"' in line]
    path.write_text(text.replace(line, line.replace(json.dumps(facts), json.dumps(facts | {"antialias": False}))), "utf-8")
    with pytest.raises(BackendError, match="features differ by"):
        check.check_folder(tmp_path / "copy")


@pytest.mark.usefixtures("dense_only")
def test_dinov3_turns_its_patches_in_the_graph(tmp_path: Path) -> None:
    report = write(tmp_path / "out", DINO3, dtype="float16")
    assert set(inputs_of(tmp_path / "out" / "image.onnx")) == {"pixel_values", "positions"}
    assert 1e-5 < report.measured.features <= BOUNDS["float16"].features
    assert lint_graph(tmp_path / "out" / "image.onnx") == []
    assert check.check_folder(tmp_path / "out").bounds.jumps == 0.01


@pytest.mark.usefixtures("dense_only")
def test_it_exports_in_int8_with_fixed_words(tmp_path: Path, photographs: Path) -> None:  # noqa: F811
    labels = tmp_path / "labels.txt"
    labels.write_text("sky\ngrass; lawn\n")
    report = write(tmp_path / "out", dtype="int8", calibration=photographs, vocabulary=labels)
    assert (report.measured.fused or 0) >= BOUNDS["int8"].agreement
    graph = onnx.load(tmp_path / "out" / "image.onnx", load_external_data=False).graph
    assert "QuantizeLinear" in {node.op_type for node in graph.node}
    made = {name for node in graph.node if node.op_type == "DequantizeLinear" for name in node.input}
    widths = [min(tensor.dims) for tensor in graph.initializer if tensor.name in made and len(tensor.dims) == 2]
    assert sorted(widths) == [48] * 4 + [64] * 6, "the layers of the proxy's one block, and of the tower's two"


def test_places_that_no_graph_can_tell_are_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(UnsupportedOperationError, match="timm's Eva, cannot be exported"):
        write(tmp_path / "out", EVA)
    command = ["export", "onnx", CLIP, str(tmp_path / "out"), "--readout", "proxyclip", "--proxy", EVA, "--weights", "random"]
    assert main(command) == 1
    assert "timm's Eva, cannot be exported" in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("name", [DINO, "vit_small_patch14_reg4_dinov2.lvd142m", "deit3_small_patch16_224.fb_in1k", DINO3])
def test_given_positions_are_those_that_timm_makes(name: str) -> None:
    from ovseg.positions import resize

    proxy = small_proxy(name, (0.5, 0.4, 0.3), (0.2, 0.3, 0.25)).eval().requires_grad_(False)
    pixels = torch.randn(2, 3, 112, 224, generator=torch.Generator().manual_seed(0))
    expected = proxy.vit.forward_features(pixels * proxy.gain + proxy.shift)[:, proxy.vit.num_prefix_tokens :]
    table = proxy.position_table()
    assert (table is None) == (name == DINO3)
    given = [] if table is None else [torch.from_numpy(resize(table.table.numpy(), (112 // table.patch, 224 // table.patch), table.rule))]
    found = proxy(pixels, *given)
    assert found.shape[2:] == (112 // proxy.patch_size[0], 224 // proxy.patch_size[0])
    torch.testing.assert_close(found.flatten(2).transpose(1, 2), expected, rtol=0, atol=1e-5)


def test_only_a_read_out_that_jumps_may_jump() -> None:
    assert bounds_of({"dtype": "float32", "readout": "naclip"}) == bounds_of({"dtype": "float32"}) == BOUNDS["float32"]
    assert bounds_of({"dtype": "float32", "readout": "proxyclip"}).jumps == 0.01
    expected = np.zeros((1, 4, 10, 20), np.float32)
    found = expected + np.float32(1e-6)
    found[0, 1, 2, 3] = found[0, 2, 7, 8] = 0.5
    assert check._largest_of_cells(found, expected, 0.0) == check._largest_of_cells(found, expected, 0.004) == 0.5
    assert check._largest_of_cells(found, expected, 0.01) == pytest.approx(1e-6)
    found[0, 3, 0, 0] = np.nan
    assert np.isnan(check._largest_of_cells(found, expected, 0.5))
