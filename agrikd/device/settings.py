"""What a person sets of an agent: `agent.yaml` in the device's folder. Unknown keys are refused."""

from __future__ import annotations

import re
import socket
from pathlib import Path
from typing import Annotated, Any

import yaml
from pydantic import AfterValidator, Field, ValidationError, field_validator, model_validator

from agrikd import files
from agrikd.device.camera import hidden, kind
from agrikd.device.schedule import Schedule
from agrikd.errors import InputError, Problem
from agrikd.recipe import Share, Spec, problems_of
from agrikd.records import Place

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")


def _named(name: str) -> str:
    if not _NAME.fullmatch(name):
        raise ValueError("expected letters, digits, dots and dashes, 64 at most")
    return name


def _this_machine() -> str:
    return re.sub(r"[^A-Za-z0-9._-]", "-", socket.gethostname())[:64].lstrip("._-") or "device"


Name = Annotated[str, AfterValidator(_named)]


class CameraSettings(Spec):
    """source: usb:0, csi:0, gst:PIPELINE, rtsp://…, a video file, a folder of photos, or demo. every_s: between two
    frames that are looked at; 0 is all that the model can take. hours: as "06:00-20:00" by the device's clock, or
    "daylight", which wants latitude and longitude (degrees, north and east positive)."""

    name: Name
    source: str
    field: str = ""
    plot: str = ""
    latitude: Annotated[float, Field(ge=-90, le=90)] | None = None
    longitude: Annotated[float, Field(ge=-180, le=180)] | None = None
    every_s: Annotated[float, Field(ge=0)] = 0.0
    hours: str = ""

    @model_validator(mode="after")
    def _can_be(self) -> CameraSettings:
        mistakes = []
        for make in (lambda: kind(self.source), self.schedule):
            try:
                make()
            except InputError as error:
                mistakes += [f"{one.said} ({one.mend})" for one in error.problems]
        if mistakes:
            raise ValueError("; ".join(mistakes))
        return self

    def schedule(self) -> Schedule:
        """Raises `InputError` where it makes no sense."""
        return Schedule(self.every_s, self.hours, self.latitude, self.longitude, self.name)

    @property
    def place(self) -> Place:
        return Place(self.field, self.plot, self.latitude, self.longitude)


class RecordsSettings(Spec):
    """quota_gb: of kept pictures. free_gb: left on the disk for others. rows: of frames. audit_share: of frames, drawn
    at random to be kept and judged: from them the accuracy in the field is known."""

    quota_gb: Annotated[float, Field(gt=0)] = 4.0
    free_gb: Annotated[float, Field(ge=0)] = 0.2
    rows: Annotated[int, Field(ge=1000)] = 5_000_000
    audit_share: Share = 0.01


class RemoteSettings(Spec):
    """A server of `agrikd serve`. token_file: what it was given. bytes_per_s: at most, to leave the link to others."""

    url: str
    token_file: Path
    bytes_per_s: Annotated[float, Field(gt=0)] | None = None

    @field_validator("url")
    @classmethod
    def _http(cls, url: str) -> str:
        if not re.fullmatch(r"https?://[^\s/]+(/[^\s]*)?", url):
            raise ValueError("expected http://… or https://…")
        return url.rstrip("/")


class TeacherSettings(RemoteSettings):
    """steady_per_s: how often it is asked while somebody watches."""

    steady_per_s: Annotated[float, Field(ge=0, le=30)] = 1.0


class HubSettings(RemoteSettings):
    """heartbeat_s: between two words on how the device is."""

    heartbeat_s: Annotated[float, Field(ge=1)] = 60.0


class LiveSettings(Spec):
    """origins: of pages, beside the server's own, that may open the live stream. Beyond loopback put a proxy with TLS
    before it."""

    host: str = "127.0.0.1"
    port: Annotated[int, Field(ge=0, le=65535)] = 8600
    origins: tuple[str, ...] = ()


class Settings(Spec):
    """device: its name at the hub. Without cameras the agent keeps the model answering and does no more."""

    device: Name = Field(default_factory=_this_machine)
    cameras: tuple[CameraSettings, ...] = ()
    records: RecordsSettings = RecordsSettings()
    teacher: TeacherSettings | None = None
    hub: HubSettings | None = None
    live: LiveSettings | None = LiveSettings()

    @model_validator(mode="after")
    def _names_differ(self) -> Settings:
        names = [one.name for one in self.cameras]
        if not self.cameras and (self.teacher or self.hub):
            raise ValueError("teacher and hub are for what cameras see: name one")
        if doubled := {name for name in names if names.count(name) > 1}:
            raise ValueError(f"two cameras are called {sorted(doubled)[0]!r}")
        return self


def read(path: Path) -> Settings:
    """The settings in a file, or the usual ones where there is none; raises `InputError` with every mistake.

    Paths in it are taken from its own folder: the agent and the app beside it are started from anywhere.
    """
    if not path.exists():
        return Settings()
    try:
        said = yaml.safe_load(files.read_text(path))
    except (yaml.YAMLError, ValueError) as error:  # a ValueError is of a date that there is not
        raise InputError(Problem(str(path), f"is no YAML ({hidden(str(error))})", "look at its indentation")) from None
    settings = check({} if said is None else said, str(path))
    cameras = [
        one.model_copy(update={"source": str(path.parent / one.source)}) if kind(one.source) == "path" else one
        for one in settings.cameras
    ]
    remote = {
        name: one.model_copy(update={"token_file": path.parent / one.token_file})
        for name, one in (("teacher", settings.teacher), ("hub", settings.hub))
        if one
    }
    return settings.model_copy(update={"cameras": tuple(cameras), **remote})


def chosen(path: Path, source: str, port: int | None) -> Settings:
    """What a file says, or one camera where a source is named; raises `InputError` where both are, or neither."""
    if path.exists():
        if source or port:
            mend = f"leave --source and --port out, or write them into {path.name}"
            raise InputError(Problem(str(path), "names the cameras already", mend))
        return read(path)
    if not source:
        raise InputError(Problem("--source", "is missing", f"name one, such as demo, or write {path}"))
    if hidden(source) != source:
        raise InputError(
            Problem("--source", "holds a password, which all programs could read", f"write it into {path}")
        )
    live = {"port": port} if port else {}
    return check({"cameras": [{"name": "camera", "source": source}], "live": live}, "--source")


def check(said: Any, where: str) -> Settings:
    """Raises `InputError` with every mistake."""
    try:
        return Settings.model_validate(said)
    except ValidationError as error:
        problems = problems_of(error, Settings, where)
        raise InputError([Problem(one.where, hidden(one.wrong), one.mend) for one in problems]) from None
