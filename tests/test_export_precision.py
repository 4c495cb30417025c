"""Exports in int8 and float16: what they compute in, what they may cost, and that a bad one is refused."""

from __future__ import annotations

import dataclasses
import json
import shutil
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image

import ovseg
from ovseg.cli import main
from ovseg.errors import BackendError, InvalidArgumentError, WeightsError
from ovseg.network import RANDOM
from ovseg.registry import SEAL, cards, parse_card

torch = pytest.importorskip("torch")
onnx = pytest.importorskip("onnx")
pytest.importorskip("onnxscript")
pytest.importorskip("open_clip")

from ovseg.export import onnx as export  # noqa: E402
from ovseg.export import quantise  # noqa: E402
from ovseg.export.check import check_folder  # noqa: E402
from ovseg.export.checkpoints import card_text  # noqa: E402
from ovseg.export.graph_passes import fast_lengths  # noqa: E402
from ovseg.export.report import BOUNDS, Cost  # noqa: E402
from ovseg.export.tensorrt_rules import lint_graph  # noqa: E402
from small_graphs import exported_folder, graph, value  # noqa: E402
from test_export_onnx import CLIP, cut_down, write  # noqa: E402, F401

ROOT = Path(__file__).parents[1]
WORDS = ["sky", "roof", "tree", "stone", "coffee", "cat"]


@pytest.fixture(scope="module")
def photographs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of small photographs, and something else."""
    folder = tmp_path_factory.mktemp("photographs")
    for name in ("china", "coffee", "chelsea"):
        with Image.open(ROOT / "docs" / "images" / f"{name}.jpg") as picture:
            picture.convert("RGB").resize((160, 128)).save(folder / f"{name}.png")
    (folder / "notes.txt").write_text("no image")
    return folder


@pytest.fixture(scope="module")
def mini8(tmp_path_factory: pytest.TempPathFactory, photographs: Path) -> Path:
    out = tmp_path_factory.mktemp("mini8") / "out"
    write("mini", out, weights=None, dtype="int8", calibration=photographs, fused=True)
    return out


@pytest.fixture(scope="module")
def labelled(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two labelled pictures: the truth is what mini says of them, so that mini scores 100."""
    folder = tmp_path_factory.mktemp("labelled") / "data"
    segmenter = ovseg.load("mini", device="cpu")
    for part in ("images", "labels"):
        (folder / part).mkdir(parents=True)
    for name in ("coffee", "chelsea"):
        with Image.open(ROOT / "docs" / "images" / f"{name}.jpg") as picture:
            small = np.asarray(picture.convert("RGB").resize((192, 160)))
        Image.fromarray(small).save(folder / "images" / f"{name}.png")
        Image.fromarray(segmenter.segment(small, WORDS).segmentation).save(folder / "labels" / f"{name}.png")
    (folder / "labels.txt").write_text("\n".join(WORDS))
    return folder


def nodes_of(folder: Path, role: str = "image") -> list[Any]:
    return list(onnx.load(folder / f"{role}.onnx", load_external_data=False).graph.node)


def test_layers_but_the_first_and_the_last_are_symmetric_int8(mini8: Path) -> None:
    model = onnx.load(mini8 / "image.onnx")
    made = {name: node for node in model.graph.node for name in node.output}
    stored = {tensor.name: onnx.numpy_helper.to_array(tensor) for tensor in model.graph.initializer}
    kinds = {}
    for node in model.graph.node:
        if node.op_type == "Conv":
            name = node.input[1].split(".weight")[0].removeprefix("module.")
            kinds[name] = [made[value].op_type if value in made else "" for value in node.input[:2]]
    plain = {name for name, before in kinds.items() if before != ["DequantizeLinear"] * 2}
    assert plain == {"stem", "class_text", "coarse_text", "gate", "fine_text"}
    quantised = [node for node in model.graph.node if node.op_type in ("QuantizeLinear", "DequantizeLinear")]
    assert len(quantised) > 100
    for node in quantised:
        zero = stored[node.input[2]]
        assert zero.dtype == np.int8 and not zero.any()
    scales = [stored[node.input[1]].size for node in quantised if node.input[0] in stored]
    assert min(scales) > 1, "weights have a scale for each output"
    for role in ("image", "segmenter"):
        assert [problem for problem in lint_graph(mini8 / f"{role}.onnx") if problem.severity == "error"] == []


