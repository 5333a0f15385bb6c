"""The verdict: what holds training back, by the rates of its ranks.

The one place where it is decided and worded: the status page, `gratis top` and what a run prints at
its end show the same sentence."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from statistics import median
from typing import Literal, NamedTuple

from gratis.rates import (
    AttemptCounters,
    Counters,
    Stage,
    Startup,
    Throughput,
    startup,
    throughput,
    total,
    wait_fraction,
)

Bottleneck = Literal["starting", "stalled", "straggler", "input-bound", "compute-bound"]

# below this share of time lost to waiting, a faster loader could not gain more than that share
WAIT_LIMIT = 0.05
# a loader that could deliver more than this many times what training takes is not too slow: what
# training waits for are single moments, as an epoch's first batch
HEADROOM_LIMIT = 2.0
LAG_LIMIT = 1.25  # a rank whose steps take this many times the others' holds them back


class Verdict(NamedTuple):
    """What holds training back."""

    kind: Bottleneck
    title: str  # a headline
    text: str  # a sentence or two, with the numbers behind it
    stage: Stage | None = None  # the loader's slowest, where the input holds training back
    rank: int | None = None  # the one that holds the others back, if one does
    pauses: bool = False  # compute-bound, and waits for data at least WAIT_LIMIT all the same


class Performance(NamedTuple):
    """How fast a run is, and what holds it back."""

    speed: Throughput
    wait_fraction: float | None  # share of the ranks' time spent waiting for batches, in [0, 1]
    startup: Startup | None
    verdict: Verdict


def performance(
    ranks: Mapping[int, AttemptCounters],
    recent: Mapping[int, Counters] | None = None,
    *,
    complete: bool = True,
    stalled_s: float | None = None,
) -> Performance:
    """Of an attempt's ranks that took a step: over the whole attempt without its start-up, or over
    their `recent` counters where they are given.

    complete: no rank is still to take its first step. stalled_s: as for `judge`."""
    counters = recent or {rank: one.whole for rank, one in ranks.items()}
    began = startup([one.startup for one in ranks.values()])
    measured = all(one.started for one in ranks.values())
    verdict = judge(
        counters if complete else {},
        stalled_s=stalled_s,
        only_startup=began if complete and not measured else None,
    )
    known = counters.values()
    return Performance(throughput(known), wait_fraction(known), began, verdict)


def stage_shares(ranks: Iterable[Counters]) -> dict[Stage, float]:
    """Shares of the loaders' working time by stage; empty where no stage was timed."""
    seconds = total(ranks).stages
    whole = sum(seconds.values())
    return {stage: s / whole for stage, s in seconds.items()} if whole else {}


def judge(
    ranks: Mapping[int, Counters],
    *,
    stalled_s: float | None = None,
    only_startup: Startup | None = None,
) -> Verdict:
    """What holds training back, by the first of these that holds:

    1. `stalled`: no event for longer than the stall limit (`stalled_s`: for how long).
    2. `starting`: some rank has not finished its first interval of training (`ranks` is empty), or
       has measured nothing beyond it (`only_startup`: how long it took).
    3. `straggler`: one rank makes the others wait. By its input: it waits for batches for at least
       WAIT_LIMIT of its time, and at least twice as much as the median of the others, and its
       loader's headroom is not above HEADROOM_LIMIT; its slowest stage is named. Or by its own
       work: a step costs it LAG_LIMIT times the median of the others, outside collectives and
       waiting for data, and it spends a share less by WAIT_LIMIT than they do in collectives, where
       they wait for it (ranks in step share one duration). Or its steps take LAG_LIMIT times the
       others', which shows where it has fallen behind for good.
    4. `input-bound`: the ranks together wait for batches for at least WAIT_LIMIT of their time, and
       the headroom is not above HEADROOM_LIMIT. The stage on which the loaders spend most of their
       working time is named: making that one faster is what helps.
    5. `compute-bound`: otherwise. The numbers are then the loader's headroom."""
    if stalled_s is not None:
        text = f"No event for {duration(stalled_s)}: it hangs or is suspended."
        return Verdict("stalled", "Stalled", text)
    if only_startup is not None:
        text = f"The start-up took {only_startup.text}. Nothing is measured beyond it."
        return Verdict("starting", "Starting", text)
    if not ranks:
        text = "Nothing measured yet: the first interval of training is not over."
        return Verdict("starting", "Starting", text)
    if (straggler := _straggler(ranks)) is not None:
        return straggler
    if _short_of_data(ranks.values()):
        return _input_bound(ranks.values())
    return _compute_bound(ranks.values())


