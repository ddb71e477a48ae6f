"""Downloads against a server that drops, lies and attacks: what is wrong is said, and no half dataset is left."""

from __future__ import annotations

import hashlib
import io
import json
import random
import shutil
import signal
import stat
import subprocess
import sys
import tarfile
import threading
import zipfile
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
import typer
import yaml
from typer.testing import CliRunner

from agrikd.cli import app
from agrikd.cli import data as verbs
from agrikd.data import download, fetch, unpack
from agrikd.data.cards import Card
from agrikd.errors import InputError, StorageError

Answer = Callable[[BaseHTTPRequestHandler], None]


# A dataset, and archives of it.


def photos(seed: int = 0, count: int = 6, size: int = 40_000) -> dict[str, bytes]:
    """They begin as BMP files do, which is all that `init` looks at."""
    rng = random.Random(seed)
    return {f"leaves/{('rust', 'healthy')[n % 2]}/{n}.jpg": b"BM" + rng.randbytes(size - 2) for n in range(count)}


def zipped(files: dict[str, bytes], compress: int = zipfile.ZIP_STORED) -> bytes:
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w", compress) as archive:
        for name, data in files.items():
            archive.writestr(zipfile.ZipInfo(name), data, compress)
    return out.getvalue()


def tarred(files: dict[str, bytes], mode: str = "w:gz", **headers: str) -> bytes:
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode=mode, format=tarfile.PAX_FORMAT) as archive:  # type: ignore[call-overload]
        for name, data in files.items():
            info = tarfile.TarInfo(name)
            info.size, info.pax_headers = len(data), headers
            info.type = tarfile.DIRTYPE if name.endswith("/") else tarfile.REGTYPE
            archive.addfile(info, io.BytesIO(data))
    return out.getvalue()


def sha256(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


PHOTOS = photos()
ZIP = zipped(PHOTOS)


# A server whose every answer the test writes.


class Site:
    """Answers to GET by path: a list is used up from the front, its last answer stays."""

    def __init__(self, address: str) -> None:
        self.address = address
        self.answers: dict[str, list[Answer]] = {}
        self.asked: list[tuple[str, str]] = []
        """(path, Range or "") of every request."""

    def url(self, name: str) -> str:
        return f"{self.address}/{name}"

    def serve(self, name: str, *answers: Answer) -> str:
        self.answers[f"/{name}"] = list(answers)
        return self.url(name)


class Quiet(ThreadingHTTPServer):
    daemon_threads = True

    def handle_error(self, *_: Any) -> None:
        """A client that hangs up is part of the test."""


@pytest.fixture
def site() -> Iterator[Site]:
    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            made.asked.append((self.path, self.headers.get("Range", "")))
            answers = made.answers.get(self.path)
            if not answers:
                self.send_error(404)
                return
            (answers.pop(0) if len(answers) > 1 else answers[0])(self)

        def log_message(self, *_: object) -> None:
            pass

    server = Quiet(("127.0.0.1", 0), Handler)
    made = Site(f"http://127.0.0.1:{server.server_address[1]}")
    threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True).start()
    yield made
    server.shutdown()
    server.server_close()


def body(data: bytes, **how: Any) -> Answer:
    """The file, as a server that knows Range sends it. cut: bytes after which it hangs up. length: what it claims
    (None: nothing). etag: the version; "" names none. ranges, if_range: whether it heeds those. kind: content type."""
    cut, etag = how.get("cut"), how.get("etag", '"1"')

    def answer(handler: BaseHTTPRequestHandler) -> None:
        asked = handler.headers.get("Range", "")
        same = handler.headers.get("If-Range", etag) == etag or not how.get("if_range", True)
        start = int(asked[6:-1]) if asked and same and how.get("ranges", True) else 0
        if start and start >= len(data):
            handler.send_error(416)
            return
        handler.send_response(206 if start else 200)
        length = how.get("length", len(data) - start)
        headers = {"Content-Type": how.get("kind", "application/zip"), "ETag": etag}
        headers |= {"Content-Length": str(length)} if length is not None else {}
        headers |= {"Content-Range": f"bytes {start}-{len(data) - 1}/{len(data)}"} if start else {}
        for key, value in headers.items():
            handler.send_header(key, value)
        handler.end_headers()
        handler.wfile.write(data[start:][:cut])

    return answer


def status(code: int) -> Answer:
    return lambda handler: handler.send_error(code)


def sends_to(url: str) -> Answer:
    def answer(handler: BaseHTTPRequestHandler) -> None:
        handler.send_response(302)
        handler.send_header("Location", url)
        handler.end_headers()

    return answer


def endless(handler: BaseHTTPRequestHandler) -> None:
    handler.send_response(200)
    handler.end_headers()
    handler.wfile.write(ZIP)
    while True:
        handler.wfile.write(bytes(1 << 16))


# What is fetched, and what is left.


def card(url: str, **item: Any) -> Card:
    """A card of one archive."""
    downloads = [{"url": url, "file": "a.zip", **item}]
    return Card.model_validate(
        {
            "name": "leaves",
            "task": "classification",
            "folder": "leaves",
            "source": "a test",
            "licence": "CC BY 4.0",
            "cite": "Nobody 2026",
            "cautions": ["made of noise"],
            "start": "leaves",
            "downloads": downloads,
        }
    )


