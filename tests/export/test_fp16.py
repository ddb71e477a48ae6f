"""Half precision: what stays in FP32, what is refused, and that the types are what they claim."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from onnx import TensorProto, helper, numpy_helper

from agrikd.errors import ParityError
from agrikd.export import fp16, lint
from agrikd.export import onnx as exporting
from agrikd.nets.from_timm import TimmNet
from agrikd.nets.sources import open_net
from agrikd.predict.ort import OrtPredictor
from agrikd.predict.torch import TorchPredictor
from agrikd.recipe import NetSpec
from agrikd.types import ModelSpec

CLASSES = ("blight", "healthy", "rust")
Photo = np.ndarray[Any, np.dtype[np.uint8]]


def source_of(name: str, size: int) -> TorchPredictor:
    """With a head that tells photos clearly apart."""
    torch.manual_seed(0)
    net = open_net(NetSpec(timm=name, input_size=(size, size)), CLASSES).eval()
    if isinstance(net.classifier, torch.nn.Linear):
        torch.nn.init.normal_(net.classifier.weight, std=20)
    return TorchPredictor(net, ModelSpec(name, "classification", CLASSES, (size, size)))


def written(source: TorchPredictor, path: Path) -> Path:
    assert isinstance(source.net, TimmNet)
    exporting.write_graph(source.net, source.spec, path)
    exporting.fold(path)
    exporting.describe(path, source.spec, 1)
    return path


@pytest.fixture(scope="module")
def photos() -> list[Photo]:
    rng = np.random.default_rng(0)
    return [rng.integers(0, 256, (80, 90, 3)).astype(np.uint8) for _ in range(4)]


NETS = {"mobilenetv3_small_050": 64, "test_vit": 160, "test_convnext": 160, "repvit_m0_9": 64, "fastvit_t8": 64}


@pytest.mark.parametrize("name", NETS)
def test_each_family_is_typed_and_clean(name: str, tmp_path: Path, photos: list[Photo]) -> None:
    source = source_of(name, NETS[name])
    model = onnx.load(written(source, tmp_path / "full.onnx"))
    kept = fp16.kept_in_fp32(model.graph)
    half = fp16.in_half(model, kept)
    onnx.save(half, tmp_path / "half.onnx")
    assert lint.lint(tmp_path / "half.onnx") == []
    assert {one.type.tensor_type.elem_type for one in (*half.graph.input, *half.graph.output)} == {TensorProto.FLOAT}
    sizes = dict.fromkeys((TensorProto.FLOAT, TensorProto.FLOAT16), 0)
    for one in half.graph.initializer:
        if one.data_type in sizes:
            sizes[one.data_type] += int(np.prod(one.dims))
    assert sizes[TensorProto.FLOAT16] > 0.95 * sum(sizes.values())
    assert (tmp_path / "half.onnx").stat().st_size < 0.7 * (tmp_path / "full.onnx").stat().st_size
    whole, less = OrtPredictor(tmp_path / "full.onnx"), OrtPredictor(tmp_path / "half.onnx")
    for one in photos:
        a, b = whole([one])[0].logits, less([one])[0].logits
        np.testing.assert_allclose(a, b, atol=0.02 * max(1.0, float(np.abs(a).max())))


def test_what_half_precision_would_spoil_stays_in_fp32(tmp_path: Path) -> None:
    model = onnx.load(written(source_of("test_vit", 160), tmp_path / "full.onnx"))
    kept = set(fp16.kept_in_fp32(model.graph))
    half = onnx.shape_inference.infer_shapes(fp16.in_half(model, kept))
    kinds = {one.name: one.type.tensor_type.elem_type for one in (*half.graph.value_info, *half.graph.input)}
    counted = {"Softmax": 0, "Sqrt": 0, "Pow": 0, "MatMul": 0}
    for node in half.graph.node:
        if node.op_type in counted and node.name in kept:
            counted[node.op_type] += 1
            assert kinds[node.output[0]] == TensorProto.FLOAT
    assert all(counted.values()), counted
    assert counted["Softmax"] == sum(node.op_type == "Softmax" for node in half.graph.node)
    assert counted["MatMul"] < sum(node.op_type == "MatMul" for node in half.graph.node), "values are half"
    door = [node for node in half.graph.node if "image" in node.input]
    assert [node.op_type for node in door] == ["Sub"], "a pixel reaches the door unrounded"


def test_no_value_is_rounded_on_its_way_between_two_fp32_nodes(tmp_path: Path) -> None:
    half = fp16.in_half(*_with_kept(onnx.load(written(source_of("test_convnext", 160), tmp_path / "full.onnx"))))
    down = {node.output[0] for node in half.graph.node if _casts(node, TensorProto.FLOAT16)}
    up = [node for node in half.graph.node if _casts(node, TensorProto.FLOAT)]
    assert up and not [node.name for node in up if node.input[0] in down]


def _with_kept(model: onnx.ModelProto) -> tuple[onnx.ModelProto, list[str]]:
    return model, fp16.kept_in_fp32(model.graph)


def _casts(node: onnx.NodeProto, to: int) -> bool:
    return node.op_type == "Cast" and node.attribute[0].i == to


def small(*nodes: onnx.NodeProto, weights: dict[str, np.ndarray[Any, Any]] | None = None) -> onnx.ModelProto:
    image, out = (helper.make_tensor_value_info(name, TensorProto.FLOAT, [1, 3, 4, 4]) for name in ("image", "out"))
    constants = [numpy_helper.from_array(np.float32(value), name) for name, value in (weights or {}).items()]
    graph = helper.make_graph(list(nodes), "small", [image], [out], constants)
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 16)], ir_version=8)


def test_a_tensor_that_both_read_is_cast_once() -> None:
    model = small(
        helper.make_node("Relu", ["image"], ["a"], "a"),
        helper.make_node("Mul", ["a", "a"], ["b"], "kept"),
        helper.make_node("Add", ["b", "a"], ["c"], "c"),
        helper.make_node("Mul", ["c", "a"], ["d"], "kept too"),
        helper.make_node("Relu", ["d"], ["out"], "end"),
    )
    half = fp16.in_half(model, ["kept", "kept too"])
    assert sum(node.op_type == "Cast" for node in half.graph.node) == 6
    model = small(helper.make_node("Relu", ["image"], ["out"], "kept"), helper.make_node("Relu", ["out"], ["x"], "x"))
    assert [node.op_type for node in fp16.in_half(model, ["kept"]).graph.node] == ["Relu", "Cast", "Relu"]


def test_a_planted_activation_of_70000_is_refused(tmp_path: Path, photos: list[Photo]) -> None:
    source = source_of("test_efficientnet", 32)
    path = written(source, tmp_path / "full.onnx")
    model = onnx.load(path)
    relu = next(node for node in model.graph.node if node.op_type == "Conv")
    for weight in model.graph.initializer:
        if weight.name == relu.input[2]:
            values = numpy_helper.to_array(weight).copy()
            values[0] = 70_000
            weight.CopyFrom(numpy_helper.from_array(values, weight.name))
    onnx.save(model, path)
    with pytest.raises(
        ParityError, match=r"too little room; nothing was written\n.*the weight .* reaches 7e\+04"
    ) as error:
        fp16.export(source, path, tmp_path / "half.onnx", photos)
    assert "the activation" in str(error.value)
    assert not (tmp_path / "half.onnx").exists()


def test_what_an_fp32_node_gives_to_a_half_one_needs_room_too() -> None:
    nodes = [helper.make_node("Mul", ["image", "image"], ["a"], "kept"), helper.make_node("Relu", ["a"], ["out"], "r")]
    with pytest.raises(ParityError, match="the activation a reaches 2e"):
        fp16.require_room(small(*nodes).graph, ["kept"], {"a": 20_000.0, "out": 1.0})
    fp16.require_room(small(*nodes).graph, ["kept", "r"], {"a": 20_000.0, "out": 1.0})


def test_a_constant_of_an_fp32_node_is_not_rounded() -> None:
    tiny = numpy_helper.from_array(np.float32(1e-12), "value")
    nodes = [
        helper.make_node("Constant", [], ["e"], "constant", value=tiny),
        helper.make_node("Add", ["image", "e"], ["a"], "kept"),
        helper.make_node("Relu", ["a"], ["out"], "r"),
    ]
    half = fp16.in_half(small(*nodes), ["kept"])
    (constant,) = half.graph.initializer
    assert constant.data_type == TensorProto.FLOAT and numpy_helper.to_array(constant) == np.float32(1e-12)


def test_an_export_in_half(
    tiny: Callable[..., dict[str, Any]], tmp_path: Path, photos: list[Photo], monkeypatch: pytest.MonkeyPatch
) -> None:
    source = source_of("test_efficientnet", 32)
    path = written(source, tmp_path / "full.onnx")
    found = fp16.export(source, path, tmp_path / "half.onnx", photos)
    assert found.images == 4 and found.flipped == 0
    opened = OrtPredictor(tmp_path / "half.onnx")
    assert opened.precision == "fp16" and opened.spec == source.spec
    computed = fp16.in_torch(source)
    a, b = computed(photos[:1])[0].logits, source(photos[:1])[0].logits
    assert 0 < np.abs(a - b).max() < 0.05, "it is computed in half, and rounds"

    def wrong(model: onnx.ModelProto, kept: list[str]) -> onnx.ModelProto:
        for weight in model.graph.initializer:
            if "classifier" in weight.name and len(weight.dims) == 2:
                weight.CopyFrom(numpy_helper.from_array(-numpy_helper.to_array(weight), weight.name))
        return model

    monkeypatch.setattr(fp16, "in_half", wrong)
    with pytest.raises(ParityError, match="nothing was written"):
        fp16.export(source, path, tmp_path / "wrong.onnx", photos)
    assert not (tmp_path / "wrong.onnx").exists()
