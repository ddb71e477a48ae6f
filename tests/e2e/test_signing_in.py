"""Accounts of an organisation: its provider says who somebody is, the names here say what he may."""

from __future__ import annotations

import contextlib
import http.client
import json
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import pytest
from app_kit import PAGES, Field, answers, chromium, field, free_port
from oidc_kit import Provider
from playwright.sync_api import BrowserContext, Page, sync_playwright
from serve_kit import until
from streamlit.proto.BackMsg_pb2 import BackMsg
from streamlit.proto.ForwardMsg_pb2 import ForwardMsg
from websockets.exceptions import ConnectionClosed, InvalidStatus
from websockets.sync.client import ClientConnection, connect

from agrikd import access
from agrikd.access import Access
from agrikd.door import ENTER, LOGIN

PASSWORD = "three green leaves"
ELSEWHERE = "127.0.0.2"
"""Leads here, and is no name by which this machine is asked from itself."""
ANA, VIC, BO, LATE = "ana@farm.example", "vic@farm.example", "bo@farm.example", "late@farm.example"
STRANGER = "<img src=x onerror=alert(1)>@evil.example"
ACCOUNTS: dict[str, dict[str, Any]] = {
    "Ana": {"email": "Ana@Farm.example", "email_verified": True},
    "Vic": {"email": VIC, "email_verified": True},
    "Stranger": {"email": STRANGER, "email_verified": True},
    "Pretender": {"email": ANA, "email_verified": False},
    "No address": {},
    "Unsaid": {"email": ANA},
    "Late": {"email": LATE, "email_verified": True, "iat": int(time.time()) - 3000},
}


@dataclass
class Farm:
    field: Field
    provider: Provider
    port: int

    @property
    def url(self) -> str:
        return f"http://{ELSEWHERE}:{self.port}"

    @property
    def access(self) -> Access:
        return Access(self.field.folder)


@pytest.fixture(scope="module")
def farm(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Farm]:
    """With an app that listens to all, and in whose working folder other secrets lie."""
    port, folder = free_port(), tmp_path_factory.mktemp("s")
    provider = Provider(f"http://{ELSEWHERE}:{port}/oauth2callback", ACCOUNTS)
    with field(folder) as made, provider.running():
        one = Farm(made, provider, port)
        for name, role in ((ANA, "reviewer"), (VIC, "viewer"), (BO, "viewer"), (LATE, "viewer")):
            one.access.put(name, None, role)  # type: ignore[arg-type]
        one.access.put("Rosa", PASSWORD, "viewer")
        provider.secrets_to(folder)
        other = tmp_path_factory.mktemp("w")
        (other / ".streamlit").mkdir()
        (other / ".streamlit" / "secrets.toml").write_text("[auth]\nredirect_uri = 'http://evil.example'\n")
        words = [sys.executable, "-m", "agrikd", "app", str(folder), "--host", "0.0.0.0", "--port", str(port)]
        process = subprocess.Popen(words, cwd=other, stderr=subprocess.DEVNULL, stdout=subprocess.DEVNULL)
        until(lambda: answers(port) or process.poll() is not None, 60)
        assert process.poll() is None
        yield one
        process.terminate()
        process.wait(10)


@contextlib.contextmanager
def browsing() -> Iterator[BrowserContext]:
    with sync_playwright() as started, chromium(started) as browser:
        one = browser.new_context(locale="en")
        one.set_default_timeout(30_000)
        yield one


def sign_in(farm: Farm, page: Page, account: str) -> None:
    page.goto(farm.url)
    page.get_by_role("button", name="Sign in with your account").click()
    page.get_by_role("link", name=account).click()


def ask(farm: Farm, method: str, path: str, body: bytes = b"", **headers: str) -> tuple[int, bytes]:
    """As no browser would: a path goes out as it is."""
    link = http.client.HTTPConnection("127.0.0.1", farm.port, timeout=20)
    with contextlib.closing(link):
        link.request(method, path, body, {"Host": f"{ELSEWHERE}:{farm.port}", **headers})
        said = link.getresponse()
        return said.status, said.read()


@pytest.mark.parametrize(("account", "name"), [("Ana", ANA), ("Vic", VIC)])
def test_who_is_known_sees_live_pictures_and_may_what_his_role_says(farm: Farm, account: str, name: str) -> None:
    with browsing() as context:
        page = context.new_page()
        sign_in(farm, page, account)
        page.get_by_text(f"Signed in as {name}").wait_for()
        page.locator(".state", has_text="LIVE").wait_for()
        until(lambda: int(page.locator(".live").get_attribute("data-painted") or 0) > 5, 30)
        assert page.get_by_role("button", name="What is it really?").is_visible() == (name == ANA)
        assert page.evaluate("fetch('/agrikd/frame/7.jpg').then((one) => one.status)") == 200
        kept = {one["name"]: one for one in context.cookies()}["agrikd"]
        assert (kept["httpOnly"], kept["sameSite"]) == (True, "Strict")
        page.goto(f"{farm.url}/review")
        page.get_by_text("next season").wait_for()
        judge = page.get_by_role("button", name="I cannot tell")
        judge.wait_for() if name == ANA else page.locator("[data-testid=stHtml] img").wait_for()
        assert judge.count() == (name == ANA)
        page.get_by_role("link", name="Sign out").click()
        page.get_by_role("button", name="Sign in with your account").wait_for()
        assert farm.provider.ended[-1]["post_logout_redirect_uri"] == farm.provider.redirect_uri
        assert not {one["name"] for one in context.cookies()} & {"agrikd", "_streamlit_user"}
        page.goto(f"{farm.url}/devices")
        page.get_by_role("button", name="Sign in with your account").wait_for()


