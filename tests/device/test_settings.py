"""What a person may set of an agent, and what he is told when it makes no sense."""

from __future__ import annotations

from pathlib import Path

import pytest
from typer.testing import CliRunner

from agrikd.cli import app
from agrikd.device import settings
from agrikd.device.store import SETTINGS, Store
from agrikd.errors import InputError

WHOLE = """
device: orchard-1
cameras:
  - {name: row-7, source: "rtsp://farmer:secret@10.0.0.9/h264", field: north, plot: "7", latitude: 41.2, longitude: 2.1,
     hours: daylight, every_s: 10}
  - {name: gate, source: "usb:0", hours: "06:00-20:00"}
records: {quota_gb: 8, audit_share: 0.02}
teacher: {url: "https://lab.example/agrikd/", token_file: /etc/agrikd/token, steady_per_s: 0.5}
hub: {url: "http://10.0.0.1:8700", token_file: /etc/agrikd/token, bytes_per_s: 50000}
live: {host: 0.0.0.0, port: 8600, origins: ["https://farm.example"]}
"""


def test_all_of_it(tmp_path: Path) -> None:
    (tmp_path / SETTINGS).write_text(WHOLE)
    found = settings.read(tmp_path / SETTINGS)
    assert [one.name for one in found.cameras] == ["row-7", "gate"] and found.cameras[0].place.latitude == 41.2
    assert found.teacher and found.teacher.url == "https://lab.example/agrikd"
    Store(tmp_path)  # settings may be there before the store is


def test_paths_are_taken_from_the_file_s_own_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    own, elsewhere = tmp_path / "field", tmp_path / "elsewhere"
    own.mkdir()
    elsewhere.mkdir()
    said = """
cameras:
  - {name: a, source: photos}
  - {name: b, source: /mnt/film.mp4}
  - {name: c, source: "usb:0"}
hub: {url: "http://a", token_file: token}
"""
    (own / SETTINGS).write_text(said)
    monkeypatch.chdir(elsewhere)
    found = settings.read(own / SETTINGS)
    assert [one.source for one in found.cameras] == [str(own / "photos"), "/mnt/film.mp4", "usb:0"]
    assert found.hub and found.hub.token_file == own / "token" and found.teacher is None


def test_without_a_file_there_is_no_camera_and_this_machine_has_a_name(tmp_path: Path) -> None:
    found = settings.read(tmp_path / SETTINGS)
    assert found.cameras == () and found.device


def test_a_camera_named_by_the_command(tmp_path: Path) -> None:
    found = settings.chosen(tmp_path / SETTINGS, "demo", 8601)
    assert found.cameras[0].source == "demo" and found.live and found.live.port == 8601
    (tmp_path / SETTINGS).write_text(WHOLE)
    assert len(settings.chosen(tmp_path / SETTINGS, "", None).cameras) == 2
    with pytest.raises(InputError, match="names the cameras already"):
        settings.chosen(tmp_path / SETTINGS, "demo", None)


def test_a_command_that_names_no_camera_or_a_password(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="name one, such as demo"):
        settings.chosen(tmp_path / SETTINGS, "", 8600)
    with pytest.raises(InputError, match="holds a password") as refused:
        settings.chosen(tmp_path / SETTINGS, "rtsp://u:s3cret@10.0.0.9/x", None)
    assert "s3cret" not in str(refused.value)


def test_what_is_refused_leaves_no_folder(tmp_path: Path) -> None:
    folder = tmp_path / "field"
    for words in ([], ["--source", "demo", str(tmp_path / "gone.onnx")]):
        done = CliRunner().invoke(app, ["agent", *words, "--folder", str(folder)])
        assert done.exit_code == 2 and "→" in done.stderr and not folder.exists(), done.stderr


MISTAKES = {
    "a key": ("cameras: [{name: a, source: demo, sorce: x}]", "did you mean 'source'"),
    "a source": ("cameras: [{name: a, source: 'usb:first'}]", "is no source"),
    "hours": ("cameras: [{name: a, source: demo, hours: morning}]", "06:00-20:00"),
    "no place": ("cameras: [{name: a, source: demo, hours: daylight}]", "latitude"),
    "a place": ("cameras: [{name: a, source: demo, latitude: 91}]", "cameras.0.latitude"),
    "a name": ("cameras: [{name: '../a', source: demo}]", "letters, digits, dots and dashes"),
    "a name twice": ("cameras: [{name: a, source: demo}, {name: a, source: demo}]", "two cameras are called 'a'"),
    "a device's name": ("device: 'a b'", "letters, digits, dots and dashes"),
    "an address": ("hub: {url: 'hub.example', token_file: t}", "expected http"),
    "no token": ("teacher: {url: 'http://a'}", "token_file: is missing"),
    "no such day": ("cameras: [{name: a, source: demo, plot: 2027-02-30}]", "is no YAML"),
    "nothing to ask about": ("teacher: {url: 'http://a', token_file: t}", "name one"),
    "a share": ("records: {audit_share: 2}", "records.audit_share"),
    "a list": ("- demo", "a group of settings"),
    "no YAML": ("cameras: [", "is no YAML"),
}


@pytest.mark.parametrize(("said", "answer"), MISTAKES.values(), ids=MISTAKES)
def test_what_makes_no_sense(tmp_path: Path, said: str, answer: str) -> None:
    (tmp_path / SETTINGS).write_text(said)
    with pytest.raises(InputError) as refused:
        settings.read(tmp_path / SETTINGS)
    assert answer in str(refused.value) and SETTINGS in str(refused.value)


@pytest.mark.parametrize(
    "said",
    [
        "cameras: ['rtsp://u:s3cret@a/x']",
        "cameras: rtsp://u:s3cret@a/x",
        "cameras: [{name: a, source: ['rtsp://u:s3cret@a/x']}]",
        "hub: {url: 'htps://me:s3cret@a', token_file: t}",
        "cameras: [{name: a, source: rtsp://u:s3cret@a/x]",
    ],
)
def test_no_mistake_shows_a_password(tmp_path: Path, said: str) -> None:
    (tmp_path / SETTINGS).write_text(said)
    with pytest.raises(InputError) as refused:
        settings.read(tmp_path / SETTINGS)
    assert "s3cret" not in str(refused.value)


def test_all_mistakes_at_once_and_no_password(tmp_path: Path) -> None:
    (tmp_path / SETTINGS).write_text(
        "cameras: [{name: a, source: 'rtsp://u:s3cret@:0/x', hours: noon}]\nrecords: {quota_gb: -1}\nlives: {}"
    )
    with pytest.raises(InputError) as refused:
        settings.read(tmp_path / SETTINGS)
    words = str(refused.value)
    assert all(one in words for one in ("is no source", "hours", "quota_gb", "lives")) and "s3cret" not in words
