"""The app's server: Streamlit's pages, and beside them, on the same port, the live stream of the agent's cameras.

A page is run again when a person does something; the stream never passes through one. It is relayed from the agent,
whose token stays here.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import re
import sqlite3
import sys
from collections.abc import Awaitable, Callable, Iterable, Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any
from urllib.parse import urlencode

import yaml

from agrikd import accounts, console, files, records, web
from agrikd.access import Access, Visitor
from agrikd.device import quality
from agrikd.device.post import Answer, Server
from agrikd.device.station import LIVE, RECORDS, TOKEN
from agrikd.device.store import SETTINGS, Store
from agrikd.door import Door, told
from agrikd.errors import AgriKDError, DeviceError, InputError, MissingExtraError, Problem, StorageError
from agrikd.gallery import RUNS
from agrikd.records import Label
from agrikd.web import LOOPBACK

try:
    import streamlit as st
    from starlette.concurrency import run_in_threadpool
    from starlette.middleware import Middleware
    from starlette.middleware.gzip import GZipMiddleware
    from starlette.requests import Request
    from starlette.responses import Response
    from starlette.routing import Route, WebSocketRoute
    from starlette.websockets import WebSocket, WebSocketDisconnect
    from streamlit import config
    from websockets.asyncio.client import connect
    from websockets.exceptions import WebSocketException
except ImportError:
    raise MissingExtraError("streamlit", "app") from None

FIELD = "AGRIKD_FIELD"
"""For the pages: the folder of the agent."""
PREFIX = "/agrikd"
STREAMLIT: dict[str, object] = {
    "server.headless": True,
    "server.fileWatcherType": "none",
    "server.maxUploadSize": 20,
    "browser.gatherUsageStats": False,
    "client.toolbarMode": "minimal",
    "client.showErrorDetails": "none",
    "client.disableDataExport": True,
    "logger.level": "warning",
    "theme.light.primaryColor": "#14532d",
    "theme.light.backgroundColor": "#ffffff",
    "theme.light.secondaryBackgroundColor": "#eef3ef",
    "theme.light.textColor": "#0b1a12",
    "theme.light.linkColor": "#0b4a8f",
    "theme.light.borderColor": "#707870",
    "theme.dark.primaryColor": "#86efac",
    "theme.dark.backgroundColor": "#0b120e",
    "theme.dark.secondaryBackgroundColor": "#18241d",
    "theme.dark.textColor": "#f2f7f3",
    "theme.dark.linkColor": "#9ecbff",
    "theme.dark.borderColor": "#8b958d",
}
"""Colours with 7:1 and more between text and ground (WCAG 2.2, 1.4.6): a screen in the sun."""
_ANSWER_S, _MOST_MESSAGE_BYTES = 15.0, 16 * 2**20


@dataclass(frozen=True)
class Field:
    """An agent, as the app knows it: its folder on this machine."""

    folder: Path

    @classmethod
    def here(cls) -> Field:
        """The one that this process was started for."""
        return cls(Path(os.environ.get(FIELD, "field")))

    def require(self) -> None:
        """Raises `InputError` where there is no such folder; says so where no agent has looked yet."""
        mend = f"start an agent: agrikd agent MODEL --source demo --folder {self.folder}"
        if self.folder.is_file():
            raise InputError(Problem(str(self.folder), "is a file", "name the folder of an agent"))
        if not self.folder.is_dir():
            raise InputError(Problem(str(self.folder), "there is no such folder", mend))
        if not (self.folder / LIVE).exists():
            console.say(f"{self.folder}: no agent has looked here yet\n    → {mend}")

    @contextlib.contextmanager
    def records(self) -> Iterator[sqlite3.Connection]:
        """What the agent has written; raises `InputError` where there is nothing yet."""
        try:
            with contextlib.closing(records.read(self.folder / RECORDS)) as db:
                yield db
        except sqlite3.Error as error:
            raise StorageError(f"{self.folder / RECORDS}: cannot be read now ({error})\n    → try again") from None

    def picture(self, file: str) -> Path:
        """Where a kept picture lies, by its name in the records."""
        return self.folder / RECORDS / file

    @property
    def token_file(self) -> Path:
        return self.folder / TOKEN

    @property
    def live(self) -> dict[str, Any]:
        """url: of the agent's live view; cameras: their names. Raises `InputError` where no agent ever ran."""
        path = self.folder / LIVE
        if not path.exists():
            mend = "start one: agrikd agent MODEL --source demo"
            raise InputError(Problem(str(self.folder), "is no folder of an agent that looks", mend))
        found: dict[str, Any] = files.read_json(path)
        return found

    def call(self, method: str, path: str, body: dict[str, Any] | bytes = b"") -> Answer:
        """The agent's answer; raises `DeviceError` in its words where it is a refusal."""
        url = self.live["url"]
        answer = Server(url, str(self.token_file), packs=False).call(method, path, body, _ANSWER_S)
        if answer.status == 401:
            mend = f"give this one a port of its own in {self.folder / SETTINGS}, as in live: {{port: 8601}}"
            raise DeviceError(f"another agent seems to answer at {url}\n    → {mend}, and start it again")
        if answer.status != 200:
            raise answer.away()
        return answer

    def label(self, visitor: Visitor, label: Label) -> None:
        """Record what somebody says of a frame, under the name he came in by, else under the one he gives."""
        visitor.require_review()
        said = {name: getattr(label, name) for name in ("key", "frame", "label", "source", "note")}
        self.call("POST", "/label", {**said, "who": visitor.name or label.who})

    def ask_teacher(self, visitor: Visitor, frame: int) -> None:
        """Have the teacher asked about a frame; its answer comes with the stream."""
        visitor.require_review()
        self.call("POST", f"/ask-teacher/{frame}")

    def labels(self, model: str, language: str) -> dict[str, str]:
        """How the classes of a release are called in a language; none where it does not say."""
        if not model or not (self.folder / "trust").is_dir():  # a look makes no device of a folder
            return {}
        with contextlib.suppress(AgriKDError, OSError):
            release = Store(self.folder).release(model)
            if language in release.labels:
                return dict(zip(release.spec.classes, release.labels[language], strict=True))
        return {}


