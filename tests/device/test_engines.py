"""A device with TensorRT, which is a fake: what is chosen, and what answers while an engine is built anew."""

from __future__ import annotations

import json
import math
import tempfile
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from device_kit import QUICK, WEIGHTS, Device, Pack, contents, net

from agrikd import files
from agrikd.bundle import Artefact
from agrikd.device import installer
from agrikd.device.child import Child, Limits, Model
from agrikd.device.question import ask
from agrikd.device.serving import Serving

FAKES = Path(__file__).parents[1] / "fakes"
BOTH = (Artefact("fp32", "model.onnx", ("8.6",), 0.01), Artefact("fp16", "model.fp16.onnx", ("10.3",), 0.05))


def halves(weights: np.ndarray[Any, Any] = WEIGHTS) -> dict[str, bytes]:
    """A release's files with FP16 beside FP32."""
    said = {name: weights.tolist() for name in ("fp32", "fp16")}
    return {
        **contents(weights),
        "model.fp16.onnx": net(weights, precision="fp16"),
        "answers.json": files.canonical(said),
    }


@pytest.fixture
def jetson(device: Device, cudart: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """Starts the agent anew on a machine whose TensorRT does as asked."""
    monkeypatch.setenv("AGRIKD_CUDART", str(cudart))
    monkeypatch.setenv("PYTHONPATH", str(FAKES))

    def start(limits: Limits = QUICK, **asked: Any) -> None:
        monkeypatch.setenv("AGRIKD_FAKE_TRT", json.dumps(asked))
        device.stop()
        device.start(limits)

    return start


def backend(device: Device, wanted: str) -> str:
    end = time.monotonic() + 30
    while wanted not in (said := str(_health(device).get("backend"))):
        assert time.monotonic() < end, said
        time.sleep(0.05)
    return said


def _health(device: Device) -> dict[str, Any]:
    try:
        return ask(device.store, 5, health=True)
    except OSError:
        return {}


def test_half_precision_is_a_jetson_s_default(jetson: Any, device: Device, packed: Pack) -> None:
    jetson()
    done = device.run("install", str(packed(1, held=halves(), artefacts=BOTH)))
    assert done.returncode == 0, done.stderr
    said = json.loads(device.run("status", "--json").stdout)
    assert said["precision"] == "fp16" and said["dropped"] == {} and said["agent"]["backend"] == "tensorrt 10.3.0"


def test_where_the_engine_cannot_be_built_the_cpu_serves_and_status_says_why(
    jetson: Any, device: Device, packed: Pack
) -> None:
    jetson(build_none=True)
    done = device.run("install", str(packed(1, held=halves(), artefacts=BOTH)))
    assert done.returncode == 0, done.stderr
    said = json.loads(device.run("status", "--json").stdout)
    assert said["precision"] == "fp32" and "the builder gave no engine" in said["dropped"]["fp16"]
    assert said["agent"]["backend"].startswith("onnxruntime")


def test_a_build_that_hangs_fails_in_time_for_the_cpu_to_serve(jetson: Any, device: Device, packed: Pack) -> None:
    jetson(replace(QUICK, start_s=12), hangs=600)
    done = device.run("install", str(packed(1)))
    assert done.returncode == 0, done.stderr
    said = json.loads(device.run("status", "--json").stdout)
    assert said["precision"] == "fp32" and "the build took longer than" in said["dropped"]["fp32"]
    assert said["agent"]["backend"].startswith("onnxruntime")


def test_after_a_new_tensorrt_the_cpu_answers_at_once_and_then_the_new_engine(
    jetson: Any, device: Device, packed: Pack
) -> None:
    """As after an update of JetPack: the engine of the old one does not load any more."""
    jetson()
    assert device.run("install", str(packed(1, held=halves(), artefacts=BOTH))).returncode == 0
    jetson(version="10.7.0", hangs=4)
    assert "the engine is being built" in backend(device, "onnxruntime")
    answer = ask(device.store, 20, probe=1)
    assert np.abs(np.array(answer["logits"]) - WEIGHTS).max() < 0.05
    end = time.monotonic() + 40
    while "tensorrt 10.7.0" not in str(ask(device.store, 20, probe=1)["backend"]):
        assert time.monotonic() < end
        time.sleep(0.2)


def test_what_answers_is_known_from_the_frames_alone(
    jetson: Any, device: Device, packed: Pack, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    """Nobody asks for the probes when an engine takes over, or fails, months after the installation."""
    jetson()
    assert device.run("install", str(packed(1, held=halves(), artefacts=BOTH))).returncode == 0
    device.stop()
    monkeypatch.setenv("AGRIKD_FAKE_TRT", json.dumps({"version": "10.7.0", "hangs": 2}))
    name, logged = device.require_whole(), list[str]()
    with tempfile.TemporaryFile() as pixels:
        pixels.write(bytes(8 * 8 * 3))
        pixels.flush()

        def start(name: str) -> Child:
            model = Model(device.store.path(name), "model.fp16.onnx", device.store.engines)
            return Child(model, QUICK, live=True, pixels=(pixels.fileno(),))

        serving = Serving(lambda: name, start, lambda name, why: logged.append(why))
        try:
            seen, end = set[str](), time.monotonic() + 40
            while "tensorrt 10.7.0" not in (now := serving.health()["backend"]):
                seen.add(now.partition(":")[0])
                serving.follow()
                serving.predict(pixels.fileno(), (8, 8), 0.0)
                assert time.monotonic() < end, (now, logged)
                time.sleep(0.1)
        finally:
            serving.stop()
    assert seen == {"", "onnxruntime (the engine is being built"} and not logged
    said = " ".join(capfd.readouterr().err.split())
    assert said.count(f"{name} answers by tensorrt 10.7.0") == 1 and "answers by onnxruntime" not in said


@pytest.mark.parametrize(("off", "why"), [(1.0, "differ from the lab's by 1"), (math.nan, "not finite numbers")])
def test_an_engine_of_a_new_tensorrt_that_answers_otherwise_does_not_serve(
    off: float, why: str, jetson: Any, device: Device, packed: Pack
) -> None:
    jetson()
    assert device.run("install", str(packed(1, held=halves(), artefacts=BOTH))).returncode == 0
    kept = set(device.store.engines.glob("*.engine"))
    jetson(version="10.7.0", off=off)
    pid, end = ask_until(device, "pid"), time.monotonic() + 40
    while "being built" in (answer := ask(device.store, 20, probe=1))["backend"]:
        assert time.monotonic() < end
        time.sleep(0.1)
    assert answer["backend"].startswith("onnxruntime (no engine: ") and why in answer["backend"]
    assert np.abs(np.array(answer["logits"]) - WEIGHTS).max() < 0.05
    assert set(device.store.engines.glob("*.engine")) == kept, "it is forgotten"
    said = _health(device)
    assert why in said["backend"] and said["pid"] == pid and said["failures"] == 0


def ask_until(device: Device, what: str) -> Any:
    """What the agent says of it, as soon as it does."""
    end = time.monotonic() + 30
    while not (said := _health(device).get(what)):
        assert time.monotonic() < end
        time.sleep(0.05)
    return said


def test_a_release_that_is_for_later_ones_is_not_tried(jetson: Any, device: Device, packed: Pack) -> None:
    jetson(version="8.6.1")
    assert device.run("install", str(packed(1, held=halves(), artefacts=BOTH))).returncode == 0
    assert installer.choice_of(device.store, device.require_whole()).precision == "fp32"


@pytest.mark.parametrize(("times", "kept"), [((2.0, 1.0), "int8"), ((2.0, 1.9), "fp16")])
def test_eight_bits_have_to_win_on_the_device(
    times: tuple[float, float], kept: str, device: Device, packed: Pack, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The gate alone: what each took is given."""
    from agrikd.bundle import Bundle
    from agrikd.device.probes import Answer

    made = (*BOTH, Artefact("int8", "model.int8.onnx", ("8.6",), 0.5))
    took = dict(zip(("fp16", "int8"), times, strict=True))
    monkeypatch.setattr(
        installer, "_tried", lambda *words: Answer(WEIGHTS.tolist(), took[words[2].precision], "tensorrt 10.3.0")
    )
    monkeypatch.setattr(installer.importlib, "import_module", lambda name: type("T", (), {"__version__": "10.3.0"}))
    held = {**halves(), "model.int8.onnx": net(precision="int8")}
    with Bundle(packed(1, held=held, artefacts=made)) as opened:
        installer.begin(device.store, opened.envelope, opened.release)
        for file, number in device.store.missing(opened.release):
            device.store.take(opened.release, file, number, opened.chunk(file, number))
        installer.finish(device.store, opened.release)
    installer._prepare(device.store, QUICK)
    choice = installer.choice_of(device.store, device.store.state.release)
    assert choice.precision == kept and (kept == "int8" or "beside 2.00" in choice.dropped["int8"])
