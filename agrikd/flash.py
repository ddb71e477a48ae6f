"""`flash`: bring a bundle to devices over SSH, and hear from each how it ended.

The system's OpenSSH does the talking: keys, jump hosts and known hosts are those of the user. A link that breaks is
made anew and only what is missing travels; what is decided is decided on the device (see `agrikd.device.serve`).
"""

from __future__ import annotations

import base64
import contextlib
import os
import signal
import subprocess
import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from agrikd import files
from agrikd.bundle import CHUNK_BYTES, Bundle
from agrikd.errors import AgriKDError, DeviceError
from agrikd.wire import PROTOCOL, SLOWEST_BYTES_S, Patient, Wire, WireError

REMOTE = "python3 -m agrikd.device serve --stdio"
"""What is asked of a device whose key is not bound to a command."""
SSH = (
    *("ssh", "-T", "-o", "BatchMode=yes", "-o", "ConnectTimeout=20"),
    *("-o", "ServerAliveInterval=10", "-o", "ServerAliveCountMax=17"),
)
"""Its own questions wait behind a chunk, for which the slowest link needs two minutes."""
_PACKET_BYTES = 4096
"""Of ssh's pipe: it makes a packet of all that it finds there, and until that has arrived the device hears nothing."""
_AHEAD_S, _MOST_BYTES = 0.5, 2**20
"""What may be on the way unacknowledged: half a second of what the link has carried so far."""
_SLOWER = 4
"""So much slower than before a link may become before it counts as broken; the next one has the time of the slowest."""
_PAUSES_S = (1.0, 2.0, 5.0, 10.0, 30.0)
"""After a link that carried something the first, after each that carried nothing the next."""
_FINAL = ("Permission denied", "Host key verification failed", "not found", "No module named")
"""Words of ssh, or of the device's shell, that no waiting mends."""

Report = Callable[[str, str, tuple[int, int] | None], None]
"""(host, what it is at, and while it receives: bytes that have arrived, of how many that it lacked at first)."""


@dataclass(frozen=True)
class Options:
    """ssh: the command before the host. remote: after it. roots: signed roots for devices that trust an older one.
    permission: for an older release. silence_s: without a byte, after which a link counts as broken; what is on the
    way has its own time beyond it. patience_s: without progress, after which a host is given up."""

    ssh: tuple[str, ...] = SSH
    remote: str = REMOTE
    roots: tuple[bytes, ...] = ()
    permission: bytes | None = None
    dry_run: bool = False
    silence_s: float = 30.0
    patience_s: float = 1800.0


@dataclass
class Outcome:
    """How a host ended. phase: COMMITTED, ROLLED_BACK, REFUSED, UNREACHABLE, or WOULD TAKE of a dry run.

    sent_bytes: of chunks, repeated ones too. cuts: how often the link broke. needed_bytes: what a device lacked at
    first. seconds: all in all. expired: the last day that the bundle was meant for, where that has gone by.
    """

    host: str
    phase: str = "UNREACHABLE"
    reason: str = ""
    kind: str = ""
    before: str = ""
    needed_bytes: int = 0
    sent_bytes: int = 0
    cuts: int = 0
    seconds: float = 0.0
    expired: str = ""

    @property
    def good(self) -> bool:
        return self.phase in ("COMMITTED", "WOULD TAKE")


