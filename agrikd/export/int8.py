"""`export int8`: explicit Q/DQ nodes, symmetric, per channel, as every TensorRT importer wants them.

ONNX Runtime's quantiser with its defaults writes what TensorRT refuses (int32 biases, zero points other than 0); with
the options below it does not. Softmax and sigmoid stay as they are: quantised they cost calibrated percentages.

Two files, because a strongly typed TensorRT (10.12 and later) takes the type between the Q/DQ nodes from their scales:
`int8` at opset 16 with FP32 scales for older ones and for the CPU, `int8f16` at opset 19 with FP16 scales for newer.

Eight bits may cost accuracy in silence, so a file is written only where labelled photos say that it does not.
"""

from __future__ import annotations

import contextlib
import io
import logging
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
from numpy.typing import NDArray

from agrikd import console, files, intervals, metrics
from agrikd.errors import MissingExtraError, ParityError
from agrikd.export import fp16
from agrikd.export.onnx import describe
from agrikd.intervals import Difference, Pair
from agrikd.predict._base import Predictor
from agrikd.predict.ort import OrtPredictor, as_input
from agrikd.types import Image, ModelSpec

if TYPE_CHECKING:
    from onnx import GraphProto

EightBits = Literal["int8", "int8f16"]
OPSET_OF_FP16_SCALES = 19
"""The first at which QuantizeLinear and DequantizeLinear take FP16 (ONNX's operator schemas)."""

_QUANTISED = ["Conv", "Gemm", "MatMul", "Add", "GlobalAveragePool"]
"""Add too: a residual connection in another precision makes TensorRT reformat at each block."""
_OPTIONS = {
    "ActivationSymmetric": True,
    "WeightSymmetric": True,
    "QuantizeBias": False,
    "AddQDQPairToWeight": True,
    "DedicatedQDQPair": True,
    "CalibPercentile": 99.99,
    "CalibMaxIntermediateOutputs": 10,
}
"""One activation in ten thousand is cut off: the logits of a trained mobilenetv2 then moved by 0.25 instead of 0.45
(models/LOG.md 5). Histograms are made of ten photos at a time, which bounds the memory."""
FEWEST = 100
"""Where none of n photos is answered otherwise, up to 3 / n of others may be (95 %, the rule of three)."""
_LEAST_SCALE = np.float32(np.finfo(np.float16).tiny)
"""Half precision's smallest normal number: below, a scale loses its bits, and in the end is 0."""
MAY_LOSE = 0.03
"""Of macro-F1, the most that the upper end of the loss's 95 % interval may reach; for numbers the share by which the
mean error may grow."""


@dataclass(frozen=True)
class Loss:
    """What eight bits cost on labelled photos: better than before by `difference`, of the score `before`.

    unit: of a number's mean error; None for macro-F1.
    """

    images: int
    before: float
    difference: Difference
    unit: str | None

    @property
    def allowed(self) -> float:
        return MAY_LOSE if self.unit is None else MAY_LOSE * self.before

    @property
    def passed(self) -> bool:
        return self.images >= FEWEST and -self.difference.low <= self.allowed

    def __str__(self) -> str:
        size, unit = (100, "points of macro-F1") if self.unit is None else (1, f"{self.unit} of mean error")
        lost, most = (-size * value + 0.0 for value in (self.difference.mean, self.difference.low))
        few = f"; {FEWEST} photos are needed" if self.images < FEWEST else ""
        allowed = f"{size * self.allowed:.2f} allowed"
        return f"{self.images} photos: {lost:.2f} {unit} lost, at most {most:.2f} ({allowed}){few}"


@dataclass(frozen=True)
class Labelled:
    """Photos and what is on them: truth [N], places in the classes or numbers. groups: [N] names of what is resampled
    together (plants, plots); None where each photo stands alone."""

    images: Sequence[Image]
    truth: NDArray[Any]
    groups: Sequence[str] | None = None


def export(
    reference: Path,
    path: Path,
    spec: ModelSpec,
    calibration: Sequence[Image],
    judged: Labelled,
    precision: EightBits = "int8",
) -> Loss:
    """Write the FP32 graph `reference` in eight bits to `path`, its ranges measured on `calibration`.

    spec: what the file is to say of itself. Raises `ParityError`, and writes nothing, where the loss on `judged` may be
    larger than `MAY_LOSE`, or these are fewer than `FEWEST`.
    """
    before = OrtPredictor(reference)
    with files.replacing(path) as temporary:
        quantise(reference, temporary, spec, calibration)
        if precision == "int8f16":
            widen(temporary)
        describe(temporary, spec, before.parameters, precision)
        found = loss(before, OrtPredictor(temporary), judged)
        if not found.passed:
            mend = "use FP16, which is a Jetson's default and often as fast"
            raise ParityError(f"{precision} loses too much; nothing was written\n  {found}\n    → {mend}")
    return found


