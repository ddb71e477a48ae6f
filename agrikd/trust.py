"""Whose signature counts: a chain of roots, each naming the keys that may sign bundles and the next root.

After TUF (theupdateframework/specification, section 6.1): a device holds one root; the next one replaces it if it is
signed by enough keys of the old and of the new. A key that a root no longer names is revoked with it.
"""

from __future__ import annotations

import base64
import json
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from agrikd import dsse, files
from agrikd.dsse import Envelope, Key
from agrikd.errors import InputError, Problem, TrustError

KIND = "application/vnd.agrikd.root+json"
_SCHEMA = 1


@dataclass(frozen=True)
class Root:
    """version: 1, 2, … threshold: how many of its keys must sign a thing. keys: id to 32 bytes of public key."""

    version: int
    threshold: int
    keys: dict[str, bytes]

    def payload(self) -> bytes:
        keys = {name: base64.b64encode(public).decode() for name, public in self.keys.items()}
        return files.canonical({"schema": _SCHEMA, "version": self.version, "threshold": self.threshold, "keys": keys})

    @classmethod
    def read(cls, path: Path) -> Root:
        """From a file, without asking who signed it: whoever names the file vouches for it."""
        return cls.from_envelope(Envelope.from_bytes(files.read_bytes(path), str(path)), str(path))

    @classmethod
    def from_envelope(cls, envelope: Envelope, where: str) -> Root:
        """Read without asking who signed it."""
        try:
            if envelope.kind != KIND:
                raise ValueError(f"its kind is {envelope.kind}")
            said = json.loads(envelope.payload)
            publics = [base64.b64decode(text, validate=True) for text in said["keys"].values()]
            root = cls(int(said["version"]), int(said["threshold"]), {dsse.key_id(one): one for one in publics})
            if said["schema"] != _SCHEMA or root.version < 1 or not 1 <= root.threshold <= len(root.keys):
                raise ValueError("its schema, version or threshold is out of range")
        except (ArithmeticError, AttributeError, LookupError, RecursionError, TypeError, ValueError) as error:
            raise InputError(Problem(where, f"is no root of trust ({error})", "make one: agrikd keys new")) from None
        return root

    def require(self, envelope: Envelope, kind: str, where: str) -> bytes:
        """The payload, if it is of this kind and enough keys have signed it; raises `TrustError`."""
        if envelope.kind != kind:
            raise TrustError(f"{where}: is signed as {envelope.kind}, expected {kind}")
        found = envelope.signers(self.keys)
        if len(found) < self.threshold:
            named = ", ".join(name for name, _ in envelope.signatures) or "nobody"
            raise TrustError(
                f"{where}: {len(found)} trusted signatures, {self.threshold} needed; it is signed by {named}\n"
                f"    → sign it with a key of root {self.version}: {', '.join(self.keys)}"
            )
        return envelope.payload


def first(keys: Iterable[Key], threshold: int = 1) -> Envelope:
    """Root 1, signed by all its keys: a device takes it from whoever sets it up."""
    held = list(keys)
    return dsse.sign(KIND, Root(1, threshold, {key.id: key.public for key in held}).payload(), held)


def rotate(old: Root, signers: Iterable[Key], add: Iterable[bytes], remove: Iterable[str], threshold: int) -> Envelope:
    """The next root, signed by `signers`, who must be enough for the old and for the new.

    add: public keys. remove: ids; those that the old root does not name are an `InputError`.
    """
    gone = list(remove)
    if unknown := [name for name in gone if name not in old.keys]:
        raise InputError([Problem(name, "is no key of this root", f"it has {', '.join(old.keys)}") for name in unknown])
    keys = {name: public for name, public in old.keys.items() if name not in gone}
    keys |= {dsse.key_id(public): public for public in add}
    if not 1 <= threshold <= len(keys):
        raise InputError(Problem("threshold", f"is {threshold}, with {len(keys)} keys", "1 to the number of keys"))
    made = dsse.sign(KIND, Root(old.version + 1, threshold, keys).payload(), signers)
    successor(old, made, f"root {old.version + 1}")
    return made


def successor(old: Root, envelope: Envelope, where: str) -> Root:
    """The root in force after `old` is shown another: `old` itself, if that is no newer; raises `TrustError` unless it
    is the next one and both have signed it."""
    new = Root.from_envelope(envelope, where)
    if new.version <= old.version:
        return old
    if new.version != old.version + 1:
        raise TrustError(f"{where}: is root {new.version}, expected root {old.version + 1}")
    old.require(envelope, KIND, f"{where}, by root {old.version}")
    new.require(envelope, KIND, f"{where}, by itself")
    return new
