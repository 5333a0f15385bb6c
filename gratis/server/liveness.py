"""Whether the process that wrote a run's events still runs, as far as this host can tell."""

from __future__ import annotations

import os
import socket
import time
from pathlib import Path

from gratis.fields import Record, integer, number


def is_gone(start: Record | None) -> bool:
    """Whether the process that wrote this `start` was on this host and has ended. False where
    that cannot be known."""
    pid = integer(start, "pid") if start is not None else None
    if start is None or pid is None or start.get("host") != socket.gethostname():
        return False
    if integer(start, "pid_namespace") not in (None, os.stat("/proc/self/ns/pid").st_ino):
        return False
    return not _runs(pid, number(start, "t") or 0.0)


def _runs(pid: int, started: float) -> bool:
    """Whether the process that wrote at Unix time `started` still runs; a later process with its
    pid is another one."""
    try:
        stat = Path(f"/proc/{pid}/stat").read_text()
        state, ticks = (fields := stat.rpartition(")")[2].split())[0], int(fields[19])
        boot = time.time() - time.clock_gettime(time.CLOCK_BOOTTIME)
    except (OSError, IndexError, ValueError):
        return False
    slack = 60.0  # the clock may have been set since
    return state not in "ZX" and boot + ticks / os.sysconf("SC_CLK_TCK") < started + slack
