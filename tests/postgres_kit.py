"""A PostgreSQL of the tests' own, in a folder, over a Unix socket; not as root, which it refuses to be."""

from __future__ import annotations

import atexit
import ctypes
import functools
import itertools
import os
import pwd
import shutil
import signal
import subprocess
import tempfile
import time
from pathlib import Path
from typing import Any

import psycopg
from needs import absent

_NUMBERS = itertools.count()


def database() -> str:
    """The URL of a new database; the server is started with the first and ends with the tests."""
    folder, name = _server(), f"hub{next(_NUMBERS)}"
    with psycopg.connect(_said(folder), autocommit=True) as db:
        db.execute(f"CREATE DATABASE {name}".encode())
    return f"postgresql://postgres@/{name}?host={folder}"


def _said(folder: Path) -> str:
    return f"host={folder} user=postgres dbname=postgres"


def _program(name: str) -> str:
    """Debian keeps them out of the PATH, by version."""
    found = sorted(Path("/usr/lib/postgresql").glob(f"*/bin/{name}")) or [shutil.which(name)]
    return str(found[-1] or absent(f"there is no {name}: apt-get install postgresql"))


def _as_user() -> dict[str, Any]:
    if os.geteuid():
        return {}
    try:
        found = pwd.getpwnam("postgres")
    except KeyError:
        absent("there is no user postgres: apt-get install postgresql")
    return {"user": found.pw_uid, "group": found.pw_gid, "extra_groups": []}


@functools.cache
def _server() -> Path:
    """Its folder, which holds its socket too."""
    initdb, postgres, user = _program("initdb"), _program("postgres"), _as_user()
    folder = Path(tempfile.mkdtemp(prefix="akp-"))  # a short name: a socket's may have 107 letters
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    if user:
        os.chown(folder, user["user"], user["group"])
    data = folder / "data"
    words = [initdb, "-D", data, "-U", "postgres", "-A", "trust", "-E", "UTF8", "--locale=C", "--no-sync"]
    subprocess.run(words, check=True, capture_output=True, cwd=folder, **user)
    own = {"unix_socket_directories": folder, "listen_addresses": "", "shared_buffers": "16MB", "max_connections": 90}
    options = [word for name, value in own.items() for word in ("-c", f"{name}={value}")]
    with (folder / "log").open("wb") as log:
        words = [postgres, "-D", data, *options]
        end_with_us = functools.partial(ctypes.CDLL(None).prctl, 1, signal.SIGQUIT)  # PR_SET_PDEATHSIG
        server = subprocess.Popen(words, stderr=log, cwd=folder, preexec_fn=end_with_us, **user)  # noqa: PLW1509
    atexit.register(server.wait, 20)
    atexit.register(server.send_signal, signal.SIGQUIT)
    end = time.monotonic() + 60
    while True:
        try:
            psycopg.connect(_said(folder)).close()
            return folder
        except psycopg.OperationalError:
            assert server.poll() is None and time.monotonic() < end, (folder / "log").read_text()
            time.sleep(0.05)
