"""A server for devices: a large teacher's opinion of a frame, and the hub of what they have recorded.

Every route but /health wants the bearer token. What comes in is bounded: in size, in number, and in how long it may
be silent. What it refuses, it refuses in words, as {"detail": …}.
"""

from __future__ import annotations

import asyncio
import json
import math
import queue
import threading
import time
import zlib
from concurrent.futures import Future
from dataclasses import asdict
from pathlib import Path
from typing import Any

from agrikd import __version__, files, image, web
from agrikd.errors import AgriKDError, InputError, MissingExtraError, StorageError
from agrikd.hub import AbsentError, Hub, OutOfStepError, Source
from agrikd.predict import open_predictor
from agrikd.predict._base import Predictor
from agrikd.records import Opinion
from agrikd.run import Run
from agrikd.wire import MAX_BYTES

try:
    from fastapi import APIRouter, FastAPI, HTTPException, Request
    from fastapi.concurrency import run_in_threadpool
    from fastapi.responses import FileResponse, JSONResponse
    from starlette.requests import ClientDisconnect
except ImportError:
    raise MissingExtraError("fastapi", "serve") from None

MOST_JSON_BYTES, MOST_PIECE_BYTES = 4 * 2**20, 2**20
QUEUE = 8
"""How many pictures wait for the teacher; one more is told to come again."""
_BODIES = 32
_SILENCE_S = 20.0
_NEWEST = 2**63 - 1


class BusyError(AgriKDError):
    """Too many wait already. wait_s: until it is worth asking again."""

    def __init__(self, wait_s: int) -> None:
        self.wait_s = wait_s
        super().__init__(f"the teacher is busy\n    → ask again in {wait_s} s")


class Teacher:
    """A model that answers in a thread of its own, one picture after the other. id: of these weights and this spec."""

    def __init__(self, predictor: Predictor, weights_sha256: str, most: int = QUEUE) -> None:
        self._predictor, self.spec = predictor, predictor.spec.to_json()
        digest = files.digest({"weights": weights_sha256, "spec": self.spec})
        self.id = f"{predictor.spec.name}-{digest[:8]}"
        self._waiting: queue.Queue[tuple[int, bytes, Future[dict[str, Any]]]] = queue.Queue(most)
        self._took_s = 1.0
        threading.Thread(target=self._run, daemon=True).start()

    @classmethod
    def open(cls, path: Path) -> Teacher:
        """A Run folder or an exported .onnx file."""
        predictor = open_predictor(path)
        return cls(predictor, files.sha256_of(Run.open(path).weights if path.is_dir() else path))

    def ask(self, frame: int, jpeg: bytes) -> Future[dict[str, Any]]:
        """The answer to come; raises `BusyError`."""
        answer: Future[dict[str, Any]] = Future()
        try:
            self._waiting.put_nowait((frame, jpeg, answer))
        except queue.Full:
            raise self.busy() from None
        return answer

    @property
    def full(self) -> bool:
        return self._waiting.full()

    def busy(self) -> BusyError:
        """How long those take who wait."""
        return BusyError(min(60, math.ceil(self._took_s * self._waiting.qsize()) or 1))

    def _run(self) -> None:
        while True:
            frame, jpeg, answer = self._waiting.get()
            if answer.set_running_or_notify_cancel():
                try:
                    answer.set_result(self._answer(frame, jpeg))
                except BaseException as error:  # whoever asked is told; the next one may fare better
                    answer.set_exception(error)

    def _answer(self, frame: int, jpeg: bytes) -> dict[str, Any]:
        picture, t, begun = image.decode(jpeg, f"frame {frame}"), time.time(), time.perf_counter()
        said = self._predictor([picture])[0]
        self._took_s = time.perf_counter() - begun
        opinion = Opinion.of(said, self.id, "teacher", t, 1000 * self._took_s)
        return {"frame": frame, "spec": self.spec, "opinion": asdict(opinion)}


def app(teacher: Teacher | None, hub: Hub | None, token: str) -> FastAPI:
    """The routes of what there is."""
    made = FastAPI(title="agrikd", version=__version__, docs_url=None, redoc_url=None)
    made.add_middleware(web.Door, token=token, open_paths=("/health",))
    for kind, status in ((InputError, 422), (AbsentError, 404), (StorageError, 507), (OutOfStepError, 409)):
        made.add_exception_handler(kind, _refusal(status))
    made.add_exception_handler(BusyError, _refusal(503))
    bodies = asyncio.Semaphore(_BODIES)

    @made.get("/health")
    def health() -> dict[str, bool]:
        return {"teacher": teacher is not None, "hub": hub is not None}

    if teacher:
        made.include_router(_asking(teacher, bodies))
    if hub:
        made.include_router(_keeping(hub, bodies))
        made.include_router(_reading(hub))
    return made


# What is said, and heard


def _refusal(status: int) -> Any:
    def answer(_: Request, error: AgriKDError) -> JSONResponse:
        said: dict[str, Any] = {"detail": str(error)}
        head = {}
        if isinstance(error, OutOfStepError):
            said["at"] = error.at
        if isinstance(error, BusyError):
            head["Retry-After"] = str(error.wait_s)
        return JSONResponse(said, status, head)

    return answer


