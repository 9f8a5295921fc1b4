"""Let in only who may come in, and tell browsers what the page may do.

A page of another origin must not reach the server through its user's browser. ``Host`` must be a name of this machine
(a foreign name that resolves to it would make the foreign page same-origin), and requests that a browser marks as
coming from another origin are refused. No answer allows another origin anything.
"""

from __future__ import annotations

import hmac
from http.cookies import CookieError, SimpleCookie
from urllib.parse import parse_qs, urlsplit

from starlette.datastructures import Headers, MutableHeaders
from starlette.exceptions import HTTPException
from starlette.responses import RedirectResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from efface.app.serving.refusing import answer
from efface.app.serving.schemas import Problem
from efface.app.serving.settings import LOOPBACK, Settings

COOKIE = "efface"
MAX_JSON = 1_000_000
"""Bytes of the largest request that is not a file."""
HEADERS = {
    "Content-Security-Policy": (
        "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' blob:; connect-src 'self'; "
        "worker-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
    ),
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Cross-Origin-Opener-Policy": "same-origin",
}


class Guard:
    """Check every request before the application sees it, and add the headers to every answer."""

    def __init__(self, app: ASGIApp, settings: Settings) -> None:
        self.app, self.settings = app, settings

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one request."""
        if scope["type"] == "lifespan":
            await self.app(scope, receive, send)
            return
        if scope["type"] != "http":  # nothing here speaks websocket
            return
        headers = Headers(scope=scope)

        async def send_guarded(message: Message) -> None:
            if message["type"] == "http.response.start":
                added = MutableHeaders(scope=message)
                for name, value in HEADERS.items():
                    added[name] = value
            await send(message)

        respond = self._refuse(scope, headers) or self._enter(scope)
        if respond is not None:
            await respond(scope, receive, send_guarded)
        else:
            await self.app(scope, receive if takes_file(scope) else _limited(receive), send_guarded)

    def _refuse(self, scope: Scope, headers: Headers) -> ASGIApp | None:
        host = headers.get("host", "")
        if self.settings.local and _name(host) not in LOOPBACK:
            return answer(421, Problem(what="this server answers to localhost only", where=host[:100]))
        origin = headers.get("origin")
        if headers.get("sec-fetch-site") == "cross-site" and scope["path"] != "/":
            return answer(403, Problem(what="another site may not ask this server"))
        if scope["method"] not in ("GET", "HEAD") and origin is not None and origin.partition("://")[2] != host:
            return answer(403, Problem(what="another site may not change anything here", where=origin[:100]))
        if not self._known(scope, headers):
            fix = "Open the address that the server printed when it started"
            return answer(401, Problem(what="the token is missing or wrong", fix=fix), {"WWW-Authenticate": "Bearer"})
        return None

    def _known(self, scope: Scope, headers: Headers) -> bool:
        given = [headers.get("authorization", "").removeprefix("Bearer "), _cookie(headers), _asked(scope)]
        token = self.settings.token
        same = [hmac.compare_digest(value.encode(), (token or "").encode()) for value in given]  # all, in equal time
        return token is None or any(same)

    def _enter(self, scope: Scope) -> ASGIApp | None:
        """Put the token of an opened address into a cookie, and take it out of the address."""
        if self.settings.token is None or not _asked(scope):
            return None
        response = RedirectResponse("/", 303)
        response.set_cookie(COOKIE, self.settings.token, httponly=True, samesite="strict")
        return response


def takes_file(scope: Scope) -> bool:
    """Say whether the body of a request is a file, whose limits its route enforces."""
    return scope["method"] == "PUT" or (scope["method"] == "POST" and scope["path"] == "/api/pictures")


def _limited(receive: Receive) -> Receive:
    left = MAX_JSON

    async def receive_some() -> Message:
        nonlocal left
        message = await receive()
        left -= len(message.get("body", b""))
        if left < 0:
            raise HTTPException(413, f"the request has more than {MAX_JSON / 1e6:g} MB")
        return message

    return receive_some


def _name(host: str) -> str:
    try:
        return urlsplit(f"//{host}").hostname or ""
    except ValueError:
        return ""


def _cookie(headers: Headers) -> str:
    try:
        found = SimpleCookie(headers.get("cookie", "")).get(COOKIE)
    except CookieError:
        return ""
    return found.value if found is not None else ""


def _asked(scope: Scope) -> str:
    """Return the token in the address, which is looked for at ``/`` only."""
    if scope["method"] != "GET" or scope["path"] != "/":
        return ""
    return parse_qs(scope["query_string"].decode("latin-1")).get("token", [""])[0]
