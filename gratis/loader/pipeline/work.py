"""What one rank has to do in one step, and the reading of it: the first stage of the loader's
pipeline."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray

from gratis.dataset import Index, Manifest, Stats
from gratis.events import LoaderCounters
from gratis.loader import plan
from gratis.loader.config import LoaderConfig
from gratis.loader.reading.quarantine import Quarantine
from gratis.loader.reading.remote import Remote
from gratis.loader.reading.shards import Bytes, Ids, Source

BUFFERS = 4  # of encoded bytes: two batches are with the decoder, one behind it, one is being read


@dataclass(frozen=True, kw_only=True)
class Job:
    """One rank's share of what is left of one epoch. Holds no file, thread or device memory."""

    root: Path  # of the dataset, or of what the cache has of it
    remote: Remote | None
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

    def wanted(self, order: Ids) -> list[Ids]:
        """This rank's samples in each of the steps, as far as it has any."""
        found = [
            plan.rows(order, step, self.config.batch_size, self.rank, self.world_size)
            for step in self.steps
        ]
        return [real for ids in found if len(real := ids[ids != plan.PAD])]

    @cached_property
    def _places(self) -> Ids:
        """Where in this epoch's order each sample is, int64 [N]: the inverse of `order`."""
        order = self.order()
        places = np.empty_like(order)
        places[order] = np.arange(len(order))
        return places

    def draws(self, ids: Ids) -> tuple[plan.Draws, Ids | None]:
        """Of each view of each sample: len(ids) * views rows, a sample's views adjacent; and what
        is cut out of each, height and width int64 [n,2], where that is not the crop."""
        config = self.config
        if config.augment:
            positions = max(1, self.positions - (config.crop_positions == "printed"))
            chunks = self._places[ids] // config.crop_chunk if config.crop_chunk > 1 else None
            draws = plan.draws(config.seed, self.epoch, ids, positions, chunks)
            if config.area is None:
                return draws, None
            size = self.manifest.image_size
            y, x, height, width = plan.boxes(
                config.seed, self.epoch, ids, size, config.area, config.ratio
            )
            return draws._replace(y=y, x=x), np.stack([height, width], axis=1)
        views = (
            plan.ten_views(self.positions)
            if config.views == 10
            else plan.centre_view(self.positions)
        )
        y, x, flip, normals = (np.concatenate([field] * len(ids)) for field in views)
        return plan.Draws(y, x, flip, normals), None


class Work(NamedTuple):
    """One step's samples, read but not decoded. parts[i] are the bytes of ids[i]; all lie in
    `buffer`.

    wanted are the ids that the order names; ids differ from them where another sample stands in.
    Augmentation is that of the wanted one. extents int64 [n,2]: height and width of what is cut
    out, where they differ from the crop's."""

    wanted: Ids
    ids: Ids
    draws: plan.Draws
    extents: Ids | None
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
        # .seconds: what the spans inside the one that is open have taken
        self._within = threading.local()

    def add(self, **amounts: float) -> None:
        with self._lock:
            for name, amount in amounts.items():
                self._sums[name] = self._sums.get(name, 0) + amount

    @contextmanager
    def time(self, name: str) -> Iterator[None]:
        """Counts a span of this thread, without the spans inside it: DALI asks for bytes when it is
        asked to decode."""
        before, start = getattr(self._within, "seconds", 0.0), time.perf_counter()
        self._within.seconds = 0.0
        try:
            yield
        finally:
            took = time.perf_counter() - start
            self.add(**{name: took - self._within.seconds})
            self._within.seconds = before + took

    def take(self, *, depth: int, capacity: int) -> LoaderCounters:
        with self._lock:
            sums, self._sums = self._sums, {}
        return LoaderCounters(
            images=int(sums.get("images", 0)),
            batches=int(sums.get("batches", 0)),
            bytes_read=int(sums.get("bytes_read", 0)),
            read_s=sums.get("read_s", 0.0),
            decode_s=sums.get("decode_s", 0.0),
            finish_s=sums.get("finish_s", 0.0),
            transfer_s=sums.get("transfer_s", 0.0),
            wait_s=sums.get("wait_s", 0.0),
            blocked_s=sums.get("blocked_s", 0.0),
            queue_depth=depth,
            queue_capacity=capacity,
        )


def malformed(parts: list[Bytes], side: int) -> list[int]:
    """Those of JPEGs that a decoder would give up on."""
    # with Numba, whose import takes 0.4 s
    from gratis.loader.decoding.jpeg_check import well_formed

    return [row for row, part in enumerate(parts) if not well_formed(part, side)]


class Reader:
    """Reads a job's samples. Its buffers of encoded bytes are used again, from one epoch to the
    next too."""

    def __init__(self, source: Source, meter: Meter, quarantine: Quarantine) -> None:
        self._source, self._meter, self._quarantine = source, meter, quarantine
        self._buffers: list[Bytes | None] = [None] * BUFFERS

    def works(self, job: Job) -> Iterator[Work]:
        """The job's steps in order, as far as this rank has samples in them. The next step's are
        asked for in advance.

        A work is valid until BUFFERS - 1 further ones were taken.
        """
        order = job.order()
        steps = job.wanted(order)
        self._source.begin(order, job.config.batch_size, job.first_step)
        for number, ids in enumerate(steps):
            self._source.at(job.first_step + number)
            with self._meter.time("read_s"):
                if number + 1 < len(steps):
                    self._source.expect(steps[number + 1])
                buffer = self._buffers[number % BUFFERS]
                work, self._buffers[number % BUFFERS] = self._read_into(job, ids, buffer)
            self._meter.add(bytes_read=sum(map(len, work.parts)))
            yield work

    def close(self) -> None:
        """Frees the buffers."""
        self._buffers = [None] * BUFFERS

    def again(self, job: Job, work: Work) -> Work:
        """The same step, after one of its samples was quarantined."""
        return self.read(job, work.wanted)

    def read(self, job: Job, wanted: Ids, *, mended: bool = True) -> Work:
        """These samples, into a buffer of their own. mended: with stand-ins for JPEGs that are
        malformed."""
        return self._read_into(job, wanted, None, mended=mended)[0]

    def _read_into(
        self, job: Job, wanted: Ids, buffer: Bytes | None, *, mended: bool = True
    ) -> tuple[Work, Bytes]:
        while True:
            ids = self._quarantine.replace(job.epoch, wanted)
            parts, buffer = self._source.read(ids, buffer)
            if not (mended and self._refused(job, wanted, ids, parts)):
                break
        draws, extents = job.draws(wanted)
        return Work(wanted, ids, draws, extents, parts, buffer), buffer

    def _refused(self, job: Job, wanted: Ids, ids: Ids, parts: list[Bytes]) -> bool:
        """Hands JPEGs to the quarantine that a decoder would give up on: DALI 2.4 may die of
        them."""
        if job.manifest.codec != "jpeg":
            return False
        bad = malformed(parts, job.manifest.image_size)
        for row in bad:
            self._quarantine.add(
                int(wanted[row]), int(ids[row]), self._source.describe(int(ids[row]))
            )
        return bool(bad)
