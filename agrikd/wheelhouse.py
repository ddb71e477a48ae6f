"""A folder of wheels from which a board installs agrikd without internet: what agrikd[edge] needs there, by pip's word.

pip resolves for the board, not for this machine, and names each file with its hash. SHA256SUMS is written before the
first file is fetched: it is the plan, and `sha256sum -c` on the board holds what arrived against it. A run that was cut
goes on with what is missing. agrikd's own wheel is never asked of a registry, where its name may be anybody's.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

from agrikd import console, files
from agrikd.errors import AgriKDError, InputError, MissingExtraError, Problem

SUMS = "SHA256SUMS"
_CHECKOUT = Path(__file__).resolve().parents[1]
_SOURCES = ("pyproject.toml", "README.md", "LICENSE", "agrikd", "data")
_WITH = ("pip", "numpy<2")
"""pip: a board may have none. numpy: a board's own OpenCV was built with numpy 1 and cannot be imported beside 2."""
_BOARDS_OWN = ("opencv", "tensorrt")
"""What comes with JetPack, with GStreamer and for its own CUDA; a wheel of it would hide that."""
_LINE = re.compile(r"(?P<digest>([0-9a-f]{64})?)  (?P<name>[\w.+!-]+\.whl)")
"""Of SHA256SUMS as `_write` has it: without a hash until the file has come, where the registry names none."""
_OLDEST_GLIBC = 17
_EPOCH = "315532800"
"""1980, the first time that a zip can tell: the same sources make the same wheel, byte for byte."""


class OfflineError(AgriKDError):
    """pip did not get what it asked for; its own words are in the message."""


@dataclass(frozen=True)
class Board:
    """python: as in 3.10. platform: the newest tag it takes, as manylinux_2_35_aarch64: 35 is its glibc's number."""

    python: str
    platform: str

    def words(self) -> list[str]:
        """pip's options for it: its Python, and every platform up to its own."""
        head, _, rest = self.platform.partition("_2_")
        glibc, _, machine = rest.partition("_")
        if head != "manylinux" or not glibc.isdecimal() or not machine:
            mend = "as in manylinux_2_35_aarch64: 2_35 is the board's glibc (ldd --version)"
            raise InputError(Problem("--platform", f"{self.platform!r} is no platform of a board", mend))
        short = self.python.replace(".", "")
        if not short.isdecimal() or not self.python.startswith("3."):
            raise InputError(Problem("--python", f"{self.python!r} is no Python of a board", "as in 3.10"))
        tags = [f"manylinux_2_{number}_{machine}" for number in range(int(glibc), _OLDEST_GLIBC - 1, -1)]
        tags.append(f"manylinux2014_{machine}")
        chosen = [word for tag in tags for word in ("--platform", tag)]
        own = ["--implementation", "cp", "--python-version", self.python, "--abi", f"cp{short}"]
        return ["--only-binary", ":all:", *own, *chosen]

    def markers(self) -> dict[str, str]:
        """What a requirement's marker may ask of it."""
        return {
            "python_version": self.python,
            "python_full_version": f"{self.python}.0",
            "platform_machine": self.platform.split("_", 3)[3],
            "sys_platform": "linux",
            "platform_system": "Linux",
            "os_name": "posix",
            "implementation_name": "cpython",
            "platform_python_implementation": "CPython",
            "extra": "",
        }


@dataclass(frozen=True)
class Wheel:
    """A file that pip chose for a board. sha256: empty where the registry names none. needs: as its metadata says."""

    board: Board
    name: str
    version: str
    url: str
    sha256: str
    needs: tuple[str, ...]

    @property
    def file(self) -> str:
        return unquote(Path(urlsplit(self.url).path).name)


@dataclass(frozen=True)
class Made:
    """A wheelhouse. fetched, kept: how many of its files came now, and were there."""

    folder: Path
    files: dict[str, str]
    fetched: int
    kept: int
    size_bytes: int