async def _body(request: Request, most: int, bodies: asyncio.Semaphore) -> bytes:
    """All of it, unless it is too much, or silent for too long."""
    parts, size, stream = [], 0, request.stream()
    if int(request.headers.get("content-length", 0)) > most:
        raise HTTPException(413, f"at most {most} bytes")
    async with bodies:
        try:
            while part := await asyncio.wait_for(anext(stream, b""), _SILENCE_S):
                parts.append(part)
                if (size := size + len(part)) > most:
                    raise HTTPException(413, f"at most {most} bytes")
        except asyncio.TimeoutError:
            raise HTTPException(408, "nothing more was heard") from None
        except ClientDisconnect:
            raise HTTPException(400, "the link broke") from None
    return b"".join(parts)


async def _object(request: Request, bodies: asyncio.Semaphore) -> dict[str, Any]:
    """A JSON object, which may be packed by gzip."""
    data = await _body(request, MOST_JSON_BYTES, bodies)
    if request.headers.get("content-encoding") == "gzip":
        unpacking = zlib.decompressobj(31)
        try:
            data = unpacking.decompress(data, MOST_JSON_BYTES)
        except zlib.error as error:
            raise HTTPException(422, f"the body is no gzip ({error})") from None
        if not unpacking.eof:
            raise HTTPException(413, f"at most {MOST_JSON_BYTES} bytes, whole")
    try:
        said = json.loads(data)
    except (ValueError, RecursionError) as error:
        raise HTTPException(422, f"the body is no JSON ({error})") from None
    if not isinstance(said, dict):
        raise HTTPException(422, "the body is no JSON object")
    return said


# The routes


def _asking(teacher: Teacher, bodies: asyncio.Semaphore) -> APIRouter:
    routes = APIRouter(tags=["teacher"])

    @routes.post("/ask/{frame}")
    async def ask(frame: int, request: Request) -> dict[str, Any]:
        """The teacher's opinion of the JPEG in the body, bound to the frame's id."""
        if not 0 <= frame <= _NEWEST:
            raise HTTPException(422, "a frame's id is from 0 to 2^63 - 1")
        if teacher.full:
            raise teacher.busy()  # before the picture is sent over a slow link
        jpeg = await _body(request, MAX_BYTES, bodies)
        if not jpeg.startswith(b"\xff\xd8"):
            raise HTTPException(415, "the body is no JPEG")
        return await asyncio.wrap_future(teacher.ask(frame, jpeg))

    return routes


def _keeping(hub: Hub, bodies: asyncio.Semaphore) -> APIRouter:
    """What devices send."""
    routes = APIRouter(prefix="/hub/{device}/{series}", tags=["hub, for devices"])

    @routes.get("")
    def state(device: str, series: str, after: int = 0) -> dict[str, Any]:
        """How far the hub is with a source, and which pictures beyond an id it waits for."""
        return hub.state(Source(device, series), _id(after))

    @routes.post("/heartbeat")
    async def heartbeat(device: str, series: str, request: Request) -> dict[str, Any]:
        """{"period_s", "vitals"}; the answer is how far the hub is."""
        said, source = await _object(request, bodies), Source(device, series)
        await run_in_threadpool(hub.beat, source, said.get("period_s"), said.get("vitals"))
        return await run_in_threadpool(hub.state, source)

    @routes.post("/rows/{table}")
    async def rows(device: str, series: str, table: str, request: Request) -> dict[str, int]:
        """{"after", "rows"}: all rows of a table beyond an id, up to the last of these."""
        said, source = await _object(request, bodies), Source(device, series)
        return {"at": await run_in_threadpool(hub.take, source, table, said.get("after"), said.get("rows"))}

    @routes.put("/pictures/{picture}")
    async def piece(device: str, series: str, picture: int, at: int, request: Request) -> dict[str, int]:
        """A picture's bytes from a place on."""
        data = await _body(request, MOST_PIECE_BYTES, bodies)
        return {"at": await run_in_threadpool(hub.put, Source(device, series), _id(picture), at, data)}

    @routes.post("/pictures/{picture}/gone")
    def gone(device: str, series: str, picture: int) -> dict[str, bool]:
        """The device has it no more."""
        hub.gone(Source(device, series), _id(picture))
        return {"done": True}

    return routes


def _reading(hub: Hub) -> APIRouter:
    """What an app reads."""
    routes = APIRouter(prefix="/hub", tags=["hub, for readers"])

    @routes.get("/devices")
    def devices() -> list[dict[str, Any]]:
        """Every source: how it was when it was last heard, how long ago, and whether that is too long."""
        return hub.devices()

    @routes.get("/{device}/{series}/heartbeats")
    def heartbeats(device: str, series: str, count: int = 100) -> list[dict[str, Any]]:
        """Newest first."""
        return hub.beats(Source(device, series), max(0, count))

    @routes.get("/{device}/{series}/frames")
    def frames(device: str, series: str, before: int = _NEWEST, count: int = 50) -> list[dict[str, Any]]:
        """Newest first, with what was said of them; the next page is before the last one's id."""
        return hub.frames(Source(device, series), max(0, min(before, _NEWEST)), max(0, count))

    @routes.get("/{device}/{series}/frames/{frame}/picture")
    def picture(device: str, series: str, frame: int) -> FileResponse:
        """A kept picture, as soon as it is here."""
        return FileResponse(hub.picture(Source(device, series), _id(frame)), media_type="image/jpeg")

    return routes


def _id(number: int) -> int:
    if not 0 <= number <= _NEWEST:
        raise HTTPException(422, "an id is from 0 to 2^63 - 1")
    return number
