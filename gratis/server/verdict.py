"""From raw counters to rates, and from rates to the one sentence that people look for: what holds
training back."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from statistics import median

from gratis.server.models import Speed, Stage, Stages, Verdict
from gratis.server.records import STAGES, Sums

# below this share of time lost to waiting, a faster loader could not gain more than that share
WAIT_LIMIT = 0.05
LAG_LIMIT = 1.25  # a rank whose steps take this many times the others' holds them back


@dataclass(frozen=True, kw_only=True)
class RankLoad:
    """One rank over a range of steps."""

    rank: int
    sums: Sums

    @property
    def trained(self) -> float:
        return self.sums.images / self.sums.wall_s

    @property
    def delivered(self) -> float:
        return self.sums.delivered / self.sums.wall_s

    @property
    def capacity(self) -> float | None:
        """Images/s that the loader could deliver: what it handed over, over the time its producer
        was at work.

        At work are the stages' seconds, and at least as long as training waited. The time that the
        producer was not blocked would not do: at the end of an epoch it has nothing left to make,
        and is neither blocked nor at work. The decoder works ahead while the producer is blocked,
        so a large headroom is an upper estimate; it is exact where it matters, near 1."""
        busy = (
            max(sum(self.sums.stages().values()), self.sums.wait_s)
            or self.sums.wall_s - self.sums.blocked_s
        )
        return self.sums.delivered / busy if busy > 0 and self.sums.delivered else None

    @property
    def wait(self) -> float:
        """Share of the time that training waited for batches."""
        return min(self.sums.wait_s / self.sums.wall_s, 1.0)

    @property
    def exchange(self) -> float:
        """Share of the time inside collectives: much of it is waiting for slower ranks."""
        return min(self.sums.exchange_s / self.sums.wall_s, 1.0)

    @property
    def own_s(self) -> float:
        """Seconds of a step that are the rank's own: neither waiting for data nor inside
        collectives."""
        return (
            max(self.sums.wall_s - self.sums.wait_s - self.sums.exchange_s, 0.0) / self.sums.steps
        )

    @property
    def step_s(self) -> float:
        return self.sums.wall_s / self.sums.steps


def total_speed(loads: Sequence[RankLoad]) -> Speed:
    capacities = [load.capacity for load in loads]
    known = [capacity for capacity in capacities if capacity is not None]
    return Speed(
        loader=sum(known) if loads and len(known) == len(loads) else None,
        delivered=sum(load.delivered for load in loads) if loads else None,
        trainer=sum(load.trained for load in loads) if loads else None,
    )


def wait_fraction(loads: Sequence[RankLoad]) -> float | None:
    """Seconds waited over seconds passed, summed over the ranks."""
    if not loads:
        return None
    return min(
        sum(load.sums.wait_s for load in loads) / sum(load.sums.wall_s for load in loads), 1.0
    )


def headroom(speed: Speed) -> float | None:
    """How many times faster the loader could go than training asks."""
    return speed.loader / speed.trainer if speed.loader is not None and speed.trainer else None


def stage_shares(loads: Iterable[RankLoad]) -> Stages:
    """Where the loaders' working time goes."""
    seconds = [
        sum(column)
        for column in zip(
            (0.0,) * len(STAGES), *(load.sums.stages().values() for load in loads), strict=True
        )
    ]
    whole = sum(seconds)
    return (
        Stages(**{stage: s / whole for stage, s in zip(STAGES, seconds, strict=True)})
        if whole
        else Stages()
    )