class Scene:
    """A place to download to, and patience that takes no time."""

    def __init__(self, here: Path) -> None:
        self.folder, self.store = here / "leaves", here / "leaves.downloads"
        self.waits: list[float] = []

    def get(self, card: Card, bounds: unpack.Limits | None = None, **limits: Any) -> download.Receipt:
        patience = {"timeout_s": 20, "wait": self.waits.append, "worth_bytes": 1, **limits}
        return download.get(download.plan(card, self.folder), fetch.Limits(**patience), bounds)

    def refuses(self, card: Card, *words: str, error: type[Exception] = InputError, **limits: Any) -> str:
        """Says all the words and a way out; no dataset, nothing half unpacked, nothing outside the store."""
        with pytest.raises(error) as refused:
            self.get(card, **limits)
        said = str(refused.value)
        for word in (*words, "→"):
            assert word in said, f"{word!r} is not in:\n{said}"
        assert not self.folder.exists()
        assert [path.name for path in self.folder.parent.iterdir()] == [self.store.name]
        return said

    def stored(self) -> set[str]:
        return {path.name for path in self.store.iterdir() if path.name != ".lock"}

    def check(self, expected: dict[str, bytes] = PHOTOS) -> None:
        found = {str(p.relative_to(self.folder)): p.read_bytes() for p in self.folder.rglob("*") if p.is_file()}
        assert json.loads(found.pop(download.RECORD))["card"] == "leaves"
        assert found == expected
        assert {path.name for path in self.folder.parent.iterdir()} == {self.folder.name, self.store.name}
        assert not [name for name in self.stored() if name.endswith((".part", ".version"))]


@pytest.fixture
def scene(tmp_path: Path) -> Scene:
    here = tmp_path / "here"
    here.mkdir()
    return Scene(here)


# What goes well.


def test_a_set_is_downloaded_checked_and_unpacked(scene: Scene, site: Site) -> None:
    url = site.serve("a.zip", body(ZIP))
    got = scene.get(card(url, sha256=sha256(ZIP), md5=hashlib.md5(ZIP).hexdigest(), size_bytes=len(ZIP)))
    scene.check()
    assert got.files == 6 and got.bytes == 240_000 and got.downloads[0].sha256 == sha256(ZIP)
    assert not scene.waits and scene.stored() == {"a.zip", download.RECORD}
    assert (scene.folder.stat().st_mode & 0o777) == 0o755


def test_several_files_into_their_places(scene: Scene, site: Site) -> None:
    table = b"Filename,Species\n0.jpg,rust\n"
    made = card(site.serve("a.zip", body(ZIP)), into="images").model_dump()
    labels = {"url": site.serve("l.csv", body(table, kind="text/plain")), "file": "labels.csv", "unpack": "none"}
    packed = {"url": site.serve("b.tgz", body(tarred({"more/1.jpg": b"1"}))), "file": "b.tgz", "unpack": "tar"}
    scene.get(Card.model_validate({**made, "downloads": [*made["downloads"], labels, packed]}))
    moved = {f"images/{name}": data for name, data in PHOTOS.items()}
    scene.check({**moved, "labels.csv": table, "more/1.jpg": b"1"})


def test_a_set_that_is_there_is_left_alone(scene: Scene, site: Site) -> None:
    made = card(site.serve("a.zip", body(ZIP)))
    first = scene.get(made)
    assert scene.get(made) == first and len(site.asked) == 1


@pytest.mark.parametrize("mode", ["w", "w:gz", "w:bz2", "w:xz"])
def test_a_tar_of_every_compression(scene: Scene, site: Site, mode: str) -> None:
    scene.get(card(site.serve("a", body(tarred({"./": b"", **PHOTOS}, mode))), unpack="tar"))
    scene.check()


def test_what_a_mac_adds_is_left_out(scene: Scene, site: Site) -> None:
    litter = {"__MACOSX/leaves/._0.jpg": b"x", "leaves/.DS_Store": b"x"}
    scene.get(card(site.serve("a.zip", body(zipped({**PHOTOS, **litter})))))
    scene.check()


def test_redirects_are_followed_and_keep_the_range(scene: Scene, site: Site) -> None:
    site.serve("real", body(ZIP, cut=70_000), body(ZIP))
    site.serve("b", sends_to("/real"))
    scene.get(card(site.serve("a.zip", sends_to(site.url("b")))))
    scene.check()
    assert site.asked[-1] == ("/real", "bytes=70000-")


# Connections that drop.


@pytest.mark.parametrize("seed", range(6))
@pytest.mark.parametrize("said", [True, False], ids=["length-said", "length-on-the-card"])
def test_dropped_at_random_bytes_it_goes_on_to_the_right_ones(scene: Scene, site: Site, seed: int, said: bool) -> None:
    rng = random.Random(seed)
    how = {} if said else {"length": None}
    drops = [body(ZIP, cut=rng.randrange(1, 60_000), **how) for _ in range(3)]
    refusals = [status(rng.choice(fetch._AGAIN)) for _ in range(2)]
    answers = rng.sample([*drops, *refusals], 5)
    scene.get(card(site.serve("a.zip", *answers, body(ZIP)), size_bytes=len(ZIP), sha256=sha256(ZIP)))
    scene.check()
    starts = [int(asked[6:-1] or 0) if asked else 0 for _, asked in site.asked]
    assert starts == sorted(starts) and starts[-1] > 0
    assert len(scene.waits) == 5


