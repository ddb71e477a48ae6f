"""The demo at work: one command begins agent, teacher and app, and ends all of them."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

import psutil
from app_kit import answers, free_port
from device_kit import net
from live_kit import parsed
from serve_kit import until
from websockets.sync.client import connect


def test_agent_teacher_and_app_begin_and_end_together(taught: Path, tmp_path: Path) -> None:
    shutil.copytree(taught, tmp_path / "runs" / "teacher")
    (tmp_path / "runs" / "distilled").mkdir()
    (tmp_path / "runs" / "distilled" / "model.onnx").write_bytes(net())
    port = free_port()
    code = "from agrikd.demo_live import *; serve_demo(Path(sys.argv[1]), int(sys.argv[2]))"
    process = subprocess.Popen(
        [sys.executable, "-c", code, str(tmp_path), str(port)], stderr=subprocess.PIPE, stdout=subprocess.DEVNULL
    )
    until(lambda: answers(port) or process.poll() is not None, 120)
    children = psutil.Process(process.pid).children(recursive=True)
    origin = f"http://127.0.0.1:{port}"
    with connect(f"{origin.replace('http', 'ws')}/agrikd/live", proxy=None, max_size=None) as link:
        said = {"second": None}
        for _ in range(600):
            link.send("next")
            message = link.recv(timeout=30)
            assert isinstance(message, bytes)
            said, picture = parsed(message)
            assert picture.startswith(b"\xff\xd8") and said["camera"] == "drawn-leaves" and said["student"]
            if said["second"]:
                break
    assert said["second"] and said["second"]["teacher"]["model"].startswith("tiny-teacher-")
    process.terminate()
    _, error = process.communicate(timeout=30)
    assert len(children) >= 3 and not psutil.wait_procs(children, 10)[1], [one.cmdline() for one in children]
    assert f"open {origin}" in error.decode() and "Traceback" not in error.decode()
