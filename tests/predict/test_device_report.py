"""What a board's report says, on a machine whose TensorRT is a fake."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from typer.testing import CliRunner

from agrikd import device_report, image
from agrikd.cli import app
from agrikd.predict._base import FakePredictor
from agrikd.types import ModelSpec


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for number in range(3):
        pixels = np.random.default_rng(number).integers(0, 256, (40, 50, 3)).astype(np.uint8)
        image.write_jpeg(tmp_path / f"{number}.jpg", pixels)
    return tmp_path


@pytest.fixture
def sensors(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A kernel's files as a board shows them."""
    zone, clock = tmp_path / "thermal" / "thermal_zone0", tmp_path / "devfreq" / "17000000.gpu"
    for path, text in ((zone / "type", "gpu-thermal"), (zone / "temp", "51500"), (clock / "cur_freq", "624750000")):
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text + "\n")
    monkeypatch.setattr(device_report, "_THERMAL", tmp_path / "thermal")
    monkeypatch.setattr(device_report, "_CLOCKS", tmp_path / "devfreq")


def test_the_verb(
    device: Any, sensors: None, model: Path, folder: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("AGRIKD_CACHE", str(tmp_path / "cache"))
    out = tmp_path / "report.json"
    words = ["device-report", str(model), "--photos", str(folder), "--minutes", "0", "--out", str(out)]
    done = CliRunner().invoke(app, words)
    assert done.exit_code == 0, done.output
    made = json.loads(out.read_text())
    (one,) = made["models"]
    assert one["backend"] == "tensorrt 10.3.0" and one["key"]["sm"] == "8.7" and one["precision"] == "fp32"
    assert one["build"]["failed"] is None and one["build"]["seconds"] > 0 and one["build"]["peak_mib"] > 0
    assert one["parity"] == {"photos": 3, "max_logit": pytest.approx(0, abs=1e-5), "flipped": 0}
    assert one["latency"]["frames"] >= 1 and 0 < one["latency"]["p50_ms"] <= one["latency"]["p99_ms"]
    assert one["over_time"][-1]["celsius"] == {"gpu-thermal": 51.5}
    assert one["over_time"][-1]["mhz"] == {"17000000.gpu": 624.75}
    assert {"machine", "kernel", "python", "memory_mib", "power_mode", "jetpack"} <= made["board"].keys()
    line = device_report.row(made)
    assert line.count("|") == 6 and "tensorrt 10.3.0" in line and line in " ".join(done.stderr.split())


def test_a_build_that_fails_stands_in_the_report(device: Any, model: Path, folder: Path, tmp_path: Path) -> None:
    device.fails(build_none=True)
    photos = image.read_all(sorted(folder.glob("*.jpg")))
    (one,) = device_report.report([model], photos, 0, tmp_path / "cache")["models"]
    assert "the builder gave no engine" in one["build"]["failed"]
    assert one["backend"].startswith("onnxruntime (no engine: ") and one["parity"]["flipped"] == 0


def test_photos_are_not_held_in_memory_and_reading_them_is_not_timed(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    paths, read = sorted(folder.glob("*.jpg")) * 5, list[str]()
    decode = image.decode
    monkeypatch.setattr(image, "decode", lambda data, where: read.append(where) or decode(data, where))
    fake: Any = FakePredictor(ModelSpec("leaves", "classification", ("blight", "rust"), (32, 32)))
    found = device_report._latency(fake, image.Photos.at(paths), 0.05)
    assert found["latency"]["frames"] > 8 and len(read) == 8


def test_all_photos_that_cannot_be_read_are_said_before_an_engine_is_built(
    model: Path, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for number in (0, 2):
        (folder / f"{number}.jpg").write_text("no picture")
    done = CliRunner().invoke(app, ["device-report", str(model), "--photos", str(folder)])
    assert done.exit_code == 2 and "0.jpg" in done.stderr and "2.jpg" in done.stderr and "1.jpg" not in done.stderr


def test_a_folder_without_photos_is_said(model: Path, tmp_path: Path) -> None:
    done = CliRunner().invoke(app, ["device-report", str(model), "--photos", str(tmp_path)])
    assert done.exit_code == 2
