"""One event file each, tailed: a rank's, and the shard stage's. Memory is bounded, whatever the
file's length."""

from __future__ import annotations

import os
import time
from collections import deque
from pathlib import Path

from gratis.events import EventTail
from gratis.server.history import Bin, History
from gratis.server.records import NOTHING, Record, Sums, count, integer, number, step_sums, text

WINDOW_S = 30.0  # rates are over the newest intervals that make up this much


class Tailed:
    """A file read from where it stopped. A file that was replaced or cut is read from its start,
    into a new object."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.tail = EventTail(path)
        self.identity: tuple[int, int] | None = None
        self.behind = 0  # bytes not read yet
        self.mtime = 0.0
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
                    self.feed(record)
                if self.tail.offset == offset:  # a torn last line, which waits
                    break
                if time.monotonic() > deadline:
                    self.behind = max(stat.st_size - self.tail.offset, 0)
                    break
        except OSError:  # gone, or no file at all: what was read stays
            pass
        return self.tail.offset != before

    def feed(self, record: Record) -> None:
        raise NotImplementedError


class RankFile(Tailed):
    """What one rank wrote, of its newest attempt, and its history over all."""

    def __init__(self, path: Path, rank: int) -> None:
        super().__init__(path)
        self.rank = rank
        self.attempt = -1
        self.resumes: dict[int, int] = {}  # attempt -> the step after which it began
        self.history = History()
        self.lifetime = NOTHING  # over all attempts: counters that never go back
        self.evals: dict[
            tuple[int, int], tuple[int, int, Record]
        ] = {}  # (epoch, views) -> step, attempt, record
        self._begin(0)

    def _begin(self, attempt: int) -> None:
        self.attempt = attempt
        self.start: Record | None = None
        self.end: Record | None = None
        self.step = 0
        self.epoch = 0
        self.total = NOTHING  # of this attempt, from its first interval on
        self.recent: deque[Sums] = deque(maxlen=256)
        self.newest: Record = {}
        self.receipt: Record | None = None
        self.checkpoint: Record | None = None
        self.warnings: deque[str] = deque(maxlen=10)
        self.evaluating: Record | None = (
            None  # its newest progress, while a pass over the validation split goes on
        )

    def feed(self, record: Record) -> None:
        attempt = integer(record, "attempt") or 0
        if attempt < self.attempt:
            return
        kind = record["kind"]
        if attempt > self.attempt or (kind == "start" and self.start is not None):
            self._begin(attempt)
        self.epoch = max(self.epoch, integer(record, "epoch") or 0)
        self.evaluating = record if kind == "eval_progress" else None
        if kind == "step":
            self._feed_step(record)
        elif kind == "eval":
            key = (integer(record, "epoch") or 0, integer(record, "views") or 0)
            self.evals[key] = (integer(record, "step") or self.step, attempt, record)
            while len(self.evals) > 2048:
                self.evals.pop(next(iter(self.evals)))
        elif kind == "warning":
            self.warnings.append(text(record, "message") or "")
        elif kind in ("start", "end", "receipt", "checkpoint"):
            setattr(self, kind, record)

    def _feed_step(self, record: Record) -> None:
        step, sums = integer(record, "step"), step_sums(record)
        if step is None or step < 1 or sums is None:
            self.tail.garbage += 1
            return
        self.resumes.setdefault(self.attempt, max(step - int(sums.steps), 0))
        self.step = max(self.step, step)
        self.newest = record
        # the first filled pipelines and compiled kernels
        if self.total.steps and self.total == self.recent[0]:
            self.recent.clear()
        self.recent.append(sums)
        self.total = self.total.plus(sums)
        self.lifetime = self.lifetime.plus(sums)
        t = self.t or 0.0
        self.history.add(Bin(step, step, self.epoch, self.attempt, t, number(record, "lr"), sums))

    def window(self) -> Sums:
        """The newest intervals, back to WINDOW_S of training; the attempt's first only while there
        is no other."""
        sums = NOTHING
        for interval in reversed(self.recent):
            sums = sums.plus(interval)
            if sums.wall_s >= WINDOW_S:
                break
        return sums


class ShardFile(Tailed):
    """What the shard stage wrote."""

    def __init__(self, path: Path) -> None:
        super().__init__(path)
        self.done = self.total = self.rejects = 0
        self.lifetime = (0.0, 0.0, 0.0, 0.0)  # images, bytes in, bytes out, seconds
        self.recent: deque[tuple[float, float, float, float]] = deque(maxlen=32)
        self.start: Record | None = None
        self.end: Record | None = None

    def feed(self, record: Record) -> None:
        if record["kind"] == "start":
            self.start, self.end = record, None
            self.done, self.total = (integer(record, key) or 0 for key in ("done", "total"))
        elif record["kind"] == "end":
            self.end = record
        elif record["kind"] == "progress":
            images, bytes_in, bytes_out, wall_s = (
                count(record, key) for key in ("images", "bytes_in", "bytes_out", "wall_s")
            )
            self.recent.append((images, bytes_in, bytes_out, wall_s))
            a, b, c, d = self.lifetime
            self.lifetime = (a + images, b + bytes_in, c + bytes_out, d + wall_s)
            self.done, self.total, self.rejects = (
                integer(record, key) or 0 for key in ("done", "total", "rejects")
            )

    def window(self) -> tuple[float, float, float, float]:
        """Images, bytes in, bytes out and seconds of the newest intervals."""
        images, bytes_in, bytes_out, wall_s = (
            sum(column) for column in zip((0.0,) * 4, *self.recent, strict=True)
        )
        return images, bytes_in, bytes_out, wall_s


def alive(pid: int, started: float) -> bool:
    """Whether the process that wrote at Unix time `started` still runs; a later process with its
    pid is another one."""
    try:
        stat = Path(f"/proc/{pid}/stat").read_text()
        state, ticks = (fields := stat.rpartition(")")[2].split())[0], int(fields[19])
        boot = time.time() - time.clock_gettime(time.CLOCK_BOOTTIME)
    except (OSError, IndexError, ValueError):
        return False
    slack = 60.0  # the clock may have been set since
    return state not in "ZX" and boot + ticks / os.sysconf("SC_CLK_TCK") < started + slack
