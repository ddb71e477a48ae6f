"""What a person wants to know of a device: its status, and one file to send to who helps."""

from __future__ import annotations

import io
import json
import tarfile
from pathlib import Path
from typing import Any

from agrikd import __version__, device_report, files
from agrikd.device import installer
from agrikd.device.question import ask
from agrikd.device.store import Store
from agrikd.errors import AgriKDError, DeviceError


def status(store: Store) -> dict[str, Any]:
    """phase, release, reason: of the last installation. current, previous, precision, p50_ms: of what serves."""
    state, current = store.state, store.linked("current")
    choice = installer.choice_of(store, current) if current else None
    release = store.release(current) if current else None
    return {
        "kind": installer.kind(),
        "agrikd": __version__,
        "phase": state.phase,
        "release": state.release,
        "reason": state.reason,
        "current": current,
        "previous": store.linked("previous"),
        "name": release and release.name,
        "version": release and release.version,
        "expires": release and release.expires,
        "precision": choice and choice.precision,
        "dropped": choice and choice.dropped,
        "p50_ms": choice and choice.p50_ms,
        "agent": _health(store),
        "size_bytes": store.size_bytes,
    }


def bundle_logs(store: Store, path: Path) -> None:
    """A .tar.gz of texts: status, board, state, log, and what each release says of itself; no photos, no keys."""
    said = {"status.json": status(store), "board.json": device_report.board()}
    texts = {name: json.dumps(value, indent=2, ensure_ascii=False).encode() for name, value in said.items()}
    for found in (store.folder / "state.json", store.folder / "log.jsonl", *store.folder.glob("releases/*/*.json")):
        if found.exists() and found.name != "answers.json":
            texts[str(found.relative_to(store.folder))] = found.read_bytes()
    with files.replacing(path) as temporary, tarfile.open(temporary, "w:gz") as out:
        for name, data in texts.items():
            entry = tarfile.TarInfo(f"agrikd-logs/{name}")
            entry.size = len(data)
            out.addfile(entry, io.BytesIO(data))


def _health(store: Store) -> dict[str, Any] | None:
    try:
        return ask(store, 5.0, health=True)
    except (DeviceError, OSError, AgriKDError):
        return None
