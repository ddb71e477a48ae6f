"""Who gets into the app: passwords and cookies, the door before every route, and what a viewer may not."""

from __future__ import annotations

import asyncio
import base64
import contextlib
import json
import stat
import subprocess
import sys
import time
import zlib
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from starlette.applications import Starlette
from starlette.middleware import Middleware
from starlette.requests import Request
from starlette.responses import JSONResponse
from starlette.routing import Route, WebSocketRoute
from starlette.testclient import TestClient
from starlette.websockets import WebSocket, WebSocketDisconnect

from agrikd import access, site
from agrikd.access import KEY, USERS, Access, Visitor
from agrikd.device import store
from agrikd.door import ENTER, LOGIN, LOGOUT, TOLD, Door, sign_in, told
from agrikd.errors import InputError

PASSWORD = "three green leaves"
ANA = "ana@farm.example"
PAGE = (site.pages() / "door.html").read_text()


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """With a viewer and a reviewer."""
    made = tmp_path_factory.mktemp("field")
    held = Access(made)
    held.put("Ana", PASSWORD, "reviewer")
    held.put("<b>Ümit</b>", PASSWORD, "viewer")
    return made


def test_a_password_and_nothing_else(folder: Path) -> None:
    held = Access(folder)
    assert held.check("Ana", PASSWORD, "a") and not held.check("Ana", PASSWORD + " ", "a")
    assert not held.check("nobody", PASSWORD, "b") and not held.check("", "", "c")
    for name in (USERS, KEY):
        held.cookie("Ana")
        assert stat.S_IMODE((folder / name).stat().st_mode) == 0o600
    assert PASSWORD not in (folder / USERS).read_text() and "$argon2id$" in (folder / USERS).read_text()


def test_a_cookie_ends_with_its_password_its_time_and_its_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    held = Access(tmp_path)
    held.put("Ana", PASSWORD, "reviewer")
    cookie = held.cookie("Ana")
    assert held.visitor(cookie) == Visitor("Ana", "reviewer")
    monkeypatch.setattr(access, "LONGEST_S", -1)
    assert held.visitor(cookie) is None
    monkeypatch.undo()
    held.put("Ana", PASSWORD, "viewer")  # the same words, but salted anew
    assert held.visitor(cookie) is None
    again = held.cookie("Ana")
    assert held.visitor(again) == Visitor("Ana", "viewer")
    Access(tmp_path).remove("Ana")  # by another process: this one notices
    assert held.visitor(again) is None