def test_it_gives_up_after_tries_that_bring_nothing_and_goes_on_later(scene: Scene, site: Site) -> None:
    url = site.serve("a.zip", body(ZIP, cut=100_000), body(ZIP, cut=0))
    made = card(url, size_bytes=len(ZIP))
    scene.refuses(
        made, url, f"ended at byte 100,000 of {len(ZIP):,}", "4 times in a row", f"{scene.store}/a.zip", tries=4
    )
    assert scene.waits == [1, 1, 2, 4]
    assert scene.stored() == {"a.zip.part", ".a.zip.part.version"}
    site.serve("a.zip", body(ZIP))
    scene.get(made)
    scene.check()
    assert site.asked[-1] == ("/a.zip", "bytes=100000-")


def test_tries_that_bring_next_to_nothing_do_not_go_on_for_ever(scene: Scene, site: Site) -> None:
    url = site.serve("a.zip", body(ZIP, cut=10))
    scene.refuses(card(url), "3 times in a row", tries=3, worth_bytes=1000)
    assert len(site.asked) == 3


def test_a_server_that_falls_silent_is_asked_again(scene: Scene, site: Site) -> None:
    over = threading.Event()

    def silent(handler: BaseHTTPRequestHandler) -> None:
        body(ZIP, cut=100_000)(handler)
        over.wait(20)

    scene.get(card(site.serve("a.zip", silent, body(ZIP)), sha256=sha256(ZIP)), timeout_s=0.2)
    over.set()
    scene.check()
    assert site.asked[-1] == ("/a.zip", f"bytes={1 << 16}-")


def test_a_server_without_range_begins_anew(scene: Scene, site: Site) -> None:
    scene.get(card(site.serve("a.zip", body(ZIP, cut=90_000), body(ZIP, ranges=False)), sha256=sha256(ZIP)))
    scene.check()


def test_a_server_that_names_no_version_is_not_gone_on_from(scene: Scene, site: Site) -> None:
    scene.get(card(site.serve("a.zip", body(ZIP, cut=90_000, etag=""), body(ZIP, etag="")), sha256=sha256(ZIP)))
    scene.check()
    assert [asked for _, asked in site.asked] == ["", ""]


@pytest.mark.parametrize("if_range", [True, False], ids=["heeds-if-range", "ignores-if-range"])
def test_a_file_that_changes_between_tries_is_never_mixed(scene: Scene, site: Site, if_range: bool) -> None:
    files = photos(seed=1)
    new = zipped(files)
    second = body(new, etag='"2"', if_range=if_range)
    scene.get(card(site.serve("a.zip", body(ZIP, cut=90_000), second)))
    scene.check(files)


@pytest.mark.parametrize("wrong", ["bytes 5-9/10", "", "bytes x-y/z"])
def test_a_range_that_was_not_asked_for_is_not_appended(scene: Scene, site: Site, wrong: str) -> None:
    def other(handler: BaseHTTPRequestHandler) -> None:
        handler.send_response(206)
        handler.send_header("Content-Range", wrong)
        handler.end_headers()
        handler.wfile.write(b"other")

    scene.get(card(site.serve("a.zip", body(ZIP, cut=90_000), other, body(ZIP)), sha256=sha256(ZIP)))
    scene.check()


def test_a_part_that_is_longer_than_the_file_is_begun_anew(scene: Scene, site: Site) -> None:
    scene.store.mkdir()
    (scene.store / "a.zip.part").write_bytes(ZIP + b"more")
    (scene.store / ".a.zip.part.version").write_text('"1"')
    scene.get(card(site.serve("a.zip", body(ZIP)), sha256=sha256(ZIP)))
    scene.check()


# Servers that lie.


def test_a_length_that_is_too_long(scene: Scene, site: Site) -> None:
    url = site.serve("a.zip", body(ZIP, length=len(ZIP) + 1000))
    scene.refuses(card(url), url, "ended at byte", "6 times in a row", f"{scene.store}/a.zip")


def test_a_length_that_is_too_short_gives_an_archive_that_is_put_aside(scene: Scene, site: Site) -> None:
    made = card(site.serve("a.zip", body(ZIP, length=100_000), body(ZIP)))
    scene.refuses(made, f"{scene.store}/a.zip", "is damaged", "put aside as a.zip.wrong", "the same command")
    assert scene.stored() == {"a.zip.wrong"}
    scene.get(made)
    scene.check()


@pytest.mark.parametrize("by", [-1, 1])
def test_a_length_that_is_not_the_card_s(scene: Scene, site: Site, by: int) -> None:
    url = site.serve("a.zip", body(ZIP))
    scene.refuses(card(url, size_bytes=len(ZIP) + by), url, f"is {len(ZIP):,} bytes long, the card says")
    assert len(site.asked) == 1


