"""Access control: the address, the Host header, the method, the token. Other requests are refused
before the app sees them."""

from __future__ import annotations

import hashlib
import hmac
import ipaddress
import re
from collections.abc import MutableMapping
from dataclasses import dataclass
from http.cookies import CookieError, SimpleCookie
from typing import Any
from urllib.parse import unquote

from anyio import BrokenResourceError
from starlette.datastructures import Headers, MutableHeaders
from starlette.responses import JSONResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from gratis.errors import GratisError

# set by the page itself, so that its event stream, which can carry no header, has it
COOKIE = "gratis_token"
OPEN = re.compile(r"/|/static/.*|/livez|/readyz|/healthz")  # nothing of a run is in these
HEADERS = {
    "Content-Security-Policy": (
        "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self'; "
        "connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
    ),
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Cache-Control": "no-cache",
}


@dataclass(frozen=True, kw_only=True)
class Access:
    """What a request must bring. Raises GratisError for a token that cannot be sent, or none where
    one is needed."""

    host: str
    allowed: frozenset[str] = frozenset()  # further Host names, lower case
    token: str | None = None

    def __post_init__(self) -> None:
        if self.token is None and not is_loopback(self.host):
            raise GratisError(
                f"host {self.host} can be reached from other machines: set GRATIS_TOKEN or give "
                "--token-file, or leave --host at 127.0.0.1"
            )
        if self.token is not None and not re.fullmatch(r"[!-~]{16,256}", self.token):
            rule = "16 to 256 printable ASCII characters without a space"
            raise GratisError(f"the token is not {rule}; make another one")

    def knows_host(self, header: str, local: str) -> bool:
        """Whether a Host header names this server: against pages of other sites that resolve their
        name to it."""
        name = re.sub(r":\d*$", "", header.strip().lower()).strip("[]").rstrip(".")
        return name in {"localhost", "127.0.0.1", "::1", local, self.host.lower()} | self.allowed

    def accepts(self, headers: Headers) -> bool:
        """Whether the request carries the token, as a bearer's or in the page's cookie. In constant
        time."""
        if self.token is None:
            return True
        scheme, _, given = headers.get("authorization", "").partition(" ")
        offered = [given.strip()] if scheme.lower() == "bearer" else []
        try:
            cookie = SimpleCookie(headers.get("cookie", "")).get(COOKIE)
        except CookieError:
            cookie = None
        offered += [unquote(cookie.value)] if cookie is not None else []
        return any(hmac.compare_digest(_digest(token), _digest(self.token)) for token in offered)


def is_loopback(host: str) -> bool:
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


class Gate:
    """The middleware: refuses, or lets through, and adds HEADERS to every answer."""

    def __init__(self, app: ASGIApp, access: Access) -> None:
        self.app = app
        self.access = access

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        async def send_safely(message: Message) -> None:
            if message["type"] == "http.response.start":
                headers = MutableHeaders(scope=message)
                for name, value in HEADERS.items():
                    headers[name] = value
            await send(message)

        app: ASGIApp = self._refusal(scope) or self.app
        try:
            if scope["type"] == "http" and scope["method"] == "HEAD":
                await app({**scope, "method": "GET"}, receive, _headers_alone(send_safely))
            else:
                await app(scope, receive, send_safely)
        except Exception as error:
            if not _disconnected(error):
                raise

    def _refusal(self, scope: MutableMapping[str, Any]) -> JSONResponse | None:
        if scope["type"] != "http":
            return None
        headers = Headers(scope=scope)
        server = scope.get("server") or ("", 0)
        one_host = len(headers.getlist("host")) == 1
        if not one_host or not self.access.knows_host(headers["host"], str(server[0])):
            detail = "unknown Host header: start the server with --allow-host NAME"
            return JSONResponse({"detail": detail}, 421)
        if scope["method"] not in ("GET", "HEAD"):
            return JSONResponse({"detail": "only GET and HEAD"}, 405, {"Allow": "GET, HEAD"})
        if not OPEN.fullmatch(scope["path"]) and not self.access.accepts(headers):
            challenge = {"WWW-Authenticate": "Bearer"}
            return JSONResponse({"detail": "a token is needed"}, 401, challenge)
        return None


def _disconnected(error: Exception) -> bool:
    """Whether the error only means that a client disconnected in the middle of its event stream,
    which FastAPI lets through."""
    # of an ExceptionGroup, which Python 3.10 has not built in
    inner = getattr(error, "exceptions", None)
    return all(map(_disconnected, inner)) if inner else isinstance(error, BrokenResourceError)


def _headers_alone(send: Send) -> Send:
    """Ends the response at its first piece of body; an event stream would go on by itself."""
    over = False

    async def send_start(message: Message) -> None:
        nonlocal over
        if message["type"] == "http.response.start":
            await send(message)
        elif not over:
            over = True
            await send({"type": "http.response.body"})

    return send_start


def _digest(token: str) -> bytes:
    return hashlib.sha256(token.encode("utf-8", "replace")).digest()
