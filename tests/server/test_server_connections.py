"""Clients that take connections and say nothing, or do not listen."""

from __future__ import annotations

import asyncio
import socket
import threading
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from urllib.parse import urlsplit

import pytest
import uvicorn
from served import RunWriter, get, serving, wait_for
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import PlainTextResponse
from starlette.routing import Route

from gratis.server import connections
from gratis.server.connections import CLIENT_CONNECTIONS, CONNECTIONS, BoundedProtocol

pytestmark = pytest.mark.starts

PARTS = [b"", b"G", b"GET /status HTTP/1.1\r\nHost: lo", b"GET /status HTTP/1.1\r\n"]


def connect(url: str, source: str = "127.0.0.1") -> socket.socket:
    parts = urlsplit(url)
    return socket.create_connection((parts.hostname, parts.port), 60, source_address=(source, 0))


def closed(connection: socket.socket) -> bool:
    """Whether the other side closes before the connection's timeout; what it says is read."""
    try:
        while connection.recv(1 << 16):
            pass
    except TimeoutError:
        return False
    except ConnectionError:
        pass
    return True


def closed_while_dripping(connection: socket.socket) -> bool:
    """The same, while a byte is sent about every second, for a minute."""
    connection.settimeout(1)
    for _ in range(60):
        try:
            connection.sendall(b"x")
        except ConnectionError:
            return True
        if closed(connection):
            return True
    return False


@pytest.mark.parametrize("clients", [1, 3])
def test_idle_connections_take_the_server_from_nobody(tmp_path: Path, clients: int) -> None:
    """From one address, or from more than the whole server has connections for."""
    run = RunWriter(tmp_path / "a")
    run.start()
    run.step(10)
    with serving(tmp_path) as url, ExitStack() as stack:
        for number in range(CONNECTIONS + 50):
            idle = connect(url, f"127.0.0.{2 + number % clients}")
            stack.callback(idle.close)
            idle.sendall(PARTS[number % len(PARTS)])
        for path in ("/livez", "/readyz", "/healthz", "/status", "/metrics", "/"):
            assert get(url + path)[0] == 200


def test_one_client_s_connections_end_at_its_bound(tmp_path: Path) -> None:
    """The one that was silent longest is closed; another client's stays, and so does one that is
    being answered."""
    with serving(tmp_path) as url, ExitStack() as stack:
        other, listening = connect(url, "127.0.0.9"), connect(url, "127.0.0.2")
        for connection in (other, listening):
            stack.callback(connection.close)
        listening.sendall(b"GET /events HTTP/1.1\r\nHost: localhost\r\n\r\n")
        assert b" 200 " in listening.recv(1 << 16)
        idle = [connect(url, "127.0.0.2") for _ in range(CLIENT_CONNECTIONS)]
        for connection in idle:
            stack.callback(connection.close)
        assert closed(idle[0])
        for connection in (other, idle[1], idle[-1]):
            connection.sendall(b"GET /livez HTTP/1.1\r\nHost: localhost\r\n\r\n")
            assert b" 200 " in connection.recv(1 << 16)
        listening.settimeout(0.2)
        assert not closed(listening)


@pytest.mark.slow
def test_a_request_has_ten_seconds_to_be_whole(tmp_path: Path) -> None:
    """However often a byte of it comes."""
    with serving(tmp_path) as url:
        with connect(url) as drip, connect(url) as nothing:
            drip.sendall(b"GET /livez HTTP/1.1\r\nHost: ")
            assert closed_while_dripping(drip)
            assert closed(nothing)
        with connect(url) as whole:
            whole.sendall(b"GET /livez HTTP/1.1\r\nHost: localhost\r\n\r\n")
            assert b" 200 " in whole.recv(1 << 16)


@pytest.fixture
def busy_server(monkeypatch: pytest.MonkeyPatch) -> Iterator[tuple[str, list[str]]]:
    """A server of four connections, whose answers but those to probes never come; and the paths
    that were asked for."""
    monkeypatch.setattr(connections, "CONNECTIONS", 4)
    asked: list[str] = []

    async def never(request: Request) -> PlainTextResponse:
        asked.append(request.url.path)
        await asyncio.sleep(3600)
        return PlainTextResponse("")

    async def probe(request: Request) -> PlainTextResponse:
        return PlainTextResponse("ok")

    async def large(request: Request) -> PlainTextResponse:
        asked.append(request.url.path)
        return PlainTextResponse("x" * (64 << 20))

    app = Starlette(
        routes=[Route("/livez", probe), Route("/large", large), Route("/{name}", never)]
    )
    listener = socket.create_server(("127.0.0.1", 0))
    server = uvicorn.Server(
        uvicorn.Config(
            app,
            http=BoundedProtocol,
            log_level="error",
            lifespan="off",
            timeout_graceful_shutdown=0,
        )
    )
    thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]})
    thread.start()
    yield f"http://127.0.0.1:{listener.getsockname()[1]}", asked
    server.should_exit = True
    thread.join()


def test_where_all_are_busy_probes_are_answered(busy_server: tuple[str, list[str]]) -> None:
    url, asked = busy_server
    with ExitStack() as stack:
        for number in range(4):
            connection = connect(url)
            stack.callback(connection.close)
            connection.sendall(b"GET /%d HTTP/1.1\r\nHost: localhost\r\n\r\n" % number)
        assert wait_for(lambda: len(asked) == 4)
        assert get(f"{url}/livez")[:2] == (200, b"ok")
        status, body, headers = get(f"{url}/5")
        assert (status, headers["Retry-After"]) == (503, "10")
        assert b"4 connections" in body
    assert wait_for(lambda: get(f"{url}/livez")[0] == 200)


def test_who_takes_no_answer_makes_room(busy_server: tuple[str, list[str]]) -> None:
    url, asked = busy_server
    with ExitStack() as stack:
        for _ in range(4):
            connection = connect(url)
            stack.callback(connection.close)
            connection.sendall(b"GET /large HTTP/1.1\r\nHost: localhost\r\n\r\n")
        assert wait_for(lambda: len(asked) == 4)
        whole = connect(url)
        stack.callback(whole.close)
        whole.sendall(b"GET /x HTTP/1.1\r\nHost: localhost\r\n\r\n")
        assert wait_for(lambda: asked[-1] == "/x")
