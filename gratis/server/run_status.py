"""A run's status, put together from what was read of its files so far."""

from __future__ import annotations

import stat
import time
from pathlib import Path
from typing import Any, Literal

from gratis.fields import Record, command, count, integer, number, section, text
from gratis.server.evaluations import best, error_of, evaluations
from gratis.server.event_files import EventFile, RankFile, ShardFile
from gratis.server.models import (
    CoverageStatus,
    RunStatus,
    ShardStatus,
    Speed,
    StartupStatus,
    State,
    VerdictStatus,
)
from gratis.server.rank_status import OVER, counters_of, memory_and_gpus, rank_statuses
from gratis.server.run import PICTURE, Run, start_of
from gratis.server.state import attempt_state
from gratis.verdict import performance

READING = "the server is still reading"


def run_status(run: Run, stall_s: float) -> RunStatus:
    """The status as of the run's last refresh. Rates are over the newest intervals; once the
    attempt has ended, over all of it but its start-up."""
    ranks, now = run.latest_ranks(), time.time()
    start = start_of(ranks)
    world = integer(start, "world") or max(len(ranks), 1)
    updated = max((file.mtime for file in run.files()), default=now)
    age_s = max(now - updated, 0.0)
    stepped = len(ranks) == world and all(file.step for file in ranks)
    files: dict[int, EventFile] = {file.rank: file for file in ranks}
    if not ranks and run.shards is not None:  # nothing trains, or not yet
        files = {0: run.shards}
    attempts = {rank: file.attempt for rank, file in files.items()}
    state, reason, dead = attempt_state(attempts, stepped=stepped, age_s=age_s, stall_s=stall_s)
    if files and not ranks:
        reason = reason.replace("rank 0", "the shard stage")
        reason = "shards are being made" if state == "starting" else reason
    if state == "running" and (progress := ranks[0].evaluating) is not None:
        done, total = count(progress, "images") * world, count(progress, "total")
        reason = f"evaluating, {min(done, total):,.0f} of {total:,.0f} images"
    if reading := run.far or not run.level:
        reason = READING
    ends = [one.end for one in attempts.values() if one.end is not None]
    error = next((error for end in ends if (error := text(end, "error"))), None)
    own = rank_statuses(run, ranks, state, dead, now)
    evaluated = evaluations(run)
    rates = _rates(ranks, state, complete=stepped or state in OVER, age_s=age_s)
    if reading:  # the first of the newest intervals is no start-up
        rates["startup"] = None
    if not run.seen:  # a part of the ranks has a part of the rates
        verdict = VerdictStatus(kind="starting", title="Starting", text=READING, pauses=False)
        rates = {"verdict": verdict, "images_per_s": Speed()}
    return RunStatus(
        name=run.path.name,
        folder=f"{run.path.parent.resolve().name}/{run.path.name}",
        state=state,
        reason=f"{reason}: {error}" if error else reason,
        updated=updated,
        age_s=age_s,
        attempt=max((file.attempt.number for file in ranks), default=0),
        world=world,
        images_trained=int(sum(run.ranks[file.rank].lifetime.images for file in ranks)),
        native_images=int(sum(run.ranks[file.rank].lifetime.native for file in ranks)),
        fallback_images=int(sum(run.ranks[file.rank].lifetime.fallback for file in ranks)),
        evaluations=evaluated,
        best=best(evaluated),
        warnings=[message for file in ranks for message in file.warnings][-10:],
        ranks=own,
        shards=_shard_status(run.shards, stall_s, now) if run.shards else None,
        picture_t=_modified(run.path / PICTURE),
        behind_bytes=run.behind,
        garbage_lines=sum(file.tail.garbage for file in run.files()),
        **_plan(start),
        **_position(start, state, ranks),
        **rates,
        **_progress(ranks),
        **memory_and_gpus(own),
    )


