"""The export answers as its source does on real photos, and a broken one is refused."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch

from agrikd import image, train
from agrikd.data import manifest as manifests
from agrikd.errors import ParityError
from agrikd.export import artefacts, parity
from agrikd.export import onnx as exporting
from agrikd.nets.from_timm import TimmNet
from agrikd.nets.sources import open_net
from agrikd.predict import open_predictor
from agrikd.predict._base import FakePredictor
from agrikd.predict.ort import OrtPredictor
from agrikd.predict.torch import TorchPredictor
from agrikd.recipe import NetSpec, parse
from agrikd.types import Image, ModelSpec

CLASSES = ("cercospora", "healthy", "leaf_miner", "phoma", "rust")


@pytest.fixture(scope="session")
def real_photos(datasets: Path) -> list[Image]:
    paths = sorted((datasets / "cls-coffee-leaf").rglob("*.jpg"))[::2][:100]
    paths += sorted((datasets / "cls-plantvillage-mini").rglob("*.jpg"))[::5][:100]
    photos = image.read_all(paths)
    assert len(photos) == 200
    return photos


def with_random_head(spec: NetSpec) -> TorchPredictor:
    """Real ImageNet weights; a head with logits of a usual size."""
    torch.manual_seed(0)
    net = open_net(spec, CLASSES).eval()
    torch.nn.init.normal_(net.classifier.weight, std=0.1)
    return TorchPredictor(net, ModelSpec("test", "classification", CLASSES, net.input_size))


@pytest.mark.parametrize(
    ("name", "file", "extra"),
    [
        ("tf_efficientnet_lite2", "tf_efficientnet_lite2.in1k.safetensors", {"input_size": (224, 224)}),
        (
            "mobilenetv2_100",
            "mobilenetv2_100.in1k.safetensors",
            {"kwargs": {"pad_type": "same"}, "mean": (0.5,) * 3, "std": (0.5,) * 3, "input_size": (160, 160)},
        ),
    ],
)
def test_parity_on_200_real_photos(
    name: str, file: str, extra: dict[str, Any], weights: Path, real_photos: list[Image], tmp_path: Path
) -> None:
    source = with_random_head(NetSpec(timm=name, weights=str(weights / file), **extra))
    found = exporting.export(source, tmp_path / "net.onnx", real_photos)
    print(f"{name}: {found}")
    assert found.images == 200 and found.clear > 150
    assert found.max_logit <= 1e-3 and found.flipped == 0


def test_parity_of_the_student_on_200_real_photos(real_photos: list[Image], tmp_path: Path) -> None:
    torch.manual_seed(0)
    net = open_net(NetSpec(timm="mobilenetv3_small_050", input_size=(112, 112)), CLASSES)
    net.train()
    with torch.no_grad():  # a fresh net's batch statistics are not those of photos; a trained one's are
        for start in range(0, 200, 20):
            pixels = np.stack([image.fit(one, (112, 112)) for one in real_photos[start : start + 20]])
            net(torch.from_numpy(pixels).permute(0, 3, 1, 2).float() / 255)
    torch.nn.init.normal_(net.classifier.weight, std=0.1)
    source = TorchPredictor(net, ModelSpec("test", "classification", CLASSES, net.input_size))
    found = exporting.export(source, tmp_path / "net.onnx", real_photos)
    print(f"student: {found}")
    assert found.images == 200 and found.clear > 150
    assert found.max_logit <= 1e-3 and found.flipped == 0


@pytest.fixture(scope="module")
def exported(tiny: Callable[..., dict[str, Any]], tmp_path_factory: pytest.TempPathFactory) -> Path:
    run = train.fit(parse(tiny(), "test"), tmp_path_factory.mktemp("exported") / "run")
    artefacts.export(run.folder, "fp32", 10)
    return run.folder


def test_the_graph_is_what_tensorrt_reads(exported: Path) -> None:
    model = onnx.load(exported / "model.onnx")
    assert [(opset.domain, opset.version) for opset in model.opset_import] == [("", exporting.OPSET)]
    shapes = {
        value.name: (value.type.tensor_type.elem_type, [d.dim_value for d in value.type.tensor_type.shape.dim])
        for value in (*model.graph.input, *model.graph.output)
    }
    float32 = onnx.TensorProto.FLOAT
    assert shapes["image"] == (float32, [1, 3, 32, 32])
    assert shapes["logits"] == (float32, [1, 3])
    assert shapes["embedding"][0] == float32 and len(shapes["embedding"][1]) == 2
    assert not {"Shape", "Gather", "Dropout"} & {node.op_type for node in model.graph.node}
    said = json.loads(next(p.value for p in model.metadata_props if p.key == "agrikd"))
    assert said["classes"] == ["blight", "healthy", "rust"] and said["input_size"] == [32, 32]


def test_a_tf_padded_net_leaves_no_shape_arithmetic(weights: Path, tmp_path: Path) -> None:
    spec = NetSpec(timm="tf_efficientnet_lite0", weights=str(weights / "tf_efficientnet_lite0.in1k.safetensors"))
    source = with_random_head(spec)
    path = tmp_path / "net.onnx"
    assert isinstance(source.net, TimmNet)
    exporting.write_graph(source.net, source.spec, path)
    raw = {node.op_type for node in onnx.load(path).graph.node}
    exporting.fold(path)
    folded = {node.op_type for node in onnx.load(path).graph.node}
    arithmetic = {"Shape", "Gather", "Sub", "Mod", "Cast", "ConstantOfShape"}
    assert raw & arithmetic, "the net needs no folding, so this test shows nothing"
    assert not folded & (arithmetic - {"Sub"})


def breakages() -> dict[str, Callable[[onnx.ModelProto], None]]:
    def weights_of_another_layer(model: onnx.ModelProto) -> None:
        big = max(model.graph.initializer, key=lambda one: len(one.raw_data))
        values = onnx.numpy_helper.to_array(big)
        big.CopyFrom(onnx.numpy_helper.from_array(values[::-1].copy(), big.name))

    def a_bias_off(model: onnx.ModelProto) -> None:
        (last,) = [node for node in model.graph.node if "logits" in node.output]
        (bias,) = [one for one in model.graph.initializer if one.name == last.input[2]]
        bias.CopyFrom(onnx.numpy_helper.from_array(onnx.numpy_helper.to_array(bias) + np.float32(0.002), bias.name))

    def not_a_number(model: onnx.ModelProto) -> None:
        big = max(model.graph.initializer, key=lambda one: len(one.raw_data))
        values = onnx.numpy_helper.to_array(big).copy()
        values.flat[0] = np.nan
        big.CopyFrom(onnx.numpy_helper.from_array(values, big.name))

    return {"another layer": weights_of_another_layer, "a bias off by 0.002": a_bias_off, "a NaN": not_a_number}


@pytest.mark.parametrize("what", breakages())
def test_a_broken_export_is_refused_and_nothing_written(
    what: str, exported: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fold = exporting.fold

    def broken(path: Path) -> None:
        fold(path)
        model = onnx.load(path)
        breakages()[what](model)
        onnx.save(model, path)

    monkeypatch.setattr(exporting, "fold", broken)
    with pytest.raises(ParityError, match="nothing was written"):
        artefacts.export(exported, "fp32", 10, tmp_path / "model.onnx")
    assert list(tmp_path.iterdir()) == []


def test_another_door_is_refused(exported: Path, tmp_path: Path) -> None:
    """The same weights behind a door that crops instead of stretching answer otherwise: parity starts at pixels."""
    source, there = open_predictor(exported), OrtPredictor(exported / "model.onnx")
    there.spec = ModelSpec.from_json({**there.spec.to_json(), "fit": "crop"})
    wide = [np.random.default_rng(n).integers(0, 255, (40, 90, 3)).astype(np.uint8) for n in range(4)]
    assert not parity.compare(source, there, wide).passed


def test_every_predictor_keeps_to_the_border(exported: Path) -> None:
    manifest = manifests.read(Path(train.Run.open(exported).recipe.data.manifest))
    photos = image.read_all([manifest.file(row) for row in manifest.indices("test")[:3]])
    spec = open_predictor(exported).spec
    predictors = [open_predictor(exported), open_predictor(exported / "model.onnx"), FakePredictor(spec)]
    for predictor in predictors:
        said = predictor(photos)
        assert len(said) == 3 and predictor([]) == []
        for one in said:
            assert one.logits.shape == (3,) and one.logits.dtype == np.float32
            assert one.probabilities.sum() == pytest.approx(1, abs=1e-5)
            assert one.top == int(one.probabilities.argmax()) and one.top in one.candidates
    assert len(predictors) == 3
