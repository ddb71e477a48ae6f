"""The app's server and its first page: what it says in each language, who gets the stream, what a browser paints."""

from __future__ import annotations

import json
import re
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest
import yaml
from field_kit import free_port
from live_kit import Live, StandIn
from streamlit.testing.v1 import AppTest
from typer.testing import CliRunner
from websockets.exceptions import InvalidStatus
from websockets.sync.client import connect

from agrikd import door, site
from agrikd.cli import app as cli
from agrikd.errors import AgriKDError

PAGES = site.pages()


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """Of an agent that stands in, with its live view."""
    one = tmp_path_factory.mktemp("s")
    agent, live = StandIn(one, fps=10), Live(one)
    (one / "live.json").write_text(json.dumps({"url": f"http://127.0.0.1:{live.port}", "cameras": ["row-7"]}))
    with agent.running():
        yield one
    live.stop()


@pytest.fixture(scope="module")
def app(folder: Path) -> Iterator[int]:
    """The port of the app."""
    port = free_port()
    words = [sys.executable, "-m", "agrikd", "app", str(folder), "--port", str(port)]
    process = subprocess.Popen(words, stderr=subprocess.DEVNULL, stdout=subprocess.DEVNULL)
    end = time.monotonic() + 60
    while True:
        try:
            socket.create_connection(("127.0.0.1", port), 1).close()
            break
        except OSError:
            assert process.poll() is None and time.monotonic() < end
            time.sleep(0.1)
    yield port
    process.terminate()
    assert process.wait(10) is not None


def test_all_languages_say_the_same_things() -> None:
    found = {path.stem: yaml.safe_load(path.read_text()) for path in (PAGES / "words").glob("*.yaml")}
    assert {"en", "es"} <= found.keys() and site.languages().keys() == found.keys()
    for language, words in found.items():
        assert words.keys() == found["en"].keys(), language
        for key, text in words.items():
            assert set(re.findall(r"{\w+}", text)) == set(re.findall(r"{\w+}", found["en"][key])), (language, key)


def test_every_text_that_is_asked_for_is_there_and_no_other() -> None:
    code = "".join(
        path.read_text()
        for path in (*PAGES.rglob("*.py"), *PAGES.glob("*.js"), Path(door.__file__), Path(site.__file__))
    )
    page = {f"access.{name}" for name in re.findall(r"{(\w+)}", (PAGES / "door.html").read_text())}
    known = site.words("en").keys() - {"language", "code"}
    asked = set(re.findall(r"""["'](\w+\.\w+)["']""", code)) | (page & known)
    titles = {f"{name}.title" for name in re.findall(r'^    "(\w+)": "', (PAGES / "main.py").read_text(), re.M)}
    assert (
        known - asked <= titles <= known and {one for one in asked if one.partition(".")[0] in _PARTS} <= known | _FILES
    )
    assert len(titles) == 6 and len(asked & known) >= 40


_PARTS = {path.stem for path in (PAGES / "app_pages").glob("*.py")} | {"access"}
_FILES = {path.name for path in PAGES.glob("live.*")}


def test_the_stream_is_for_pages_of_this_server_alone(app: int) -> None:
    with connect(
        f"ws://127.0.0.1:{app}/agrikd/live?camera=row-7", proxy=None, origin=f"http://127.0.0.1:{app}"
    ) as link:  # type: ignore[arg-type]
        link.send("next")
        assert b"\xff\xd8" in link.recv(timeout=10)  # type: ignore[operator]
    here = f"ws://127.0.0.1:{app}/agrikd/live"
    for url, origin in ((here, "https://evil.example"), (here.replace("127.0.0.1", "evil.example"), None)):
        with pytest.raises(InvalidStatus) as refused:  # the second is another's name for this machine
            connect(url, proxy=None, origin=origin, sock=socket.create_connection(("127.0.0.1", app)))  # type: ignore[arg-type]
        assert refused.value.response.status_code == 403


