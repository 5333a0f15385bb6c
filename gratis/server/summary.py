"""A run's state from the ends of its files alone: what a listing of a thousand runs can afford."""

from __future__ import annotations

import time
from pathlib import Path

from gratis.history import Attempt, read_attempt
from gratis.server.liveness import is_gone
from gratis.server.models import RunSummary
from gratis.server.run import SHARD_FILE
from gratis.server.state import derive


def summarise(path: Path, name: str, updated: float, stall_s: float) -> RunSummary:
    """State, epoch and step of the run at `path`, by rank 0's last records, or the shard stage's
    where nothing trains.

    updated: when it last grew, Unix seconds.
    """
    attempt = read_attempt(path / "rank-0.jsonl")
    trains = attempt != Attempt()
    if not trains:
        attempt = read_attempt(path / SHARD_FILE)
    state, _ = derive(
        outcomes={0: attempt.outcome or ""} if attempt.end else {},
        dead=[0] if not attempt.end and is_gone(attempt.start) else [],
        stepped=trains and attempt.step is not None,
        age_s=max(time.time() - updated, 0.0),
        stall_s=stall_s,
    )
    step = attempt.step or 0
    return RunSummary(name=name, state=state, epoch=attempt.epoch, step=step, updated=updated)