def pages() -> Path:
    """The folder of the app's pages: beside the package in a checkout, else where it was installed to."""
    checkout = Path(__file__).resolve().parents[1] / "app"
    return checkout if checkout.is_dir() else Path(sys.prefix) / "share" / "agrikd" / "app"


def literal(text: object) -> str:
    """A text for where Streamlit reads Markdown, as in labels and messages: it looks as it was written."""
    return re.sub(r"([!-/:-@\[-`{-~])", r"\\\1", str(text)).replace("\n", "  \n")


def visitor() -> Visitor | None:
    """Who looks at the page that is being made; None for a stranger, for whom none is."""
    return told(st.context.headers)


@cache
def words(language: str) -> dict[str, str]:
    """The app's texts in a language; code: the language's."""
    found: dict[str, str] = yaml.safe_load(files.read_text(pages() / "words" / f"{language}.yaml"))
    return found | {"code": language}


def faults(words: dict[str, str]) -> dict[str, str]:
    """What a picture lacks, as `device.quality` names it, in the words of a page's language."""
    return {
        quality.TOO_DARK: words["devices.fault_dark"],
        quality.OVEREXPOSED: words["devices.fault_bright"],
        quality.BLURRED: words["devices.fault_blurred"],
        quality.COVERED: words["devices.fault_covered"],
        quality.FROZEN: words["devices.fault_frozen"],
    }


def first_known(wanted: Iterable[str]) -> dict[str, str]:
    """The texts in the first of these languages that there is; else in English."""
    known = languages()
    return words(next((one for one in wanted if one in known), "en"))


@cache
def languages() -> dict[str, str]:
    """What there is: code to the language's own name."""
    return {path.stem: words(path.stem)["language"] for path in sorted((pages() / "words").glob("*.yaml"))}


