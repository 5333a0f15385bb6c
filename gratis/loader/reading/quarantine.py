"""Samples that turn out undecodable while an epoch runs, and who stands in for them.

A shard that rots after publication is damaged in one of two ways. Where a decoder would give up on
a sample (gratis.jpeg_check), or does, this module acts. Where a flipped bit still
decodes, to wrong pixels, nothing in the loader notices: a checksum of every sample would have to be
kept in the index and cost 3 % of decoding, to guard against what disks and file systems guard
against already. `gratis verify` compares whole shards with the manifest's sha256, and the cache of
remote shards does so whenever it fetches one."""

from __future__ import annotations

import threading

import numpy as np

from gratis.errors import GratisError
from gratis.loader.plan import Ids, samples_of, stand_in

MOST = 0.01  # share of the samples; beyond it the dataset is damaged, not a sample
FEW = 10  # that a small dataset may lose all the same


class Quarantine:
    """For each row of an epoch whose sample fails, the next of a sequence of samples that (seed,
    epoch, sample) give.

    So who stands in is the same on any number of ranks and after any resumption; nothing is
    remembered from one epoch to the next but what was reported. A stand-in is cut and coloured as
    the missing sample would have been."""

    def __init__(self, seed: int, count: int, *, allowed: bool) -> None:
        self._seed, self._count, self._allowed = seed, count, allowed
        self._lock = threading.Lock()
        self._new: list[str] = []
        self._failures: dict[int, int] = {}  # of each draw id, in this epoch
        self.bad: dict[int, str] = {}  # id -> shard, key and offset

    def begin(self) -> None:
        """Of an epoch."""
        self._failures = {}

    def add(self, wanted: int, sample: int, where: str) -> None:
        """A sample failed in the place of the wanted one. GratisError where that is not allowed, or
        too many did."""
        damage = f"{where}: cannot be decoded"
        if not self._allowed:
            raise GratisError(f"{damage}; verify the copy, or make the shards again")
        self._failures[wanted] = self._failures.get(wanted, 0) + 1
        with self._lock:
            if sample not in self.bad:
                self._new.append(f"{damage}; other samples stand in for it")
            self.bad[sample] = where
        if len(self.bad) > max(FEW, MOST * self._count):
            raise GratisError(
                f"{damage}, as {len(self.bad) - 1} other samples; verify the copy of the dataset"
            )

    def replace(self, epoch: int, wanted: Ids) -> Ids:
        """The samples' ids of these draw ids, with a stand-in for each that failed."""
        ids = samples_of(wanted)
        if not self._failures:
            return ids
        pairs = zip(wanted.tolist(), ids.tolist(), strict=True)
        return np.array([self._stand_in(epoch, *pair) for pair in pairs], np.int64)

    def take_warnings(self) -> list[str]:
        """A message for each bad sample since they were last taken. For any thread."""
        with self._lock:
            messages, self._new = self._new, []
        return messages

    def _stand_in(self, epoch: int, wanted: int, sample: int) -> int:
        if not (failures := self._failures.get(wanted, 0)):
            return sample
        return stand_in(self._seed, epoch, wanted, self._count, failures - 1)
