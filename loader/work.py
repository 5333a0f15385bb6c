"""What one rank has to do in one step, and the reading of it: the first stage of the loader's pipeline."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray

from loader import plan
from loader.config import LoaderConfig
from loader.source import Bytes, Ids, Source
from preprocess.dataset import Index, Manifest, Stats
from preprocess.events import LoaderCounters

BUFFERS = 4  # of encoded bytes: two batches are with the decoder, one behind it, one is being read


@dataclass(frozen=True, kw_only=True)
class Job:
    """One rank's share of what is left of one epoch. Holds no file, thread or device memory."""

    root: Path
    split: str
    manifest: Manifest
    index: Index
    stats: Stats
    config: LoaderConfig
    rank: int
    world_size: int
    device: torch.device
    epoch: int
    first_step: int

    @property
    def rows(self) -> int:
        """Of a batch, on this rank."""
        return self.config.batch_size // self.world_size

    @property
    def steps(self) -> range:
        count = plan.num_steps(len(self.index.label), self.config.batch_size, self.config.remainder)
        return range(self.first_step, count)

    @property
    def positions(self) -> int:
        """Of a crop, along each axis."""
        return self.manifest.image_size - self.config.crop + 1

    def order(self) -> Ids:
        """Of all samples in this epoch, int64 [N]."""
        config = self.config
        if not config.augment:
            return np.arange(len(self.index.label))
        if config.order == "window":
            return plan.window_order(config.seed, self.epoch, self.index.shard, config.window)
        return plan.order(config.seed, self.epoch, len(self.index.label))

    def draws(self, ids: Ids) -> plan.Draws:
        """Of each view of each sample: len(ids) * views rows, a sample's views adjacent."""
        config = self.config
        if config.augment:
            return plan.draws(config.seed, self.epoch, ids, self.positions)
        views = plan.ten_views(self.positions) if config.views == 10 else plan.centre_view(self.positions)
        y, x, flip, normals = (np.concatenate([field] * len(ids)) for field in views)
        return plan.Draws(y, x, flip, normals)


class Work(NamedTuple):
    """One step's samples, read but not decoded. parts[i] are the bytes of ids[i]; all lie in `buffer`."""

    ids: Ids
    draws: plan.Draws
    parts: list[Bytes]
    buffer: Bytes

    @property
    def begins(self) -> NDArray[np.int64]:
        """Where each part begins in the buffer."""
        begins: NDArray[np.int64] = np.cumsum([0] + [len(part) for part in self.parts[:-1]])
        return begins


class Meter:
    """The raw counters of the loader since they were last taken. For any thread."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._sums: dict[str, float] = {}

    def add(self, **amounts: float) -> None:
        with self._lock:
            for name, amount in amounts.items():
                self._sums[name] = self._sums.get(name, 0) + amount

    @contextmanager
    def time(self, name: str) -> Iterator[None]:
        start = time.perf_counter()
        try:
            yield
        finally:
            self.add(**{name: time.perf_counter() - start})

    def take(self, *, depth: int, capacity: int) -> LoaderCounters:
        with self._lock:
            sums, self._sums = self._sums, {}
        return LoaderCounters(
            images=int(sums.get("images", 0)), batches=int(sums.get("batches", 0)),
            bytes_read=int(sums.get("bytes_read", 0)), read_s=sums.get("read_s", 0.0),
            decode_s=sums.get("decode_s", 0.0), finish_s=sums.get("finish_s", 0.0),
            transfer_s=sums.get("transfer_s", 0.0), wait_s=sums.get("wait_s", 0.0),
            blocked_s=sums.get("blocked_s", 0.0), queue_depth=depth, queue_capacity=capacity,
        )  # fmt: skip


def read_works(job: Job, source: Source, meter: Meter) -> Iterator[Work]:
    """The job's steps in order, as far as this rank has samples in them. The next step's are asked for in advance.

    Buffers are used again: a work is valid until BUFFERS - 1 further ones were taken.
    """
    order = job.order()
    steps = [ids for step in job.steps if len(ids := _ids(job, order, step))]
    buffers: list[Bytes | None] = [None] * BUFFERS
    for number, ids in enumerate(steps):
        with meter.time("read_s"):
            if number + 1 < len(steps):
                source.expect(steps[number + 1])
            parts, buffer = source.read(ids, buffers[number % BUFFERS])
        buffers[number % BUFFERS] = buffer
        meter.add(bytes_read=sum(map(len, parts)))
        yield Work(ids, job.draws(ids), parts, buffer)


def _ids(job: Job, order: Ids, step: int) -> Ids:
    ids = plan.rows(order, step, job.config.batch_size, job.rank, job.world_size)
    real: Ids = ids[ids != plan.PAD]
    return real
