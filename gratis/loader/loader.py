"""Contract 2: the loader. Every sample exactly once an epoch, the same on any number of ranks,
resumable anywhere.

with Loader("shards", "train", LoaderConfig(batch_size=256), rank=0, world_size=1) as loader:
    for epoch in range(90):
        for images, labels, ids in loader: ...      # exactly len(loader) batches
"""

from __future__ import annotations

import os
import weakref
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray

from gratis.choices import Place
from gratis.dataset import ImageClass, Manifest, Stats
from gratis.errors import GratisError
from gratis.events import LoaderCounters
from gratis.loader import plan
from gratis.loader.batch import Batch
from gratis.loader.config import LoaderConfig, whole
from gratis.loader.decoding.decoded_cache import Decoded, choose
from gratis.loader.decoding.gpu import device_of
from gratis.loader.epoch_coverage import Coverage, coverage
from gratis.loader.pipeline.prefetch import Producer
from gratis.loader.pipeline.work import Job, Meter
from gratis.loader.reading.metadata import open_dataset
from gratis.loader.reading.quarantine import Quarantine
from gratis.loader.reading.remote import Remote, cache_folder, fetch_dataset, is_remote

CPU = torch.device("cpu")
EPOCHS = 1 << 32  # a word of the generator's counter


class Loader:
    """Batches of one split, for one rank.

    Each `iter()` begins the next epoch at its step 0, and ends an epoch that is still under way;
    only after `load_state_dict` does the next one begin where the state says. After a whole epoch
    the decoder, its threads, the buffers and open files wait for the next; `close`, dropping the
    loader, or dropping the iterator inside an epoch (break, exception) ends and frees all of them.
    A loader is for one thread. It may cross a fork while no epoch is under way (what waits is
    closed before, and made again on demand); a spawned process makes its own from the
    configuration, which can be pickled.

    root                a folder, or an address (https://, s3://, gs://: what fsspec reads), whose
    shards then come
                        through a cache on this machine (`LoaderConfig.cache`)
    split               one that the manifest names: "train", mostly "val" too rank, world_size
    this rank gets rows [rank * b, (rank + 1) * b) of each global batch, b = batch_size / world_size
    device              where images and labels come to lie: the CPU, or a CUDA device
    local_world_size    how many of the ranks run on this machine and so share its cores; None: all
    of them

    keeps: where decoded images are kept: what `LoaderConfig.decoded` came to.

    GratisError: a root or config of another type, no dataset, no such split, a damaged file, a crop
    larger than the images, a batch that the ranks cannot share; during iteration, a shard that is
    not as published or a sample that cannot be decoded."""

    def __init__(
        self,
        root: Path | str,
        split: str,
        config: LoaderConfig,
        *,
        rank: int = 0,
        world_size: int = 1,
        device: torch.device | str = CPU,
        local_world_size: int | None = None,
    ) -> None:
        if not isinstance(root, (str, os.PathLike)):
            raise GratisError(f"root is {root!r}; it must be a folder or an address")
        if root == "":  # would be the folder that one happens to stand in
            raise GratisError("root is empty; name the folder or address of a dataset")
        if not isinstance(config, LoaderConfig):
            raise GratisError(
                f"config is {config!r}; it must be a LoaderConfig, as LoaderConfig(batch_size=256)"
            )
        rank, world_size = whole("rank", rank), whole("world_size", world_size)
        if world_size < 1:
            raise GratisError(f"world_size is {world_size}; it must be at least 1")
        if not 0 <= rank < world_size:
            raise GratisError(
                f"rank is {rank}; with world_size {world_size} it must be from 0 to "
                f"{world_size - 1}"
            )
        if config.batch_size % world_size:
            raise GratisError(
                f"batch_size {config.batch_size} cannot be shared by {world_size} ranks; choose a "
                f"multiple"
            )
        local = (
            world_size if local_world_size is None else whole("local_world_size", local_world_size)
        )
        if not 1 <= local <= world_size:
            raise GratisError(
                f"local_world_size is {local}; with world_size {world_size} it must be 1 to "
                f"{world_size}"
            )
        self.split, self.config, self._local = split, config, local
        self._remote = Remote(str(root)) if is_remote(root) else None
        self.root = (
            fetch_dataset(self._remote, cache_folder(config.cache), split)
            if self._remote
            else Path(root)
        )
        self.rank, self.world_size, self.device = rank, world_size, device_of(device)
        self.manifest: Manifest
        self.stats: Stats
        fetched = self._remote is not None
        self.manifest, self.stats, self._index = open_dataset(
            self.root, split, root, fetched=fetched
        )
        # shards are opened later, from wherever the process stands then
        self.root = self.root.absolute()
        if config.crop > self.manifest.image_size:
            raise GratisError(
                f"crop is {config.crop}; the images of {root} have {self.manifest.image_size} px "
                f"a side"
            )
        samples = self.num_samples
        if not len(self):
            raise GratisError(
                f"split {split} of {root} has {samples} samples, less than one batch of "
                f"{config.batch_size}"
            )
        self._hash = self.manifest.hash
        self._meter = Meter()
        self._begin = (0, 0)  # epoch and step at which the next iter() begins
        self._at = (0, 0)  # epoch begun last, and batches of it that were taken
        self._quarantine = Quarantine(
            config.seed, len(self._index.label), allowed=config.bad_samples == "quarantine"
        )
        self._decoded: Decoded | None = None  # outlives an epoch that is broken off
        self.keeps: Place = choose(config, self.manifest, samples, self.device, local_world=local)
        self._producer: Producer | None = None
        self._running: Callable[[], EpochIterator | None] = lambda: None

    def __len__(self) -> int:
        """Batches in an epoch, the same on every rank."""
        return plan.num_steps(self.num_samples, self.config.batch_size, self.config.remainder)

    @property
    def num_samples(self) -> int:
        """Of the split, over all ranks."""
        return len(self._index.label)

    @property
    def classes(self) -> tuple[ImageClass, ...]:
        """Of the dataset; a label is a position here."""
        return self.manifest.classes

    @property
    def epoch(self) -> int:
        """The epoch that is under way, or that was broken off; after a whole one, the next."""
        return self._state()[0]

    def __iter__(self) -> EpochIterator:
        epoch, step = self._begin
        self._begin, self._at = (epoch + 1, 0), (epoch, step)
        job = self.job(epoch, step)
        if self._producer and (running := self._running()):
            running.leave()
        if self._producer is None or self._producer.closed:
            if self._decoded is None and self.keeps != "none":
                on = self.device if self.keeps == "device" else None
                self._decoded = Decoded(self.num_samples, self.manifest.image_size, on)
            self._producer = Producer(
                job, self._meter, self.threads, self._quarantine, self._decoded
            )
        self._quarantine.begin()
        iterator = EpochIterator(self, self._producer, self._producer.begin(job))
        self._running = weakref.ref(iterator)
        return iterator

    @property
    def threads(self) -> int:
        """Of the decoder: as configured, or this process's share of the cores that it may use."""
        return self.config.threads or max(1, len(os.sched_getaffinity(0)) // self._local)

    def job(self, epoch: int, step: int = 0) -> Job:
        """This rank's work in an epoch, from a step on: a plain value."""
        return Job(
            root=self.root,
            remote=self._remote,
            split=self.split,
            manifest=self.manifest,
            index=self._index,
            stats=self.stats,
            config=self.config,
            rank=self.rank,
            world_size=self.world_size,
            device=self.device,
            epoch=epoch,
            first_step=step,
        )

    def state_dict(self) -> dict[str, Any]:
        """Where the loader stands by the batches that were taken, as integers and strings; equal on
        every rank."""
        epoch, step = self._state()
        return {"epoch": epoch, "step": step} | self._identity()

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """The next `iter()` continues there, with any number of ranks. GratisError if the state is
        of other batches."""
        if not isinstance(state, Mapping):
            raise GratisError(
                f"the saved loader state is {state!r}; it must be what state_dict() gave"
            )
        for name, value in self._identity().items():
            if state.get(name) != value:
                raise GratisError(
                    f"the saved loader state has {name} {state.get(name)!r}, this loader {value!r}"
                )
        epoch, step = (
            whole(f"the saved loader state's {name}", state.get(name)) for name in ("epoch", "step")
        )
        if not 0 <= epoch < EPOCHS or not 0 <= step <= len(self):
            raise GratisError(
                f"the saved loader state is at epoch {epoch}, step {step}, of {len(self)} steps "
                f"an epoch"
            )
        self.close()
        self._begin = self._at = (epoch, step) if step < len(self) else (epoch + 1, 0)

    def dropped(self, epoch: int) -> NDArray[np.int64]:
        """Ids that `remainder="drop"` leaves out of an epoch."""
        return self.job(epoch).order()[len(self) * self.config.batch_size :]

    def coverage(self, ids: ArrayLike, epoch: int | None = None) -> Coverage:
        """The receipt of an epoch (the one begun last) from the ids of all ranks' batches, padding
        included."""
        begun = self._at[0] if epoch is None else epoch
        return coverage(np.asarray(ids, np.int64), self.num_samples, self.dropped(begun))

    def take_counters(self) -> LoaderCounters:
        """What the loader did since they were last taken. For any thread."""
        depth = self._producer.depth if self._producer else 0
        return self._meter.take(depth=depth, capacity=self.config.prefetch)

    def take_warnings(self) -> list[str]:
        """One line for each sample that was quarantined since they were last taken. For any
        thread."""
        return self._quarantine.take_warnings()

    @property
    def quarantined(self) -> Mapping[int, str]:
        """Samples that could not be decoded so far, by id, with shard, key and offset; of this
        rank."""
        return dict(self._quarantine.found)

    def close(self) -> None:
        """Ends the epoch that is under way, if any, and frees all there is. The loader stays
        usable."""
        if self._producer:
            self._producer.close()
        self._producer = self._decoded = None

    def __enter__(self) -> Loader:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def taken(self, samples: int) -> None:
        """Counts one batch as taken; for the iterator."""
        self._at = (self._at[0], self._at[1] + 1)
        self._meter.add(images=samples, batches=1)

    def _state(self) -> tuple[int, int]:
        epoch, step = self._at
        return (epoch, step) if step < len(self) else (epoch + 1, 0)

    def _identity(self) -> dict[str, Any]:
        config = self.config
        return {
            "dataset": self._hash,
            "split": self.split,
            "seed": config.seed,
            "order": config.order_name,
            "batch_size": config.batch_size,
        }


class EpochIterator:
    """The batches of one epoch that are still to come. Dropped before the last, it closes the
    producer."""

    def __init__(self, loader: Loader, producer: Producer, ticket: int) -> None:
        self._loader, self._producer, self._ticket, self._over = loader, producer, ticket, False
        self.leave = weakref.finalize(self, producer.leave, ticket)

    def __iter__(self) -> EpochIterator:
        return self

    def __next__(self) -> Batch:
        if self._over:
            raise StopIteration
        ready = self._producer.take(self._ticket)
        if ready is None:
            self._over = True
            raise StopIteration
        if ready.copied is not None:
            stream = torch.cuda.current_stream(self._loader.device)
            stream.wait_event(ready.copied)
            for tensor in (ready.batch.images, ready.batch.labels):
                tensor.record_stream(stream)
        self._loader.taken(ready.samples)
        return ready.batch
