"""One run: its files as they grow, and its intervals. Its status is put together in
`gratis.server.run_status`."""

from __future__ import annotations

import math
import os
import re
import time
from functools import reduce
from pathlib import Path

from gratis.fields import Record, integer
from gratis.history import TAIL, read_attempt
from gratis.rates import ZERO, Counters, throughput, wait_fraction
from gratis.server.bins import Bin, Gauges, align, widest
from gratis.server.event_files import EventFile, RankFile, ShardFile
from gratis.server.models import IntervalStatus, Speed
from gratis.server.summaries import Summaries

RANK_FILE = re.compile(r"rank-(0|[1-9][0-9]{0,3})\.jsonl")
SHARD_FILE = "shards.jsonl"
PICTURE = "latest.jpg"  # of augmented images, put there by training
# of training behind a point of the loader's capacity, as the queue is filled in bursts
SMOOTH_S = 10.0
READ_S = 0.1  # how long one refresh reads of long histories


class Run:
    """Not for use from several threads."""

    def __init__(self, path: Path, summaries: Summaries | None = None) -> None:
        self.path = path
        self.ranks: dict[int, RankFile] = {}
        self.shards: ShardFile | None = None
        # while the history is read: the ranks' files from near their ends on, for what is now
        self._ends: dict[int, RankFile] = {}
        self._summaries = summaries or Summaries()
        self._rows: list[list[Bin]] = []
        self._intervals: list[IntervalStatus] = []
        self._aligned: object = None  # with what

    @property
    def behind(self) -> int:
        """Bytes that are not read yet."""
        return sum(file.behind for file in self.files())

    def refresh(self, seconds: float = READ_S) -> None:
        """Reads what the files have gained; of long histories, for at most about so many
        seconds."""
        deadline = time.monotonic() + seconds
        self._look()
        for file in self.files():
            if file.behind <= TAIL:
                file.read()
        while far := [file for file in self.files() if file.behind]:
            file = min(far, key=lambda one: one.tail.offset)  # all grow level at the same pace
            if isinstance(file, RankFile) and not file.tail.offset:
                self._summaries.restore(file)
                file.look()
            file.read()
            if time.monotonic() > deadline:
                break
        self._read_ends()

    def save(self) -> None:
        """Writes summaries of what was read, where it is worth it."""
        for file in self.ranks.values():
            self._summaries.save(file)

    def _look(self) -> None:
        """Which files there are, and how long."""
        try:
            names = set(os.listdir(self.path))
        except OSError:
            names = set()
        self.ranks = {rank: file for rank, file in self.ranks.items() if file.path.name in names}
        for name in names:
            if match := RANK_FILE.fullmatch(name):
                rank = int(match[1])
                if rank not in self.ranks or not self.ranks[rank].look():
                    self.ranks[rank] = RankFile(self.path / name, rank)
                    self.ranks[rank].look()
            elif name == SHARD_FILE and (self.shards is None or not self.shards.look()):
                self.shards = ShardFile(self.path / name)
                self.shards.look()

    def _read_ends(self) -> None:
        """Of the files whose ends are far; none once all is read."""
        far = {rank for rank, file in self.ranks.items() if file.behind > TAIL}
        self._ends = {rank: end for rank, end in self._ends.items() if rank in far and end.look()}
        for rank in far:
            if rank not in self._ends:
                self._ends[rank] = _near_its_end(self.ranks[rank])
            while self._ends[rank].read():
                pass

    def files(self) -> list[EventFile]:
        return [*self.ranks.values(), *([self.shards] if self.shards else [])]

    def latest_ranks(self) -> list[RankFile]:
        """The ranks of the newest attempt; files of ranks outside its world are of earlier ones.
        While a history is read, they hold what is near its end alone."""
        files = {**self.ranks, **self._ends}
        attempt = max((file.attempt.number for file in files.values()), default=0)
        present = [file for _, file in sorted(files.items()) if file.attempt.number == attempt]
        world = integer(start_of(present), "world")
        return [file for file in present if world is None or file.rank < world]

    def intervals(self) -> list[IntervalStatus]:
        """The run's intervals, oldest first, as far as all ranks have come; none while a history is
        read. Only those that changed since the last call are computed."""
        if self.behind:
            return []
        self._align()
        upto = min((file.step for file in self.latest_ranks()), default=0)
        both = zip(self._rows, self._intervals, strict=True)
        return [interval for row, interval in both if not upto or row[0].step <= upto]

    def _align(self) -> None:
        """Brings the rows and their intervals up to what was read."""
        resumes, bins = self.resumes(), [file.bins for _, file in sorted(self.ranks.items())]
        width = widest(bins)
        aligned = (resumes, width, [id(one) for one in bins])
        since = min((one.changed for one in bins), default=1.0)
        if aligned != self._aligned:
            self._aligned, since = aligned, 1.0
        while self._rows and self._rows[-1][0].first_step + width > since:
            self._rows.pop()
            self._intervals.pop()
        for row in align(bins, resumes, since):
            self._rows.append(row)
            capacity = _capacity(self._rows, len(self._rows) - 1)
            self._intervals.append(_interval(row, capacity))
        for one in bins:
            one.changed = math.inf

    def resumes(self) -> dict[int, int]:
        """Attempt -> the step after which it began."""
        resumes: dict[int, int] = {}
        for file in self.ranks.values():
            for attempt, step in file.resumes.items():
                resumes[attempt] = min(step, resumes.get(attempt, step))
        return resumes


def _near_its_end(file: RankFile) -> RankFile:
    """The rank's file from some kilobytes before its end on; what the attempt began with is looked
    for where it may be."""
    end = RankFile(file.path, file.rank, file.tail.offset + file.behind - TAIL)
    end.attempt = read_attempt(file.path)
    if end.attempt.start is None and file.attempt.number == end.attempt.number:
        end.attempt.start = file.attempt.start
    end.look()
    return end


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