def quantise(reference: Path, path: Path, spec: ModelSpec, images: Sequence[Image]) -> None:
    """The FP32 graph with Q/DQ nodes around what is quantised, at the same opset."""
    try:
        import onnx
        from onnxruntime.quantization import CalibrationMethod, QuantFormat, QuantType, quantize_static
    except ImportError:
        raise MissingExtraError("onnx", "export") from None
    model = onnx.load(reference)
    own_constants(model.graph)
    before = logging.root.level
    logging.root.setLevel(logging.ERROR)  # the quantiser advises, on the root logger, what TensorRT does not want
    try:
        with contextlib.redirect_stdout(io.StringIO()):  # the percentiles are told with print, where --json writes
            quantize_static(
                model,
                str(path),
                _Reader(images, spec),
                quant_format=QuantFormat.QDQ,
                per_channel=True,
                activation_type=QuantType.QInt8,
                weight_type=QuantType.QInt8,
                calibrate_method=CalibrationMethod.Percentile,
                op_types_to_quantize=_QUANTISED,
                nodes_to_exclude=left_out(model.graph),
                extra_options=_OPTIONS,
            )
    finally:
        logging.root.setLevel(before)


def left_out(graph: GraphProto) -> list[str]:
    """Names of nodes that stay as they are: what half precision would spoil, the first layer, which costs little and
    sees the picture itself, and sums with a constant, of which a layer norm's ε would become 0. The sums that are left
    join a residual connection."""
    constants = {one.name for one in graph.initializer}
    constants.update(output for node in graph.node if node.op_type == "Constant" for output in node.output)
    kept = fp16.kept_in_fp32(graph) + [node.name for node in graph.node if node.op_type == "Conv"][:1]
    return kept + [node.name for node in graph.node if node.op_type == "Add" and constants & set(node.input)]


def own_constants(graph: GraphProto) -> None:
    """Give every node copies of the weights that it shares with others: TensorRT 8 wants a Q/DQ pair for each."""
    constants, taken = {one.name: one for one in graph.initializer}, set()
    for number, node in enumerate(graph.node):
        for place, name in enumerate(node.input):
            if name in constants and name in taken:
                copy = graph.initializer.add()
                copy.CopyFrom(constants[name])
                copy.name = node.input[place] = f"{name}_of_{number}_{place}"
            taken.add(name)


def widen(path: Path) -> None:
    """Between the Q/DQ nodes FP16 instead of FP32, in place: opset 19, FP16 scales and weights."""
    import onnx

    model = onnx.version_converter.convert_version(onnx.load(path), OPSET_OF_FP16_SCALES)
    scales = {node.input[1] for node in model.graph.node if node.op_type in ("QuantizeLinear", "DequantizeLinear")}
    for tensor in model.graph.initializer:
        if tensor.name in scales:
            values = np.maximum(onnx.numpy_helper.to_array(tensor), _LEAST_SCALE)
            tensor.CopyFrom(onnx.numpy_helper.from_array(values, tensor.name))
    onnx.save(fp16.in_half(model, fp16.kept_in_fp32(model.graph)), path)


def loss(before: Predictor, after: Predictor, judged: Labelled) -> Loss:
    """How much worse `after` is than `before` on labelled photos, by a paired bootstrap over them or their groups."""
    scale = before.spec.scale
    a, b = (
        np.array([_answer(predictor([one])[0], scale is not None) for one in console.track(judged.images, what)])
        for predictor, what in ((before, "FP32"), (after, "eight bits"))
    )
    classes = None if scale else len(before.spec.classes)
    pair = Pair(judged.truth, a[None], b[None], classes, judged.groups)
    difference = intervals.paired_bootstrap(pair, np.random.default_rng(0))
    if classes is None:
        score, unit = metrics.mae(judged.truth, a), scale.unit if scale else ""
    else:
        score, unit = metrics.macro_f1(metrics.confusion(judged.truth, a, classes)), None
    return Loss(len(judged.images), score, difference, unit)


def _answer(prediction: Any, number: bool) -> float | int:
    value: float | int = prediction.value if number else prediction.top
    return value


class _Reader:
    """Feeds the quantiser one photo at a time."""

    def __init__(self, images: Sequence[Image], spec: ModelSpec) -> None:
        self._left: Iterator[Image] = iter(console.track(images, "calibration"))
        self._spec = spec

    def get_next(self) -> dict[str, NDArray[np.float32]] | None:
        one = next(self._left, None)
        return None if one is None else {"image": as_input(one, self._spec)}
