"""The device's side of a flash: `serve --stdio`, the one command that a flashing key may run.

It says who it is, hears an offer, says what is missing, takes chunks, acknowledging each, and then tells how the agent
gets on. All of it may break off at any byte: the next conversation goes on with what is missing.
"""

from __future__ import annotations

import base64
import time
from typing import Any

from agrikd import __version__, bundle, files
from agrikd.bundle import CHUNK_BYTES, MAX_ENVELOPE_BYTES, Release
from agrikd.device import installer
from agrikd.device.store import PENDING, BusyError, Store
from agrikd.dsse import Envelope
from agrikd.errors import AgriKDError, DeviceError, InputError, Problem
from agrikd.trust import successor
from agrikd.wire import PROTOCOL, Wire, WireError

_FRAME_BYTES = CHUNK_BYTES + 1024
_PULSE_S = 2.0
_NO_AGENT_S = 15.0


def serve(store: Store, wire: Wire) -> None:
    """One conversation; what the store refuses is said to the other side."""
    try:
        wire.say(protocol=PROTOCOL, agrikd=__version__, kind=installer.kind(), current=store.linked("current"))
        _answer(store, wire, wire.hear())
    except WireError:
        return  # nobody listens; the next conversation goes on
    except AgriKDError as error:
        wire.say(refused=str(error), exit_code=error.exit_code, busy=isinstance(error, BusyError))
    except Exception as error:  # of words that make no sense, perhaps
        wire.say(refused=f"{type(error).__name__}: {error}", exit_code=1, busy=False)


def _answer(store: Store, wire: Wire, offer: dict[str, Any]) -> None:
    if _holds(store, offer) and (offer.get("delivered") or store.state.phase in PENDING):
        _follow(store, wire, store.state.release)
        return
    envelope = _envelope(store, wire, offer)
    root, given = store.root, [base64.b64decode(one) for one in offer.get("roots", ())]
    for one in given:
        root = successor(root, Envelope.from_bytes(one, "the root"), "the root")
    bundle.trusted(envelope, root, "the offered release")  # before the lock: who holds no key holds up nobody
    with store.locked():
        release = _accepted(store, wire, offer, envelope, given)
        if release is not None and not offer.get("dry_run"):
            _receive(store, wire, release)
    if release is None:
        wire.say(phase="COMMITTED", reason="", already=True)
    elif not offer.get("dry_run"):
        _follow(store, wire, release.id)


def _holds(store: Store, offer: dict[str, Any]) -> bool:
    """Whether the last installation was of what is offered: the link broke while it went on, or when it was done."""
    state = store.state
    path = store.path(state.release) / "release.dsse"
    return state.phase != "RECEIVING" and path.is_file() and files.sha256(path.read_bytes()) == offer.get("sha256")


def _envelope(store: Store, wire: Wire, offer: dict[str, Any]) -> bytes:
    """It travels only if it is not there from an earlier conversation."""
    path = store.folder / "incoming" / "release.dsse"
    if path.exists() and files.sha256(held := path.read_bytes()) == offer.get("sha256"):
        return held
    wire.say(want="envelope")
    envelope = wire.receive(MAX_ENVELOPE_BYTES)
    if not isinstance(envelope, bytes):
        raise InputError(Problem("the offer", "is no envelope", "flash with agrikd of the same version"))
    return envelope


def _accepted(store: Store, wire: Wire, offer: dict[str, Any], envelope: bytes, roots: list[bytes]) -> Release | None:
    root = store.root
    for one in roots:
        root = successor(root, Envelope.from_bytes(one, "the root"), "the root")
    permission = base64.b64decode(offer["permission"]) if offer.get("permission") else None
    release = installer.accept(store, envelope, root, permission)
    if not offer.get("dry_run"):
        for one in roots:
            store.trust(one, "the root")
        if release is not None:
            installer.begin(store, envelope, release)
    wire.say(missing=[] if release is None else store.missing(release))
    return release


def _receive(store: Store, wire: Wire, release: Release) -> None:
    """Chunks in any order, each with its place in the first eight bytes, until {"done": true}."""
    while isinstance(said := wire.receive(_FRAME_BYTES), bytes):
        file, number = int.from_bytes(said[:4], "big"), int.from_bytes(said[4:8], "big")
        if len(said) < 8 or file >= len(release.files) or number >= len(release.files[file].chunks):
            raise InputError(
                Problem("a chunk", f"of file {file}, number {number}, is none of this release", "flash again")
            )
        store.take(release, file, number, said[8:])
        wire.say(took=[file, number])
    installer.finish(store, release)


def _follow(store: Store, wire: Wire, name: str) -> None:
    """Tell how far the agent is until it is done; whoever listens may go, the agent does not care."""
    silent_since, before_s = time.monotonic(), _took_before(store)
    while (state := store.state).release == name and state.phase in PENDING:
        wire.say(phase=state.phase, working=store.busy, before_s=before_s)
        if installer.agent_answers(store):
            silent_since = time.monotonic()
        elif time.monotonic() - silent_since > _NO_AGENT_S:
            raise DeviceError("no agent is running: start agrikd-agent, and it goes on by itself")
        _wait_for_change(store)
    wire.say(phase=state.phase, reason=state.reason)


def _took_before(store: Store) -> float | None:
    """What building and trying took for the release that serves."""
    try:
        return installer.choice_of(store, store.linked("current")).took_s
    except (AgriKDError, OSError, TypeError):
        return None


def _wait_for_change(store: Store) -> None:
    before, end = store.state.phase, time.monotonic() + _PULSE_S
    while store.state.phase == before and time.monotonic() < end:
        time.sleep(0.05)