def test_a_name_without_a_password_has_none_that_fits(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    held = Access(tmp_path)
    held.put(ANA, None, "reviewer")
    kept = json.loads((tmp_path / USERS).read_text())[ANA]
    assert not held.passwords and kept.keys() == {"role", "no_password"}
    checked: list[str] = []
    monkeypatch.setattr(access.argon2.PasswordHasher, "verify", lambda _, held, said: checked.append(held))
    for said in ("", "None", kept["no_password"], PASSWORD):
        assert not held.check(ANA, said, said), said
    assert len(checked) == 4 and all(one.startswith("$argon2id$") for one in checked)  # as long as with a password


def test_the_cookie_of_a_name_without_a_password_ends_too(tmp_path: Path) -> None:
    held = Access(tmp_path)
    held.put(ANA, None, "viewer")
    first = held.cookie(ANA)
    assert held.visitor(first) == Visitor(ANA, "viewer")
    said = json.loads((tmp_path / USERS).read_text())
    (tmp_path / USERS).write_text(json.dumps({ANA: {**said[ANA], "role": "reviewer"}}))  # by hand
    assert Access(tmp_path).visitor(first) is None
    held.remove(ANA)
    assert held.visitor(first) is None
    held.put(ANA, None, "viewer")  # and comes back
    assert held.visitor(first) is None and held.visitor(held.cookie(ANA)) == Visitor(ANA, "viewer")
    held.put(ANA, PASSWORD, "viewer")
    assert held.passwords and held.check(ANA, PASSWORD, "a")


@pytest.mark.parametrize(
    "one", [{}, {"hash": ""}, {"no_password": ""}, {"no_password": 1}, {"hash": "x", "no_password": "x"}]
)
def test_a_name_has_a_password_or_says_that_it_has_none(tmp_path: Path, one: dict[str, object]) -> None:
    (tmp_path / USERS).write_text(json.dumps({"Ana": {"role": "viewer", **one}}))
    with pytest.raises(InputError, match="no list of names"):
        _ = Access(tmp_path).users


def test_a_cookie_that_would_unpack_to_much_is_not_unpacked(folder: Path) -> None:
    packed = base64.urlsafe_b64encode(zlib.compress(b'"' + b"a" * 200_000_000 + b'"', 9)).decode()
    begun = time.process_time()
    assert Access(folder).visitor(f".{packed}.x.y") is None and time.process_time() - begun < 0.2


@given(st.one_of(st.text(), st.integers(0, 200)))
def test_a_forged_cookie_is_none(folder: Path, forged: str | int) -> None:
    held = Access(folder)
    good = held.cookie("Ana")
    if isinstance(forged, int):
        place = forged % len(good)
        forged = good[:place] + ("A" if good[place] != "A" else "B") + good[place + 1 :]
    assert held.visitor(forged) in (None, Visitor("Ana", "reviewer")) and (
        forged == good or held.visitor(forged) is None or forged.rstrip("=")[:-1] == good[:-1]
    )


def test_names_may_come_before_the_device(tmp_path: Path) -> None:
    Access(tmp_path).put("Ana", PASSWORD, "viewer")
    Access(tmp_path).cookie("Ana")
    assert {path.name for path in tmp_path.iterdir()} == {USERS, KEY} == {*store.OF_THE_APP} - {".streamlit"}
    assert store.Store(tmp_path).state.phase == "IDLE"


def test_all_mistakes_at_once_and_a_file_that_is_none(tmp_path: Path) -> None:
    held = Access(tmp_path)
    with pytest.raises(InputError) as refused:
        held.put("\n", "short", "viewer")
    assert len(refused.value.problems) == 2 and not (tmp_path / USERS).exists()
    with pytest.raises(InputError, match="there are: none"):
        held.remove("Ana")
    (tmp_path / USERS).write_text(json.dumps({"Ana": {"role": "king", "hash": "x"}}))
    with pytest.raises(InputError, match="no list of names"):
        _ = held.users


def test_the_verbs(tmp_path: Path) -> None:
    def run(*words: str, said: str = "") -> subprocess.CompletedProcess[str]:
        command = [sys.executable, "-m", "agrikd", "access", *words]
        return subprocess.run(command, input=said, capture_output=True, text=True, timeout=60, check=False)

    where = str(tmp_path / "field")
    wrong = run("add", "Ana", where, said=PASSWORD + "\n")
    assert wrong.returncode == 2 and "there is no such folder" in wrong.stderr and not Path(where).exists()
    Path(where).mkdir()
    assert run("add", "Ana", where, "--role", "reviewer", said=PASSWORD + "\n").returncode == 0
    assert json.loads(run("list", where, "--json").stdout) == {"Ana": "reviewer"}
    wrong = run("add", "Bo", where, said="short\n")
    assert wrong.returncode == 2 and "8 to 200" in wrong.stderr and "Traceback" not in wrong.stderr
    assert run("remove", "Bo", where).returncode == 2
    nowhere = run("list", str(tmp_path / "nowhere"))
    assert nowhere.returncode == 2 and "there is no such folder" in nowhere.stderr and not nowhere.stdout
    assert run("remove", "Ana", where).returncode == 0 and Access(Path(where)).users == {}
    refused = subprocess.run(
        [sys.executable, "-m", "agrikd", "app", where, "--host", "0.0.0.0"],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert refused.returncode == 2 and "nobody has a password" in refused.stderr
    assert run("add", ANA, where, "--no-password").returncode == 0 and not Access(Path(where)).passwords


# The door


async def _who(request: Request) -> JSONResponse:
    visitor = told(request.headers)
    return JSONResponse(visitor and {"name": visitor.name, "role": visitor.role})


async def _stream(link: WebSocket) -> None:
    """Says who asks and for what, and then the same to each message."""
    await link.accept()
    visitor = told(link.headers)
    with contextlib.suppress(WebSocketDisconnect):
        while True:
            await link.send_text(visitor.role if visitor else link.headers.get("sec-websocket-protocol", "nobody"))
            await link.receive_text()


def _words(_: Iterable[str]) -> dict[str, str]:
    return site.words("en")


def visit(folder: Path, client: str = "192.0.2.7", host: str = "farm.example", **headers: str) -> TestClient:
    """Somebody's browser, from an address, by the name he typed."""
    return _visit(folder, client, host, False, headers)


def visit_with_accounts(folder: Path, **headers: str) -> TestClient:
    """The same, where accounts are known."""
    return _visit(folder, "192.0.2.7", "farm.example", True, headers)


def _visit(folder: Path, client: str, host: str, known: bool, headers: dict[str, str]) -> TestClient:
    door = Middleware(Door, access=Access(folder), page=PAGE, words=_words, accounts=known)
    pages = [Route(path, _who) for path in ("/page", "/agrikd/frame/1.jpg", "/media/x.jpg")]
    streams = [WebSocketRoute(path, _stream) for path in ("/live", "/_stcore/stream", "/agrikd/live")]
    app = Starlette(routes=[*pages, *streams], middleware=[door])
    made = TestClient(app, base_url=f"http://{host}", client=(client, 50000), follow_redirects=False)
    made.headers |= {"accept": "text/html", **headers}
    return made


def test_who_sits_here_is_let_in_and_nobody_else(folder: Path) -> None:
    here = {"client": "127.0.0.1", "host": "127.0.0.1:8501"}
    assert visit(folder, **here).get("/page").json() == {"name": "", "role": "reviewer"}
    strangers: list[dict[str, Any]] = [
        {},
        {"client": "127.0.0.1"},  # another's name for this machine
        {"host": "127.0.0.1:8501"},  # from elsewhere, by a name that is ours
        *({**here, name: "192.0.2.7"} for name in ("x-forwarded-for", "x-real-ip", "forwarded", "via")),
    ]
    for stranger in strangers:
        answer = visit(folder, **stranger).get("/page")
        assert (answer.status_code, answer.headers["location"]) == (303, f"{LOGIN}?to=/page"), stranger
        assert visit(folder, **stranger, accept="*/*").get("/page").status_code == 401
        assert visit(folder, **stranger).post("/page").status_code == 401
        with pytest.raises(WebSocketDisconnect), visit(folder, **stranger).websocket_connect("ws://farm.example/live"):
            raise AssertionError("the stream is open")
    assert len(strangers) == 7


def test_what_a_browser_says_of_the_visitor_counts_for_nothing(folder: Path) -> None:
    forged = json.dumps({"name": "Ana", "role": "reviewer"})
    assert visit(folder, **{TOLD: forged}).get("/page").status_code == 303
    guest = visit(folder, **{TOLD: forged})
    assert guest.post(LOGIN, data={"name": "<b>Ümit</b>", "password": PASSWORD}).status_code == 303
    assert guest.get("/page").json() == {"name": "<b>Ümit</b>", "role": "viewer"}
    with guest.websocket_connect("ws://farm.example/live") as link:
        assert link.receive_text() == "viewer"
    assert told({}) == Visitor("", "viewer")


def test_coming_in_and_going(folder: Path) -> None:
    guest = visit(folder)
    form = guest.get(LOGIN)
    assert form.status_code == 200 and "frame-ancestors 'none'" in form.headers["content-security-policy"]
    assert "{" not in form.text.split("</style>")[1]
    wrong = guest.post(LOGIN, data={"name": '"><script>', "password": "no"})
    assert wrong.status_code == 401 and "<script>" not in wrong.text and "do not match" in wrong.text
    came = guest.post(LOGIN, data={"name": "Ana", "password": PASSWORD})
    cookie = came.headers["set-cookie"]
    assert came.status_code == 303 and "HttpOnly" in cookie and "SameSite=strict" in cookie and "Secure" not in cookie
    assert guest.get("/page").json() == {"name": "Ana", "role": "reviewer"}
    assert guest.get(LOGOUT).headers["location"] == LOGIN and guest.get("/page").status_code == 303
    safe = visit(folder, **{"x-forwarded-proto": "https"}).post(LOGIN, data={"name": "Ana", "password": PASSWORD})
    assert "Secure" in safe.headers["set-cookie"]


def test_who_signs_in_comes_to_the_page_that_he_asked_for(folder: Path) -> None:
    guest = visit(folder)
    asked = guest.get(guest.get("/page").headers["location"])
    assert 'name="to" value="/page"' in asked.text
    wrong = guest.post(LOGIN, data={"name": "Ana", "password": "no", "to": "/page"})
    assert 'name="to" value="/page"' in wrong.text
    came = guest.post(LOGIN, data={"name": "Ana", "password": PASSWORD, "to": "/page"})
    assert came.headers["location"] == "/page" and guest.get("/page").status_code == 200


ELSEWHERE = ["//evil.example", "https://evil.example", "https:evil", "\\\\evil", "/\\evil", "/%2fevil", "/%5cevil"]
ELSEWHERE += [
    "/\t/evil",
    "/a/../..//evil",
    "javascript:alert(1)",
    "/a?b=//evil",
    "/page\r\nSet-Cookie: x=y",
    "evil",
    "/ab\n",
]


@pytest.mark.parametrize("elsewhere", ELSEWHERE)
def test_nobody_is_sent_elsewhere(folder: Path, elsewhere: str) -> None:
    guest = visit(folder)
    asked = guest.get(LOGIN, params={"to": elsewhere})
    assert asked.status_code == 200 and "href" not in asked.text and f'action="{LOGIN}"' in asked.text
    came = guest.post(LOGIN, data={"name": "Ana", "password": PASSWORD, "to": elsewhere})
    assert (came.status_code, came.headers["location"]) == (303, "/")
    assert sign_in(elsewhere) == LOGIN


@pytest.mark.parametrize(
    "path", ["//evil.example", "/%2F%2Fevil.example", "/%5C%5Cevil.example", "/agrikd/frame/1.jpg"]
)
def test_the_way_to_the_door_names_pages_alone(folder: Path, path: str) -> None:
    assert visit(folder).get(f"http://farm.example{path}").headers["location"] == LOGIN


def test_pages_of_others_get_nothing(folder: Path) -> None:
    guest = visit(folder)
    guest.post(LOGIN, data={"name": "Ana", "password": PASSWORD})
    evil = {"origin": "https://evil.example"}
    assert guest.get("/page", headers=evil).status_code == 403
    assert guest.get("/page", headers={"sec-fetch-site": "cross-site"}).status_code == 403
    assert guest.get("/page", headers={"sec-fetch-site": "cross-site", "sec-fetch-mode": "navigate"}).status_code == 200
    assert guest.get("/page", headers={"origin": "http://farm.example"}).status_code == 200
    with pytest.raises(WebSocketDisconnect), guest.websocket_connect("ws://farm.example/live", headers=evil):
        raise AssertionError("the stream is open")
    assert visit(folder).post(LOGIN, data={"name": "Ana", "password": PASSWORD}, headers=evil).status_code == 403


def test_who_guesses_through_a_proxy_bars_himself_alone(folder: Path) -> None:
    guest = visit(folder, "127.0.0.1")

    def guess(address: str) -> int:
        through = {"x-forwarded-for": f"203.0.113.9, {address}"}
        return guest.post(LOGIN, data={"name": "Ana", "password": "guess"}, headers=through).status_code

    assert [guess("198.51.100.1") for _ in range(6)] == [401] * 5 + [429]
    assert guess("198.51.100.2") == 401


def test_guessing_is_slow(folder: Path) -> None:
    guest = visit(folder)
    answers = [guest.post(LOGIN, data={"name": "Ana", "password": f"guess {n}"}) for n in range(7)]
    assert [one.status_code for one in answers] == [401] * 5 + [429] * 2
    assert 0 < int(answers[-1].headers["retry-after"]) <= 61
    assert guest.post(LOGIN, data={"name": "Ana", "password": PASSWORD}).status_code == 429
    assert visit(folder).post(LOGIN, content=b"name=" + b"a" * 10_000).status_code == 401


def test_a_password_of_ones_own_frees_no_guesses_at_others(folder: Path) -> None:
    guest = visit(folder)
    answers = []
    for _ in range(3):
        answers += [guest.post(LOGIN, data={"name": "Ana", "password": f"guess {n}"}).status_code for n in range(2)]
        answers.append(guest.post(LOGIN, data={"name": "<b>Ümit</b>", "password": PASSWORD}).status_code)
    assert answers == [401, 401, 303, 401, 401, 303, 401, 429, 429]


# The door, where accounts are known


def test_a_stranger_gets_the_shell_where_accounts_are_known(folder: Path) -> None:
    forged = json.dumps({"name": "Ana", "role": "reviewer"})
    for stranger in (visit_with_accounts(folder), visit_with_accounts(folder, **{TOLD: forged}, cookie="agrikd=x")):
        assert stranger.get("/page").json() is None
        assert stranger.post("/page").status_code == 401
        for path in ("/agrikd/frame/1.jpg", "/media/x.jpg", "/agrikd/", "/_stcore/upload_file/a/b"):
            for host in ("farm.example", "farm.example/static/x?", "farm.example/page#"):
                assert stranger.get(path, headers={"accept": "*/*", "host": host}).status_code == 401, (path, host)
            assert stranger.get(path).headers["location"] == "/"
        with stranger.websocket_connect(
            "ws://farm.example/_stcore/stream", ["streamlit", "token", "another's"]
        ) as link:
            assert link.receive_text() == "streamlit, token"
        for path in ("/agrikd/live", "/live/x"):
            with pytest.raises(WebSocketDisconnect), stranger.websocket_connect(f"ws://farm.example{path}"):
                raise AssertionError("the stream is open")
        evil = {"origin": "https://evil.example"}
        assert stranger.get("/page", headers=evil).status_code == 401
        assert stranger.get(LOGOUT).headers["location"] == "/?left=1" and stranger.get(LOGIN).status_code == 200
    assert visit(folder).get("/page").status_code == 303


def test_handing_in_a_cookie(folder: Path) -> None:
    held, guest = Access(folder), visit_with_accounts(folder)
    for wrong in ("", "x", held.cookie("Ana")[:-4] + "AAAA", "a" * 10_000):
        answer = guest.post(ENTER, content=wrong)
        assert answer.status_code == 401 and "set-cookie" not in answer.headers
    assert guest.get(ENTER).status_code == 403
    assert guest.post(ENTER, content=held.cookie("Ana"), headers={"origin": "https://evil.example"}).status_code == 403
    came = guest.post(ENTER, content=held.cookie("Ana"))
    assert came.status_code == 204 and {"HttpOnly", "SameSite=strict"} <= set(came.headers["set-cookie"].split("; "))
    assert guest.get("/page").json() == {"name": "Ana", "role": "reviewer"}
    with guest.websocket_connect("ws://farm.example/agrikd/live") as link:
        assert link.receive_text() == "reviewer"


@pytest.mark.parametrize("way", ["another role", "signed out"])
def test_a_stream_ends_with_its_visitors_cookie(tmp_path: Path, way: str) -> None:
    held, seen = Access(tmp_path), []
    held.put(ANA, None, "reviewer")
    cookie = held.cookie(ANA)
    headers = [(b"host", b"farm.example"), (b"cookie", f"agrikd={cookie}".encode())]

    async def streams(scope: Any, receive: Any, send: Any) -> None:
        seen.append((await receive())["type"])
        if way == "another role":
            held.put(ANA, None, "viewer")
        else:
            tab = TestClient(door, "http://farm.example", follow_redirects=False, cookies={"agrikd": cookie})
            assert tab.get(LOGOUT).status_code == 303
        seen.append((await receive())["type"])

    door = Door(streams, Access(tmp_path), PAGE, _words)

    async def heard() -> dict[str, str]:
        return {"type": "websocket.receive"}

    scope = {"type": "websocket", "path": "/_stcore/stream", "query_string": b"", "headers": headers, "client": None}
    asyncio.run(door(scope, heard, heard))
    assert seen == ["websocket.receive", "websocket.disconnect"]
