"""Serves the status of training runs over HTTP, from their event files alone.

    gratis status --runs runs [--host 127.0.0.1] [--port 8000]
    gratis top --runs runs      the same in a terminal

It only reads the runs; summaries of long histories are kept in the user's cache folder. With a
token (environment variable GRATIS_TOKEN, or --token-file) it may listen on other addresses than
loopback, under further names by --allow-host; the page asks for the token, other clients send it as
a bearer token."""

from __future__ import annotations

import errno
import os
import socket
import threading
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import tyro

from gratis.command_line import parse
from gratis.errors import GratisError
from gratis.server.state import STALL_S
from gratis.signals import serve_until_signalled


@dataclass(frozen=True, kw_only=True)
class RunsConfig:
    """What both commands ask for. Raises GratisError."""

    runs: Path = Path("runs")
    """Folder of the runs. The server's need not exist yet."""
    stall_seconds: float = STALL_S
    """A run without an event for this long is stalled."""

    def __post_init__(self) -> None:
        if self.runs.exists() and not self.runs.is_dir():
            raise GratisError(f"--runs {self.runs} is no folder")
        if not self.stall_seconds > 0:
            raise GratisError(f"--stall-seconds {self.stall_seconds} is not above 0")


@dataclass(frozen=True, kw_only=True)
class StatusConfig(RunsConfig):
    """Options of `gratis status`. Raises GratisError."""

    host: str = "127.0.0.1"
    """Address to listen on. Another one than loopback needs a token."""
    port: int = 8000
    """Port to listen on; 0 takes a free one and prints it."""
    allow_host: Annotated[tuple[str, ...], tyro.conf.UseAppendAction] = ()
    """A further name by which clients may address the server. Repeatable."""
    token_file: Path | None = None
    """File whose first line is the token that clients must send. Else the environment variable
    GRATIS_TOKEN, if set."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 0 <= self.port <= 65535:
            raise GratisError(f"--port {self.port} is not in 0 .. 65535")


@dataclass(frozen=True, kw_only=True)
class TopConfig(RunsConfig):
    """Shows the status of a run in a terminal, until q or Ctrl-C."""

    run: str | None = None
    """The run to show; else the newest."""


def status(arguments: list[str]) -> None:
    serve(parse(StatusConfig, arguments, "gratis status", description=__doc__))


def top(arguments: list[str]) -> None:
    from gratis.server.top import top as show

    config = parse(TopConfig, arguments, "gratis top")
    show(config.runs, config.run, config.stall_seconds)


def serve(config: StatusConfig) -> None:
    """Serves until SIGTERM or SIGINT."""
    # both before uvicorn's own and after, when it raises them again
    serve_until_signalled()

    from gratis.server.access import Access

    token = _token(config.token_file)
    allowed = frozenset(name.lower() for name in config.allow_host)
    access = Access(host=config.host, allowed=allowed, token=token)
    listener = _listen(config.host, config.port)

    import uvicorn

    from gratis.server.app import create_app
    from gratis.server.connections import BoundedProtocol
    from gratis.server.garbage import collect_rarely
    from gratis.server.runs import Runs
    from gratis.server.summaries import user_cache

    server: uvicorn.Server | None = None
    runs = Runs(config.runs, config.stall_seconds, user_cache())
    # of a thousand runs the first list takes the time of ten
    threading.Thread(target=runs.listing, name="first-list", daemon=True).start()
    app = create_app(runs, access, lambda: server is not None and server.should_exit)
    server = uvicorn.Server(
        uvicorn.Config(
            app,
            lifespan="off",
            ws="none",
            log_level="error",
            # it would log every request, and fill the terminal
            access_log=False,
            server_header=False,
            http=BoundedProtocol,
            timeout_keep_alive=5,
            timeout_graceful_shutdown=3,
            h11_max_incomplete_event_size=16 << 10,
        )
    )
    host = f"[{config.host}]" if ":" in config.host else config.host
    collect_rarely()
    print(f"serving http://{host}:{listener.getsockname()[1]}/", flush=True)
    server.run(sockets=[listener])


def _token(file: Path | None) -> str | None:
    if file is None:
        return os.environ.get("GRATIS_TOKEN") or None
    try:
        return file.read_text().partition("\n")[0].strip()
    except (OSError, UnicodeDecodeError) as error:
        raise GratisError(
            f"--token-file {file} cannot be read: {getattr(error, 'strerror', None) or 'no text'}"
        ) from None


def _listen(host: str, port: int) -> socket.socket:
    """A bound socket: an address that is taken is the user's mistake, before anything is
    started."""
    try:
        infos = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)
        family, kind, protocol, _, address = infos[0]
        listener = socket.socket(family, kind, protocol)
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind(address)
        listener.listen(256)
    except OSError as error:
        if error.errno == errno.EADDRINUSE:
            message = f"port {port} of {host} is in use: stop what listens there, or give another"
            raise GratisError(f"{message} --port") from None
        message = f"cannot listen on {host} port {port}: {error.strerror or error}"
        raise GratisError(message) from None
    return listener
