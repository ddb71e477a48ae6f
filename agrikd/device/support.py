"""What a person wants to know of a device: its status, and one file to send to who helps."""

from __future__ import annotations

import contextlib
import io
import json
import tarfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from agrikd import __version__, device_report, files
from agrikd.device import installer
from agrikd.device.question import ask
from agrikd.device.store import Store
from agrikd.errors import AgriKDError, InputError

_TEXTS = ("state.json", "floors.json", "log.jsonl", "choice.json", "release.dsse", "card.md")
_UNITS = {" bytes": ("MB", 1e-6), " ms": ("ms", 1.0), " s": ("s", 1.0)}


def status(store: Store) -> dict[str, Any]:
    """phase, release, reason: of the last installation. current, previous, precision, p50_ms: of what serves. damage:
    what cannot be read of it. expired: by this device's clock, for a warning only. trusts: the ids of the keys that
    count; signed: of those the ones that signed what serves."""
    state = store.state
    found: dict[str, Any] = {
        "kind": installer.kind(),
        "agrikd": __version__,
        "phase": state.phase,
        "release": state.release,
        "reason": state.reason,
        "current": store.linked("current"),
        "previous": store.linked("previous"),
        "trusts": sorted(_keys(store)),
        "size_bytes": store.size_bytes,
        "agent": _health(store),
    }
    try:
        return found | (_serving(store, found["current"]) if found["current"] else {})
    except (AgriKDError, OSError, TypeError) as error:
        return found | {"damage": str(error)}


def _serving(store: Store, current: str) -> dict[str, Any]:
    release, choice = store.release(current), installer.choice_of(store, current)
    return {
        "name": release.name,
        "version": release.version,
        "signed": sorted(store.envelope(current).signers(_keys(store))),
        "expires": release.expires,
        "expired": bool(release.expired),
        "precision": choice.precision,
        "dropped": choice.dropped,
        "p50_ms": choice.p50_ms,
    }


def summary(said: dict[str, Any]) -> str:
    """A status in a sentence."""
    named = f"{said['name']} {said['version']}" if "name" in said else said["current"]
    trusts = "" if said["trusts"] else "; trusts nobody"
    return f"{said['kind']}: {named or 'no release'} serves{trusts}"


def lines(said: dict[str, Any]) -> list[tuple[str, str]]:
    """A status for people: what is said of each thing, with units; what says nothing has no line."""
    shown = {name: value for name, value in said.items() if name != "kind" and value not in ("IDLE", False)}
    if "signed" in said:
        shown["signed"] = said["signed"] or "by no key that counts now"
    return list(_lines(shown | {"agent": said["agent"] or "does not answer"}))


def _lines(said: dict[str, Any], before: str = "") -> Iterator[tuple[str, str]]:
    for key, value in said.items():
        name = f"{before}{key}".replace("_", " ")
        if isinstance(value, dict):
            yield from _lines(value, f"{name} ")
        elif value not in (None, "", [], ()):
            yield _line(name, value)


def _line(name: str, value: object) -> tuple[str, str]:
    if isinstance(value, list | tuple):
        return name, ", ".join(map(str, value))
    if isinstance(value, bool) or not isinstance(value, int | float):
        return name, str(value)
    for ending, (unit, scale) in _UNITS.items():
        if name.endswith(ending):
            return name.removesuffix(ending), f"{scale * value:.1f} {unit}"
    return name, f"{value:.3g}" if isinstance(value, float) else str(value)


def bundle_logs(store: Store, path: Path) -> None:
    """A .tar.gz of texts: status, board, state, log, and what each release says of itself; no photos, no keys."""
    said = {"status.json": status(store), "board.json": device_report.board()}
    texts = {name: json.dumps(value, indent=2, ensure_ascii=False).encode() for name, value in said.items()}
    for found in (*store.folder.iterdir(), *store.folder.glob("releases/*/*")):
        if found.name in _TEXTS and found.is_file():
            texts[str(found.relative_to(store.folder))] = found.read_bytes()
    with files.replacing(path) as temporary, tarfile.open(temporary, "w:gz") as out:
        for name, data in texts.items():
            entry = tarfile.TarInfo(f"agrikd-logs/{name}")
            entry.size = len(data)
            out.addfile(entry, io.BytesIO(data))


def _keys(store: Store) -> dict[str, bytes]:
    """By id, those whose signature counts; none where it trusts nobody."""
    with contextlib.suppress(InputError):
        return store.root.keys
    return {}


def _health(store: Store) -> dict[str, Any] | None:
    try:
        return ask(store, 5.0, health=True)
    except (OSError, AgriKDError):
        return None
