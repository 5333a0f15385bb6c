"""What one rank loads in one epoch: which samples in which step, and how each is augmented."""

from __future__ import annotations

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
    of_views,
    order,
    repeated,
    rows,
    samples_of,
    short_rows,
    window_order,
)
from gratis.loader.views.draw_mixing import Mix, choices, draw_mix
from gratis.loader.views.draw_operations import Program, draw_program
from gratis.loader.views.draw_views import draw_views


@dataclass(frozen=True, kw_only=True)
class EpochPlan:
    """One rank's share of what is left of one epoch. Holds no file, thread or device memory.

    config: as it is in this epoch (`LoaderConfig.at_epoch`)."""

    manifest: Manifest
    index: Index
    stats: Stats
    config: LoaderConfig
    rank: int
    world_size: int
    device: torch.device
    epoch: int
    first_step: int
    soft_labels: bool = False  # LoaderConfig.soft_labels, which is about all epochs

    @property
    def rows(self) -> int:
        """Of a batch, on this rank; a short last one has fewer."""
        return self.config.batch_size // self.world_size

    @property
    def decoded_rows(self) -> int:
        """Of a batch, at most: with the sample of another rank that mixing needs."""
        return self.rows + bool(self.config.mix and self.world_size > 1)

    @property
    def steps(self) -> range:
        """The steps that are left of the epoch."""
        config, count = self.config, len(self.index.label) * self.config.repeats
        return range(self.first_step, num_steps(count, config.batch_size, config.remainder))

    @property
    def positions(self) -> int:
        """Of a crop, along each axis."""
        return self.manifest.image_size - self.config.crop + 1

    def order(self) -> Ids:
        """Of all samples in this epoch, as draw ids int64 [N * repeats]."""
        config = self.config
        if not config.augment:
            return np.arange(len(self.index.label))
        if config.order == "window":
            one = window_order(config.seed, self.epoch, self.index.shard, config.window)
        else:
            one = order(config.seed, self.epoch, len(self.index.label))
        return one if config.repeats == 1 else repeated(one, config.repeats, config.batch_size)

    def ids_by_step(self, order: Ids) -> list[Ids]:
        """This rank's samples in each of the steps, as draw ids, padding left out; no entry for a
        step in which it has none (the last one at most). Where the batch is mixed with other ranks'
        samples (`partners`) the one before its first follows at the end."""
        config, share = self.config, short_rows if self.config.remainder == "short" else rows
        steps, found = self.steps, []
        mixed = choices(config, self.epoch, np.array(steps)) >= 0
        for step in steps:
            own = share(order, step, config.batch_size, self.rank, self.world_size)
            if not len(own := own[own != PAD]):
                continue
            batch = order[step * config.batch_size : (step + 1) * config.batch_size]
            if mixed[step - steps.start] and len(own) < len(batch):
                before = int(np.flatnonzero(batch == own[0])[0]) - 1  # -1: the last of the batch
                own = np.append(own, batch[before])
            found.append(own)
        return found

    def mix(self, step: int) -> Mix | None:
        """How the batch of a step is mixed, the same on every rank; None: it is not."""
        return draw_mix(self.config, self.epoch, step) if self.config.mix else None

    def partners(self, step: int, mix: Mix | None) -> int:
        """How many samples of another rank follow this rank's own in a step: 1 where the batch is
        mixed and not all of it is its own, else 0."""
        count = len(self.index.label) * self.config.repeats
        real = min(self.config.batch_size, count - step * self.config.batch_size)
        if mix is None or self.world_size == 1:
            return 0
        return int(self.rank > 0 or self._first_share(real) < real)

    def _first_share(self, real: int) -> int:
        """Of a batch of so many samples those of rank 0."""
        short = self.config.remainder == "short"
        return -(-real // self.world_size) if short else min(real, self.rows)

    def padding(self, samples: int) -> int:
        """Rows that a batch of so many samples is filled up with."""
        return self.rows - samples if self.config.remainder == "pad" else 0

    @cached_property
    def _places(self) -> Ids:
        """Where in this epoch's order each sample is, int64 [N]: the inverse of `order`."""
        order = self.order()
        places = np.empty_like(order)
        places[order] = np.arange(len(order))  # of chunks of crops, which are for single samples
        return places

    def draws(self, ids: Ids) -> tuple[Draws, Ids | None]:
        """The views of these samples; see `draw_views`."""
        config = self.config
        chunks = (
            self._places[samples_of(ids)] // config.crop_chunk if config.crop_chunk > 1 else None
        )
        return draw_views(config, self.manifest.image_size, self.epoch, ids, chunks)

    def program(self, ids: Ids) -> Program | None:
        """What the configuration's operations do to each view of these samples (draw ids); None
        without operations."""
        config = self.config
        if not config.operations:
            return None
        crop = config.crop
        of_each = of_views(ids, config.views)
        return draw_program(config.operations, config.seed, self.epoch, of_each, crop, crop)
