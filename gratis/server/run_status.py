"""A run's status, put together from what was read of its files so far."""

from __future__ import annotations

import time
from collections.abc import Collection, Sequence
from pathlib import Path
from typing import Any

from gratis.fields import Record, count, integer, number, text
from gratis.rates import Counters, throughput, wait_fraction
from gratis.server.bins import superseded
from gratis.server.event_files import EventFile, RankFile, ShardFile
from gratis.server.liveness import is_gone
from gratis.server.models import (
    CoverageStatus,
    Evaluation,
    GpuStatus,
    RankStatus,
    RunStatus,
    ShardStatus,
    Speed,
    StageShares,
    State,
)
from gratis.server.run import PICTURE, Run, start_of
from gratis.server.state import derive
from gratis.server.verdict import judge, stage_shares

OVER: tuple[State, ...] = ("finished", "crashed", "preempted", "diverged")


def run_status(run: Run, stall_s: float) -> RunStatus:
    """The status as of the run's last refresh. Rates are over the newest intervals; over the
    whole attempt once it has ended."""
    ranks, now = run.latest_ranks(), time.time()
    start = start_of(ranks)
    world = integer(start, "world") or max(len(ranks), 1)
    updated = max((file.mtime for file in run.files()), default=now)
    age_s = max(now - updated, 0.0)
    dead = [one.rank for one in ranks if one.attempt.end is None and is_gone(one.attempt.start)]
    stepped = len(ranks) == world and all(file.step for file in ranks)
    outcomes = {one.rank: one.attempt.outcome or "" for one in ranks if one.attempt.end is not None}
    state, reason = derive(
        outcomes=outcomes, dead=dead, stepped=stepped, age_s=age_s, stall_s=stall_s
    )
    if not ranks and run.shards is not None:
        state, reason = _shards_alone(run.shards, age_s, stall_s)
    if state == "running" and (progress := ranks[0].evaluating) is not None:
        done, total = count(progress, "images") * world, count(progress, "total")
        reason = f"evaluating, {min(done, total):,.0f} of {total:,.0f} images"
    files: Sequence[EventFile] = ranks or ([run.shards] if run.shards else [])
    ends = [file.attempt.end for file in files]
    error = next((error for end in ends if end is not None and (error := text(end, "error"))), None)
    counters = {file.rank: _counters(file, state) for file in ranks if file.step}
    rates = throughput(counters.values())
    judged = counters if stepped or state in OVER else {}
    return RunStatus(
        name=run.path.name,
        state=state,
        reason=f"{reason}: {error}" if error else reason,
        epoch=max((file.attempt.epoch for file in ranks), default=0),
        step=max((file.step for file in ranks), default=0),
        updated=updated,
        age_s=age_s,
        verdict=judge(judged, stalled_s=age_s if state == "stalled" else None),
        images_per_s=Speed(**rates._asdict()),
        data_wait_fraction=wait_fraction(counters.values()),
        headroom=rates.headroom,
        attempt=max((file.attempt.number for file in ranks), default=0),
        world=world,
        images_trained=int(sum(file.lifetime.images for file in ranks)),
        evaluations=evaluations(run),
        warnings=[message for file in ranks for message in file.warnings][-10:],
        ranks=[_rank_status(file, state, file.rank in dead, now) for file in ranks],
        shards=_shard_status(run.shards, stall_s, now) if run.shards else None,
        picture_t=_modified(run.path / PICTURE),
        remaining_s=None if state in OVER else _remaining(start, counters.values(), ranks),
        behind_bytes=sum(file.behind for file in run.files()),
        garbage_lines=sum(file.tail.garbage for file in run.files()),
        **_plan(start),
        **_progress(ranks),
    )


def _shards_alone(file: ShardFile, age_s: float, stall_s: float) -> tuple[State, str]:
    """The state of a run in which nothing trains, or not yet: the shard stage's."""
    state, reason = derive(
        outcomes={0: file.attempt.outcome or ""} if file.attempt.end is not None else {},
        dead=[0] if file.attempt.end is None and is_gone(file.attempt.start) else [],
        stepped=False,
        age_s=age_s,
        stall_s=stall_s,
    )
    reason = (
        "shards are being made"
        if state == "starting"
        else reason.replace("rank 0", "the shard stage")
    )
    return state, reason


def _modified(path: Path) -> float | None:
    try:
        return path.stat().st_mtime
    except OSError:
        return None


def evaluations(run: Run) -> list[Evaluation]:
    """Rank 0's, but those of epochs that a later attempt runs again."""
    resumes = run.resumes()
    evals = run.ranks[0].evals.values() if 0 in run.ranks else ()
    return [
        _evaluation(step, record)
        for step, attempt, record in evals
        if not superseded(step, attempt, resumes)
    ]


def _counters(file: RankFile, state: State) -> Counters:
    return file.total if state in OVER else file.window()