@pytest.mark.parametrize("known", [{}, {"size_bytes": len(ZIP)}], ids=["bound", "card"])
def test_data_without_end_are_stopped(scene: Scene, site: Site, known: dict[str, int]) -> None:
    url = site.serve("a.zip", endless)
    most = known.get("size_bytes", 1 << 20)
    scene.refuses(card(url, **known), url, f"sends more than {most:,} bytes", max_bytes=1 << 20)
    assert scene.stored() == set()


def test_a_file_larger_than_the_bound_is_not_begun(scene: Scene, site: Site) -> None:
    url = site.serve("a.zip", body(ZIP))
    scene.refuses(card(url), url, f"is {len(ZIP):,} bytes long, at most 1,000", max_bytes=1000)
    assert scene.stored() == set()


@pytest.mark.parametrize("kind", ["text/html; charset=utf-8", "application/zip", "application/octet-stream"])
@pytest.mark.parametrize("unpacked", ["zip", "none"])
def test_a_web_page_is_no_archive(scene: Scene, site: Site, kind: str, unpacked: str) -> None:
    page = b"\n<!DOCTYPE html><html><body>Quota exceeded</body></html>" + b" " * 400
    url = site.serve("a.zip", body(page, kind=kind))
    scene.refuses(card(url, unpack=unpacked), url, "a web page, not the file", f"put it at {scene.store}/a.zip")
    assert scene.stored() == set() and len(site.asked) == 1


@pytest.mark.parametrize("unpacked", ["zip", "tar"])
def test_something_else_is_no_archive(scene: Scene, site: Site, unpacked: str) -> None:
    url = site.serve("a.zip", body(b"%PDF-1.7" + bytes(1000)))
    scene.refuses(card(url, unpack=unpacked), url, f"does not begin as a {unpacked} file does")


def test_redirects_in_a_loop(scene: Scene, site: Site) -> None:
    url = site.serve("a.zip", sends_to("/b"))
    site.serve("b", sends_to("/a.zip"))
    scene.refuses(card(url), url, "redirects without end")
    assert len(site.asked) < 15


def test_redirects_without_end(scene: Scene, site: Site) -> None:
    url = site.serve("a.zip", sends_to("/0"))
    for number in range(20):
        site.serve(str(number), sends_to(f"/{number + 1}"))
    scene.refuses(card(url), url, "redirects without end", redirects=5)
    assert len(site.asked) == 6


@pytest.mark.parametrize("to", ["file:///etc/passwd", "ftp://127.0.0.1/a.zip"])
def test_redirects_to_something_else(scene: Scene, site: Site, to: str) -> None:
    url = site.serve("a.zip", sends_to(to))
    scene.refuses(card(url), url, to, "which is not safe")


@pytest.mark.parametrize(
    ("was", "to", "safe"), [("https", "http", False), ("https", "https", True), ("http", "https", True)]
)
def test_a_redirect_never_leads_from_https_to_less(was: str, to: str, safe: bool) -> None:
    request = fetch.Request(f"{was}://photos.example/a.zip")

    def follow() -> fetch.Request | None:
        return fetch._Redirects(5).redirect_request(request, None, 302, "Found", {}, f"{to}://photos.example/b.zip")

    if safe:
        assert follow() is not None
    else:
        with pytest.raises(fetch._RefusedError, match="not safe"):
            follow()


@pytest.mark.parametrize("code", [401, 403, 404, 410])
def test_a_refusal_is_said_at_once(scene: Scene, site: Site, code: int) -> None:
    url = site.serve("a.zip", status(code))
    scene.refuses(card(url), url, f"answered {code}", f"put it at {scene.store}/a.zip")
    assert len(site.asked) == 1 and not scene.waits


# Sums.


@pytest.mark.parametrize(("sums", "words"), [({"sha256": "0" * 64}, ["sha256"]), ({"md5": "0" * 32}, ["md5"])])
def test_a_wrong_sum_keeps_the_file_aside(scene: Scene, site: Site, sums: dict[str, str], words: list[str]) -> None:
    url = site.serve("a.zip", body(ZIP))
    scene.refuses(card(url, **sums), *words, "the card says 000", "put aside as a.zip.wrong", "the same command")
    assert scene.stored() == {"a.zip.wrong"}
    scene.get(card(url, sha256=sha256(ZIP)))
    scene.check()


def test_all_that_is_wrong_with_a_file_comes_at_once(scene: Scene, site: Site) -> None:
    scene.store.mkdir()
    (scene.store / "a.zip").write_bytes(b"<html>nothing here</html>")
    made = card(site.url("a.zip"), sha256="0" * 64, md5="0" * 32, size_bytes=7)
    scene.refuses(made, "is a web page", "25 bytes long, the card says 7", "has the md5", "has the sha256")
    assert not site.asked


