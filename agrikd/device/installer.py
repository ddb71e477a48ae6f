"""From an offered release to one that serves, or back: RECEIVING, VERIFIED, PREPARED, TRIAL, COMMITTED or ROLLED_BACK.

A phase is written before what it allows is done, and each step may be done again: whoever is killed, `advance` goes on.
Until TRIAL nothing that serves is touched. The device decides alone; no clock but a process's own is asked.
"""

from __future__ import annotations

import fnmatch
import importlib
import json
import math
import platform
import re
import shutil
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from agrikd import __version__, bundle, files, image
from agrikd.bundle import Artefact, Release
from agrikd.device import probes
from agrikd.device.child import Child, Limits, Model
from agrikd.device.probes import Answer
from agrikd.device.question import ask
from agrikd.device.store import PENDING, Store
from agrikd.dsse import Envelope
from agrikd.errors import AgriKDError, DeviceError, InputError, Problem, StorageError, TrustError
from agrikd.trust import Root

BACK = "asked back to the release before"
"""The reason of an installation that is none but a way back."""
_LOST = "what was chosen of it was lost"
"""The same of one that is none but another choice."""
PERMISSION = "application/vnd.agrikd.permission+json"
"""A signed {"name", "seq", "floor"}: a device whose floor is no higher may take this older release."""
_L4T = Path("/etc/nv_tegra_release")
_JETPACK = {35: 5, 36: 6, 38: 7}
"""NVIDIA's L4T release to the JetPack it belongs to."""
_TRIALS = 2
"""How often a phase may be begun: RAUC's boot counter. A model that takes the board down with it ends here."""
_FAILURES = 2
"""How often, in a trial, the live process may fail to start with a release that has just answered in a process of its
own."""
_ROUNDS = 3
_FASTER = 0.9
"""Eight bits are taken if they need at most this share of FP16's time; they are never more accurate."""
QUOTA_BYTES = 4 * 2**30
"""Of the whole store: what serves, what did before, and what comes."""
_ROOM = 2.2
"""Chunks and blobs lie on the disk together for a while, and state beside them."""


@dataclass(frozen=True)
class Choice:
    """What serves of a release on this device. dropped: what was tried before, and why it was not taken. took_s: the
    building and trying of all of them, which tells how long the next release may take."""

    precision: str
    file: str
    backend: str
    p50_ms: float
    dropped: dict[str, str]
    took_s: float


def kind() -> str:
    """What a release's `compatible` is matched with: aarch64-jetpack6, x86_64, …"""
    try:
        found = re.search(r"R(\d+)", _L4T.read_text())
    except OSError:
        found = None
    jetpack = _JETPACK.get(int(found.group(1)), 0) if found else 0
    return platform.machine() + (f"-jetpack{jetpack}" if jetpack else "")


# Receiving


def accept(
    store: Store, envelope: bytes, root: Root, permission: bytes | None = None, local: bool = False
) -> Release | None:
    """The release in an envelope, if this device may take it; None where it serves already. Changes nothing.

    local: an operator at the device allows an older one. Raises `TrustError`, `InputError` or `DeviceError`.
    """
    release = bundle.trusted(envelope, root, "the offered release")
    _require_fit(release)
    if store.state.phase in PENDING:
        mend = "wait until it is done; without an agent it never is: start agrikd-agent"
        raise DeviceError(f"{store.state.release} is being installed\n    → {mend}")
    if store.linked("current") == release.id and _serves(store, release.id):
        return None
    if not local:
        _require_newer(store, release, root, permission)
    return release


def begin(store: Store, envelope: bytes, release: Release) -> None:
    """Make room for an accepted release; raises `StorageError`, with what was received of it still there."""
    recover(store)
    store.drop_damaged(release)
    store.clear_incoming(keep=release)
    store.collect()
    needed = int(_ROOM * release.size_bytes) - store.held_bytes(release)
    if (taken := store.size_bytes + needed) > QUOTA_BYTES:
        said = (
            f"{store.folder}: with {release.name} it would take {taken / 1e6:.0f} MB, {QUOTA_BYTES / 1e6:.0f} at most"
        )
        raise StorageError(f"{said}\n    → pack a smaller one; what serves and what did before are kept")
    if shutil.disk_usage(store.folder).free < needed:
        said = f"{store.folder}: {release.name} needs {needed / 1e6:.0f} MB"
        mend = "free some space, or keep fewer pictures: records: {quota_gb: …, free_gb: …} in agent.yaml"
        raise StorageError(f"{said}, and so much is not free\n    → {mend}")
    files.write_bytes(store.folder / "incoming" / "release.dsse", envelope)
    store.move("RECEIVING", release=release.id, back="", attempts=0, reason="")


