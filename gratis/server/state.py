"""A run's state, from what its files say and who is still alive: one pure function."""

from __future__ import annotations

from collections.abc import Collection, Mapping

from gratis.server.models import State

STALL_S = 120.0  # no event for this long: longer than an interval, shorter than a coffee


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

    A rank that failed or diverged speaks for the run. Then rank 0 does if it finished, as it
    evaluates last. Then a rank gone without a word is a crash, whatever the others, stopped because
    of it, report. Then rank 0's word counts. Only a run that nobody has ended can be stalled,
    starting or running."""
    diverged, failed = (
        next((rank for rank in sorted(outcomes) if outcomes[rank] == bad), None)
        for bad in ("diverged", "failed")
    )
    mine = outcomes.get(0)
    rules: list[tuple[bool, State, str]] = [
        (
            diverged is not None,
            "diverged",
            f"rank {diverged} reports that the loss is no longer finite",
        ),
        (failed is not None, "crashed", f"rank {failed} reports a failure"),
        (mine == "finished", "finished", "rank 0 reports the end"),
        (
            bool(dead),
            "crashed",
            f"the process of rank {min(dead, default=0)} is gone and left no word",
        ),
        (
            mine in ("preempted", "interrupted"),
            "preempted",
            f"rank 0 was {mine}; the run can be resumed",
        ),
        (age_s > stall_s, "stalled", "no event for longer than the stall limit"),
        (not stepped, "starting", "no interval of training is over yet"),
    ]
    return next(
        ((state, reason) for holds, state, reason in rules if holds), ("running", "events arrive")
    )
