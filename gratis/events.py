"""Contract 3: event files. `runs/<name>/rank-<r>.jsonl` and `runs/<name>/shards.jsonl`,
append-only JSON lines.

Every record has v, kind, t (Unix seconds), mono (monotonic seconds, comparable within one host's
boot), attempt, rank, and epoch and step where they apply. Records hold **raw counters of an
interval, never rates**: the reader computes those (gratis.rates). Each line is one unbuffered
write: a reader sees whole lines, or a torn last one, which it reads once it is whole.

Imports the standard library alone.
"""

from __future__ import annotations

import json
import math
import os
import sys
import threading
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any, TypedDict

VERSION = 1

# json.loads would look for other encodings at each line, and spaces around it
_decode = json.JSONDecoder().decode


class DecoderCounters(TypedDict, total=False):
    """Since 0.3."""

    native: int  # images that the engine decoded
    fallback: int  # that it refused: another decoder decoded them, or they were bad


class LoaderCounters(DecoderCounters):
    """What one rank's loader did since the counters were last taken. Seconds are wall seconds
    unless said otherwise.

    The producer is the loader's background thread. It is at work reading, decoding, finishing or
    transferring; or it is blocked because the queue of ready batches is full; or it has made all of
    its epoch. So images over the sum of the stages' seconds (or over wait_s, if that is more) is
    what the loader could deliver, and wait_s / interval is the share of time that training lost to
    it."""

    images: int  # rows handed to the consumer that are real samples (padding is not counted)
    batches: int
    bytes_read: int  # encoded bytes of those images
    read_s: float  # fetching the samples' bytes
    # waiting for decode and crop (on a GPU: and augmentation) after the bytes were there
    decode_s: float
    # the pass on the CPU for flip, mean, noise, type; the engine does all of it while it decodes
    finish_s: float
    transfer_s: float  # host to device, where the loader does it
    wait_s: float  # the consumer waited for a batch
    blocked_s: float  # the producer waited because the queue was full
    queue_depth: int  # batches ready at the moment of taking
    queue_capacity: int


class ShardProgress(TypedDict):
    """Fields of a `progress` record in shards.jsonl: what the shard stage did in an interval, and
    how far it is."""

    images: int  # in this interval
    bytes_in: int  # encoded source bytes in this interval
    bytes_out: int  # shard bytes in this interval
    wall_s: float  # the interval
    done: int  # images finished since the dataset was begun, earlier attempts included
    total: int  # images planned
    rejects: int  # so far


class EventWriter:
    """Appends events to one file. For any thread.

    A full disk never stops the writer: records are lost, and one warning on stderr says so."""

    def __init__(self, path: Path, *, attempt: int, rank: int) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        self._file = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o644)
        self._common = {"attempt": attempt, "rank": rank}
        self._path, self._warned, self._lock = path, False, threading.Lock()
        # a writer was killed inside a line: end it, so that the reader drops it alone
        self._torn = _ends_torn(path)

    def write(
        self,
        kind: str,
        fields: Mapping[str, object],
        *,
        epoch: int | None = None,
        step: int | None = None,
    ) -> None:
        """Appends one record. Non-finite floats become null: JSON has no number for them."""
        now = {"t": time.time(), "mono": time.monotonic()}
        record: dict[str, object] = {"v": VERSION, "kind": kind, **now, **self._common}
        place = {"epoch": epoch, "step": step}
        record |= {name: value for name, value in place.items() if value is not None}
        line = json.dumps(_finite(record | dict(fields)), separators=(",", ":"), allow_nan=False)
        with self._lock:
            self._append(line.encode() + b"\n")

    @property
    def deleted(self) -> bool:
        """Whether the file was deleted: nobody can read what is written to it."""
        return os.fstat(self._file).st_nlink == 0

    def _append(self, line: bytes) -> None:
        line = b"\n" + line if self._torn else line
        why = "No space left on device"
        try:
            written = os.write(self._file, line)
        except OSError as error:
            written, why = 0, error.strerror or why
        if 0 < written < len(line):  # as much as there was space for
            self._torn = True
        elif written:
            self._torn = False
        if written < len(line) and not self._warned:
            print(f"warning: events are lost: {self._path}: {why}", file=sys.stderr, flush=True)
            self._warned = True

    def close(self) -> None:
        os.close(self._file)


class EventTail:
    """Reads a growing event file from where it stopped, at first from `offset`; lines that are no
    records are counted in `garbage`."""

    def __init__(self, path: Path, offset: int = 0) -> None:
        self.path = path
        self.offset = offset
        self.garbage = 0

    def read(self, limit: int = 8 << 20) -> list[dict[str, Any]]:
        """The whole records that came since the last read, of at most `limit` bytes; [] once there
        are none.

        A file that shrank was replaced: it is read from its start. A missing file has no records.
        """
        try:
            # a pipe would be waited for, but for O_NONBLOCK
            file = os.open(self.path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
        except (FileNotFoundError, NotADirectoryError):
            return []
        try:
            block = os.pread(file, limit, self.offset)
            if not block and os.fstat(file).st_size < self.offset:
                self.offset = 0
                block = os.pread(file, limit, 0)
        finally:
            os.close(file)
        whole = block[: block.rfind(b"\n") + 1]
        if not whole and len(block) == limit:  # one line longer than the limit is no record of ours
            whole = block
        self.offset += len(whole)
        lines = [line for line in whole.splitlines() if line.strip()]
        records = [record for line in lines if (record := parse_record(line)) is not None]
        self.garbage += len(lines) - len(records)
        return records


def parse_record(line: bytes) -> dict[str, Any] | None:
    """The record in a line of an event file; None if there is none in it."""
    try:
        record = _decode(line.decode("utf-8", "surrogatepass"))
    except (ValueError, RecursionError):  # a line of brackets alone nests too deep
        return None
    if not isinstance(record, dict) or not isinstance(record.get("kind"), str):
        return None
    return record if isinstance(record.get("t"), float | int) else None


def _ends_torn(path: Path) -> bool:
    with path.open("rb") as file:
        if file.seek(0, os.SEEK_END) == 0:
            return False
        file.seek(-1, os.SEEK_END)
        return file.read(1) != b"\n"


def _finite(value: object) -> object:
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, Mapping):
        return {key: _finite(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_finite(item) for item in value]
    return value