def test_an_int8_folder_answers_nearly_as_the_original(mini8: Path) -> None:
    report = check_folder(mini8)
    assert report.facts["dtype"] == "int8" and report.facts["calibration_images"] == 3
    assert not report.measured.problems(BOUNDS["int8"]) and report.measured.text <= 1e-4
    assert 1e-3 < report.measured.features, "it is not float32"
    ours, original = ovseg.load(mini8, device="cpu"), ovseg.load("mini", device="cpu")
    image = ROOT / "docs" / "images" / "china.jpg"
    cosines = (ours.encode_image(image).embedding * original.encode_image(image).embedding).sum(0)
    assert cosines.mean() > 0.98
    text = (mini8 / "card.md").read_text("utf-8")
    assert "3 images gave the ranges" in text and "was not measured" in text
    assert parse_card(text, "card.md").scores == {}, "the scores of the original are not its own"
    with pytest.raises(InvalidArgumentError, match="compute in int8"):
        ovseg.load(mini8, dtype="float32")


def test_an_image_gets_the_same_alone_and_in_a_batch(mini8: Path) -> None:
    runtime = ovseg.load(mini8, device="cpu", threads=1)._model._runtime
    pixels = np.random.default_rng(0).uniform(-1, 1, (3, 3, 64, 96)).astype(np.float32)
    pixels[1] *= 0.1
    together = runtime.encode_image(pixels)
    for i in range(3):
        np.testing.assert_allclose(runtime.encode_image(pixels[i : i + 1])[0], together[i], rtol=0, atol=1e-5)


def test_transformers_are_int8_too(tmp_path: Path, photographs: Path) -> None:
    labels = tmp_path / "labels.txt"
    labels.write_text("sky\ngrass; lawn\n")
    report = write(CLIP, tmp_path / "out", dtype="int8", calibration=photographs, vocabulary=labels)
    assert report.facts["labels"] == ["sky", "grass"] and report.facts["folded"] is False
    assert (report.measured.fused or 0) >= BOUNDS["int8"].agreement and report.measured.whole is not None
    for role in ("image", "global", "segmenter"):
        kinds = [node.op_type for node in nodes_of(tmp_path / "out", role)]
        assert kinds.count("QuantizeLinear") > 4, role
    assert "QuantizeLinear" not in [node.op_type for node in nodes_of(tmp_path / "out", "text")]
    seg = ovseg.load(tmp_path / "out", device="cpu")
    assert seg.segment(np.zeros((40, 50, 3), np.uint8), ["sky", "sea"]).labels == ("sky", "sea")
    assert seg.classify(np.zeros((40, 50, 3), np.uint8), ["sky", "sea"]).labels == ("sky", "sea")


def test_mini_in_half_precision(tmp_path: Path) -> None:
    report = write("mini", tmp_path / "out", weights=None, dtype="float16")
    assert 0 < report.measured.features <= BOUNDS["float16"].features and report.measured.text == 0
    card = parse_card((tmp_path / "out" / "card.md").read_text("utf-8"), "card.md")
    assert "weights" not in card.files and card.files["image"] == "image.onnx"


def test_own_weights_of_mini_export(tmp_path: Path) -> None:
    """Their graph is made anew: the one in the package is of other weights."""
    report = write("mini", tmp_path / "out", weights=RANDOM)
    assert report.measured.features <= 1e-5


def test_the_cost_is_measured_on_the_original_and_the_export(tmp_path: Path, labelled: Path, photographs: Path) -> None:
    out = tmp_path / "out"
    arguments = ["export", "onnx", "mini", str(out), "--dtype", "int8", "--calibration", str(photographs), "--cost", str(labelled)]
    assert main([*arguments, "--max-cost", "60"]) == 0
    cost = check_folder(out).cost
    assert cost is not None and (cost.original, cost.images, cost.bound, cost.dataset) == (100.0, 2, 60.0, "data")
    assert 40 <= cost.exported < 100
    text = (out / "card.md").read_text("utf-8")
    assert f"exported {cost.exported:.2f}" in text and f"{cost.points:.2f}" in text
    assert parse_card(text, "card.md").scores == {"data mIoU, 2 images": round(cost.exported, 2)}
    assert f"exported {cost.exported:.2f}" in check_folder(out).format()
    assert main(["eval", str(labelled), "--model", str(out), "--json", str(tmp_path / "found.json")]) == 0
    assert f'"mean_iou": {cost.exported}' in (tmp_path / "found.json").read_text()


