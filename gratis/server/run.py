"""One run: its files as they grow, and its intervals. Its status is put together in
`gratis.server.run_status`."""

from __future__ import annotations

import os
import re
import time
from functools import reduce
from pathlib import Path

from gratis.fields import Record, integer
from gratis.rates import ZERO, Counters, throughput, wait_fraction
from gratis.server.bins import Bin, Gauges, align
from gratis.server.event_files import EventFile, RankFile, ShardFile
from gratis.server.models import IntervalStatus, Speed

RANK_FILE = re.compile(r"rank-(0|[1-9][0-9]{0,3})\.jsonl")
SHARD_FILE = "shards.jsonl"
PICTURE = "latest.jpg"  # of augmented images, put there by training
# of training behind a point of the loader's capacity, as the queue is filled in bursts
SMOOTH_S = 10.0
READ_S = 0.3  # how long one refresh may read: a request never waits for a million lines


class Run:
    """Not for use from several threads."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.ranks: dict[int, RankFile] = {}
        self.shards: ShardFile | None = None
        self.revision = 0  # goes up whenever something was read

    def refresh(self) -> None:
        """Reads what the files have gained; for at most about READ_S."""
        try:
            names = set(os.listdir(self.path))
        except OSError:
            names = set()
        self.ranks = {rank: file for rank, file in self.ranks.items() if file.path.name in names}
        for name in names:
            if match := RANK_FILE.fullmatch(name):
                rank = int(match[1])
                if rank not in self.ranks or self.ranks[rank].replaced():
                    self.ranks[rank] = RankFile(self.path / name, rank)
            elif name == SHARD_FILE and (self.shards is None or self.shards.replaced()):
                self.shards = ShardFile(self.path / name)
        deadline = time.monotonic() + READ_S
        read = [file.refresh(deadline) for file in self.files()]
        self.revision += any(read)

    def files(self) -> list[EventFile]:
        return [*self.ranks.values(), *([self.shards] if self.shards else [])]

    def latest_ranks(self) -> list[RankFile]:
        """The ranks of the newest attempt; files of ranks outside its world are of earlier ones."""
        attempt = max((file.attempt.number for file in self.ranks.values()), default=0)
        present = [file for _, file in sorted(self.ranks.items()) if file.attempt.number == attempt]
        world = integer(start_of(present), "world")
        return [file for file in present if world is None or file.rank < world]

    def intervals(self) -> list[IntervalStatus]:
        """The run's intervals, oldest first, as far as all ranks have come."""
        ranks = self.latest_ranks()
        rows = align((file.bins for file in self.ranks.values()), self.resumes())
        upto = min((file.step for file in ranks), default=0)
        rows = [row for row in rows if not upto or row[0].step <= upto]
        return [_interval(row, _capacity(rows, place)) for place, row in enumerate(rows)]

    def resumes(self) -> dict[int, int]:
        """Attempt -> the step after which it began."""
        resumes: dict[int, int] = {}
        for file in self.ranks.values():
            for attempt, step in file.resumes.items():
                resumes[attempt] = min(step, resumes.get(attempt, step))
        return resumes


def start_of(ranks: list[RankFile]) -> Record:
    """The `start` record of the first rank that has one."""
    return next((file.attempt.start for file in ranks if file.attempt.start is not None), {})


def _capacity(rows: list[list[Bin]], place: int) -> float | None:
    """Of the loaders, images/s, over the rows up to `place` that make up SMOOTH_S of training by
    the same ranks; the row that holds their start-up only alone."""
    totals, attempt = [ZERO for _ in rows[place]], rows[place][0].attempt
    for row in reversed(rows[: place + 1]):
        if len(row) != len(totals) or row[0].attempt != attempt or totals[0].wall_s >= SMOOTH_S:
            break
        if row[0].startup and totals[0].wall_s:
            break
        totals = [one.plus(bin_.counters) for one, bin_ in zip(totals, row, strict=True)]
    return throughput(totals).loader


def _interval(row: list[Bin], capacity: float | None) -> IntervalStatus:
    ranks, first = [bin_.counters for bin_ in row], row[0]
    total = reduce(Counters.plus, ranks)
    rates = throughput(ranks)._replace(loader=capacity)
    read = reduce(Gauges.plus, (bin_.gauges for bin_ in row))
    error = 1 - total.hits / total.hit_images if total.hit_images else None
    return IntervalStatus(
        first_step=first.first_step,
        step=max(bin_.step for bin_ in row),
        epoch=first.epoch,
        attempt=first.attempt,
        startup=any(bin_.startup for bin_ in row),
        t=max(bin_.t for bin_ in row),
        images_per_s=Speed(**rates._asdict()),
        data_wait_fraction=wait_fraction(ranks),
        loss=total.loss / total.loss_steps if total.loss_steps else None,
        train_error=error if error is None else min(max(error, 0.0), 1.0),
        learning_rate=first.lr,
        cpu_cores=sum(one.cpu_s / one.wall_s for one in ranks),
        gpu_busy=read.busy / read.samples if read.samples else None,
        gpu_memory_bytes=read.gpu_bytes or None,
        rss_bytes=sum(bin_.gauges.rss_bytes for bin_ in row) or None,
    )
