"""The live view's server: python -m agrikd.device.live, beside the agent, whose pictures and answers it passes on.

One message of the WebSocket carries a picture and what the model said of that very picture:
u32 (big-endian) length of the header | header, JSON | JPEG. A viewer asks for each frame with any message; two or three
asked ahead hide the way there and back. It gets the newest, so a slow link sees fewer frames and not older ones. The
header's `age_s` is how old the picture was when it was sent: a camera's last one is sent to whoever comes after it fell
silent, too.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import sqlite3
import struct
import sys
import time
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any

from fastapi import APIRouter, Depends, FastAPI, HTTPException, Query, Response, WebSocket, WebSocketDisconnect
from fastapi import Path as InPath
from pydantic import BaseModel, ConfigDict, Field

from agrikd import __version__, audit, console, records, web
from agrikd.device.tether import die_with_parent
from agrikd.errors import AgriKDError, InputError, Problem
from agrikd.wire import MAX_BYTES

Picture = tuple[dict[str, Any], bytes]
"""What the agent says of a frame, and its JPEG."""
MOST_AHEAD, MOST_VIEWERS = 8, 64
MOST_ID = 2**53
"""A browser counts no further."""
_OTHER_PORT = "end it, or name another port in agent.yaml, as in live: {port: 8601}"
_BODY_BYTES = 16 * 1024
_AGAIN_S, _ANSWER_S = 0.5, 20.0
_Id = Annotated[int, InPath(ge=0, lt=MOST_ID)]


class LabelAsked(BaseModel):
    """key: the same for the same click, so that it may be sent again. label: a class, "unsure" or "not_a_plant"."""

    model_config = ConfigDict(extra="forbid")
    key: str = Field(min_length=8, max_length=64)
    frame: int = Field(ge=0, lt=MOST_ID)
    label: str = Field(min_length=1, max_length=300)
    who: str = Field(default="", max_length=100)
    source: str = Field(default="live", max_length=20)
    note: str = Field(default="", max_length=2000)


class LabelDone(BaseModel):
    id: int


class AskDone(BaseModel):
    frame: int


class Share(BaseModel):
    """`agrikd.audit.Estimate`; low, high: a 95 % interval."""

    share: float
    low: float
    high: float
    how: audit.How
    labelled: int
    answered: int


class Accuracy(BaseModel):
    """Of the model that answered last; None where nobody has judged."""

    all: Share | None
    classes: dict[str, Share | None]


@dataclass
class _Pump:
    """A camera's newest frame, fetched while anybody looks."""

    camera: str
    frame: int = 0
    newest: Picture | None = None
    viewers: int = 0
    changed: asyncio.Condition = field(default_factory=asyncio.Condition)
    task: asyncio.Task[None] | None = None

    async def put(self, said: dict[str, Any], jpeg: bytes) -> None:
        async with self.changed:
            self.frame = int(said["frame"])
            self.newest = said, jpeg
            self.changed.notify_all()

    async def newer(self, sent: Picture | None) -> Picture:
        """The newest, as soon as it is another one."""
        async with self.changed:
            await self.changed.wait_for(lambda: self.newest is not sent)
            assert self.newest is not None
            return self.newest


