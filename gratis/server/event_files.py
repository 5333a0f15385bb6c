"""The event files of a run, a rank's and the shard stage's, read as they grow. Memory is bounded,
whatever a file's length."""

from __future__ import annotations

import operator
import os
from collections import deque
from pathlib import Path
from typing import Any

from gratis.events import EventTail
from gratis.fields import Record, count, integer, number, text
from gratis.history import Attempt
from gratis.rates import ZERO, AttemptCounters, Counters, step_counters, total
from gratis.server.bins import Bin, Bins, first_of_bin, gauges, unpacked

SHARD_COUNTERS = ("images", "bytes_in", "bytes_out", "wall_s")
BLOCK = 64 << 10  # bytes read at a time: some ninety records, about two milliseconds
WINDOW_S = 30.0  # rates are over the newest intervals that make up this much

RECENT, WARNINGS = 256, 10  # how many of the newest are held
# of a rank's file: what its summary holds as it is; changed with a change of any of them
SUMMARY = ("t", "step", "lifetime", "newest", "receipt", "checkpoint", "evaluating")
ATTEMPT = ("number", "start", "end", "step", "epoch")
SUMMARY_VERSION = 1


class EventFile:
    """A file read from where it stopped. A file that was replaced or cut is read from its start,
    into a new object. offset: where to begin, in bytes; the line that it cuts counts as
    garbage."""

    def __init__(self, path: Path, offset: int = 0) -> None:
        self.path, self._name = path, str(path)
        self.tail = EventTail(path, offset)
        self.identity: tuple[int, int] | None = None
        self.behind = 0  # bytes not read yet
        self.mtime = 0.0
        self.attempt = Attempt()  # the newest
        self.t: float | None = None  # of the newest record, by the writer's clock

    def look(self) -> bool:
        """Takes the size and the age that the file has now; whether it is still the one that was
        read. One that cannot be looked at stays as it was."""
        try:
            stat = os.stat(self._name)
        except OSError:
            return True
        identity = (stat.st_dev, stat.st_ino)
        if self.identity not in (None, identity) or stat.st_size < self.tail.offset:
            return False
        self.identity, self.mtime = identity, stat.st_mtime
        self.behind = stat.st_size - self.tail.offset
        return True

    def follow(self, file: EventFile) -> bool:
        """As `look`, by what another reader of the path has seen there."""
        if self.identity not in (None, file.identity):
            return False
        self.identity, self.mtime = file.identity, file.mtime
        self.behind = max(file.tail.offset + file.behind - self.tail.offset, 0)
        return True

    def read(self) -> bool:
        """Reads a block of what had come at the last look; whether there was a record in it, so
        that there may be more."""
        before = self.tail.offset
        try:
            records = self.tail.read(BLOCK) if self.behind else []
        except OSError:  # deleted, or no file at all: what was read stays
            records = []
        for record in records:
            self.t = number(record, "t")
            self.add(record)
        read = self.tail.offset - before
        # nothing: a torn last line, read once it is whole
        self.behind = max(self.behind - read, 0) if read else 0
        return read > 0

    def add(self, record: Record) -> None:
        raise NotImplementedError


class RankFile(EventFile):
    """One rank's file: its newest attempt, and its intervals and evaluations over all attempts."""

    def __init__(self, path: Path, rank: int, offset: int = 0) -> None:
        super().__init__(path, offset)
        self.rank = rank
        self.resumes: dict[int, int] = {}  # attempt -> the step after which it began
        self.bins = Bins()
        self.lifetime = ZERO  # over all attempts: counters that never go back
        # (epoch, views) -> step, attempt, record
        self.evals: dict[tuple[int, int], tuple[int, int, Record]] = {}
        self.evaluated = 0  # how many were added to them
        self._reset()

    def _reset(self) -> None:
        """Clears what belongs to one attempt."""
        self.step = 0
        self.counters = AttemptCounters()
        # the newest intervals, the start-up not among them; plain tuples, as Bin.packed
        self.recent: deque[tuple[float, ...]] = deque(maxlen=RECENT)
        self._window: Counters | None = None  # until the next interval
        self.newest: Record = {}
        self.receipt: Record | None = None
        self.checkpoint: Record | None = None
        self.warnings: deque[str] = deque(maxlen=WARNINGS)
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
            self.evaluated += 1
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
        self.newest, self._window = record, None
        self.counters.add(counters)
        if self.counters.started:
            self.recent.append(tuple(counters))
        self.lifetime = self.lifetime.plus(counters)
        bin_ = Bin(
            first_step=first_of_bin(step, self.bins.width),
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

    def summary(self) -> dict[str, Any]:
        """All that was read, as JSON can hold it: of about 100 KB, whatever the file's length."""
        attempt = {name: getattr(self.attempt, name) for name in ATTEMPT}
        own = {name: getattr(self, name) for name in SUMMARY}
        return own | {
            "version": SUMMARY_VERSION,
            "offset": self.tail.offset,
            "garbage": self.tail.garbage,
            "attempt": attempt,
            "resumes": list(self.resumes.items()),
            "width": self.bins.width,
            "bins": self.bins.packed(),
            "evals": [[*key, *value] for key, value in self.evals.items()],
            "counters": [self.counters.startup, self.counters.rest],
            "recent": self._newest_intervals(),
            "warnings": list(self.warnings),
        }

    def restore(self, summary: dict[str, Any]) -> None:
        """As if the file had been read up to where the summary ends. Raises ValueError, KeyError or
        TypeError, and changes nothing, for one that was not made by this version's `summary`."""
        if summary["version"] != SUMMARY_VERSION:
            raise ValueError("of another version")
        own = {name: summary[name] for name in SUMMARY} | {
            "attempt": Attempt(**summary["attempt"]),
            "resumes": dict(summary["resumes"]),
            "bins": Bins(summary["width"], map(unpacked, summary["bins"])),
            "evals": {(epoch, views): tuple(rest) for epoch, views, *rest in summary["evals"]},
            "counters": AttemptCounters(*(Counters(*one) for one in summary["counters"])),
            "recent": deque((tuple(Counters(*one)) for one in summary["recent"]), maxlen=RECENT),
            "warnings": deque(summary["warnings"], maxlen=WARNINGS),
            "lifetime": Counters(*summary["lifetime"]),
        }
        self.tail.offset, self.tail.garbage = summary["offset"], summary["garbage"]
        for name, value in own.items():
            setattr(self, name, value)
        self.evaluated = len(self.evals)

    def window(self) -> Counters:
        """The newest intervals, back to WINDOW_S of training; the start-up only while there is
        nothing else."""
        if self._window is None:
            newest = self._newest_intervals()
            self._window = total(newest) if newest else self.counters.startup
        return self._window

    def _newest_intervals(self) -> list[Counters]:
        """Of `recent`, the oldest first."""
        newest: list[Counters] = []
        wall_s = 0.0
        for interval in map(Counters._make, reversed(self.recent)):
            newest.append(interval)
            wall_s += interval.wall_s
            if wall_s >= WINDOW_S:
                break
        return newest[::-1]


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
