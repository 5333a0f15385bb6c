"""The folder of runs: what is in it. One `Runs` serves all requests."""

from __future__ import annotations

import os
import stat
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from gratis.history import Attempt, read_attempt
from gratis.server.models import RunList, RunSummary
from gratis.server.rank_status import OVER
from gratis.server.run import PICTURE, SHARD_FILE
from gratis.server.run_reader import FRESH_S, RunReader, RunSnapshot
from gratis.server.state import Here, attempt_state
from gratis.server.summaries import Summaries

MAX_PICTURE = 1 << 20  # bytes
JPEG = b"\xff\xd8\xff"


@dataclass(frozen=True)
class CachedRun:
    """A run as of the newest listing of the folder."""

    name: str
    path: Path
    updated: float  # Unix seconds
    size: int  # bytes of rank 0's file and the shard stage's


class Runs:
    """Thread-safe."""

    def __init__(self, root: Path, stall_s: float, summaries: Path | None = None) -> None:
        """summaries: a folder for summaries of long histories."""
        self.root = root
        self.stall_s = stall_s
        self._lock = threading.Lock()
        self._reader = RunReader(stall_s, Summaries(summaries))
        self._listed: tuple[float, list[CachedRun]] = (-FRESH_S, [])
        self._ended: dict[str, tuple[tuple[float, int], RunSummary]] = {}
        # whether it trains, and its newest attempt, as of a file's time and size
        self._attempts: dict[str, tuple[tuple[float, int], tuple[bool, Attempt]]] = {}

    def _cached_runs(self) -> list[CachedRun]:
        """The runs there are, the newest first. A folder without an event file is none."""
        if time.monotonic() - self._listed[0] >= FRESH_S:
            entries = sorted(_list_runs(self.root), key=lambda entry: (-entry.updated, entry.name))
            self._listed = (time.monotonic(), entries)
        return self._listed[1]

    def _find(self, name: str | None) -> CachedRun | None:
        return next((entry for entry in self._cached_runs() if name in (None, entry.name)), None)

    def listing(self) -> RunList:
        """All runs, by the ends of their files alone: of a thousand those that grew are read anew,
        in 0.1 ms each."""
        with self._lock:
            here = Here()
            return RunList(runs=[self._summary(entry, here) for entry in self._cached_runs()])

    def snapshot(self, name: str | None = None) -> RunSnapshot | None:
        """The run of that name, or the newest. None if there is none: names are looked up, never
        made into paths."""
        with self._lock:
            entry = self._find(name)
        return self._reader.snapshot(entry.path) if entry else None

    def picture(self, name: str) -> bytes | None:
        """The run's JPEG of augmented images. None if there is none, or no run of that name."""
        with self._lock:
            entry = self._find(name)
        whole = _read_regular(entry.path / PICTURE) if entry else None
        return whole if whole and whole.startswith(JPEG) and len(whole) <= MAX_PICTURE else None

    def _summary(self, entry: CachedRun, here: Here) -> RunSummary:
        """Whether a run is alive can change without a write, so only those that ended stay as they
        were."""
        key = (entry.updated, entry.size)
        known = self._ended.get(entry.name)
        if known is not None and known[0] == key:
            return known[1]
        summary = self._summarise(entry, here)
        if summary.state in OVER:
            self._ended[entry.name] = (key, summary)
        return summary

    def _summarise(self, entry: CachedRun, here: Here) -> RunSummary:
        """By the ends of rank 0's file, or of the shard stage's where nothing trains."""
        key, known = (entry.updated, entry.size), self._attempts.get(entry.name)
        if known is None or known[0] != key:
            known = self._attempts[entry.name] = (key, _newest_attempt(entry.path))
        trains, attempt = known[1]
        stepped, age_s = trains and attempt.step is not None, max(time.time() - entry.updated, 0.0)
        state, *_ = attempt_state(
            {0: attempt}, stepped=stepped, age_s=age_s, stall_s=self.stall_s, here=here
        )
        epoch, step = attempt.epoch, attempt.step or 0
        name, updated = entry.name, entry.updated
        return RunSummary(name=name, state=state, epoch=epoch, step=step, updated=updated)


def _newest_attempt(run: Path) -> tuple[bool, Attempt]:
    """Whether it is one of training, and the attempt."""
    attempt = read_attempt(run / "rank-0.jsonl")
    trains = attempt != Attempt()
    return trains, attempt if trains else read_attempt(run / SHARD_FILE)


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
