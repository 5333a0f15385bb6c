"""A run's intervals: its ranks' bins side by side, and the rates that follow from them."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from typing import NamedTuple

import numpy as np

from gratis.rates import Counters, throughput, total, wait_fraction
from gratis.server.bins import Bin, Bins, first_of_bin, superseded
from gratis.server.models import IntervalStatus, Speed

# of training behind a point of the loader's capacity, as the queue is filled in bursts
SMOOTH_S = 10.0


class Row(NamedTuple):
    """What later rows need of one."""

    first_step: int
    step: int  # of its first rank
    attempt: int
    startup: bool
    # [ranks, len(Counters)] float64. Not the counters themselves, as in `Bin.packed`.
    counters: np.ndarray


class Intervals:
    """Of one run."""

    def __init__(self) -> None:
        self._rows: list[Row] = []
        self._intervals: list[IntervalStatus] = []
        self._next = 1  # the first step that was not looked at yet
        self._made_of: object = None

    def update(self, ranks: Sequence[Bins], resumes: Mapping[int, int]) -> Iterator[None]:
        """Computes those that changed since the last call, one at each step of the iteration.

        resumes: attempt -> the step it resumed after."""
        width = max((one.width for one in ranks), default=1)
        made_of = (dict(resumes), width, [id(one) for one in ranks])
        since = min((one.changed for one in ranks), default=1.0)
        if made_of != self._made_of:
            self._made_of, since = made_of, 1.0
        while self._rows and self._rows[-1].first_step + width > since:
            self._rows.pop()
            self._intervals.pop()
        if since < self._next:
            self._next = first_of_bin(int(since), width)
        for one in ranks:
            one.changed = math.inf
        # what an iteration that was not finished has left is made too
        for first in sorted(set().union(*(one.starts(self._next, width) for one in ranks))):
            self._next = first + width
            if bins := _row([one.at(first, width) for one in ranks], resumes):
                counters = np.array([bin_.counters for bin_ in bins])
                head = bins[0]
                row = Row(head.first_step, head.step, head.attempt, head.startup, counters)
                self._rows.append(row)
                self._intervals.append(_interval(bins, _capacity(self._rows)))
            yield

    def upto(self, step: int) -> list[IntervalStatus]:
        """Those that begin no later than the step; 0: all."""
        both = zip(self._rows, self._intervals, strict=True)
        return [interval for row, interval in both if not step or row.step <= step]


def _row(bins: Sequence[Bin | None], resumes: Mapping[int, int]) -> list[Bin]:
    """The bins that the ranks' newest attempt at these steps has made; none if it is to be run
    again."""
    known = [bin_ for bin_ in bins if bin_ is not None]
    if len(resumes) > 1:
        known = [bin_ for bin_ in known if not superseded(bin_.step, bin_.attempt, resumes)]
    highest = max((bin_.attempt for bin_ in known), default=0)
    return [bin_ for bin_ in known if bin_.attempt == highest]


def _capacity(rows: Sequence[Row]) -> float | None:
    """Of the loaders, images/s, over the newest rows that make up SMOOTH_S of training by the same
    ranks; the row that holds their start-up only alone."""
    newest = rows[-1]
    totals, wall_s = np.zeros_like(newest.counters), Counters._fields.index("wall_s")
    for row in reversed(rows):
        ranks = len(row.counters) == len(totals) and row.attempt == newest.attempt
        if not ranks or totals[0, wall_s] >= SMOOTH_S or (row.startup and totals[0, wall_s]):
            break
        totals += row.counters
    return throughput([Counters(*one) for one in totals.tolist()]).loader


def _interval(bins: Sequence[Bin], capacity: float | None) -> IntervalStatus:
    ranks, gauges, first = [one.counters for one in bins], [one.gauges for one in bins], bins[0]
    whole = total(ranks)
    rates = throughput(ranks)._replace(loader=capacity)
    samples = sum(one.samples for one in gauges)
    error = 1 - whole.hits / whole.hit_images if whole.hit_images else None
    return IntervalStatus(
        first_step=first.first_step,
        step=max(bin_.step for bin_ in bins),
        epoch=first.epoch,
        attempt=first.attempt,
        startup=any(bin_.startup for bin_ in bins),
        t=max(bin_.t for bin_ in bins),
        images_per_s=Speed(**rates._asdict()),
        data_wait_fraction=wait_fraction(ranks),
        loss=whole.loss / whole.loss_steps if whole.loss_steps else None,
        train_error=error if error is None else min(max(error, 0.0), 1.0),
        learning_rate=first.lr,
        cpu_cores=sum(one.cpu_s / one.wall_s for one in ranks),
        gpu_busy=sum(one.busy for one in gauges) / samples if samples else None,
        gpu_memory_bytes=max(one.gpu_bytes for one in gauges) or None,
        rss_bytes=sum(one.rss_bytes for one in gauges) or None,
    )
