"""`export fp16`: one typed graph for every TensorRT, FP32 in and out, with half the bytes.

From 10.12 on TensorRT keeps to the graph's types. Before, it is only allowed to use half precision where it is faster,
and may use it for what the graph keeps in FP32, too: there the parity on the board has the last word.

What loses by half precision stays in FP32: the net's door (a pixel is not a multiple of 2⁻¹¹), layer norms, softmax
and the attention logits before it. Networks that overflow do so on real photos, so the largest activation is looked
for there, and must leave room up to half precision's largest number.

ONNX Runtime computes half precision on a CPU in FP32 and would not show what is lost; torch computes it in half, so
the answers are held against torch's, too.
"""

from __future__ import annotations

import copy
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from torch import Tensor

from agrikd import console, files
from agrikd.errors import MissingExtraError, ParityError
from agrikd.export import parity
from agrikd.export.onnx import describe
from agrikd.export.parity import Parity
from agrikd.nets._base import Net, Outputs
from agrikd.nets.from_timm import TimmNet
from agrikd.predict.ort import OrtPredictor, as_input
from agrikd.predict.torch import TorchPredictor
from agrikd.types import Image, ModelSpec

if TYPE_CHECKING:
    from onnx import GraphProto, ModelProto, NodeProto

LARGEST = 65504.0
ROOM = 4.0
"""The largest activation seen must be so many times smaller than half precision's largest number: a field has photos
that were not seen."""
MARGIN = 0.02
"""Logits nearer to each other than this are a tie, which half precision may break either way."""

_SCALARS = frozenset(("Add", "Sub", "Mul", "Div", "Where"))
_LAYOUT = frozenset(("Transpose", "Reshape", "Squeeze", "Unsqueeze"))
_NORMS = frozenset(("LayerNormalization", "GroupNormalization", "InstanceNormalization"))


def export(source: TorchPredictor, reference: Path, path: Path, images: Sequence[Image]) -> Parity:
    """Write the FP32 graph `reference` of `source` in half precision to `path`.

    Raises `ParityError`, and writes nothing, where an activation on `images` or a weight leaves too little room, or the
    answers differ from those of `source`.
    """
    try:
        import onnx
    except ImportError:
        raise MissingExtraError("onnx", "export") from None
    model = onnx.load(reference)
    kept = kept_in_fp32(model.graph)
    require_room(model.graph, kept, ranges(reference, source.spec, images))
    with files.replacing(path) as temporary:
        onnx.save(in_half(model, kept), temporary)
        describe(temporary, source.spec, source.parameters, "fp16")
        exported = parity.compare(source, OrtPredictor(temporary), images, MARGIN / 2)
        parity.require_same_answers(exported, path.name)
        found = parity.compare(source, in_torch(source), images, MARGIN / 2)
        parity.require_same_answers(found, f"{path.name}, computed in half precision,")
    return found


def in_half(model: ModelProto, kept: Iterable[str]) -> ModelProto:
    """The model in FP16 but for the nodes that are kept in FP32, with a Cast wherever one meets the other.

    Inputs and outputs of the graph stay FP32. The types are checked as strictly as ONNX can.
    """
    import onnx

    lift_constants(model.graph)
    typed = onnx.shape_inference.infer_shapes(model, strict_mode=True)
    _Halving(typed.graph, set(kept)).rewrite()
    onnx.checker.check_model(typed, full_check=True)
    return typed


def lift_constants(graph: GraphProto) -> None:
    """Make initializers of Constant nodes: a weight is what it is, whoever reads it."""
    for node in [node for node in graph.node if node.op_type == "Constant" and node.attribute[0].name == "value"]:
        graph.initializer.add().CopyFrom(node.attribute[0].t)
        graph.initializer[-1].name = node.output[0]
        graph.node.remove(node)


