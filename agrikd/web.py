"""What agrikd's servers share: who may come in, how much he may say, and how they end."""

from __future__ import annotations

import errno
import hmac
import resource
import secrets
import socket
import ssl
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from agrikd import console, files
from agrikd.errors import InputError, MissingExtraError, Problem

try:
    import uvicorn
    from fastapi import FastAPI, HTTPException, Request, Response
    from starlette.requests import HTTPConnection
    from starlette.responses import JSONResponse
    from starlette.types import ASGIApp, Message, Receive, Scope, Send
except ImportError:
    raise MissingExtraError("fastapi", "serve") from None


REFUSALS = {
    400: "the body cannot be read",
    401: "the token is missing or wrong",
    403: "the page's origin is not allowed",
    404: "there is no such thing",
    409: "it could not be done",
    413: "the body is too large",
    503: "who should answer does not",
}
LOOPBACK = ("127.0.0.1", "::1", "localhost")
_CONNECTIONS, _KEEP_ALIVE_S, _GRACE_S, _WS_BYTES = 2000, 75, 2, 64 * 1024


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
        if origin is None or origin in self._origins:
            return True
        try:
            return urlsplit(origin).netloc == link.headers.get("host")
        except ValueError:
            return False


class Door:
    """Lets in who shows the token, but for the paths that are open: what is refused is not read."""

    def __init__(self, inner: ASGIApp, token: str, open_paths: tuple[str, ...]) -> None:
        self._inner, self._wanted, self._open = inner, f"Bearer {token}".encode(), open_paths

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "lifespan" or scope.get("path") in self._open:
            return await self._inner(scope, receive, send)
        given = dict(scope["headers"]).get(b"authorization", b"")
        if hmac.compare_digest(given, self._wanted):
            return await self._inner(scope, receive, send)
        refusal = JSONResponse({"detail": REFUSALS[401]}, 401, {"WWW-Authenticate": "Bearer"})
        return await refusal(scope, receive, send)


class Bounded:
    """Refuses a body of more than so many bytes, whatever its header says of it."""

    def __init__(self, app: ASGIApp, most_bytes: int) -> None:
        self._app, self._most = app, most_bytes

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            return await self._app(scope, receive, send)
        heard, begun = 0, False

        async def counted() -> Message:
            nonlocal heard
            message = await receive()
            heard += len(message.get("body", b""))
            if heard > self._most:
                raise HTTPException(413, f"{REFUSALS[413]}: {self._most} bytes at most")
            return message

        async def noted(message: Message) -> None:
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
    """The token in a file that only its owner reads; made where there is none. Raises `InputError` for a short one."""
    with files.storage_errors(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        if not path.exists() or not path.stat().st_size:  # empty: the power went while it was made
            files.write_secret(path, secrets.token_urlsafe(32) + "\n")
            console.say(f"{path}: a new token, for who may come in")
    found = files.read_text(path).strip()
    if len(found) < 16:
        raise InputError(Problem(str(path), "holds no token of 16 characters or more", "remove it: a new one is made"))
    return found


def require_tls(host: str, cert: Path | None, key: Path | None) -> None:
    """Raises `InputError` for half of a pair, and for files that are none; says so where others may come and the link
    is open."""
    if (cert is None) != (key is None):
        raise InputError(Problem("--cert and --key", "belong together", "name both, or neither"))
    if cert and key:
        _require_pair(cert, key)
    if host not in LOOPBACK and cert is None:
        console.say(f"{host}: whoever is on the way reads what is secret, and the pictures. Put a")
        console.say("reverse proxy with TLS before it, or name --cert and --key.")


def require_free(host: str, port: int, mend: str) -> None:
    """Raises `InputError` where nobody can listen at a port, as where somebody does; mend: how to take another one."""
    try:
        socket.create_server((host, port), family=socket.AF_INET6 if ":" in host else socket.AF_INET).close()
    except (OSError, OverflowError) as error:
        taken = isinstance(error, OSError) and error.errno == errno.EADDRINUSE
        wrong = "is taken by another program" if taken else f"cannot be listened at ({error})"
        raise InputError(Problem(f"port {port} of {host}", wrong, mend)) from None


def require_port(host: str, port: int) -> None:
    """As `require_free`, of a port that --port names."""
    require_free(host, port, f"end it, or take another one: --port {port + 1 if port < 65535 else port - 1}")


def _require_pair(cert: Path, key: Path) -> None:
    for path in (cert, key):
        files.read_bytes(path)
    try:
        ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER).load_cert_chain(cert, key)
    except ssl.SSLError:
        mend = "--cert is a PEM file of certificates, the server's first; --key is its private key"
        raise InputError(Problem(f"{cert} and {key}", "are no certificate and its key", mend)) from None


def address(host: str, port: int, cert: Path | None) -> str:
    """What a browser is to open."""
    return f"http{'s' if cert else ''}://{f'[{host}]' if ':' in host else host}:{port}"


def run(app: ASGIApp, host: str, port: int, tls: tuple[Path | None, Path | None], **options: Any) -> None:
    """Until SIGTERM or SIGINT, which end it within 3 s though clients are connected. tls: a certificate and its key, as
    PEM files. options: of uvicorn."""
    uvicorn.run(
        app,
        host=host,
        port=port,
        log_level="warning",
        access_log=False,
        server_header=False,
        timeout_graceful_shutdown=_GRACE_S,
        ssl_certfile=tls[0],
        ssl_keyfile=tls[1],
        **options,
    )


def serve(app: FastAPI, host: str, port: int, cert: Path | None = None, key: Path | None = None) -> None:
    """As `run`, for many who may be strangers."""
    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))  # 1,024 is the usual: half-open requests would use them up
    run(
        app,
        host,
        port,
        (cert, key),
        limit_concurrency=_CONNECTIONS,
        timeout_keep_alive=_KEEP_ALIVE_S,
        ws_max_size=_WS_BYTES,
        ws_per_message_deflate=False,  # pictures are packed already
    )
