"""What an agent does beside keeping a model: it looks through cameras, records, and lets others see and ask."""

from __future__ import annotations

import contextlib
import sqlite3
import threading
import time
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from agrikd import audit, console, files, records
from agrikd.device.aide import Aide
from agrikd.device.camera import Camera
from agrikd.device.desk import Desk
from agrikd.device.recorder import Bounds, Recorder
from agrikd.device.serving import Serving
from agrikd.device.watch import Eye, Keeping, Watch
from agrikd.errors import AgriKDError, DeviceError

if TYPE_CHECKING:
    from agrikd.device.settings import CameraSettings, Settings

RECORDS, TOKEN, LIVE = "records", "live.token", "live.json"
_JUDGE_S = 600.0


class Eyes:
    """The cameras of a device, whose pixels the model's process sees."""

    def __init__(self, cameras: Sequence[CameraSettings]) -> None:
        self.all = [_eye(one) for one in cameras]

    @property
    def pixels(self) -> tuple[int, ...]:
        return tuple(eye.camera.fileno() for eye in self.all)


class Station:
    """Begins at once; `stop` ends it, with all that it has seen on the disk."""

    def __init__(self, folder: Path, settings: Settings, eyes: Eyes, serving: Serving) -> None:
        own = settings.records
        bounds = Bounds(int(own.quota_gb * 1e9), int(own.free_gb * 1e9), own.rows)
        self.recorder = Recorder(folder / RECORDS, bounds)
        keeping = Keeping(own.audit_share)
        asks = settings.teacher is not None
        watches = [Watch(eye, serving, self.recorder, keeping, asks) for eye in eyes.all]
        self._watches = {watch.eye.name: watch for watch in watches}
        self.verbs = Desk(self._watches, self.recorder, asks).verbs
        told = _aides(folder, settings)
        self._aides = {name: Aide(f"agrikd.device.{name}", told[name], partial(self._ended, name)) for name in told}
        self._judge_at, self._fallen = 0.0, False
        self._tell_where(folder, settings)
        for watch in watches:
            watch.start()

    def keep(self) -> None:
        """Keep the processes beside it running. Raises `DeviceError` where a thread of its own has ended: then nothing
        but another start helps."""
        for aide in self._aides.values():
            aide.keep()
        ended = [name for name, watch in self._watches.items() if not watch.is_alive()]
        if ended or not self.recorder.alive:
            what = f"the loop of {', '.join(ended)}" if ended else "the writer of records"
            raise DeviceError(f"{what} has ended\n    → see what was said before")
        if time.monotonic() >= self._judge_at:
            self._judge_at = time.monotonic() + _JUDGE_S
            threading.Thread(target=self._judge, daemon=True).start()

    def _ended(self, aide: str, why: str) -> None:
        console.say(why)
        self.recorder.event(aide, why)

    def _tell_where(self, folder: Path, settings: Settings) -> None:
        """For the app on this machine: where the live view is. A disk that takes no file costs just that."""
        if settings.live:
            said = {"url": f"http://{settings.live.host}:{settings.live.port}", "cameras": list(self._watches)}
            try:
                files.write_json(folder / LIVE, said)
            except AgriKDError as error:
                console.say(str(error))

    def _judge(self) -> None:
        """An event when the accuracy falls, once until it has risen again."""
        with (
            contextlib.suppress(AgriKDError, sqlite3.Error),
            contextlib.closing(records.read(self.recorder.folder)) as db,
        ):
            fallen = audit.fall(audit.judged(db))
            if fallen and not self._fallen:
                self.recorder.event("accuracy", str(fallen))
            self._fallen = bool(fallen)

    def health(self) -> dict[str, Any]:
        return {
            "cameras": {name: watch.health() for name, watch in self._watches.items()},
            "records": self.recorder.health(),
            "aides": {name: aide.health() for name, aide in self._aides.items()},
        }

    def stop(self) -> None:
        for watch in self._watches.values():
            watch.stop.set()
        for aide in self._aides.values():
            aide.terminate()
        for aide in self._aides.values():
            aide.stop()
        for watch in self._watches.values():
            watch.join(2.0)
        self.recorder.stop()


def _eye(said: CameraSettings) -> Eye:
    return Eye(said.name, Camera(said.source), said.place, said.schedule())


def _aides(folder: Path, settings: Settings) -> dict[str, dict[str, Any]]:
    """The processes beside the agent, and what each is told."""
    shared = {"socket": str(folder / "agent.sock"), "records": str(folder / RECORDS)}
    found: dict[str, dict[str, Any]] = {}
    if settings.live and settings.cameras:
        cameras = [one.name for one in settings.cameras]
        found["live"] = {
            **shared,
            **settings.live.model_dump(mode="json"),
            "cameras": cameras,
            "token_file": str(folder / TOKEN),
        }
    if settings.teacher:
        found["second"] = {**shared, **settings.teacher.model_dump(mode="json")}
    if settings.hub:
        found["sync"] = {**shared, **settings.hub.model_dump(mode="json"), "device": settings.device}
    return found
