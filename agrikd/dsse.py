"""Signed envelopes: DSSE (Dead Simple Signing Envelope, secure-systems-lab/dsse, protocol v1) with Ed25519 (RFC 8032).

What is signed is the kind of the payload together with its bytes, so that one can't be passed off as another.
"""

from __future__ import annotations

import base64
import binascii
import json
import os
import re
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from agrikd import files
from agrikd.errors import InputError, MissingExtraError, Problem

if TYPE_CHECKING:
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

PASSPHRASE = "AGRIKD_PASSPHRASE"
"""The environment variable with the passphrase of locked signing keys; that of season.key alone may stand in
$AGRIKD_PASSPHRASE_SEASON, which goes before it."""
_PUBLIC_BYTES = 32
_MOST_SIGNATURES = 16
"""Each costs time before anything is trusted."""


@dataclass(frozen=True)
class Envelope:
    """kind: the payload's media type. signatures: (key id, 64 bytes) each; a key id is a hint, nothing more."""

    kind: str
    payload: bytes
    signatures: tuple[tuple[str, bytes], ...]

    def to_bytes(self) -> bytes:
        signatures = [{"keyid": name, "sig": _b64(signature)} for name, signature in self.signatures]
        return files.canonical({"payload": _b64(self.payload), "payloadType": self.kind, "signatures": signatures})

    @classmethod
    def from_bytes(cls, data: bytes, where: str) -> Envelope:
        """Raises `InputError` naming `where` if the bytes are no envelope."""
        try:
            said: dict[str, Any] = json.loads(data)
            if len(said["signatures"]) > _MOST_SIGNATURES:
                raise ValueError(f"it has more than {_MOST_SIGNATURES} signatures")
            signatures = tuple((str(one["keyid"])[:64], _bytes(one["sig"])) for one in said["signatures"])
            return cls(str(said["payloadType"]), _bytes(said["payload"]), signatures)
        except (json.JSONDecodeError, UnicodeDecodeError):
            mend = "expected a .dsse file of agrikd, as keys new --root writes; or copy it again from where it was made"
            raise InputError(Problem(where, "is nothing that agrikd signed", mend)) from None
        except (AttributeError, LookupError, RecursionError, TypeError, ValueError) as error:
            wrong = f"is no signed envelope ({type(error).__name__}: {error})"
            raise InputError(Problem(where, wrong, "copy it again from where it was made")) from None

    def signers(self, keys: dict[str, bytes]) -> frozenset[str]:
        """The ids of those `keys` (id: 32 bytes) whose signature holds."""
        signed, held = self._signed(), dict(self.signatures)
        return frozenset(name for name in keys.keys() & held.keys() if _holds(keys[name], held[name], signed))

    def _signed(self) -> bytes:
        """PAE(type, body) of DSSE's protocol, section "Signature Definition"."""
        kind = self.kind.encode()
        return b"DSSEv1 %d %s %d %s" % (len(kind), kind, len(self.payload), self.payload)


