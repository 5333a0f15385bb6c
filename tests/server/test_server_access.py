"""Who may ask, without a server: the middleware is called as an ASGI server calls it."""

from __future__ import annotations

import asyncio
from typing import Any, NamedTuple

import pytest
from anyio import BrokenResourceError
from starlette.datastructures import Headers
from starlette.types import ASGIApp, Receive, Scope, Send

from gratis.errors import GratisError
from gratis.server.access import Access, Gate, is_loopback

TOKEN = "/0123456789abcd+"
CLOSED = Access(host="node7.example", allowed=frozenset({"gratis.example"}), token=TOKEN)


class Answer(NamedTuple):
    status: int
    headers: dict[str, str]
    bodies: list[bytes]  # a piece each


async def pieces(scope: Scope, receive: Receive, send: Send) -> None:
    """An app whose answer comes in two pieces, and names the method it was asked by."""
    headers = [(b"x-method", scope["method"].encode()), (b"cache-control", b"max-age=9")]
    await send({"type": "http.response.start", "status": 200, "headers": headers})
    await send({"type": "http.response.body", "body": b"one", "more_body": True})
    await send({"type": "http.response.body", "body": b"two"})


def ask(
    access: Access,
    path: str = "/",
    method: str = "GET",
    app: ASGIApp = pieces,
    hosts: tuple[str, ...] = ("localhost:8000",),
    **headers: str,
) -> Answer:
    sent: list[Any] = []

    async def receive() -> Any:
        raise AssertionError("nothing is read of a request's body")

    async def send(message: Any) -> None:
        sent.append(message)

    given = [("host", host) for host in hosts] + list(headers.items())
    scope = {
        "type": "http",
        "method": method,
        "path": path,
        "headers": [(name.encode(), value.encode()) for name, value in given],
        "server": ("10.0.0.5", 8000),
    }
    asyncio.run(Gate(app, access)(scope, receive, send))
    start, *bodies = sent
    found = {name.decode(): value.decode() for name, value in start["headers"]}
    return Answer(start["status"], found, [body.get("body", b"") for body in bodies])


def test_a_loopback_address_is_reached_from_this_machine_alone() -> None:
    for host in ("localhost", "127.0.0.1", "127.8.9.1", "::1"):
        assert is_loopback(host)
        Access(host=host)
    for host in ("0.0.0.0", "192.168.1.5", "::", "node7.example", ""):
        assert not is_loopback(host)
        with pytest.raises(GratisError, match="can be reached from other machines"):
            Access(host=host)
        Access(host=host, token=TOKEN)


@pytest.mark.parametrize("token", ["x" * 15, "x" * 257, "x" * 16 + " ", "x" * 16 + "é", ""])
def test_a_token_that_cannot_be_sent_is_refused(token: str) -> None:
    with pytest.raises(GratisError, match="the token is not 16 to 256 printable"):
        Access(host="localhost", token=token)
    Access(host="localhost", token="x" * 16)
    Access(host="localhost", token="!~" * 128)


def test_the_server_s_names() -> None:
    names = ["localhost", "LOCALHOST:8000", "127.0.0.1:1", "[::1]:8000", "10.0.0.5:", "10.0.0.5"]
    for name in [*names, " Node7.Example ", "node7.example.:80", "gratis.example:443"]:
        assert CLOSED.knows_host(name, "10.0.0.5"), name
    for name in ("10.0.0.6", "example", "node7.example.evil", "evil.node7.example", "localhost:x"):
        assert not CLOSED.knows_host(name, "10.0.0.5"), name


BEARING: list[tuple[dict[str, str], bool]] = [
    ({}, False),
    ({"authorization": f"Bearer {TOKEN}"}, True),
    ({"authorization": f"bearer  {TOKEN} "}, True),
    ({"authorization": f"Basic {TOKEN}"}, False),
    ({"authorization": TOKEN}, False),
    ({"authorization": "Bearer"}, False),
    ({"authorization": f"Bearer {TOKEN}x"}, False),
    ({"cookie": "theme=dark; gratis_token=%2F0123456789abcd%2B"}, True),
    ({"cookie": f"gratis_token={TOKEN[:-1]}"}, False),
    ({"cookie": f"token={TOKEN}"}, False),
    ({"authorization": "Bearer other", "cookie": "gratis_token=%2F0123456789abcd%2B"}, True),
]