@dataclass
class _Talk:
    """One host's conversations."""

    bundle: Path
    options: Options
    report: Report
    outcome: Outcome
    delivered: bool = False
    words: deque[str] = field(default_factory=lambda: deque(maxlen=3))
    progress_at: float = field(default_factory=time.monotonic)
    on_the_way_s: float = 0.0
    """What was sent and not acknowledged may take so long to arrive: asked sooner, the device wants it again."""
    carried_bytes_s: float = 0.0
    patient: Patient = field(init=False)

    def run(self) -> Outcome:
        """Until the device has said how it ended, or nothing has moved for `patience_s`."""
        pauses = iter(_PAUSES_S)
        while True:
            begun = time.monotonic()
            try:
                self._once()
                break
            except WireError as error:
                self.outcome.reason = " / ".join((*self.words, str(error)))
            hopeless = any(final in word for final in _FINAL for word in self.words)
            if hopeless or time.monotonic() - self.progress_at > self.options.patience_s:
                break
            self.outcome.cuts += 1
            if self.progress_at > begun:
                pauses = iter(_PAUSES_S)
            pause = max(next(pauses, _PAUSES_S[-1]), min(self.on_the_way_s, _PAUSES_S[-1]))
            self.report(self.outcome.host, f"{self.outcome.reason}; again in {pause:g} s", None)
            time.sleep(min(pause, self.options.patience_s))
        return self.outcome

    def _once(self) -> None:
        pipe = subprocess.PIPE
        words = [*self.options.ssh, self.outcome.host, self.options.remote]
        self.words.clear()
        with subprocess.Popen(
            words, stdin=pipe, stdout=pipe, stderr=pipe, start_new_session=True, pipesize=_PACKET_BYTES
        ) as ssh:
            assert ssh.stdin and ssh.stdout
            reader = threading.Thread(target=self._read_words, args=(ssh,), daemon=True)
            reader.start()
            try:
                self.patient, self.carried_bytes_s = Patient(ssh.stdout, self.options.silence_s), 0.0
                with Bundle(self.bundle) as bundle:
                    self._talk(Wire(self.patient, ssh.stdin), bundle)
            finally:
                with contextlib.suppress(ProcessLookupError):
                    os.killpg(ssh.pid, signal.SIGKILL)  # with a proxy command that it may have started
                reader.join(5)
                with contextlib.suppress(OSError):
                    ssh.stdin.close()

    def _read_words(self, ssh: subprocess.Popen[bytes]) -> None:
        assert ssh.stderr
        with contextlib.suppress(ValueError):  # closed under it
            for line in ssh.stderr:
                self.words.append(line.decode(errors="replace").strip())

    def _talk(self, wire: Wire, bundle: Bundle) -> None:
        self.outcome.expired = bundle.release.expired
        hello = self._hear(wire)
        if hello.get("protocol") != PROTOCOL:
            raise DeviceError(f"speaks protocol {hello.get('protocol')}, this agrikd {PROTOCOL}: update the older one")
        self.outcome.kind, self.outcome.before = str(hello["kind"]), str(hello["current"])
        asked = {"dry_run": self.options.dry_run, "delivered": self.delivered, **self._signed()}
        wire.say(sha256=files.sha256(bundle.envelope), **asked)
        said = self._hear(wire)
        if "phase" in said:
            self._follow(wire, said)
            return
        if said.get("want") == "envelope":
            wire.send(bundle.envelope)
            said = self._hear(wire, len(bundle.envelope))
        missing = [(int(file), int(number)) for file, number in said["missing"]]
        if self.options.dry_run:
            self._needs(bundle, missing)
            self.outcome.phase, self.outcome.reason = "WOULD TAKE", ""
            return
        self._send(wire, bundle, missing)
        self._follow(wire, self._hear(wire))

    def _signed(self) -> dict[str, Any]:
        asked: dict[str, Any] = {"roots": [base64.b64encode(root).decode() for root in self.options.roots]}
        if self.options.permission:
            asked["permission"] = base64.b64encode(self.options.permission).decode()
        return asked

    def _needs(self, bundle: Bundle, missing: Sequence[tuple[int, int]]) -> int:
        found = sum(min(CHUNK_BYTES, bundle.release.files[f].size_bytes - n * CHUNK_BYTES) for f, n in missing)
        self.outcome.needed_bytes = max(self.outcome.needed_bytes, found)
        return found

    def _send(self, wire: Wire, bundle: Bundle, missing: Sequence[tuple[int, int]]) -> None:
        """As much in flight as the link carries in `_AHEAD_S`, one chunk at the least: a cut costs no more.

        How much that is, the first chunk does not say: a link that has rested takes it at once.
        """
        needed, begun, arrived, waiting = self._needs(bundle, missing), time.monotonic(), 0, deque[int]()
        first, first_at = 0, begun

        def say() -> None:
            in_all = self.outcome.needed_bytes
            self.report(self.outcome.host, "sending", (in_all - needed + arrived, in_all))

        def acknowledged() -> None:
            nonlocal arrived, first, first_at
            self._hear(wire, waiting[0])
            arrived += waiting.popleft()
            self.progress_at = time.monotonic()
            if first:
                self.carried_bytes_s = (arrived - first) / (self.progress_at - first_at)
            else:
                first, first_at = arrived, self.progress_at
            say()

        say()
        for file, number in missing:
            data = bundle.chunk(file, number)
            while waiting and sum(waiting) + len(data) > min(
                (arrived - first) / (time.monotonic() - first_at) * _AHEAD_S, _MOST_BYTES
            ):
                acknowledged()
            waiting.append(len(data))
            if arrived:
                self.on_the_way_s = sum(waiting) * (time.monotonic() - begun) / arrived
            wire.send(file.to_bytes(4, "big") + number.to_bytes(4, "big") + data)
            self.outcome.sent_bytes += len(data)
        while waiting:
            acknowledged()
        self.delivered = True
        wire.say(done=True)

    def _follow(self, wire: Wire, said: dict[str, Any]) -> None:
        """Until the device has decided; what nobody there works on any more is no progress."""
        phase = ""
        while said["phase"] not in ("COMMITTED", "ROLLED_BACK"):
            if said["phase"] != phase or said.get("working"):
                self.progress_at = time.monotonic()
            elif time.monotonic() - self.progress_at > self.options.patience_s:
                raise DeviceError(f"is {phase}, and nothing moves: see its status and its log")
            phase = str(said["phase"])
            before = said.get("before_s")
            estimate = f"; the last one took {before:.0f} s" if isinstance(before, float) else ""
            self.report(self.outcome.host, f"{phase.lower()}: the device builds and tries it{estimate}", None)
            said = self._hear(wire)
        self.outcome.phase = said["phase"]
        self.outcome.reason = "it serves already" if said.get("already") else str(said["reason"])

    def _hear(self, wire: Wire, sent: int = 0) -> dict[str, Any]:
        """What the device says, once it has received so many bytes that were sent; a link that has carried nothing yet
        has as long as the slowest."""
        self.patient.more_s = sent / max(self.carried_bytes_s / _SLOWER, SLOWEST_BYTES_S)
        said = wire.hear()
        if said.get("busy"):  # perhaps with our own last conversation, whose end it has not noticed yet
            raise WireError(str(said["refused"]))
        if "refused" in said:
            raise DeviceError(str(said["refused"]))
        return said