class Key:
    """A signing key. id: the first 16 hexadecimal digits of its public part's SHA-256. public: 32 bytes."""

    def __init__(self, private: Ed25519PrivateKey) -> None:
        self._private = private
        self.public = private.public_key().public_bytes_raw()
        self.id = key_id(self.public)

    @classmethod
    def new(cls, path: Path, passphrase: str = "") -> Key:
        """Make a key: `path` (PEM, PKCS 8, for its owner's eyes alone) and `path`.pub. An existing file stays."""
        ed25519, serialization = _cryptography()
        for one in (path, public_path(path)):
            if one.exists():
                raise InputError(Problem(str(one), "exists", "a key is never overwritten: choose another name"))
        made = cls(ed25519.Ed25519PrivateKey.generate())
        locked = serialization.BestAvailableEncryption(passphrase.encode()) if passphrase else None
        pem = made._private.private_bytes(
            serialization.Encoding.PEM,
            serialization.PrivateFormat.PKCS8,
            locked or serialization.NoEncryption(),
        )
        with files.storage_errors(path):
            path.parent.mkdir(parents=True, exist_ok=True)
            handle = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
            with os.fdopen(handle, "wb") as out:
                out.write(pem)
                os.fsync(out.fileno())
        files.write_text(public_path(path), _b64(made.public) + "\n")
        return made

    @classmethod
    def read(cls, path: Path) -> Key:
        """The key at `path`; for the passphrase of a locked one see `PASSPHRASE`."""
        ed25519, serialization = _cryptography()
        text, own = files.read_text(path), _own_variable(path)
        given = os.environ.get(own) or os.environ.get(PASSPHRASE) or ""
        passphrase = (given.encode() or None) if "ENCRYPTED" in text else None
        try:
            found = serialization.load_pem_private_key(text.encode(), passphrase)
        except TypeError:
            mend = f"it is read from ${own}, or from ${PASSPHRASE}"
            raise InputError(Problem(str(path), "is locked with a passphrase", mend)) from None
        except ValueError:
            raise InputError(Problem(str(path), *_no_key(path, locked=passphrase is not None))) from None
        if not isinstance(found, ed25519.Ed25519PrivateKey):
            raise InputError(Problem(str(path), "is a key, but not Ed25519", "make one: agrikd keys new"))
        return cls(found)

    def sign(self, data: bytes) -> bytes:
        return self._private.sign(data)


def sign(kind: str, payload: bytes, keys: Iterable[Key]) -> Envelope:
    """An envelope with a signature of each key."""
    bare = Envelope(kind, payload, ())
    return Envelope(kind, payload, tuple((key.id, key.sign(bare._signed())) for key in keys))


def key_id(public: bytes) -> str:
    return files.sha256(public)[:16]


def public_path(path: Path) -> Path:
    """Where the public half of the key at `path` stands."""
    return path.with_name(path.name + ".pub")


def _own_variable(path: Path) -> str:
    """Where the passphrase of this key alone is read."""
    return f"{PASSPHRASE}_{re.sub('[^A-Z0-9]', '_', path.stem.upper())}"


def _no_key(path: Path, locked: bool) -> tuple[str, str]:
    """What a file that cannot be read as a signing key is, and the way out."""
    text = files.read_text(path).strip()
    if _is_public(text):
        return "is the public half of a key", f"name the secret half, as in {path.with_suffix('')}"
    if locked and text.startswith("-----BEGIN"):
        mend = f"it is read from ${_own_variable(path)}, or from ${PASSPHRASE}"
        return "is no signing key, or has another passphrase", mend
    return "is no signing key", "make one: agrikd keys new"


def read_public(path: Path) -> bytes:
    """32 bytes from a .pub file."""
    text = files.read_text(path).strip()
    if not _is_public(text):
        raise InputError(Problem(str(path), "is no public key", "expected the .pub file that agrikd keys new made"))
    return _bytes(text)


def _is_public(text: str) -> bool:
    try:
        return len(_bytes(text)) == _PUBLIC_BYTES
    except ValueError:
        return False


def _holds(public: bytes, signature: bytes, data: bytes) -> bool:
    ed25519, _ = _cryptography()
    from cryptography.exceptions import InvalidSignature

    try:
        ed25519.Ed25519PublicKey.from_public_bytes(public).verify(signature, data)
    except (InvalidSignature, ValueError):
        return False
    return True


def _cryptography() -> tuple[Any, Any]:
    try:
        from cryptography.hazmat.primitives import serialization
        from cryptography.hazmat.primitives.asymmetric import ed25519
    except ImportError:
        raise MissingExtraError("cryptography", "edge") from None
    return ed25519, serialization


def _b64(data: bytes) -> str:
    return base64.b64encode(data).decode()


def _bytes(text: str) -> bytes:
    try:
        return base64.b64decode(text, validate=True)
    except binascii.Error as error:
        raise ValueError(str(error)) from None
