"""From a camera's frame to the answer: little more than the session alone; OpenVINO beside it, in one run. Before it,
the gate of quality."""

from __future__ import annotations

import time
from pathlib import Path

import numpy as np
import pytest

from agrikd import bench, console, image
from agrikd.device import quality
from agrikd.export import onnx as exporting
from agrikd.nets.sources import open_net
from agrikd.recipe import NetSpec
from agrikd.types import ModelSpec

CLASSES = ("blight", "healthy", "rust")
NETS = {"mobilenetv2_100": 224, "mobilenetv3_small_050": 224}
"""The large one first."""

pytestmark = pytest.mark.bench


@pytest.mark.parametrize("threads", [1, 2])
def test_what_stands_around_the_session(tmp_path: Path, threads: int) -> None:
    paths = []
    for name, size in NETS.items():
        path, spec = tmp_path / f"{name}.onnx", ModelSpec(name, "classification", CLASSES, (size, size))
        exporting.write_graph(open_net(NetSpec(timm=name, input_size=(size, size)), CLASSES).eval(), spec, path)
        exporting.fold(path)
        exporting.describe(path, spec, 1000)
        paths.append(path)
    found = bench.bench(paths, [threads], frames=200)
    for name, one in zip(NETS, found, strict=True):
        assert one.bare
        beside = "" if one.openvino is None else f", OpenVINO alone {one.openvino:.2f}"
        console.say(f"{name}, {threads} threads: {one.p50:.2f} ms, session alone {one.bare:.2f}{beside}")
    large, small = found
    assert large.bare and small.bare
    if threads == 1:  # as an agent runs it; a second one makes the session alone faster
        assert large.p50 <= 1.15 * large.bare
    assert small.p50 <= small.bare + 1.0


def test_the_quality_of_a_frame_is_judged_in_a_millisecond() -> None:
    frame = np.random.default_rng(0).integers(0, 255, (480, 640, 3), np.uint8)
    cv2, times = image.opencv(), []
    threads = cv2.getNumThreads()
    cv2.setNumThreads(1)
    for _ in range(200):
        begun = time.perf_counter()
        quality.faults(quality.grey(frame))
        times.append(1000 * (time.perf_counter() - begun))
    cv2.setNumThreads(threads)
    console.say(f"quality of a frame: {np.median(times):.2f} ms")
    assert np.median(times) <= 1
