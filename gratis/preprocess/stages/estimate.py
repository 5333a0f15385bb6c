"""What the shards will cost in disk and time, from a few images of the source, before a byte is
written."""

from __future__ import annotations

import os
import shutil
import time
from collections.abc import Callable
from dataclasses import dataclass
from multiprocessing.connection import wait
from pathlib import Path
from typing import NamedTuple

from gratis.errors import GratisError
from gratis.image import Reject
from gratis.preprocess.execution.workers import NO_MAIN_GUARD, NOT_BEGUN, ReportProgress, Worker
from gratis.preprocess.sources.reader import ImageReader
from gratis.preprocess.stages.shard import ShardTask, refuse_unsupported, sample_size

IMAGES = 48  # 0.15 s, and a mean size within some 5 %
TIMEOUT_S = 60.0
TAR_OVERHEAD = 512 * 3 + 256  # two headers, the label's block, half a block of padding
MARGIN = 1.05


class Estimate(NamedTuple):
    """bytes of the whole dataset; cpu_s of one core for all of it."""

    images: int
    bytes: int
    cpu_s: float


@dataclass(frozen=True)
class EstimateTask:
    """`estimate` for a worker."""

    images: int
    task: ShardTask

    @property
    def name(self) -> str:
        return "the estimate"

    def exclude(self, position: int, cause: str) -> EstimateTask:
        return EstimateTask(self.images, self.task.exclude(position, cause))

    def make(self, begin: Callable[[int], None], report: ReportProgress) -> Estimate:
        self.task.use_limits()
        try:
            return estimate(self.images, self.task, begin)
        except OSError as error:
            raise GratisError(f"cannot read the source: {error}") from None


def estimate(
    images: int, task: ShardTask, begin: Callable[[int], None] = lambda position: None
) -> Estimate:
    """From the first IMAGES items of a task, which are a random draw of the split, as the plan is
    shuffled; begin: as `workers.Task.make` has it. GratisError for one of a format that is not read
    here, if the task is not tolerant."""
    sizes = []
    begun = time.process_time()
    with ImageReader() as reader:
        for position, item in enumerate(task.items[:IMAGES]):
            begin(position)
            try:
                sizes.append(sample_size(reader.read(item), task))
            except Reject as reject:
                refuse_unsupported(task, item, reject)
    begin(-1)
    each_s = (time.process_time() - begun) / max(1, len(task.items[:IMAGES]))
    mean = sum(sizes) / max(1, len(sizes)) + TAR_OVERHEAD
    return Estimate(images, int(mean * images * MARGIN), each_s * images)


def estimate_apart(
    images: int, task: ShardTask, pool: list[Worker] | None = None
) -> Estimate | None:
    """The estimate for all `images`, by a process of its own, from a task of them; None if one of
    the files crashes or hangs the decoder, or if the process is killed or takes longer than
    TIMEOUT_S. pool: gets the process, for what comes next, unless it is lost."""
    worker = Worker()
    try:
        worker.give(EstimateTask(images, task))
        _wait_for(worker)
        if worker.task:
            return None
        if pool is not None:
            pool.append(worker)
        assert isinstance(worker.result, Estimate)
        return worker.result
    finally:
        if pool is None or worker not in pool:
            worker.stop()


def _wait_for(worker: Worker) -> None:
    """Until it has finished its task, or is lost, or TIMEOUT_S are over. GratisError if it
    failed."""
    end = time.monotonic() + TIMEOUT_S
    while worker.task and time.monotonic() < end:
        wait(worker.handles, timeout=end - time.monotonic())
        lost = worker.cause_of_death()
        worker.progress()  # and what it sent before its death
        if lost and worker.task:
            # what was killed, for memory perhaps, costs the estimate alone
            if worker.position == NOT_BEGUN and not worker.killed:
                raise GratisError(NO_MAIN_GUARD)
            return


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
