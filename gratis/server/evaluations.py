"""A run's evaluations on the validation split."""

from __future__ import annotations

from collections.abc import Collection

from gratis.fields import Record, count, integer, number, share
from gratis.server.bins import superseded
from gratis.server.models import Evaluation
from gratis.server.run import Run


def evaluations(run: Run) -> list[Evaluation]:
    """Rank 0's, but those of epochs that a later attempt runs again."""
    resumes = run.resumes()
    if (rank_0 := run.ranks.get(0)) is None:
        return []
    return run.derive(
        "evaluations",
        (resumes, rank_0, rank_0.evaluated),
        lambda: [
            _evaluation(step, record)
            for step, attempt, record in rank_0.evals.values()
            if not superseded(step, attempt, resumes)
        ],
    )


def best(evaluated: Collection[Evaluation]) -> Evaluation | None:
    """The evaluation with the lowest top-1 error, the oldest of equals: of the centre view, which
    every epoch has, where there is one."""
    known = [one for one in evaluated if one.top1_error is not None]
    centre = [one for one in known if one.views == 1]
    return min(centre or known, key=lambda one: one.top1_error or 0.0, default=None)


def _evaluation(step: int, record: Record) -> Evaluation:
    return Evaluation(
        epoch=integer(record, "epoch") or 0,
        step=step,
        t=number(record, "t"),
        views=integer(record, "views") or 0,
        images=integer(record, "images") or 0,
        top1_error=error_of(record, "top1"),
        top5_error=error_of(record, "top5"),
        nll=number(record, "nll"),
        wall_s=count(record, "wall_s"),
    )


def error_of(record: Record, key: str) -> float | None:
    """1 - the share at `key`, in [0, 1]."""
    right = share(record, key)
    return None if right is None else 1 - right
