"""The folder of runs: what is in it, and the runs that somebody looks at. One `Runs` serves all
requests."""

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

from gratis.server.models import Interval, RunList, RunStatus, RunSummary
from gratis.server.peek import peek
from gratis.server.records import Sums
from gratis.server.report import report
from gratis.server.run import PICTURE, SHARD_FILE, Run

KEPT = 8  # runs held in memory; the least looked at goes first
MOST_PICTURE = 1 << 20  # bytes
JPEG = b"\xff\xd8\xff"
FRESH_S = 0.4  # requests within this share one look at the files, however many clients there are


@dataclass(frozen=True, eq=False)
class View:
    """A run as of one look. What all clients are sent of it is made once."""

    status: RunStatus
    intervals: list[Interval]
    counters: dict[int, Sums]  # rank -> over all attempts, of the ranks that have trained
    # the shard stage's images, bytes in, bytes out and seconds; empty without one
    shards: tuple[float, ...]

    @cached_property
    def words(self) -> str:
        """The status as JSON."""
        return self.status.model_dump_json()

    @cached_property
    def lasting(self) -> str:
        """The same but for what changes by time alone."""
        return self.status.model_dump_json(
            exclude={"age_s": True, "ranks": {"__all__": {"age_s"}}, "shards": {"age_s"}}
        )


@dataclass(frozen=True)
class Entry:
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
        self._open: OrderedDict[str, tuple[float, Run, View]] = OrderedDict()
        self._listed: tuple[float, list[Entry]] = (-FRESH_S, [])
        self._peeks: dict[str, tuple[tuple[float, int], RunSummary]] = {}

    def _entries(self) -> list[Entry]:
        """The runs there are, the newest first. A folder without an event file is none."""
        if time.monotonic() - self._listed[0] >= FRESH_S:
            entries = sorted(_entries(self.root), key=lambda entry: (-entry.updated, entry.name))
            self._listed = (time.monotonic(), entries)
        return self._listed[1]

    def listing(self) -> RunList:
        """All runs, by the ends of their files alone: a thousand in well under 100 ms."""
        with self._lock:
            return RunList(runs=[self._summary(entry) for entry in self._entries()])

    def view(self, name: str | None = None) -> View | None:
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
        return whole if whole and whole.startswith(JPEG) and len(whole) <= MOST_PICTURE else None

    def _view(self, entry: Entry) -> View:
        now = time.monotonic()
        seen, run, old = self._open.pop(entry.name, (-FRESH_S, None, None))
        if run is None or old is None:
            run = Run(entry.path)
        elif now - seen < FRESH_S:
            self._open[entry.name] = (seen, run, old)
            return old
        revision = run.revision
        run.refresh()
        status = report(run, self.stall_s)
        if status.behind_bytes:  # the end is not read yet, and the state is there
            summary = peek(entry.path, entry.name, entry.updated, self.stall_s)
            status = status.model_copy(
                update={"state": summary.state, "reason": "the server is still reading"}
            )
        same = old is not None and run.revision == revision
        view = View(
            status,
            old.intervals if old is not None and same else run.intervals(),
            {file.rank: file.lifetime for file in run.crew() if file.lifetime.steps},
            run.shards.lifetime if run.shards else (),
        )
        self._open[entry.name] = (time.monotonic(), run, view)
        while len(self._open) > KEPT:
            self._open.popitem(last=False)
        return view

    def _summary(self, entry: Entry) -> RunSummary:
        """Whether a run is alive can change without a write, so only those that ended stay as they
        were."""
        key = (entry.updated, entry.size)
        known = self._peeks.get(entry.name)
        if (
            known is not None
            and known[0] == key
            and known[1].state in ("finished", "diverged", "preempted", "crashed")
        ):
            return known[1]
        summary = peek(entry.path, entry.name, entry.updated, self.stall_s)
        self._peeks[entry.name] = (key, summary)
        return summary


def _entries(root: Path) -> Iterator[Entry]:
    try:
        folders = list(os.scandir(root))
    except OSError:
        return
    for folder in folders:
        if not folder.name.isprintable():  # no name that a header or a terminal would trip over
            continue
        stats = [
            found
            for file in ("rank-0.jsonl", SHARD_FILE)
            if (found := _stat(f"{folder.path}/{file}")) is not None
        ]
        if stats:
            updated = max(one.st_mtime for one in stats)
            yield Entry(folder.name, Path(folder.path), updated, sum(one.st_size for one in stats))


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
        return os.read(file, MOST_PICTURE + 1) if stat.S_ISREG(os.fstat(file).st_mode) else None
    except OSError:
        return None
    finally:
        os.close(file)
