"""python -m agrikd.device VERB: what is run on a device."""

from __future__ import annotations

import json
import signal
import sys
import time
from pathlib import Path
from typing import Annotated

import typer

from agrikd import console, files
from agrikd.bundle import Bundle
from agrikd.command import Group
from agrikd.device import installer, serve, settings, support
from agrikd.device.agent import Agent
from agrikd.device.child import Limits
from agrikd.device.store import PENDING, SETTINGS, Store
from agrikd.errors import DeviceError, InputError, Problem, RolledBackError
from agrikd.wire import Patient, Wire

app = typer.Typer(
    cls=Group,
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    add_completion=False,
    help="The device's side of agrikd: a model that serves, and the way to the next one.",
)
_SILENCE_S = 20.0


def store(context: typer.Context) -> Store:
    """The store of this invocation, made where it is not there."""
    folder: Path = context.obj
    with files.storage_errors(folder):
        return Store(folder)


def looked_at(context: typer.Context) -> Store:
    """The same, for a look or a change at one that is there; raises `InputError` where it is not."""
    folder: Path = context.obj
    if not (folder / "trust").is_dir():
        begin = f"or begin one: python -m agrikd.device --store {folder} trust root-1.dsse"
        raise InputError(Problem(str(folder), "is no folder of a device", f"name it by --store FOLDER, {begin}"))
    return store(context)


@app.callback()
def _root(
    context: typer.Context,
    folder: Annotated[Path, typer.Option("--store", envvar="AGRIKD_STORE", help="The device's folder.")] = Path(
        "/var/lib/agrikd"
    ),
) -> None:
    context.obj = folder


@app.command()
def run(
    context: typer.Context,
    memory_mib: Annotated[float, typer.Option(min=1, help="What a model may use.")] = Limits.memory_mib,
    budget_ms: Annotated[float, typer.Option(min=0, help="What a frame may take.")] = Limits.budget_ms,
    start_s: Annotated[float, typer.Option(min=1, help="What the building of an engine may take.")] = Limits.start_s,
    answer_s: Annotated[float, typer.Option(min=1, help="What an answer to the probes may take.")] = Limits.answer_s,
    trial_s: Annotated[float, typer.Option(min=1, help="What a trial may take.")] = Limits.trial_s,
) -> None:
    """The agent: keep the current release answering, end what was begun, look through the cameras of agent.yaml.

    Example: python -m agrikd.device --store device run
    """
    held = store(context)
    limits, trouble = Limits(start_s, answer_s, trial_s, memory_mib, budget_ms), ""
    try:
        own = settings.read(held.folder / SETTINGS)
    except InputError as error:  # a board in a field still serves its model, and takes a new one
        console.complain(str(error))
        own, trouble = settings.Settings(), str(error)
    agent = Agent(held, limits, own)
    agent.trouble = trouble
    run_agent(agent)


def run_agent(agent: Agent) -> None:
    """Until SIGTERM or Ctrl-C."""
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: agent.stop.set())
    agent.run()


@app.command()
def install(
    context: typer.Context,
    path: Annotated[Path, typer.Argument(help="A bundle (.akb), as on a stick.", show_default=False)],
    allow_downgrade: Annotated[bool, typer.Option("--allow-downgrade", help="Take an older release too.")] = False,
) -> None:
    """Install a bundle from a file, and wait until it serves; exit code 10 where it was rolled back.

    Example: python -m agrikd.device install coffee.akb
    """
    held = store(context)
    with Bundle(path) as bundle, held.locked():
        bundle.verify(held.root)
        release = installer.accept(held, bundle.envelope, held.root, local=allow_downgrade)
        if release is None:
            console.say(f"{bundle.release.name} {bundle.release.version} serves already")
            return
        installer.begin(held, bundle.envelope, release)
        for file, number in console.track(held.missing(release), "chunks"):
            held.take(release, file, number, bundle.chunk(file, number))
        installer.finish(held, release)
    _wait(held)


@app.command()
def rollback(context: typer.Context) -> None:
    """Go back to the release before this one, by the same trial; exit code 10 where that did not hold.

    Example: python -m agrikd.device rollback
    """
    held = looked_at(context)
    with held.locked():
        installer.back_to_previous(held)
    _wait(held)


@app.command()
def status(context: typer.Context, as_json: Annotated[bool, typer.Option("--json")] = False) -> None:
    """Say what serves, what is under way, and why the last release was not kept.

    Example: python -m agrikd.device status --json
    """
    found = support.status(looked_at(context))
    if as_json:
        typer.echo(json.dumps(found, ensure_ascii=False))
    else:
        console.stdout.print(console.table(support.summary(found), ("", ""), support.lines(found)))


@app.command()
def gc(context: typer.Context) -> None:
    """Remove releases that neither serve nor are kept for the way back.

    Example: python -m agrikd.device gc
    """
    held = looked_at(context)
    with held.locked():
        gone = held.collect()
    console.say(f"{len(gone)} releases removed; {held.size_bytes / 1e6:.1f} MB left")


@app.command()
def trust(
    context: typer.Context,
    path: Annotated[Path, typer.Argument(help="A root of trust.", show_default=False)],
) -> None:
    """Take a root of trust: the first one as it is, the next ones if the one before has signed them.

    Example: python -m agrikd.device trust root-1.dsse
    """
    envelope, held = files.read_bytes(path), store(context)
    with held.locked():
        root = held.trust(envelope, str(path))
    console.say(f"root {root.version}: {', '.join(root.keys)}")


@app.command("serve")
def serve_stdio(
    context: typer.Context, stdio: Annotated[bool, typer.Option("--stdio", help="Over stdin and stdout.")] = True
) -> None:
    """Answer one agrikd flash: the command that a flashing key is bound to.

    Example: python -m agrikd.device serve --stdio
    """
    wire = Wire(Patient(sys.stdin.buffer, _SILENCE_S), sys.stdout.buffer)
    serve.serve(store(context), wire)


@app.command()
def logs(
    context: typer.Context,
    bundle: Annotated[Path, typer.Option(help="The file to write (.tar.gz).", show_default=False)],
) -> None:
    """Write one file with what support needs to know: state, log, releases' texts, no photos and no keys.

    Example: python -m agrikd.device logs --bundle help.tar.gz
    """
    support.bundle_logs(looked_at(context), bundle)
    console.say(f"{bundle}")


def _wait(held: Store, seconds: float = 15.0) -> None:
    """Until the agent has ended what is pending; raises `RolledBackError` or, without an agent, `DeviceError`."""
    silent_since = time.monotonic()
    with console.job("the agent prepares and tries it") as _:
        while (state := held.state).phase in PENDING:
            if installer.agent_answers(held):
                silent_since = time.monotonic()
            elif time.monotonic() - silent_since > seconds:
                raise DeviceError("no agent is running\n    → start agrikd-agent: it goes on by itself")
            time.sleep(0.1)
    if state.phase == "ROLLED_BACK":
        raise RolledBackError(f"{state.release} was not kept: {state.reason}")
    console.say(f"{state.release} serves")


if __name__ == "__main__":
    app(prog_name="python -m agrikd.device")
