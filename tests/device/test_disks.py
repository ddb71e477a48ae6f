"""Records on real disks that are full, or read-only: small ones in memory, mounted where only the test sees them."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

from needs import absent, needed

_COMMON = """
import subprocess, sys, time, sqlite3
from pathlib import Path
sys.path.insert(0, sys.argv[2])
from device.test_recorder import *
folder = Path(sys.argv[1])
recorders._AGAIN_S = 0.1
def mount(*words):
    subprocess.run(["mount", "-t", "tmpfs", "-o", ",".join(words), "tmpfs", str(folder)], check=True)
def fill():
    with (folder / "ballast").open("wb", buffering=0) as ballast:
        with contextlib.suppress(OSError):
            while ballast.write(bytes(4096)) == 4096:
                pass
def refused(recorder, frame):
    try:
        recorder.label(Label("click-refused", frame, "rust", "Ana", 6.0))
    except StorageError:
        return True
    return False
"""
_FULL = (
    _COMMON
    + """
mount("size=6m")
recorder = Recorder(folder / "records", LOOSE)
first = recorder.frame(seen(), (said(), SPEC), kept=("doubt", b"jpeg" * 500))
recorder.label(Label("click-first", first.id, "rust", "Ana", 6.0))
fill()
for number in range(150):
    recorder.frame(seen(), (said(), SPEC), kept=("doubt", bytes([number % 256]) * 10_000))
end = time.monotonic() + 20
while not recorder.trouble:
    assert time.monotonic() < end
assert refused(recorder, first.id), "a label was acknowledged by a full disk"
waiting = recorder.health()["waiting"]
assert waiting > 0 and recorder.dropped == 0
(folder / "ballast").unlink()
settled(recorder, 30)
recorder.label(Label("click-last", first.id, "rust", "Ana", 6.0))
recorder.stop()
print("waited", waiting)
"""
)
_ROOM = (
    _COMMON
    + """
mount("size=8m")
recorder = Recorder(folder / "records", Bounds(free_bytes=3_000_000))
recorders._CHECK_S = 0.0
for number in range(600):
    one = recorder.frame(seen(), (said(), SPEC), kept=("doubt", bytes([number % 256]) * 20_000))
    if number % 100 == 0:
        recorder.label(Label(f"click-{number:03d}", one.id, "rust", "Ana", 6.0))
settled(recorder, 30)
assert recorder.dropped == 0
recorder.stop()
kept = {row["frame"] for row in rows(folder / "records", "pictures")}
assert {1, 101, 201, 301, 401, 501} <= kept and 600 in kept and len(kept) < 400, sorted(kept)
print("kept", len(kept))
"""
)
_OTHERS = (
    _COMMON
    + """
mount("size=6m")
recorder = Recorder(folder / "records", LOOSE)
for number in range(100):
    one = recorder.frame(seen(), (said(), SPEC), kept=("doubt", bytes([number]) * 20_000))
recorder.label(Label("click-first", one.id, "rust", "Ana", 6.0))
fill()
for number in range(100):
    last = recorder.frame(seen(), (said(), SPEC), kept=("doubt", bytes([number]) * 10_000))
settled(recorder, 30)
recorder.label(Label("click-last", last.id, "rust", "Ana", 6.0))
assert recorder.dropped == 0
recorder.stop()
kept = {row["frame"] for row in rows(folder / "records", "pictures")}
assert {100, 200} <= kept and 1 not in kept, sorted(kept)
print("fine")
"""
)
_READ_ONLY = (
    _COMMON
    + """
mount("size=6m", "ro")
recorder = Recorder(folder / "records", LOOSE)
frames = [recorder.frame(seen(), (said(), SPEC)) for _ in range(50)]
assert refused(recorder, frames[0].id), "a label was acknowledged by a read-only disk"
assert recorder.trouble and recorder.dropped == 0
subprocess.run(["mount", "-o", "remount,rw", str(folder)], check=True)
settled(recorder, 30)
recorder.label(Label("click-last", frames[-1].id, "rust", "Ana", 6.0))
later = recorder.frame(seen(), (said(), SPEC))
assert later.id == frames[-1].id + 1
recorder.stop()
assert [row["id"] for row in rows(folder / "records", "frames")] == [one.id for one in (*frames, later)]
print("fine")
"""
)
_WHOLE = """
db = sqlite3.connect(folder / "records" / "records.db")
assert db.execute("PRAGMA integrity_check").fetchone() == ("ok",)
for name, size in db.execute("SELECT file, size_bytes FROM pictures"):
    assert (folder / "records" / name).stat().st_size == size
"""


def ran(script: str, folder: Path) -> str:
    """A script in a mount namespace of its own."""
    if os.geteuid() != 0:
        absent("mounting a small disk needs root")
    words = [needed("unshare", "util-linux"), "-m", sys.executable, "-c", script + _WHOLE, str(folder)]
    done = subprocess.run([*words, str(Path(__file__).parents[1])], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_a_full_disk_is_waited_for_and_acknowledges_nothing(tmp_path: Path) -> None:
    assert int(ran(_FULL, tmp_path).split()[1]) > 100


def test_on_a_disk_that_others_filled_the_oldest_pictures_make_room(tmp_path: Path) -> None:
    assert ran(_OTHERS, tmp_path) == "fine\n"


def test_room_is_made_before_the_disk_is_full(tmp_path: Path) -> None:
    assert ran(_ROOM, tmp_path).startswith("kept")


def test_a_disk_that_is_read_only_when_it_begins(tmp_path: Path) -> None:
    assert ran(_READ_ONLY, tmp_path) == "fine\n"
