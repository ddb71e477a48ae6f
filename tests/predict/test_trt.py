"""From an .onnx file to answers by TensorRT, against a fake one that computes and fails as the real one does."""

from __future__ import annotations

import dataclasses
import errno
import json
import math
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from agrikd import files
from agrikd.errors import DeviceError, InputError
from agrikd.predict import _build, open_predictor, trt
from agrikd.predict._cudart import Cuda
from agrikd.predict._engines import _KEPT as KEPT
from agrikd.predict._engines import Build, EngineCache, EngineKey, Limits
from agrikd.predict.ort import OrtPredictor
from agrikd.predict.trt import TrtPredictor

Image = NDArray[np.uint8]
SECONDS = 60.0
KEY = EngineKey("a", "10.3.0", "12.6", "R36", "Orin", "8.7", "m", "fp32", (1, 3, 32, 32), 1)


def same(one: Any, other: Any) -> None:
    for a, b in zip(one, other, strict=True):
        np.testing.assert_allclose(a.logits, b.logits, atol=1e-5)
        np.testing.assert_allclose(a.embedding, b.embedding, atol=1e-5)


def test_build_cache_load_run_parity(device: Any, model: Path, photos: list[Image], tmp_path: Path) -> None:
    predictor = TrtPredictor(model, tmp_path)
    assert predictor.backend.startswith("onnxruntime (the engine is being built")
    reference = OrtPredictor(model)
    same(predictor(photos), reference(photos))
    assert predictor.wait(SECONDS) and predictor.backend == "tensorrt 10.3.0"
    same(predictor(photos), reference(photos))
    assert predictor.spec == reference.spec and predictor.parameters == 1000
    predictor.close()
    stamps = {path: path.stat().st_mtime_ns for path in tmp_path.iterdir()}
    assert sorted(path.suffix for path in stamps) == [".engine", ".lock", ".timing"]
    again = TrtPredictor(model, tmp_path)
    assert again.backend == "tensorrt 10.3.0", "it is loaded at once"
    same(again(photos), reference(photos))
    assert again.built is None and set(tmp_path.iterdir()) == set(stamps)
    again.close()


def test_answers_do_not_share_memory(device: Any, model: Path, photos: list[Image], tmp_path: Path) -> None:
    predictor = TrtPredictor(model, tmp_path)
    assert predictor.wait(SECONDS)
    first = predictor(photos[:1])[0]
    kept = first.logits.copy()
    predictor(photos[1:])
    np.testing.assert_array_equal(first.logits, kept)
    predictor.close()


def test_each_part_of_the_key_matters(tmp_path: Path) -> None:
    cache = EngineCache(tmp_path)
    cache.keep(KEY, b"plan")
    assert cache.find(KEY) == b"plan"
    changed = 0
    for field in dataclasses.fields(EngineKey):
        value = getattr(KEY, field.name)
        other = dataclasses.replace(KEY, **{field.name: value * 2 if isinstance(value, tuple) else f"{value}x"})
        assert cache.find(other) is None, field.name
        changed += 1
    assert changed == 10


@pytest.mark.parametrize(
    ("variables", "texts"),
    [
        ({"AGRIKD_FAKE_SM": "7.2"}, {}),
        ({}, {"_L4T": "R39"}),
        ({}, {"_MODEL": "Orin NX\0"}),
        ({}, {"_MACHINE": "other"}),
    ],
    ids=["GPU", "L4T", "board", "machine"],
)
def test_another_device_builds_anew(
    device: Any,
    model: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    variables: dict[str, str],
    texts: dict[str, str],
) -> None:
    first = TrtPredictor(model, tmp_path / "cache")
    assert first.wait(SECONDS)
    first.close()
    device.set(**variables)
    for name, text in texts.items():
        (tmp_path / name).write_text(text)
        monkeypatch.setattr(trt, name, tmp_path / name)
    second = TrtPredictor(model, tmp_path / "cache")
    assert "being built" in second.backend
    assert second.wait(SECONDS)
    second.close()
    assert len(list((tmp_path / "cache").glob("*.engine"))) == 2


def test_another_release_builds_anew(device: Any, model: Path, tmp_path: Path) -> None:
    for number, version in enumerate(("8.6.1", "10.3.0", "10.13.3", "11.4.0"), 1):
        device.fails(version=version)
        predictor = TrtPredictor(model, tmp_path)
        assert "being built" in predictor.backend
        assert predictor.wait(SECONDS) and predictor.backend == f"tensorrt {version}"
        predictor.close()
        assert len(list(tmp_path.glob("*.engine"))) == number


