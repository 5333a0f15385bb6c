"""Raw counters of `step` records, added up, and the rates that follow from them.

The one place where rates are computed: the status server and the result of a run both take them
from here, so that a number of one name has one value."""

from __future__ import annotations

import operator
from collections.abc import Collection, Iterable
from typing import Literal, NamedTuple

from gratis.fields import Record, count, integer, number, section

Stage = Literal["read", "decode", "finish", "transfer"]
STAGES: tuple[Stage, ...] = ("read", "decode", "finish", "transfer")


class Counters(NamedTuple):
    """Raw counters of one rank over some steps; the sum of two intervals is the interval of both.

    Rates divide by `wall_s` and `steps`: they are there for counters of at least one step."""

    steps: float
    images: float  # trained
    wall_s: float
    wait_s: float
    exchange_s: float  # inside collectives
    cpu_s: float
    delivered: float  # images that the loader handed over
    bytes_read: float
    read_s: float
    decode_s: float
    finish_s: float
    transfer_s: float
    blocked_s: float
    native: float  # images that the engine decoded
    fallback: float  # that it left to another decoder
    loss: float  # sum over steps, of the intervals whose loss is finite
    loss_steps: float
    hits: float  # training images right, of the intervals that count them
    hit_images: float

    def plus(self, other: Counters) -> Counters:
        return Counters._make(map(operator.add, self, other))

    @property
    def stages(self) -> dict[Stage, float]:
        """Seconds of the producer by stage."""
        seconds = (self.read_s, self.decode_s, self.finish_s, self.transfer_s)
        return dict(zip(STAGES, seconds, strict=True))

    @property
    def trained_per_s(self) -> float:
        return self.images / self.wall_s

    @property
    def delivered_per_s(self) -> float:
        return self.delivered / self.wall_s

    @property
    def capacity(self) -> float | None:
        """Images/s that the loader could deliver: what it handed over, over the time its producer
        was at work. None where it handed over nothing.

        At work are the stages' seconds, and at least as long as training waited. The time that the
        producer was not blocked would not do: at the end of an epoch it has nothing left to make,
        and is neither blocked nor at work. It counts only where no stage was timed and nobody
        waited. The decoder works ahead while the producer is blocked, so a large headroom is an
        upper estimate; it is exact where it matters, near 1."""
        stages_s = self.read_s + self.decode_s + self.finish_s + self.transfer_s
        busy = max(stages_s, self.wait_s) or self.wall_s - self.blocked_s
        return self.delivered / busy if busy > 0 and self.delivered else None

    @property
    def wait_fraction(self) -> float:
        """Share of the time that training waited for batches, in [0, 1]."""
        return min(self.wait_s / self.wall_s, 1.0)

    @property
    def exchange_fraction(self) -> float:
        """Share of the time inside collectives, in [0, 1]: much of it is waiting for slower
        ranks."""
        return min(self.exchange_s / self.wall_s, 1.0)

    @property
    def step_s(self) -> float:
        """Seconds of a step."""
        return self.wall_s / self.steps

    @property
    def own_step_s(self) -> float:
        """Seconds of a step that are the rank's own: neither waiting for data nor inside
        collectives."""
        return max(self.wall_s - self.wait_s - self.exchange_s, 0.0) / self.steps


ZERO = Counters(*[0.0] * len(Counters._fields))


def total(counters: Iterable[Counters]) -> Counters:
    """Of all of them."""
    return Counters._make(map(sum, zip(ZERO, *counters, strict=True)))


def step_counters(record: Record) -> Counters | None:
    """The counters of a `step` record; None if it has no steps or no duration."""
    loader = section(record, "loader")
    steps, wall_s, images = count(record, "steps"), count(record, "wall_s"), count(record, "images")
    if not (steps and wall_s):
        return None
    loss, top1 = number(record, "loss"), number(record, "top1")
    # written out: a history of days has a million of them
    return Counters(
        steps=steps,
        images=images,
        wall_s=wall_s,
        wait_s=count(record, "wait_s"),
        exchange_s=count(record, "exchange_s"),
        cpu_s=count(record, "cpu_s"),
        delivered=count(loader, "images"),
        bytes_read=count(loader, "bytes_read"),
        read_s=count(loader, "read_s"),
        decode_s=count(loader, "decode_s"),
        finish_s=count(loader, "finish_s"),
        transfer_s=count(loader, "transfer_s"),
        blocked_s=count(loader, "blocked_s"),
        native=count(loader, "native"),
        fallback=count(loader, "fallback"),
        loss=0.0 if loss is None else loss * steps,
        loss_steps=0.0 if loss is None else steps,
        hits=0.0 if top1 is None else top1 * images,
        hit_images=0.0 if top1 is None else images,
    )


class AttemptCounters:
    """One rank's counters of one attempt, its start-up apart.

    The start-up is the first interval, which training closes after one step: it waits for the first
    batch while the loader opens and fills, and its step allocates, warms up and compiles. Of the
    steps that follow it says nothing, so rates leave it out, except while there is nothing else."""

    def __init__(self, startup: Counters = ZERO, rest: Counters = ZERO) -> None:
        self.startup, self.rest = startup, rest

    def add(self, interval: Counters) -> None:
        if self.startup.steps:
            self.rest = self.rest.plus(interval)
        else:
            self.startup = interval

    @property
    def started(self) -> bool:
        """Whether anything was measured beyond the start-up."""
        return self.rest.steps > 0

    @property
    def whole(self) -> Counters:
        """Over the whole attempt without its start-up; the start-up while there is nothing else."""
        return self.rest if self.started else self.startup


def attempt_counters(records: Iterable[Record], attempt: int) -> AttemptCounters:
    """Of one attempt's `step` records."""
    counters = AttemptCounters()
    for record in records:
        if record["kind"] == "step" and integer(record, "attempt") == attempt:
            counters.add(step_counters(record) or ZERO)
    return counters


class Startup(NamedTuple):
    """How long training took to get going, seconds."""

    first_batch_s: float  # until the last rank had its first batch
    first_step_s: float  # from then on, until the last rank had taken its first step

    @property
    def text(self) -> str:
        batch, step = self
        return f"{batch:.1f} s until the first batch, then {step:.1f} s for the first step"


def startup(ranks: Collection[Counters]) -> Startup | None:
    """Of the ranks' start-ups; None where there is none."""
    if not ranks:
        return None
    batch_s = max(min(one.wait_s, one.wall_s) for one in ranks)
    return Startup(batch_s, max(one.wall_s for one in ranks) - batch_s)


class Throughput(NamedTuple):
    """Images per second over all ranks; None where it is not known."""

    loader: float | None  # what the loaders could deliver
    delivered: float | None  # what they handed over
    trainer: float | None  # what training took

    @property
    def headroom(self) -> float | None:
        """How many times faster the loader could go than training asks."""
        return self.loader / self.trainer if self.loader is not None and self.trainer else None


def throughput(ranks: Collection[Counters]) -> Throughput:
    """Over ranks that run side by side: the sum of their rates."""
    if not ranks:
        return Throughput(None, None, None)
    known = [capacity for one in ranks if (capacity := one.capacity) is not None]
    return Throughput(
        loader=sum(known) if len(known) == len(ranks) else None,
        delivered=sum(one.delivered_per_s for one in ranks),
        trainer=sum(one.trained_per_s for one in ranks),
    )


def wait_fraction(ranks: Collection[Counters]) -> float | None:
    """Seconds waited for batches over seconds passed, summed over the ranks, in [0, 1]."""
    if not ranks:
        return None
    return min(sum(one.wait_s for one in ranks) / sum(one.wall_s for one in ranks), 1.0)
