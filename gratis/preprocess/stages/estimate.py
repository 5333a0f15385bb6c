"""What the shards will cost in disk and time, from a few images of the source, before a byte is
written."""

from __future__ import annotations

import os
import shutil
import signal
import time
from multiprocessing import get_context
from multiprocessing.connection import Connection
from pathlib import Path
from typing import NamedTuple

from gratis.errors import GratisError
from gratis.image import Reject
from gratis.preprocess.execution.workers import NO_MAIN_GUARD
from gratis.preprocess.sources.reader import ImageReader
from gratis.preprocess.stages.shard import ShardTask, refuse_unsupported, sample_size
from gratis.signals import leave_to_parent

IMAGES = 48  # 0.15 s, and a mean size within some 5 %
TIMEOUT_S = 60.0
TAR_OVERHEAD = 512 * 3 + 256  # two headers, the label's block, half a block of padding
MARGIN = 1.05


class Estimate(NamedTuple):
    """bytes of the whole dataset; cpu_s of one core for all of it."""

    images: int
    bytes: int
    cpu_s: float


def estimate(images: int, task: ShardTask) -> Estimate:
    """From the first IMAGES items of a task, which are a random draw of the split, as the plan is
    shuffled. GratisError for one of a format that is not read here, if the task is not tolerant."""
    sizes = []
    begun = time.process_time()
    with ImageReader() as reader:
        for item in task.items[:IMAGES]:
            try:
                sizes.append(sample_size(reader.read(item), task))
            except Reject as reject:
                refuse_unsupported(task, item, reject)
    each_s = (time.process_time() - begun) / max(1, len(task.items[:IMAGES]))
    mean = sum(sizes) / max(1, len(sizes)) + TAR_OVERHEAD
    return Estimate(images, int(mean * images * MARGIN), each_s * images)


def estimate_apart(images: int, task: ShardTask) -> Estimate | None:
    """`estimate` in a process of its own; None if one of the files crashes or hangs the decoder, or
    if the process is killed or does not begin within TIMEOUT_S."""
    context = get_context("spawn")
    ours, theirs = context.Pipe(duplex=False)
    # no pool: a pool's process outlives a parent that is killed, and holds its terminal
    process = context.Process(target=_estimate_into, args=(theirs, images, task), daemon=True)
    process.start()
    theirs.close()
    begun, answer = False, None
    try:
        if ours.poll(TIMEOUT_S):
            begun = ours.recv()
            answer = ours.recv() if ours.poll(TIMEOUT_S) else None
    except EOFError:
        process.join(1)
        # what was killed, for memory perhaps, costs the estimate alone
        if not begun and (process.exitcode or 0) >= 0:
            raise GratisError(NO_MAIN_GUARD) from None
    finally:
        process.kill()
        process.join()
        ours.close()
    if isinstance(answer, GratisError):
        raise answer
    return answer


def _estimate_into(pipe: Connection, images: int, task: ShardTask) -> None:
    leave_to_parent()
    signal.alarm(int(TIMEOUT_S))
    task.use_limits()
    pipe.send(True)
    try:
        pipe.send(estimate(images, task))
    except GratisError as error:
        pipe.send(error)
    except OSError as error:
        pipe.send(GratisError(f"cannot read the source: {error}"))


def refuse_full_disk(out: Path, needed: int) -> None:
    """GratisError if the disk under `out` has less room than is still needed."""
    existing = next(folder for folder in (out, *out.resolve().parents) if folder.exists())
    free, there = shutil.disk_usage(existing).free, 0
    if out.is_dir():
        there = sum(entry.stat().st_size for entry in os.scandir(out) if entry.is_file())
    if needed - there > free:
        raise GratisError(
            f"{out} needs about {_size(needed - there)} and its disk has {_size(free)} free; "
            "choose another OUT or free some"
        )


def describe(cost: Estimate | None, workers: int) -> str:
    """One line: "1,200 images: about 3.1 MB, 0 h 1 min on 2 workers (...)"."""
    if cost is None:
        return (
            f"no estimate: the decoder does not survive one of the first {IMAGES} images; a run "
            f"leaves it out"
        )
    hours, minutes = divmod(round(cost.cpu_s / workers / 60), 60)
    images = "1 image" if cost.images == 1 else f"{cost.images:,} images"
    processes = "1 worker" if workers == 1 else f"{workers} workers"
    rate = f"{1000 * cost.cpu_s / max(1, cost.images):.2f} CPU s per 1,000 images"
    return (
        f"{images}: about {_size(cost.bytes)}, {hours} h {minutes} min on {processes} ({rate}, "
        f"measured here on {min(IMAGES, cost.images)})"
    )


def _size(count: int) -> str:
    """44.0 GB, 3.1 MB, 4.2 kB."""
    for unit, size in (("GB", 1e9), ("MB", 1e6)):
        if count >= size:
            return f"{count / size:.1f} {unit}"
    return f"{count / 1e3:.1f} kB"