def flash(host: str, bundle: Path, options: Options, report: Report) -> Outcome:
    """Bring a bundle to one host; never raises for what happens there or on the way."""
    talk, begun = _Talk(bundle, options, report, Outcome(host)), time.monotonic()
    try:
        talk.run()
    except AgriKDError as error:
        talk.outcome.phase, talk.outcome.reason = "REFUSED", str(error)
    except Exception as error:  # one host that makes no sense must not end the flash of the others
        talk.outcome.phase, talk.outcome.reason = "UNREACHABLE", f"{type(error).__name__}: {error}"
    talk.outcome.seconds = time.monotonic() - begun
    return talk.outcome


def waves(hosts: Sequence[str], canaries: int, size: int) -> list[list[str]]:
    """The first few alone, then the others in groups."""
    first, rest = list(hosts[:canaries]), list(hosts[canaries:])
    return [wave for wave in (first, *(rest[at : at + size] for at in range(0, len(rest), size))) if wave]


def flash_all(
    plan: Sequence[Sequence[str]], bundle: Path, options: Options, report: Report, max_failed: float
) -> list[Outcome]:
    """Wave after wave, the hosts of one at the same time; after a wave of which more than this share failed, none."""
    outcomes: list[Outcome] = []
    for number, wave in enumerate(plan):
        found = _at_once(wave, bundle, options, report)
        outcomes += found
        failed = sum(not one.good for one in found) / len(found)
        if failed > max_failed and number + 1 < len(plan):
            said = f"not begun: {failed:.0%} of wave {number + 1} failed, {max_failed:.0%} at most"
            return [*outcomes, *(Outcome(host, "SKIPPED", said) for later in plan[number + 1 :] for host in later)]
    return outcomes


def _at_once(wave: Sequence[str], bundle: Path, options: Options, report: Report) -> list[Outcome]:
    outcomes: dict[str, Outcome] = {}

    def one(host: str) -> None:
        outcomes[host] = flash(host, bundle, options, report)

    threads = [threading.Thread(target=one, args=(host,), daemon=True) for host in wave]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return [outcomes[host] for host in wave]