def test_engines_that_are_used_are_kept(tmp_path: Path) -> None:
    cache = EngineCache(tmp_path)
    keys = [dataclasses.replace(KEY, artefact=str(number)) for number in range(KEPT + 2)]
    for number, key in enumerate(keys):
        cache.keep(key, b"plan")
        os.utime(cache.path(key), (number, number))
        cache.find(keys[0])
    assert [cache.find(key) is not None for key in keys] == [True, False, False, *[True] * (KEPT - 1)]


def test_on_a_disk_that_may_not_be_written_an_engine_is_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> None:
        raise OSError(errno.EROFS, "Read-only file system")

    cache = EngineCache(tmp_path)
    cache.keep(KEY, b"plan")
    monkeypatch.setattr(os, "utime", refuse)
    assert cache.find(KEY) == b"plan"


def test_what_a_kill_left_of_an_engine_goes_with_the_next(tmp_path: Path) -> None:
    cache = EngineCache(tmp_path)
    other = dataclasses.replace(KEY, artefact="other")
    for key in (KEY, other):
        (tmp_path / f".{cache.path(key).name}.a1b2.engine").write_bytes(b"half")
    cache.keep(KEY, b"plan")
    assert [path.name[: len(cache.path(other).name) + 1] for path in tmp_path.glob(".*")] == [
        f".{cache.path(other).name}"
    ]
    assert cache.find(KEY) == b"plan"


def test_after_the_clock_went_back_a_new_engine_and_one_in_use_are_kept(tmp_path: Path) -> None:
    """As on a board whose clock was wrong: what it keeps is dated months ahead."""
    cache, ahead = EngineCache(tmp_path), time.time() + 300 * 86400
    keys = [dataclasses.replace(KEY, artefact=str(number)) for number in range(KEPT)]
    for number, key in enumerate(keys):
        cache.keep(key, b"plan")
        os.utime(cache.path(key), (ahead + number, ahead + number))
    for number in range(3):
        new = dataclasses.replace(KEY, artefact=f"new {number}")
        cache.keep(new, b"plan")
        assert cache.find(new) == cache.find(keys[1]) == b"plan"
    assert [cache.find(key) is not None for key in keys] == [False, True, False, False, *[True] * (KEPT - 4)]


def test_a_damaged_engine_is_built_anew(device: Any, model: Path, photos: list[Image], tmp_path: Path) -> None:
    predictor = TrtPredictor(model, tmp_path)
    assert predictor.wait(SECONDS)
    predictor.close()
    (engine,) = tmp_path.glob("*.engine")
    whole = engine.read_bytes()
    engine.write_bytes(whole[:-1] + bytes([whole[-1] ^ 1]))
    again = TrtPredictor(model, tmp_path)
    assert "being built" in again.backend and again.wait(SECONDS)
    same(again(photos), OrtPredictor(model)(photos))
    again.close()