@pytest.mark.parametrize(("headers", "good"), BEARING)
def test_a_token_comes_as_a_bearer_s_or_in_the_page_s_cookie(
    headers: dict[str, str], good: bool
) -> None:
    assert CLOSED.accepts(Headers(headers)) == good
    assert Access(host="localhost").accepts(Headers(headers))
    answer = ask(CLOSED, "/json", **headers)
    assert answer.status == (200 if good else 401)
    if not good:
        assert answer.headers["www-authenticate"] == "Bearer"
        assert answer.bodies == [b'{"detail":"a token is needed"}']


def test_what_shows_nothing_of_a_run_needs_no_token() -> None:
    for path in ("/", "/static/page.js", "/livez", "/readyz", "/healthz"):
        assert ask(CLOSED, path).status == 200
    for path in ("/static", "/livez2", "/json", "/runs/a/static/b", "//"):
        assert ask(CLOSED, path).status == 401


def test_other_hosts_and_methods_are_refused() -> None:
    ours = Access(host="localhost")
    assert ask(ours, hosts=("10.0.0.5:8000",)).status == 200
    for hosts in ((), ("evil.example",), ("localhost", "localhost")):
        answer = ask(ours, hosts=hosts)
        assert answer.status == 421
        assert b"start the server with --allow-host NAME" in answer.bodies[0]
    for method in ("POST", "PUT", "DELETE", "OPTIONS", "get"):
        answer = ask(ours, method=method)
        assert (answer.status, answer.headers["allow"]) == (405, "GET, HEAD")
        assert answer.bodies == [b'{"detail":"only GET and HEAD"}']


def test_every_answer_says_what_a_browser_may_do_with_it() -> None:
    """Also those of the gate itself; an app's own header gives way."""
    for answer in (ask(CLOSED), ask(CLOSED, "/json"), ask(CLOSED, hosts=())):
        found = answer.headers
        policy = dict(one.split(" ", 1) for one in found["content-security-policy"].split("; "))
        closed = ("default-src", "base-uri", "form-action", "frame-ancestors")
        opened = ("script-src", "style-src", "img-src", "connect-src")
        assert policy == dict.fromkeys(closed, "'none'") | dict.fromkeys(opened, "'self'")
        assert found["x-content-type-options"] == "nosniff"
        assert found["referrer-policy"] == "no-referrer"
        assert found["cross-origin-resource-policy"] == "same-origin"
        assert found["cache-control"] == "no-cache"


def test_head_is_get_without_its_body() -> None:
    assert ask(CLOSED).bodies == [b"one", b"two"]
    answer = ask(CLOSED, method="HEAD")
    assert (answer.status, answer.headers["x-method"], answer.bodies) == (200, "GET", [b""])
    assert answer.headers["referrer-policy"] == "no-referrer"


def test_what_is_no_request_is_the_app_s() -> None:
    seen: list[str] = []

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        seen.append(scope["type"])

    asyncio.run(Gate(app, CLOSED)({"type": "lifespan"}, None, None))  # type: ignore[arg-type]
    assert seen == ["lifespan"]


class Group(Exception):
    """As an ExceptionGroup, which Python 3.10 does not have."""

    def __init__(self, *exceptions: Exception) -> None:
        self.exceptions = exceptions


@pytest.mark.parametrize("method", ["GET", "HEAD"])
def test_a_client_that_has_gone_is_no_error(method: str) -> None:
    def failing(error: Exception) -> ASGIApp:
        async def app(scope: Scope, receive: Receive, send: Send) -> None:
            await pieces(scope, receive, send)
            raise error

        return app

    gone = BrokenResourceError()
    for error in (gone, Group(gone, Group(gone))):
        assert ask(CLOSED, method=method, app=failing(error)).status == 200
    for error in (ValueError(), Group(gone, ValueError())):
        with pytest.raises(type(error)):
            ask(CLOSED, method=method, app=failing(error))
