"""Which TensorRT releases can read an ONNX file, without TensorRT: rules over the graph and a table of the releases.

A Jetson stays on the TensorRT of its JetPack, so a file must suit several at once. `tensorrt_releases.json` holds what
each release reads and says where every row comes from. A rule is a function of the graph and a release's row; its name
is the rule's name. What is clean here may still fail to build: only a device can tell.
"""

from __future__ import annotations

import contextlib
import functools
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from agrikd.errors import InputError, MissingExtraError, Problem

if TYPE_CHECKING:
    from onnx import NodeProto, ValueInfoProto

RELEASES: tuple[str, ...] = ("8.6", "10.3", "10.13", "10.16", "11")
"""On JetPack 6.0; on 6.1 and 6.2; on 7, from and to; and TensorRT 11, which 7.2.2 may take."""

_TABLE = Path(__file__).with_name("tensorrt_releases.json")
_FLOATS = ("FP32", "FP16")
_KINDS = {0: "", 1: "FP32", 2: "UINT8", 3: "INT8", 6: "INT32", 7: "INT64", 9: "BOOL", 10: "FP16", 11: "DOUBLE"}
"""Short names of the element types by ONNX's numbers; 0 is unknown."""
_ONNX = ("", "ai.onnx")
_PAIR = ("QuantizeLinear", "DequantizeLinear")
_MIXED = frozenset(("Resize", "Upsample", "BatchNormalization", "Dropout", "CastLike", "DequantizeLinear"))
"""Operators whose side inputs may have another float type than their data."""


@dataclass(frozen=True)
class Finding:
    """One thing that `release` cannot read: the rule's name, the node's or tensor's name, what was expected."""

    rule: str
    release: str
    where: str
    wrong: str


Wrong = Iterator[tuple[str, str]]
"""Pairs of where and what."""


@dataclass(frozen=True)
class Row:
    """A release: see "how to read" in the table."""

    opsets: tuple[int, int]
    strongly_typed: bool
    int64_becomes_int32: bool
    zero_point_required: bool
    axis_required: bool
    fp16_scales: bool
    weight_pairs: bool
    operators: Mapping[str, Mapping[str, Any]]


@dataclass(frozen=True)
class Graph:
    """A loaded model, indexed: types and shapes (0 = unknown) by tensor name, who makes and who reads each tensor."""

    opset: int
    domains: list[str]
    nodes: list[NodeProto]
    inputs: list[ValueInfoProto]
    outputs: list[ValueInfoProto]
    types: dict[str, str] = field(default_factory=dict)
    shapes: dict[str, tuple[int, ...]] = field(default_factory=dict)
    constants: dict[str, NDArray[Any]] = field(default_factory=dict)
    made_by: dict[str, NodeProto] = field(default_factory=dict)
    read_by: dict[str, list[NodeProto]] = field(default_factory=dict)

    @property
    def pairs(self) -> list[NodeProto]:
        """The nodes that quantise and dequantise."""
        return [node for node in self.nodes if node.op_type in _PAIR]

    def maker(self, name: str) -> str:
        """The operator a tensor comes from; empty for an input or initializer."""
        return self.made_by[name].op_type if name in self.made_by else ""

    def limits(self, row: Row, key: str) -> list[tuple[NodeProto, Any]]:
        """The nodes whose operator has the limit `key` in this release, and the limit."""
        return [(n, row.operators[n.op_type][key]) for n in self.nodes if key in row.operators.get(n.op_type, {})]


def lint(path: Path, releases: Sequence[str] = RELEASES) -> list[Finding]:
    """Everything in the ONNX file that keeps one of `releases` from reading it; empty where nothing does.

    Raises `InputError` for a file that is missing or no ONNX, and for a release that is not one of `RELEASES`.
    """
    if unknown := [release for release in releases if release not in RELEASES]:
        mend = f"choose from {', '.join(RELEASES)}"
        raise InputError([Problem("releases", f"there are no rules for TensorRT {name}", mend) for name in unknown])
    graph = read(path)
    return [
        Finding(rule.__name__, release, where, wrong)
        for release in releases
        for rule in RULES
        for where, wrong in rule(graph, table()[release])
    ]


def readable_by(path: Path) -> tuple[str, ...]:
    """The releases that find nothing wrong with the ONNX file, oldest first."""
    found = {finding.release for finding in lint(path)}
    return tuple(release for release in RELEASES if release not in found)


@functools.cache
def table() -> dict[str, Row]:
    """The releases' rows by name."""
    said = json.loads(_TABLE.read_text())["releases"]
    return {name: Row(**{**row, "opsets": tuple(row["opsets"])}) for name, row in said.items()}