@pytest.mark.parametrize(
    ("account", "said"),
    [
        ("Stranger", f"{STRANGER} is not known here"),
        ("Pretender", "not that this address is yours"),
        ("No address", "not that this address is yours"),
    ],
)
def test_who_is_unknown_is_told_so_and_sees_nothing(farm: Farm, account: str, said: str) -> None:
    dialogs: list[str] = []
    with browsing() as context:
        page = context.new_page()
        page.on("dialog", lambda one: (dialogs.append(one.message), one.dismiss()))
        sign_in(farm, page, account)
        for path in ("", *PAGES):
            page.goto(f"{farm.url}/{path}")
            page.get_by_text(said).wait_for()
            assert not page.locator(".live, img, [data-testid=stSidebar], [data-testid=stTable]").count()
        assert page.evaluate("fetch('/agrikd/frame/7.jpg').then((one) => one.status)") == 401
        page.get_by_role("button", name="Sign out").click()
        page.get_by_role("button", name="Sign in with your account").wait_for()
    assert not dialogs


def test_an_old_word_of_the_provider_lets_nobody_in(farm: Farm) -> None:
    with browsing() as context:
        page = context.new_page()
        sign_in(farm, page, "Late")
        page.wait_for_url(f"{farm.url}/")
        page.get_by_role("button", name="Sign in with your account").wait_for()
        names = {one["name"] for one in context.cookies()}
        assert "_streamlit_user" in names and "agrikd" not in names


def test_a_password_still_does(farm: Farm) -> None:
    with browsing() as context:
        page = context.new_page()
        page.goto(farm.url)
        page.get_by_role("link", name="Come in with a password").click()
        for name, word in ((ANA, ""), (ANA, "no_password"), ("Rosa", PASSWORD)):
            page.get_by_label("Name").fill(name)
            page.get_by_label("Password").fill(word or " ")
            page.get_by_role("button", name="Come in").click()
            if name == ANA:
                page.get_by_text("do not match").wait_for()
        page.get_by_text("Signed in as Rosa").wait_for()
        page.locator(".state", has_text="LIVE").wait_for()
        page.get_by_role("link", name="Sign out").click()
        page.get_by_role("button", name="Sign in with your account").wait_for()


# Raw


SHELL = ("/", "/review", "/devices", "/_stcore/health", "/_stcore/host-config")
CLOSED = (
    *("/agrikd/frame/7.jpg", "/agrikd/anything", "/media/x.jpg", "/component/x/y", "/app/static/x"),
    *("/_stcore/metrics", "/_stcore/script-health-check", "/_stcore/upload_file/a/b", "/_stcore/agent/run", "/a/b"),
)


def test_a_stranger_gets_the_shell_alone(farm: Farm) -> None:
    for path in SHELL:
        assert ask(farm, "GET", path)[0] == 200, path
        assert ask(farm, "POST", path, b"x")[0] == 401, path
    for path in CLOSED:
        assert ask(farm, "GET", path)[0] == 401, path
        assert ask(farm, "GET", path, Host=f"{ELSEWHERE}/static/x?")[0] == 401, path
        assert ask(farm, "GET", path, Accept="text/html")[0] == 303, path
    for method in ("PUT", "DELETE", "POST"):
        assert ask(farm, method, "/_stcore/upload_file/a/b", b"x" * 100)[0] == 401
    for path in ("/static/../agrikd/frame/7.jpg", "/static/..%2f..%2fetc/passwd", "/%2e%2e/live.token"):
        status, said = ask(farm, "GET", path)
        assert b"\xff\xd8" not in said and b"root:" not in said and (status >= 400 or b"<html" in said), path