def finish(store: Store, release: Release) -> None:
    """All chunks are there: make the release of them. From here on the agent goes on by itself."""
    store.assemble(release)
    store.move("VERIFIED")
    store.clear_incoming()


def _require_fit(release: Release) -> None:
    problems = []
    if not any(fnmatch.fnmatchcase(kind(), pattern) for pattern in release.compatible):
        wrong = f"is for {', '.join(release.compatible)}, this device is {kind()}"
        problems.append(Problem(release.name, wrong, "flash a bundle that was packed for it"))
    if _numbers(release.min_agent) > _numbers(__version__):
        wrong = f"needs agrikd {release.min_agent}, this device has {__version__}"
        problems.append(Problem(release.name, wrong, "update agrikd on the device"))
    if release.resize != image.RESIZE:
        wrong = f"was taught with pixels of resize {release.resize}, this device makes {image.RESIZE}"
        problems.append(Problem(release.name, wrong, "let agrikd be of the same version on both"))
    if problems:
        raise InputError(problems)


def _require_newer(store: Store, release: Release, root: Root, permission: bytes | None) -> None:
    floor = store.floors.get(release.name, 0)
    if permission is not None and release.seq < floor:
        where = "the permission"
        said = json.loads(root.require(Envelope.from_bytes(permission, where), PERMISSION, where))
        if said == {"name": release.name, "seq": release.seq, "floor": said["floor"]} and floor <= said["floor"]:
            return
        raise TrustError(
            f"{where} is for {said}, not for {release.name} {release.seq} on a device that has had {floor}"
        )
    bundle.require_newer(release, floor, "the offered release")


def _numbers(version: str) -> tuple[int, ...]:
    return tuple(int(part) for part in re.findall(r"\d+", version)[:3])


# Going on


def advance(store: Store, limits: Limits) -> None:
    """Bring what is pending to its end; for one process at a time, under `store.locked()`."""
    try:
        if store.state.phase == "VERIFIED":
            _prepare(store, limits)
        if store.state.phase == "PREPARED":
            store.move("TRIAL", back=store.linked("current"), attempts=0)
        if store.state.phase == "TRIAL":
            _try(store, limits)
    except AgriKDError as error:
        roll_back(store, str(error))
    except Exception as error:  # whatever a release makes this code do, it is the release that goes
        roll_back(store, f"{type(error).__name__}: {error}")


def recover(store: Store) -> None:
    """What every start does first: clear up after a kill, and see to it that what serves is whole.

    A release that lost bytes gives way to the one before it, if that is whole; so does one that lost its choice, until
    another is made. One that was interrupted too often is not tried again.
    """
    store.tidy()
    state = store.state
    if state.phase in PENDING and not store.whole(state.release):
        roll_back(store, f"{state.release} is not whole")
    if state.phase in PENDING and state.attempts >= _TRIALS:
        roll_back(store, f"it was interrupted {state.attempts} times in {state.phase}")
    current = store.linked("current")
    if current and not _serves(store, current):
        _stand_in(store, current)


def _stand_in(store: Store, current: str) -> None:
    """Let the release before one that cannot serve do so; where all that one lacks is its choice, make another."""
    whole = [name for name in (current, store.linked("previous")) if name and store.whole(name)]
    kept = next((name for name in whole if _chosen(store, name)), (whole or [current])[0])
    store.log("damaged", release=current, instead=kept)
    if kept != current:
        store.switch("current", kept)
    if whole and not _chosen(store, whole[0]):
        _choose_again(store, whole[0])


def _choose_again(store: Store, name: str) -> None:
    """Not after it has failed: a model that takes the board down with it would do so at each start."""
    state = store.state
    if state.phase not in PENDING and (state.phase, state.release) != ("ROLLED_BACK", name):
        store.move("VERIFIED", release=name, back="", attempts=0, reason=_LOST)


def _serves(store: Store, name: str) -> bool:
    """Whether a release has all that the agent needs to let it serve."""
    return store.whole(name) and _chosen(store, name)


def _chosen(store: Store, name: str) -> bool:
    """Whether what was chosen of a whole release can be read, and is of it, as far as the disk tells just now."""
    try:
        return choice_of(store, name).file in {one.file for one in store.release(name).artefacts}
    except (InputError, TypeError):
        return False
    except OSError:
        return True


def roll_back(store: Store, reason: str) -> None:
    """End what is pending; what served before serves again. What was committed stays so, whatever failed after."""
    state = store.state
    if state.phase not in PENDING:
        return
    if state.phase == "TRIAL" and store.linked("current") == state.release != state.back:
        store.switch("current", state.back)
    store.move("ROLLED_BACK", reason=reason)


