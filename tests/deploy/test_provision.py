"""provision.sh on trees of files: this machine's Python stands for the board's, and what it has installed for the
board's own packages; so nothing is asked of a registry. The agents it tries are real ones."""

from __future__ import annotations

import base64
import configparser
import hashlib
import os
import shutil
import subprocess
import sys
import sysconfig
import tempfile
import zipfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
import tomllib
from needs import absent

from agrikd import files
from agrikd.device.child import Limits

ROOT = Path(__file__).resolve().parents[2]
JETSON = ROOT / "deploy" / "jetson"
KEY = "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIE9wL0bq7fGm0m1n5jYk2b3o4p5q6r7s8t9u0v1w2x3y lab@desk"
BROKEN = "\nAgent.run = lambda self: None\n"


def wheel(folder: Path, version: str, agent: str = "") -> Path:
    """agrikd's wheel as pip would make it; `agent` is added to the agent's module."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    needs = [f"Requires-Dist: {one}" for one in project["dependencies"]]
    needs += [f'Requires-Dist: {one}; extra == "edge"' for one in project["optional-dependencies"]["edge"]]
    about = f"agrikd-{version}.dist-info"
    held = {str(path.relative_to(ROOT)): path.read_text() for path in sorted((ROOT / "agrikd").rglob("*.py"))}
    held["agrikd/__init__.py"] = f'"""agrikd"""\n\n__version__ = "{version}"\n'
    held["agrikd/device/agent.py"] += agent
    held[f"{about}/METADATA"] = "\n".join(
        ["Metadata-Version: 2.1", "Name: agrikd", f"Version: {version}", "Provides-Extra: edge", *needs, ""]
    )
    held[f"{about}/WHEEL"] = "Wheel-Version: 1.0\nGenerator: test\nRoot-Is-Purelib: true\nTag: py3-none-any\n"
    record = []
    for name, text in held.items():
        digest = base64.urlsafe_b64encode(hashlib.sha256(text.encode()).digest()).rstrip(b"=").decode()
        record.append(f"{name},sha256={digest},{len(text.encode())}")
    held[f"{about}/RECORD"] = "\n".join([*record, f"{about}/RECORD,,", ""])
    path = folder / f"agrikd-{version}-py3-none-any.whl"
    with zipfile.ZipFile(path, "w") as out:
        for name, text in held.items():
            out.writestr(name, text)
    return path


def sealed(folder: Path) -> Path:
    """With its SHA256SUMS, as `agrikd deploy wheelhouse` leaves it."""
    wheels = sorted(folder.glob("*.whl"))
    lines = [f"{files.sha256(path.read_bytes())}  {path.name}\n" for path in wheels]
    (folder / "SHA256SUMS").write_text("".join(lines))
    return folder


@dataclass(frozen=True)
class Board:
    """A tree of files, and what stands for the rest of the machine."""

    tree: Path
    wheels: Path
    packages: Path

    def run(self, *words: object, before: tuple[str, ...] = (), **settings: str) -> subprocess.CompletedProcess[str]:
        own = {"PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}", "PYTHONPATH": str(self.packages)}
        command = [*before, JETSON / "provision.sh", "--system-root", self.tree, *words]
        return subprocess.run(
            [str(word) for word in command],
            env={**os.environ, **own, **settings},
            capture_output=True,
            text=True,
            timeout=300,
            check=False,
        )

    def provision(self, *words: object, **settings: str) -> subprocess.CompletedProcess[str]:
        return self.run("--wheelhouse", self.wheels, *words, **settings)

    def linked(self, name: str) -> str:
        link = self.tree / "opt/agrikd" / name
        return str(link.readlink()) if link.is_symlink() else ""

    def contents(self) -> dict[str, tuple[int, int, str]]:
        """mode, owner, and where it points or the hash of what it holds."""
        found = {}
        for path in sorted(self.tree.rglob("*")):
            about = path.lstat()
            held = str(path.readlink()) if path.is_symlink() else ""
            if path.is_file() and not path.is_symlink():
                held = files.sha256(path.read_bytes())
            found[str(path.relative_to(self.tree))] = (about.st_mode, about.st_uid, held)
        return found


@pytest.fixture(scope="module")
def packages(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What is installed beside these tests, but for agrikd and pip."""
    folder = tmp_path_factory.mktemp("packages")
    for path in Path(sysconfig.get_path("purelib")).iterdir():
        if not path.name.lower().startswith(("agrikd", "__editable__", "pip", "_")) and path.suffix != ".pth":
            (folder / path.name).symlink_to(path)
    return folder


