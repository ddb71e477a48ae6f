"""The door of the app: everything passes it, pages, streams and what Streamlit itself serves.

Whoever sits at this machine is let in. Anyone else shows a password once, and a signed cookie after that.

Where the organisation's own accounts are known (`agrikd.accounts`), a stranger gets Streamlit's shell and stream:
the script is told that he is nobody, and shows him how to sign in, and no page. For an account it knows it signs the
cookie, which the browser hands in at `ENTER`: from there on its owner comes in as one with a password does.

The cookie is for this server alone (HttpOnly, SameSite=Strict), and Secure where TLS ends here or a proxy says so.
Streamlit's own cookies are SameSite=Lax and never Secure: over plain HTTP, whoever listens may use them.
"""

from __future__ import annotations

import asyncio
import json
import re
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from html import escape
from http.cookies import CookieError, SimpleCookie
from typing import Any
from urllib.parse import parse_qs, urlsplit

from agrikd.access import LONGEST_S, Access, Visitor
from agrikd.errors import MissingExtraError

try:
    from starlette.requests import HTTPConnection, Request
    from starlette.responses import HTMLResponse, RedirectResponse, Response
    from starlette.types import ASGIApp, Message, Receive, Scope, Send
    from starlette.websockets import WebSocketClose
except ImportError:
    raise MissingExtraError("streamlit", "app") from None

LOGIN, LOGOUT, ENTER = "/agrikd/login", "/agrikd/logout", "/agrikd/enter"
LEFT = "left"
"""What the address of the front page says of who has just left: the account's own session ends with it."""
TOLD = "x-agrikd-visitor"
"""The header by which a page is told who is there; what a browser sends under this name is taken out."""
_COOKIE = "agrikd"
_HERE = ("127.0.0.1", "localhost", "[::1]")
_FORWARDED = ("forwarded", "x-forwarded-for", "x-real-ip", "via")
_FORM_BYTES = 4096
_CHECKERS = ThreadPoolExecutor(2)
"""Passwords that are checked at the same time; each takes 64 MiB."""
_SHELL = re.compile(r"/([\w.-]*|static/[\w./-]+|auth/log(in|out)|_stcore/(health|host-config|stream))")
"""Of Streamlit, what signing in takes: neither pictures nor uploads, which a page that runs may have left there."""
_PAGE = re.compile(r"/[a-z0-9_-]{1,40}")
"""Of this app: no other host's address, however it is written, has this form."""
_STREAMS = b"sec-websocket-protocol"


def sign_in(page: str) -> str:
    """Where a password is asked for on the way to a page; to the front for what is no page's path."""
    return f"{LOGIN}?to={page}" if _PAGE.fullmatch(page) else LOGIN


def told(headers: Any) -> Visitor | None:
    """Who is there, for a page, from its headers; None for a stranger, who may sign in and see nothing else. Who did
    not come through the door is a viewer."""
    said = json.loads(headers.get(TOLD) or "{}")
    return None if said is None else Visitor(**said)


