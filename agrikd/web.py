"""What agrikd's servers share: who may come in, how much he may say, and how they end."""

from __future__ import annotations

import hmac
import os
import secrets
from collections.abc import Awaitable, Callable, MutableMapping
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import uvicorn
from fastapi import FastAPI, HTTPException, Request, Response
from starlette.requests import HTTPConnection
from starlette.responses import JSONResponse

from agrikd import files

REFUSALS = {
    400: "the body cannot be read",
    401: "the token is missing or wrong",
    403: "the page's origin is not allowed",
    404: "there is no such thing",
    409: "it could not be done",
    413: "the body is too large",
    503: "who should answer does not",
}
_GRACE_S = 1
_Message = MutableMapping[str, Any]
_Receive = Callable[[], Awaitable[_Message]]
_Send = Callable[[_Message], Awaitable[None]]


class Jpeg(Response):
    media_type = "image/jpeg"


class Guard:
    """Lets in who shows the token, from no other page than the server's own or one of `origins`.

    The token comes as `Authorization: Bearer …`, or as `?token=…` where a browser lets nothing else be set, as for the
    address of a picture or of a WebSocket.
    """

    def __init__(self, token: str, origins: tuple[str, ...] = ()) -> None:
        self._token, self._origins = token.encode(), origins

    async def http(self, request: Request) -> None:
        """Raises `HTTPException` 401 or 403."""
        if not self._knows(request):
            raise HTTPException(401, REFUSALS[401], {"WWW-Authenticate": "Bearer"})
        if not self._own_page(request):
            raise HTTPException(403, REFUSALS[403])

    def allows(self, link: HTTPConnection) -> bool:
        return self._knows(link) and self._own_page(link)

    def _knows(self, link: HTTPConnection) -> bool:
        kind, _, shown = link.headers.get("authorization", "").partition(" ")
        if kind.lower() != "bearer":
            shown = link.query_params.get("token", "")
        return hmac.compare_digest(shown.strip().encode(), self._token)

    def _own_page(self, link: HTTPConnection) -> bool:
        """A browser names the page's origin; a program does not."""
        origin = link.headers.get("origin")
        return origin is None or origin in self._origins or urlsplit(origin).netloc == link.headers.get("host")


class Bounded:
    """Refuses a body of more than so many bytes, whatever its header says of it."""

    def __init__(self, app: Callable[..., Awaitable[None]], most_bytes: int) -> None:
        self._app, self._most = app, most_bytes

    async def __call__(self, scope: _Message, receive: _Receive, send: _Send) -> None:
        if scope["type"] != "http":
            return await self._app(scope, receive, send)
        heard, begun = 0, False

        async def counted() -> _Message:
            nonlocal heard
            message = await receive()
            heard += len(message.get("body", b""))
            if heard > self._most:
                raise HTTPException(413, f"{REFUSALS[413]}: {self._most} bytes at most")
            return message

        async def noted(message: _Message) -> None:
            nonlocal begun
            begun = True
            await send(message)

        declared = dict(scope["headers"]).get(b"content-length", b"0")
        too_much = Response(f"{REFUSALS[413]}: {self._most} bytes at most", 413, {"Connection": "close"})
        if declared.isdigit() and int(declared) > self._most:
            return await too_much(scope, receive, send)
        try:
            await self._app(scope, counted, noted)
        except HTTPException:
            if begun:
                raise
            await too_much(scope, receive, send)


async def unavailable(_: Request, error: Exception) -> Response:
    """What cannot be read or written just now, in words."""
    return JSONResponse({"detail": str(error)}, 503)


def token(path: Path) -> str:
    """The token in a file that only its owner reads; made where there is none."""
    with files.storage_errors(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            handle = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
        except FileExistsError:
            return files.read_text(path).strip()
        with os.fdopen(handle, "w") as out:
            out.write(secrets.token_urlsafe(32) + "\n")
    return files.read_text(path).strip()


def serve(app: FastAPI, host: str, port: int, certificate: tuple[Path, Path] | None = None) -> None:
    """Until SIGTERM, which ends it within seconds though clients are connected. certificate: its file and its key's."""
    uvicorn.run(
        app,
        host=host,
        port=port,
        log_level="warning",
        access_log=False,
        timeout_graceful_shutdown=_GRACE_S,
        ssl_certfile=certificate[0] if certificate else None,
        ssl_keyfile=certificate[1] if certificate else None,
        ws_max_size=64 * 1024,
        server_header=False,
    )
