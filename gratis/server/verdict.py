"""The verdict: what holds training back, by the rates of its ranks."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from functools import reduce
from statistics import median

from gratis.rates import ZERO, Counters, Stage, throughput, wait_fraction
from gratis.server.models import Verdict

# below this share of time lost to waiting, a faster loader could not gain more than that share
WAIT_LIMIT = 0.05
LAG_LIMIT = 1.25  # a rank whose steps take this many times the others' holds them back


def stage_shares(ranks: Iterable[Counters]) -> dict[Stage, float]:
    """Shares of the loaders' working time by stage; empty where no stage was timed."""
    seconds = reduce(Counters.plus, ranks, ZERO).stages
    whole = sum(seconds.values())
    return {stage: s / whole for stage, s in seconds.items()} if whole else {}


def judge(ranks: Mapping[int, Counters], *, stalled_s: float | None = None) -> Verdict:
    """What holds training back, by the first of these that holds:

    1. `stalled`: no event for longer than the stall limit (`stalled_s`: for how long).
    2. `starting`: some rank has not finished its first interval of training (`ranks` is empty).
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
        text = f"No event for {_duration(stalled_s)}: it hangs or is suspended."
        return Verdict(kind="stalled", text=text)
    if not ranks:
        text = "Nothing measured yet: the first interval of training is not over."
        return Verdict(kind="starting", text=text)
    if (straggler := _straggler(ranks)) is not None:
        return straggler
    wait, speed = wait_fraction(ranks.values()) or 0.0, throughput(ranks.values())
    if wait >= WAIT_LIMIT:
        stage, shares = _slowest(ranks.values())
        text = f"Training waits for data {wait:.0%} of the time and gets {_rate(speed.trainer)}."
        text = f"{text} {shares}".strip()
        return Verdict(kind="input-bound", stage=stage, text=text)
    text = f"Training takes {_rate(speed.trainer)} and waits for data {wait:.1%} of the time."
    if (spare := speed.headroom) is not None:
        text += f" The loader could deliver {_rate(speed.loader)}, {spare:.1f} times that."
    return Verdict(kind="compute-bound", text=text)


def _straggler(ranks: Mapping[int, Counters]) -> Verdict | None:
    if len(ranks) < 2:
        return None
    rank, slow, others = _extreme(ranks, lambda one: one.wait_fraction)
    usual = median(one.wait_fraction for one in others)
    if slow.wait_fraction >= WAIT_LIMIT and slow.wait_fraction >= 2 * usual:
        stage, shares = _slowest([slow])
        text = (
            f"Rank {rank} waits for data {slow.wait_fraction:.0%} of the time, the others "
            f"{usual:.0%}: all wait for it. {shares}"
        )
        return Verdict(kind="straggler", stage=stage, rank=rank, text=text.strip())
    rank, slow, others = _extreme(ranks, lambda one: one.own_step_s)
    usual = median(one.own_step_s for one in others)
    exchange = median(one.exchange_fraction for one in others)
    if slow.own_step_s >= LAG_LIMIT * usual and exchange - slow.exchange_fraction >= WAIT_LIMIT:
        text = (
            f"Rank {rank} works {_ms(slow.own_step_s)} on a step, the others {_ms(usual)}; "
            f"they spend {exchange:.0%} of the time in exchanges, waiting for it."
        )
        return Verdict(kind="straggler", rank=rank, text=text)
    rank, slow, others = _extreme(ranks, lambda one: one.step_s)
    usual = median(one.step_s for one in others)
    if slow.step_s >= LAG_LIMIT * usual:
        text = f"Rank {rank} takes {_ms(slow.step_s)} a step, the others {_ms(usual)}."
        return Verdict(kind="straggler", rank=rank, text=text)
    return None


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


def _rate(images_per_s: float | None) -> str:
    if images_per_s is None:
        return "an unknown number of images/s"
    return f"{images_per_s:,.{0 if images_per_s >= 100 else 1}f} images/s"


def _ms(seconds: float) -> str:
    return f"{seconds * 1e3:,.0f} ms"


def _duration(seconds: float) -> str:
    if seconds < 120:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} minutes" if seconds < 7200 else f"{seconds / 3600:.1f} hours"
