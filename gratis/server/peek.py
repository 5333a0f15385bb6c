"""A run's state from the end of rank 0's file alone: what a listing of a thousand runs can
afford."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Iterator
from pathlib import Path

from gratis.server.models import RunSummary
from gratis.server.records import Record, integer, text
from gratis.server.report import gone
from gratis.server.run import SHARD_FILE
from gratis.server.state import derive

TAIL = 16 << 10  # bytes: some twenty records
HEAD = 8 << 10  # bytes: the first attempt's `start`


def peek(path: Path, name: str, updated: float, stall_s: float) -> RunSummary:
    """State, epoch and step of the run at `path`, by rank 0's last records, or the shard stage's
    where nothing trains.

    updated: when it last grew, Unix seconds.
    """
    head, tail = _ends(path / "rank-0.jsonl")
    trains = bool(tail)
    if not trains:
        head, tail = _ends(path / SHARD_FILE)
    end, step, epoch, attempt = None, None, None, None
    for record in _backwards(tail):
        its = integer(record, "attempt") or 0
        attempt = its if attempt is None else attempt
        if its != attempt:
            break
        if record["kind"] == "end" and step is None:
            end = record
        step = integer(record, "step") if step is None else step
        epoch = integer(record, "epoch") if epoch is None else epoch
        if step is not None and epoch is not None:
            break
    state, _ = derive(
        outcomes={0: text(end, "outcome") or ""} if end else {},
        dead=[0] if not end and _left(head, tail, attempt or 0) else [],
        stepped=trains and step is not None,
        age_s=max(time.time() - updated, 0.0),
        stall_s=stall_s,
    )
    return RunSummary(name=name, state=state, epoch=epoch or 0, step=step or 0, updated=updated)


def _ends(path: Path) -> tuple[bytes, bytes]:
    """The file's first and last bytes; the same if it is short."""
    # a pipe would be waited for, but for O_NONBLOCK; it cannot be read at a place, which is an
    # OSError
    try:
        with open(
            os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC), "rb", buffering=0
        ) as file:
            size = os.fstat(file.fileno()).st_size
            tail = os.pread(file.fileno(), TAIL, max(size - TAIL, 0))
            return (tail if size <= TAIL else os.pread(file.fileno(), HEAD, 0)), tail
    except OSError:
        return b"", b""


def _backwards(block: bytes) -> Iterator[Record]:
    for line in reversed(block[: block.rfind(b"\n") + 1].splitlines()):
        try:
            record = json.loads(line)
        except (ValueError, RecursionError):
            continue
        if isinstance(record, dict) and isinstance(record.get("kind"), str):
            yield record


def _left(head: bytes, tail: bytes, attempt: int) -> bool:
    """Whether the attempt's `start` is within reach, was written on this host, and its process is
    no more."""
    for block in (tail, head):
        lines = [line for line in block.splitlines() if b'"kind":"start"' in line]
        for start in _backwards(b"\n".join(lines) + b"\n"):
            if start["kind"] == "start" and (integer(start, "attempt") or 0) == attempt:
                return gone(start)
    return False
