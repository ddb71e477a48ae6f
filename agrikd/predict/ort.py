"""An exported .onnx file in ONNX Runtime, on the CPU: the reference of the exports and every device's fallback."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from agrikd import files, image
from agrikd.errors import InputError, MissingExtraError, Problem
from agrikd.predict.decode import decode
from agrikd.types import Image, ModelSpec, Prediction


class OrtPredictor:
    """Input `image` float32 [1, 3, H, W], RGB in [0, 1]; outputs `logits` [1, C] and `embedding` [1, D].

    The file's metadata says the rest (`agrikd`: a ModelSpec as JSON, `agrikd_parameters`, `agrikd_precision`).
    """

    backend = "onnxruntime"

    def __init__(self, path: Path, threads: int = 1) -> None:
        try:
            import onnxruntime as ort
        except ImportError:
            raise MissingExtraError("onnxruntime", "export") from None

        def opened(level: Any) -> Any:
            options = ort.SessionOptions()
            options.intra_op_num_threads = threads
            options.log_severity_level = 3
            options.graph_optimization_level = level
            return ort.InferenceSession(data, options, providers=["CPUExecutionProvider"])

        levels = ort.GraphOptimizationLevel
        data, mend = files.read_bytes(path), "export the Run again: agrikd export onnx RUN"
        try:
            self._session = opened(levels.ORT_DISABLE_ALL)
            said = self._session.get_modelmeta().custom_metadata_map
            self.spec = ModelSpec.from_json(json.loads(said["agrikd"]))
            self.parameters = int(said["agrikd_parameters"])
            self.precision = said.get("agrikd_precision", "fp32")
            if self.precision != "int8f16":  # of which the fused kernels multiply FP16 scales, whose products vanish
                self._session = opened(levels.ORT_ENABLE_ALL)
        except (KeyError, ValueError, TypeError) as error:
            said = f"was not exported by agrikd: it does not say what it is ({error})"
            raise InputError(Problem(str(path), said, mend)) from None
        except Exception as error:  # onnxruntime's own errors share no base but Exception
            raise InputError(Problem(str(path), f"ONNX Runtime cannot open it ({error})", mend)) from None
        self.size_bytes = path.stat().st_size

    def __call__(self, images: Sequence[Image]) -> list[Prediction]:
        return [self._answer(one) for one in images]

    def run(self, picture: NDArray[np.float32]) -> list[NDArray[np.float32]]:
        """The session alone: [1, 3, H, W] to logits [1, C] and embedding [1, D]."""
        found: list[NDArray[np.float32]] = self._session.run(("logits", "embedding"), {"image": picture})
        return found

    def _answer(self, one: Image) -> Prediction:
        logits, embedding = self.run(as_input(one, self.spec))
        return decode(logits, embedding, [one], self.spec)[0]


def as_input(one: Image, spec: ModelSpec) -> NDArray[np.float32]:
    """A photo as an exported graph wants it: float32 [1, 3, H, W], RGB in [0, 1]."""
    planes = np.ascontiguousarray(image.fit(one, spec.input_size, spec.fit).transpose(2, 0, 1)[None])
    return np.divide(planes, np.float32(255), dtype=np.float32)