def back_to_previous(store: Store) -> str:
    """A local operator's wish: put the release before this one on trial. Returns its id."""
    previous = store.linked("previous")
    if not previous or previous == store.linked("current") or not store.whole(previous):
        raise InputError(Problem(str(store.folder), "has no release before this one", "flash one"))
    if store.state.phase in PENDING:
        raise DeviceError(f"{store.state.release} is being installed\n    → wait until it is done")
    store.move("VERIFIED", release=previous, back="", attempts=0, reason=BACK)
    return previous


def _prepare(store: Store, limits: Limits) -> None:
    """Build the engine and run the probes, in a process of its own, until a precision passes."""
    begun, name = time.monotonic(), store.move("VERIFIED", attempts=store.state.attempts + 1).release
    folder, release, dropped = store.path(name), store.release(name), dict[str, str]()
    best: tuple[Artefact, Answer] | None = None
    for artefact, engine in _candidates(release):
        if best and not artefact.precision.startswith("int8"):
            continue
        answer = _tried(folder, release, artefact, store.engines, limits)
        if isinstance(answer, str):
            dropped[artefact.precision] = answer
        elif engine and not answer.backend.startswith("tensorrt"):
            dropped[artefact.precision] = answer.backend
        elif best and answer.p50_ms > _FASTER * best[1].p50_ms:
            dropped[artefact.precision] = f"{answer.p50_ms:.2f} ms a frame beside {best[1].p50_ms:.2f}"
        else:
            best = artefact, answer
    if best is None:
        raise DeviceError("; ".join(f"{precision}: {why}" for precision, why in dropped.items()))
    artefact, answer = best
    choice = Choice(artefact.precision, artefact.file, answer.backend, answer.p50_ms, dropped, time.monotonic() - begun)
    files.write_json(folder / "choice.json", asdict(choice))
    store.move("PREPARED", attempts=0)


def _candidates(release: Release) -> Iterator[tuple[Artefact, bool]]:
    """(artefact, whether TensorRT must run it), the first that passes first, eight bits after those they must beat."""
    made = {one.precision: one for one in release.artefacts}
    try:
        version = importlib.import_module("tensorrt").__version__
    except (ImportError, OSError):
        version = ""
    for precision in ("fp16", "fp32", "int8", "int8f16") if version else ():
        one = made.get(precision)
        if one and any(_numbers(release) <= _numbers(version) for release in one.releases):
            yield one, True
    yield made["fp32"], False


def _tried(folder: Path, release: Release, artefact: Artefact, engines: Path, limits: Limits) -> Answer | str:
    """What an artefact says of the probes, or why it is no good."""
    try:
        child = Child(Model(folder, artefact.file, engines), limits)
        try:
            child.wait()
            answer = child.probe(_ROUNDS)
        finally:
            child.stop()
    except DeviceError as error:
        return str(error)
    return probes.why_not(answer, folder, release, artefact, limits.budget_ms) or answer


def _try(store: Store, limits: Limits) -> None:
    """Let it serve, and ask the agent that serves; commit, or raise what is wrong."""
    state = store.move("TRIAL", attempts=store.state.attempts + 1)
    folder, release = store.path(state.release), store.release(state.release)
    store.switch("current", state.release)
    answer = _ask_agent(store, state.release, limits)
    choice = choice_of(store, state.release)
    artefact = next(one for one in release.artefacts if one.precision == choice.precision)
    if wrong := probes.why_not(answer, folder, release, artefact, limits.budget_ms):
        raise DeviceError(f"in the live process {wrong}")
    if state.back and state.back != state.release:
        store.switch("previous", state.back)
    store.move("COMMITTED")
    store.raise_floor(release)
    store.collect()


def choice_of(store: Store, name: str) -> Choice:
    """What was chosen of a release on this device."""
    return Choice(**files.read_json(store.path(name) / "choice.json"))


def _ask_agent(store: Store, name: str, limits: Limits) -> Answer:
    """The probes through the live process, as soon as it serves this release."""
    end, said, before = time.monotonic() + limits.trial_s, "", math.inf
    while time.monotonic() < end:
        try:
            health = ask(store, limits.answer_s, health=True)
        except (DeviceError, OSError):
            said = "no agent answers: is agrikd-agent running?"
        else:
            if health["serving"] == name:
                return _probed(ask(store, 2 * limits.answer_s, probe=_ROUNDS))
            said = str(health["why"]) or "the live process did not take it in time"
            before = min(before, health["failures"])  # of the same release, as long as it could not be opened
            if health["wanted"] == name and health["failures"] >= before + _FAILURES:
                break
        time.sleep(0.1)
    raise DeviceError(said)


def agent_answers(store: Store) -> bool:
    """Whether an agent is running."""
    try:
        return bool(ask(store, 5.0, health=True))
    except (DeviceError, OSError):
        return False


def _probed(said: dict[str, Any]) -> Answer:
    if "failed" in said:
        raise DeviceError(f"in the live process: {said['failed']}")
    return Answer.from_json(said)
