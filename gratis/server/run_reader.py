"""Reads runs on a thread of its own, so that no request ever reads a history or puts a status
together."""

from __future__ import annotations

import threading
import time
from collections import OrderedDict
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path

from gratis.rates import Counters
from gratis.server.garbage import leave_out_all
from gratis.server.models import IntervalList, IntervalStatus, RunStatus
from gratis.server.run import Run
from gratis.server.run_status import run_status
from gratis.server.summaries import Summaries

CACHED = 8  # runs held in memory; the least recently asked for goes first
FRESH_S = 0.4  # requests within this time share one read of the files, however many there are
ANSWER_S = 0.012  # CPU seconds of reading for an answer; putting it together comes to that
PIECE_S = 0.01  # CPU seconds of reading at a time while nobody waits
SHARE = 0.3  # of a core, for reading while nobody waits: the rest is left to the training
PULSE_S = 1.0  # how often a run is looked at while nobody waits, so that answers read little
IDLE_S = 120.0  # since the newest request: then not even that


@dataclass(frozen=True, eq=False)
class RunSnapshot:
    """A run as of one read of its files. Its JSON is made once for all clients."""

    status: RunStatus
    # these as of the newest moment at which all was read; none until then
    intervals: list[IntervalStatus]
    counters: dict[int, Counters]  # rank -> over all attempts, of the ranks that have trained
    shards: tuple[float, ...]  # the shard stage's images, bytes in, bytes out and seconds

    @cached_property
    def json(self) -> str:
        """The status as JSON."""
        return self.status.model_dump_json()

    @cached_property
    def json_without_ages(self) -> str:
        """The same without the ages, which change by time alone."""
        return self.status.model_dump_json(
            exclude={"age_s": True, "ranks": {"__all__": {"age_s"}}, "shards": {"age_s"}}
        )

    @cached_property
    def intervals_json(self) -> str:
        """An IntervalList as JSON."""
        return IntervalList(intervals=self.intervals).model_dump_json()


@dataclass
class HeldRun:
    """A run in memory. asked, looked, read: monotonic seconds of the newest request, and of the
    beginnings of the newest work on it and of the newest whose snapshot is here."""

    run: Run
    asked: float
    looked: float = -1.0
    read: float = -1.0
    snapshot: RunSnapshot | None = None
    error: Exception | None = field(default=None)  # of the newest work

    @property
    def waited_for(self) -> bool:
        return self.read < self.asked


class RunReader:
    """Thread-safe."""

    def __init__(self, stall_s: float, summaries: Summaries) -> None:
        self._stall_s, self._summaries = stall_s, summaries
        self._changed = threading.Condition()
        self._held: OrderedDict[Path, HeldRun] = OrderedDict()
        self._thread: threading.Thread | None = None
        self._left_out = 0  # runs of which the collector was told

    def snapshot(self, path: Path) -> RunSnapshot:
        """The run in that folder, as it is now, or was FRESH_S ago at most. Of a long history what
        was read so far: the thread goes on by itself until all is."""
        now = time.monotonic()
        with self._changed:
            held = self._held.get(path) or HeldRun(Run(path, self._summaries), now)
            self._held[path] = held
            self._held.move_to_end(path)
            for old in [*self._held][:-CACHED]:
                if not self._held[old].waited_for:
                    del self._held[old]
            if held.snapshot is None or now - held.read >= FRESH_S:
                held.asked, held.error = now, None
                self._start()
                self._changed.notify_all()
                self._changed.wait_for(lambda: held.error or not held.waited_for)
            if held.error is not None or held.snapshot is None:
                raise RuntimeError(f"{path.name} cannot be read") from held.error
            return held.snapshot

    def _start(self) -> None:
        if self._thread is None:
            self._thread = threading.Thread(target=self._work, name="run-reader", daemon=True)
            self._thread.start()

    def _work(self) -> None:
        while (held := self._next()) is not None:
            begun, cpu = time.monotonic(), time.thread_time()
            waited, snapshot = held.waited_for, held.snapshot
            error: Exception | None = None
            known = held.run.level
            try:
                if waited:
                    snapshot = self._read(held.run)
                elif held.run.unfinished:
                    held.run.work(PIECE_S)
                else:
                    held.run.refresh(PIECE_S)
                # each time takes what is garbage at that moment out of its sight, for good
                if held.run.level and not known and self._left_out < CACHED:
                    leave_out_all()
                    self._left_out += 1
            except Exception as caught:  # whoever waits raises it
                error = caught
            with self._changed:
                held.looked, held.read = begun, begun if waited else held.read
                held.snapshot, held.error = snapshot, error
                self._changed.notify_all()
                pause = (time.thread_time() - cpu) / SHARE - (time.monotonic() - begun)
                self._changed.wait_for(self._waited_for, max(pause, 0.0))

    def _next(self) -> HeldRun | None:
        """What to work on: a run that is waited for, else the one whose turn was longest ago; None,
        and the thread ends, once there was no request for IDLE_S and all is read."""
        with self._changed:
            while True:
                held = [*self._held.values()]
                for turn in (
                    [one for one in held if one.waited_for],
                    [one for one in held if one.run.unfinished and one.error is None],
                ):
                    if turn:
                        return min(turn, key=lambda one: one.looked)
                now = time.monotonic()
                watched = [one for one in held if now - one.asked < IDLE_S]
                if not watched:
                    self._thread = None
                    return None
                first = min(watched, key=lambda one: one.looked)
                if (left := first.looked + PULSE_S - now) <= 0:
                    return first
                self._changed.wait_for(self._waited_for, left)

    def _waited_for(self) -> bool:
        return any(held.waited_for for held in self._held.values())

    def _read(self, run: Run) -> RunSnapshot:
        run.refresh(ANSWER_S)
        status = run_status(run, self._stall_s)
        return RunSnapshot(status, run.intervals(), run.counters, run.shard_counters)
