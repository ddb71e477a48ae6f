"""Hours of training steps: memory and open files must not grow."""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import psutil
import pytest

from agrikd import train
from agrikd.recipe import parse

pytestmark = pytest.mark.soak


def test_memory_and_open_files_do_not_grow(tiny: Callable[..., dict[str, Any]], tmp_path: Path) -> None:
    minutes = float(os.environ.get("AGRIKD_SOAK_MINUTES", "1"))
    recipe = parse(tiny(optim={"steps": 40, "batch": 8, "checkpoint_every": 10}), "soak")
    me, seen = psutil.Process(), []
    end = time.monotonic() + 60 * minutes
    while time.monotonic() < end or len(seen) < 5:
        train.fit(recipe, tmp_path / str(len(seen)))
        seen.append((me.memory_info().rss, me.num_fds()))
    after_warm_up, last = seen[2], seen[-1]
    print(f"{len(seen)} runs in {minutes:g} minutes: {after_warm_up[0] >> 20} MiB, then {last[0] >> 20} MiB")
    assert last[0] <= after_warm_up[0] * 1.15
    assert last[1] <= after_warm_up[1] + 4