def read(path: Path) -> Graph:
    """The model at `path`, its types and shapes inferred as far as they can be."""
    try:
        import onnx
        from google.protobuf.message import DecodeError  # type: ignore[import-untyped]
    except ImportError:
        raise MissingExtraError("onnx", "export") from None
    try:
        model = onnx.load(path)
    except (OSError, DecodeError) as error:
        raise InputError(Problem(str(path), f"is no readable ONNX file ({error})", "export it again")) from None
    except onnx.checker.ValidationError as error:
        raise InputError(Problem(str(path), f"lacks weights ({error})", "copy its .data file beside it")) from None
    with contextlib.suppress(onnx.shape_inference.InferenceError, ValueError):  # the rules say what it stumbles over
        model = onnx.shape_inference.infer_shapes(model, data_prop=True)
    inside, stored = model.graph, {one.name for one in model.graph.initializer}
    graph = Graph(
        opset=next((one.version for one in model.opset_import if one.domain in _ONNX), 0),
        domains=[one.domain for one in model.opset_import if one.domain not in _ONNX],
        nodes=list(inside.node),
        inputs=[value for value in inside.input if value.name not in stored],
        outputs=list(inside.output),
    )
    for value in (*inside.value_info, *inside.input, *inside.output):
        tensor = value.type.tensor_type
        graph.types[value.name] = _KINDS.get(tensor.elem_type, "another type")
        if tensor.HasField("shape"):
            graph.shapes[value.name] = tuple(dim.dim_value for dim in tensor.shape.dim)
    constants = [(one.name, one) for one in inside.initializer]
    for node in graph.nodes:
        graph.made_by.update(dict.fromkeys(node.output, node))
        for name in node.input:
            graph.read_by.setdefault(name, []).append(node)
        if node.op_type == "Constant" and (value := _attribute(node, "value")) is not None:
            constants.append((node.output[0], value))
    for name, one in constants:
        graph.constants[name], graph.shapes[name] = onnx.numpy_helper.to_array(one), tuple(one.dims)
        graph.types[name] = _KINDS.get(one.data_type, "another type")
    return graph


def opset(graph: Graph, row: Row) -> Wrong:
    """The opset of ONNX's own operators is one the release reads."""
    low, high = row.opsets
    if not low <= graph.opset <= high:
        yield "opset_import", f"has opset {graph.opset}; expected {low} to {high}"


def domains(graph: Graph, row: Row) -> Wrong:
    """No operators but ONNX's own, no imports of others, no functions."""
    yield from ((name, "is imported; expected ONNX's own operators alone") for name in graph.domains)
    for node in graph.nodes:
        if node.domain not in _ONNX:
            yield _name(node), f"is {node.domain}.{node.op_type}; expected an operator of ONNX itself"


def one_picture(graph: Graph, row: Row) -> Wrong:
    """One picture goes in; it and what comes out are FP32, of sizes that are numbers."""
    if len(graph.inputs) != 1:
        yield "input", f"is {len(graph.inputs)} inputs ({', '.join(i.name for i in graph.inputs)}); expected one"
    for value in (*graph.inputs, *graph.outputs):
        dims = value.type.tensor_type.shape.dim
        if (kind := graph.types[value.name]) not in ("FP32", "DOUBLE"):
            yield value.name, f"is {kind}; expected FP32"
        if value.name not in graph.shapes or any(dim.dim_value < 1 for dim in dims):
            said = ", ".join(str(dim.dim_value or dim.dim_param or "?") for dim in dims)
            yield value.name, f"has the shape [{said}]; expected numbers alone"


def no_double(graph: Graph, row: Row) -> Wrong:
    """No tensor is DOUBLE: TensorRT would clamp it to FP32."""
    yield from ((name, "is DOUBLE; expected FP32") for name, kind in graph.types.items() if kind == "DOUBLE")


def known_operators(graph: Graph, row: Row) -> Wrong:
    """The release has every operator, as far as a vision net may hold it."""
    for node in graph.nodes:
        if node.domain in _ONNX and node.op_type not in row.operators:
            yield _name(node), f"is {node.op_type}; expected an operator that this release reads"


def element_types(graph: Graph, row: Row) -> Wrong:
    """An operator's data have a type that the release computes it in."""
    for node in graph.nodes:
        if node.op_type not in row.operators or node.op_type in _PAIR:
            continue
        allowed = row.operators[node.op_type]["types"].split()
        for name in _data(graph, node):
            kind = graph.types.get(name, "")
            kind = "INT32" if kind == "INT64" and row.int64_becomes_int32 else kind
            if kind not in ("", "DOUBLE", *allowed):
                yield _name(node), f"{node.op_type} reads or makes {name} of {kind}; expected {' or '.join(allowed)}"


