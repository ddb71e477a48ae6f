"""One target of coverage-guided fuzzing: python fuzzing.py TARGET FOLDER [libFuzzer's options]. What is ours refuses
with an `AgriKDError`, and only with that; what it writes stays in its folder."""

from __future__ import annotations

import contextlib
import io
import sys
from collections.abc import Callable
from pathlib import Path

import atheris

with atheris.instrument_imports(include=["agrikd"]):
    from agrikd import dsse
    from agrikd.bundle import Bundle, Release
    from agrikd.device.serve import serve
    from agrikd.device.store import Store
    from agrikd.errors import AgriKDError
    from agrikd.trust import Root
    from agrikd.wire import Wire


def bundles(data: bytes) -> None:
    """A bundle is opened and held against a root that has not signed it."""
    path = FOLDER / "fuzzed.akb"
    path.write_bytes(data)
    with Bundle(path) as bundle:
        bundle.verify(ROOT)
    if data != GOOD:
        raise AssertionError("a bundle that nobody signed was taken")


def envelopes(data: bytes) -> None:
    """What is inside of envelopes, whoever signed them."""
    for read in (lambda: Release.from_payload(data, "x"), lambda: Root.from_envelope(_sealed(data), "x")):
        with contextlib.suppress(AgriKDError):
            read()
    dsse.Envelope.from_bytes(data, "x").signers(ROOT.keys)


def _sealed(data: bytes) -> dsse.Envelope:
    return dsse.Envelope("application/vnd.agrikd.root+json", data, ())


def frames(data: bytes) -> None:
    """A conversation's bytes, to their end."""
    wire = Wire(io.BytesIO(data), io.BytesIO())
    while True:
        wire.receive()


def conversations(data: bytes) -> None:
    """A device hears them from who may flash but holds no signing key: nothing of its store changes but its log."""
    before = sorted(path for path in STORE.folder.rglob("*") if path.name not in ("log.jsonl", "lock"))
    serve(STORE, Wire(io.BytesIO(data), io.BytesIO()))
    after = sorted(path for path in STORE.folder.rglob("*") if path.name not in ("log.jsonl", "lock"))
    assert before == after and STORE.state.phase == "IDLE"


TARGETS: dict[str, Callable[[bytes], None]] = {one.__name__: one for one in (bundles, envelopes, frames, conversations)}


def main(target: Callable[[bytes], None]) -> None:
    def once(data: bytes) -> None:
        with contextlib.suppress(AgriKDError):
            target(data)

    atheris.Setup([sys.argv[0], *sys.argv[3:]], once)
    atheris.Fuzz()


if __name__ == "__main__":
    FOLDER = Path(sys.argv[2])
    GOOD = (FOLDER / "good.akb").read_bytes()
    ROOT = Root.read(FOLDER / "root.dsse")
    STORE = Store(FOLDER / "store")
    main(TARGETS[sys.argv[1]])
