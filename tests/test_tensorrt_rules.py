"""Each rule of TensorRT's parser on a small graph that breaks it, and on one that does not."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

onnx = pytest.importorskip("onnx")
from onnx import TensorProto, helper  # noqa: E402
from ovseg.export import tensorrt_rules  # noqa: E402
from ovseg.export.tensorrt_profiles import covers  # noqa: E402
from ovseg.export.tensorrt_rules import lint_graph, read_graph  # noqa: E402
from small_graphs import graph, image_graph, segmenter_graph, value  # noqa: E402

from ovseg.errors import WeightsError  # noqa: E402
from ovseg.registry import find_card, weights_folder  # noqa: E402

node = helper.make_node
PIXELS = value("pixel_values", ["B", 3, "H", "W"])
X, Y = value("x", ["N", 4]), value("y", None)


def found(tmp_path: Path, model: Any, **options: Any) -> set[tuple[str, str]]:
    onnx.save(model, tmp_path / "graph.onnx")
    return {(problem.rule, problem.severity) for problem in lint_graph(tmp_path / "graph.onnx", **options)}


def resize(**attributes: Any) -> Any:
    scales = {"scales": np.float32([1, 1, 2, 2])}
    return graph([node("Resize", ["pixel_values", "", "scales"], ["y"], **attributes)], [PIXELS], [Y], scales)


@pytest.mark.parametrize("part", ["image", "text"])
def test_the_graphs_of_mini_are_clean(part: str) -> None:
    assert lint_graph(weights_folder(find_card("mini")) / f"{part}.onnx") == []


def test_graphs_like_the_exported_ones_are_clean_and_covered(tmp_path: Path) -> None:
    assert found(tmp_path, image_graph(), covered=covers) == set()
    assert found(tmp_path, segmenter_graph(), covered=covers) == set()


@pytest.mark.parametrize(
    ("attributes", "expected"),
    [
        ({"mode": "linear"}, set()),
        ({"mode": "nearest", "coordinate_transformation_mode": "asymmetric", "nearest_mode": "floor"}, set()),
        ({"mode": "linear", "antialias": 1}, {("antialias", "error")}),
        ({"mode": "cubic"}, {("resize", "unknown")}),
        ({"mode": "cubic", "antialias": 1}, {("antialias", "error"), ("resize", "unknown")}),
        ({"mode": "linear", "coordinate_transformation_mode": "half_pixel_symmetric"}, {("resize", "error")}),
        ({"mode": "linear", "keep_aspect_ratio_policy": "not_larger"}, {("resize", "error")}),
        ({"coordinate_transformation_mode": "tf_half_pixel_for_nn", "nearest_mode": "floor"}, {("resize", "error")}),
    ],
)
def test_resizes(tmp_path: Path, attributes: dict[str, Any], expected: set[tuple[str, str]]) -> None:
    assert found(tmp_path, resize(**attributes)) == expected


def test_resizes_with_computed_scales_need_all_axes(tmp_path: Path) -> None:
    inputs = [PIXELS, value("scales", [2])]
    model = graph([node("Resize", ["pixel_values", "", "scales"], ["y"], mode="linear", axes=[2, 3])], inputs, [Y])
    assert found(tmp_path, model) == {("resize", "error")}


@pytest.mark.parametrize("kind", ["Det", "ConvInteger", "DynamicQuantizeLinear", "Unique", "BitShift", "NoSuchOperator"])
def test_operators_that_the_parser_lacks(tmp_path: Path, kind: str) -> None:
    assert found(tmp_path, graph([node(kind, ["x"], ["y"])], [X], [Y])) == {("operator", "error")}


def test_operators_of_other_domains(tmp_path: Path) -> None:
    model = graph([node("FusedMatMul", ["x", "x"], ["y"], domain="com.microsoft")], [X], [Y])
    model.opset_import.append(helper.make_opsetid("com.microsoft", 1))
    assert found(tmp_path, model) == {("operator", "error")}


def test_functions_are_looked_into(tmp_path: Path) -> None:
    imports = [helper.make_opsetid("", 18)]
    for inner, expected in (("Relu", set()), ("Det", {("operator", "error")})):
        model = graph([node("Mine", ["x"], ["y"], domain="own")], [X], [Y])
        model.opset_import.append(helper.make_opsetid("own", 1))
        model.functions.append(helper.make_function("own", "Mine", ["a"], ["b"], [node(inner, ["a"], ["b"])], imports))
        assert found(tmp_path, model) == expected


def test_graphs_inside_nodes_are_looked_into(tmp_path: Path) -> None:
    def branch(kind: str) -> Any:
        return helper.make_graph([node(kind, ["x"], ["z"])], kind, [], [value("z", None)])

    choice = value("choice", [], TensorProto.BOOL)
    model = graph([node("If", ["choice"], ["y"], then_branch=branch("Relu"), else_branch=branch("Det"))], [X, choice], [Y])
    assert found(tmp_path, model) == {("control-flow", "unknown"), ("operator", "error")}


@pytest.mark.parametrize(("opset", "expected"), [(8, {("opset", "error")}), (9, set()), (24, set()), (25, {("opset", "error")})])
def test_opsets(tmp_path: Path, opset: int, expected: set[tuple[str, str]]) -> None:
    assert found(tmp_path, graph([node("Relu", ["x"], ["y"])], [X], [value("y", ["N", 4])], opset=opset)) == expected


@pytest.mark.parametrize(("opset", "expected"), [(18, {("bfloat16", "error")}), (21, {("bfloat16", "error")}), (22, set())])
def test_bfloat16_needs_a_late_opset(tmp_path: Path, opset: int, expected: set[tuple[str, str]]) -> None:
    nodes = [node("Cast", ["x"], ["half"], to=TensorProto.BFLOAT16), node("Cast", ["half"], ["y"], to=TensorProto.FLOAT)]
    assert found(tmp_path, graph(nodes, [X], [value("y", ["N", 4])], opset=opset)) == expected


@pytest.mark.parametrize(
    ("kind", "wrong"),
    [("FLOAT", False), ("FLOAT16", False), ("INT64", False), ("BOOL", False), ("UINT8", False), ("UINT16", True), ("DOUBLE", True),
     ("BFLOAT16", True), ("STRING", True)],
)  # fmt: skip
def test_types_of_inputs_and_outputs(tmp_path: Path, kind: str, wrong: bool) -> None:
    number = getattr(TensorProto, kind)
    nodes = [node("Cast", ["x"], ["y"], to=number)]
    rules = {rule for rule, _ in found(tmp_path, graph(nodes, [X], [value("y", ["N", 4], number)], opset=23))}
    assert ("type" in rules) == wrong


def test_uint8_lives_at_the_border_only(tmp_path: Path) -> None:
    picture = value("x", ["N", 4], TensorProto.UINT8)
    to_float = node("Cast", ["x"], ["f"], to=TensorProto.FLOAT)
    assert found(tmp_path, graph([to_float, node("Relu", ["f"], ["y"])], [picture], [value("y", ["N", 4])])) == set()
    inside = [node("Transpose", ["x"], ["t"], perm=[1, 0]), node("Cast", ["t"], ["y"], to=TensorProto.FLOAT)]
    assert found(tmp_path, graph(inside, [picture], [value("y", [4, "N"])])) == {("uint8", "error")}


def test_uint8_is_cast_from_floats_only(tmp_path: Path) -> None:
    best = node("ArgMax", ["x"], ["best"], axis=1, keepdims=0)
    result = value("y", ["N"], TensorProto.UINT8)
    direct = graph([best, node("Cast", ["best"], ["y"], to=TensorProto.UINT8)], [X], [result])
    assert found(tmp_path, direct) == {("uint8", "error")}
    steps = [best, node("Cast", ["best"], ["f"], to=TensorProto.FLOAT), node("Cast", ["f"], ["y"], to=TensorProto.UINT8)]
    assert found(tmp_path, graph(steps, [X], [result])) == set()


def test_dimensions_are_named_and_covered(tmp_path: Path) -> None:
    relu = [node("Relu", ["x"], ["y"])]
    assert found(tmp_path, graph(relu, [value("x", [None, 4])], [Y])) == {("dimension", "error")}
    assert found(tmp_path, graph(relu, [X], [Y])) == set()
    assert found(tmp_path, graph(relu, [X], [Y]), covered=covers) == {("dimension", "error")}
    assert found(tmp_path, graph(relu, [value("x", [2, 4])], [Y]), covered=covers) == set()


def test_a_batch_that_is_fixed_at_the_output(tmp_path: Path) -> None:
    relu = [node("Relu", ["pixel_values"], ["y"])]
    assert found(tmp_path, graph(relu, [PIXELS], [value("y", [1, 3, "H", "W"])])) == {("batch", "error")}
    assert found(tmp_path, graph(relu, [value("pixel_values", [1, 3, "H", "W"])], [value("y", [1, 3, "H", "W"])])) == set()


def test_shapes_that_depend_on_values(tmp_path: Path) -> None:
    model = graph([node("NonZero", ["x"], ["y"])], [X], [value("y", [2, "M"], TensorProto.INT64)])
    assert found(tmp_path, model) == {("data-dependent", "error")}


def test_inputs_that_must_be_constant(tmp_path: Path) -> None:
    axes = value("axes", [1], TensorProto.INT64)
    computed = graph([node("ReduceSum", ["x", "axes"], ["y"])], [X, axes], [Y])
    assert found(tmp_path, computed) == {("constant", "error")}
    assert found(tmp_path, graph([node("ReduceSum", ["x", "axes"], ["y"])], [X], [Y], {"axes": np.int64([1])})) == set()
    made = node("Constant", [], ["axes"], value_ints=[1])
    assert found(tmp_path, graph([made, node("ReduceSum", ["x", "axes"], ["y"])], [X], [Y])) == set()


@pytest.mark.parametrize(
    ("made", "rule"),
    [
        (node("MaxPool", ["pixel_values"], ["y", "places"], kernel_shape=[2, 2]), "outputs"),
        (node("MaxPool", ["pixel_values"], ["y"], kernel_shape=[2, 2], dilations=[2, 2]), "pooling"),
        (node("LayerNormalization", ["pixel_values", "scale"], ["y", "mean"]), "outputs"),
        (node("BatchNormalization", ["pixel_values", *["scale"] * 4], ["y"], training_mode=1), "training"),
        (node("TopK", ["pixel_values", "many"], ["y", "places"]), "topk"),
        (node("TopK", ["pixel_values", "few"], ["y", "places"], sorted=0), "topk"),
        (node("ScatterND", ["pixel_values", "few", "scale"], ["y"], reduction="add"), "scatter"),
        (node("Attention", ["pixel_values"] * 3, ["y"], softcap=2.0), "attention"),
        (node("Attention", ["pixel_values"] * 3, ["y", "key"]), "attention"),
        (node("Constant", [], ["y"], value_string="a"), "constant"),
        (node("Cast", ["pixel_values"], ["y"], to=TensorProto.UINT16), "type"),
    ],
)
def test_what_operators_must_not_ask_for(tmp_path: Path, made: Any, rule: str) -> None:
    weights = {"scale": np.ones(3, np.float32), "many": np.int64([4000]), "few": np.int64([3])}
    assert found(tmp_path, graph([made], [PIXELS], [Y], weights, opset=23)) == {(rule, "error")}


@pytest.mark.parametrize(
    ("zero", "expected"),
    [(np.int8(0), set()), (np.int8(3), {("quantisation", "error")}), (np.uint8(128), {("quantisation", "error")})],
)
def test_quantisation_is_symmetric(tmp_path: Path, zero: Any, expected: set[tuple[str, str]]) -> None:
    nodes = [node("QuantizeLinear", ["x", "scale", "zero"], ["q"]), node("DequantizeLinear", ["q", "scale", "zero"], ["y"])]
    model = graph(nodes, [X], [value("y", ["N", 4])], {"scale": np.float32(0.1), "zero": zero})
    assert found(tmp_path, model) - {("uint8", "error")} == expected


def test_weights_beside_the_graph(tmp_path: Path) -> None:
    onnx.save_model(image_graph(), tmp_path / "g.onnx", save_as_external_data=True, location="g.data", size_threshold=0)
    assert lint_graph(tmp_path / "g.onnx") == []
    (tmp_path / "g.data").unlink()
    assert [problem.rule for problem in lint_graph(tmp_path / "g.onnx")] == ["weights"]
    model = read_graph(tmp_path / "g.onnx")
    next(entry for entry in model.graph.initializer[0].external_data if entry.key == "location").value = "../g.data"
    (tmp_path.parent / "g.data").write_bytes(b"")
    (tmp_path / "g.onnx").write_bytes(model.SerializeToString())
    assert [problem.rule for problem in lint_graph(tmp_path / "g.onnx")] == ["weights"]


def test_a_file_too_large_for_protobuf_is_not_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    onnx.save(image_graph(), tmp_path / "g.onnx")
    monkeypatch.setattr(tensorrt_rules, "LARGEST_FILE", 100)
    assert [problem.rule for problem in lint_graph(tmp_path / "g.onnx")] == ["size"]


def test_a_file_that_is_no_graph(tmp_path: Path) -> None:
    (tmp_path / "g.onnx").write_bytes(b"\x0a\xff no graph")
    with pytest.raises(WeightsError, match="not an ONNX graph"):
        lint_graph(tmp_path / "g.onnx")


def test_the_table_has_operators_that_exist() -> None:
    known = {schema.name for schema in onnx.defs.get_all_schemas_with_history() if schema.domain == ""}
    assert known >= tensorrt_rules.SUPPORTED - {"Scatter", "Upsample"}
    assert not tensorrt_rules.SUPPORTED & {"AffineGrid", "Bernoulli", "Compress", "DFT", "QLinearConv", "SequenceAt", "Unique"}
