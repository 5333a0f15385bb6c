"""Progress of the shard stage: a bar for people, and `start`, `progress` and `end` events for the
status server."""

from __future__ import annotations

import os
import time
from pathlib import Path
from types import TracebackType

from tqdm import tqdm

from gratis.events import EventTail, EventWriter, ShardProgress
from gratis.preprocess.execution.workers import Step

EVENTS = "shards.jsonl"
EVENT_S = 1.0


class Progress:
    """Context of one run of the map. done and rejects are what earlier attempts left finished."""

    def __init__(self, run_dir: Path | None, *, total: int, done: int, rejects: int) -> None:
        self._bar = tqdm(
            total=total, initial=done, desc="shards", unit="img", delay=2.0, disable=None
        )
        self._events = (
            EventWriter(run_dir / EVENTS, attempt=_attempts(run_dir) + 1, rank=0)
            if run_dir
            else None
        )
        self._total, self._done, self._rejects = total, done, rejects
        self._interval, self._since = Step(), time.monotonic()
        self._begun, self._bytes_in = self._since, 0

    def __enter__(self) -> Progress:
        self._write(
            "start",
            {
                "total": self._total,
                "done": self._done,
                "pid": os.getpid(),
                "host": os.uname().nodename,
            },
        )
        return self

    def add(self, step: Step) -> None:
        self._interval = self._interval.plus(step)
        self._done += step.images + step.rejects
        self._rejects += step.rejects
        self._bytes_in += step.bytes_in
        rate = self._bytes_in / 1e6 / max(1e-9, time.monotonic() - self._begun)
        self._bar.set_postfix_str(f"{rate:.1f} MB/s in, {self._rejects} rejects", refresh=False)
        self._bar.update(step.images + step.rejects)
        if time.monotonic() - self._since > EVENT_S:
            self._flush()

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._bar.close()
        self._flush()
        outcome = (
            "finished" if kind is None else "interrupted" if kind is KeyboardInterrupt else "failed"
        )
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
        self._interval, self._since = Step(), now

    def _write(self, kind: str, fields: dict[str, object]) -> None:
        if self._events:
            self._events.write(kind, fields)


def _attempts(run_dir: Path) -> int:
    return sum(record["kind"] == "start" for record in EventTail(run_dir / EVENTS).read())
