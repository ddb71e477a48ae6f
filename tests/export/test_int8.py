"""Eight bits: what TensorRT's importer wants, what it costs, and when it is refused."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest

from agrikd.errors import ParityError
from agrikd.export import artefacts, int8, lint
from agrikd.export import onnx as exporting
from agrikd.intervals import Difference
from agrikd.nets.sources import open_net
from agrikd.predict._base import FakePredictor
from agrikd.predict.ort import OrtPredictor
from agrikd.recipe import NetSpec
from agrikd.types import ModelSpec, Scale

CLASSES = ("blight", "healthy", "rust")
SPEC = ModelSpec("leaves", "classification", CLASSES, (32, 32))
Photo = np.ndarray[Any, np.dtype[np.uint8]]


@pytest.fixture(scope="module")
def photos() -> list[Photo]:
    rng, hues = np.random.default_rng(0), ((120, 80, 40), (60, 150, 60), (210, 120, 30))
    return [np.clip(rng.normal(hues[n % 3], 40, (40, 40, 3)), 0, 255).astype(np.uint8) for n in range(120)]


@pytest.fixture(scope="module")
def reference(colours: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("int8") / "model.onnx"
    artefacts.export(colours, "fp32", 2, path)
    return path


@pytest.fixture(scope="module")
def judged(photos: list[Photo]) -> int8.Labelled:
    return int8.Labelled(photos, np.arange(120) % 3)


@pytest.mark.parametrize(
    ("precision", "opset", "releases"),
    [("int8", 16, ("8.6", "10.3")), ("int8f16", 19, ("10.13", "10.16", "11"))],
)
def test_each_file_is_for_its_releases(
    reference: Path, judged: int8.Labelled, tmp_path: Path, *, precision: Any, opset: int, releases: tuple[str, ...]
) -> None:
    path, photos = tmp_path / "eight.onnx", judged.images
    found = int8.export(reference, path, OrtPredictor(reference).spec, photos[:40], judged, precision)
    assert found.images == 120 and found.before > 0.9 and found.passed
    model = onnx.load(path)
    assert [(one.domain, one.version) for one in model.opset_import] == [("", opset)]
    assert lint.lint(path, releases) == []
    kinds = [node.op_type for node in model.graph.node]
    assert kinds.count("QuantizeLinear") >= 20 and "Softmax" not in kinds
    opened = OrtPredictor(path)
    assert opened.precision == precision and opened.spec.classes == CLASSES and opened.parameters > 0
    scales = {
        constant.data_type
        for node in model.graph.node
        if node.op_type == "DequantizeLinear"
        for constant in model.graph.initializer
        if constant.name == node.input[1]
    }
    assert scales == {onnx.TensorProto.FLOAT16 if precision == "int8f16" else onnx.TensorProto.FLOAT}
    zero = [constant for constant in model.graph.initializer if constant.data_type == onnx.TensorProto.INT8]
    assert zero and all(not onnx.numpy_helper.to_array(one).any() for one in zero if not one.dims)


@pytest.mark.parametrize("name", ["mobilenetv2_100", "vit_tiny_patch16_224"])
def test_both_files_answer_alike_on_a_cpu(weights: Path, photos: list[Photo], tmp_path: Path, name: str) -> None:
    """A net that has learned has channels whose scales are small, and whose products half precision cannot hold; of a
    transformer's norms, partly in half precision, fused kernels know nothing."""
    spec = ModelSpec("leaves", "classification", CLASSES, (64, 64))
    origin = {"kwargs": {"img_size": 64}}
    if name == "mobilenetv2_100":
        origin = {"weights": str(weights / "mobilenetv2_100.in1k.safetensors")}
    net = open_net(NetSpec(timm=name, input_size=spec.input_size, **origin), CLASSES).eval()
    reference, eight, wide = (tmp_path / f"{name}.onnx" for name in ("fp32", "int8", "int8f16"))
    exporting.write_graph(net, spec, reference)
    exporting.fold(reference)
    int8.quantise(reference, eight, spec, photos[:20])
    wide.write_bytes(eight.read_bytes())
    int8.widen(wide)
    said = []
    for path in (reference, eight, wide):
        exporting.describe(path, spec, 1, path.stem)
        said.append(np.stack([one.logits for one in OrtPredictor(path)(photos[:30])]))
    moved = [float(np.abs(one - said[0]).mean() / said[0].std()) for one in said[1:]]
    assert max(moved) < 0.5 and abs(moved[0] - moved[1]) < 0.05, moved