def test_an_engine_that_does_not_load_is_built_anew(
    device: Any, model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """As after an update that kept its version number: the key fits and the engine does not. As it may be for want of
    memory, it is tried three times."""
    predictor = TrtPredictor(model, tmp_path)
    assert predictor.wait(SECONDS)
    predictor.close()
    EngineCache(tmp_path).keep(predictor._key, b'{"tensorrt": "9.9.9"}\n')
    again = TrtPredictor(model, tmp_path)
    for _ in range(trt._TRIES - 1):
        assert not again.wait(0) and "does not load" in again.backend and again._again_at < math.inf
        again._again_at = time.monotonic()
    again.wait(0)
    assert "it is built anew" in " ".join(capsys.readouterr().err.split())
    assert again.wait(SECONDS) and again.backend == "tensorrt 10.3.0"
    again.close()


FAILURES = {
    "parse": ({"parse": ["unsupported node Gelu", "and another"]}, {}, "unsupported node Gelu; and another"),
    "build gives none": ({"build_none": True}, {}, "the builder gave no engine"),
    "child killed": ({"killed": True}, {}, "was killed, perhaps for lack of memory"),
    "child hangs": ({"hangs": 600}, {"seconds": 1.0}, "took longer than 1 s"),
    "child hoards": ({"memory_mib": 400, "hangs": 600}, {"memory_mib": 300.0}, "more than 300"),
    "load gives none": ({"load_none": True}, {}, "does not load the engine"),
    "no runtime": ({"no_runtime": True}, {}, "TensorRT does not start: pybind11"),
}


@pytest.mark.parametrize("name", FAILURES)
def test_whatever_fails_onnx_runtime_answers_and_says_so(
    device: Any, model: Path, photos: list[Image], tmp_path: Path, name: str, capsys: pytest.CaptureFixture[str]
) -> None:
    asked, limits, why = FAILURES[name]
    device.fails(**asked)
    predictor = TrtPredictor(model, tmp_path, Limits(**limits))
    reference = OrtPredictor(model)
    same(predictor(photos), reference(photos))
    assert not predictor.wait(SECONDS)
    same(predictor(photos), reference(photos))
    assert predictor.backend.startswith("onnxruntime (no engine: ") and why in predictor.backend
    assert "ONNX Runtime answers on the CPU" in " ".join(capsys.readouterr().err.split())
    kept = name in ("no runtime", "load gives none")  # it may load yet
    assert kept or not list(tmp_path.glob("*.engine")), "nothing half-built is left"
    predictor.close()


@pytest.mark.parametrize("there", [False, True])
def test_an_engine_that_is_in_doubt_answers_nothing(
    there: bool, device: Any, model: Path, photos: list[Image], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Neither a new one nor one that was there, of a build whose worker was killed before it asked."""
    if there:
        assert TrtPredictor(model, tmp_path).wait(SECONDS)
    reference, asked = OrtPredictor(model), list[Any]()

    def doubt(logits: Any) -> str:
        asked.append([logits(photo) for photo in photos])
        return "it is odd"

    predictor = TrtPredictor(model, tmp_path, doubt=doubt)
    assert not predictor.wait(SECONDS) and predictor.backend == "onnxruntime (no engine: it is odd)"
    same(predictor(photos), reference(photos))
    np.testing.assert_allclose(asked[-1], [one.logits for one in reference(photos)], atol=1e-5)
    assert len(asked) == 1 + there and not list(tmp_path.glob("*.engine"))
    assert ("it is odd; it is built anew" in capsys.readouterr().err) == there


def test_a_build_that_the_kernel_holds_has_failed_all_the_same(
    device: Any, model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    device.fails(hangs=600)
    with monkeypatch.context() as patched:
        patched.setattr(subprocess.Popen, "kill", lambda _: None)
        build = Build(model, key_of(model), EngineCache(tmp_path), Limits(seconds=0.5))
        assert build.done.wait(6) and "took longer than" in str(build.why)
    build.stop()


def test_an_engine_that_fails_while_it_runs(device: Any, model: Path, photos: list[Image], tmp_path: Path) -> None:
    device.fails(run_false=True)
    predictor = TrtPredictor(model, tmp_path)
    assert predictor.wait(SECONDS)
    same(predictor(photos), OrtPredictor(model)(photos))
    assert "did not run the engine" in predictor.backend


@pytest.mark.parametrize("off", [float("nan"), float("inf")])
def test_an_engine_that_overflows(device: Any, model: Path, photos: list[Image], tmp_path: Path, off: float) -> None:
    """Of one that is new, as when it is installed, one odd frame is enough. Of one that is proven it costs nothing."""
    device.fails(off=off)
    overflows = "onnxruntime (no engine: the engine's logits are not finite numbers)"
    predictor = TrtPredictor(model, tmp_path)
    assert predictor.wait(SECONDS)
    same(predictor(photos), OrtPredictor(model)(photos))
    assert predictor.backend == overflows
    predictor = TrtPredictor(model, tmp_path)
    predictor._good = trt._PROVEN
    for _ in range(trt._ODD - 1):
        same(predictor(photos[:1]), OrtPredictor(model)(photos[:1]))
        assert predictor.backend == "tensorrt 10.3.0"
    predictor(photos[:1])
    assert predictor.backend == overflows


def test_a_file_that_is_not_there_is_said(device: Any, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="there is no such file"):
        open_predictor(tmp_path / "absent.onnx")


def test_a_device_without_memory(
    device: Any, model: Path, photos: list[Image], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    device.set(AGRIKD_FAKE_NO_MEMORY="1")
    predictor = TrtPredictor(model, tmp_path)
    assert not predictor.wait(SECONDS) and "cudaMalloc: out of memory (2)" in predictor.backend
    same(predictor(photos), OrtPredictor(model)(photos))
    (engine,) = tmp_path.glob("*.engine")
    before = engine.stat().st_ino
    monkeypatch.delenv("AGRIKD_FAKE_NO_MEMORY")
    predictor._again_at = time.monotonic()
    same(predictor(photos), OrtPredictor(model)(photos))
    assert predictor.backend == "tensorrt 10.3.0" and engine.stat().st_ino == before, "nothing was built anew"


def test_a_machine_without_cuda(device: Any, model: Path, photos: list[Image], tmp_path: Path) -> None:
    device.set(AGRIKD_CUDART="/nowhere/libcudart.so")
    predictor = TrtPredictor(model, tmp_path)
    assert "no /nowhere/libcudart.so can be loaded" in predictor.backend
    same(predictor(photos), OrtPredictor(model)(photos))


def test_a_file_is_opened_by_what_there_is(device: Any, model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    found = open_predictor(model)
    assert isinstance(found, TrtPredictor) and found.backend == "tensorrt 10.3.0", "it has waited"
    found.close()
    monkeypatch.setitem(sys.modules, "tensorrt", None)
    assert isinstance(open_predictor(model), OrtPredictor)


def test_a_stopped_build_leaves_nothing(device: Any, model: Path, tmp_path: Path) -> None:
    device.fails(hangs=600)
    cache = EngineCache(tmp_path)
    build = Build(model, key_of(model), cache, Limits())
    build.stop()
    assert build.done.wait(SECONDS) and build.why == "the build was stopped"
    assert not list(tmp_path.glob("*.engine"))


def test_progress_is_said_and_measurements_are_kept(device: Any, model: Path, tmp_path: Path) -> None:
    cache = EngineCache(tmp_path)
    for times in (1, 2):
        key = dataclasses.replace(key_of(model), precision=("fp32", "fp16")[times - 1])
        build = Build(model, key, cache, Limits())
        assert build.done.wait(SECONDS) and build.why is None and build.progress == 1.0
        assert cache.timing(key).read_bytes() == b"+" * times, "the second build begins with the first one's"
    assert json.loads((cache.find(key_of(model)) or b"").partition(b"\n")[0])["flags"] == []


def test_a_damaged_timing_cache_is_done_without(device: Any, model: Path, tmp_path: Path) -> None:
    cache = EngineCache(tmp_path)
    cache.timing(key_of(model)).write_bytes(b"damaged")
    build = Build(model, key_of(model), cache, Limits())
    assert build.done.wait(SECONDS) and build.why is None and cache.find(key_of(model)) is not None
    assert cache.timing(key_of(model)).read_bytes() == b"+"


def test_a_file_that_is_replaced_meanwhile_is_not_built(device: Any, model: Path, tmp_path: Path) -> None:
    other = dataclasses.replace(key_of(model), artefact="0" * 64)
    build = Build(model, other, EngineCache(tmp_path), Limits())
    assert build.done.wait(SECONDS) and "was replaced while its engine was to be built" in str(build.why)
    assert not list(tmp_path.glob("*.engine"))


def test_two_processes_build_one_engine(device: Any, model: Path, tmp_path: Path) -> None:
    device.fails(hangs=1)
    cache, key = EngineCache(tmp_path), key_of(model)
    builds = [Build(model, key, cache, Limits()) for _ in range(2)]
    assert all(build.done.wait(SECONDS) and build.why is None for build in builds)
    assert cache.timing(key).read_bytes() == b"+", "the second found what the first had built"


def test_an_engine_is_kept_though_nobody_listens_any_more(device: Any, model: Path, tmp_path: Path) -> None:
    asked = {"onnx": str(model), "key": dataclasses.asdict(key_of(model)), "folder": str(tmp_path), "seconds": 60}
    command = [sys.executable, "-m", "agrikd.predict._build", json.dumps(asked)]
    with subprocess.Popen(command, stdout=subprocess.PIPE) as child:
        assert child.stdout
        child.stdout.close()
    assert child.returncode == 0 and EngineCache(tmp_path).find(key_of(model)) is not None


def key_of(model: Path) -> EngineKey:
    return dataclasses.replace(KEY, artefact=files.sha256(model.read_bytes()))


@pytest.mark.parametrize(
    ("version", "precision", "network", "builder"),
    [
        ((8, 6, 1), "fp32", ("EXPLICIT_BATCH",), ()),
        ((8, 6, 1), "int8", ("EXPLICIT_BATCH",), ("FP16", "INT8")),
        ((10, 3, 0), "fp16", (), ("FP16",)),
        ((10, 11, 0), "int8", (), ("FP16", "INT8")),
        ((10, 12, 0), "fp16", ("STRONGLY_TYPED",), ()),
        ((10, 16, 1), "int8f16", ("STRONGLY_TYPED",), ()),
        ((11, 4, 0), "fp32", ("STRONGLY_TYPED",), ()),
    ],
)
def test_each_release_has_its_policy(
    version: tuple[int, ...], precision: str, network: tuple[str, ...], builder: tuple[str, ...]
) -> None:
    assert _build.policy(version, precision) == _build.Policy(network, builder)


def test_a_precision_of_newer_releases_is_refused() -> None:
    with pytest.raises(ValueError, match=r"int8f16 is for TensorRT 10\.12 and later"):
        _build.policy((10, 3, 0), "int8f16")


def test_cuda_says_what_is_wrong(cudart: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AGRIKD_CUDART", str(cudart))
    cuda = Cuda.open()
    assert cuda.version == "12.6" and cuda.compute_capability == "8.7"
    with pytest.raises(DeviceError, match=r"cudaMemcpyAsync: invalid resource handle \(400\)"):
        cuda.to_device(cuda.allocate(8), np.zeros(2, np.float32), 0)
