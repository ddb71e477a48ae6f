"""What a test wants of the machine: skipped where it is not there, but never in CI, where all of it is."""

from __future__ import annotations

import os
import shutil
from typing import NoReturn

import pytest


def absent(reason: str) -> NoReturn:
    """Skip a test that wants what is not there; in CI it fails."""
    if os.environ.get("CI") == "true":
        pytest.fail(reason)
    pytest.skip(reason)


def needed(program: str, package: str) -> str:
    """The path of a program, or a skip that says how to get it."""
    found = shutil.which(program, path=os.environ.get("PATH", "") + ":/usr/sbin:/sbin")
    return found or absent(f"there is no {program}: apt-get install {package}")
