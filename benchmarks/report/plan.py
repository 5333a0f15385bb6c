"""What the report measures, in the order of its worth, and about how long each takes."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

from benchmarks.report.results import Result
from benchmarks.report.setting import Setting

SECTIONS = {
    "a": "Does it run, and is it right?",
    "b": "The loader alone",
    "c": "AlexNet alone, forward and backward",
    "d": "The free ratio: training from the loader over training on one batch that stays",
    "e": "Two ranks on one device over gloo, and one",
    "f": "A short training to an accuracy",
    "g": "Where a step's time goes",
}


BOUND_S = {True: 45.0, False: 300.0}  # at least


class Measurement(NamedTuple):
    """One row. Nothing is measured before `make` is called, in a process that may be ended.

    seconds: expected. needs: beside what gratis itself needs. first: before all that is not, of
    whatever section: the sizes and variants that refine the picture come last."""

    section: str
    name: str
    make: Callable[[Setting], Result]
    seconds: float
    needs: str = ""
    first: bool = True

    @property
    def key(self) -> str:
        return f"{self.section}. {self.name}"

    def bound(self, *, cuda: bool) -> float:
        """Seconds after which it is ended: what is expected is a guess. Of a CPU no time is lent,
        and it may be busy."""
        return max(BOUND_S[cuda], 3 * self.seconds)


def measurements(*, cuda: bool) -> list[Measurement]:
    """In the order in which they are made."""
    from benchmarks.report import accuracy, correctness, free, kernels, loading, ranks, training

    rooms = (correctness, loading, training, free, ranks, accuracy, kernels)
    every = [one for room in rooms for one in room.measurements(cuda=cuda)]
    return sorted(every, key=lambda one: not one.first)


def table(rows: list[Measurement]) -> str:
    """Order, needs and expected seconds, as text."""
    lines, total = ["   at s  takes s  what"], 0.0
    for row in rows:
        needs = f"  (needs {row.needs})" if row.needs else ""
        lines.append(f"{total:7.0f}  {row.seconds:7.0f}  {row.key}{needs}")
        total += row.seconds
    return "\n".join([*lines, f"{total:7.0f}           the end"])