class _Halving:
    """Rewrites a graph whose floating point is all FP32.

    floats: the tensors that were FP32. there: under which name a tensor is had in half (True) or not.
    """

    def __init__(self, graph: GraphProto, kept: set[str]) -> None:
        import onnx

        self.graph, self.kept, self.types = graph, kept, onnx.TensorProto
        named = [*graph.value_info, *graph.input, *graph.output]
        self.floats = {one.name for one in named if one.type.tensor_type.elem_type == self.types.FLOAT}
        self.constants = {one.name: one for one in graph.initializer if one.data_type == self.types.FLOAT}
        self.floats.update(self.constants)
        self.there: dict[tuple[str, bool], str] = {(name, False): name for name in self.constants}
        self.there.update({(one.name, False): one.name for one in graph.input})
        self.nodes: list[NodeProto] = []

    def rewrite(self) -> None:
        outputs = [one.name for one in self.graph.output]
        for node in list(self.graph.node):
            if any(attribute.HasField("g") for attribute in node.attribute):
                raise ParityError(f"the node {node.name} holds a graph of its own, which has no half precision here")
            self._add(node, half=node.name not in self.kept)
        for name in outputs:
            self._cast_back(name)
        read = {name for node in self.nodes for name in node.input} | set(outputs)
        for tensor in [one for one in self.graph.initializer if one.name not in read]:
            self.graph.initializer.remove(tensor)
        for field in (self.graph.node, self.graph.value_info):
            del field[:]
        self.graph.node.extend(self.nodes)

    def _add(self, node: NodeProto, half: bool) -> None:
        for place, name in enumerate(node.input):
            if name in self.floats and not (node.op_type == "Resize" and place):  # its scales are FP32 always
                node.input[place] = self._as(name, half)
        if half:
            self._halve_attributes(node)
        for place, name in enumerate(node.output):
            if name in self.floats:
                self.there[name, half] = node.output[place] = f"{name}_in_half" if half else name
        self.nodes.append(node)

    def _as(self, name: str, half: bool) -> str:
        """The tensor in that precision; a Cast is made once, of a constant a copy."""
        import onnx

        if (name, half) in self.there:
            return self.there[name, half]
        other = f"{name}_in_half" if half else f"{name}_in_full"
        if name in self.constants:
            values = onnx.numpy_helper.to_array(self.constants[name]).astype(np.float16)
            self.graph.initializer.append(onnx.numpy_helper.from_array(values, other))
        else:
            to = self.types.FLOAT16 if half else self.types.FLOAT
            source = self.there[name, not half]
            self.nodes.append(onnx.helper.make_node("Cast", [source], [other], f"{other}_cast", to=to))
        self.there[name, half] = other
        return other

    def _halve_attributes(self, node: NodeProto) -> None:
        """The numbers that a node holds itself, and the type to which a Cast turns integers."""
        import onnx

        for attribute in node.attribute:
            if node.op_type == "Cast" and attribute.name == "to" and attribute.i == self.types.FLOAT:
                attribute.i = self.types.FLOAT16
            elif attribute.HasField("t") and attribute.t.data_type == self.types.FLOAT:
                values = onnx.numpy_helper.to_array(attribute.t).astype(np.float16)
                attribute.t.CopyFrom(onnx.numpy_helper.from_array(values, attribute.t.name))

    def _cast_back(self, name: str) -> None:
        """Give a graph's output its name again, in FP32."""
        import onnx

        source = self.there.get((name, True))
        if source and not any(name in node.output for node in self.nodes):
            self.nodes.append(onnx.helper.make_node("Cast", [source], [name], f"{name}_cast", to=self.types.FLOAT))


def kept_in_fp32(graph: GraphProto) -> list[str]:
    """Names of the nodes whose results half precision would spoil; nodes without a name are given one."""
    for number, node in enumerate(graph.node):
        node.name = node.name or f"{node.op_type}_{number}"
    made_by = {output: node for node in graph.node for output in node.output}
    kept = {node.name for node in graph.node if node.op_type in _NORMS}
    kept.update(node.name for node in _door(graph))
    for node in graph.node:
        if node.op_type == "Softmax":
            kept.update(part.name for part in _attention(node, made_by))
        if node.op_type == "Sqrt":
            kept.update(part.name for part in _norm(node, graph, made_by))
    return sorted(kept)


def _door(graph: GraphProto) -> Iterator[NodeProto]:
    """The arithmetic between the picture and the first layer."""
    reached = {graph.input[0].name}
    for node in graph.node:
        if node.op_type in _SCALARS and reached & set(node.input):
            reached.update(node.output)
            yield node


def _attention(softmax: NodeProto, made_by: Mapping[str, NodeProto]) -> Iterator[NodeProto]:
    """A softmax and what leads to it, up to the products of queries and keys."""
    yield softmax
    waiting = list(softmax.input)
    while waiting:
        node = made_by.get(waiting.pop())
        if node is not None and node.op_type in (*_SCALARS, *_LAYOUT, "MatMul"):
            yield node
            if node.op_type != "MatMul":
                waiting += node.input


