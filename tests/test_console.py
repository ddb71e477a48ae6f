"""What a terminal shows: jobs inside jobs share one display, pipes stay clean."""

from __future__ import annotations

import os
import pty
import subprocess
import sys

_NESTED = """
from agrikd import console
seen = []
for outer in console.track(range(2), "outer"):
    for inner in console.track([5, 6], "inner"):
        seen.append(inner)
with console.job("counted") as advance:
    advance(1, 3)
assert seen == [5, 6, 5, 6]
console.say("[train] done")
"""


def test_jobs_inside_jobs_share_one_display_on_a_terminal() -> None:
    here, there = pty.openpty()
    done = subprocess.Popen(
        [sys.executable, "-c", _NESTED], stderr=there, stdout=there, env={**os.environ, "TERM": "xterm"}
    )
    os.close(there)
    shown = b""
    while True:
        try:
            part = os.read(here, 4096)
        except OSError:  # the terminal's other end was closed
            break
        if not part:
            break
        shown += part
    assert done.wait() == 0, shown.decode()
    assert b"outer" in shown and b"inner" in shown and b"[train] done" in shown


def test_a_pipe_gets_words_only() -> None:
    done = subprocess.run([sys.executable, "-c", _NESTED], capture_output=True, text=True, check=True)
    assert done.stderr == "[train] done\n" and done.stdout == ""
