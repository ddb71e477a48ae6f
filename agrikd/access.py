"""Who may look at the app, and who may also label and roll back: names and roles in a file of the agent's folder, with
passwords by argon2id (RFC 9106, its second recommended choice, which argon2-cffi's defaults are), and signed cookies,
each of which ends with its time, with the password and the role it was made for, and with the name. A name without a
password comes in by an account of the organisation (`agrikd.accounts`)."""

from __future__ import annotations

import json
import secrets
import threading
import time
from collections import defaultdict, deque
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Literal, get_args

from agrikd import files
from agrikd.errors import AgriKDError, InputError, MissingExtraError, Problem

try:
    import argon2
    from itsdangerous import BadData, URLSafeTimedSerializer
except ImportError:
    raise MissingExtraError("argon2-cffi", "app") from None

Role = Literal["viewer", "reviewer"]
USERS, KEY = "access.json", "access.key"
LONGEST_S = 12 * 3600
SHORTEST_PASSWORD, LONGEST_PASSWORD = 8, 200
_TRIES, _WITHIN_S, _ADDRESSES = 5, 60.0, 10_000
_NO_PASSWORD = "no_password"
"""Instead of a hash: what stands there is random, so that the cookies of a name end although it comes back later."""
_LONGEST_COOKIE = 1000
"""More is not looked at: what is packed in a forged one would be unpacked before its signature is read."""


@dataclass(frozen=True)
class Visitor:
    """Who looks. name: empty for whoever sits at this machine."""

    name: str = ""
    role: Role = "viewer"

    @property
    def reviews(self) -> bool:
        """Whether he may label, ask the teacher and roll back."""
        return self.role == "reviewer"

    def require_review(self) -> None:
        """Raises `InputError` for whoever may only look."""
        if not self.reviews:
            raise InputError(
                Problem(self.name or "this visitor", "may look, but not change anything", "ask a reviewer")
            )


class Access:
    """The names of an agent's folder. Raises `InputError` for a file that is none of its own."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._hasher = argon2.PasswordHasher()
        self._tries: dict[str, deque[float]] = defaultdict(deque)
        self._lock = threading.Lock()
        self._left: dict[str, float] = {}
        self._seen: tuple[int, dict[str, dict[str, str]]] = (0, {})

    @property
    def users(self) -> dict[str, dict[str, str]]:
        """Name to its role and either its hash or what stands there instead, as the file stands now."""
        path = self._folder / USERS
        if not path.exists():
            return {}
        changed = path.stat().st_mtime_ns
        if self._seen[0] != changed:
            self._seen = changed, _users(files.read_json(path), path)
        return self._seen[1]

    @property
    def passwords(self) -> bool:
        """Whether any name has one."""
        return any("hash" in one for one in self.users.values())

    def put(self, name: str, password: str | None, role: Role) -> None:
        """Add a name, or change its password and role. None: it comes in by an account alone."""
        wrong = []
        if not name.strip() or len(name) > 100 or not name.isprintable():
            wrong.append(Problem("the name", "must have 1 to 100 characters that can be printed"))
        if password is not None and not SHORTEST_PASSWORD <= len(password) <= LONGEST_PASSWORD:
            wrong.append(Problem("the password", f"must have {SHORTEST_PASSWORD} to {LONGEST_PASSWORD} characters"))
        if wrong:
            raise InputError(wrong)
        held = {_NO_PASSWORD: secrets.token_hex(16)} if password is None else {"hash": self._hasher.hash(password)}
        self._write({**self.users, name: {"role": role, **held}})

    def remove(self, name: str) -> None:
        """Raises `InputError` where there is no such name."""
        left = dict(self.users)
        if left.pop(name, None) is None:
            known = ", ".join(left) or "none"
            raise InputError(Problem(name, "is no name here", f"there are: {known}"))
        self._write(left)

    def _write(self, users: dict[str, dict[str, str]]) -> None:
        files.write_secret(self._folder / USERS, json.dumps(users, indent=1, ensure_ascii=False) + "\n")

    # Coming in

    def admit(self, address: str) -> float:
        """Count one more try of an address; how long it must wait instead, in seconds, where those were too many."""
        with self._lock:
            if len(self._tries) >= _ADDRESSES:
                self._tries.clear()
            tries = self._tries[address]
            while tries and tries[0] < time.monotonic() - _WITHIN_S:
                tries.popleft()
            if len(tries) >= _TRIES:
                return tries[0] + _WITHIN_S - time.monotonic()
            tries.append(time.monotonic())
            return 0.0

    def check(self, name: str, password: str, address: str) -> bool:
        """Whether it is the name's password. A name that is not there, or has none, takes as long as one that has."""
        held = self.users.get(name, {}).get("hash", self._nobody)
        try:
            self._hasher.verify(held, password[: LONGEST_PASSWORD + 1])
        except (argon2.exceptions.VerificationError, argon2.exceptions.InvalidHashError):
            return False
        with self._lock:
            if tries := self._tries.get(address):
                tries.pop()  # this one alone: those on other names stay
        return held is not self._nobody

    @cached_property
    def _nobody(self) -> str:
        return self._hasher.hash(secrets.token_hex(16))

    def cookie(self, name: str) -> str:
        """What shows for `LONGEST_S` that `name` came in."""
        return self._signer(self.users[name]).dumps(name)

    def visitor(self, cookie: str) -> Visitor | None:
        """Whose cookie it is; None for one that is forged, too old, of a password or role that was changed, or of who
        signed out."""
        if len(cookie) > _LONGEST_COOKIE or cookie in self._left:
            return None
        try:
            _, name = URLSafeTimedSerializer("").loads_unsafe(cookie)
            held = self.users[str(name)]
            self._signer(held).loads(cookie, max_age=LONGEST_S)
        except (BadData, KeyError, AgriKDError):
            return None
        return Visitor(str(name), "reviewer" if held["role"] == "reviewer" else "viewer")

    def leave(self, cookie: str) -> None:
        """A cookie that shows nothing more, wherever it is copied to: whoever had it signed out."""
        if self.visitor(cookie):
            now = time.monotonic()
            with self._lock:
                self._left = {one: t for one, t in self._left.items() if now - t < LONGEST_S} | {cookie: now}

    def _signer(self, held: dict[str, str]) -> URLSafeTimedSerializer:
        """A signature that ends with what is held of a name."""
        path = self._folder / KEY
        if not path.exists():
            files.write_secret(path, secrets.token_hex(32) + "\n")
        ends = held["role"] + (held.get("hash") or held[_NO_PASSWORD])
        return URLSafeTimedSerializer([files.read_text(path).strip() + ends], salt="agrikd")


def _users(said: Any, path: Path) -> dict[str, dict[str, str]]:
    good = isinstance(said, dict) and all(
        isinstance(one, dict)
        and one.get("role") in get_args(Role)
        and len(kinds := one.keys() & {"hash", _NO_PASSWORD}) == 1
        and all(isinstance(one[kind], str) and one[kind] for kind in kinds)
        for one in said.values()
    )
    if not good:
        raise InputError(Problem(str(path), "is no list of names", "remove it, and add the names: agrikd access add"))
    return dict(said)