def test_the_first_download_s_sum_is_held_against_the_next(scene: Scene, site: Site) -> None:
    url = site.serve("a.zip", body(ZIP))
    scene.get(card(url))
    shutil.rmtree(scene.folder)
    (scene.store / "a.zip").unlink()
    files = photos(seed=1)
    site.serve("a.zip", body(zipped(files)))
    scene.refuses(card(url), f"at the first download it was {sha256(ZIP)}", f"delete {scene.store}/downloads.json")
    (scene.store / download.RECORD).unlink()
    scene.get(card(url))
    scene.check(files)


def test_a_broken_record_is_said(scene: Scene, site: Site) -> None:
    scene.store.mkdir()
    (scene.store / download.RECORD).write_text('{"card": 1}')
    scene.refuses(card(site.serve("a.zip", body(ZIP))), "downloads.json: is not what agrikd wrote", "delete it")


# Archives that attack.


def special(mode: int, name: str = "leaves/a.jpg", content: bytes = b"/etc/passwd") -> bytes:
    """A zip with one entry that is not a plain file."""
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w") as archive:
        archive.writestr("leaves/0.jpg", b"0")
        info = zipfile.ZipInfo(name)
        info.external_attr = (mode | 0o644) << 16
        archive.writestr(info, content)
    return out.getvalue()


def twice(first: str, second: str) -> bytes:
    """A zip with two entries, which may have one name."""
    name = "x" * len(second.encode())
    return zipped({first: b"1", name: b"2"}).replace(name.encode(), second.encode())


def encrypted() -> bytes:
    data = bytearray(zipped({"a.jpg": b"1"}))
    data[6] |= 1
    data[data.index(b"PK\x01\x02") + 8] |= 1
    return bytes(data)


def spoilt() -> bytes:
    """The third photo's bytes are not what its CRC says."""
    data = bytearray(ZIP)
    data[100_000] ^= 1
    return bytes(data)


BOMB = bytes(8_000_000)
ZIPS = {
    "parent": (zipped({"leaves/0.jpg": b"0", "../evil.jpg": b"1"}), "leads out of the folder"),
    "parent-deep": (zipped({"leaves/../../evil.jpg": b"1"}), "leads out of the folder"),
    "absolute": (zipped({"/tmp/evil.jpg": b"1"}), "is an absolute path"),
    "other-system": (zipped({"C:/evil.jpg": b"1"}), "is an absolute path"),
    "backslash": (zipped({"..\\evil.jpg": b"1"}), "is an absolute path, or one of another system"),
    "symlink": (special(stat.S_IFLNK), "is a link"),
    "fifo": (special(stat.S_IFIFO), "is neither a file nor a folder"),
    "device": (special(stat.S_IFCHR), "is neither a file nor a folder"),
    "capitals": (zipped({"leaves/A.jpg": b"1", "leaves/a.jpg": b"2"}), "capitals aside"),
    "accents": (zipped({"leaves/\u00e9.jpg": b"1", "leaves/e\u0301.jpg": b"2"}), "capitals aside"),
    "twice": (twice("leaves/a.jpg", "leaves/a.jpg"), "stands twice"),
    "below-a-file": (zipped({"leaves": b"1", "leaves/a.jpg": b"2"}), "is damaged"),
    "bomb": (zipped({"a.jpg": BOMB}, zipfile.ZIP_DEFLATED), "unpacks to more than"),
    "encrypted": (encrypted(), "is encrypted"),
    "crc": (spoilt(), "is damaged (Bad CRC-32"),
    "truncated": (ZIP[:-1000], "is damaged (File is not a zip file)"),
    "truncated-middle": (ZIP[:50_000] + ZIP[60_000:], "is damaged"),
    "empty": (zipped({}), "holds no files"),
}


@pytest.mark.parametrize(("archive", "word"), ZIPS.values(), ids=ZIPS)
def test_a_zip_that_is_not_to_be_trusted(scene: Scene, site: Site, archive: bytes, word: str) -> None:
    made = card(site.serve("a.zip", body(archive)))
    scene.refuses(made, f"{scene.store}/a.zip", word, "put aside as a.zip.wrong")
    assert scene.stored() == {"a.zip.wrong"}
    site.serve("a.zip", body(ZIP))
    scene.get(made)
    scene.check()


def member(kind: bytes, name: str = "leaves/a.jpg", target: str = "/etc/passwd") -> bytes:
    """A tar with one member that is not a plain file."""
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w:gz") as archive:
        info = tarfile.TarInfo(name)
        info.type, info.linkname = kind, target
        archive.addfile(info)
    return out.getvalue()


TARS = {
    "parent": (tarred({"../evil.jpg": b"1"}), "leads out of the folder"),
    "absolute": (tarred({"/tmp/evil.jpg": b"1"}), "is an absolute path"),
    "symlink": (member(tarfile.SYMTYPE), "is a link"),
    "symlink-inside": (member(tarfile.SYMTYPE, target="0.jpg"), "is a link"),
    "hardlink": (member(tarfile.LNKTYPE), "is a link"),
    "fifo": (member(tarfile.FIFOTYPE), "is neither a file nor a folder"),
    "device": (member(tarfile.CHRTYPE), "is neither a file nor a folder"),
    "capitals": (tarred({"A.jpg": b"1", "a.jpg": b"2"}), "capitals aside"),
    "bomb": (tarred({"a.jpg": BOMB}), "unpacks to more than"),
    "bomb-in-a-header": (tarred({"a.jpg": b"1"}, comment="0" * len(BOMB)), "unpacks to more than"),
    "truncated": (tarred(PHOTOS)[:-5000], "is damaged"),
    "crc": (tarred(PHOTOS)[:-8] + bytes(8), "is damaged"),
    "bz2": (b"BZh9" + bytes(500), "is damaged"),
}


