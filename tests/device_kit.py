"""Devices in a folder, an agent on each, and releases of nets so small that their answers can be counted by hand."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from agrikd import files, image
from agrikd.bundle import Artefact, File, Release
from agrikd.device.child import Limits
from agrikd.device.store import PENDING, State, Store
from agrikd.types import ModelSpec

CLASSES = ("blight", "healthy", "rust")
QUICK = Limits(start_s=20, answer_s=5, trial_s=20, memory_mib=1000, budget_ms=500)
WEIGHTS = np.array([[9, -3, 1], [-2, 8, -5], [1, -4, 7]], np.float32)


def net(weights: np.ndarray[Any, Any] = WEIGHTS, trouble: str = "", precision: str = "fp32") -> bytes:
    """An .onnx file: the mean colour times `weights`. trouble: "hang" never ends, "memory" asks for 2 GB."""
    from onnx import TensorProto, helper, numpy_helper

    shape = [1, 3, 8, 8]
    ends = [("logits", [1, weights.shape[1]]), ("embedding", [1, 3])]
    nodes = [
        helper.make_node("GlobalAveragePool", ["image"], ["pooled"]),
        helper.make_node("Flatten", ["pooled"], ["embedding"]),
        helper.make_node("MatMul", ["embedding", "weights"], ["plain" if trouble else "logits"]),
    ]
    held = [numpy_helper.from_array(weights.astype(np.float32), "weights")]
    if trouble == "hang":
        body = helper.make_graph(
            [helper.make_node("Identity", ["on"], ["on_"]), helper.make_node("Identity", ["x"], ["x_"])],
            "body",
            [
                helper.make_tensor_value_info("i", TensorProto.INT64, []),
                helper.make_tensor_value_info("on", TensorProto.BOOL, []),
                helper.make_tensor_value_info("x", TensorProto.FLOAT, [1, 3]),
            ],
            [
                helper.make_tensor_value_info("on_", TensorProto.BOOL, []),
                helper.make_tensor_value_info("x_", TensorProto.FLOAT, [1, 3]),
            ],
        )
        held += [numpy_helper.from_array(np.array(2**62), "n"), numpy_helper.from_array(np.array(True), "yes")]
        nodes.append(helper.make_node("Loop", ["n", "yes", "plain"], ["logits"], body=body))
    if trouble == "memory":
        held.append(numpy_helper.from_array(np.array([2**29 // 3, 3]), "large"))
        held.append(numpy_helper.from_array(np.array([0]), "axis"))
        nodes.append(helper.make_node("Expand", ["plain", "large"], ["much"]))
        nodes.append(helper.make_node("ReduceMax", ["much"], ["logits"], axes=[0], keepdims=1))
    graph = helper.make_graph(
        nodes,
        "net",
        [helper.make_tensor_value_info("image", TensorProto.FLOAT, shape)],
        [helper.make_tensor_value_info(name, TensorProto.FLOAT, size) for name, size in ends],
        held,
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 16)], ir_version=8)
    spec = ModelSpec("leaf", "classification", CLASSES, (8, 8))
    own = {"agrikd": json.dumps(spec.to_json()), "agrikd_parameters": "9", "agrikd_precision": precision}
    helper.set_model_props(model, own)
    return bytes(model.SerializeToString())


def probe(number: int) -> np.ndarray[Any, Any]:
    picture = np.zeros((16, 24, 3), np.uint8)
    picture[..., number % 3] = 255
    return picture


def contents(weights: np.ndarray[Any, Any] = WEIGHTS, trouble: str = "", answers: Any = None) -> dict[str, bytes]:
    pictures = {f"probe-{number}.png": image.encode_png(probe(number)) for number in range(3)}
    said = weights[:3].tolist() if answers is None else answers
    return {"model.onnx": net(weights, trouble), **pictures, "answers.json": files.canonical({"fp32": said})}


def release(held: dict[str, bytes], seq: int = 1, **changes: Any) -> Release:
    made = Release(
        name="leaf",
        version=f"2026.{seq}",
        seq=seq,
        min_agent="0.1.0",
        compatible=("*",),
        spec=ModelSpec("leaf", "classification", CLASSES, (8, 8)),
        resize=image.RESIZE,
        artefacts=(Artefact("fp32", "model.onnx", ("10.3",), 0.01),),
        probes=tuple(name for name in held if name.endswith(".png")),
        answers="answers.json",
        files=tuple(File.of(name, data) for name, data in held.items()),
    )
    return replace(made, **changes)


Pack = Callable[..., Path]


class Device:
    """A device's folder, the commands that run on it, and its agent."""

    def __init__(self, folder: Path, root: bytes) -> None:
        self.store = Store(folder)
        self.store.trust(root, "root")
        self.agent: subprocess.Popen[bytes] | None = None

    def command(self, *words: str) -> list[str]:
        return [sys.executable, "-m", "agrikd.device", "--store", str(self.store.folder), *words]

    def run(self, *words: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(self.command(*words), capture_output=True, text=True, timeout=120, check=False)

    def start(self, limits: Limits = QUICK) -> None:
        own = ["--memory-mib", str(limits.memory_mib), "--budget-ms", str(limits.budget_ms)]
        own += ["--trial-s", str(limits.trial_s), "--answer-s", str(limits.answer_s), "--start-s", str(limits.start_s)]
        self.agent = subprocess.Popen(self.command("run", *own), stderr=subprocess.PIPE)

    def stop(self, number: int = 15) -> None:
        if self.agent:
            self.agent.send_signal(number)
            self.agent.wait(20)
            assert self.agent.stderr
            self.agent.stderr.close()
        self.agent = None

    def settled(self, seconds: float = 60) -> State:
        """The state when nothing is pending any more."""
        end = time.monotonic() + seconds
        while (state := self.store.state).phase in PENDING:
            assert time.monotonic() < end, f"still {state}"
            time.sleep(0.05)
        return state

    def require_whole(self) -> str:
        """What serves, which must be whole and what was signed."""
        current = self.store.linked("current")
        assert not current or self.store.whole(current)
        return current
