"""What a folder of Runs says, without torch, and while they are still written.

A Run may have come from anywhere, half copied or damaged, so nothing is read beyond a bound, and what cannot be
understood is an `InputError` about that file, beside which all others still speak.

runs      which there are, how far, how they differ     log      metrics.jsonl, followed
judged    what they are worth                           charts   all of it drawn
"""

from __future__ import annotations

import os
from pathlib import Path

RUNS = "AGRIKD_RUNS"
"""The folder of Runs, for the page."""


def folder(beside: Path) -> Path:
    """Where Runs lie: $AGRIKD_RUNS, else `runs` beside the agent's folder."""
    return Path(os.environ.get(RUNS) or beside.resolve().parent / "runs")