@pytest.mark.parametrize(("archive", "word"), TARS.values(), ids=TARS)
def test_a_tar_that_is_not_to_be_trusted(scene: Scene, site: Site, archive: bytes, word: str) -> None:
    made = card(site.serve("a.tgz", body(archive, kind="application/gzip")), unpack="tar")
    scene.refuses(made, f"{scene.store}/a.zip", word, "put aside as a.zip.wrong")


def test_a_plain_tar_that_is_cut_is_never_taken_for_whole(tmp_path: Path) -> None:
    """Between two members, within a header, before the block of zeros; or a header of the middle is spoilt."""
    whole = tarred({"a.jpg": b"1" * 600, "b.jpg": b"2"}, "w")
    second = whole.index(b"b.jpg")
    cuts = [whole[:length] for length in (second, second + 100, second + 512, second + 1024)]
    for number, data in enumerate([*cuts, whole[:second] + b"x" + whole[second + 1 :]]):
        archive = tmp_path / f"{number}.tar"
        archive.write_bytes(data)
        with pytest.raises(InputError, match="is damaged"):
            unpack.unpack(archive, "tar", tmp_path, unpack.Limits(), lambda done, total: None)
    (tmp_path / "whole.tar").write_bytes(whole[: second + 1536])
    assert unpack.unpack(tmp_path / "whole.tar", "tar", tmp_path, unpack.Limits(), lambda done, total: None) == (2, 601)


SMALL = photos(count=4, size=60)
SOURCES = {
    "zip": zipped(SMALL),
    "zip-deflate": zipped(SMALL, zipfile.ZIP_DEFLATED),
    "zip-lzma": zipped(SMALL, zipfile.ZIP_LZMA),
    "zip-bz2": zipped(SMALL, zipfile.ZIP_BZIP2),
    "tar": tarred(SMALL, "w", comment="made of noise"),
    "tar-gz": tarred(SMALL, "w:gz"),
    "tar-bz2": tarred(SMALL, "w:bz2"),
    "tar-xz": tarred(SMALL, "w:xz"),
}


@pytest.mark.parametrize(("name", "source"), SOURCES.items(), ids=SOURCES)
def test_archives_with_random_damage_are_read_or_refused(tmp_path: Path, name: str, source: bytes) -> None:
    rng = random.Random(name)
    refused = 0
    for number in range(60):
        data = bytearray(source)
        for _ in range(rng.randrange(1, 5)):
            data[rng.randrange(len(data))] = rng.randrange(256)
        archive, into = tmp_path / "archive", tmp_path / "around" / str(number)
        archive.write_bytes(data[: rng.choice([len(data), rng.randrange(1, len(data))])])
        into.mkdir(parents=True)
        try:
            unpack.unpack(archive, "zip" if name.startswith("zip") else "tar", into, unpack.Limits(), lambda *_: None)
        except InputError as error:
            assert str(archive) in str(error)
            refused += 1
        assert {path.name for path in tmp_path.iterdir()} == {"archive", "around"}
        assert len(list(into.parent.iterdir())) == number + 1
    assert refused > 20


def test_the_bomb_is_a_thousand_to_one() -> None:
    packed = ZIPS["bomb"][0]
    assert 900 < len(BOMB) / len(packed) < 1100


