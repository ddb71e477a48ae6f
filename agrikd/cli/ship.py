"""The verbs between the lab and a device: keys, bundles, flash."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from agrikd import console
from agrikd.cli._options import AsJson, RunFolder, show, tell


def register(app: typer.Typer) -> None:
    """Add these verbs."""
    keys = typer.Typer(no_args_is_help=True, help="Make the keys that sign bundles, and say whose signature counts.")
    keys.command("new")(keys_new)
    keys.command("rotate")(keys_rotate)
    app.add_typer(keys, name="keys")
    bundle = typer.Typer(no_args_is_help=True, help="Pack a Run into one signed file for devices.")
    bundle.command("pack")(bundle_pack)
    bundle.command("show")(bundle_show)
    bundle.command("verify")(bundle_verify)
    bundle.command("permit")(bundle_permit)
    app.add_typer(bundle, name="bundle")
    app.command()(flash)


KeyFiles = Annotated[
    list[Path],
    typer.Option(
        "--key",
        help="A signing key; may be given twice. The passphrase of a locked season.key is read from "
        "$AGRIKD_PASSPHRASE_SEASON, else $AGRIKD_PASSPHRASE.",
        show_default=False,
    ),
]
BundleFile = Annotated[Path, typer.Argument(help="A bundle (.akb).", show_default=False)]


def keys_new(
    path: Annotated[Path, typer.Argument(help="The key to make; PATH.pub is made beside it.", show_default=False)],
    root: Annotated[
        Path | None, typer.Option(help="Also make a root of trust with this key alone, for new devices.")
    ] = None,
    locked: Annotated[
        bool,
        typer.Option(
            help="Ask for a passphrase; later it is read from $AGRIKD_PASSPHRASE, or $AGRIKD_PASSPHRASE_SEASON "
            "for a season.key alone."
        ),
    ] = False,
    as_json: AsJson = False,
) -> None:
    """Make a signing key (Ed25519), and the root of trust that devices are set up with.

    Example: agrikd keys new keys/season.key --root keys/root-1.dsse
    """
    from agrikd import files, trust
    from agrikd.dsse import Key
    from agrikd.errors import InputError, Problem

    if root and root.exists():
        raise InputError(Problem(str(root), "exists", "choose another name, or: agrikd keys rotate"))
    passphrase = typer.prompt("Passphrase", hide_input=True, confirmation_prompt=True) if locked else ""
    key = Key.new(path, passphrase)
    words = f"key {key.id}: {path} (keep it secret), {path}.pub"
    if root:
        files.write_bytes(root, trust.first([key]).to_bytes())
        words += f"\nroot 1: {root}"
    made = {"key": key.id, "path": str(path), "public": f"{path}.pub", "root": str(root) if root else None}
    tell(as_json, made, words)


def keys_rotate(
    root: Annotated[Path, typer.Argument(help="The root of trust in force.", show_default=False)],
    key: KeyFiles,
    out: Annotated[Path, typer.Option(help="The next root.", show_default=False)],
    add: Annotated[list[Path] | None, typer.Option(help="A .pub file whose key counts from now on.")] = None,
    remove: Annotated[list[str] | None, typer.Option(help="The id of a key that no longer counts.")] = None,
    threshold: Annotated[
        int | None, typer.Option(min=1, help="How many keys must sign a thing (default: the old root's).")
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Make the next root of trust, signed by enough keys of the old and of the new one.

    Example: agrikd keys rotate root-1.dsse --key old.key --key new.key --add new.key.pub --out root-2.dsse
    """
    from agrikd import dsse, files, trust
    from agrikd.errors import InputError, Problem

    old = trust.Root.read(root)
    signers, added = [dsse.Key.read(path) for path in key], [dsse.read_public(path) for path in add or ()]
    needed = threshold or old.threshold
    made = trust.rotate(old, signers, added, remove or (), needed)
    if out.exists():
        raise InputError(Problem(str(out), "exists", "choose another name: devices may need the older one"))
    files.write_bytes(out, made.to_bytes())
    if needed < old.threshold:
        console.say(f"{out}: fewer keys must sign a thing from now on: {needed} instead of {old.threshold}")
        console.say("    → to keep as many, rotate again from the old root without --threshold")
    words = f"root {old.version + 1}: {out}, {needed} of its keys must sign a thing"
    said = {"version": old.version + 1, "path": str(out), "threshold": needed}
    tell(as_json, said, f"{words}; each device takes it with the next flash that names it")


def bundle_pack(
    run: RunFolder,
    key: KeyFiles,
    out: Annotated[Path, typer.Option(help="The bundle, as in coffee.akb.", show_default=False)],
    name: Annotated[str, typer.Option(help="(default: the recipe's)", show_default=False)] = "",
    version: Annotated[str, typer.Option(help="For people (default: today).", show_default=False)] = "",
    seq: Annotated[
        int | None, typer.Option(min=0, help="Larger than any before of this name (default: the time in seconds).")
    ] = None,
    compatible: Annotated[
        list[str] | None, typer.Option(help="A pattern of devices, as in 'aarch64-jetpack6*' (default: all).")
    ] = None,
    labels: Annotated[Path | None, typer.Option(help="YAML with the classes' words by language.")] = None,
    budget_ms: Annotated[
        float | None, typer.Option(min=0, help="A device that needs longer a frame rolls back.")
    ] = None,
    expires: Annotated[str | None, typer.Option(help="A date after which devices warn.")] = None,
    as_json: AsJson = False,
) -> None:
    """Pack what was exported of a Run, with probe photos and their answers, and sign it.

    Example: agrikd bundle pack runs/coffee --key keys/season.key --out coffee.akb
    """
    from agrikd import pack
    from agrikd.dsse import Key

    options = pack.Options(name, version, seq, tuple(compatible or ("*",)), labels, budget_ms, expires)
    made = pack.pack(run, out, [Key.read(path) for path in key], options)
    if made.spec.calibration is None:
        console.say(f"{run}: was not calibrated when it was exported: its percentages are not to be relied on")
        console.say(f"    → agrikd calibrate {run}, then export and pack it again")
    said = {name: getattr(made, name) for name in ("name", "version", "seq", "size_bytes")}
    words = f"{out}: {made.name} {made.version}, seq {made.seq}, {made.size_bytes / 1e6:.2f} MB"
    tell(as_json, {"path": str(out), **said, "calibrated": made.spec.calibration is not None}, words)


