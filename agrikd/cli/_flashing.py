"""What `agrikd flash` asks for and shows: hosts in waves, a bar for all of them, a table at the end."""

from __future__ import annotations

import threading
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from agrikd import console, files
from agrikd.bundle import Bundle
from agrikd.cli._options import show
from agrikd.errors import InputError, Problem
from agrikd.flash import Options, Outcome, flash_all, waves


@dataclass(frozen=True)
class Asked:
    """A bundle that is whole, and the hosts in waves."""

    bundle: Path
    waves: list[list[str]]


def asked(words: Sequence[str], inventory: Path | None, canaries: int, wave: int) -> Asked:
    """The last word is the bundle; raises `InputError` with all that is wrong."""
    hosts, bundle, problems = list(words[:-1]), Path(words[-1]), []
    if inventory:
        lines = (line.partition("#")[0].strip() for line in files.read_text(inventory).splitlines())
        hosts += [line for line in lines if line]
    if not hosts:
        problems.append(Problem("hosts", "there are none", "agrikd flash HOST… BUNDLE, or --inventory FILE"))
    strange = [host for host in hosts if host.startswith("-") or any(letter.isspace() for letter in host)]
    problems += [Problem(f"host {host!r}", "is no host", "as ssh knows it, one a line") for host in strange]
    twice = sorted({host for host in hosts if hosts.count(host) > 1})
    problems += [Problem(f"host {host}", "is named twice", "name it once") for host in twice]
    try:
        with Bundle(bundle) as opened:
            opened.verify(None)
    except InputError as error:
        problems += error.problems
    if problems:
        raise InputError(problems)
    return Asked(bundle, waves(hosts, canaries, wave))


def shown(plan: Asked, options: Options, max_failed: float, as_json: bool) -> list[Outcome]:
    """Flash, with a bar over what all hosts lack (the whole bundle until one has said), and show how each ended."""
    hosts = [host for wave in plan.waves for host in wave]
    with Bundle(plan.bundle) as bundle:
        whole = sum(file.size_bytes for file in bundle.release.files)
    arrived, lacking = dict.fromkeys(hosts, 0), dict.fromkeys(hosts, whole)
    said, lock = dict[str, str](), threading.Lock()
    with console.job("flash, kB", whole * len(hosts) // 1000) as advance:

        def report(host: str, what: str, sent: tuple[int, int] | None) -> None:
            with lock:
                if sent is not None:
                    arrived[host], lacking[host] = sent
                    advance(sum(arrived.values()) // 1000, sum(lacking.values()) // 1000)
                if said.get(host) != what:
                    said[host] = what
                    console.say(f"{host}: {what}")

        outcomes = flash_all(plan.waves, plan.bundle, options, report, max_failed)
    columns = ("host", "", "kind", "MB to send" if options.dry_run else "MB", "cuts", "s", "")
    rows = [_row(one, one.needed_bytes if options.dry_run else one.sent_bytes) for one in outcomes]
    show(as_json, [vars(one) for one in outcomes], plan.bundle.name, columns, rows)
    return outcomes


def _row(one: Outcome, count: int) -> tuple[str, ...]:
    remark = "; ".join(filter(None, (one.reason, one.expired and f"expired since {one.expired}")))
    return one.host, one.phase, one.kind, f"{count / 1e6:.2f}", f"{one.cuts}", f"{one.seconds:.0f}", remark