class Door:
    """Before everything that the app serves. words: the texts of its page in the first language that is known.
    accounts: whether a stranger may sign in by an account."""

    def __init__(
        self, inner: ASGIApp, access: Access, page: str, words: Callable[[Iterable[str]], Any], accounts: bool = False
    ) -> None:
        self._inner, self._access, self._page, self._words = inner, access, page, words
        self._accounts = accounts

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        answer: ASGIApp = self._inner
        if scope["type"] == "websocket":
            receive = self._while_known(HTTPConnection(scope), receive)
        if scope["type"] != "lifespan":
            answer, scope = await self._led(scope, receive)
        await answer(scope, receive, send)

    def _while_known(self, link: HTTPConnection, receive: Receive) -> Receive:
        """A stream ends when its visitor's cookie does: all that a page does is asked for by a message."""
        begun = self.visitor(link)

        async def heard() -> Message:
            message = await receive()
            return message if self.visitor(link) == begun else {"type": "websocket.disconnect", "code": 1008}

        return heard

    async def _led(self, scope: Scope, receive: Receive) -> tuple[ASGIApp, Scope]:
        """Who answers, and to what."""
        link = HTTPConnection(scope)
        if scope["path"] == LOGIN and scope["type"] == "http":
            return await self._come_in(Request(scope, receive)), scope
        if scope["path"] == ENTER and scope["type"] == "http":
            return await self._enter(Request(scope, receive)), scope
        if scope["path"] == LOGOUT and scope["type"] == "http":
            gone = RedirectResponse(f"/?{LEFT}=1" if self._accounts else LOGIN, 303)
            gone.delete_cookie(_COOKIE)
            self._access.leave(_cookie(link))  # of his other tabs, too
            return gone, scope
        visitor = self.visitor(link)
        if not _own_page(link) or (visitor is None and not (self._accounts and _shell(link))):
            return self._refusal(link, visitor), scope
        words = json.dumps(visitor and {"name": visitor.name, "role": visitor.role}).encode()
        headers = [(name, value) for name, value in scope["headers"] if name.lower() != TOLD.encode()]
        if visitor is None:
            headers = [(name, _new(value) if name.lower() == _STREAMS else value) for name, value in headers]
        return self._inner, {**scope, "headers": [*headers, (TOLD.encode(), words)]}

    def visitor(self, link: HTTPConnection) -> Visitor | None:
        """Who asks; None for a stranger."""
        if cookie := _cookie(link):
            return self._access.visitor(cookie)
        return Visitor("", "reviewer") if _at_this_machine(link) else None

    async def _come_in(self, request: Request) -> Response:
        words = self._words(_languages(request.headers.get("accept-language", "")))
        if request.method != "POST":
            return self._form(words, request.query_params.get("to", ""), "", 200)
        if not _own_page(request):
            return Response("you may not", 403)
        form = parse_qs(await _body(request), max_num_fields=4)
        name, password, page = (form.get(key, [""])[0] for key in ("name", "password", "to"))
        address = _address(request)
        if (wait := self._access.admit(address)) > 0:
            said = words["access.wait"].format(seconds=int(wait) + 1)
            return self._form(words, page, said, 429, {"Retry-After": str(int(wait) + 1)})
        if not await asyncio.get_running_loop().run_in_executor(_CHECKERS, self._access.check, name, password, address):
            return self._form(words, page, words["access.wrong"], 401)
        front = RedirectResponse(page if _PAGE.fullmatch(page) else "/", 303)
        return _kept(request, front, self._access.cookie(name))

    async def _enter(self, request: Request) -> Response:
        """Takes the cookie that the script has signed for an account."""
        if request.method != "POST" or not _own_page(request):
            return Response("you may not", 403)
        cookie = await _body(request)
        if self._access.visitor(cookie) is None:
            return Response("you may not", 401)
        return _kept(request, Response(status_code=204), cookie)

    def _refusal(self, link: HTTPConnection, visitor: Visitor | None) -> ASGIApp:
        if link.scope["type"] == "websocket":
            return WebSocketClose(1008)  # before it is accepted: the answer is 403
        shows = link.scope["method"] == "GET" and "text/html" in link.headers.get("accept", "")
        page = visitor is None and shows and _own_page(link)
        front = "/" if self._accounts else sign_in(link.scope["path"])
        return RedirectResponse(front, 303) if page else Response("you may not", 403 if visitor else 401)

    def _form(self, words: Any, to: str, said: str, status: int, headers: dict[str, str] | None = None) -> Response:
        texts = {key.partition(".")[2]: text for key, text in words.items() if key.startswith("access.")}
        page = self._page
        for name, text in {**texts, "lang": words["code"], "said": said, "to": to, "address": LOGIN}.items():
            page = page.replace(f"{{{name}}}", escape(text))
        policy = "default-src 'none'; style-src 'unsafe-inline'; form-action 'self'; frame-ancestors 'none'"
        held = {"Content-Security-Policy": policy, "Cache-Control": "no-store"}
        return HTMLResponse(page, status, held | (headers or {}))


def _kept(request: Request, answer: Response, cookie: str) -> Response:
    safe = request.url.scheme == "https" or request.headers.get("x-forwarded-proto") == "https"
    answer.set_cookie(_COOKIE, cookie, LONGEST_S, httponly=True, samesite="strict", secure=safe)
    return answer


def _shell(link: HTTPConnection) -> bool:
    return link.scope.get("method", "GET") == "GET" and _SHELL.fullmatch(link.scope["path"]) is not None


def _new(streams: bytes) -> bytes:
    """What Streamlit's browser side asks of a stream (a name, a token, a session to go on with) without the session:
    one whose visitor's cookie has ended still has the parts of his pages."""
    return b",".join(streams.split(b",")[:2])


def _cookie(link: HTTPConnection) -> str:
    try:
        found = SimpleCookie(link.headers.get("cookie", "")).get(_COOKIE)
    except CookieError:
        return ""
    return found.value if found else ""


def _address(link: HTTPConnection) -> str:
    """Of whoever asks: as a proxy on this machine says, of whose list the last is its own word."""
    own = link.client.host if link.client else ""
    said = link.headers.get("x-forwarded-for", "").rpartition(",")[2].strip()
    return said or own if own in ("127.0.0.1", "::1") else own


def _at_this_machine(link: HTTPConnection) -> bool:
    """By its address and by the name it asks for: another name may be a trap of its owner, and who comes through a
    proxy is not here."""
    host = link.headers.get("host", "")
    named = host.rpartition(":")[0] if host.rpartition(":")[2].isdecimal() else host
    here = link.client is not None and link.client.host in ("127.0.0.1", "::1")
    return here and named in _HERE and not any(name in link.headers for name in _FORWARDED)


def _own_page(link: HTTPConnection) -> bool:
    """Whether no other site's page asks: a browser says so."""
    origin, host = link.headers.get("origin"), link.headers.get("host", "")
    if origin is not None and urlsplit(origin).netloc != host:
        return False
    return link.headers.get("sec-fetch-site", "none") in ("none", "same-origin") or _navigates(link)


def _navigates(link: HTTPConnection) -> bool:
    """A link on another site that leads here, which shows nothing to that site."""
    return link.scope.get("method") == "GET" and link.headers.get("sec-fetch-mode") == "navigate"


def _languages(header: str) -> list[str]:
    """Of Accept-Language, as it orders them."""
    return [one.partition(";")[0].partition("-")[0].strip().lower() for one in header.split(",")]


async def _body(request: Request) -> str:
    parts = b""
    async for part in request.stream():
        parts += part
        if len(parts) > _FORM_BYTES:
            return ""
    return parts.decode(errors="replace")
