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
from gratis.server.models import IntervalStatus, RunStatus
from gratis.server.run import Run
from gratis.server.run_status import run_status
from gratis.server.summaries import Summaries

CACHED = 8  # runs held in memory; the least recently asked for goes first
FRESH_S = 0.4  # requests within this time share one read of the files, however many there are
IDLE_S = 5.0  # without anything to read the thread ends, until the next request


@dataclass(frozen=True, eq=False)
class RunSnapshot:
    """A run as of one read of its files. Its JSON is made once for all clients."""

    status: RunStatus
    intervals: list[IntervalStatus]
    # rank -> over all attempts, of the ranks that have trained; none while a history is read, as
    # half-read counters would look like a restart
    counters: dict[int, Counters]
    # the shard stage's images, bytes in, bytes out and seconds; empty without one, or as above
    shards: tuple[float, ...]

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


@dataclass
class HeldRun:
    """A run in memory. asked, read: monotonic seconds of the newest request, and of the beginning
    of the newest reading whose snapshot is here."""

    run: Run
    asked: float
    read: float = -1.0
    snapshot: RunSnapshot | None = None
    error: Exception | None = field(default=None)  # of the newest reading

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
            begun = time.monotonic()
            snapshot: RunSnapshot | None = held.snapshot
            error: Exception | None = None
            try:
                snapshot = self._read(held)
            except Exception as caught:  # whoever waits raises it
                error = caught
            with self._changed:
                held.read, held.snapshot, held.error = begun, snapshot, error
                self._changed.notify_all()
                # half of a core is left to the training beside it, unless somebody waits
                pause = time.monotonic() - begun if held.run.behind else 0.0
                self._changed.wait_for(self._waited_for, pause)

    def _next(self) -> HeldRun | None:
        """What to read: a run that is waited for, else one that is not read to its end, the one
        whose turn was longest ago; None, and the thread ends, once there is none for IDLE_S."""
        with self._changed:
            if not self._changed.wait_for(self._to_read, IDLE_S):
                self._thread = None
                return None
            return min(self._to_read(), key=lambda held: (not held.waited_for, held.read))

    def _to_read(self) -> list[HeldRun]:
        return [
            held
            for held in self._held.values()
            if held.waited_for or (held.run.behind and held.error is None)
        ]

    def _waited_for(self) -> bool:
        return any(held.waited_for for held in self._held.values())

    def _read(self, held: HeldRun) -> RunSnapshot | None:
        """The run as of now; if nobody waits for it, only once all is read."""
        wanted, run = held.waited_for, held.run
        run.refresh()
        run.save()
        if run.behind and not wanted:
            return held.snapshot
        level = not run.behind
        trained = [file for file in run.latest_ranks() if level and file.lifetime.steps]
        return RunSnapshot(
            run_status(run, self._stall_s),
            run.intervals(),
            {file.rank: file.lifetime for file in trained},
            run.shards.lifetime if level and run.shards else (),
        )
