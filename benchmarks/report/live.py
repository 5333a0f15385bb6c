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

from gratis.processes import end, said

POLL_S = 0.5


def verdict(arguments: list[str], *, seconds: float, log: Path) -> dict[str, Any]:
    """The last status that named a bottleneck in so many seconds of `gratis train`, which is then
    ended. RuntimeError if there was none."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = str(probe.getsockname()[1])
    command = [sys.executable, "-m", "gratis", "train", *arguments, "--port", port]
    log.parent.mkdir(parents=True, exist_ok=True)
    with log.open("wb") as file:
        process = subprocess.Popen(
            command, stdout=file, stderr=subprocess.STDOUT, start_new_session=True
        )
    last, ends = dict[str, Any](), time.monotonic() + 4 * seconds + 60
    try:
        while time.monotonic() < ends and process.poll() is None:
            time.sleep(POLL_S)
            status = read_status(port)
            if status.get("verdict", {}).get("kind", "starting") not in ("starting", "stalled"):
                ends = ends if last else time.monotonic() + seconds
                last = status
    finally:
        if process.poll() is None:
            end(process)
    if not last:
        lines = said(log).strip().splitlines()
        raise RuntimeError(f"no verdict: {lines[-1] if lines else 'no output'}")
    return last


def read_status(port: str) -> dict[str, Any]:
    """Empty while there is no answer."""
    try:
        with urllib.request.urlopen(f"http://127.0.0.1:{port}/status", timeout=5) as answer:
            status: dict[str, Any] = json.load(answer)
    except (OSError, ValueError):
        return {}
    return status