def _short_of_data(ranks: Iterable[Counters]) -> bool:
    """Whether training waits for batches because the loaders are too slow."""
    ranks = list(ranks)
    headroom = throughput(ranks).headroom
    plenty = headroom is not None and headroom > HEADROOM_LIMIT
    return (wait_fraction(ranks) or 0.0) >= WAIT_LIMIT and not plenty


def _input_bound(ranks: Iterable[Counters]) -> Verdict:
    ranks = list(ranks)
    wait, (stage, shares) = wait_fraction(ranks), _slowest(ranks)
    text = f"Training waits for data {wait:.0%} of the time and gets "
    text += f"{rate(throughput(ranks).trainer)}. {shares}"
    title = f"Input-bound: {stage or 'the loader'} is too slow"
    return Verdict("input-bound", title, text.strip(), stage)


def _compute_bound(ranks: Iterable[Counters]) -> Verdict:
    ranks = list(ranks)
    wait, speed = wait_fraction(ranks) or 0.0, throughput(ranks)
    text = f"Training takes {rate(speed.trainer)} and waits for data {wait:.1%} of the time."
    if (spare := speed.headroom) is not None:
        text += f" The loader could deliver {rate(speed.loader)}, {spare:.1f} times that."
    if wait < WAIT_LIMIT:
        return Verdict("compute-bound", "Compute-bound: the loader keeps up", text)
    text += " So it waits at single moments, as for an epoch's first batch, not for want of speed."
    return Verdict("compute-bound", "Compute-bound, with pauses for data", text, pauses=True)


def _straggler(ranks: Mapping[int, Counters]) -> Verdict | None:
    if len(ranks) < 2:
        return None
    rank, slow, others = _extreme(ranks, lambda one: one.wait_fraction)
    usual = median(one.wait_fraction for one in others)
    if _short_of_data([slow]) and slow.wait_fraction >= 2 * usual:
        stage, shares = _slowest([slow])
        return _holds_back(
            rank,
            f"Rank {rank} waits for data {slow.wait_fraction:.0%} of the time, the others "
            f"{usual:.0%}: all wait for it. {shares}",
            stage,
        )
    rank, slow, others = _extreme(ranks, lambda one: one.own_step_s)
    usual = median(one.own_step_s for one in others)
    exchange = median(one.exchange_fraction for one in others)
    if slow.own_step_s >= LAG_LIMIT * usual and exchange - slow.exchange_fraction >= WAIT_LIMIT:
        return _holds_back(
            rank,
            f"Rank {rank} works {_ms(slow.own_step_s)} on a step, the others {_ms(usual)}; "
            f"they spend {exchange:.0%} of the time in exchanges, waiting for it.",
        )
    rank, slow, others = _extreme(ranks, lambda one: one.step_s)
    usual = median(one.step_s for one in others)
    if slow.step_s >= LAG_LIMIT * usual:
        text = f"Rank {rank} takes {_ms(slow.step_s)} a step, the others {_ms(usual)}."
        return _holds_back(rank, text)
    return None


def _holds_back(rank: int, text: str, stage: Stage | None = None) -> Verdict:
    title = f"Straggler: rank {rank} holds the others back"
    return Verdict("straggler", title, text.strip(), stage, rank)


def _extreme(
    ranks: Mapping[int, Counters], key: Callable[[Counters], float]
) -> tuple[int, Counters, list[Counters]]:
    """The rank with the highest `key`, its counters, and the others'."""
    rank = max(ranks, key=lambda one: key(ranks[one]))
    return rank, ranks[rank], [counters for other, counters in ranks.items() if other != rank]


def _slowest(ranks: Iterable[Counters]) -> tuple[Stage | None, str]:
    """The stage that takes most of the loaders' working time, and a sentence with all shares."""
    shares = stage_shares(ranks)
    order = sorted((stage for stage in shares if shares[stage]), key=lambda stage: -shares[stage])
    listing = ", ".join(f"{stage} {shares[stage]:.0%}" for stage in order)
    return (order[0], f"Of the loader's work: {listing}.") if order else (None, "")


def rate(images_per_s: float | None) -> str:
    """As every table and sentence writes it: "1,234 images/s", "56.7 images/s"."""
    if images_per_s is None:
        return "an unknown number of images/s"
    return f"{images_per_s:,.{0 if images_per_s >= 100 else 1}f} images/s"


def _ms(seconds: float) -> str:
    return f"{seconds * 1e3:,.0f} ms"


def duration(seconds: float) -> str:
    if seconds < 120:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} minutes" if seconds < 7200 else f"{seconds / 3600:.1f} hours"
