"""A device in a folder, its key, and bundles for it."""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
from device_kit import Device, Pack, contents, release

from agrikd import bundle, trust
from agrikd.dsse import Key


@pytest.fixture(scope="session")
def key(tmp_path_factory: pytest.TempPathFactory) -> Key:
    return Key.new(tmp_path_factory.mktemp("keys") / "farm.key")


@pytest.fixture(scope="session")
def root(key: Key) -> bytes:
    return trust.first([key]).to_bytes()


@pytest.fixture
def packed(key: Key, tmp_path: Path) -> Pack:
    """Writes a bundle: seq, then what `contents` takes, then what of the release differs."""

    def write(seq: int = 1, keys: Sequence[Key] | None = None, held: Any = None, **changes: Any) -> Path:
        held = held or contents()
        path = tmp_path / f"leaf-{seq}-{len(list(tmp_path.iterdir()))}.akb"
        bundle.write(path, release(held, seq, **changes), held, [key] if keys is None else keys)
        return path

    return write


@pytest.fixture
def folder() -> Iterator[Path]:
    """A short path: a socket's may have 107 letters."""
    path = Path(tempfile.mkdtemp(prefix="akd-"))
    yield path / "store"
    shutil.rmtree(path)


@pytest.fixture
def device(folder: Path, root: bytes) -> Iterator[Device]:
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    made = Device(folder, root)
    yield made
    made.stop()