@pytest.fixture(scope="module")
def wheels(tmp_path_factory: pytest.TempPathFactory) -> Path:
    import ensurepip

    folder = tmp_path_factory.mktemp("wheels")
    bundled = sorted((Path(ensurepip.__file__).parent / "_bundled").glob("pip-*.whl"))
    if not bundled:
        absent("this Python has no wheel of pip inside: use one that was not packaged by a distribution")
    shutil.copy(bundled[0], folder)
    wheel(folder, "0.1.0")
    return sealed(folder)


@pytest.fixture(scope="module")
def offline() -> tuple[str, ...]:
    """The command that runs another one where there is no network at all."""
    words = ("unshare", "--net") if os.getuid() == 0 else ("unshare", "--net", "--map-current-user")
    if shutil.which("unshare") is None or subprocess.run([*words, "true"], check=False).returncode:
        absent("this machine makes no network namespaces (unshare --net)")
    return words


def empty(folder: Path) -> Path:
    """A board's tree whose user agrikd is whoever runs the tests, so that they need not be root."""
    (folder / "etc").mkdir(parents=True)
    (folder / "etc/passwd").write_text(f"agrikd:x:{os.getuid()}:{os.getgid()}::/opt/agrikd/home:/bin/sh\n")
    (folder / "etc/group").write_text("video:x:44:gardener,agrikd\n")
    return folder


@pytest.fixture(scope="module")
def short() -> Iterator[Path]:
    """A folder with a short name: a socket's may have 107 letters."""
    path = Path(tempfile.mkdtemp(prefix="akp-"))
    yield path
    shutil.rmtree(path)


@pytest.fixture(scope="module")
def first(
    short: Path, wheels: Path, packages: Path, offline: tuple[str, ...], root: bytes
) -> tuple[Board, tuple[object, ...], str]:
    """A board that was set up once, without a network: with what words, and what was said."""
    board = Board(empty(short / "first"), wheels, packages)
    (short / "root.dsse").write_bytes(root)
    (short / "flash.pub").write_text(KEY + "\n")
    words = ("--wheelhouse", wheels, "--root", short / "root.dsse", "--flash-key", short / "flash.pub")
    done = board.run(*words, before=offline)
    assert done.returncode == 0, done.stdout + done.stderr
    return board, words, done.stdout


@pytest.fixture
def board(first: tuple[Board, tuple[object, ...], str], short: Path, tmp_path: Path) -> Iterator[Board]:
    """A copy of it, with wheels of its own."""
    made = first[0]
    tree = Path(tempfile.mkdtemp(dir=short)) / "b"
    shutil.copytree(made.tree, tree, symlinks=True)
    yield Board(tree, Path(shutil.copytree(made.wheels, tmp_path / "wheels")), made.packages)
    shutil.rmtree(tree)


