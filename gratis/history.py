"""What a run's event files say of its attempts, and how the last one ended.

The one reader for the launcher, the doctor, the paper's tables and the status server. A torn or
garbage line is skipped everywhere. `read_attempt` reads a file's ends alone, whatever its length;
`records` reads a rank's whole history."""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from gratis.errors import GratisError
from gratis.events import EventTail, parse_record
from gratis.fields import Record, integer

TAIL = 16 << 10  # bytes: some twenty records
HEAD = 8 << 10  # bytes: the first attempt's `start`


@dataclass
class Attempt:
    """The newest attempt in one event file, as far as its records were added."""

    number: int = 0  # as records count it, from 1; 0: none yet
    start: Record | None = None
    end: Record | None = None  # None: it goes on, or its process was killed
    step: int | None = None  # of the newest record that has one
    epoch: int = 0

    def add(self, record: Record) -> Attempt:
        """This attempt with one record more; or a new one, if the record is of a later attempt or a
        second `start`. A record of an earlier attempt changes nothing."""
        number, kind = integer(record, "attempt") or 0, record["kind"]
        if number < self.number:
            return self
        again = kind == "start" and self.start is not None
        attempt = Attempt(number) if number > self.number or again else self
        if kind == "start":
            attempt.start = record
        elif kind == "end":
            attempt.end = record
        step = integer(record, "step")
        attempt.step = attempt.step if step is None else step
        attempt.epoch = max(attempt.epoch, integer(record, "epoch") or 0)
        return attempt

    @property
    def outcome(self) -> str | None:
        """How it ended, as gratis.records names it; None if it goes on, or was killed."""
        outcome = self.end.get("outcome") if self.end is not None else None
        return outcome if isinstance(outcome, str) else None


def read_attempt(path: Path) -> Attempt:
    """The newest attempt in the event file, by its first and last kilobytes. A missing or
    unreadable file has none.

    Its `start` is None where that lies in between."""
    head, tail = _ends(path)
    attempt = Attempt()
    for record in (*_starts(head), *_starts(tail), *reversed([*_newest(tail)])):
        attempt = attempt.add(record)
    return attempt


def outcome(folder: Path) -> str | None:
    """How the last attempt at the run ended, by rank 0; None if it did not say, or there was
    none."""
    return read_attempt(folder / "rank-0.jsonl").outcome


def records(folder: Path, rank: int = 0) -> list[dict[str, Any]]:
    """A rank's whole history. GratisError where its file is none, or cannot be read."""
    path = folder / f"rank-{rank}.jsonl"
    tail = EventTail(path)
    history: list[dict[str, Any]] = []
    try:
        while block := tail.read():
            history += block
    except OSError as error:
        raise GratisError(
            f"{path} cannot be read ({error.strerror}); choose another --run"
        ) from None
    return history


def attempts(folder: Path) -> int:
    """How many times the run was started, as its records count. GratisError as by `records`."""
    return max((integer(record, "attempt") or 0 for record in records(folder)), default=0)


def _ends(path: Path) -> tuple[bytes, bytes]:
    """The file's first and last bytes; the same if it is short."""
    # a pipe would be waited for, but for O_NONBLOCK; it cannot be read at a place, which is an
    # OSError
    flags = os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC
    try:
        with open(os.open(path, flags), "rb", buffering=0) as file:
            size = os.fstat(file.fileno()).st_size
            tail = os.pread(file.fileno(), TAIL, max(size - TAIL, 0))
            return (tail if size <= TAIL else os.pread(file.fileno(), HEAD, 0)), tail
    except OSError:
        return b"", b""


def _starts(block: bytes) -> Iterator[Record]:
    """The `start` records of a block, the oldest first; other lines are not even parsed."""
    lines = [line for line in _whole_lines(block) if b'"kind":"start"' in line]
    return (record for record in map(parse_record, lines) if record and record["kind"] == "start")


def _newest(block: bytes) -> Iterator[Record]:
    """The newest records of a block, the newest first, as far back as the last step of training:
    what a listing of a thousand runs can afford."""
    for line in reversed(_whole_lines(block)):
        if record := parse_record(line):
            yield record
            if record["kind"] == "step" and integer(record, "step") is not None:
                return


def _whole_lines(block: bytes) -> list[bytes]:
    return block[: block.rfind(b"\n") + 1].splitlines()