def integers_are_shapes(graph: Graph, row: Row) -> Wrong:
    """Integers count dimensions; none is computed from the picture."""
    reached = {value.name for value in graph.inputs}
    for node in graph.nodes:
        if node.op_type in ("Shape", "Size", *_PAIR) or not reached & set(node.input):
            reached.update(node.output if node.op_type in _PAIR else ())
            continue
        for name in node.output:
            if graph.types.get(name) not in ("INT32", "INT64"):
                reached.add(name)
            elif name in graph.read_by:
                yield _name(node), f"makes {name} of {graph.types[name]} from the picture; expected floats"


def int64_range(graph: Graph, row: Row) -> Wrong:
    """Where INT64 is clamped to INT32, clamping must change nothing."""
    limits = np.iinfo(np.int32)
    for name, values in graph.constants.items() if row.int64_becomes_int32 else ():
        readers = graph.read_by.get(name, [])
        if graph.types[name] != "INT64" or ((values >= limits.min) & (values <= limits.max)).all():
            continue
        if not all(node.op_type == "Slice" and name in node.input[1:3] for node in readers):  # means "to the end"
            yield name, f"reaches {max(values.min(), values.max(), key=abs)}; expected numbers that INT32 holds"


def constant_inputs(graph: Graph, row: Row) -> Wrong:
    """Inputs that the importer must know, such as axes, are constants; Dropout is off, and known to be."""
    for key in ("constant", "false"):
        for node, numbers in graph.limits(row, key):
            for name in (_given(node, number) for number in numbers):
                if name and (name not in graph.constants or (key == "false" and graph.constants[name].any())):
                    yield _name(node), f"{node.op_type} has the input {name}; expected a constant, false for training"


def attributes(graph: Graph, row: Row) -> Wrong:
    """Attributes have values that the release implements: modes of Resize and Pad, dilations of pools."""
    for node, limits in graph.limits(row, "attributes"):
        for key, allowed in limits.items():
            value = _attribute(node, key)
            value = value.decode() if isinstance(value, bytes) else value
            values = [] if value is None else [value] if isinstance(value, str | int) else value
            if not set(values) <= set(allowed):
                yield _name(node), f"{node.op_type} has {key} {value}; expected {' or '.join(map(str, allowed))}"


def outputs(graph: Graph, row: Row) -> Wrong:
    """No second output is read, such as the indices of a MaxPool."""
    for node, most in graph.limits(row, "outputs"):
        if extra := [name for name in node.output[most:] if name]:
            yield _name(node), f"{node.op_type} also makes {', '.join(extra)}; expected no output but its first"


def one_float_type(graph: Graph, row: Row) -> Wrong:
    """With strong typing, all floats that a node brings together, weights too, have one type: nothing is cast."""
    for node in graph.nodes if row.strongly_typed else ():
        if node.op_type in _MIXED or (node.op_type == "QuantizeLinear" and graph.opset < 19):  # the importer casts
            continue
        kinds = {name: kind for name in node.input if (kind := graph.types.get(name, "")) in _FLOATS}
        if len(set(kinds.values())) > 1:
            said = ", ".join(f"{name} {kind}" for name, kind in kinds.items())
            yield _name(node), f"{node.op_type} brings together {said}; expected one type, or a Cast"


def zero_points(graph: Graph, row: Row) -> Wrong:
    """Quantisation is symmetric: a zero point is zeros, as many as scales; older importers want it stated."""
    for node in graph.pairs:
        name = _given(node, 2)
        zeros, values = graph.constants.get(name), graph.constants.get(node.input[1])
        if not name:
            if row.zero_point_required:
                yield _name(node), "has no zero point; expected one of zero"
        elif zeros is None or zeros.astype(np.int32).any():
            yield _name(node), f"has the zero point {name}, which is not zero; expected symmetric quantisation"
        elif values is not None and zeros.size != values.size:
            yield _name(node), f"has {zeros.size} zero points and {values.size} scales; expected as many"


def int8_only(graph: Graph, row: Row) -> Wrong:
    """Quantised is INT8: neither UINT8, nor a bias in INT32."""
    for node in graph.pairs:
        told = graph.types.get(_given(node, 2)) or _KINDS.get(_attribute(node, "output_dtype") or 0)
        made = told or "UINT8"  # ONNX's default, which TensorRT reads as INT8
        kind = made if node.op_type == "QuantizeLinear" else graph.types.get(node.input[0]) or told or "INT8"
        if kind != "INT8":
            yield _name(node), f"is for {kind}; expected INT8, and a bias left in floats"


