"""What one rank loads in one epoch: which samples in which step, and how each is augmented."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import torch

from gratis.dataset import Index, Manifest, Stats
from gratis.loader.config import LoaderConfig
from gratis.loader.plan import (
    PAD,
    Draws,
    Ids,
    num_steps,
    order,
    order_parts,
    rows,
    short_rows,
    window_order,
    window_parts,
)
from gratis.loader.views.draw_views import draw_views


@dataclass(frozen=True, kw_only=True)
class EpochPlan:
    """One rank's share of what is left of one epoch. Holds no file, thread or device memory."""

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
        """Of a batch, on this rank; a short last one has fewer."""
        return self.config.batch_size // self.world_size

    @property
    def steps(self) -> range:
        """The steps that are left of the epoch."""
        count = num_steps(len(self.index.label), self.config.batch_size, self.config.remainder)
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
            return window_order(config.seed, self.epoch, self.index.shard, config.window)
        return order(config.seed, self.epoch, len(self.index.label))

    def _order_parts(self, first: int) -> Iterator[Ids]:
        """`order` from a place on, in parts."""
        config, count = self.config, len(self.index.label)
        if not config.augment:
            return iter([np.arange(first, count)])
        if config.order == "window":
            return window_parts(config.seed, self.epoch, self.index.shard, config.window, first)
        return order_parts(config.seed, self.epoch, count, first)

    def ids_by_step(self) -> Iterator[Ids]:
        """This rank's samples in each of the steps, padding left out; no entry for a step in which
        it has none (the last one at most)."""
        config, share = self.config, short_rows if self.config.remainder == "short" else rows
        size = config.batch_size
        parts, ahead = self._order_parts(self.first_step * size), np.empty(0, np.int64)
        for _ in self.steps:
            while len(ahead) < size and (part := next(parts, None)) is not None:
                ahead = np.concatenate([ahead, part]) if len(ahead) else part
            ids = share(ahead, 0, size, self.rank, self.world_size)
            if len(real := ids[ids != PAD]):
                yield real
            ahead = ahead[size:]

    def padding(self, samples: int) -> int:
        """Rows that a batch of so many samples is filled up with."""
        return self.rows - samples if self.config.remainder == "pad" else 0

    @cached_property
    def _places(self) -> Ids:
        """Where in this epoch's order each sample is, int64 [N]: the inverse of `order`."""
        order = self.order()
        places = np.empty_like(order)
        places[order] = np.arange(len(order))
        return places

    def draws(self, ids: Ids) -> tuple[Draws, Ids | None]:
        """The views of these samples; see `draw_views`."""
        config = self.config
        chunks = self._places[ids] // config.crop_chunk if config.crop_chunk > 1 else None
        return draw_views(config, self.manifest.image_size, self.epoch, ids, chunks)
