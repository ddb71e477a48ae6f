"""An OpenID provider on this machine (OpenID Connect Core 1.0, authorization code flow): it shows its accounts, and
whoever clicks on one has signed in as it. It holds its client to all that protects the flow."""

from __future__ import annotations

import base64
import contextlib
import hashlib
import secrets
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from html import escape
from pathlib import Path
from typing import Any
from urllib.parse import urlencode

import uvicorn
from field_kit import free_port
from joserfc import jwt
from joserfc.jwk import RSAKey
from serve_kit import until
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import HTMLResponse, JSONResponse, RedirectResponse, Response
from starlette.routing import Route

CLIENT, SECRET = "the-app", "a secret of the app's"


@dataclass
class Provider:
    """accounts: by what their buttons say, the claims of each. asked: what the authorization endpoint was asked for."""

    redirect_uri: str
    accounts: dict[str, dict[str, Any]]
    port: int = field(default_factory=free_port)
    asked: list[dict[str, str]] = field(default_factory=list)
    ended: list[dict[str, str]] = field(default_factory=list)
    _codes: dict[str, tuple[str, dict[str, str]]] = field(default_factory=dict)
    _key: RSAKey = field(
        default_factory=lambda: RSAKey.generate_key(2048, {"kid": "one", "use": "sig", "alg": "RS256"})
    )

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def secrets_to(self, folder: Path) -> None:
        """What the app must know of it, into the folder of an agent."""
        path = folder / ".streamlit" / "secrets.toml"
        path.parent.mkdir(exist_ok=True)
        path.write_text(
            f'[auth]\nredirect_uri = "{self.redirect_uri}"\ncookie_secret = "{secrets.token_hex(32)}"\n'
            f'client_id = "{CLIENT}"\nclient_secret = "{SECRET}"\n'
            f'server_metadata_url = "{self.url}/.well-known/openid-configuration"\n'
        )

    @contextlib.contextmanager
    def running(self) -> Iterator[Provider]:
        routes = [
            Route("/.well-known/openid-configuration", self._discovery),
            Route("/authorize", self._authorize),
            Route("/choose", self._choose),
            Route("/token", self._token, methods=["POST"]),
            Route("/jwks", self._jwks),
            Route("/end", self._end),
        ]
        server = uvicorn.Server(uvicorn.Config(Starlette(routes=routes), port=self.port, log_level="warning"))
        thread = threading.Thread(target=server.run)
        thread.start()
        until(lambda: server.started, 30)
        yield self
        server.should_exit = True
        thread.join(10)

    async def _discovery(self, _: Request) -> Response:
        return JSONResponse(
            {
                "issuer": self.url,
                "authorization_endpoint": f"{self.url}/authorize",
                "token_endpoint": f"{self.url}/token",
                "jwks_uri": f"{self.url}/jwks",
                "end_session_endpoint": f"{self.url}/end",
                "response_types_supported": ["code"],
                "subject_types_supported": ["public"],
                "id_token_signing_alg_values_supported": ["RS256"],
                "code_challenge_methods_supported": ["S256"],
            }
        )

    async def _jwks(self, _: Request) -> Response:
        return JSONResponse({"keys": [self._key.as_dict(private=False)]})

    async def _authorize(self, request: Request) -> Response:
        asked = dict(request.query_params)
        self.asked.append(asked)
        wanted = {"client_id": CLIENT, "redirect_uri": self.redirect_uri, "response_type": "code"}
        held = wanted.items() <= asked.items() and asked["code_challenge_method"] == "S256"
        if not held or "openid" not in asked["scope"].split() or not asked["state"] or not asked["nonce"]:
            return Response("not the client's way to ask", 400)
        number = len(self.asked) - 1
        links = [
            f'<p><a href="/choose?{urlencode({"as": name, "of": number})}">{escape(name)}</a>' for name in self.accounts
        ]
        return HTMLResponse("<!doctype html><h1>Who are you?</h1>" + "".join(links))

    async def _choose(self, request: Request) -> Response:
        asked, code = self.asked[int(request.query_params["of"])], secrets.token_urlsafe()
        self._codes[code] = request.query_params["as"], asked
        return RedirectResponse(f"{self.redirect_uri}?{urlencode({'code': code, 'state': asked['state']})}", 303)

    async def _token(self, request: Request) -> Response:
        form = dict((await request.form()).items())
        who, asked = self._codes.pop(str(form.get("code")), ("", {}))
        proof = base64.urlsafe_b64encode(hashlib.sha256(str(form.get("code_verifier")).encode()).digest())
        basic = base64.b64encode(f"{CLIENT}:{SECRET}".encode()).decode()
        known = request.headers.get("authorization") == f"Basic {basic}"
        if not known or not asked or proof.rstrip(b"=").decode() != asked["code_challenge"]:
            return JSONResponse({"error": "invalid_grant"}, 400)
        now = int(time.time())
        claims = {"iss": self.url, "sub": who, "aud": CLIENT, "iat": now, "exp": now + 3600, "nonce": asked["nonce"]}
        signed = jwt.encode({"alg": "RS256", "kid": "one"}, {**claims, **self.accounts[who]}, self._key)
        return JSONResponse({"access_token": secrets.token_urlsafe(), "token_type": "Bearer", "id_token": signed})

    async def _end(self, request: Request) -> Response:
        self.ended.append(dict(request.query_params))
        return RedirectResponse(request.query_params["post_logout_redirect_uri"], 303)