def test_a_board_without_a_network(first: tuple[Board, tuple[object, ...], str]) -> None:
    board, _, said = first
    assert "[done] agrikd 0.1.0 answers" in said and "[done] the board trusts root 1: " in said
    assert board.linked("current") == "0.1.0" and board.linked("previous") == ""
    held = board.contents()
    assert held["usr/local/bin/agrikd-device"][2] == "/opt/agrikd/current/agrikd-device"
    unit = "etc/systemd/system/agrikd-agent.service"
    assert held[unit][2] == "/opt/agrikd/current/agrikd-agent.service"
    assert held["etc/systemd/system/multi-user.target.wants/agrikd-agent.service"][2] == f"/{unit}"
    assert held["var/lib/agrikd"][0] & 0o777 == 0o750 and "var/lib/agrikd/trust/root-1.dsse" in held
    assert held["opt/agrikd/0.1.0/agrikd-device"][0] & 0o777 == 0o755
    line = (board.tree / "opt/agrikd/home/.ssh/authorized_keys").read_text()
    assert line == f'command="/usr/local/bin/agrikd-device serve --stdio",restrict {KEY.rpartition(" ")[0]}\n'
    installed = {name.split("/")[6].partition("-")[0] for name in held if "0.1.0/lib/" in name and name.count("/") > 5}
    assert installed == {"agrikd"}, "what the board has of its own stays its own"


def test_twice_leaves_the_same_tree(first: tuple[Board, tuple[object, ...], str]) -> None:
    board, words, _ = first
    before = board.contents()
    done = board.run(*words)
    assert done.returncode == 0, done.stderr
    assert {line.split("]")[0] for line in done.stdout.splitlines()} == {"[same"}
    assert board.contents() == before and len(before) > 100


def test_an_upgrade_and_the_way_back(board: Board) -> None:
    wheel(board.wheels, "0.2.0")
    done = board.provision("--version", "0.1.0")
    assert done.returncode == 0 and board.linked("current") == "0.1.0"
    (board.wheels / "SHA256SUMS").unlink()
    done = board.provision()
    assert done.returncode == 0 and "[done] agrikd 0.2.0 answers" in done.stdout, done.stdout + done.stderr
    assert (board.linked("current"), board.linked("previous")) == ("0.2.0", "0.1.0")
    done = board.run("--rollback")
    assert done.returncode == 0 and "[done] agrikd 0.1.0 answers" in done.stdout
    assert (board.linked("current"), board.linked("previous")) == ("0.1.0", "0.2.0")
    wheel(board.wheels, "0.3.0")
    assert board.provision().returncode == 0
    assert (board.linked("current"), board.linked("previous")) == ("0.3.0", "0.1.0")
    assert not (board.tree / "opt/agrikd/0.2.0").exists(), "neither the current version nor the way back"


def test_a_version_whose_agent_does_not_answer_is_not_kept(board: Board) -> None:
    wheel(board.wheels, "0.2.0", BROKEN)
    done = board.provision("--patience", "6")
    assert done.returncode == 10 and "agrikd 0.2.0 did not answer in 6 s: 0.1.0 is back" in done.stderr
    assert (board.linked("current"), board.linked("previous")) == ("0.1.0", "")
    assert "0.1.0" in board.provision("--version", "0.1.0").stdout


def test_half_a_version_is_made_anew(board: Board) -> None:
    half = board.tree / "opt/agrikd/0.2.0"
    half.mkdir()
    (half / "lib").write_text("a file where a folder must be: the power went")
    wheel(board.wheels, "0.2.0")
    assert board.provision().returncode == 0 and board.linked("current") == "0.2.0"
    assert (half / "lib").is_dir()


def test_a_version_that_a_lost_power_emptied_is_made_anew_while_the_one_before_stands_in(board: Board) -> None:
    emptied = board.tree / "opt/agrikd/0.2.0"
    emptied.mkdir()
    for name in (".installed", "agrikd-device", "agrikd-agent.service"):
        (emptied / name).touch()
    for link, version in (("current", "0.2.0"), ("previous", "0.1.0")):
        (board.tree / "opt/agrikd" / link).unlink(missing_ok=True)
        (board.tree / "opt/agrikd" / link).symlink_to(version)
    sealed(wheel(board.wheels, "0.2.0").parent)
    done = board.provision()
    assert done.returncode == 0 and "[done] agrikd 0.2.0 answers" in done.stdout, done.stdout + done.stderr
    assert done.stdout.index("/current points to 0.1.0") < done.stdout.index("[done] agrikd 0.2.0 in /opt/agrikd/0.2.0")
    assert (board.linked("current"), board.linked("previous")) == ("0.2.0", "0.1.0")
    assert all((emptied / name).stat().st_size for name in (".installed", "agrikd-device", "agrikd-agent.service"))


