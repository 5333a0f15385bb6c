"""All of a run's intervals in bounded memory: raw counters added up in bins of steps, the width
doubling as a run grows.

Adding counters loses resolution and nothing else: a rate over a bin is exactly the rate over its
steps."""

from __future__ import annotations

from bisect import bisect_left, insort
from collections.abc import Collection, Iterable, Mapping, Sequence
from functools import reduce
from typing import Any, NamedTuple

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

    def packed(self) -> Packed:
        """As plain tuples and numbers, which the garbage collector need not look into: with 256
        ranks it would for a third of a second at a time."""
        return (*self[:6], tuple(self.counters), tuple(self.gauges), self.startup)


Packed = tuple[Any, ...]


def unpacked(values: Sequence[Any]) -> Bin:
    """Of what `Bin.packed` returned, or JSON made of it. TypeError for anything else."""
    first_step, step, epoch, attempt, t, lr, counters, gauge, startup = values
    raw = Counters(*counters), Gauges(*gauge)
    return Bin(first_step, step, epoch, attempt, t, lr, *raw, startup)


class Bins:
    """One rank's bins. firsts: where they begin, in order. changed: the first step of the earliest
    one that changed since somebody set it to infinity."""

    def __init__(self, width: int = 1, bins: Iterable[Bin] = ()) -> None:
        self._replace(width, bins)

    def _replace(self, width: int, bins: Iterable[Bin]) -> None:
        self.width = width
        self._packed = {bin_.first_step: bin_.packed() for bin_ in bins}
        self.firsts = sorted(self._packed)
        self.changed = 1.0

    def packed(self) -> list[Packed]:
        return [*self._packed.values()]

    def add(self, bin_: Bin) -> None:
        """bin_.first_step: any."""
        first = first_of_bin(bin_.step, self.width)
        bin_ = bin_ if bin_.first_step == first else bin_._replace(first_step=first)
        if (old := self._packed.get(first)) is None:
            insort(self.firsts, first)
        self._packed[first] = (bin_ if old is None else unpacked(old).plus(bin_)).packed()
        self.changed = min(self.changed, first)
        if len(self.firsts) > CAPACITY:
            self._widen()

    def _widen(self) -> None:
        width = self.width
        while len(starts := self.starts(1, width)) > CAPACITY:
            width *= 2
        wider = [self.at(first, width) for first in starts]
        self._replace(width, [bin_ for bin_ in wider if bin_ is not None])

    def starts(self, since: int, width: int) -> Collection[int]:
        """In order, where bins of this width begin that hold any of the steps from `since` on, the
        first of such a bin."""
        firsts = self.firsts[bisect_left(self.firsts, since) :]
        if width == self.width:
            return firsts
        return dict.fromkeys(first_of_bin(first, width) for first in firsts)

    def at(self, first: int, width: int) -> Bin | None:
        """The steps first .. first + width - 1 as one bin; width: this one, or the double of it, or
        of that, and so on."""
        if width == self.width:
            packed = self._packed.get(first)
            return None if packed is None else unpacked(packed)
        low, high = (bisect_left(self.firsts, step) for step in (first, first + width))
        bins = [unpacked(self._packed[one]) for one in self.firsts[low:high]]
        return reduce(Bin.plus, bins)._replace(first_step=first) if bins else None


def first_of_bin(step: int, width: int) -> int:
    """The first step of the bin that the step is in."""
    return (step - 1) // width * width + 1


def superseded(step: int, attempt: int, resumes: Mapping[int, int]) -> bool:
    """Whether a later attempt resumed before `step` and so ran it, or will run it, again."""
    return any(later > attempt and resumed < step for later, resumed in resumes.items())