def scales(graph: Graph, row: Row) -> Wrong:
    """Scales are known, above 0 and finite; FP32 before opset 19 and wherever building is without strong typing."""
    for node in graph.pairs:
        values = graph.constants.get(node.input[1])
        if values is None or not (np.isfinite(values).all() and (values > 0).all()):
            yield _name(node), f"has the scales {node.input[1]}; expected constants above 0"
        if graph.types.get(node.input[1]) == "FP16" and (graph.opset < 19 or not row.fp16_scales):
            yield _name(node), f"has FP16 scales at opset {graph.opset}; expected FP32 (FP16 from opset 19, 10.13 on)"


def scales_per_axis(graph: Graph, row: Row) -> Wrong:
    """Scales per channel are for weights, one a channel of a stated axis; activations have one scale."""
    for node in graph.pairs:
        count = int(np.prod(graph.shapes.get(node.input[1], ())))
        if count == 1:
            continue
        weights, axis = _weights(graph, node), _attribute(node, "axis")
        shape, place = graph.shapes.get(weights, ()), 1 if axis is None else axis
        if not weights:
            yield _name(node), f"has {count} scales for an activation; expected one"
        elif axis is None and row.axis_required:  # these importers take axis 0 where ONNX takes 1
            yield _name(node), "has scales per channel and no axis; expected it stated"
        elif not -len(shape) <= place < len(shape) or shape[place] != count:
            yield _name(node), f"has {count} scales along axis {place} of {list(shape)}; expected one a channel"


def weight_pairs(graph: Graph, row: Row) -> Wrong:
    """Weights are stored in floats and quantised by a pair of their own for each node that reads them."""
    for node in graph.pairs if row.weight_pairs else ():
        if node.input[0] in graph.constants and graph.types[node.input[0]] == "INT8":
            yield _name(node), f"reads {node.input[0]}, stored as INT8; expected floats behind a pair"
        elif _weights(graph, node) and len(readers := graph.read_by.get(node.output[0], [])) > 1:
            said = ", ".join(map(_name, readers))
            yield _name(node), f"gives the same quantised weights to {said}; expected a pair for each"


def floats_before_softmax(graph: Graph, row: Row) -> Wrong:
    """What a Softmax or LayerNormalization reads is not quantised: too little would be left of it."""
    for node in graph.nodes:
        quantised = node.input and graph.maker(node.input[0]) == "DequantizeLinear"
        if quantised and node.op_type in ("Softmax", "LogSoftmax", "LayerNormalization"):
            yield _name(node), f"{node.op_type} reads quantised {node.input[0]}; expected floats"


def residual_adds(graph: Graph, row: Row) -> Wrong:
    """Both inputs of a residual Add are quantised or neither: else TensorRT converts back and forth."""
    for node in graph.nodes:
        if node.op_type == "Add" and not set(node.input) & graph.constants.keys():
            bare = [name for name in node.input if graph.maker(name) != "DequantizeLinear"]
            if len(bare) == 1:
                yield _name(node), f"reads {bare[0]} in floats beside a quantised one; expected both quantised"


RULES: tuple[Callable[[Graph, Row], Wrong], ...] = (
    *(opset, domains, one_picture, no_double, known_operators, element_types, integers_are_shapes, int64_range),
    *(constant_inputs, attributes, outputs, one_float_type, zero_points, int8_only, scales, scales_per_axis),
    *(weight_pairs, floats_before_softmax, residual_adds),
)


def _name(node: NodeProto) -> str:
    return str(node.name or next(iter(node.output), node.op_type))


def _given(node: NodeProto, number: int) -> str:
    """The name of an input; empty where it is left out."""
    return str(node.input[number]) if len(node.input) > number else ""


def _attribute(node: NodeProto, key: str) -> Any:
    import onnx

    return next((onnx.helper.get_attribute_value(one) for one in node.attribute if one.name == key), None)


def _data(graph: Graph, node: NodeProto) -> list[str]:
    """The tensors of a node whose type the table speaks of, not its axes, shapes and side inputs."""
    import onnx

    if node.op_type in ("Constant", "ConstantOfShape") or not onnx.defs.has(node.op_type, graph.opset):
        return list(node.output)
    formal = onnx.defs.get_schema(node.op_type, graph.opset).inputs
    kinds = [formal[min(place, len(formal) - 1)].type_str for place in range(len(node.input))]
    first = kinds[1 if node.op_type == "Where" else 0]
    chosen = [name for name, kind in zip(node.input, kinds, strict=True) if kind == first]
    return chosen + (list(node.output) if node.op_type == "Cast" else [])


def _weights(graph: Graph, node: NodeProto) -> str:
    """The constant that is quantised or dequantised; empty where it is an activation."""
    name = node.input[0]
    if graph.maker(name) == "QuantizeLinear":
        name = graph.made_by[name].input[0]
    return name if name in graph.constants else ""
