"""The status page's verdict on a real `gratis train`, read over HTTP as a user would."""

from __future__ import annotations

import json
import socket
import subprocess
import sys
import time
import urllib.request
from pathlib import Path
from typing import Any

from gratis.processes import end

POLL_S = 0.5


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def verdict(arguments: list[str], *, seconds: float, log: Path) -> dict[str, Any]:
    """The last status that named a bottleneck in so many seconds of `gratis train`, which is then
    ended. RuntimeError if there was none."""
    port, named, last = free_port(), False, dict[str, Any]()
    command = [sys.executable, "-m", "gratis", "train", *arguments, "--port", str(port)]
    log.parent.mkdir(parents=True, exist_ok=True)
    with log.open("wb") as file:
        process = subprocess.Popen(
            command, stdout=file, stderr=subprocess.STDOUT, start_new_session=True
        )
    try:
        ends = time.monotonic() + 4 * seconds + 60
        while time.monotonic() < ends and process.poll() is None:
            time.sleep(POLL_S)
            status = read_status(port)
            if status and status["verdict"]["kind"] not in ("starting", "stalled"):
                ends = ends if named else time.monotonic() + seconds
                named, last = True, status
    finally:
        if process.poll() is None:
            end(process)
    if not named:
        lines = log.read_text(errors="replace").strip().splitlines()
        raise RuntimeError(f"no verdict: {lines[-1] if lines else 'no output'}")
    return last


def read_status(port: int) -> dict[str, Any] | None:
    try:
        with urllib.request.urlopen(f"http://127.0.0.1:{port}/status", timeout=5) as answer:
            status: dict[str, Any] = json.load(answer)
    except (OSError, ValueError):
        return None
    return status if "verdict" in status else None
