"""Samples' bytes from the shards, by id.

`pread` into a buffer of our own, not mmap: a disk that fails is then an error and not the death of
the process, and the page cache does not count as this process's memory. It copies 32 KB per image,
about 2 % of its decoding."""

from __future__ import annotations

import errno
import os
import resource
from collections import OrderedDict
from collections.abc import Callable
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from gratis.atomic import open_nonblocking
from gratis.dataset import Index, Split
from gratis.errors import GratisError
from gratis.loader.plan import Ids
from gratis.loader.reading.shard_cache import ShardCache, uses_of
from gratis.loader.reading.shard_labels import check_labels
from gratis.open_files import max_open_files, move_high

Bytes = NDArray[np.uint8]

VERIFY = "verify the copy of the dataset"
HEADER = 512  # of a tar member, directly before its bytes; the name is its first 100 bytes


class ShardReader:
    """Reads one split. For one thread; files stay open until `close`."""

    def __init__(
        self, root: Path, split: Split, index: Index, cache: ShardCache | None = None
    ) -> None:
        self._root, self._shards, self._index, self._cache = root, split.shards, index, cache
        self._files: OrderedDict[int, int] = OrderedDict()
        self._checked: set[int] = set()  # shards whose labels were held against the index
        self._most = max_open_files(len(split.shards))

    def begin(self, order: Callable[[], Ids], batch_size: int, first_step: int) -> None:
        """Of an epoch: shards on a server are now fetched in the order of all samples that `order`
        returns."""
        if self._cache:
            shards = self._index.shard[order()]
            self._cache.begin(uses_of(shards, batch_size, first_step), first_step)

    def at(self, step: int) -> None:
        """Of the epoch. Shards on a server that are read to the end are closed, for their space
        comes back then."""
        if self._cache:
            wanted = self._cache.at(step)
            for shard in [shard for shard in self._files if shard not in wanted]:
                os.close(self._files.pop(shard))

    def expect(self, ids: Ids) -> None:
        """Asks the system to read these samples ahead, all at once: on a cold disk their latencies
        then overlap."""
        for shard, offset, size in [] if self._cache else self._places(ids):
            os.posix_fadvise(self._file(shard), offset, size, os.POSIX_FADV_WILLNEED)

    def read(self, ids: Ids, buffer: Bytes | None = None) -> tuple[list[Bytes], Bytes]:
        """The images' bytes as they are stored, and the buffer they lie in: the one given, if they
        fit."""
        places = self._places(ids)
        ends = np.cumsum([size for _, _, size in places]).tolist()
        if buffer is None or len(buffer) < ends[-1]:
            buffer = np.empty(ends[-1] * 5 // 4, np.uint8)  # room for batches a little larger
        parts = [buffer[end - size : end] for end, (_, _, size) in zip(ends, places, strict=True)]
        for part, (shard, offset, size) in zip(parts, places, strict=True):
            if os.preadv(self._file(shard), [part.data], offset) != size:
                path = self._root / self._shards[shard].name
                raise GratisError(f"{path} ends inside a sample; verify the dataset")
        return parts, buffer

    def describe(self, sample: int) -> str:
        """Where a sample is: shard, key and byte offset."""
        shard, offset, _ = self._places(np.array([sample]))[0]
        path = self._root / self._shards[shard].name
        return f"shard {path}, key {self.key(sample)}, offset {offset}"

    def key(self, sample: int) -> str:
        """A sample's key, as its tar header has it, which may be damaged too."""
        shard, offset, _ = self._places(np.array([sample]))[0]
        name = os.pread(self._file(shard), 100, offset - HEADER).split(b"\0")[0]
        text = name.decode(errors="replace")
        return Path("".join(c if c.isprintable() else "?" for c in text)).stem

    def stop(self) -> None:
        """Ends a `read` that waits for a server, with FetchCancelled. For any thread."""
        if self._cache:
            self._cache.stop()

    def close(self) -> None:
        if self._cache:
            self._cache.close()
        while self._files:
            os.close(self._files.popitem()[1])

    def _places(self, ids: Ids) -> list[tuple[int, int, int]]:
        index = self._index
        columns = (column[ids].tolist() for column in (index.shard, index.offset, index.size))
        return list(zip(*columns, strict=True))

    def _file(self, shard: int) -> int:
        if shard in self._files:
            self._files.move_to_end(shard)
            return self._files[shard]
        if len(self._files) >= self._most:
            self._close_oldest()
        self._files[shard] = self._open(shard)
        return self._files[shard]

    def _open(self, shard: int) -> int:
        expected = self._shards[shard]
        path = self._root / expected.name
        try:
            file = self._descriptor(shard, path)
        except OSError as error:
            if error.errno == errno.EMFILE:
                limit = resource.getrlimit(resource.RLIMIT_NOFILE)[0]
                reason = f"this process has its {limit} files open"
                advice = "raise that limit (`ulimit -n 4096`)"
                raise GratisError(f"{path} cannot be opened: {reason}; {advice}") from None
            raise GratisError(f"{path} cannot be read ({error.strerror}); {VERIFY}") from None
        if (size := os.fstat(file).st_size) != expected.bytes:
            os.close(file)
            raise GratisError(f"{path} has {size} bytes, not {expected.bytes}; {VERIFY}")
        if shard not in self._checked:
            try:
                check_labels(file, path, self._index, shard)
            except BaseException:
                os.close(file)
                raise
            self._checked.add(shard)
        return move_high(file)

    def _descriptor(self, shard: int, path: Path) -> int:
        while True:
            try:
                if self._cache:
                    return self._cache.open(shard)
                return open_nonblocking(path, os.O_RDONLY | os.O_CLOEXEC)
            except OSError as error:
                if error.errno != errno.EMFILE or not self._files:
                    raise
                self._close_oldest()  # others in this process have taken the rest

    def _close_oldest(self) -> None:
        os.close(self._files.popitem(last=False)[1])
