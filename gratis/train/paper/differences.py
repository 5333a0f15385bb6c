"""Differences of errors, seed by seed: their mean, its standard error, and what may be said of
them."""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence
from typing import NamedTuple

ENOUGH = 3  # seeds
RULE = (
    f"Told from 0 (or from the paper's number) is a mean that is further from it than two standard "
    f"errors, with n >= {ENOUGH} seeds: of three seeds 82 in 100 by Student's t, of five 88."
)


class Difference(NamedTuple):
    """In points of error, positive: worse. se: of the mean; None below two seeds."""

    mean: float
    se: float | None
    n: int

    def told_from(self, other: float) -> bool:
        return self.n >= ENOUGH and self.se is not None and abs(self.mean - other) > 2 * self.se


def difference(deltas: Sequence[float]) -> Difference | None:
    """None of no seed."""
    if not deltas:
        return None
    n = len(deltas)
    se = statistics.stdev(deltas) / math.sqrt(n) if n > 1 else None
    return Difference(statistics.mean(deltas), se, n)


def verdict(own: Difference | None, paper: float | None) -> str:
    """What the seeds say of sign and paper's number; empty where nothing was measured."""
    if own is None:
        return ""
    if own.n < ENOUGH:
        return f"n below {ENOUGH}"
    words = "not told from 0"
    if own.told_from(0):
        words = "worse without" if own.mean > 0 else "better without"
        if paper is not None:
            words += ", as in the paper" if own.mean > 0 else ", against the paper"
    if paper is not None and own.told_from(paper):
        words += f"; told from {paper:g}"
    return words


def shown(own: Difference | None) -> str:
    """As "+1.4 ± 0.3"."""
    if own is None:
        return ""
    return f"{own.mean:+.1f}" + ("" if own.se is None else f" ± {own.se:.1f}")