class Relay:
    """What the agent says over its socket, for as many viewers as there are."""

    def __init__(self, path: str, cameras: list[str]) -> None:
        self._path = path
        self.pumps = {name: _Pump(name) for name in cameras}

    async def ask(self, **what: Any) -> tuple[dict[str, Any], bytes]:
        """One question on a connection of its own; raises `HTTPException` 503 where no agent answers."""
        try:
            return await asyncio.wait_for(self._ask(**what), _ANSWER_S)
        except (OSError, EOFError, ValueError, asyncio.TimeoutError):
            raise HTTPException(503, "the agent does not answer", {"Retry-After": "2"}) from None

    async def _ask(self, **what: Any) -> tuple[dict[str, Any], bytes]:
        async with self._connected() as wire:
            return await wire.ask(**what)

    @contextlib.asynccontextmanager
    async def watching(self, camera: str) -> AsyncIterator[_Pump]:
        """A camera's pump, which runs while anybody is in here."""
        pump = self.pumps[camera]
        pump.viewers += 1
        if pump.task is None or pump.task.done():
            pump.task = asyncio.create_task(self._run(pump))
        try:
            yield pump
        finally:
            pump.viewers -= 1

    async def _run(self, pump: _Pump) -> None:
        while pump.viewers:
            try:
                async with self._connected() as wire:
                    while pump.viewers:
                        said, jpeg = await wire.ask(next={"camera": pump.camera, "after": pump.frame})
                        if "frame" in said:
                            await pump.put(said, jpeg)
            except (OSError, EOFError, ValueError):
                pump.frame = 0  # an agent that starts anew may count anew
                await asyncio.sleep(_AGAIN_S)

    @contextlib.asynccontextmanager
    async def _connected(self) -> AsyncIterator[_Wire]:
        reader, writer = await asyncio.open_unix_connection(self._path)
        try:
            yield _Wire(reader, writer)
        finally:
            writer.close()


class _Wire:
    """`agrikd.wire` for one side that asks, without threads."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._reader, self._writer = reader, writer

    async def ask(self, **what: Any) -> tuple[dict[str, Any], bytes]:
        """The answer, and the bytes of a frame where it has one."""
        words = json.dumps(what).encode()
        self._writer.write(b"J" + struct.pack(">I", len(words)) + words)
        await self._writer.drain()
        said: dict[str, Any] = json.loads(await self._receive())
        return said, await self._receive() if "frame" in said else b""

    async def _receive(self) -> bytes:
        _, length = struct.unpack(">cI", await self._reader.readexactly(5))
        if length > MAX_BYTES:
            raise ValueError(f"a frame of {length} bytes")
        return await self._reader.readexactly(length)


def app(relay: Relay, guard: web.Guard, folder: Path) -> FastAPI:
    """The server's routes, over the records in `folder`; the schema alone is for everybody."""
    made = FastAPI(title="agrikd live", version=__version__, docs_url=None, redoc_url=None)
    made.add_middleware(web.Bounded, most_bytes=_BODY_BYTES)
    for kind in (AgriKDError, sqlite3.Error):
        made.add_exception_handler(kind, web.unavailable)
    refused: dict[int | str, dict[str, Any]] = {code: {"description": words} for code, words in web.REFUSALS.items()}
    door = APIRouter(dependencies=[Depends(guard.http)], responses=refused)

    def pump_of(camera: str) -> _Pump:
        name = camera or next(iter(relay.pumps))
        if name not in relay.pumps:
            raise HTTPException(404, f"there is no camera {name!r}, there are: {', '.join(relay.pumps)}")
        return relay.pumps[name]

    @door.get("/status")
    async def status() -> dict[str, Any]:
        """How the agent is: what serves, each camera, the records."""
        return (await relay.ask(health=True))[0]

    @door.get("/latest.jpg", response_class=web.Jpeg)
    async def latest(camera: str = "") -> Response:
        """A camera's newest picture; its number stands in the header X-Frame."""
        said, picture = await relay.ask(next={"camera": pump_of(camera).camera, "after": -1})
        return _picture(said, picture)

    @door.get("/frame/{frame}.jpg", response_class=web.Jpeg)
    async def frame(frame: _Id, hold: bool = False) -> Response:
        """A picture by its frame's number, while it is in memory or kept; with `hold` it stays there for a label."""
        said, picture = await relay.ask(**{"hold" if hold else "frame": frame})
        return _picture(said, picture)

    @door.get("/accuracy")
    def accuracy() -> Accuracy:
        """How often the model is right, from the frames that were drawn at random and judged since."""
        with contextlib.closing(records.read(folder)) as db:
            rows = audit.judged(db)
        return Accuracy(all=_told(audit.estimate(rows)), classes={k: _told(v) for k, v in audit.by_class(rows).items()})

    @door.post("/label")
    async def label(asked: LabelAsked) -> LabelDone:
        """Record what a person says of a frame; when this answers, it is on the disk."""
        said, _ = await relay.ask(label=asked.model_dump())
        return LabelDone(id=_done(said))

    @door.post("/ask-teacher/{frame}")
    async def ask_teacher(frame: _Id) -> AskDone:
        """Have the teacher asked about a frame; its answer comes with the stream and into the records."""
        said, _ = await relay.ask(ask={"frame": frame})
        _done(said)
        return AskDone(frame=frame)

    @made.websocket("/live")
    async def live(link: WebSocket, camera: Annotated[str, Query()] = "") -> None:
        if not guard.allows(link) or sum(one.viewers for one in relay.pumps.values()) >= MOST_VIEWERS:
            await link.close(1008)  # before it is accepted: the answer is 403
            return
        name = camera or next(iter(relay.pumps))
        if name not in relay.pumps:
            await link.close(1008)
            return
        await link.accept()
        async with relay.watching(name) as pump:
            await _stream(link, pump)

    made.include_router(door)
    return made


