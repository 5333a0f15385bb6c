"""The folder of runs: what is in it, and a cache of the runs that clients ask for. One `Runs`
serves all requests."""

from __future__ import annotations

import os
import stat
import threading
import time
from collections import OrderedDict
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from gratis.history import Attempt, read_attempt
from gratis.rates import Counters
from gratis.server.models import IntervalStatus, RunList, RunStatus, RunSummary
from gratis.server.run import PICTURE, SHARD_FILE, Run
from gratis.server.run_status import OVER, run_status
from gratis.server.state import attempt_state

CACHED = 8  # runs held in memory; the least recently asked for goes first
MAX_PICTURE = 1 << 20  # bytes
JPEG = b"\xff\xd8\xff"
FRESH_S = 0.4  # requests within this time share one read of the files, however many there are


@dataclass(frozen=True, eq=False)
class RunSnapshot:
    """A run as of one read of its files. Its JSON is made once for all clients."""

    status: RunStatus
    intervals: list[IntervalStatus]
    counters: dict[int, Counters]  # rank -> over all attempts, of the ranks that have trained
    # the shard stage's images, bytes in, bytes out and seconds; empty without one
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


@dataclass(frozen=True)
class CachedRun:
    """A run as of the newest listing of the folder."""

    name: str
    path: Path
    updated: float  # Unix seconds
    size: int  # bytes of rank 0's file and the shard stage's


class Runs:
    """Thread-safe."""

    def __init__(self, root: Path, stall_s: float) -> None:
        self.root = root
        self.stall_s = stall_s
        self._lock = threading.Lock()
        self._open: OrderedDict[str, tuple[float, Run, RunSnapshot]] = OrderedDict()
        self._listed: tuple[float, list[CachedRun]] = (-FRESH_S, [])
        self._summaries: dict[str, tuple[tuple[float, int], RunSummary]] = {}

    def _cached_runs(self) -> list[CachedRun]:
        """The runs there are, the newest first. A folder without an event file is none."""
        if time.monotonic() - self._listed[0] >= FRESH_S:
            entries = sorted(_list_runs(self.root), key=lambda entry: (-entry.updated, entry.name))
            self._listed = (time.monotonic(), entries)
        return self._listed[1]

    def _find(self, name: str | None) -> CachedRun | None:
        return next((entry for entry in self._cached_runs() if name in (None, entry.name)), None)

    def listing(self) -> RunList:
        """All runs, by the ends of their files alone: a thousand in well under 100 ms."""
        with self._lock:
            return RunList(runs=[self._summary(entry) for entry in self._cached_runs()])

    def snapshot(self, name: str | None = None) -> RunSnapshot | None:
        """The run of that name, or the newest. None if there is none: names are looked up, never
        made into paths."""
        with self._lock:
            entry = self._find(name)
            return self._refresh(entry) if entry else None

    def picture(self, name: str) -> bytes | None:
        """The run's JPEG of augmented images. None if there is none, or no run of that name."""
        with self._lock:
            entry = self._find(name)
        whole = _read_regular(entry.path / PICTURE) if entry else None
        return whole if whole and whole.startswith(JPEG) and len(whole) <= MAX_PICTURE else None

    def _refresh(self, entry: CachedRun) -> RunSnapshot:
        now = time.monotonic()
        seen, run, old = self._open.pop(entry.name, (-FRESH_S, None, None))
        if run is None or old is None:
            run = Run(entry.path)
        elif now - seen < FRESH_S:
            self._open[entry.name] = (seen, run, old)
            return old
        revision = run.revision
        run.refresh()
        status = run_status(run, self.stall_s)
        if status.behind_bytes:  # the end is not read yet, and the state is there
            update = {
                "state": self._summarise(entry).state,
                "reason": "the server is still reading",
            }
            status = status.model_copy(update=update)
        same = old is not None and run.revision == revision
        snapshot = RunSnapshot(
            status,
            old.intervals if old is not None and same else run.intervals(),
            {file.rank: file.lifetime for file in run.latest_ranks() if file.lifetime.steps},
            run.shards.lifetime if run.shards else (),
        )
        self._open[entry.name] = (time.monotonic(), run, snapshot)
        while len(self._open) > CACHED:
            self._open.popitem(last=False)
        return snapshot

    def _summary(self, entry: CachedRun) -> RunSummary:
        """Whether a run is alive can change without a write, so only those that ended stay as they
        were."""
        key = (entry.updated, entry.size)
        known = self._summaries.get(entry.name)
        if known is not None and known[0] == key and known[1].state in OVER:
            return known[1]
        summary = self._summarise(entry)
        self._summaries[entry.name] = (key, summary)
        return summary

    def _summarise(self, entry: CachedRun) -> RunSummary:
        """By the ends of rank 0's file, or of the shard stage's where nothing trains."""
        attempt = read_attempt(entry.path / "rank-0.jsonl")
        if not (trains := attempt != Attempt()):
            attempt = read_attempt(entry.path / SHARD_FILE)
        stepped, age_s = trains and attempt.step is not None, max(time.time() - entry.updated, 0.0)
        state = attempt_state({0: attempt}, stepped=stepped, age_s=age_s, stall_s=self.stall_s)[0]
        epoch, step = attempt.epoch, attempt.step or 0
        name, updated = entry.name, entry.updated
        return RunSummary(name=name, state=state, epoch=epoch, step=step, updated=updated)


def _list_runs(root: Path) -> Iterator[CachedRun]:
    try:
        folders = list(os.scandir(root))
    except OSError:
        return
    for folder in folders:
        if not folder.name.isprintable():  # no name that a header or a terminal would trip over
            continue
        paths = [f"{folder.path}/{file}" for file in ("rank-0.jsonl", SHARD_FILE)]
        if stats := [status for path in paths if (status := _stat(path)) is not None]:
            updated, size = max(one.st_mtime for one in stats), sum(one.st_size for one in stats)
            yield CachedRun(folder.name, Path(folder.path), updated, size)


def _stat(path: str) -> os.stat_result | None:
    try:
        return os.stat(path)
    except (OSError, ValueError):
        return None


def _read_regular(path: Path) -> bytes | None:
    """A little more than a picture may have, of a file that is neither a link nor a pipe that would
    hang us."""
    try:
        file = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
    except OSError:
        return None
    try:
        return os.read(file, MAX_PICTURE + 1) if stat.S_ISREG(os.fstat(file).st_mode) else None
    except OSError:
        return None
    finally:
        os.close(file)
