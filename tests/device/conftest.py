"""A device in a folder, its key, and bundles for it."""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest
from device_kit import Device


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