def test_what_loses_too_much_is_refused(
    reference: Path, judged: int8.Labelled, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    quantise = int8.quantise

    def spoilt(*words: Any) -> None:
        quantise(*words)
        model = onnx.load(words[1])
        for weight in model.graph.initializer:
            if "classifier" in weight.name and len(weight.dims) == 2:
                weight.CopyFrom(onnx.numpy_helper.from_array(-onnx.numpy_helper.to_array(weight), weight.name))
        onnx.save(model, words[1])

    monkeypatch.setattr(int8, "quantise", spoilt)
    with pytest.raises(ParityError, match="int8 loses too much; nothing was written") as error:
        int8.export(reference, tmp_path / "eight.onnx", SPEC, judged.images[:9], judged)
    assert "points of macro-F1 lost, at most" in str(error.value) and "(3.00 allowed)" in str(error.value)
    assert list(tmp_path.iterdir()) == []


def test_few_photos_do_not_prove_that_little_is_lost(reference: Path, photos: list[Photo]) -> None:
    """One photo of ten called otherwise is 10 points or so, and may be 30."""
    predictor = OrtPredictor(reference)

    class Stumbles(FakePredictor):
        def __call__(self, images: Any) -> Any:
            said = predictor(images)
            if images[0] is photos[0]:
                other = OrtPredictor(reference)(images)[0]
                return [type(other)(*{**vars(other), "top": (other.top + 1) % 3}.values())]
            return said

    truth = np.array([one.top for one in predictor(photos[:10])])
    found = int8.loss(predictor, Stumbles(SPEC), int8.Labelled(photos[:10], truth))
    assert 0.02 < -found.difference.mean < 0.5 and not found.passed
    same = int8.loss(predictor, predictor, int8.Labelled(photos[:10], truth))
    assert not same.passed and str(same) == (
        "10 photos: 0.00 points of macro-F1 lost, at most 0.00 (3.00 allowed); 100 photos are needed"
    )


def test_photos_of_one_plant_are_drawn_together() -> None:
    """Ten plants, of which one is answered otherwise on each of its photos: ten photos tell no more than one."""
    photos = [np.full((8, 8, 3), n, np.uint8) for n in range(100)]
    one, plants = FakePredictor(SPEC), [f"plant {n // 10}" for n in range(100)]
    truth = np.array([said.top for said in one(photos)])

    class Stumbles(FakePredictor):
        def __call__(self, images: Any) -> Any:
            (said,) = super().__call__(images)
            return [dataclasses.replace(said, top=(said.top + int(images[0].max() < 10)) % 3)]

    found = [int8.loss(one, Stumbles(SPEC), int8.Labelled(photos, truth, own)).difference for own in (None, plants)]
    assert found[0].mean == found[1].mean < 0
    assert found[1].high - found[1].low > 3 * (found[0].high - found[0].low)


def test_numbers_are_judged_by_their_error() -> None:
    scale = Scale(0, 10, "%", beyond=3)
    spec = ModelSpec("severity", "regression", tuple(map(str, range(16))), (32, 32), scale=scale)
    photos = [np.full((8, 8, 3), 2 * n, np.uint8) for n in range(100)]
    one = FakePredictor(spec)
    truth = np.array([float(said.value or 0) + 1 for said in one(photos)])
    found = int8.loss(one, one, int8.Labelled(photos, truth))
    assert found.unit == "%" and found.before == pytest.approx(1) and found.passed
    worse = int8.Loss(100, 1.0, Difference(-0.02, -0.05, 0.01), "%")
    assert not worse.passed and "0.02 % of mean error lost, at most 0.05 (0.03 allowed)" in str(worse)


def test_the_quantiser_says_nothing_and_leaves_the_root_logger(
    reference: Path, photos: list[Photo], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    import logging

    before = logging.root.level
    int8.quantise(reference, tmp_path / "eight.onnx", SPEC, photos[:2])
    assert logging.root.level == before and capsys.readouterr().out == ""


def test_every_node_gets_constants_of_its_own() -> None:
    two = onnx.numpy_helper.from_array(np.ones(2, np.float32), "w")
    nodes = [
        onnx.helper.make_node("Mul", ["x", "w"], ["a"], "a"),
        onnx.helper.make_node("Mul", ["w", "w"], ["b"], "b"),
        onnx.helper.make_node("Add", ["a", "b"], ["y"], "y"),
    ]
    ends = [onnx.helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, [2]) for name in ("x", "y")]
    model = onnx.helper.make_model(onnx.helper.make_graph(nodes, "g", ends[:1], ends[1:], [two]), ir_version=8)
    int8.own_constants(model.graph)
    onnx.checker.check_model(model, full_check=True)
    read = [name for node in model.graph.node for name in node.input]
    assert len(model.graph.initializer) == 3 and all(read.count(one.name) == 1 for one in model.graph.initializer)


def test_sums_with_a_constant_and_the_parts_of_a_norm_are_left_out(tmp_path: Path) -> None:
    net = open_net(NetSpec(timm="test_convnext", input_size=(160, 160)), CLASSES).eval()
    spec = ModelSpec("net", "classification", CLASSES, (160, 160))
    exporting.write_graph(net, spec, tmp_path / "net.onnx")
    exporting.fold(tmp_path / "net.onnx")
    graph = onnx.load(tmp_path / "net.onnx").graph
    out, constants = set(int8.left_out(graph)), {one.name for one in graph.initializer}
    sums = {node.name: constants & set(node.input) for node in graph.node if node.op_type == "Add"}
    assert {name for name, constant in sums.items() if constant} <= out
    assert [name for name, constant in sums.items() if not constant and name not in out], "residual connections are not"
    assert {node.name for node in graph.node if node.op_type in ("Sqrt", "Pow")} <= out
