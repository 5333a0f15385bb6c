"""The first stage of the pipeline: the bytes of one rank's samples, step by step."""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from gratis.dataset import is_decodable
from gratis.loader.epoch.epoch_plan import EpochPlan
from gratis.loader.epoch.stage_timer import StageTimer
from gratis.loader.plan import Draws, Ids, samples_of
from gratis.loader.reading.quarantine import Quarantine
from gratis.loader.reading.shard_reader import Bytes, ShardReader

BUFFERS = 4  # of encoded bytes: two batches are with the decoder, one behind it, one is being read


class EncodedBatch(NamedTuple):
    """One step's samples, read but not decoded. parts[i] are the bytes of ids[i]; all lie in
    `buffer`.

    wanted are the draw ids that the order names; ids are their samples', or those of others that
    stand in. Augmentation is that of the wanted one. draws: of each view. extents int64
    [n*views,2]: height and width of what is cut out, where they differ from the crop's."""

    wanted: Ids
    ids: Ids
    draws: Draws
    extents: Ids | None
    parts: list[Bytes]
    buffer: Bytes

    @property
    def begins(self) -> NDArray[np.int64]:
        """Where each part begins in the buffer."""
        begins: NDArray[np.int64] = np.cumsum([0] + [len(part) for part in self.parts[:-1]])
        return begins

    def select(self, rows: NDArray[np.int64]) -> EncodedBatch:
        """Some of the samples, for a decoder of whole images: draws and extents stay as they
        are."""
        parts = [self.parts[row] for row in rows]
        return self._replace(ids=self.ids[rows], wanted=self.wanted[rows], parts=parts)


class BatchReader:
    """Reads a plan's samples. Its buffers of encoded bytes are used again, from one epoch to the
    next too."""

    def __init__(self, shards: ShardReader, timer: StageTimer, quarantine: Quarantine) -> None:
        self.shards, self._timer, self._quarantine = shards, timer, quarantine
        self._buffers: list[Bytes | None] = [None] * BUFFERS

    def batches(self, plan: EpochPlan, *, check: bool = True) -> Iterator[EncodedBatch]:
        """The plan's steps in order, as far as this rank has samples in them. The next step's are
        asked for in advance. check: as of `read`.

        A batch is valid until BUFFERS - 1 further ones were taken.
        """
        order = plan.order()
        steps = plan.ids_by_step(order)
        self.shards.begin(samples_of(order), plan.config.batch_size, plan.first_step)
        for number, ids in enumerate(steps):
            self.shards.at(plan.first_step + number)
            with self._timer.time("read_s"):
                if number + 1 < len(steps):
                    self.shards.expect(samples_of(steps[number + 1]))
                batch = self.read(plan, ids, self._buffers[number % BUFFERS], check=check)
                self._buffers[number % BUFFERS] = batch.buffer
            self._timer.add(bytes_read=sum(map(len, batch.parts)))
            yield batch

    def read(
        self, plan: EpochPlan, wanted: Ids, buffer: Bytes | None = None, *, check: bool = True
    ) -> EncodedBatch:
        """These samples, in the buffer given if they fit, else in a new one. check: with stand-ins
        for those that cannot be decoded, as far as their bytes say; DALI 2.4 may die of such
        JPEGs."""
        codec, side = plan.manifest.codec, plan.manifest.image_size
        while True:
            ids = self._quarantine.replace(plan.epoch, wanted)
            parts, buffer = self.shards.read(ids, buffer)
            bad = invalid_rows(parts, codec, side) if check else []
            if not self.reject(wanted, ids, bad):
                draws, extents = plan.draws(wanted)
                return EncodedBatch(wanted, ids, draws, extents, parts, buffer)

    def reject(self, wanted: Ids, ids: Ids, rows: list[int]) -> bool:
        """Hands rows whose sample cannot be decoded to the quarantine; whether there are any.
        GratisError where bad samples are not allowed."""
        for row in rows:
            sample = int(ids[row])
            self._quarantine.add(int(wanted[row]), sample, self.shards.describe(sample))
        return bool(rows)

    def close(self) -> None:
        """Frees the buffers."""
        self._buffers = [None] * BUFFERS


def invalid_rows(parts: list[Bytes], codec: str, side: int) -> list[int]:
    """Those of the samples that no decoder gets."""
    return [row for row, part in enumerate(parts) if not is_decodable(part, codec, side)]