def made() -> st.App:
    """The app for `Field.here()`; raises `InputError` for accounts that are half said."""
    folder = Field.here().folder
    secrets = {"secrets.files": [str(folder / accounts.SECRETS)]}  # not those of whatever folder it is started in
    config.get_config_options(True, STREAMLIT | secrets)  # in the environment, its own command alone would see them
    routes = [
        Route(f"{PREFIX}/frame/{{frame:int}}.jpg", _frame),
        WebSocketRoute(f"{PREFIX}/live", _live),
    ]
    page = files.read_text(pages() / "door.html")
    known = bool(accounts.providers(folder))
    door = Middleware(Door, access=Access(folder), page=page, words=first_known, accounts=known)
    packed = Middleware(GZipMiddleware, compresslevel=4)  # Streamlit leaves out its own scripts: 3 MB, 1.2 packed
    return st.App(pages() / "main.py", routes=routes, middleware=[door, packed])


def run(
    field: Field, host: str, port: int, runs: Path | None = None, tls: tuple[Path | None, Path | None] = (None, None)
) -> None:
    """Serve until SIGTERM or Ctrl-C. runs: the folder of Runs that it shows. tls: a certificate and its key, PEM files.

    Raises `InputError` for a folder that is none, for a port that is taken, and where others than this machine may
    come, nobody has a password, and no account is known.
    """
    field.require()
    os.environ[FIELD] = str(field.folder.resolve())
    if runs:
        os.environ[RUNS] = str(runs.resolve())
    app, access = made(), Access(field.folder)
    if host not in LOOPBACK and not (access.passwords or (access.users and accounts.providers(field.folder))):
        mend = f"add one: agrikd access add NAME --role reviewer {field.folder}"
        raise InputError(Problem(f"--host {host}", "lets other machines in, and nobody has a password", mend))
    web.require_port(host, port)
    console.say(f"open {web.address(host, port, tls[0])} (Ctrl-C ends it)")
    # the door looks at a proxy's headers itself
    web.run(app, host, port, tls, proxy_headers=False, ws_max_size=2**20 * 64)


async def _frame(request: Request) -> Response:
    path = f"/frame/{request.path_params['frame']}.jpg"
    try:
        answer = await run_in_threadpool(Field.here().call, "GET", path)
    except AgriKDError as error:
        return Response(str(error), 404)
    return Response(answer.body, media_type="image/jpeg", headers={"Cache-Control": "private, max-age=3600"})


async def _live(viewer: WebSocket) -> None:
    """From the agent to a viewer, who asks for each frame himself."""
    field = Field.here()
    await viewer.accept()
    try:
        signed = {"Authorization": f"Bearer {field.token_file.read_text().strip()}"}
        camera = urlencode({"camera": viewer.query_params.get("camera", "")})
        url = f"{field.live['url'].replace('http', 'ws', 1)}/live?{camera}"
        async with connect(url, additional_headers=signed, max_size=_MOST_MESSAGE_BYTES, proxy=None) as agent:
            await _either(_asked(viewer, agent.send), _shown(viewer, agent.recv))
    except (AgriKDError, OSError, WebSocketException, asyncio.TimeoutError):
        pass  # the viewer sees the stream end, says STALE, and tries again
    with contextlib.suppress(RuntimeError, WebSocketDisconnect):
        await viewer.close(1013)


async def _asked(viewer: WebSocket, send: Callable[[str], Awaitable[None]]) -> None:
    while True:
        await viewer.receive_text()
        await send("next")


async def _shown(viewer: WebSocket, recv: Callable[[], Awaitable[str | bytes]]) -> None:
    while True:
        message = await recv()
        if isinstance(message, bytes):
            await viewer.send_bytes(message)


async def _either(*both: Any) -> None:
    """Until one of them has ended."""
    tasks = [asyncio.create_task(one) for one in both]
    done, going = await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
    for task in going:
        task.cancel()
    await asyncio.gather(*going, return_exceptions=True)
    for task in done:
        if (error := task.exception()) and not isinstance(error, WebSocketDisconnect | RuntimeError | KeyError):
            raise error
