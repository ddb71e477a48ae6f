"""A worker as the agent and the installer hold it: asked with a deadline, killed when it hangs or eats the memory."""

from __future__ import annotations

import contextlib
import os
import queue
import signal
import subprocess
import sys
import threading
import time
from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from agrikd import console
from agrikd.device.probes import Answer
from agrikd.device.tether import Held, ended, environment
from agrikd.errors import DeviceError
from agrikd.predict._engines import peak_mib
from agrikd.records import Opinion
from agrikd.types import ModelSpec
from agrikd.wire import Wire, WireError

_TICK_S, _PATIENCE_S = 0.05, 2.0
_BUILD_SHARE = 0.9
"""Of `start_s`: a build that hangs fails first, and ONNX Runtime answers in time."""
_held = Held("the model's")


@dataclass(frozen=True)
class Limits:
    """Of a worker. start_s: until it can answer, the building of an engine included. answer_s: for one question.
    trial_s: for the whole of a trial. memory_mib: its own, at its peak. budget_ms: for a frame, where the release does
    not say less. frame_s: after so long without an answer to a frame it hangs."""

    start_s: float = 1800.0
    answer_s: float = 60.0
    trial_s: float = 300.0
    memory_mib: float = 2048.0
    budget_ms: float = 1000.0
    frame_s: float = 5.0


@dataclass(frozen=True)
class Model:
    """What a worker is to hold: a file in a folder, a release's or any other; engines: where TensorRT's are kept."""

    folder: Path
    file: str
    engines: Path


class Child:
    """A worker for one model; `why` says what ended it. pixels: files that it may be asked to look into; live: to
    answer at once, by ONNX Runtime while an engine is built. Raises `DeviceError` where the kernel holds those that
    were before."""

    spec: ModelSpec

    def __init__(self, model: Model, limits: Limits, live: bool = False, pixels: tuple[int, ...] = ()) -> None:
        _held.require_few()
        self._limits, self._name = limits, model.folder.name
        self._begun = time.monotonic()
        self._words: deque[str] = deque(maxlen=4)
        self._heard: queue.Queue[dict[str, Any]] = queue.Queue()
        self.why = ""
        words = [sys.executable, "-m", "agrikd.device.worker", str(model.folder), model.file, str(model.engines)]
        words += [str(self._begun + _BUILD_SHARE * limits.start_s), *(["live"] if live else [])]
        pipe = subprocess.PIPE
        self._process = subprocess.Popen(
            words, stdin=pipe, stdout=pipe, stderr=pipe, pass_fds=pixels, start_new_session=True, env=environment()
        )
        assert self._process.stdin and self._process.stdout
        self._wire = Wire(self._process.stdout, self._process.stdin)
        self._threads = [threading.Thread(target=one, daemon=True) for one in (self._listen, self._read_words)]
        for thread in self._threads:
            thread.start()
        self.backend = ""

    @property
    def pid(self) -> int:
        return self._process.pid

    def ready(self) -> bool:
        """Whether it can answer by now; raises `DeviceError` where it never will."""
        if not self.backend:
            with contextlib.suppress(queue.Empty):
                said = self._taken(self._heard.get_nowait())
                with self._sense():
                    self.spec = ModelSpec.from_json(said["spec"])
                    self.backend = str(said["ready"])
            self._watch(self._begun + self._limits.start_s, "was not ready")
        return bool(self.backend)

    def wait(self) -> None:
        """Until it can answer; raises `DeviceError` where it never will."""
        while not self.ready():
            time.sleep(_TICK_S)

    def probe(self, rounds: int) -> Answer:
        """What it says of the release's probes; raises `DeviceError` where it does not."""
        with self._sense():
            answer = Answer.from_json(self._ask(self._limits.answer_s, probe=rounds))
            self._answers_by(answer.backend)
            return answer

    def predict(self, pixels: int, shape: tuple[int, int], model: str, t: float) -> Opinion:
        """What it says, as `model`, of the picture [H, W, 3] of the time t in one of its files; raises
        `DeviceError`."""
        with self._sense():
            answer = self._ask(self._limits.frame_s, predict=[pixels, *shape])
            self._answers_by(str(answer["backend"]))
            return Opinion.from_json({**answer["said"], "model": model, "t": t})

    def _answers_by(self, backend: str) -> None:
        """Another than before is said, but not how far a build is."""
        if backend.partition(":")[0] != self.backend.partition(":")[0]:
            console.say(f"{self._name} answers by {backend}")
        self.backend = backend

    @contextlib.contextmanager
    def _sense(self) -> Iterator[None]:
        """An answer that is none ends it."""
        try:
            yield
        except (KeyError, TypeError, ValueError) as error:
            self._fail(f"the model's process says what is no answer ({type(error).__name__}: {error})")

    def _ask(self, seconds: float, **what: Any) -> dict[str, Any]:
        self._drain()
        end = time.monotonic() + seconds
        try:
            self._wire.say(**what)
        except WireError:
            self._fail(self._last_words())
        while True:
            with contextlib.suppress(queue.Empty):
                return self._taken(self._heard.get(timeout=_TICK_S))
            self._watch(end, "did not answer")

    def watch(self) -> None:
        """Raise `DeviceError` if it has ended or uses too much memory."""
        self._drain()
        self._watch(float("inf"), "")

    def kill(self) -> None:
        """End it, with what it has started."""
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self._process.pid, signal.SIGKILL)

    def stop(self) -> None:
        """End it and take its pipes back; one that the kernel holds is left behind."""
        self.kill()
        if _held.ended(self._process, _PATIENCE_S):
            for thread in self._threads:
                thread.join(_PATIENCE_S)
            for stream in (self._process.stdin, self._process.stdout, self._process.stderr):
                with contextlib.suppress(OSError):
                    stream.close()  # type: ignore[union-attr]

    def _drain(self) -> None:
        """An answer that came too late is an answer to nothing."""
        with contextlib.suppress(queue.Empty):
            while True:
                self._heard.get_nowait()

    def _taken(self, said: dict[str, Any]) -> dict[str, Any]:
        if "failed" in said:
            self._fail(str(said["failed"]))
        return said

    def _watch(self, end: float, what: str) -> None:
        if self.why:
            raise DeviceError(self.why)
        used = peak_mib(self._process.pid)
        if used > self._limits.memory_mib:
            self._fail(f"the model used {used:.0f} MiB, {self._limits.memory_mib:.0f} at most")
        if time.monotonic() > end:
            self._fail(f"the model {what} in time")
        if not self._threads[0].is_alive() and self._heard.empty():  # its last frame may say more than its end
            self._fail(self._last_words())

    def _fail(self, why: str) -> None:
        self.why = self.why or why
        self.stop()
        raise DeviceError(self.why)

    def _last_words(self) -> str:
        try:
            code = self._process.wait(_PATIENCE_S)
        except subprocess.TimeoutExpired:
            return "the model's process says what is no answer"
        self._threads[1].join(_PATIENCE_S)
        words = " / ".join(word for word in self._words if word)
        return f"the model's process {ended(code)}" + (f": {words}" if words else "")

    def _listen(self) -> None:
        with contextlib.suppress(WireError):
            while True:
                self._heard.put(self._wire.hear())

    def _read_words(self) -> None:
        assert self._process.stderr
        with contextlib.suppress(ValueError, OSError):  # closed under it
            while line := self._process.stderr.readline(10_000):
                self._words.append(line.decode(errors="replace").strip()[-300:])
