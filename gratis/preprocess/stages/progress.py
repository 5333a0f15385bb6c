"""Progress of the shard stage: a bar for people, and `start`, `progress` and `end` events for the
status server."""

from __future__ import annotations

import logging
import os
import sys
import time
from collections.abc import Callable
from pathlib import Path

from tqdm import tqdm

from gratis.events import EventTail, EventWriter, ShardProgress
from gratis.network import log
from gratis.preprocess.execution.workers import TaskProgress

EVENTS = "shards.jsonl"
EVENT_S = 1.0


class Progress:
    """Context of one run of the map. done, rejects: what earlier attempts have finished."""

    def __init__(self, run_dir: Path | None, *, total: int, done: int, rejects: int) -> None:
        self._bar = tqdm(
            total=total, initial=done, desc="shards", unit="img", delay=2.0, disable=None
        )
        self._events: EventWriter | None = None
        if run_dir:
            path = run_dir / EVENTS
            self._events = EventWriter(path, attempt=_attempts(path) + 1, rank=0)
        self._warnings = _NetworkWarnings(self._write)
        self._total, self._done, self._rejects = total, done, rejects
        self._interval, self._since = TaskProgress(), time.monotonic()
        self._begun, self._bytes_in = self._since, 0

    def __enter__(self) -> Progress:
        if self._events:
            log.addHandler(self._warnings)
        here = {"pid": os.getpid(), "host": os.uname().nodename}
        self._write("start", {"total": self._total, "done": self._done, **here})
        return self

    def add(self, new: TaskProgress) -> None:
        self._interval = self._interval.plus(new)
        self._done += new.images + new.rejects
        self._rejects += new.rejects
        self._bytes_in += new.bytes_in
        rate = self._bytes_in / 1e6 / max(1e-9, time.monotonic() - self._begun)
        self._bar.set_postfix_str(f"{rate:.1f} MB/s in, {self._rejects} rejects", refresh=False)
        self._bar.update(new.images + new.rejects)
        if time.monotonic() - self._since > EVENT_S:
            self._flush()

    def __exit__(self, kind: object, error: BaseException | None, trace: object) -> None:
        log.removeHandler(self._warnings)
        self._bar.close()
        self._flush()
        outcome = "interrupted" if kind is KeyboardInterrupt else "failed" if kind else "finished"
        self._write("end", {"outcome": outcome, "error": str(error) if error else None})
        if self._events:
            self._events.close()

    def _flush(self) -> None:
        now = time.monotonic()
        fields = ShardProgress(
            images=self._interval.images,
            bytes_in=self._interval.bytes_in,
            bytes_out=self._interval.bytes_out,
            wall_s=now - self._since,
            done=self._done,
            total=self._total,
            rejects=self._rejects,
        )
        self._write("progress", dict(fields))
        self._interval, self._since = TaskProgress(), now

    def _write(self, kind: str, fields: dict[str, object]) -> None:
        if self._events:
            self._events.write(kind, fields)


class _NetworkWarnings(logging.Handler):
    """What is said of servers becomes an event, and a line on stderr."""

    def __init__(self, write: Callable[[str, dict[str, object]], None]) -> None:
        super().__init__()
        self._event = write

    def emit(self, record: logging.LogRecord) -> None:
        self._event("warning", {"message": record.getMessage()})
        print(f"warning: {record.getMessage()}", file=sys.stderr)


def _attempts(path: Path) -> int:
    return sum(record["kind"] == "start" for record in EventTail(path).read())
