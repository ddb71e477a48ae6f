"""The organisation's own accounts (OpenID Connect), by which people come into the app instead of by a password.

Streamlit does the protocol (authorization code flow; PKCE where the provider has it) by what the [auth] section of
`SECRETS` in the agent's folder says. Here is what must stand there, and what a provider must say of an account before
it is somebody's.
"""

from __future__ import annotations

import time
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from agrikd.errors import InputError, MissingExtraError, Problem

try:
    import streamlit as st
    from streamlit.errors import StreamlitSecretNotFoundError
except ImportError:
    raise MissingExtraError("streamlit", "app") from None

SECRETS = Path(".streamlit") / "secrets.toml"
SHORTEST_SECRET = 32
"""Of `cookie_secret`: who guesses it signs in as anybody."""
FRESH_S = 600
"""How long a provider's word lets somebody in; Streamlit's cookie would repeat it for 30 days."""
_WAY_BACK = "/oauth2callback"
_ONE = "default"
_ITS_KEYS = ("client_id", "client_secret", "server_metadata_url")


def providers(folder: Path) -> tuple[str, ...]:
    """Those of a folder's `SECRETS`, as `st.login` calls them; none where there is no such file, or no [auth] in it.

    Raises `InputError` for a section that is half said. `secrets.files` of Streamlit must be set to that file.
    """
    path = folder / SECRETS
    if not path.exists():
        return ()
    try:
        auth = st.secrets.get("auth")
    except StreamlitSecretNotFoundError as error:
        raise InputError(Problem(str(path), f"cannot be read: {error}")) from error
    if auth is None:
        return ()
    several = {name: one for name, one in auth.items() if isinstance(one, Mapping) and name != "client_kwargs"}
    found = several or {_ONE: auth}
    wrong = [problem for name, one in found.items() for problem in _missing(path, name, one)]
    if not str(auth.get("redirect_uri", "")).endswith(_WAY_BACK):
        wrong.append(Problem(f"{path}: redirect_uri", f"must be the app's address and {_WAY_BACK}"))
    if len(str(auth.get("cookie_secret", ""))) < SHORTEST_SECRET:
        mend = 'let chance write it: python3 -c "import secrets; print(secrets.token_hex(32))"'
        wrong.append(Problem(f"{path}: cookie_secret", f"must have {SHORTEST_SECRET} characters or more", mend))
    if wrong:
        raise InputError(wrong)
    return tuple(found)


def _missing(path: Path, name: str, one: Mapping[str, Any]) -> list[Problem]:
    wrong = [Problem(f"{path}: {key}", f"is not said, of {name}") for key in _ITS_KEYS if not one.get(key)]
    return [*wrong, Problem(f"{path}: {name}", "must have no _ in it")] if "_" in name else wrong


def fresh(said: Mapping[str, Any]) -> bool:
    """Whether a provider has said it just now (`iat`, OpenID Connect Core 1.0, 2)."""
    issued = said.get("iat")
    return isinstance(issued, int | float) and abs(time.time() - issued) <= FRESH_S


def address(said: Mapping[str, Any]) -> str:
    """The e-mail address of an account; empty where it has none, or one of which its provider says that nobody has
    shown that it is his: anybody may write another's there."""
    verified = said.get("email_verified") in (True, "true")  # some providers say it as a word
    return str(said.get("email") or "") if verified else ""


def named(address: str, names: Iterable[str]) -> str | None:
    """Which of the names is an address. Capitals of ASCII do not count; of other letters some look-alikes would become
    the same, and be another's."""
    return next((name for name in names if address and _small(name) == _small(address)), None)


def _small(text: str) -> bytes:
    return text.encode(errors="surrogatepass").lower()
