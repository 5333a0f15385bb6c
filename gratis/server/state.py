"""A run's state, from its records and which of its processes are alive, as far as this host can
tell."""

from __future__ import annotations

import math
import os
import socket
import time
from collections.abc import Collection, Mapping

from gratis.fields import Record, integer, number
from gratis.history import Attempt
from gratis.server.models import State

SLACK_S = 60.0
STALL_S = 120.0  # no event for this long: longer than an interval


def derive(
    *,
    outcomes: Mapping[int, str],
    dead: Collection[int],
    stepped: bool,
    age_s: float,
    stall_s: float,
) -> tuple[State, str]:
    """The state of a run's newest attempt, and why.

    outcomes: rank -> outcome of its `end` record; dead: ranks without one whose process is gone
    from this host; stepped: every rank has trained; age_s: seconds since any of the run's files
    grew.

    A rank that failed or diverged decides. Then rank 0 does if it finished, as it evaluates last.
    Then a rank without an `end` whose process is gone is a crash, whatever the other ranks report,
    which stopped because of it. Then rank 0's outcome counts. Only a run without an end can be
    stalled, starting or running."""
    diverged, failed = (
        next((rank for rank in sorted(outcomes) if outcomes[rank] == bad), None)
        for bad in ("diverged", "failed")
    )
    not_finite = "reports that the loss is no longer finite"
    rank_0, lost = outcomes.get(0), min(dead, default=0)
    stopped = rank_0 in ("preempted", "interrupted")
    rules: list[tuple[bool, State, str]] = [
        (diverged is not None, "diverged", f"rank {diverged} {not_finite}"),
        (failed is not None, "crashed", f"rank {failed} reports a failure"),
        (rank_0 == "finished", "finished", "rank 0 reports the end"),
        (bool(dead), "crashed", f"the process of rank {lost} is gone and reported no end"),
        (stopped, "preempted", f"rank 0 was {rank_0}; the run can be resumed"),
        (age_s > stall_s, "stalled", "no event for longer than the stall limit"),
        (not stepped, "starting", "no interval of training is over yet"),
    ]
    return next(
        ((state, reason) for holds, state, reason in rules if holds), ("running", "events arrive")
    )


def attempt_state(
    attempts: Mapping[int, Attempt],
    *,
    stepped: bool,
    age_s: float,
    stall_s: float,
    here: Here | None = None,
) -> tuple[State, str, list[int]]:
    """As `derive`, of the newest attempt in each rank's file; and the dead ranks. here: for several
    runs at one moment."""
    outcomes = {rank: one.outcome or "" for rank, one in attempts.items() if one.end is not None}
    here = here or Here()
    going_on = {rank: one.start for rank, one in attempts.items() if one.end is None}
    dead = [rank for rank, start in going_on.items() if start and here.is_gone(start)]
    state, reason = derive(
        outcomes=outcomes, dead=dead, stepped=stepped, age_s=age_s, stall_s=stall_s
    )
    return state, reason, dead


class Here:
    """This host and its processes at this moment: each is asked for once, however many ranks it
    has."""

    def __init__(self) -> None:
        self._host = socket.gethostname()
        self._pid_namespace = os.stat("/proc/self/ns/pid").st_ino
        self._boot = time.time() - time.clock_gettime(time.CLOCK_BOOTTIME)  # Unix seconds
        self._started: dict[int, float] = {}

    def is_gone(self, start: Record) -> bool:
        """Whether the process that wrote this `start` was on this host and has ended. False where
        that cannot be known."""
        pid = integer(start, "pid")
        if pid is None or start.get("host") != self._host:
            return False
        if integer(start, "pid_namespace") not in (None, self._pid_namespace):
            return False
        if pid not in self._started:
            self._started[pid] = self._start_of(pid)
        # a later process with its pid is another one; the clock may have been set since
        return self._started[pid] >= (number(start, "t") or 0.0) + SLACK_S

    def _start_of(self, pid: int) -> float:
        """When the process began, Unix seconds; infinity if it does not run."""
        try:
            with open(f"/proc/{pid}/stat", "rb", buffering=0) as file:
                stat = file.read(4096).decode(errors="replace")
            state, ticks = (fields := stat.rpartition(")")[2].split())[0], int(fields[19])
        except (OSError, IndexError, ValueError):
            return math.inf
        return math.inf if state in "ZX" else self._boot + ticks / os.sysconf("SC_CLK_TCK")