async def _stream(link: WebSocket, pump: _Pump) -> None:
    """The newest frame for each message that the viewer sends."""
    ahead: asyncio.Queue[None] = asyncio.Queue(MOST_AHEAD)
    listening = asyncio.create_task(_listen(link, ahead))
    sending = asyncio.create_task(_send(link, pump, ahead))
    done, going = await asyncio.wait({listening, sending}, return_when=asyncio.FIRST_COMPLETED)
    for task in going:
        task.cancel()
    await asyncio.gather(*going, return_exceptions=True)
    for task in done:
        if (error := task.exception()) and not isinstance(error, WebSocketDisconnect | RuntimeError):
            raise error


async def _listen(link: WebSocket, ahead: asyncio.Queue[None]) -> None:
    while True:
        said = await link.receive()
        if said["type"] == "websocket.disconnect":
            return
        with contextlib.suppress(asyncio.QueueFull):
            ahead.put_nowait(None)


async def _send(link: WebSocket, pump: _Pump, ahead: asyncio.Queue[None]) -> None:
    sent: Picture | None = None
    while True:
        await ahead.get()
        sent = await pump.newer(sent)
        await link.send_bytes(_message(*sent))


def _message(said: dict[str, Any], jpeg: bytes) -> bytes:
    told = {**said, "age_s": round(max(0.0, time.time() - said["t"]), 3)}  # by the clock that the frame's time is of
    header = json.dumps(told, ensure_ascii=False, separators=(",", ":")).encode()
    return struct.pack(">I", len(header)) + header + jpeg


def _picture(said: dict[str, Any], picture: bytes) -> Response:
    if "frame" not in said:
        raise HTTPException(404, said.get("failed") or "there is no such picture")
    return web.Jpeg(picture, headers={"X-Frame": str(said["frame"]), "Cache-Control": "no-store"})


def _told(said: audit.Estimate | None) -> Share | None:
    if said is None:
        return None
    (low, high), rest = said.interval, (said.how, said.labelled, said.answered)
    return Share(share=said.share, low=low, high=high, how=rest[0], labelled=rest[1], answered=rest[2])


def _done(said: dict[str, Any]) -> int:
    if "done" not in said:
        raise HTTPException(409, str(said.get("failed")))
    return int(said["done"])


def main() -> int:
    """Serve until SIGTERM, with what the agent says on stdin; what hinders it is said, and its exit code returned."""
    die_with_parent()
    try:
        _serve(json.load(sys.stdin))
    except AgriKDError as error:
        console.complain(str(error))
        return error.exit_code
    return 0


def _serve(told: dict[str, Any]) -> None:
    if not told["cameras"]:
        raise InputError(Problem("live", "there is no camera", "name one in agent.yaml"))
    web.require_free(told["host"], told["port"], _OTHER_PORT)
    guard = web.Guard(web.token(Path(told["token_file"])), tuple(told["origins"]))
    relay = Relay(told["socket"], told["cameras"])
    web.serve(app(relay, guard, Path(told["records"])), told["host"], told["port"])


if __name__ == "__main__":
    sys.exit(main())
