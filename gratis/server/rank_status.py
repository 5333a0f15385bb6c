"""The ranks' part of a run's status."""

from __future__ import annotations

from collections.abc import Collection
from functools import partial
from typing import Any, Literal

from gratis.fields import Record, count, integer, section, share, text
from gratis.rates import Counters, throughput, wait_fraction
from gratis.server.event_files import RankFile
from gratis.server.models import GpuStatus, RankStatus, Speed, StageShares, State
from gratis.server.run import Run
from gratis.verdict import stage_shares

OVER: tuple[State, ...] = ("finished", "crashed", "preempted", "diverged")


def counters_of(file: RankFile, state: State) -> Counters:
    """Its newest intervals; once the attempt has ended, all of it but its start-up."""
    return file.counters.whole if state in OVER else file.window()


def rank_statuses(
    run: Run, ranks: Collection[RankFile], state: State, dead: Collection[int], now: float
) -> list[RankStatus]:
    """now: Unix seconds."""
    return [
        run.derive(
            ("rank", file.rank),
            (file, file.tail.offset, state, file.rank in dead),
            partial(_rank_status, file, state, file.rank in dead),
        ).model_copy(update={"age_s": max(now - file.mtime, 0.0)})
        for file in ranks
    ]


def _rank_status(file: RankFile, state: State, dead: bool) -> RankStatus:
    """Without its age."""
    own = counters_of(file, state) if file.step else None
    counters = [own] if own else []
    start: Record = file.attempt.start or {}
    loader = section(file.newest, "loader")
    own_state: Literal["waiting", "running", "gone", "ended"] = "running" if own else "waiting"
    if file.attempt.end is not None or dead:
        own_state = "gone" if dead else "ended"
    return RankStatus(
        rank=file.rank,
        state=own_state,
        device=text(start, "device"),
        device_name=text(start, "device_name"),
        step=file.step,
        images_per_s=Speed(**throughput(counters)._asdict()),
        data_wait_fraction=wait_fraction(counters),
        step_s=own.step_s if own else None,
        stages=StageShares(**stage_shares(counters)),
        read_bytes_per_s=own.bytes_read / own.wall_s if own else None,
        cpu_cores=own.cpu_s / own.wall_s if own else None,
        rss_bytes=count(file.newest, "rss_bytes") or None,
        native_images=int(file.lifetime.native),
        fallback_images=int(file.lifetime.fallback),
        queue_depth=integer(loader, "queue_depth"),
        queue_capacity=integer(loader, "queue_capacity"),
        gpu=_gpu(file.newest),
        age_s=0.0,
    )


def _gpu(record: Record) -> GpuStatus | None:
    if not isinstance(record.get("gpu"), dict):
        return None
    gpu = section(record, "gpu")
    return GpuStatus(
        busy=share(gpu, "busy"),
        nvjpg_busy=share(gpu, "nvjpg_busy"),
        memory_bytes=count(gpu, "memory_bytes") or None,
        memory_total_bytes=count(gpu, "memory_total_bytes") or None,
        power_w=count(gpu, "power_w") or None,
    )


def memory_and_gpus(ranks: Collection[RankStatus]) -> dict[str, Any]:
    """Over the ranks. The fullest GPU stands for all: ranks may share one, and the first to be full
    ends a run."""
    gpus = [one.gpu for one in ranks if one.gpu is not None]
    busy = [one.busy for one in gpus if one.busy is not None]
    fullest = max(gpus, key=lambda one: one.memory_bytes or 0.0, default=GpuStatus())
    return {
        "rss_bytes": sum(one.rss_bytes or 0.0 for one in ranks) or None,
        "gpu_busy": sum(busy) / len(busy) if busy else None,
        "gpu_memory_bytes": fullest.memory_bytes,
        "gpu_memory_total_bytes": fullest.memory_total_bytes,
    }