def bundle_show(path: BundleFile, as_json: AsJson = False) -> None:
    """Say what a bundle holds, without asking who signed it.

    Example: agrikd bundle show coffee.akb
    """
    import json

    from agrikd.bundle import Bundle
    from agrikd.dsse import Envelope

    with Bundle(path) as bundle:
        made, envelope = bundle.release, Envelope.from_bytes(bundle.envelope, str(path))
    title = (
        f"{made.name} {made.version}, seq {made.seq}, signed by {', '.join(name for name, _ in envelope.signatures)}"
    )
    rows = [(one.name, f"{one.size_bytes:,}", one.sha256[:16]) for one in made.files]
    show(as_json, json.loads(made.payload()), title, ("file", "bytes", "SHA-256"), rows)


def bundle_verify(
    path: BundleFile,
    root: Annotated[Path, typer.Option(help="The root of trust of the devices.", show_default=False)],
    as_json: AsJson = False,
) -> None:
    """Hold every byte of a bundle against its signature; exit code 9 where that is of a key that does not count.

    Example: agrikd bundle verify coffee.akb --root keys/root-1.dsse
    """
    from agrikd.bundle import Bundle
    from agrikd.trust import Root

    with Bundle(path) as bundle:
        bundle.verify(Root.read(root))
        said = {"path": str(path), "name": bundle.release.name, "seq": bundle.release.seq}
    tell(as_json, said, f"{path}: whole, and signed by whom root {root} trusts")


def flash(
    hosts: Annotated[list[str], typer.Argument(help="Hosts as ssh knows them, then the bundle.", show_default=False)],
    inventory: Annotated[
        Path | None, typer.Option(help="A file with a host a line; # begins a comment.", show_default=False)
    ] = None,
    root: Annotated[
        list[Path] | None, typer.Option(help="A newer root of trust; may be given twice.", show_default=False)
    ] = None,
    permission: Annotated[
        Path | None, typer.Option(help="Of agrikd bundle permit, for an older release.", show_default=False)
    ] = None,
    canaries: Annotated[int, typer.Option(min=1, help="How many hosts are flashed before the others.")] = 1,
    wave: Annotated[int, typer.Option(min=1, help="How many hosts at the same time after them.")] = 8,
    max_failed: Annotated[float, typer.Option(min=0, max=1, help="Share of a wave; beyond it the rest is left.")] = 0.2,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Ask each what it would take; change nothing.")] = False,
    patience_s: Annotated[float, typer.Option(min=1, help="Without progress, after which a host is given up.")] = 1800,
    ssh_config: Annotated[Path | None, typer.Option("-F", help="As of ssh.", show_default=False)] = None,
    as_json: AsJson = False,
) -> None:
    """Bring a bundle to devices over SSH; exit code 10 where one did not keep it, or was not reached.

    Example: agrikd flash orchard-1 orchard-2 coffee.akb --dry-run
    """
    from agrikd import files
    from agrikd import flash as flashing
    from agrikd.cli._flashing import asked, shown

    plan = asked(hosts, inventory, canaries, wave)
    ssh = (*flashing.SSH, "-F", str(ssh_config)) if ssh_config else flashing.SSH
    roots = tuple(files.read_bytes(path) for path in root or ())
    allowed = files.read_bytes(permission) if permission else None
    options = flashing.Options(ssh, roots=roots, permission=allowed, dry_run=dry_run, patience_s=patience_s)
    outcomes = shown(plan, options, max_failed, as_json)
    if not all(one.good for one in outcomes):
        raise typer.Exit(10)


def bundle_permit(
    path: BundleFile,
    key: KeyFiles,
    floor: Annotated[int, typer.Option(min=0, help="The highest seq that the devices have had.", show_default=False)],
    out: Annotated[Path, typer.Option(help="The permission.", show_default=False)],
    as_json: AsJson = False,
) -> None:
    """Allow devices that have had newer releases, up to --floor, to take this older one.

    Example: agrikd bundle permit coffee-june.akb --floor 1790000000 --key keys/season.key --out go-back.dsse
    """
    from agrikd import dsse, files
    from agrikd.bundle import Bundle
    from agrikd.device.installer import PERMISSION

    with Bundle(path) as bundle:
        said = {"name": bundle.release.name, "seq": bundle.release.seq, "floor": floor}
    files.write_bytes(out, dsse.sign(PERMISSION, files.canonical(said), [dsse.Key.read(one) for one in key]).to_bytes())
    words = f"{out}: {said['name']} may go back to {said['seq']} where no more than {floor} has been"
    tell(as_json, {"path": str(out), **said}, words)