def _norm(root: NodeProto, graph: GraphProto, made_by: Mapping[str, NodeProto]) -> Iterator[NodeProto]:
    """The parts of a layer norm that was written out: √(mean (x − mean x)² + ε), and the division by it.

    Transpositions stand anywhere between them: ONNX Runtime moves these about when it folds a graph.
    """
    yield root
    waiting = [*root.input]
    while waiting:
        node = made_by.get(waiting.pop())
        if node is None or node.op_type not in ("Add", "ReduceMean", "Pow", "Mul", "Sub", *_LAYOUT):
            continue
        yield node
        means = [name for name in node.input if _origin(name, made_by) == "ReduceMean"]
        waiting += means if node.op_type == "Sub" else node.input
    spread = {root.output[0]}
    for node in graph.node:
        if node.op_type in (*_LAYOUT, "Div") and spread & set(node.input):
            yield node
            spread.update(node.output if node.op_type in _LAYOUT else ())


def _origin(name: str, made_by: Mapping[str, NodeProto]) -> str:
    """The kind of node that made a value, its layout aside."""
    node = made_by.get(name)
    while node is not None and node.op_type in _LAYOUT:
        node = made_by.get(node.input[0])
    return node.op_type if node is not None else ""


def ranges(path: Path, spec: ModelSpec, images: Sequence[Image]) -> dict[str, float]:
    """The largest absolute value of each node's output over `images`, of the FP32 graph at `path`."""
    import onnx
    import onnxruntime as ort

    model = onnx.load(path)
    there = {output.name for output in model.graph.output}
    names = [name for node in model.graph.node for name in node.output if name and name not in there]
    model.graph.output.extend(onnx.helper.make_empty_tensor_value_info(name) for name in names)
    options = ort.SessionOptions()
    options.log_severity_level = 3
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    session = ort.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
    found: dict[str, float] = {}
    for one in console.track(images, "activations"):
        values = session.run(None, {"image": as_input(one, spec)})
        for output, value in zip(session.get_outputs(), values, strict=True):
            if value.dtype == np.float32 and value.size:
                found[output.name] = max(found.get(output.name, 0.0), float(np.abs(value).max()))
    return found


def require_room(graph: GraphProto, kept: Iterable[str], found: Mapping[str, float]) -> None:
    """Raise `ParityError` naming each activation and weight that is too large for half precision."""
    import onnx

    apart, most = set(kept), LARGEST / ROOM
    nodes = [node for node in graph.node if node.name not in apart]
    read = {name for node in nodes for name in node.input}
    large = []
    for tensor in graph.initializer:
        if tensor.name in read and tensor.data_type == onnx.TensorProto.FLOAT:
            top = float(np.abs(onnx.numpy_helper.to_array(tensor)).max(initial=0.0))
            large += [f"the weight {tensor.name} reaches {top:.3g}"] if top > most else []
    halved = read | {name for node in nodes for name in node.output}  # what FP32 nodes give to others is halved too
    large += [
        f"the activation {name} reaches {top:.3g}" for name, top in found.items() if name in halved and top > most
    ]
    if large:
        said = "\n  ".join([*large[:8], *([f"… and {len(large) - 8} more"] if len(large) > 8 else [])])
        mend = "use the FP32 graph on the device, or train with weight decay"
        limit = f"expected at most {most:.4g}, a {ROOM:g}th of half precision's largest number"
        raise ParityError(f"half precision has too little room; nothing was written\n  {said}\n  {limit}\n    → {mend}")


def in_torch(source: TorchPredictor) -> TorchPredictor:
    """The same net computed in half precision behind its door, for comparison: slow on a CPU."""
    net = source.net
    assert isinstance(net, TimmNet)
    return TorchPredictor(_Half(net), source.spec)


class _Half(Net):
    def __init__(self, net: TimmNet) -> None:
        mean, std = (tuple(values.flatten().tolist()) for values in (net.mean, net.std))
        super().__init__(net.input_size, mean, std, net.origin)
        self.net = copy.deepcopy(net).half()

    def answer(self, images: Tensor, stages: int) -> Outputs:
        said = self.net.answer(images.half(), stages)
        return Outputs(said.logits.float(), said.embedding.float())
