"""A real `gratis train` with its status server, watched from outside as a user would: what the
verdict says live."""

from __future__ import annotations

import contextlib
import json
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from gratis.errors import PREEMPTED, USER_ERROR, GratisError
from gratis.processes import end

POLL_S = 0.5


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@contextlib.contextmanager
def training(*arguments: str, log: Path) -> Iterator[subprocess.Popen[bytes]]:
    """`gratis train` with these arguments, ended with SIGTERM (it saves) if it has not come to its
    own end."""
    log.parent.mkdir(parents=True, exist_ok=True)
    with log.open("wb") as file:
        process = subprocess.Popen(
            [sys.executable, "-m", "gratis", "train", *arguments],
            stdout=file,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
        try:
            yield process
        finally:
            if process.poll() is None:
                end(process)


def verdict(arguments: tuple[str, ...], *, seconds: float, log: Path) -> dict[str, Any]:
    """The last status that named a bottleneck in so many seconds of training. RuntimeError if there
    was none."""
    port, found = free_port(), {}
    with training(*arguments, "--port", str(port), log=log) as process:
        begun, patience = None, time.monotonic() + 4 * seconds + 60
        while (
            time.monotonic() < (begun + seconds if begun else patience) and process.poll() is None
        ):
            time.sleep(POLL_S)
            status = asked(port)
            if status and status["verdict"]["kind"] not in ("starting", "stalled"):
                begun, found = begun or time.monotonic(), status
    if not found:
        raise RuntimeError(f"no verdict: {last_line(log)}")
    return found


def asked(port: int) -> dict[str, Any] | None:
    try:
        with urllib.request.urlopen(f"http://127.0.0.1:{port}/status", timeout=5) as answer:
            status: dict[str, Any] = json.load(answer)
    except (OSError, ValueError):
        return None
    return status if "verdict" in status else None


def last_line(log: Path) -> str:
    lines = log.read_text(errors="replace").strip().splitlines()
    return lines[-1] if lines else "without a word"


def trained(arguments: tuple[str, ...], *, seconds: float, log: Path) -> str | None:
    """The run's last line if it came to its end in so many seconds; None if it was stopped, and has
    saved."""
    with training(*arguments, "--port", "0", log=log) as process:
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(seconds)
        over = process.poll()
    if over is None or over == PREEMPTED:
        return None
    # a run that diverged, or that the kernel ended, is a result like others; a mistake is every
    # run's
    if over:
        raise (GratisError if over == USER_ERROR else RuntimeError)(
            f"training failed: {last_line(log)}"
        )
    return last_line(log)