def test_an_export_that_costs_too_much_is_refused(tmp_path: Path, labelled: Path, photographs: Path, capsys: Any) -> None:
    out = tmp_path / "out"
    arguments = ["export", "onnx", "mini", str(out), "--dtype", "int8", "--calibration", str(photographs), "--cost", str(labelled)]
    assert main([*arguments, "--max-cost", "0", "--limit", "1"]) == 1
    said = capsys.readouterr().err
    assert "not good enough" in said and "(1 images)" in said and "Nothing was written" in said
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(("before", "after", "most", "passes"), [
    (50.0, 49.0, 1.0, True), (50.0, 48.9, 1.0, False), (50.0, 51.0, 0.0, True), (50.0, float("nan"), 100.0, False),
])  # fmt: skip
def test_the_gate(tmp_path: Path, before: float, after: float, most: float, passes: bool) -> None:
    found = iter([before, after])
    names = []

    def score(model: ovseg.Segmenter) -> Any:
        names.append(model.name)
        return SimpleNamespace(dataset="street", images=7, mean_iou=next(found))

    if passes:
        assert write("mini", tmp_path / "out", weights=None, gate=export.Gate(score, most)).cost == Cost("street", 7, before, after, most)
    else:
        with pytest.raises(BackendError, match="street"):
            write("mini", tmp_path / "out", weights=None, gate=export.Gate(score, most))
        assert list(tmp_path.iterdir()) == []
    assert names == ["mini", "mini"]


def test_what_cannot_be_is_said(tmp_path: Path, photographs: Path) -> None:
    (tmp_path / "empty").mkdir()
    for options, message in (
        ({"dtype": "int8"}, "belong together"), ({"calibration": photographs}, "belong together"),
        ({"dtype": "int8", "calibration": tmp_path / "empty"}, "no images"), ({"dtype": "int8", "calibration": tmp_path / "no"}, "is none"),
    ):  # fmt: skip
        with pytest.raises(InvalidArgumentError, match=message):
            write("mini", tmp_path / "out", weights=None, **options)
    assert not (tmp_path / "out").exists()


