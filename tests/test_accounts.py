"""Accounts of an organisation: which providers a folder names, and whose account it is of which a provider speaks."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from agrikd import accounts, site
from agrikd.errors import InputError, Problem

ANA = "ana@farm.example"


@pytest.mark.parametrize(
    ("said", "name"),
    [
        ({"email": "ana@farm.example"}, None),  # nobody says that it is verified
        ({"email": "ANA@Farm.Example", "email_verified": True}, ANA),
        ({"email": ANA, "email_verified": "true"}, ANA),
        ({"email": ANA, "email_verified": False}, None),
        ({"email": ANA, "email_verified": "false"}, None),
        ({"email": ANA, "email_verified": None}, None),
        ({"email": " " + ANA}, None),
        ({"email": "mi\u212ae@farm.example"}, None),  # the Kelvin sign becomes a k in small letters
        ({"email": "\ud800"}, None),
        ({"email": ""}, None),
        ({}, None),
        ({"name": ANA, "preferred_username": ANA}, None),
    ],
)
def test_whose_account_it_is(said: dict[str, Any], name: str | None) -> None:
    assert accounts.named(accounts.address(said), [ANA, "mike@farm.example", ""]) == name


@pytest.mark.parametrize(("iat", "fresh"), [(0, True), (-590, True), (-610, False), (610, False), (None, False)])
def test_what_a_provider_said_long_ago_counts_for_nothing(iat: int | None, fresh: bool) -> None:
    assert accounts.fresh({} if iat is None else {"iat": time.time() + iat}) == fresh


GOOD = {
    "redirect_uri": "https://farm.example/oauth2callback",
    "cookie_secret": "x" * 32,
    "client_id": "app",
    "client_secret": "s",
    "server_metadata_url": "https://id.example/.well-known/openid-configuration",
}


def providers(folder: Path, said: str) -> tuple[str, ...]:
    """As the app, begun anew, finds them."""
    path = folder / accounts.SECRETS
    path.parent.mkdir(exist_ok=True)
    path.write_text(said)
    code = "import sys; from agrikd import accounts, site; from pathlib import Path; site.made()\n"
    code += "print(*accounts.providers(Path(sys.argv[1])))"
    done = subprocess.run(
        [sys.executable, "-c", code, str(folder)],
        env=os.environ | {site.FIELD: str(folder)},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    if done.returncode:
        raise InputError(Problem(done.stderr, "", ""))
    return tuple(done.stdout.split())


def toml(**changed: str) -> str:
    return "[auth]\n" + "".join(f'{key} = "{value}"\n' for key, value in (GOOD | changed).items())


def test_which_accounts_are_known(tmp_path: Path) -> None:
    assert accounts.providers(tmp_path) == () and providers(tmp_path, "[other]\nx = 1\n") == ()
    assert providers(tmp_path, toml() + '[auth.client_kwargs]\nprompt = "login"\n') == ("default",)
    ours = "".join(f'{key} = "{GOOD[key]}"\n' for key in ("client_id", "client_secret", "server_metadata_url"))
    both = '[auth]\nredirect_uri = "{redirect_uri}"\ncookie_secret = "{cookie_secret}"\n'.format(**GOOD)
    assert providers(tmp_path, f"{both}[auth.one]\n{ours}[auth.two]\n{ours}") == ("one", "two")


def test_accounts_that_are_half_said_are_refused_at_once(tmp_path: Path) -> None:
    with pytest.raises(InputError) as refused:
        providers(tmp_path, toml(cookie_secret="short", redirect_uri="https://farm.example/", client_secret=""))
    for wrong in ("cookie_secret", "redirect_uri", "client_secret", "of default"):
        assert wrong in str(refused.value), wrong
    with pytest.raises(InputError, match="cannot be read"):
        providers(tmp_path, "[auth")
    with pytest.raises(InputError, match="no _ in it"):
        providers(tmp_path, toml() + '[auth.my_own]\nclient_id = "x"\n')
