"""What a person wants to know of a device: its status, and one file to send to who helps."""

from __future__ import annotations

import io
import json
import tarfile
import time
from pathlib import Path
from typing import Any

from agrikd import __version__, device_report, files
from agrikd.device import installer
from agrikd.device.question import ask
from agrikd.device.store import Store
from agrikd.errors import AgriKDError

_TEXTS = ("state.json", "floors.json", "log.jsonl", "choice.json", "release.dsse", "card.md")


def status(store: Store) -> dict[str, Any]:
    """phase, release, reason: of the last installation. current, previous, precision, p50_ms: of what serves. damage:
    what cannot be read of it. expired: by this device's clock, for a warning only."""
    state = store.state
    found: dict[str, Any] = {
        "kind": installer.kind(),
        "agrikd": __version__,
        "phase": state.phase,
        "release": state.release,
        "reason": state.reason,
        "current": store.linked("current"),
        "previous": store.linked("previous"),
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
        "expires": release.expires,
        "expired": bool(release.expires and release.expires < time.strftime("%Y-%m-%d")),
        "precision": choice.precision,
        "dropped": choice.dropped,
        "p50_ms": choice.p50_ms,
    }


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


def _health(store: Store) -> dict[str, Any] | None:
    try:
        return ask(store, 5.0, health=True)
    except (OSError, AgriKDError):
        return None
