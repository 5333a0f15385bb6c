"""The status server beside a run: a process of its own, which ends with the command."""

from __future__ import annotations

import shlex
import signal
import socket
import subprocess
import sys
import threading
import time
from pathlib import Path

from gratis.errors import GratisError
from gratis.processes import command_of_child
from gratis.signals import name_of

FIRST_PORT, PORTS = 8000, 100
END_S = 5.0  # within which the server of a command that was killed has left its port
CHOSEN: list[socket.socket] = []  # held while this process lives


def start_server(runs: Path, chosen: int | None) -> subprocess.Popen[bytes] | None:
    """Serves the runs of a folder at a port: the chosen one, None: the first that is free, 0: not
    at all. GratisError if another process has it."""
    if chosen == 0:
        return None
    port = chosen or next(filter(_reserve, range(FIRST_PORT, FIRST_PORT + PORTS)), None)
    if port is None or (chosen and not _reserve(chosen, END_S)):
        way_out = "choose another, or 0 for no status server"
        raise GratisError(f"--port {port or FIRST_PORT} is taken; {way_out}")
    if chosen is None and port != FIRST_PORT:
        print(f"port {FIRST_PORT} is taken, the status server uses {port}")
    try:
        runs.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        why = f"cannot be made ({error.strerror})"
        raise GratisError(f"--runs {runs} {why}; choose another") from None
    arguments = ["status", "--runs", str(runs), "--port", str(port)]
    # a session of its own: ctrl-C in the terminal must not end it before the last events are served
    server = subprocess.Popen(
        command_of_child(arguments), stdout=subprocess.DEVNULL, start_new_session=True
    )
    print(f"status: http://127.0.0.1:{port}")
    again = shlex.join([sys.executable, "-m", "gratis", *arguments])
    threading.Thread(target=_warn_of_loss, args=(server, again), name="status", daemon=True).start()
    return server


def _warn_of_loss(server: subprocess.Popen[bytes], again: str) -> None:
    """A warning when the server ends, unless it was asked to."""
    code = server.wait()
    if code not in (0, -signal.SIGTERM):
        how = f"was killed by {name_of(-code)}" if code < 0 else f"ended with exit code {code}"
        message = f"warning: the status server {how}; training goes on: {again} shows it"
        print(message, file=sys.stderr)


def _reserve(port: int, wait_s: float = 0.0) -> bool:
    """Whether the port is this process's to serve at; waits so long for it to become free."""
    deadline = time.monotonic() + wait_s
    while not (_free(port) and _mark(port)):
        if time.monotonic() >= deadline:
            return False
        time.sleep(0.1)
    return True


def _free(port: int) -> bool:
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(("127.0.0.1", port))
        except OSError:
            return False
        return True


def _mark(port: int) -> bool:
    """False if another command of this machine has chosen the port: its server may be about to
    listen there."""
    mark = socket.socket(socket.AF_UNIX)
    try:
        mark.bind(f"\0gratis-status-{port}")  # no file: the system forgets it with the process
    except OSError:
        mark.close()
        return False
    CHOSEN.append(mark)
    return True