def test_nothing_of_a_version_is_written_between_the_last_sync_and_the_switch_to_it(
    board: Board, tmp_path: Path
) -> None:
    """Or a lost power could leave `current` on a version whose command and unit are empty."""
    new, log, stubs = board.tree / "opt/agrikd/0.2.0", tmp_path / "log", tmp_path / "stubs"
    stubs.mkdir()
    state = f"find {new} -type f -printf '%P %T@ %s\\n' 2>/dev/null | sort | sha256sum | cut -c-64"
    for name in ("sync", "mv"):
        script = f'#!/bin/sh\necho "$({state}) {name} $*" >>{log}\nexec {shutil.which(name)} "$@"\n'
        (stubs / name).write_text(script)
        (stubs / name).chmod(0o755)
    sealed(wheel(board.wheels, "0.2.0").parent)
    done = board.provision(PATH=f"{stubs}:{Path(sys.executable).parent}:{os.environ['PATH']}")
    assert done.returncode == 0 and board.linked("current") == "0.2.0", done.stdout + done.stderr
    calls = [line.split() for line in log.read_text().splitlines()]
    switch = next(at for at, call in enumerate(calls) if call[1] == "mv" and call[-1].endswith("/current"))
    synced = max(at for at, call in enumerate(calls[:switch]) if call[1:3] == ["sync", "--file-system"])
    assert calls[synced][0] == calls[switch][0]
    put = [at for at, call in enumerate(calls) if call[1] == "mv" and Path(call[-1]).parent == new]
    assert {Path(calls[at][-1]).name for at in put} >= {".installed", "agrikd-device", "agrikd-agent.service"}
    assert all(calls[at - 1][1:] == ["sync", calls[at][-2]] for at in put), "a rename may come to the disk first"


def test_a_store_elsewhere_goes_into_unit_and_command(board: Board) -> None:
    done = board.provision("--store", "/data/models")
    assert done.returncode == 0, done.stderr
    current = board.tree / "opt/agrikd/0.1.0"
    assert "ReadWritePaths=/data/models\n" in (current / "agrikd-agent.service").read_text()
    assert "--store /data/models " in (current / "agrikd-device").read_text()
    assert " store=/data/models prefix=/opt/agrikd patience=60\n" in (current / "provision.sh").read_text()


def test_a_unit_that_somebody_changed_is_written_again_and_the_agent_started_by_it(board: Board) -> None:
    unit = board.tree / "opt/agrikd/0.1.0/agrikd-agent.service"
    whole = unit.read_text()
    unit.write_text(whole.replace("Restart=", "#Restart="))
    done = board.provision()
    assert done.returncode == 0 and unit.read_text() == whole
    assert "[done] agrikd 0.1.0 answers" in done.stdout, done.stdout


def test_what_is_refused(board: Board, tmp_path: Path) -> None:
    (tmp_path / "cv2.py").write_text("raise ImportError('none here')")
    (tmp_path / "private").write_text("-----BEGIN OPENSSH PRIVATE KEY-----\nabc\n")
    seen = 0
    before = board.contents()

    def refused(words: str, code: int, *given: object, **settings: str) -> None:
        nonlocal seen
        done = board.run(*given, **settings)
        assert (done.returncode, words in done.stderr) == (code, True), done.stdout + done.stderr
        assert board.contents() == before
        seen += 1

    good = ("--wheelhouse", board.wheels)
    refused("--frobnicate: no such option", 2, "--frobnicate", "yes")
    refused("--store: no such option, or its value is missing", 2, "--store")
    refused("name the folder of wheels", 2)
    refused("holds no agrikd-9", 1, *good, "--version", "9")
    refused("there is no version before this one", 1, "--rollback")
    refused("is no SSH public key", 1, *good, "--flash-key", tmp_path / "private")
    refused("apt-get install python3-opencv", 1, *good, PYTHONPATH=f"{tmp_path}:{board.packages}")
    wheel(board.wheels, "0.1.0", "\n# another\n")
    refused("copy it again", 1, *good)
    sealed(board.wheels)
    refused("is installed already, from another wheel", 1, *good)
    assert seen == 9


