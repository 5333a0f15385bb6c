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


def verdict(arguments: list[str], *, seconds: float, log: Path) -> dict[str, Any]:
    """The last status that named a bottleneck in so many seconds of training. RuntimeError if there
    was none."""
    port, last = free_port(), {}
    with training(*arguments, "--port", str(port), log=log) as process:
        named, ends = False, time.monotonic() + 4 * seconds + 60
        while time.monotonic() < ends and process.poll() is None:
            time.sleep(POLL_S)
            status = read_status(port)
            if status and status["verdict"]["kind"] not in ("starting", "stalled"):
                ends = ends if named else time.monotonic() + seconds
                named, last = True, status
    if not named:
        lines = log.read_text(errors="replace").strip().splitlines()
        raise RuntimeError(f"no verdict: {lines[-1] if lines else 'without a word'}")
    return last


def read_status(port: int) -> dict[str, Any] | None:
    try:
        with urllib.request.urlopen(f"http://127.0.0.1:{port}/status", timeout=5) as answer:
            status: dict[str, Any] = json.load(answer)
    except (OSError, ValueError):
        return None
    return status if "verdict" in status else None