def _rates(ranks: list[RankFile], state: State, *, complete: bool, age_s: float) -> dict[str, Any]:
    """How fast it is, and what holds it back."""
    counters = {file.rank: counters_of(file, state) for file in ranks if file.step}
    speed, wait, startup, verdict = performance(
        {file.rank: file.counters for file in ranks if file.step},
        counters,
        complete=complete,
        stalled_s=age_s if state == "stalled" else None,
    )
    return {
        "verdict": VerdictStatus(**verdict._asdict()),
        "images_per_s": Speed(**speed._asdict()),
        "data_wait_fraction": wait,
        "startup": StartupStatus(**startup._asdict(), text=startup.text) if startup else None,
        "headroom": speed.headroom,
    }


def _position(start: Record, state: State, ranks: list[RankFile]) -> dict[str, Any]:
    """How far the run is along what its `start` record announces."""
    epochs, steps = integer(start, "epochs"), integer(start, "steps_per_epoch")
    epoch = max((file.attempt.epoch for file in ranks), default=0)
    step = max((file.step for file in ranks), default=0)
    total = epochs * steps if epochs and steps else None
    goes_on = state not in OVER or state == "finished"
    shown = min(epoch, epochs - 1) if epochs else epoch  # the last one after its end too
    step_s = max((counters_of(file, state).step_s for file in ranks if file.step), default=None)
    return {
        "epoch": epoch,
        "step": step,
        "epoch_step": min(max(step - shown * steps, 0), steps) if steps else None,
        "total_steps": total,
        "remaining_s": max(total - step, 0) * step_s if goes_on and total and step_s else None,
    }


def _modified(path: Path) -> float | None:
    """Of a regular file: what else may have its name is not shown."""
    try:
        status = path.lstat()
    except OSError:
        return None
    return status.st_mtime if stat.S_ISREG(status.st_mode) else None


def _plan(start: Record) -> dict[str, Any]:
    """What the `start` record announces."""
    mesh, decoded = section(start, "mesh"), text(start, "decoded")
    images = integer(start, "train_images")
    side, nbytes = integer(section(section(start, "config"), "recipe"), "image_size"), None
    if decoded not in (None, "none") and side is not None and images is not None:
        nbytes = 3.0 * images * side**2  # of the whole training split as RGB
    whole = ("classes", "train_images", "val_images", "batch_size", "epochs", "steps_per_epoch")
    return {
        "recipe": text(start, "recipe"),
        "dataset": text(start, "dataset"),
        "mesh": {axis: int(count(mesh, axis)) for axis in list(mesh)[:8]},
        "started": number(start, "t"),
        "command": command(start, "command") or None,
        "decoded": decoded,
        "decoded_bytes": nbytes,
        **{key: integer(start, key) for key in whole},
    }


def _progress(ranks: list[RankFile]) -> dict[str, Any]:
    """What the first rank's newest records hold of the training itself."""
    if not ranks:
        return {}
    first = ranks[0]
    receipt = {key: int(count(first.receipt or {}, key)) for key in CoverageStatus.model_fields}
    return {
        "loss": number(first.newest, "loss"),
        "train_error": error_of(first.newest, "top1"),
        "learning_rate": number(first.newest, "lr"),
        "receipt": CoverageStatus(**receipt) if first.receipt is not None else None,
        "checkpoint_step": integer(first.checkpoint or {}, "step"),
    }


def _shard_status(file: ShardFile, stall_s: float, now: float) -> ShardStatus:
    images, bytes_in, bytes_out, wall_s = file.window()
    age_s = max(now - file.mtime, 0.0)
    rate = images / wall_s if wall_s else None
    over = file.attempt.end is not None or 0 < file.total <= file.done
    state: Literal["running", "stalled", "finished", "failed"] = "running"
    if file.attempt.outcome not in (None, "finished"):
        state = "failed"
    elif over or age_s > stall_s:
        state = "finished" if over else "stalled"
    return ShardStatus(
        state=state,
        done=file.done,
        total=file.total,
        rejects=file.rejects,
        images_per_s=rate,
        bytes_in_per_s=bytes_in / wall_s if wall_s else None,
        bytes_out_per_s=bytes_out / wall_s if wall_s else None,
        remaining_s=max(file.total - file.done, 0) / rate if rate and not over else None,
        age_s=age_s,
    )
