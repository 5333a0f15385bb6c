"""One run: its files as they grow, and its intervals. Its status is put together in
`gratis.server.run_status`."""

from __future__ import annotations

import math
import os
import re
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, TypeVar

from gratis.fields import Record, integer
from gratis.history import TAIL, read_attempt
from gratis.rates import Counters
from gratis.server.event_files import EventFile, RankFile, ShardFile
from gratis.server.intervals import Intervals
from gratis.server.models import IntervalStatus
from gratis.server.summaries import Summaries

T = TypeVar("T")

RANK_FILE = re.compile(r"rank-(0|[1-9][0-9]{0,3})\.jsonl")
SHARD_FILE = "shards.jsonl"
BLOCKS = 4  # read of a long history before it is another's turn
PICTURE = "latest.jpg"  # of augmented images, put there by training


class Run:
    """Not for use from several threads.

    What is now is known as soon as the files' ends are read. The counters and the intervals are as
    of the newest moment at which all was: half-read they would look like a restart."""

    def __init__(self, path: Path, summaries: Summaries | None = None) -> None:
        self.path = path
        self.ranks: dict[int, RankFile] = {}
        self.shards: ShardFile | None = None
        # while the history is read: the ranks' files from near their ends on, for what is now
        self._ends: dict[int, RankFile] = {}
        self._summaries = summaries or Summaries()
        self._intervals = Intervals()
        self._shown: list[IntervalStatus] = []
        self.level = False  # whether all had been read once
        self.unfinished = False  # whether `work` has something to do without another look
        # rank -> over all attempts, of the newest attempt's ranks that have trained
        self.counters: dict[int, Counters] = {}
        self.shard_counters: tuple[float, ...] = ()  # as SHARD_COUNTERS
        self._derived: dict[object, tuple[object, Any]] = {}  # name -> of what, and what

    @property
    def behind(self) -> int:
        """Bytes that are not read yet."""
        return sum(file.behind for file in self.files())

    def refresh(self, cpu_s: float = math.inf) -> None:
        """Looks at what the files have gained, and works on it."""
        self._look()
        self.work(cpu_s)

    def work(self, cpu_s: float) -> None:
        """Reads what the files had gained at the last look, for at most about so many seconds of
        this thread's CPU time, and once all is read brings counters and intervals up to it."""
        until = time.thread_time() + cpu_s
        self.unfinished = any(time.thread_time() >= until for _ in self._pieces())

    def _pieces(self) -> Iterator[None]:
        """All that there is to do, in pieces of some milliseconds at most: first what is needed to
        say what is now."""
        for file in self.files():
            if 0 < file.behind <= TAIL:
                file.read()
                yield
        yield from self._read_ends()
        while far := [file for file in self.files() if file.behind]:
            file = min(far, key=lambda one: one.tail.offset)  # all grow level at the same pace
            if isinstance(file, RankFile) and not file.tail.offset:
                self._summaries.restore(file)
                file.look()
                yield
            for _ in range(BLOCKS):
                file.read()
                yield
            if isinstance(file, RankFile) and self._summaries.save(file):
                yield
        self._ends, self.level = {}, True
        ranks = self.latest_ranks()
        self.counters = {file.rank: file.lifetime for file in ranks if file.lifetime.steps}
        self.shard_counters = self.shards.lifetime if self.shards else ()
        bins = [file.bins for _, file in sorted(self.ranks.items())]
        yield from self._intervals.update(bins, self.resumes())
        self._shown = self._intervals.upto(min((file.step for file in ranks), default=0))
        for file in self.ranks.values():
            if self._summaries.save(file):
                yield

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

    def _read_ends(self) -> Iterator[None]:
        """Of the files whose ends are far."""
        far = {rank: file for rank, file in self.ranks.items() if file.behind > TAIL}
        self._ends = {rank: end for rank, end in self._ends.items() if rank in far}
        for rank, file in far.items():
            end = self._ends.get(rank)
            if end is None or not end.follow(file) or end.behind > TAIL:
                end = self._ends[rank] = _near_its_end(file)
            if end.behind:
                while end.read():
                    pass
                yield

    def files(self) -> list[EventFile]:
        return [*self.ranks.values(), *([self.shards] if self.shards else [])]

    def latest_ranks(self) -> list[RankFile]:
        """The ranks of the newest attempt; files of ranks outside its world are of earlier ones.
        Of files whose ends are far, what is near them alone, once that is read."""
        files = {
            rank: file if file.behind <= TAIL else self._ends.get(rank)
            for rank, file in sorted(self.ranks.items())
        }
        known = [file for file in files.values() if file is not None]
        attempt = max((file.attempt.number for file in known), default=0)
        present = [file for file in known if file.attempt.number == attempt]
        world = integer(start_of(present), "world")
        return [file for file in present if world is None or file.rank < world]

    @property
    def far(self) -> bool:
        """Whether a rank's file is read near its end alone."""
        return any(file.behind > TAIL for file in self.ranks.values())

    @property
    def seen(self) -> bool:
        """Whether the newest records of all ranks are known."""
        return all(file.behind <= TAIL or rank in self._ends for rank, file in self.ranks.items())

    def intervals(self) -> list[IntervalStatus]:
        """The run's intervals, oldest first, as far as all ranks have come."""
        return self._shown

    def derive(self, name: object, made_of: object, make: Callable[[], T]) -> T:
        """What `make` returns; what it returned before as long as `made_of` is the same."""
        known = self._derived.get(name)
        if known is None or known[0] != made_of:
            known = self._derived[name] = (made_of, make())
        value: T = known[1]
        return value

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
    end.follow(file)
    return end


def start_of(ranks: list[RankFile]) -> Record:
    """The `start` record of the first rank that has one."""
    return next((file.attempt.start for file in ranks if file.attempt.start is not None), {})