def make(out: Path, boards: Sequence[Board], own: Path | None = None) -> Made:
    """Fill `out` with all that `boards` need; what is there and whole stays.

    own: agrikd's wheel; by default it is made of this checkout. Raises `InputError` or `AgriKDError`.
    """
    planned = sums(out)
    if not planned:
        files.require_free(out)
    for board in boards:
        board.words()
    with tempfile.TemporaryDirectory(prefix="agrikd-") as temporary:
        wheel = own or _built(Path(temporary))
        wanted = {wheel.name: Wheel(boards[0], "agrikd", "", wheel.resolve().as_uri(), _sha256(wheel), ())}
        try:
            for board in boards:
                console.say(f"pip resolves agrikd[edge] for Python {board.python}, {board.platform}")
                wanted |= {one.file: one for one in resolve(wheel, board)}
        except OfflineError as error:
            raise _unreachable(out, planned, error) from None
        plan = {name: one.sha256 or planned.get(name, "") for name, one in wanted.items()}
        _drop(out, planned.keys() - plan.keys())
        _write(out, plan)
        absent = {name for name, digest in plan.items() if not _holds(out / name, digest)}
        for name in console.track(sorted(absent), "wheels"):
            plan[name] = _fetch(wanted[name], out)
    _write(out, plan)
    return Made(out, plan, len(absent), len(plan) - len(absent), sum((out / name).stat().st_size for name in plan))


def resolve(own: Path, board: Board) -> list[Wheel]:
    """What pip would install on the board for `own`[edge], without agrikd itself.

    pip asks this machine, not the board, what a marker as in `tomli; python_version < "3.11"` means, so what it left
    out by that is asked for by name until nothing is missing.
    """
    asked = [f"{own}[edge]", *_WITH]
    with tempfile.TemporaryDirectory(prefix="agrikd-") as temporary:
        report = Path(temporary) / "report.json"
        options = ["--quiet", "--dry-run", "--ignore-installed", "--target", temporary, "--report", str(report)]
        while True:
            _pip("install", *options, *board.words(), *asked)
            found = [_wheel(one, board) for one in json.loads(report.read_bytes())["install"]]
            lacking = unmet(found, board)
            if not lacking:
                break
            asked += lacking
    shadows = [one.name for one in found if one.name.startswith(_BOARDS_OWN)]
    if shadows:
        said = f"{', '.join(shadows)} would hide what the board has of its own"
        raise AgriKDError(f"{said}\n    → drop what needs it from agrikd[edge]")
    return [one for one in found if one.name != "agrikd"]


def unmet(found: Sequence[Wheel], board: Board) -> list[str]:
    """The requirements of `found` that hold on the board and that none of `found` meets."""
    try:
        from packaging.requirements import Requirement
        from packaging.utils import canonicalize_name
    except ImportError:
        raise MissingExtraError("packaging", "export") from None
    there = {canonicalize_name(one.name): one.version for one in found}
    lacking = []
    for one in found:
        extras = ("", "edge") if one.name == "agrikd" else ("",)
        for need in map(Requirement, one.needs):
            holds = not need.marker or any(need.marker.evaluate({**board.markers(), "extra": own}) for own in extras)
            version = there.get(canonicalize_name(need.name))
            if holds and (version is None or not need.specifier.contains(version, prereleases=True)):
                lacking.append(f"{need.name}{need.specifier}")
    return sorted(set(lacking))


def sums(folder: Path) -> dict[str, str]:
    """The hash of each file that SHA256SUMS names; empty where there is none, or where it is not of a wheelhouse."""
    path = folder / SUMS
    lines = files.read_text(path).splitlines() if path.exists() else []
    found = [_LINE.fullmatch(line) for line in lines]
    return {one["name"]: one["digest"] for one in found if one} if all(found) else {}


def _write(out: Path, plan: dict[str, str]) -> None:
    files.write_text(out / SUMS, "".join(f"{digest}  {name}\n" for name, digest in sorted(plan.items())))