def test_raw_routes_take_a_good_cookie_and_no_other(farm: Farm, monkeypatch: pytest.MonkeyPatch) -> None:
    farm.access.put(BO, None, "viewer")
    good = farm.access.cookie(BO)
    with monkeypatch.context() as then:
        then.setattr("itsdangerous.timed.time.time", lambda: time.time_ns() / 1e9 - access.LONGEST_S - 5)
        old = farm.access.cookie(BO)
    forged = good[:-4] + ("AAAA" if good[-4:] != "AAAA" else "BBBB")
    assert watches(farm, good) and ask(farm, "GET", "/agrikd/frame/7.jpg", Cookie=f"agrikd={good}")[0] == 200
    assert ask(farm, "POST", ENTER, good.encode())[0] == 204
    farm.access.put("gone@farm.example", None, "reviewer")
    gone = farm.access.cookie("gone@farm.example")
    farm.access.remove("gone@farm.example")
    for cookie in ("", "x", forged, old, gone):
        assert not watches(farm, cookie)
        assert ask(farm, "GET", "/agrikd/frame/7.jpg", Cookie=f"agrikd={cookie}")[0] == 401
        assert ask(farm, "POST", ENTER, cookie.encode())[0] == 401
    assert ask(farm, "POST", ENTER, good.encode(), Origin="https://evil.example")[0] == 403
    assert ask(farm, "GET", ENTER)[0] == 403
    assert ask(farm, "POST", LOGIN, f"name={BO}&password=".encode())[0] == 401


def watches(farm: Farm, cookie: str) -> bool:
    try:
        with watching(farm, cookie) as link:
            return b"\xff\xd8" in shown(link)
    except InvalidStatus as refused:
        assert refused.response.status_code == 403
        return False


def watching(farm: Farm, cookie: str) -> ClientConnection:
    url = f"ws://{ELSEWHERE}:{farm.port}/agrikd/live?camera=row-7"
    return connect(url, proxy=None, additional_headers={"Cookie": f"agrikd={cookie}"})


def shown(link: ClientConnection) -> bytes:
    link.send("next")
    said = link.recv(timeout=10)
    assert isinstance(said, bytes)
    return said


def test_who_is_removed_sees_no_frame_more(farm: Farm) -> None:
    farm.access.put(BO, None, "viewer")
    with watching(farm, farm.access.cookie(BO)) as link:
        assert shown(link) and shown(link)
        farm.access.remove(BO)
        with pytest.raises(ConnectionClosed):
            for _ in range(5):  # one may be on its way
                shown(link)


@dataclass
class Session:
    """Of Streamlit's, over a raw stream."""

    link: ClientConnection
    id: str = ""

    def ask(self, page: str = "", name: str = "", fragment: str = "") -> None:
        """For a run."""
        asked = BackMsg()
        asked.rerun_script.page_script_hash, asked.rerun_script.page_name = page, name
        asked.rerun_script.fragment_id = fragment
        self.link.send(asked.SerializeToString())

    def run(self, page: str = "", name: str = "", fragment: str = "") -> list[ForwardMsg]:
        """All that comes of a run."""
        self.ask(page, name, fragment)
        said = []
        while not said or not said[-1].HasField("script_finished"):
            part = self.link.recv(timeout=20)
            assert isinstance(part, bytes)
            said.append(ForwardMsg.FromString(part))
        self.id = next(one.new_session.initialize.session_id for one in said if one.HasField("new_session"))
        return said


@contextlib.contextmanager
def session(farm: Farm, cookie: str = "", of: str = "", **headers: str) -> Iterator[Session]:
    """of: another session, to go on with."""
    protocols: Any = ["streamlit", "a-token", *([of] if of else [])]
    said = {"Cookie": f"agrikd={cookie}"} if cookie else {}
    url = f"ws://{ELSEWHERE}:{farm.port}/_stcore/stream"
    with connect(url, proxy=None, subprotocols=protocols, additional_headers=said | headers) as link:
        yield Session(link)


def test_no_page_runs_for_a_stranger_however_he_asks(farm: Farm) -> None:
    """Not by the hash of a page or of a part of one, nor by a header, nor in the session of one who was removed."""
    farm.access.put(BO, None, "reviewer")
    with session(farm, farm.access.cookie(BO)) as known:
        said = known.run(name="devices")
        pages = {page.page_script_hash for one in said for page in one.navigation.app_pages}
        parts = {one.auto_rerun.fragment_id for one in said if one.HasField("auto_rerun")}
        assert not strange(said) and len(pages) == len(PAGES) and len(parts) >= 1
        assert all(not strange(known.run(page=one)) for one in pages)
        known.run(name="devices")
        assert known.run(fragment=min(parts))
        farm.access.remove(BO)
        with pytest.raises(ConnectionClosed):
            known.run(name="review")
    own = json.dumps({"name": ANA, "role": "reviewer"})
    for of in ("", known.id):
        with session(farm, of=of, **{"x-agrikd-visitor": own}) as stranger:
            for part in parts:
                stranger.ask(fragment=part)
            with pytest.raises(TimeoutError):
                stranger.link.recv(timeout=2)
            for name in PAGES:
                assert strange(stranger.run(name=name)), name
            for page in pages:
                assert strange(stranger.run(page=page)), page
            assert stranger.id and known.id and stranger.id != known.id


def strange(said: list[ForwardMsg]) -> bool:
    """Whether a run only said how to sign in."""
    kinds = {one.delta.new_element.WhichOneof("type") for one in said if one.HasField("delta")} - {None}
    assert any(one.HasField("script_finished") for one in said) and kinds
    return kinds <= {"selectbox", "button", "html", "heading", "markdown"} and not any(
        one.HasField("navigation") or one.HasField("auto_rerun") for one in said
    )
