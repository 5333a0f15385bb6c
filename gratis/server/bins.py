"""All of a run's intervals in bounded memory: raw counters added up in bins of steps, the width
doubling as a run grows.

Adding counters loses resolution and nothing else: a rate over a bin is exactly the rate over its
steps."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from typing import NamedTuple

from gratis.fields import Record, count, number, section
from gratis.rates import Counters

CAPACITY = 512  # bins of a rank: more points than a chart can resolve


class Gauges(NamedTuple):
    """What was read at the ends of some intervals."""

    busy: float  # sum over samples of the share of time with a kernel running
    samples: float
    gpu_bytes: float  # the most; 0 where it is not known, as below
    rss_bytes: float  # likewise

    def plus(self, other: Gauges) -> Gauges:
        return Gauges(
            self.busy + other.busy,
            self.samples + other.samples,
            max(self.gpu_bytes, other.gpu_bytes),
            max(self.rss_bytes, other.rss_bytes),
        )


def gauges(record: Record) -> Gauges:
    """Of a `step` record."""
    gpu = section(record, "gpu")
    busy = number(gpu, "busy")
    return Gauges(
        busy=min(max(busy or 0.0, 0.0), 1.0),
        samples=float(busy is not None),
        gpu_bytes=count(gpu, "memory_bytes"),
        rss_bytes=count(record, "rss_bytes"),
    )


class Bin(NamedTuple):
    first_step: int  # it covers first_step .. first_step + width - 1
    step: int  # the newest one of them so far
    epoch: int
    attempt: int
    t: float  # Unix seconds of its last record
    lr: float | None
    counters: Counters
    gauges: Gauges
    startup: bool  # whether the attempt's start-up is in it

    def plus(self, later: Bin) -> Bin:
        """Both; but the higher attempt alone where they differ, as it ran these steps again."""
        if later.attempt != self.attempt:
            return max(self, later, key=lambda one: one.attempt)
        return later._replace(
            first_step=min(self.first_step, later.first_step),
            counters=self.counters.plus(later.counters),
            gauges=self.gauges.plus(later.gauges),
            startup=self.startup or later.startup,
        )


class Bins:
    """One rank's bins. `changed`: the first step of the earliest bin that changed since somebody
    set it to infinity."""

    def __init__(self, width: int = 1, bins: Iterable[Bin] = ()) -> None:
        self.width = width
        self.by_step = {bin_.first_step: bin_ for bin_ in bins}
        self.changed = 1.0

    def add(self, bin_: Bin) -> None:
        self.changed = min(self.changed, _put(self.by_step, bin_, self.width))
        while len(self.by_step) > CAPACITY:
            self.width *= 2
            self.by_step, self.changed = self.coarsened(self.width), 1.0

    def coarsened(self, width: int, since: int = 1) -> dict[int, Bin]:
        """Those that begin at step `since`, the first of a bin of this width, or later."""
        bins: dict[int, Bin] = {}
        for bin_ in [bin_ for first, bin_ in self.by_step.items() if first >= since]:
            _put(bins, bin_, width)
        return bins


def _put(bins: dict[int, Bin], bin_: Bin, width: int) -> int:
    """Returns the first step of the bin that it became part of."""
    first = first_of_bin(bin_.step, width)
    placed = bin_ if bin_.first_step == first else bin_._replace(first_step=first)
    old = bins.get(first)
    bins[first] = placed if old is None else old.plus(placed)
    return first


def first_of_bin(step: int, width: int) -> int:
    """The first step of the bin that the step is in."""
    return (step - 1) // width * width + 1


def superseded(step: int, attempt: int, resumes: Mapping[int, int]) -> bool:
    """Whether a later attempt resumed before `step` and so ran it, or will run it, again."""
    return any(later > attempt and resumed < step for later, resumed in resumes.items())


def widest(ranks: Iterable[Bins]) -> int:
    """The width to which all ranks' bins can be brought."""
    return max((one.width for one in ranks), default=1)


def align(ranks: Iterable[Bins], resumes: Mapping[int, int], since: float = 1) -> list[list[Bin]]:
    """All ranks' bins side by side, in order of steps: each row holds the bins of one range of
    steps, one per rank. Rows that end before the step `since` are left out.

    `resumes` maps each attempt to the step it resumed after. In a row the highest attempt wins.
    """
    ranks = list(ranks)
    if math.isinf(since):
        return []
    width = widest(ranks)
    rows: dict[int, list[Bin]] = {}
    for one in ranks:
        for first, bin_ in one.coarsened(width, first_of_bin(int(since), width)).items():
            if not superseded(bin_.step, bin_.attempt, resumes):
                rows.setdefault(first, []).append(bin_)
    highest = {first: max(bin_.attempt for bin_ in row) for first, row in rows.items()}
    return [[bin_ for bin_ in rows[k] if bin_.attempt == highest[k]] for k in sorted(rows)]
