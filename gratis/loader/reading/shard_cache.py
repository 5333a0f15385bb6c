"""Whole shards of a remote dataset on the local disk: bounded, verified, fetched ahead in the
epoch's order.

Any number of threads and processes of one machine may share a cache. A shard is downloaded under
its lock into `<name>.<bytes>.part`, which whoever comes next continues after a crash; only what has
the manifest's sha256 becomes a shard. Those used longest ago go first. One that is open when it
goes stays readable until it is closed."""

from __future__ import annotations

import errno
import os
import re
import threading
from collections.abc import Callable
from contextlib import AbstractContextManager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from gratis.dataset import Shard
from gratis.errors import GratisError
from gratis.loader.reading.remote import FOLDER, LoaderThread, Remote, file_lock, mismatch
from gratis.network import FetchCancelled

PART = re.compile(r".*\.([0-9]+)\.part")
FETCHERS = 3  # downloads at a time, beside one that the reader waits for


@dataclass(frozen=True)
class ShardUse:
    """The steps of an epoch between which a shard is read."""

    shard: int
    first: int
    last: int


def uses_of(shards: NDArray[np.int32], batch_size: int, first_step: int) -> list[ShardUse]:
    """From the shard of every sample in the epoch's order; by first use, of what is left of the
    epoch."""
    rest = shards[first_step * batch_size :]
    steps = first_step + np.arange(len(rest)) // batch_size
    first, last = np.full(shards.max(initial=0) + 1, -1), np.full(shards.max(initial=0) + 1, -1)
    # of several values for one place the last one stays
    first[rest[::-1]], last[rest] = (steps[::-1], steps)
    used = np.flatnonzero(first >= 0)
    return [
        ShardUse(int(s), int(first[s]), int(last[s]))
        for s in used[np.argsort(first[used], kind="stable")]
    ]


