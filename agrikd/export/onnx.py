"""`export onnx`: one FP32 graph that ONNX Runtime and every TensorRT from 8.5 on can read.

Opset 16 (at 17 LayerNormalization appears, which TensorRT 8.5 lacks), static batch 1 (a camera gives one frame),
FP32 in and out, normalisation inside, shape arithmetic folded away.
"""

from __future__ import annotations

import copy
import json
import warnings
from collections.abc import Sequence
from pathlib import Path

import torch
from timm.utils.model import reparameterize_model
from torch import Tensor, nn

from agrikd import files
from agrikd.errors import MissingExtraError
from agrikd.export import parity
from agrikd.export.parity import Parity
from agrikd.nets.from_timm import TimmNet
from agrikd.predict.ort import OrtPredictor
from agrikd.predict.torch import TorchPredictor
from agrikd.types import Image, ModelSpec

OPSET = 16


def export(source: TorchPredictor, path: Path, images: Sequence[Image]) -> Parity:
    """Write `source` as ONNX to `path`, if it answers alike on `images`; else `ParityError` and no file."""
    net = source.net
    assert isinstance(net, TimmNet)
    with files.replacing(path) as temporary:
        write_graph(net, source.spec, temporary)
        fold(temporary)
        describe(temporary, source.spec, source.parameters)
        found = parity.compare(source, OrtPredictor(temporary), images)
        parity.require(found, path.name)
    return found


class _Exported(nn.Module):
    """The two outputs by name, the net's door included."""

    def __init__(self, net: TimmNet) -> None:
        super().__init__()
        self.net = net

    def forward(self, image: Tensor) -> tuple[Tensor, Tensor]:
        outputs = self.net(image)
        return outputs.logits, outputs.embedding


def write_graph(net: TimmNet, spec: ModelSpec, path: Path) -> None:
    """The raw graph: input `image` [1, 3, H, W] in [0, 1], outputs `logits` [1, C], `embedding` [1, D].

    Branches that a net has for its training alone (RepViT, FastViT) are folded into one.
    """
    example, net = torch.zeros(1, 3, *spec.input_size), copy.deepcopy(net)
    reparameterize_model(net.model, inplace=True)
    with warnings.catch_warnings(), torch.inference_mode():
        warnings.simplefilter("ignore")  # the TorchScript exporter says at each call that it is the old one
        torch.onnx.export(
            _Exported(net).eval(),
            (example,),
            str(path),
            input_names=["image"],
            output_names=["logits", "embedding"],
            opset_version=OPSET,
            do_constant_folding=True,
            dynamo=False,
        )


def fold(path: Path) -> None:
    """Fold the shape arithmetic of TF-padded nets with ONNX Runtime's basic optimisations, in place.

    These add the opsets of ONNX Runtime's own operators to the imports; unused, they are dropped again.
    """
    try:
        import onnx
        import onnxruntime as ort
    except ImportError:
        raise MissingExtraError("onnx", "export") from None
    options = ort.SessionOptions()
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_ENABLE_BASIC
    options.log_severity_level = 3
    folded = path.with_suffix(".folded.onnx")
    options.optimized_model_filepath = str(folded)
    files.require_room(folded, path.stat().st_size)
    try:
        ort.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
        model = onnx.load(folded)
    finally:
        folded.unlink(missing_ok=True)
    used = {node.domain or "" for node in model.graph.node}
    kept = [opset for opset in model.opset_import if opset.domain in ("", *used)]
    del model.opset_import[:]
    model.opset_import.extend(kept)
    onnx.checker.check_model(model, full_check=True)
    onnx.save(model, path)


def describe(path: Path, spec: ModelSpec, parameters: int, precision: str = "fp32") -> None:
    """Write what `OrtPredictor` and the engine's builder must know into the file's metadata."""
    import onnx

    model = onnx.load(path)
    said = json.dumps(spec.to_json(), ensure_ascii=False)
    own = {"agrikd": said, "agrikd_parameters": str(parameters), "agrikd_precision": precision}
    onnx.helper.set_model_props(model, own)
    onnx.save(model, path)
