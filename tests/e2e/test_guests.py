"""Who comes from elsewhere: a password first, on pages and on raw routes; and a viewer changes nothing."""

from __future__ import annotations

import contextlib
import http.client
import subprocess
import sys
from collections.abc import Iterator

import pytest
from app_kit import Field, answers, chromium, field, free_port
from playwright.sync_api import Page, sync_playwright
from serve_kit import until
from websockets.exceptions import InvalidStatus
from websockets.sync.client import connect

from agrikd.access import Access
from agrikd.door import LOGIN

PASSWORD = "three green leaves"
VIEWER, REVIEWER = "<img src=x onerror=alert(1)>", "Ana"
ELSEWHERE = "127.0.0.2"
"""Leads here, and is no name by which this machine is asked from itself."""


@pytest.fixture(scope="module")
def farm(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Field]:
    with field(tmp_path_factory.mktemp("s")) as made:
        Access(made.folder).put(REVIEWER, PASSWORD, "reviewer")
        Access(made.folder).put(VIEWER, PASSWORD, "viewer")
        yield made


@pytest.fixture(scope="module")
def port(farm: Field) -> Iterator[int]:
    """Of an app that listens to all."""
    chosen = free_port()
    words = [sys.executable, "-m", "agrikd", "app", str(farm.folder), "--host", "0.0.0.0", "--port", str(chosen)]
    process = subprocess.Popen(words, stderr=subprocess.DEVNULL, stdout=subprocess.DEVNULL)
    until(lambda: answers(chosen) or process.poll() is not None, 60)
    yield chosen
    process.terminate()
    assert process.wait(10) is not None


def ask(port: int, method: str, path: str, body: bytes = b"", **headers: str) -> tuple[int, bytes]:
    """As no browser would: a path goes out as it is."""
    link = http.client.HTTPConnection("127.0.0.1", port, timeout=20)
    with contextlib.closing(link):
        link.request(method, path, body, headers)
        said = link.getresponse()
        return said.status, said.read()


ROUTES = [
    *("/", "/review", "/agrikd/frame/1.jpg", "/_stcore/health", "/_stcore/host-config", "/_stcore/metrics"),
    *("/media/x.jpg", "/static/js/x.js", "/component/x/y", "/app/static/x", "/agrikd/anything", "/openapi.json"),
]


def test_a_stranger_gets_the_door_and_nothing_else(port: int) -> None:
    for path in ROUTES:
        assert ask(port, "GET", path, Host=f"farm.example:{port}")[0] == 401, path
        assert ask(port, "GET", path, Host=f"farm.example:{port}", Accept="text/html")[0] == 303, path
        assert ask(port, "POST", path, b"x", Host=f"{ELSEWHERE}:{port}")[0] == 401, path
    for method in ("PUT", "DELETE"):
        assert ask(port, method, "/_stcore/upload_file/a/b", b"x" * 100, Host="farm.example")[0] == 401
    for path in ("/agrikd/live", "/_stcore/stream"):
        with pytest.raises(InvalidStatus) as refused:
            connect(f"ws://{ELSEWHERE}:{port}{path}", proxy=None)
        assert refused.value.response.status_code == 403
    assert ask(port, "GET", LOGIN, Host="farm.example")[0] == 200


def test_no_path_leads_out_and_nothing_too_large_comes_in(port: int) -> None:
    """From this machine itself, to which all is open."""
    for path in [
        *("/agrikd/frame/../../live.token", "/agrikd/frame/..%2f..%2flive.token.jpg", "/agrikd/frame/-1.jpg"),
        *("/media/..%2f..%2flive.token", "/component/..%2f..%2fetc/passwd", "/static/..%2f..%2f..%2fetc/passwd"),
        *("/app/static/..%2f..%2flive.token", "/..%2f..%2f..%2fetc/passwd", "//etc/passwd", "/%2e%2e/live.token"),
    ]:
        status, said = ask(port, "GET", path)
        assert b"root:" not in said and b"a-token-for-tests" not in said and (status >= 400 or b"<html" in said), path
    for path in ("/agrikd/label", "/agrikd/rollback", "/label", "/agrikd/frame/1.jpg"):
        assert ask(port, "POST", path, b"{}")[0] in (404, 405), path
    large = {"Content-Length": str(30 * 2**20), "Content-Type": "multipart/form-data; boundary=x"}
    assert ask(port, "PUT", "/_stcore/upload_file/a/b", b"", **large)[0] in (400, 401, 403, 413)


def came_in(page: Page, port: int, name: str) -> None:
    page.set_default_timeout(30_000)
    page.goto(f"http://{ELSEWHERE}:{port}/?language=en")
    assert page.url.endswith(LOGIN)
    for password in ("wrong wrong", PASSWORD):
        page.get_by_label("Name").fill(name)
        page.get_by_label("Password").fill(password)
        page.get_by_role("button", name="Come in").click()
        if password != PASSWORD:
            page.get_by_text("do not match").wait_for()
    page.get_by_text("Signed in as").wait_for()


def test_who_asked_for_a_page_comes_to_it(port: int) -> None:
    with sync_playwright() as started, chromium(started) as browser:
        page = browser.new_context(locale="en").new_page()
        page.set_default_timeout(30_000)
        page.goto(f"http://{ELSEWHERE}:{port}/review")
        page.get_by_label("Name").fill(VIEWER)
        page.get_by_label("Password").fill(PASSWORD)
        page.get_by_role("button", name="Come in").click()
        page.get_by_text("next season").wait_for()
        assert page.url.endswith("/review")


@pytest.mark.parametrize("name", [VIEWER, REVIEWER])
def test_a_viewer_looks_and_a_reviewer_judges(port: int, name: str) -> None:
    dialogs: list[str] = []
    with sync_playwright() as started, chromium(started) as browser:
        page = browser.new_context(locale="en").new_page()
        page.on("dialog", lambda one: (dialogs.append(one.message), one.dismiss()))
        came_in(page, port, name)
        page.locator(".state", has_text="LIVE").wait_for()
        freezes = page.get_by_role("button", name="What is it really?").is_visible()
        page.goto(f"http://{ELSEWHERE}:{port}/review")
        page.locator("[data-testid=stHtml] img").wait_for()
        page.get_by_text("next season").wait_for()
        judge = page.get_by_role("button", name="I cannot tell")
        if name == REVIEWER:
            judge.wait_for()
        judges = judge.is_visible()  # of a viewer: after what stands below the buttons
        assert (freezes, judges) == (name == REVIEWER, name == REVIEWER)
        assert page.get_by_text("You may look").is_visible() == (name == VIEWER)
        page.get_by_text("Sign out").click()
        page.get_by_label("Password").wait_for()
    assert not dialogs
