"""The event files of a run, a rank's and the shard stage's, read as they grow. Memory is bounded,
whatever a file's length."""

from __future__ import annotations

import operator
import time
from collections import deque
from pathlib import Path

from gratis.events import EventTail
from gratis.fields import Record, count, integer, number, text
from gratis.history import Attempt
from gratis.rates import ZERO, AttemptCounters, Counters, step_counters
from gratis.server.bins import Bin, Bins, gauges

SHARD_COUNTERS = ("images", "bytes_in", "bytes_out", "wall_s")
WINDOW_S = 30.0  # rates are over the newest intervals that make up this much


class EventFile:
    """A file read from where it stopped. A file that was replaced or cut is read from its start,
    into a new object."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.tail = EventTail(path)
        self.identity: tuple[int, int] | None = None
        self.behind = 0  # bytes not read yet
        self.mtime = 0.0
        self.attempt = Attempt()  # the newest
        self.t: float | None = None  # of the newest record, by the writer's clock

    def replaced(self) -> bool:
        """Whether this is no longer the file that was read, as of now."""
        try:
            stat = self.path.stat()
        except OSError:
            return self.identity is not None
        identity = (stat.st_dev, stat.st_ino)
        return self.identity not in (None, identity) or stat.st_size < self.tail.offset

    def refresh(self, deadline: float) -> bool:
        """Reads what came, until `deadline` (monotonic seconds) at the latest; whether there was
        anything."""
        before, self.behind = self.tail.offset, 0
        try:
            stat = self.path.stat()
            self.identity, self.mtime = (stat.st_dev, stat.st_ino), stat.st_mtime
            while self.tail.offset < stat.st_size:
                offset = self.tail.offset
                for record in self.tail.read(1 << 20):
                    self.t = number(record, "t")
                    self.add(record)
                if self.tail.offset == offset:  # a torn last line, read once it is whole
                    break
                if time.monotonic() > deadline:
                    self.behind = max(stat.st_size - self.tail.offset, 0)
                    break
        except OSError:  # deleted, or no file at all: what was read stays
            pass
        return self.tail.offset != before

    def add(self, record: Record) -> None:
        raise NotImplementedError


class RankFile(EventFile):
    """One rank's file: its newest attempt, and its intervals and evaluations over all attempts."""

    def __init__(self, path: Path, rank: int) -> None:
        super().__init__(path)
        self.rank = rank
        self.resumes: dict[int, int] = {}  # attempt -> the step after which it began
        self.bins = Bins()
        self.lifetime = ZERO  # over all attempts: counters that never go back
        # (epoch, views) -> step, attempt, record
        self.evals: dict[tuple[int, int], tuple[int, int, Record]] = {}
        self._reset()

    def _reset(self) -> None:
        """Clears what belongs to one attempt."""
        self.step = 0
        self.counters = AttemptCounters()
        # the newest intervals, the start-up not among them
        self.recent: deque[Counters] = deque(maxlen=256)
        self.newest: Record = {}
        self.receipt: Record | None = None
        self.checkpoint: Record | None = None
        self.warnings: deque[str] = deque(maxlen=10)
        # its newest progress, while a pass over the validation split goes on
        self.evaluating: Record | None = None

    def add(self, record: Record) -> None:
        kind, attempt_number = record["kind"], integer(record, "attempt") or 0
        if attempt_number < self.attempt.number:
            return
        attempt = self.attempt.add(record)
        if attempt is not self.attempt:
            self.attempt = attempt
            self._reset()
        self.evaluating = record if kind == "eval_progress" else None
        if kind == "step":
            self._add_step(record)
        elif kind == "eval":
            key = (integer(record, "epoch") or 0, integer(record, "views") or 0)
            self.evals[key] = (integer(record, "step") or self.step, attempt_number, record)
            while len(self.evals) > 2048:
                self.evals.pop(next(iter(self.evals)))
        elif kind == "warning":
            self.warnings.append(text(record, "message") or "")
        elif kind in ("receipt", "checkpoint"):
            setattr(self, kind, record)

    def _add_step(self, record: Record) -> None:
        step, counters = integer(record, "step"), step_counters(record)
        if step is None or step < 1 or counters is None:
            self.tail.garbage += 1
            return
        self.resumes.setdefault(self.attempt.number, max(step - int(counters.steps), 0))
        self.step = max(self.step, step)
        self.newest = record
        self.counters.add(counters)
        if self.counters.started:
            self.recent.append(counters)
        self.lifetime = self.lifetime.plus(counters)
        bin_ = Bin(
            first_step=step,
            step=step,
            epoch=self.attempt.epoch,
            attempt=self.attempt.number,
            t=self.t or 0.0,
            lr=number(record, "lr"),
            counters=counters,
            gauges=gauges(record),
            startup=not self.counters.started,
        )
        self.bins.add(bin_)

    def window(self) -> Counters:
        """The newest intervals, back to WINDOW_S of training; the start-up only while there is
        nothing else."""
        if not self.recent:
            return self.counters.startup
        total = ZERO
        for interval in reversed(self.recent):
            total = total.plus(interval)
            if total.wall_s >= WINDOW_S:
                break
        return total


class ShardFile(EventFile):
    """The shard stage's file."""

    def __init__(self, path: Path) -> None:
        super().__init__(path)
        self.done = self.total = self.rejects = 0
        self.lifetime: tuple[float, ...] = (0.0,) * 4  # as SHARD_COUNTERS, in all attempts
        self.recent: deque[tuple[float, ...]] = deque(maxlen=32)

    def add(self, record: Record) -> None:
        self.attempt = self.attempt.add(record)
        if record["kind"] == "start":
            self.done, self.total = (integer(record, key) or 0 for key in ("done", "total"))
        elif record["kind"] == "progress":
            counts = tuple(count(record, key) for key in SHARD_COUNTERS)
            self.recent.append(counts)
            self.lifetime = tuple(map(operator.add, self.lifetime, counts))
            self.done, self.total, self.rejects = (
                integer(record, key) or 0 for key in ("done", "total", "rejects")
            )

    def window(self) -> tuple[float, ...]:
        """SHARD_COUNTERS of the newest intervals."""
        return tuple(map(sum, zip((0.0,) * 4, *self.recent, strict=True)))