def _built(folder: Path) -> Path:
    """A wheel of this checkout, of a copy: what an earlier build left in it would get in."""
    if not (_CHECKOUT / "pyproject.toml").exists():
        wrong = "was not installed from its sources, so its wheel cannot be made"
        raise InputError(Problem("agrikd", wrong, "name the wheel: --wheel agrikd-….whl"))
    console.say("pip makes agrikd's own wheel")
    for name in _SOURCES:
        if (_CHECKOUT / name).is_dir():
            ignored = shutil.ignore_patterns("__pycache__", "downloads")
            shutil.copytree(_CHECKOUT / name, folder / "source" / name, ignore=ignored)
        else:
            (folder / "source").mkdir(exist_ok=True)
            shutil.copy(_CHECKOUT / name, folder / "source" / name)
    _pip("wheel", "--quiet", "--no-deps", "--wheel-dir", str(folder), str(folder / "source"))
    return next(folder.glob("agrikd-*.whl"))


def _fetch(wheel: Wheel, out: Path) -> str:
    """Bring one file; pip knows the proxies and certificates of this machine. Returns its hash."""
    with tempfile.TemporaryDirectory(prefix=".part-", dir=out) as temporary:
        path = Path(temporary) / wheel.file
        try:
            if wheel.url.startswith("file:"):
                shutil.copy(unquote(urlsplit(wheel.url).path), path)
            else:
                hashed = f"{wheel.url}#sha256={wheel.sha256}" if wheel.sha256 else wheel.url
                _pip("download", "--quiet", "--no-deps", "--dest", temporary, *wheel.board.words(), hashed)
        except OfflineError as error:
            wrong = f"could not be fetched: {error}"
            mend = f"run this again, which goes on; or bring {wheel.url} by hand, into {out}"
            raise InputError(Problem(wheel.file, wrong, mend)) from None
        digest = _sha256(path)
        if wheel.sha256 not in ("", digest):
            raise InputError(Problem(wheel.file, "is not what the registry said it is", "run this again"))
        files.sync(path)
        path.replace(out / wheel.file)
    return digest


def _pip(*words: str) -> str:
    """What pip says on stdout; raises `OfflineError` with its last words where it fails."""
    command = [sys.executable, "-m", "pip", "--disable-pip-version-check", *words]
    settings = {**os.environ, "SOURCE_DATE_EPOCH": _EPOCH}
    done = subprocess.run(command, capture_output=True, text=True, check=False, env=settings)
    if done.returncode:
        said = [line.strip() for line in done.stderr.splitlines() if line.strip()]
        wrong = [line for line in said if line.startswith("ERROR:")] or said or [f"exit code {done.returncode}"]
        raise OfflineError("pip: " + " / ".join(line.removeprefix("ERROR: ") for line in wrong[-2:]))
    return done.stdout


def _wheel(said: dict[str, Any], board: Board) -> Wheel:
    """From an entry of pip's report."""
    about, origin = said["metadata"], said["download_info"]
    digest = origin.get("archive_info", {}).get("hashes", {}).get("sha256", "")
    needs = tuple(about.get("requires_dist", ()))
    return Wheel(board, about["name"].lower(), about["version"], origin["url"].partition("#")[0], digest, needs)


def _unreachable(out: Path, planned: dict[str, str], error: OfflineError) -> AgriKDError:
    """Without the registry: what the last plan still lacks, so that it can be brought by hand."""
    absent = sorted(name for name, digest in planned.items() if not _holds(out / name, digest))
    if not planned:
        return InputError(Problem(str(out), str(error), "run this once where there is internet"))
    if not absent:
        said = f"all {len(planned)} files of the last run are there and whole: it can be used as it is"
        return InputError(Problem(str(out), str(error), said))
    mend = f"run this where there is internet, or bring them by hand into {out}: {SUMS} says what they must be"
    return InputError([Problem(name, "is missing, and the registry does not answer", mend) for name in absent])


def _drop(out: Path, names: Iterable[str]) -> None:
    """Remove what an earlier plan brought and this one does not want: pip on the board would choose among them."""
    for name in sorted(names):
        console.say(f"{name}: no longer needed, removed")
        (out / name).unlink(missing_ok=True)


def _holds(path: Path, sha256: str) -> bool:
    return bool(sha256) and path.is_file() and _sha256(path) == sha256


def _sha256(path: Path) -> str:
    return files.sha256(files.read_bytes(path))
