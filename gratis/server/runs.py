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

from gratis.rates import Counters
from gratis.server.models import IntervalStatus, RunList, RunStatus, RunSummary
from gratis.server.run import PICTURE, SHARD_FILE, Run
from gratis.server.run_status import OVER, run_status
from gratis.server.summary import summarise

CACHED = 8  # runs held in memory; the least recently asked for goes first
MAX_PICTURE = 1 << 20  # bytes
JPEG = b"\xff\xd8\xff"
FRESH_S = (
    0.4  # requests within this time share one read of the files, however many clients there are
)


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
    name: str
    path: Path
    updated: float  # Unix seconds
    size: int  # bytes of rank 0's file


class Runs:
    """Thread-safe."""

    def __init__(self, root: Path, stall_s: float) -> None:
        self.root = root
        self.stall_s = stall_s
        self._lock = threading.Lock()
        self._open: OrderedDict[str, tuple[float, Run, RunSnapshot]] = OrderedDict()
        self._listed: tuple[float, list[CachedRun]] = (-FRESH_S, [])
        self._summaries: dict[str, tuple[tuple[float, int], RunSummary]] = {}

    def _entries(self) -> list[CachedRun]:
        """The runs there are, the newest first. A folder without an event file is none."""
        if time.monotonic() - self._listed[0] >= FRESH_S:
            entries = sorted(_entries(self.root), key=lambda entry: (-entry.updated, entry.name))
            self._listed = (time.monotonic(), entries)
        return self._listed[1]

    def listing(self) -> RunList:
        """All runs, by the ends of their files alone: a thousand in well under 100 ms."""
        with self._lock:
            return RunList(runs=[self._summary(entry) for entry in self._entries()])

    def snapshot(self, name: str | None = None) -> RunSnapshot | None:
        """The run of that name, or the newest. None if there is none: names are looked up, never
        made into paths."""
        with self._lock:
            entry = next((entry for entry in self._entries() if name in (None, entry.name)), None)
            return self._view(entry) if entry else None

    def picture(self, name: str) -> bytes | None:
        """The run's JPEG of augmented images. None if there is none, or no run of that name."""
        with self._lock:
            path = next(
                (entry.path / PICTURE for entry in self._entries() if entry.name == name), None
            )
        whole = _read_regular(path) if path else None
        return whole if whole and whole.startswith(JPEG) and len(whole) <= MAX_PICTURE else None

    def _view(self, entry: CachedRun) -> RunSnapshot:
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
            summary = summarise(entry.path, entry.name, entry.updated, self.stall_s)
            status = status.model_copy(
                update={"state": summary.state, "reason": "the server is still reading"}
            )
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
        summary = summarise(entry.path, entry.name, entry.updated, self.stall_s)
        self._summaries[entry.name] = (key, summary)
        return summary


def _entries(root: Path) -> Iterator[CachedRun]:
    try:
        folders = list(os.scandir(root))
    except OSError:
        return
    for folder in folders:
        if not folder.name.isprintable():  # no name that a header or a terminal would trip over
            continue
        stats = [
            status
            for file in ("rank-0.jsonl", SHARD_FILE)
            if (status := _stat(f"{folder.path}/{file}")) is not None
        ]
        if stats:
            updated = max(one.st_mtime for one in stats)
            yield CachedRun(
                folder.name, Path(folder.path), updated, sum(one.st_size for one in stats)
            )


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