def _plan(start: Record) -> dict[str, Any]:
    """What the `start` record announces."""
    mesh = start.get("mesh")
    mesh = mesh if isinstance(mesh, dict) else {}
    whole = ("classes", "train_images", "val_images", "batch_size", "epochs", "steps_per_epoch")
    return {
        "recipe": text(start, "recipe"),
        "dataset": text(start, "dataset"),
        "mesh": {axis: int(count(mesh, axis)) for axis in list(mesh)[:8]},
        "started": number(start, "t"),
        "decoded": text(start, "decoded"),
        "decoded_bytes": _decoded_bytes(start),
        **{key: integer(start, key) for key in whole},
    }


def _decoded_bytes(start: Record) -> float | None:
    """Bytes of the whole training split as RGB, where decoded images are cached."""
    config = start.get("config")
    recipe = config.get("recipe") if isinstance(config, dict) else None
    side = integer(recipe, "image_size") if isinstance(recipe, dict) else None
    images = integer(start, "train_images")
    if side is None or images is None or text(start, "decoded") in (None, "none"):
        return None
    return 3.0 * images * side**2


def _progress(ranks: list[RankFile]) -> dict[str, Any]:
    """What the first rank's newest records hold of the training itself."""
    if not ranks:
        return {}
    first = ranks[0]
    receipt = {key: int(count(first.receipt or {}, key)) for key in CoverageStatus.model_fields}
    return {
        "loss": number(first.newest, "loss"),
        "train_error": _error(first.newest, "top1"),
        "learning_rate": number(first.newest, "lr"),
        "receipt": CoverageStatus(**receipt) if first.receipt is not None else None,
        "checkpoint_step": integer(first.checkpoint, "step")
        if first.checkpoint is not None
        else None,
    }


def _remaining(
    start: Record, counters: Collection[Counters], ranks: list[RankFile]
) -> float | None:
    steps_per_epoch, epochs = integer(start, "steps_per_epoch"), integer(start, "epochs")
    if not (steps_per_epoch and epochs and counters):
        return None
    to_go = max(steps_per_epoch * epochs - max(file.step for file in ranks), 0)
    return to_go * max(one.step_s for one in counters)


def _rank_status(file: RankFile, state: State, dead: bool, now: float) -> RankStatus:
    own = _counters(file, state) if file.step else None
    counters = [own] if own else []
    start: Record = file.attempt.start or {}
    loader = file.newest.get("loader")
    loader = loader if isinstance(loader, dict) else {}
    return RankStatus(
        rank=file.rank,
        state="ended"
        if file.attempt.end is not None
        else "gone"
        if dead
        else "running"
        if own
        else "waiting",
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
        queue_depth=integer(loader, "queue_depth"),
        queue_capacity=integer(loader, "queue_capacity"),
        gpu=_gpu(file.newest),
        age_s=max(now - file.mtime, 0.0),
    )


def _gpu(record: Record) -> GpuStatus | None:
    gpu = record.get("gpu")
    if not isinstance(gpu, dict):
        return None
    busy, nvjpg = (number(gpu, key) for key in ("busy", "nvjpg_busy"))
    return GpuStatus(
        busy=None if busy is None else min(max(busy, 0.0), 1.0),
        nvjpg_busy=None if nvjpg is None else min(max(nvjpg, 0.0), 1.0),
        memory_bytes=count(gpu, "memory_bytes") or None,
        power_w=count(gpu, "power_w") or None,
    )


def _shard_status(file: ShardFile, stall_s: float, now: float) -> ShardStatus:
    images, bytes_in, bytes_out, wall_s = file.window()
    age_s = max(now - file.mtime, 0.0)
    rate = images / wall_s if wall_s else None
    bad = file.attempt.outcome not in (None, "finished")
    over = file.attempt.end is not None or 0 < file.total <= file.done
    return ShardStatus(
        state="failed"
        if bad
        else "finished"
        if over
        else "stalled"
        if age_s > stall_s
        else "running",
        done=file.done,
        total=file.total,
        rejects=file.rejects,
        images_per_s=rate,
        bytes_in_per_s=bytes_in / wall_s if wall_s else None,
        bytes_out_per_s=bytes_out / wall_s if wall_s else None,
        remaining_s=max(file.total - file.done, 0) / rate if rate and not over else None,
        age_s=age_s,
    )


def _error(record: Record, key: str) -> float | None:
    """1 - the share at `key`, in [0, 1]."""
    share = number(record, key)
    return None if share is None else min(max(1 - share, 0.0), 1.0)


def _evaluation(step: int, record: Record) -> Evaluation:
    return Evaluation(
        epoch=integer(record, "epoch") or 0,
        step=step,
        views=integer(record, "views") or 0,
        images=integer(record, "images") or 0,
        top1_error=_error(record, "top1"),
        top5_error=_error(record, "top5"),
        nll=number(record, "nll"),
        wall_s=count(record, "wall_s"),
    )