def test_scripts_come_packed(app: int) -> None:
    """A poor link has 3 MB to carry else before it sees anything."""
    with httpx.Client(base_url=f"http://127.0.0.1:{app}") as client:
        (script,) = re.findall(r'src="\./(static/js/index[^"]+\.js)"', client.get("/").text)
        said = client.get(f"/{script}")
    assert said.headers["content-encoding"] == "gzip" and int(said.num_bytes_downloaded) < 0.5 * len(said.content)


def test_a_label_with_a_long_note_arrives(folder: Path) -> None:
    label = {"key": "click-0001", "frame": 5, "label": "rust", "who": "Ana", "note": "by the road, " * 100}
    assert site.Field(folder).call("POST", "/label", label).json() == {"id": 7}
    with pytest.raises(AgriKDError, match="not in the records"):
        site.Field(folder).call("POST", "/label", {**label, "frame": 5000})


def test_another_agent_at_its_address_is_said(folder: Path, tmp_path: Path) -> None:
    (tmp_path / "live.json").write_text((folder / "live.json").read_text())
    (tmp_path / "live.token").write_text("a token of this agent alone")
    with pytest.raises(
        AgriKDError, match=r"(?s)another agent seems to answer at http://127.*agent\.yaml, as in live: {"
    ):
        site.Field(tmp_path).call("GET", "/status")


def test_a_folder_without_an_agent_is_said_in_words(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(site.FIELD, str(tmp_path))
    found = AppTest.from_file(str(PAGES / "main.py"), default_timeout=30).run()
    assert not found.exception and "agrikd agent" in found.error[0].value


# What `agrikd app` says before it serves


@pytest.fixture
def served(monkeypatch: pytest.MonkeyPatch) -> list[object]:
    """What was served to nobody: the server's options."""
    found: list[object] = []
    monkeypatch.setattr("uvicorn.run", lambda app, **options: found.append(options))
    monkeypatch.setattr(site, "made", lambda: None)
    monkeypatch.setenv(site.FIELD, "")
    return found


def test_it_says_where_to_look_and_that_no_agent_has_looked(folder: Path, tmp_path: Path, served: list[object]) -> None:
    port = free_port()
    done = CliRunner().invoke(cli, ["app", str(folder), "--port", str(port)])
    assert done.stderr == f"open http://127.0.0.1:{port} (Ctrl-C ends it)\n" and done.exit_code == 0
    done = CliRunner().invoke(cli, ["app", str(tmp_path), "--port", str(port)])
    assert "no agent has looked here yet" in done.stderr and f"open http://127.0.0.1:{port}" in done.stderr
    assert len(served) == 2


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["nowhere"], "nowhere: there is no such folder"),
        (["file"], "file: is a file"),
        ([".", "--port", "99999"], "65535"),
        ([".", "--cert", "no.pem", "--key", "file"], "no.pem: there is no such file"),
        ([".", "--cert", "file", "--key", "file"], "file and file: are no certificate and its key"),
    ],
)
def test_what_it_refuses(
    words: list[str], said: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, served: list[object]
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("file").write_text("no PEM")
    done = CliRunner().invoke(cli, ["app", *words])
    assert done.exit_code == 2 and said in done.stderr and "open" not in done.stderr and not served


@pytest.mark.parametrize("words", [["app", "."], ["serve", "--hub", "hub", "--token-file", "token"]])
def test_a_port_that_is_taken(
    words: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, served: list[object]
) -> None:
    monkeypatch.chdir(tmp_path)
    with socket.create_server(("127.0.0.1", 0)) as other:
        port = other.getsockname()[1]
        done = CliRunner().invoke(cli, [*words, "--port", str(port)])
    assert done.exit_code == 2 and f"port {port} of 127.0.0.1: is taken" in done.stderr and "--port" in done.stderr
    assert "http:" not in done.stderr and not served