def test_calibration_images_are_spread(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for i in range(10):
        (tmp_path / f"{i}.JPG").write_bytes(b"")
    monkeypatch.setattr(quantise, "MOST_IMAGES", 5)
    assert [path.stem for path in quantise.calibration_images(tmp_path)] == ["1", "3", "5", "7", "9"]


def test_few_calibration_images_are_told(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    for i in range(quantise.FEWEST_IMAGES):
        assert ("ranges of so few" in caplog.text) == (i > 0)
        caplog.clear()
        (tmp_path / f"{i}.png").write_bytes(b"")
        quantise.calibration_images(tmp_path)
    assert not caplog.text


def test_layers_at_the_ends_are_found() -> None:
    """Brute force over all paths of random graphs."""
    random = np.random.default_rng(0)
    for _ in range(30):
        count = 12
        nodes, ways = [], {}
        for i in range(count):
            sources = sorted({int(j) for j in random.integers(-1, i, 2)}) if i else [-1]
            names = ["x" if j < 0 else f"y{j}" for j in sources]
            is_layer = bool(random.integers(2))
            inputs = [names[0], "w"] if is_layer else names
            ways[i] = (is_layer, sources[:1] if is_layer else sources)
            nodes.append(onnx.helper.make_node("MatMul" if is_layer else "Sum", inputs, [f"y{i}"], f"n{i}"))
        model = graph(nodes, [value("x", [2, 2])], [value(f"y{count - 1}", [2, 2])], {"w": np.eye(2, dtype=np.float32)})
        above = {i: {j for j in ways[i][1] if j >= 0} for i in range(count)}
        for i in range(count):
            above[i] = above[i].union(*(above[j] for j in above[i]))
        layers = [i for i in range(count) if ways[i][0]]
        ends = {i for i in layers if not above[i] & set(layers) or not any(i in above[j] for j in layers)}
        assert quantise.inner_layers(model) == [f"n{i}" for i in layers if i not in ends]


def towers(folder: Path) -> Path:
    """A graph of layers with products of activations between them, one value of which two layers read."""
    make, random = onnx.helper.make_node, np.random.default_rng(7)
    nodes, weights, last = [], {}, "x"
    for i in range(6):
        weights[f"w{i}"] = random.standard_normal((8, 8)).astype(np.float32)
        nodes += [make("MatMul", [last, f"w{i}"], [f"y{i}"], f"layer{i}"), make("Tanh", [f"y{i}"], [f"z{i}"], f"tanh{i}")]
        last = f"z{i}"
    weights["side"] = random.standard_normal((8, 8)).astype(np.float32)
    nodes += [
        make("MatMul", ["z2", "side"], ["s"], "beside"), make("Transpose", ["s"], ["t"], "turned", perm=[0, 2, 1]),
        make("MatMul", [last, "t"], ["p"], "product"), make("MatMul", ["p", "s"], ["m"], "mixed"),
        make("MatMul", ["m", "w0"], ["y"], "end"),
    ]  # fmt: skip
    model = graph(nodes, [value("x", ["b", "n", 8])], [value("y", ["b", "n", 8])], weights)
    onnx.save(model, folder / "plain.onnx")
    return folder / "plain.onnx"


@pytest.fixture
def examples() -> list[dict[str, NDArray[np.float32]]]:
    random = np.random.default_rng(8)
    return [{"x": (scale * random.standard_normal((1, count, 8))).astype(np.float32)} for count, scale in ((3, 1), (7, 0.1), (4, 2))]


def test_ranges_are_those_of_every_image(tmp_path: Path, examples: list[dict[str, NDArray[np.float32]]]) -> None:
    """Against numpy; the values' names in any order, the input of the graph among them."""
    found = quantise.value_ranges(towers(tmp_path), ["z2", "x", "y0"], iter(examples))
    stored = {tensor.name: onnx.numpy_helper.to_array(tensor) for tensor in onnx.load(tmp_path / "plain.onnx").graph.initializer}
    seen: dict[str, list[NDArray[np.float32]]] = {"x": [], "y0": [], "z2": []}
    for example in examples:
        x = example["x"]
        seen["x"].append(x)
        seen["y0"].append(x @ stored["w0"])
        for i in range(3):
            x = np.tanh(x @ stored[f"w{i}"])
        seen["z2"].append(x)
    assert list(found) == ["z2", "x", "y0"]
    for name, (least, most) in found.items():
        assert least.shape == most.shape == (1,)
        np.testing.assert_allclose(least[0], min(part.min() for part in seen[name]), rtol=1e-5)
        np.testing.assert_allclose(most[0], max(part.max() for part in seen[name]), rtol=1e-5)


def test_onnxruntimes_own_calibration_gives_the_same_graph(tmp_path: Path, examples: list[dict[str, NDArray[np.float32]]]) -> None:
    from onnxruntime import quantization

    class Reader(quantization.CalibrationDataReader):  # type: ignore[misc]
        left = iter(examples)

        def get_next(self) -> dict[str, NDArray[np.float32]] | None:
            return next(self.left, None)

    source = towers(tmp_path)
    kind, names = quantization.QuantType.QInt8, list(quantise.LAYERS)
    quantization.quantize_static(
        source, tmp_path / "theirs.onnx", Reader(), op_types_to_quantize=names, per_channel=True, activation_type=kind, weight_type=kind,
        nodes_to_quantize=quantise.inner_layers(onnx.load(source)),
        extra_options={
            "ActivationSymmetric": True, "WeightSymmetric": True, "QuantizeBias": False, "OpTypesToExcludeOutputQuantization": names,
        },
    )  # fmt: skip
    quantise.quantise(source, tmp_path / "ours.onnx", examples, len(examples))
    ours, theirs = (onnx.load(tmp_path / f"{name}.onnx").graph for name in ("ours", "theirs"))
    assert [node.op_type for node in ours.node].count("QuantizeLinear") >= 5
    assert [node.SerializeToString() for node in ours.node] == [node.SerializeToString() for node in theirs.node]
    found, expected = ({tensor.name: tensor.SerializeToString() for tensor in graph.initializer} for graph in (ours, theirs))
    assert found == expected


def test_no_value_is_kept_until_the_end(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, examples: list[Any]) -> None:
    """Nodes run in the order of the file, where least and greatest come right after a value: what bounds the memory."""
    onnxruntime = pytest.importorskip("onnxruntime")
    original = onnxruntime.SessionOptions

    def recorded() -> Any:
        options = original()
        options.enable_profiling, options.profile_file_prefix = True, str(tmp_path / "run")
        return options

    monkeypatch.setattr(onnxruntime, "SessionOptions", recorded)
    names = [f"z{i}" for i in range(6)]
    quantise.value_ranges(towers(tmp_path), names, examples[:1])
    (profile,) = tmp_path.glob("run*.json")
    events = [event for event in json.loads(profile.read_text()) if event.get("cat") == "Node" and event["name"].endswith("_kernel_time")]
    order = [event["name"].removesuffix("_kernel_time") for event in sorted(events, key=lambda event: event["ts"])]
    for i in range(5):
        assert max(order.index(f"z{i}.Min"), order.index(f"z{i}.Max")) < order.index(f"layer{i + 1}"), order
    assert order.index("z5.Max") < order.index("product")


@pytest.mark.parametrize("stored", [True, False])
def test_fast_lengths_are_the_same_lengths(stored: bool) -> None:
    onnxruntime = pytest.importorskip("onnxruntime")
    make = onnx.helper.make_node
    nodes = [
        make("Relu", ["pixels"], ["x"]), make("ReduceL2", ["x", "axes"], ["n"], keepdims=1), make("Clip", ["n", "least"], ["c"]),
        make("Shape", ["x"], ["s"]), make("Expand", ["c", "s"], ["e"]), make("Div", ["x", "e"], ["y"]),
    ]  # fmt: skip
    constants = {"axes": np.array([1]), "least": np.float32(1e-12)}
    model = graph(nodes, [value("pixels", ["b", 5, "h", "w"])], [value("y", ["b", 5, "h", "w"])], constants)
    if stored:
        model.graph.value_info.append(value("x", ["b", 5, "h", "w"]))
    fast_lengths(model)
    onnx.checker.check_model(model)
    kinds = [node.op_type for node in model.graph.node]
    assert "Expand" not in kinds and ("ReduceL2" in kinds) != stored
    session = onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    for shape in ((1, 5, 3, 4), (3, 5, 1, 7)):
        x = np.random.default_rng(1).standard_normal(shape).astype(np.float32)
        x[0, :, 0, 0] = 0
        positive = np.maximum(x, 0)
        expected = positive / np.maximum(np.sqrt((positive.astype(np.float64) ** 2).sum(1, keepdims=True)), 1e-12)
        np.testing.assert_allclose(session.run(None, {"pixels": x})[0], expected, atol=3e-7)


def test_the_package_has_the_fast_graph() -> None:
    kinds = [node.op_type for node in onnx.load(ROOT / "ovseg" / "weights" / "mini" / "image.onnx", load_external_data=False).graph.node]
    assert "Expand" not in kinds and "ReduceL2" not in kinds and kinds.count("Sqrt") == 2


# -------------------------------------------------------------------------------------------------------------- the seal


@pytest.mark.parametrize(("old", "new"), [
    ('logit_scale: 20.0', 'logit_scale: 2.0'), ('"short_side": 32', '"short_side": 64'), ('templates: "mini"', 'templates: "none"'),
    ('family: "mini"', 'family: "clip"'), ('stride: 8', 'stride: 8\nfamily_name: "x"'),
])  # fmt: skip
def test_an_altered_card_is_refused(tmp_path: Path, old: str, new: str) -> None:
    folder = exported_folder(tmp_path / "model")
    text = (folder / "card.md").read_text("utf-8")
    assert text.count(old) == 1
    (folder / "card.md").write_text(text.replace(old, new), "utf-8")
    for read in (ovseg.load, check_folder):
        with pytest.raises(WeightsError, match=r"card.md is damaged or altered.*delete that line"):
            read(folder)


def test_prose_and_unsealed_cards_are_free() -> None:
    text = card_text(dataclasses.replace(cards()["mini"], text="prose\n"))
    card = parse_card(text, "x")
    assert (card.sha256, card.text) == (cards()["mini"].sha256, "prose\n")
    assert parse_card(text + "more prose: here\n", "x").text == "prose\nmore prose: here\n"
    assert parse_card(text.replace("\n", "\r\n"), "x").logit_scale == card.logit_scale
    unsealed = "\n".join(line for line in text.split("\n") if not line.startswith(SEAL))
    assert parse_card(unsealed, "x") == card
    assert parse_card(unsealed.replace("logit_scale: 20.0", "logit_scale: 21.0"), "x").logit_scale == 21
    with pytest.raises(WeightsError, match="altered"):
        parse_card(text.replace(f"{SEAL}: \"", f"{SEAL}: \"0"), "x")


def test_every_bit_of_a_sealed_card_counts() -> None:
    text = card_text(dataclasses.replace(cards()["mini"], text=""))
    original = parse_card(text, "x")
    random: np.random.Generator = np.random.default_rng(0)
    for place in random.integers(0, len(text), 200):
        altered: NDArray[np.uint8] = np.frombuffer(text.encode(), np.uint8).copy()
        altered[place] ^= 1
        try:
            found = parse_card(altered.tobytes().decode(), "x")
        except WeightsError:
            continue
        assert found == original, "only what says nothing may change unnoticed"


def test_a_folder_is_sealed_when_it_is_exported(mini8: Path, tmp_path: Path) -> None:
    shutil.copytree(mini8, tmp_path / "copy")
    text = (tmp_path / "copy" / "card.md").read_text("utf-8")
    (tmp_path / "copy" / "card.md").write_text(text.replace('"multiple": 32', '"multiple": 64'), "utf-8")
    with pytest.raises(WeightsError, match="altered"):
        ovseg.load(tmp_path / "copy")