def test_a_board_may_do_without_opencv(board: Board, tmp_path: Path) -> None:
    (tmp_path / "cv2.py").write_text("raise ImportError('none here')")
    wheel(board.wheels, "0.2.0")
    done = board.provision("--allow-no-opencv", PYTHONPATH=f"{tmp_path}:{board.packages}")
    assert done.returncode == 0 and board.linked("current") == "0.2.0", done.stderr


def test_a_key_that_could_do_more_is_bound(board: Board, short: Path) -> None:
    keys = board.tree / "opt/agrikd/home/.ssh/authorized_keys"
    bound = keys.read_text()
    other = "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIOther someone@else\n"
    keys.write_text(other + KEY + "\n")
    assert board.provision("--flash-key", short / "flash.pub").returncode == 0
    assert keys.read_text() == other + bound


def test_the_user_is_made(short: Path, wheels: Path, packages: Path) -> None:
    """Its own commands may not run here: what is under root's home is closed to it."""
    if os.getuid():
        pytest.skip("only root makes users")
    board = Board(short / "user", wheels, packages)
    (board.tree / "etc").mkdir(parents=True)
    for name, text in {"passwd": "root:x:0:0::/root:/bin/sh\n", "group": "root:x:0:\nvideo:x:44:\n"}.items():
        (board.tree / "etc" / name).write_text(text)
    (short / "user.pub").write_text(KEY)
    done = board.provision("--patience", "1", "--flash-key", short / "user.pub")
    assert "[done] user agrikd made" in done.stdout, done.stderr
    name, _, uid, gid, *_, home, shell = (board.tree / "etc/passwd").read_text().splitlines()[1].split(":")
    assert (name, home, shell) == ("agrikd", "/opt/agrikd/home", "/bin/sh") and 0 < int(uid) < 1000
    assert "video:x:44:agrikd\n" in (board.tree / "etc/group").read_text()
    held = board.contents()
    assert held["var/lib/agrikd"][1] == int(uid) and int(gid)
    assert held["opt/agrikd/home/.ssh/authorized_keys"][:2] == (0o100644, 0)
    assert held["opt/agrikd/0.1.0/pyvenv.cfg"][1] == 0, "the agent cannot change its own software"


def test_the_unit() -> None:
    unit = configparser.RawConfigParser(strict=False)
    unit.optionxform = str  # type: ignore[assignment,method-assign]
    unit.read(JETSON / "agrikd-agent.service")
    service = unit["Service"]
    assert (service["Type"], service["OOMPolicy"], unit["Unit"]["StartLimitIntervalSec"]) == ("notify", "continue", "0")
    assert int(service["WatchdogSec"]) >= 2 * Limits.answer_s, "the loop may wait so long for an answer"


def test_a_socket_that_nvidia_s_daemon_makes_anew_is_seen() -> None:
    """CSI cameras go through it: a private /tmp, or the one socket bound at the start, would lose them for good."""
    lines = (JETSON / "agrikd-agent.service").read_text().splitlines()
    assert "After=nvargus-daemon.service" in lines and "ProtectSystem=strict" in lines
    assert not [line for line in lines if line.startswith(("PrivateTmp=", "BindPaths=", "TemporaryFileSystem="))]


def test_the_script_is_clean() -> None:
    if shutil.which("shellcheck") is None:
        absent("there is no shellcheck: apt-get install shellcheck")
    done = subprocess.run(["shellcheck", JETSON / "provision.sh"], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout
