"""Engines that were built here, and the building of new ones.

An engine is native code for one GPU and one TensorRT. It is made on the device from the ONNX file, is found again by
all that would make it wrong (`EngineKey`), and is never taken from outside.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections import deque
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path

from agrikd import files

_KEPT = 12
"""Engines beyond the newest few are deleted: two releases in four precisions are kept, and a third is tried."""
_PATIENCE_S = 2.0
_PROC = Path("/proc")


@dataclass(frozen=True)
class EngineKey:
    """What an engine depends on.

    artefact: sha256 of the ONNX file. tensorrt, cuda, l4t, module, sm: versions, the board by name, the GPU's compute
    capability. machine: this very device. policy: of `_build`.
    """

    artefact: str
    tensorrt: str
    cuda: str
    l4t: str
    module: str
    sm: str
    machine: str
    precision: str
    shape: tuple[int, ...]
    policy: int


@dataclass(frozen=True)
class Limits:
    """Of a build: seconds by the clock, and MiB of memory in use."""

    seconds: float = 1800.0
    memory_mib: float = 3000.0


class EngineCache:
    """A folder of engines. A file is a line of JSON, the key and the engine's sha256, and the engine."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def path(self, key: EngineKey) -> Path:
        return self.folder / f"{files.digest(asdict(key))[:32]}.engine"

    def timing(self, key: EngineKey) -> Path:
        """Measurements that builds of other nets with the same TensorRT on this GPU share."""
        own = {name: getattr(key, name) for name in ("tensorrt", "cuda", "l4t", "module", "sm", "machine")}
        return self.folder / f"{files.digest(own)[:32]}.timing"

    def find(self, key: EngineKey) -> bytes | None:
        """The engine of that key, if it is whole."""
        path = self.path(key)
        try:
            head, _, plan = path.read_bytes().partition(b"\n")
            if json.loads(head) != self._record(key, plan):
                return None
        except (OSError, ValueError):
            return None
        with contextlib.suppress(OSError):  # a disk that may not be written
            self._use(path)
        return plan

    def keep(self, key: EngineKey, plan: bytes) -> None:
        """Write an engine whole; forget those that were not used for longest, and what a kill left of writing it."""
        path = self.path(key)
        for left in self.folder.glob(f".{path.name}.*"):
            left.unlink(missing_ok=True)
        files.write_bytes(path, json.dumps(self._record(key, plan)).encode() + b"\n" + plan)
        for old in self._use(path)[_KEPT - 1 :]:
            old.unlink(missing_ok=True)

    def forget(self, key: EngineKey) -> None:
        self.path(key).unlink(missing_ok=True)

    @contextlib.contextmanager
    def building(self, key: EngineKey) -> Iterator[None]:
        """One builds, the others wait: two builds at once need twice the memory."""
        with self.path(key).with_suffix(".lock").open("w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            yield

    def _use(self, path: Path) -> list[Path]:
        """Make an engine the one that was used last, whatever the clock says: it may have gone back. The others, the
        last used first."""
        used = {}
        for other in self.folder.glob("[!.]*.engine"):
            with contextlib.suppress(OSError):  # another process may have forgotten it just now
                used[other] = other.stat().st_mtime
        used.pop(path, None)
        last = max([time.time(), *(when + 1 for when in used.values())])
        os.utime(path, (last, last))
        return sorted(used, key=lambda other: -used[other])

    def _record(self, key: EngineKey, plan: bytes) -> dict[str, object]:
        return {"key": json.loads(json.dumps(asdict(key))), "sha256": files.sha256(plan)}


class Build:
    """A build that runs in a child process; `done` is set when it has ended, `why` says why it failed.

    progress: 0 to 1, None where TensorRT does not say it. took_s, peak_mib: what it cost so far; the memory is the
    process's own, without what the GPU holds.
    """

    def __init__(self, onnx: Path, key: EngineKey, cache: EngineCache, limits: Limits) -> None:
        self.progress: float | None = None
        self.why: str | None = None
        self.peak_mib = 0.0
        self.took_s: float | None = None
        self.done = threading.Event()
        self._cache, self._key, self._limits, self._start = cache, key, limits, time.monotonic()
        self._words: deque[str] = deque(maxlen=5)
        asked = {"onnx": str(onnx), "key": asdict(key), "folder": str(cache.folder), "seconds": limits.seconds}
        cache.folder.mkdir(parents=True, exist_ok=True)
        self._child = subprocess.Popen(
            [sys.executable, "-m", "agrikd.predict._build", json.dumps(asked)],
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            errors="replace",
        )
        threading.Thread(target=self._watch, daemon=True).start()
        threading.Thread(target=self._read, daemon=True).start()

    @property
    def seconds(self) -> float:
        """Since the build began."""
        return time.monotonic() - self._start

    def stop(self) -> None:
        """End the child, if it runs still."""
        if not self.done.is_set():
            self.why = "the build was stopped"
        self._child.kill()
        self._child.wait()

    def _read(self) -> None:
        assert self._child.stdout
        try:
            for line in self._child.stdout:
                self._hear(line)
        finally:
            self._end(self._child.wait())

    def _hear(self, line: str) -> None:
        try:
            said = json.loads(line)
            self.progress, self.why = said.get("progress", self.progress), said.get("error", self.why)
            self.peak_mib = max(self.peak_mib, said.get("peak_mib", 0.0))
        except (ValueError, AttributeError):
            self._words.append(line.strip())

    def _watch(self) -> None:
        """Kill what takes too long or too much; the words are set first, so that they are there when it is dead."""
        while not self.done.wait(0.2):
            used = peak_mib(self._child.pid)
            self.peak_mib = max(self.peak_mib, used)
            if self.seconds > self._limits.seconds:
                self.why = f"the build took longer than {self._limits.seconds:.0f} s"
            elif used > self._limits.memory_mib:
                self.why = f"the build used {used:.0f} MiB, more than {self._limits.memory_mib:g}"
            else:
                continue
            self._child.kill()
            if not self.done.wait(_PATIENCE_S):  # the kernel holds it, perhaps for ever
                self._end(-signal.SIGKILL)
            return

    def _end(self, code: int) -> None:
        self.took_s = self.seconds
        if code and self.why is None:
            words = f": {self._words[-1]}" if self._words else ""
            killed = "was killed, perhaps for lack of memory" if code == -9 else f"ended with code {code}"
            self.why = f"the build {killed}{words}"
        self.done.set()


def peak_mib(pid: int | str = "self") -> float:
    """The most memory a process has held at once; 0 where it is gone."""
    try:
        status = (_PROC / str(pid) / "status").read_text()
    except OSError:
        return 0.0
    found = [line.split()[1] for line in status.splitlines() if line.startswith("VmHWM:")]
    return int(found[0]) / 1024 if found else 0.0
