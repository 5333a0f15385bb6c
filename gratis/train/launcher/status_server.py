"""The status server beside a run: a process of its own, which outlives the command where that is
killed."""

from __future__ import annotations

import os
import shlex
import signal
import socket
import subprocess
import sys
import threading
from contextlib import suppress
from pathlib import Path

import psutil

from gratis.errors import GratisError

FIRST_PORT, PORTS = 8000, 100
CHOSEN: list[socket.socket] = []  # held while this process lives


def start_server(runs: Path, chosen: int | None) -> subprocess.Popen[bytes] | None:
    """Serves the runs of a folder at a port: the chosen one, None: the first that is free, 0: not
    at all. GratisError if another process has it."""
    if chosen == 0:
        return None
    _end_orphans(runs)
    port = chosen or next(
        (p for p in range(FIRST_PORT, FIRST_PORT + PORTS) if _free(p) and _choose(p)), None
    )
    if port is None or not _free(port) or (chosen and not _choose(port)):
        raise GratisError(
            f"--port {port or FIRST_PORT} is taken; choose another, or 0 for no status server"
        )
    if chosen is None and port != FIRST_PORT:
        print(f"port {FIRST_PORT} is taken, the status server uses {port}", flush=True)
    try:
        runs.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise GratisError(
            f"--runs {runs} cannot be made ({error.strerror}); choose another"
        ) from None
    command = [sys.executable, "-m", "gratis", "status", "--runs", str(runs), "--port", str(port)]
    command += ["--parent", str(os.getpid())]
    # a session of its own: ctrl-C in the terminal must not end it before the last events are served
    server = subprocess.Popen(command, stdout=subprocess.DEVNULL, start_new_session=True)
    print(f"status: http://127.0.0.1:{port}", flush=True)
    again = shlex.join(command[:-2])  # without this parent
    threading.Thread(target=_tell_loss, args=(server, again), name="status", daemon=True).start()
    return server


def _tell_loss(server: subprocess.Popen[bytes], again: str) -> None:
    """Says when the server is lost; one that was asked to end is not."""
    code = server.wait()
    if code not in (0, -signal.SIGTERM):
        how = (
            f"was killed by {signal.Signals(-code).name}"
            if code < 0
            else f"ended with exit code {code}"
        )
        print(
            f"warning: the status server {how}; training goes on: {again} shows it",
            file=sys.stderr,
            flush=True,
        )


def _end_orphans(runs: Path) -> None:
    """Of a command that was killed the server stays for a while. This one shows the same runs,
    perhaps at its port."""
    for process in psutil.process_iter():
        with suppress(psutil.Error, OSError, ValueError, LookupError):
            elsewhere = (
                os.stat(f"/proc/{process.pid}/ns/pid").st_ino != os.stat("/proc/self/ns/pid").st_ino
            )
            # a container's process numbers are others
            if elsewhere or process.uids().real != os.getuid():
                continue
            words = process.cmdline()
            if (
                words[1:4] != ["-m", "gratis", "status"]
                or "--parent" not in words
                or "--runs" not in words
            ):
                continue
            left = process.ppid() != int(words[words.index("--parent") + 1])
            if (
                left
                and Path(process.cwd(), words[words.index("--runs") + 1]).resolve()
                == runs.resolve()
            ):
                process.terminate()
                process.wait(10)


def _free(port: int) -> bool:
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(("127.0.0.1", port))
        except OSError:
            return False
        return True


def _choose(port: int) -> bool:
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