class ShardCache:
    """The shards of one split. `open` is for the reader's thread, `begin` and `at` are called
    with its position."""

    def __init__(self, remote: Remote, folder: Path, shards: tuple[Shard, ...], limit: int) -> None:
        self._remote, self._folder, self._shards, self._limit = remote, folder, shards, limit
        self._moved = threading.Condition()
        self._stop = threading.Event()
        self._fetchers: list[LoaderThread] = []
        self._uses: list[ShardUse] = []
        self._step = self._next = 0

    def begin(self, uses: list[ShardUse], first_step: int) -> None:
        """Of an epoch: starts fetching. GratisError if it cannot do with the space there is."""
        self._check_space(uses)
        self._remote.server.forget()
        # a rank without a sample in the last step leaves fetchers waiting for that step
        with self._moved:
            self._uses = []
            self._moved.notify_all()
        self._join()
        with self._moved:
            self._uses, self._step, self._next = uses, first_step, 0
        self._fetchers = [
            LoaderThread(target=self._fetch, name="loader-fetch", daemon=True)
            for _ in range(min(FETCHERS, len(uses)))
        ]
        for thread in self._fetchers:
            thread.start()

    def at(self, step: int) -> set[int]:
        """The reader begins a step: shards behind it make room for others. Returns the shards still
        of use."""
        with self._moved:
            self._step = step
            self._moved.notify_all()
            return {use.shard for use in self._uses if use.last >= step}

    def open(self, number: int, *, ahead: bool = False) -> int:
        """A file descriptor of a shard, which is fetched first if it is not there. GratisError;
        FetchCancelled on request.

        On a full disk a shard that is wanted now takes the place of others that were fetched ahead.
        """
        path = self._folder / self._shards[number].name
        with file_lock(path.with_suffix(".lock"), self._stop):
            return self._open(self._shards[number], path, ahead=ahead)

    def _open(self, shard: Shard, path: Path, *, ahead: bool) -> int:
        """The caller holds its lock."""
        bad = 0
        while bad < 2:  # one that came well may be gone again: another process made room
            with suppress(FileNotFoundError):
                if path.stat().st_size != shard.bytes:  # after a power cut, or by another hand
                    path.unlink()
                os.utime(path)
                return os.open(path, os.O_RDONLY | os.O_CLOEXEC)
            bad += not self._download(shard, path, ahead=ahead)
        raise mismatch(self._remote, shard.name)

    def stop(self) -> None:
        """Ends all that waits or fetches; for any thread."""
        self._stop.set()
        with self._moved:
            self._moved.notify_all()

    def close(self) -> None:
        self.stop()
        self._join()
        self._stop.clear()

    def _join(self) -> None:
        for thread in self._fetchers:
            # which may be the one that collects all this
            if thread is not threading.current_thread():
                thread.join()
        self._fetchers = []

    def _fetch(self) -> None:
        while (use := self._take()) is not None:
            path = self._folder / self._shards[use.shard].name
            try:
                with file_lock(path.with_suffix(".lock"), self._stop):
                    if path in self._wanted():  # else the reader fetched it, and is past it by now
                        os.close(self._open(self._shards[use.shard], path, ahead=True))
            except (GratisError, FetchCancelled, OSError):
                return  # the reader meets the same error and raises it

    def _take(self) -> ShardUse | None:
        """The next shard to fetch, once there is space for it beside those that are still of use;
        None when the epoch needs no more."""
        with self._moved:
            uses = self._uses
            if self._next >= len(uses):
                return None
            number, use = self._next, uses[self._next]
            self._next += 1
            while not self._over(uses) and use.first > self._step and not self._fits(number):
                self._moved.wait()
            return None if self._over(uses) else use

    def _over(self, uses: list[ShardUse]) -> bool:
        return self._stop.is_set() or self._uses is not uses

    def _fits(self, number: int) -> bool:
        wanted = (use for use in self._uses[: number + 1] if use.last >= self._step)
        return sum(self._shards[use.shard].bytes for use in wanted) <= self._limit

    def _check_space(self, uses: list[ShardUse]) -> None:
        """Against the most that any one step needs."""
        if not uses:
            return
        change = np.zeros(max(use.last for use in uses) + 2, np.int64)
        for use in uses:
            change[use.first] += self._shards[use.shard].bytes
            change[use.last + 1] -= self._shards[use.shard].bytes
        if (most := int(np.cumsum(change).max())) > self._limit:
            raise GratisError(
                f"this order reads {most / 1e9:.3g} GB of shards side by side and cache_gb is "
                f"{self._limit / 1e9:.3g}; raise it, or choose order='window' with a smaller window"
            )

    def _download(self, shard: Shard, path: Path, *, ahead: bool) -> bool:
        """Whether the shard is there now, as published; else nothing of it is left. The caller
        holds its lock."""
        part = path.with_suffix(f".{shard.bytes}.part")  # its name says what it will take
        while True:
            self._make_room(part, shard.bytes)
            try:
                with part.open("ab+") as file:
                    good = self._remote.download(
                        shard.name, file, size=shard.bytes, sha256=shard.sha256, stop=self._stop
                    )
                    os.fsync(file.fileno())
                break
            except OSError as error:
                if error.errno != errno.ENOSPC or not self._drop_one(part, spare=ahead):
                    cache = part.parent.parent
                    raise GratisError(
                        f"the cache {cache} cannot hold {shard.name}: {error}"
                    ) from None
        if good:
            with self._counting():  # else who counts might see neither the part nor the shard
                part.replace(path)
        else:
            part.unlink()
        return good

    def _make_room(self, part: Path, size: int) -> None:
        """Reserves it for a part. Only where processes at different places of an epoch share a
        cache that is too small for both is its limit passed."""
        with self._counting():  # else two would take the same room
            self._evict(part, lambda held: held + size > self._limit)
            part.touch()

    def _drop_one(self, part: Path, *, spare: bool) -> bool:
        """Whether there was another file that could go. spare: none that this epoch still wants."""
        with self._counting():
            return self._evict(part, lambda held: True, once=True, spare=spare)

    def _counting(self) -> AbstractContextManager[None]:
        """What the cache holds changes under one lock of all its processes."""
        return file_lock(self._folder.parent / "evict.lock", self._stop)

    def _evict(
        self, part: Path, too_much: Callable[[int], bool], *, once: bool = False, spare: bool = True
    ) -> bool:
        """Removes what was used longest ago while there is too much beside `part`, then, if not
        spared, what is wanted last; whether anything went. The caller is counting."""
        went = False
        files = {file.path: file for file in cached_files(self._folder.parent) if file.path != part}
        held, wanted = sum(file.bytes for file in files.values()), self._wanted()
        order = [path for path in files if path not in wanted]
        order += [] if spare else [path for path in reversed(wanted) if path in files]
        for path in order:
            if not too_much(held) or (once and went):
                break
            if _remove(path):
                held, went = held - files[path].bytes, True
        return went

    def _wanted(self) -> list[Path]:
        """Of the shards that were asked for, those still of use; by first use."""
        with self._moved:
            uses = [use for use in self._uses[: self._next] if use.last >= self._step]
        return [self._folder / self._shards[use.shard].name for use in uses]


class CachedFile(NamedTuple):
    """A file in the cache."""

    used: float  # last, Unix seconds
    bytes: int  # of a part: when it is whole
    path: Path


def cached_files(cache: Path) -> list[CachedFile]:
    """All shards and parts of shards, of any dataset, those used longest ago first. Whatever else a
    user keeps in that folder is none of them."""
    files = []
    for path in cache.glob("*/*"):
        part = PART.fullmatch(path.name)
        if FOLDER.fullmatch(path.parent.name) and (part or path.suffix == ".tar"):
            try:
                status = path.stat()
            except FileNotFoundError:  # another process was quicker
                continue
            size = int(part[1]) if part else status.st_size
            files.append(CachedFile(status.st_mtime, size, path))
    return sorted(files)


def _remove(path: Path) -> bool:
    """A part goes only if nobody is at work on it."""
    if path.suffix == ".tar":
        path.unlink(missing_ok=True)
        return True
    stop = threading.Event()
    stop.set()  # do not wait
    try:
        with file_lock(path.with_suffix("").with_suffix(".lock"), stop):
            path.unlink(missing_ok=True)
    except FetchCancelled:
        return False
    return True
