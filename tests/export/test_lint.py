"""Each rule trips on a model that breaks it, alone, and for the releases it should; what agrikd writes is clean."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from onnx import ModelProto, NodeProto, TensorProto, helper, numpy_helper
from onnxruntime.quantization import CalibrationDataReader, CalibrationMethod, QuantFormat, QuantType, quantize_static

from agrikd.errors import InputError
from agrikd.export import lint as linting
from agrikd.export import onnx as exporting
from agrikd.export.lint import RELEASES, RULES, lint, readable_by
from agrikd.nets.sources import open_net
from agrikd.recipe import NetSpec
from agrikd.types import ModelSpec

CLASSES = ("blight", "healthy", "rust")
TYPED = ("10.13", "10.16", "11")


@dataclass
class Built:
    """A graph under construction; `keep` stores an array and gives its name."""

    nodes: list[NodeProto]
    stored: dict[str, np.ndarray]
    opset: int = 16

    def add(self, kind: str, *inputs: str, to: str, **attributes: Any) -> str:
        if kind == "Cast":
            attributes["to"] = attributes.pop("dtype")
        self.nodes.append(helper.make_node(kind, list(inputs), [to], to, **attributes))
        return to

    def keep(self, name: str, values: Any, dtype: Any = np.float32) -> str:
        self.stored[name] = np.asarray(values, dtype)
        return name

    def pair(self, name: str, channels: int = 0, scale: Any = np.float32) -> str:
        """A Q/DQ pair on a tensor: one scale, or one a channel along axis 0."""
        self.keep(f"{name}_scale", np.full(channels, 0.02) if channels else 0.02, scale)
        self.keep(f"{name}_zero", np.zeros(channels) if channels else 0, np.int8)
        rest = {"axis": 0} if channels else {}
        self.add("QuantizeLinear", name, f"{name}_scale", f"{name}_zero", to=f"{name}_q", **rest)
        return self.add("DequantizeLinear", f"{name}_q", f"{name}_scale", f"{name}_zero", to=f"{name}_dq", **rest)

    def model(self) -> ModelProto:
        picture = helper.make_tensor_value_info("image", TensorProto.FLOAT, [1, 3, 8, 8])
        logits = helper.make_tensor_value_info("logits", TensorProto.FLOAT, [1, 3])
        stored = [numpy_helper.from_array(values, name) for name, values in self.stored.items()]
        graph = helper.make_graph(self.nodes, "net", [picture], [logits], stored)
        return helper.make_model(graph, opset_imports=[helper.make_opsetid("", self.opset)])


def plain() -> Built:
    """Two convolutions, a pool, a residual Add and a head, in FP32."""
    net = Built([], {})
    net.keep("w", np.ones((4, 3, 3, 3)))
    net.keep("v", np.ones((4, 4, 3, 3)))
    net.keep("fc", np.ones((4, 3)))
    net.keep("fb", np.ones(3))
    net.add("Conv", "image", "w", to="first", pads=[1] * 4)
    net.add("Relu", "first", to="relu")
    net.add("MaxPool", "relu", to="pool", kernel_shape=[2, 2], strides=[2, 2])
    net.add("Conv", "pool", "v", to="second", pads=[1] * 4)
    net.add("Add", "second", "pool", to="sum")
    net.add("GlobalAveragePool", "sum", to="mean")
    net.add("Flatten", "mean", to="flat")
    net.add("Gemm", "flat", "fc", "fb", to="logits")
    return net


def half() -> Built:
    """`plain` in FP16 between two Casts."""
    net = plain()
    net.stored = {name: values.astype(np.float16) for name, values in net.stored.items()}
    first, last = net.nodes[0], net.nodes[-1]
    first.input[0], last.output[0] = "image16", "logits16"
    net.nodes.insert(0, helper.make_node("Cast", ["image"], ["image16"], "image16", to=TensorProto.FLOAT16))
    net.add("Cast", "logits16", to="logits", dtype=TensorProto.FLOAT)
    return net


def quantised(dtype: Any = np.float32, opset: int = 16) -> Built:
    """`plain` with pairs as the recipe places them; with FP16 for `dtype`, FP16 outside of the pairs."""
    net = plain() if dtype == np.float32 else half()
    nodes, net.nodes, net.opset = net.nodes, [], opset
    channels = {"w": 4, "v": 4}
    for node in nodes:
        if node.op_type in ("Conv", "Add", "GlobalAveragePool"):
            wanted = [name for name in node.input if f"{name}_q" not in {n.name for n in net.nodes}]
            for name in wanted:
                net.pair(name, channels.get(name, 0), dtype)
            node.input[:] = [f"{name}_dq" for name in node.input]
        net.nodes.append(node)
    return net


Change = Callable[[Built], ModelProto | None]


def node(net: Built, name: str) -> NodeProto:
    return next(one for one in net.nodes if one.name == name)


def before_the_head(net: Built, *made: tuple[str, list[str], dict[str, Any]]) -> None:
    """Put nodes between `flat` and the head; each reads the inputs named and the last makes what the head reads."""
    place = net.nodes.index(node(net, "logits"))
    for number, (kind, inputs, attributes) in enumerate(made):
        name = f"made{number}"
        net.nodes.insert(place + number, helper.make_node(kind, inputs, [name], name, **attributes))
    node(net, "logits").input[0] = f"made{len(made) - 1}"


def opset_22(net: Built) -> None:
    net.opset = 22


def opset_24(net: Built) -> None:
    net.opset = 24


def a_foreign_import(net: Built) -> ModelProto:
    model = net.model()
    model.opset_import.append(helper.make_opsetid("com.microsoft", 1))
    return model


def a_foreign_operator(net: Built) -> None:
    node(net, "relu").domain = "com.microsoft"


def two_inputs(net: Built) -> ModelProto:
    model = net.model()
    model.graph.input.append(helper.make_tensor_value_info("more", TensorProto.FLOAT, [1, 3]))
    return model


def any_batch(net: Built) -> ModelProto:
    model = net.model()
    model.graph.input[0].type.tensor_type.shape.dim[0].dim_param = "batch"
    return model


def an_fp16_output(net: Built) -> ModelProto:
    model = net.model()
    model.graph.node.append(helper.make_node("Cast", ["flat"], ["half"], "half", to=TensorProto.FLOAT16))
    model.graph.output.append(helper.make_tensor_value_info("half", TensorProto.FLOAT16, [1, 4]))
    return model


def a_double_bias(net: Built) -> None:
    net.keep("fb", np.ones(3), np.float64)


def a_gelu(net: Built) -> None:
    node(net, "relu").op_type = "Gelu"


def a_det(net: Built) -> None:
    node(net, "relu").op_type = "Det"


def integers_through(kind: str) -> Change:
    def change(net: Built) -> None:
        net.keep("count", [3], np.int64)
        to = {"to": TensorProto.FLOAT}
        before_the_head(net, (kind, ["count"], {}), ("Cast", ["made0"], to), ("Mul", ["flat", "made1"], {}))

    return change


def an_argmax(net: Built) -> None:
    to = {"to": TensorProto.FLOAT}
    made = ("ArgMax", ["flat"], {"axis": 1}), ("Cast", ["made0"], to), ("Mul", ["flat", "made1"], {})
    before_the_head(net, *made)


def a_large_integer(net: Built) -> None:
    net.keep("count", [2**40], np.int64)
    before_the_head(net, ("Cast", ["count"], {"to": TensorProto.FLOAT}), ("Mul", ["flat", "made0"], {}))


def computed_axes(kind: str) -> Change:
    def change(net: Built) -> None:
        net.keep("axes", [2, 3] if kind != "Slice" else [1], np.int64)
        net.keep("start", [0], np.int64)
        net.keep("end", [4], np.int64)
        ends = ["flat", "start", "end", "made0"] if kind == "Slice" else ["mean", "made0"]
        rest = {"keepdims": 0} if kind == "ReduceSum" else {}
        before_the_head(net, ("Identity", ["axes"], {}), (kind, ends, rest))

    return change


def dropout(training: bool) -> Change:
    def change(net: Built) -> None:
        net.keep("ratio", 0.5)
        net.keep("training", training, np.bool_)
        before_the_head(net, ("Dropout", ["flat", "ratio", "training"], {}))

    return change


def a_dilated_pool(net: Built) -> None:
    pool = node(net, "pool")
    del pool.attribute[:]
    pool.attribute.extend([helper.make_attribute("kernel_shape", [2, 2]), helper.make_attribute("dilations", [2, 2])])


def resized(mode: str) -> Change:
    def change(net: Built) -> None:
        net.keep("scales", [1, 1, 2, 2])
        place = net.nodes.index(node(net, "mean"))
        net.nodes.insert(place, helper.make_node("Resize", ["sum", "", "scales"], ["large"], "large", mode=mode))
        node(net, "mean").input[0] = "large"

    return change


def indices(net: Built) -> None:
    node(net, "pool").output.append("places")


def fp32_weights(net: Built) -> None:
    net.stored["w"] = net.stored["w"].astype(np.float32)


def a_forgotten_cast(net: Built) -> None:
    place = net.nodes.index(node(net, "sum"))
    single = helper.make_node("Cast", ["pool"], ["single"], "single", to=TensorProto.FLOAT)
    net.nodes.insert(place, single)
    node(net, "sum").input[1] = "single"
    net.nodes.insert(place + 2, helper.make_node("Cast", ["sum"], ["sum16"], "sum16", to=TensorProto.FLOAT16))
    node(net, "mean").input[0] = "sum16"


def a_dequantised_weight_in_fp16(net: Built) -> None:
    net.stored["w"] = net.stored["w"].astype(np.float32)
    pair = Built([], net.stored)
    node(net, "first").input[1] = pair.pair("w", 4)
    net.nodes[:0] = pair.nodes


def no_zero_point(net: Built) -> None:
    del node(net, "pool_dq").input[2]


def a_zero_point_of_3(net: Built) -> None:
    net.keep("pool_zero", 3, np.int8)


def too_many_zero_points(net: Built) -> None:
    net.keep("pool_zero", [0, 0], np.int8)


def uint8(net: Built) -> None:
    net.keep("pool_zero", 0, np.uint8)


def an_int32_bias(net: Built) -> None:
    net.keep("b_stored", np.ones(4), np.int32)
    net.keep("b_scale", 0.02)
    net.keep("b_zero", 0, np.int32)
    inputs = ["b_stored", "b_scale", "b_zero"]
    net.nodes.insert(0, helper.make_node("DequantizeLinear", inputs, ["b_dq"], "b_dq"))
    node(net, "first").input.append("b_dq")


def a_scale_of(value: Any, dtype: Any = np.float32) -> Change:
    def change(net: Built) -> None:
        net.keep("pool_scale", value, dtype)

    return change


def channels_of_an_activation(net: Built) -> None:
    net.keep("pool_scale", np.full(4, 0.02))
    net.keep("pool_zero", np.zeros(4), np.int8)


def too_few_scales(net: Built) -> None:
    net.keep("v_scale", np.full(3, 0.02))
    net.keep("v_zero", np.zeros(3), np.int8)


def no_axis(net: Built) -> None:
    for name in ("v_q", "v_dq"):
        del node(net, name).attribute[:]


def shared_weights(net: Built) -> None:
    place = net.nodes.index(node(net, "second_q"))
    net.nodes.insert(place, helper.make_node("Conv", ["pool_dq", "v_dq"], ["third"], "third", pads=[1] * 4))
    net.nodes.insert(place + 1, helper.make_node("Mul", ["second", "third"], ["product"], "product"))
    node(net, "second_q").input[0] = "product"


def stored_weights(net: Built) -> None:
    net.nodes.remove(node(net, "v_q"))
    net.keep("v_q", np.ones((4, 4, 3, 3)), np.int8)


def a_quantised_softmax(net: Built) -> None:
    pair = Built([], net.stored)
    pair.pair("flat")
    place = net.nodes.index(node(net, "logits"))
    net.nodes[place:place] = pair.nodes
    before_the_head(net, ("Softmax", ["flat_dq"], {"axis": 1}))


def half_a_residual(net: Built) -> None:
    node(net, "sum").input[1] = "pool"


CASES: list[tuple[str, Callable[[], Built], Change, tuple[str, ...]]] = [
    ("opset", plain, opset_22, ("8.6", "10.3")),
    ("opset", plain, opset_24, ("8.6", "10.3", "10.13")),
    ("domains", plain, a_foreign_import, RELEASES),
    ("domains", plain, a_foreign_operator, RELEASES),
    ("one_picture", plain, two_inputs, RELEASES),
    ("one_picture", plain, any_batch, RELEASES),
    ("one_picture", plain, an_fp16_output, RELEASES),
    ("no_double", plain, a_double_bias, RELEASES),
    ("known_operators", plain, a_gelu, ("8.6",)),
    ("known_operators", plain, a_det, RELEASES),
    ("element_types", plain, integers_through("Relu"), ("8.6",)),
    ("element_types", plain, integers_through("Sqrt"), RELEASES),
    ("integers_are_shapes", plain, an_argmax, RELEASES),
    ("int64_range", plain, a_large_integer, ("8.6",)),
    ("constant_inputs", plain, computed_axes("Squeeze"), RELEASES),
    ("constant_inputs", plain, computed_axes("ReduceSum"), RELEASES[1:]),
    ("constant_inputs", plain, computed_axes("Slice"), ("8.6",)),
    ("constant_inputs", plain, dropout(training=True), RELEASES),
    ("attributes", plain, a_dilated_pool, RELEASES),
    ("attributes", plain, resized("cubic"), RELEASES),
    ("outputs", plain, indices, RELEASES),
    ("one_float_type", half, fp32_weights, TYPED),
    ("one_float_type", half, a_forgotten_cast, TYPED),
    ("one_float_type", half, a_dequantised_weight_in_fp16, TYPED),
    ("zero_points", quantised, no_zero_point, ("8.6",)),
    ("zero_points", quantised, a_zero_point_of_3, RELEASES),
    ("zero_points", quantised, too_many_zero_points, RELEASES),
    ("int8_only", quantised, uint8, RELEASES),
    ("int8_only", quantised, an_int32_bias, RELEASES),
    ("scales", quantised, a_scale_of(0), RELEASES),
    ("scales", quantised, a_scale_of(np.nan), RELEASES),
    ("scales", quantised, a_scale_of(0.02, np.float16), RELEASES),
    ("scales_per_axis", quantised, channels_of_an_activation, RELEASES),
    ("scales_per_axis", quantised, too_few_scales, RELEASES),
    ("scales_per_axis", quantised, no_axis, ("8.6",)),
    ("weight_pairs", quantised, shared_weights, ("8.6",)),
    ("weight_pairs", quantised, stored_weights, ("8.6",)),
    ("floats_before_softmax", quantised, a_quantised_softmax, RELEASES),
    ("residual_adds", quantised, half_a_residual, RELEASES),
]


def found_in(model: ModelProto, path: Path) -> dict[str, set[str]]:
    """Rules by release."""
    onnx.save(model, path)
    found: dict[str, set[str]] = {}
    for finding in lint(path):
        assert finding.where and "expected" in finding.wrong
        found.setdefault(finding.release, set()).add(finding.rule)
    return found


@pytest.mark.parametrize("base", [plain, half, quantised])
def test_the_models_that_are_broken_below_are_whole(base: Callable[[], Built], tmp_path: Path) -> None:
    onnx.checker.check_model(base().model(), full_check=True)
    assert found_in(base().model(), tmp_path / "net.onnx") == {}
    assert readable_by(tmp_path / "net.onnx") == RELEASES


@pytest.mark.parametrize(("rule", "base", "change", "releases"), CASES, ids=[case[0] for case in CASES])
def test_a_rule_trips_alone(
    rule: str, base: Callable[[], Built], change: Change, releases: tuple[str, ...], tmp_path: Path
) -> None:
    net = base()
    model = change(net) or net.model()
    assert found_in(model, tmp_path / "net.onnx") == {release: {rule} for release in releases}
    assert readable_by(tmp_path / "net.onnx") == tuple(one for one in RELEASES if one not in releases)


def test_every_rule_has_a_model_that_breaks_it() -> None:
    assert len(RULES) == 19
    assert {case[0] for case in CASES} == {rule.__name__ for rule in RULES}


@pytest.mark.parametrize("change", [dropout(training=False), resized("linear")])
def test_what_is_allowed_is_clean(change: Change, tmp_path: Path) -> None:
    net = plain()
    change(net)
    assert found_in(net.model(), tmp_path / "net.onnx") == {}


def test_a_slice_to_the_end_survives_clamping(tmp_path: Path) -> None:
    net = plain()
    for name, value in (("start", 0), ("end", 2**63 - 1), ("axis", 1)):
        net.keep(name, [value], np.int64)
    before_the_head(net, ("Slice", ["flat", "start", "end", "axis"], {}))
    assert found_in(net.model(), tmp_path / "net.onnx") == {}


def test_fp16_scales_are_for_strong_typing(tmp_path: Path) -> None:
    model = quantised(np.float16, opset=19).model()
    onnx.checker.check_model(model, full_check=True)
    found = found_in(model, tmp_path / "net.onnx")
    assert found == {"8.6": {"opset", "scales"}, "10.3": {"scales"}}


def test_only_the_releases_asked_for_are_judged(tmp_path: Path) -> None:
    net = plain()
    a_gelu(net)
    onnx.save(net.model(), tmp_path / "net.onnx")
    assert lint(tmp_path / "net.onnx", ("11",)) == []
    (finding,) = lint(tmp_path / "net.onnx", ("8.6", "11"))
    assert (finding.release, finding.where) == ("8.6", "relu")


def test_mistakes(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"TensorRT 9\.9"):
        lint(tmp_path / "net.onnx", ("9.9",))
    with pytest.raises(InputError, match="no readable ONNX file"):
        lint(tmp_path / "absent.onnx")
    (tmp_path / "text.onnx").write_text("not a graph")
    with pytest.raises(InputError, match="no readable ONNX file"):
        lint(tmp_path / "text.onnx")


def test_the_table_speaks_of_operators_that_there_are() -> None:
    raw = json.loads(Path(linting.__file__).with_name("tensorrt_releases.json").read_text())
    assert set(raw["releases"]) == set(RELEASES) and set(RELEASES) < set(raw["sources"])
    counted = 0
    for row in linting.table().values():
        for name, limits in row.operators.items():
            schema = onnx.defs.get_schema(name)
            assert set(limits["types"].split()) <= {"FP32", "FP16", "INT32", "INT64", "INT8", "BOOL"}
            assert set(limits) <= {"types", "constant", "false", "attributes", "outputs"}
            assert set(limits.get("attributes", ())) <= set(schema.attributes), name
            assert all(place < schema.max_input for place in (*limits.get("constant", ()), *limits.get("false", ())))
            counted += 1
    assert counted >= 500


def exported(name: str, size: int, path: Path) -> Path:
    torch.manual_seed(0)
    net = open_net(NetSpec(timm=name, input_size=(size, size)), CLASSES).eval()
    exporting.write_graph(net, ModelSpec("test", "classification", CLASSES, net.input_size), path)
    exporting.fold(path)
    return path


@pytest.mark.parametrize(("name", "size"), [("mobilenetv3_small_050", 64), ("test_vit", 160), ("test_convnext", 64)])
def test_the_fp32_export_is_for_every_release(name: str, size: int, tmp_path: Path) -> None:
    path = exported(name, size, tmp_path / "net.onnx")
    assert lint(path) == []


def test_weights_that_were_left_behind_are_said(tmp_path: Path) -> None:
    path = tmp_path / "net.onnx"
    onnx.save(plain().model(), path, save_as_external_data=True, location="net.onnx.data", size_threshold=0)
    assert lint(path) == []
    (tmp_path / "net.onnx.data").unlink()
    with pytest.raises(InputError, match=r"net\.onnx: lacks weights (.|\n)*→ copy its \.data file beside it"):
        lint(path)


class Noise(CalibrationDataReader):
    def __init__(self) -> None:
        rng = np.random.default_rng(0)
        self.left: Iterator[dict[str, np.ndarray]] = iter(
            [{"image": rng.random((1, 3, 64, 64), np.float32)} for _ in range(2)]
        )

    def get_next(self) -> dict[str, np.ndarray] | None:
        return next(self.left, None)


def test_int8_with_and_without_the_options_that_tensorrt_needs(tmp_path: Path) -> None:
    source = exported("mobilenetv3_small_050", 64, tmp_path / "net.onnx")
    default, ours = tmp_path / "default.onnx", tmp_path / "ours.onnx"
    quantize_static(source, default, Noise())
    rules = {release: {one.rule for one in lint(default, (release,))} for release in RELEASES}
    assert all({"zero_points", "int8_only"} <= found for found in rules.values())
    assert "weight_pairs" in rules["8.6"]
    quantize_static(
        source,
        ours,
        Noise(),
        quant_format=QuantFormat.QDQ,
        per_channel=True,
        activation_type=QuantType.QInt8,
        weight_type=QuantType.QInt8,
        calibrate_method=CalibrationMethod.MinMax,
        op_types_to_quantize=["Conv", "Gemm", "MatMul", "Add", "GlobalAveragePool"],
        extra_options={
            "ActivationSymmetric": True,
            "WeightSymmetric": True,
            "QuantizeBias": False,
            "AddQDQPairToWeight": True,
            "DedicatedQDQPair": True,
        },
    )
    assert lint(ours) == []