def judge(loads: Sequence[RankLoad], *, stalled_s: float | None = None) -> Verdict:
    """What holds training back, by the first of these that holds:

    1. `stalled`: no event for longer than the stall limit (`stalled_s`: for how long).
    2. `starting`: some rank has not finished its first interval of training (`loads` is empty).
    3. `straggler`: one rank makes the others wait. By its input: it waits for batches for at least
       WAIT_LIMIT of its time, and at least twice as much as the median of the others; its slowest
       stage is named. Or by its own work: a step costs it LAG_LIMIT times the median of the others,
       outside collectives and waiting for data, and it spends a share less by WAIT_LIMIT than they
       do in collectives, where they wait for it (ranks in step share one duration). Or its steps
       take LAG_LIMIT times the others', which shows where it has fallen behind for good.
    4. `input-bound`: the ranks together wait for batches for at least WAIT_LIMIT of their time. The
       stage on which the loaders spend most of their working time is named: making that one faster
       is what helps.
    5. `compute-bound`: otherwise. The numbers are then the loader's headroom."""
    if stalled_s is not None:
        return Verdict(
            kind="stalled", text=f"No event for {_duration(stalled_s)}: it hangs or is suspended."
        )
    if not loads:
        return Verdict(
            kind="starting",
            text="Nothing measured yet: the first interval of training is not over.",
        )
    if (straggler := _straggler(loads)) is not None:
        return straggler
    wait, speed = wait_fraction(loads) or 0.0, total_speed(loads)
    if wait >= WAIT_LIMIT:
        stage, shares = _slowest(loads)
        where = f" {shares}" if shares else ""
        return Verdict(
            kind="input-bound",
            stage=stage,
            text=f"Training waits for data {wait:.0%} of the time and gets "
            f"{_rate(speed.trainer)}.{where}",
        )
    spare = headroom(speed)
    could = (
        f" The loader could deliver {_rate(speed.loader)}, {spare:.1f} times that."
        if spare is not None
        else ""
    )
    return Verdict(
        kind="compute-bound",
        text=f"Training takes {_rate(speed.trainer)} and waits for data {wait:.1%} of the "
        f"time.{could}",
    )


def _straggler(loads: Sequence[RankLoad]) -> Verdict | None:
    if len(loads) < 2:
        return None
    slow = max(loads, key=lambda load: load.wait)
    others = median(load.wait for load in loads if load is not slow)
    if slow.wait >= WAIT_LIMIT and slow.wait >= 2 * others:
        stage, shares = _slowest([slow])
        words = (
            f"Rank {slow.rank} waits for data {slow.wait:.0%} of the time, the others "
            f"{others:.0%}: all wait for it."
        )
        return Verdict(
            kind="straggler", stage=stage, rank=slow.rank, text=f"{words} {shares}".strip()
        )
    slow = max(loads, key=lambda load: load.own_s)
    rest = [load for load in loads if load is not slow]
    usual, held = median(load.own_s for load in rest), median(load.exchange for load in rest)
    if slow.own_s >= LAG_LIMIT * usual and held - slow.exchange >= WAIT_LIMIT:
        words = (
            f"Rank {slow.rank} works {slow.own_s * 1e3:,.0f} ms on a step, the others "
            f"{usual * 1e3:,.0f} ms"
        )
        text = f"{words}; they spend {held:.0%} of the time in exchanges, waiting for it."
        return Verdict(kind="straggler", rank=slow.rank, text=text)
    slow = max(loads, key=lambda load: load.step_s)
    usual = median(load.step_s for load in loads if load is not slow)
    if slow.step_s >= LAG_LIMIT * usual:
        words = (
            f"Rank {slow.rank} takes {slow.step_s * 1e3:,.0f} ms a step, the others "
            f"{usual * 1e3:,.0f} ms."
        )
        return Verdict(kind="straggler", rank=slow.rank, text=words)
    return None


def _slowest(loads: Sequence[RankLoad]) -> tuple[Stage | None, str]:
    """The stage that takes most of the loaders' working time, and all of them in words."""
    shares = {stage: share for stage, share in stage_shares(loads) if share}
    order = sorted(shares, key=lambda stage: -shares[stage])
    words = ", ".join(f"{stage} {shares[stage]:.0%}" for stage in order)
    stages: dict[str, Stage] = {
        "read": "read",
        "decode": "decode",
        "finish": "finish",
        "transfer": "transfer",
    }
    return (stages[order[0]], f"Of the loader's work: {words}.") if order else (None, "")


def _rate(images_per_s: float | None) -> str:
    if images_per_s is None:
        return "an unknown number of images/s"
    return (
        f"{images_per_s:,.0f} images/s" if images_per_s >= 100 else f"{images_per_s:.1f} images/s"
    )


def _duration(seconds: float) -> str:
    if seconds < 120:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} minutes" if seconds < 7200 else f"{seconds / 3600:.1f} hours"
