"""A run's state, from its records and which of its processes are alive: one pure function."""

from __future__ import annotations

from collections.abc import Collection, Mapping

from gratis.server.models import State

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
    rank_0 = outcomes.get(0)
    rules: list[tuple[bool, State, str]] = [
        (
            diverged is not None,
            "diverged",
            f"rank {diverged} reports that the loss is no longer finite",
        ),
        (failed is not None, "crashed", f"rank {failed} reports a failure"),
        (rank_0 == "finished", "finished", "rank 0 reports the end"),
        (
            bool(dead),
            "crashed",
            f"the process of rank {min(dead, default=0)} is gone and reported no end",
        ),
        (
            rank_0 in ("preempted", "interrupted"),
            "preempted",
            f"rank 0 was {rank_0}; the run can be resumed",
        ),
        (age_s > stall_s, "stalled", "no event for longer than the stall limit"),
        (not stepped, "starting", "no interval of training is over yet"),
    ]
    return next(
        ((state, reason) for holds, state, reason in rules if holds), ("running", "events arrive")
    )