def test_what_a_header_says_of_its_size_is_not_trusted(
    scene: Scene, site: Site, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The bytes that come count, where the list of contents says that there are few."""
    monkeypatch.setattr(unpack, "_check", lambda *_: 1)
    scene.refuses(card(site.serve("a.zip", body(ZIPS["bomb"][0]))), "unpacks to more than")


def test_all_bad_names_come_at_once(scene: Scene, site: Site) -> None:
    bad = zipped({"../1.jpg": b"1", "/2.jpg": b"2", "A": b"3", "a": b"4", "good.jpg": b"5"})
    said = scene.refuses(card(site.serve("a.zip", body(bad))), "'../1.jpg'", "'/2.jpg'", "'a'")
    assert "good.jpg" not in said


@pytest.mark.parametrize(
    ("bounds", "word"),
    [(unpack.Limits(files=5), "more than 5 files"), (unpack.Limits(bytes=100_000), "unpacks to more than 100,000")],
)
def test_a_bound_of_files_and_bytes(scene: Scene, site: Site, bounds: unpack.Limits, word: str) -> None:
    scene.refuses(card(site.serve("a.zip", body(ZIP))), word, bounds=bounds)


# Offline, and files put there by hand.


def test_without_a_network_a_file_put_there_by_hand_goes_on(scene: Scene) -> None:
    url = "http://127.0.0.1:9/a.zip"
    scene.refuses(card(url, sha256=sha256(ZIP)), url, "cannot be reached", f"put the whole file at {scene.store}/a.zip")
    assert scene.waits == [1, 2, 4, 8, 16]
    (scene.store / "a.zip").write_bytes(ZIP)
    scene.get(card(url, sha256=sha256(ZIP)))
    scene.check()


def test_a_name_that_cannot_be_looked_up_is_said_at_once(scene: Scene, monkeypatch: pytest.MonkeyPatch) -> None:
    def nowhere(*_: Any, **__: Any) -> Any:
        raise fetch.socket.gaierror(-2, "Name or service not known")

    monkeypatch.setattr("socket.getaddrinfo", nowhere)
    url = "https://photos.example/a.zip"
    scene.refuses(card(url), url, "cannot be reached", "Name or service not known", f"put it at {scene.store}/a.zip")
    assert not scene.waits


def test_a_refusal_later_on_keeps_what_was_downloaded(scene: Scene, site: Site) -> None:
    url = site.serve("a.zip", body(ZIP, cut=100_000), status(403))
    scene.refuses(card(url), "answered 403")
    assert (scene.store / "a.zip.part").read_bytes() == ZIP[:100_000]


def test_a_wrong_file_put_there_by_hand_is_put_aside(scene: Scene) -> None:
    scene.store.mkdir()
    (scene.store / "a.zip").write_bytes(zipped(photos(seed=1)))
    scene.refuses(card("http://127.0.0.1:9/a.zip", sha256=sha256(ZIP)), f"{scene.store}/a.zip", "has the sha256")
    assert scene.stored() == {"a.zip.wrong"}


# Killed, crowded, full.


KILLED = """
import os, signal, sys
from pathlib import Path
from agrikd.data import cards, download, fetch, unpack
left = int(sys.argv[3])
def dying(real):
    def generator(*arguments):
        global left
        for item in real(*arguments):
            left -= 1
            if left < 0:
                os.kill(os.getpid(), signal.SIGKILL)
            yield item
    return generator
if sys.argv[4] == "download":
    fetch._chunks = dying(fetch._chunks)
else:
    unpack._copy = dying(unpack._copy)
card = cards.card("leaves", Path(sys.argv[1]))
download.get(download.plan(card, Path(sys.argv[2])))
"""


def killed(scene: Scene, made: Card, after: int, during: str) -> None:
    """Run it in a process of its own that SIGKILL ends after so many chunks."""
    folder = scene.folder.parent.parent / "cards"
    folder.mkdir(exist_ok=True)
    (folder / "leaves.yaml").write_text(yaml.safe_dump(made.model_dump(mode="json")))
    words = [sys.executable, "-c", KILLED, str(folder), str(scene.folder), str(after), during]
    done = subprocess.run(words, capture_output=True, text=True, check=False, stdin=subprocess.DEVNULL)
    assert done.returncode == -signal.SIGKILL, done.stderr


def test_killed_while_it_downloads_it_goes_on(scene: Scene, site: Site) -> None:
    made = card(site.serve("a.zip", body(ZIP)), sha256=sha256(ZIP), size_bytes=len(ZIP))
    killed(scene, made, 2, "download")
    assert scene.stored() == {"a.zip.part", ".a.zip.part.version"} and not scene.folder.exists()
    assert (scene.store / "a.zip.part").read_bytes() == ZIP[: 2 << 16]
    scene.get(made)
    scene.check()
    assert site.asked[-1] == ("/a.zip", f"bytes={2 << 16}-")


@pytest.mark.parametrize("after", [0, 3])
def test_killed_while_it_unpacks_it_goes_on(scene: Scene, site: Site, after: int) -> None:
    made = card(site.serve("a.zip", body(ZIP)), sha256=sha256(ZIP))
    killed(scene, made, after, "unpack")
    left = [path.name for path in scene.folder.parent.iterdir() if path != scene.store]
    assert len(left) == 1 and left[0].startswith(".leaves.")
    beside = scene.folder.parent / ".leaves.mine"
    beside.mkdir()
    scene.get(made)
    beside.rmdir()  # another's hidden folder was left alone
    scene.check()
    assert len(site.asked) == 1


def test_two_runs_do_not_write_one_file(scene: Scene, site: Site) -> None:
    made = card(site.serve("a.zip", body(ZIP)))
    with download._alone(download.plan(made, scene.folder)):
        scene.refuses(made, str(scene.store), "another run is at work here")
    scene.get(made)
    scene.check()


def test_a_size_that_the_disk_has_no_room_for_is_said_beforehand(scene: Scene, site: Site) -> None:
    made = card(site.serve("a.zip", body(ZIP)), size_bytes=10**15)
    scene.refuses(made, "the disk is full", "free some space", error=StorageError)
    assert not site.asked


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Path]:
    """A disk of 320 kB: the archive goes in, it and its photos do not."""
    place = tmp_path / "disk"
    place.mkdir()
    if not shutil.which("mount"):
        pytest.skip("there is no mount here to make a small disk with")
    words = ["mount", "-t", "tmpfs", "-o", "size=320k", "tmpfs", str(place)]
    done = subprocess.run(words, capture_output=True, text=True, check=False)
    if done.returncode:
        pytest.skip(f"a small disk cannot be made here: {done.stderr.strip()}")
    try:
        yield place
    finally:
        subprocess.run(["umount", str(place)], check=True)


def test_a_disk_that_fills_up_while_it_downloads(disk: Path, site: Site) -> None:
    scene = Scene(disk)
    data = zipped(photos(count=12))
    made = card(site.serve("a.zip", body(data, length=None)))
    scene.refuses(made, str(scene.store), "the disk is full", "free some space", error=StorageError)


def test_a_disk_that_is_too_full_to_unpack(disk: Path, site: Site) -> None:
    scene = Scene(disk)
    scene.refuses(card(site.serve("a.zip", body(ZIP))), "the disk is full", "free some space", error=StorageError)
    assert scene.stored() == {"a.zip"}


def test_a_disk_that_fills_up_while_it_unpacks(disk: Path, site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(unpack.files, "require_room", lambda *_: None)
    scene = Scene(disk)
    scene.refuses(card(site.serve("a.zip", body(ZIP))), "the disk is full", "free some space", error=StorageError)
    assert scene.stored() == {"a.zip"}


# Where it goes, and the command line.


def test_another_folder_is_never_written_into(scene: Scene, site: Site) -> None:
    scene.folder.mkdir()
    (scene.folder / "mine.jpg").write_bytes(b"mine")
    with pytest.raises(InputError, match=r"is there already[^→]*→ choose another --to"):
        scene.get(card(site.serve("a.zip", body(ZIP))))
    assert not site.asked and [path.name for path in scene.folder.iterdir()] == ["mine.jpg"]


def test_the_folder_is_the_card_s_under_the_data_s(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AGRIKD_DATA", str(tmp_path))
    assert download.plan(card("http://127.0.0.1/a")).folder == tmp_path / "leaves"
    monkeypatch.delenv("AGRIKD_DATA")
    assert download.plan(card("http://127.0.0.1/a")).folder == Path("leaves")
    with pytest.raises(InputError, match="is no name for a new folder"):
        download.plan(card("http://127.0.0.1/a"), Path())


@pytest.fixture
def line(scene: Scene, site: Site, tmp_path: Path) -> list[str]:
    """`agrikd data get leaves` of the local server."""
    folder = tmp_path / "cards"
    folder.mkdir()
    made = card(site.serve("a.zip", body(ZIP)), size_bytes=len(ZIP)).model_dump(mode="json")
    (folder / "leaves.yaml").write_text(yaml.safe_dump(made))
    return ["data", "get", "leaves", "--cards", str(folder), "--to", str(scene.folder)]


def test_without_a_terminal_it_shows_the_terms_and_downloads_nothing(scene: Scene, site: Site, line: list[str]) -> None:
    done = CliRunner().invoke(app, line)
    assert done.exit_code == 2
    for word in ("CC BY 4.0", "Nobody 2026", "made of noise", "0.2 MB", "recorded at first download", "add --yes"):
        assert word in done.stderr
    assert str(scene.folder) in done.stderr and not site.asked
    assert list(scene.folder.parent.iterdir()) == []


def test_yes_downloads_and_says_the_next_command(scene: Scene, line: list[str]) -> None:
    done = CliRunner().invoke(app, [*line, "--yes", "--json"])
    assert done.exit_code == 0, done.output
    value = json.loads(done.stdout)
    assert value["folder"] == str(scene.folder) and value["files"] == 6
    assert value["next"] == f"agrikd init {scene.folder}/leaves" and f"next: {value['next']}" in done.stderr
    assert "CC BY 4.0" in done.stderr
    scene.check()
    assert CliRunner().invoke(app, line).exit_code == 0  # it is there: nothing to ask
    assert CliRunner().invoke(app, ["init", f"{scene.folder}/leaves", "--out", f"{scene.folder}-run"]).exit_code == 0


@pytest.mark.parametrize("answer", [True, False])
def test_a_person_is_asked(monkeypatch: pytest.MonkeyPatch, answer: bool) -> None:
    monkeypatch.setattr(sys.stdin, "isatty", lambda: True, raising=False)
    monkeypatch.setattr(typer, "confirm", lambda *_, **__: answer)
    if answer:
        verbs._agree(False)
    else:
        with pytest.raises(typer.Exit):
            verbs._agree(False)


@pytest.mark.parametrize("words", [[], ["--list"], ["ibean", "--list"]])
def test_the_cards_are_listed(words: list[str]) -> None:
    done = CliRunner().invoke(app, ["data", "get", *words, "--json"])
    assert done.exit_code == 0, done.output
    listed = {row["name"]: row for row in json.loads(done.stdout)}
    assert len(listed) == 11 and listed["ibean"]["to download"] == "180.0 MB" and listed["ibean"]["licence"] == "MIT"
    assert "plantvillage" in CliRunner().invoke(app, ["data", "get", *words]).stdout


def test_a_selection_has_nothing_to_download() -> None:
    done = CliRunner().invoke(app, ["data", "get", "coffee-leaf", "--yes"])
    assert done.exit_code == 2 and "has no download of its own" in done.stderr
