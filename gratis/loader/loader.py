"""The loader: every sample exactly once an epoch, the same on any number of ranks, resumable
anywhere.

with Loader("shards", "train", LoaderConfig(batch_size=256), rank=0, world_size=1) as loader:
    for epoch in range(90):
        for images, labels, ids in loader: ...      # exactly len(loader) batches
"""

from __future__ import annotations

import os
import weakref
from collections.abc import Callable, Mapping
from pathlib import Path
from threading import RLock
from typing import Any, NoReturn

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray
from torch.utils.data import get_worker_info

from gratis.choices import DecodedPlace, Engine
from gratis.dataset import ImageClass
from gratis.errors import GratisError
from gratis.events import LoaderCounters
from gratis.loader.batch import Batch
from gratis.loader.config import LoaderConfig, shown, whole
from gratis.loader.decoding.decoded_cache import DecodedCache, choose_place
from gratis.loader.decoding.gpu import device_of
from gratis.loader.decoding.native import choose_engine
from gratis.loader.epoch.coverage import Coverage, coverage
from gratis.loader.epoch.epoch_plan import EpochPlan
from gratis.loader.epoch.stage_timer import StageTimer
from gratis.loader.pipeline.batch_pipeline import BatchPipeline
from gratis.loader.pipeline.prefetch import Prefetcher
from gratis.loader.plan import num_steps, samples_of
from gratis.loader.reading.metadata import check_images, open_dataset
from gratis.loader.reading.quarantine import Quarantine
from gratis.loader.reading.remote import Remote, cache_folder, fetch_dataset, is_remote
from gratis.loader.reading.shard_cache import ShardCache
from gratis.loader.reading.shard_reader import ShardReader

CPU = torch.device("cpu")
SAVED = "the saved loader state"
EPOCHS = 1 << 32  # a word of the generator's counter


class Loader:
    """Batches of one split, for one rank.

    An epoch begins when its first batch is taken: `iter()` alone reads nothing and changes nothing,
    however often. It is epoch 0 first, then the next each time, also after an epoch that was broken
    off, were it after one batch; `set_epoch(n)` makes the next one n. An epoch that begins ends the
    one that is still under way. `state_dict()` is the place after the batches that were taken;
    after `load_state_dict` the next epoch to begin does so there. After the last batch it is the
    beginning of the next epoch (as accelerate has it, and torchdata's StatefulDataLoader once the
    loop has ended): no empty epoch comes of it. So count on from `epoch` when resuming.

    After a whole epoch the decoder, its threads, the buffers and open files wait for the next;
    `close`, dropping the loader, or dropping the iterator inside an epoch (break, exception) ends
    and frees all of them. The index stays mapped from its file while there is a loader: the
    processes of a machine share it.
    A loader is for one thread. It may cross a fork while no epoch is under way (what waits is
    closed before, and made again on demand); a spawned process makes its own from the
    configuration, which can be pickled.

    root                a folder, or an address (https://, s3://, gs://: what fsspec reads), whose
                        shards then come through a cache on this machine (`LoaderConfig.cache`)
    split               one that the manifest names: "train", mostly "val" too
    rank, world_size    this rank gets rows [rank * b, (rank + 1) * b) of each global batch,
                        b = batch_size / world_size; of a short last one about as large a share
    device              where images and labels come to lie: the CPU, or a CUDA device
    local_world_size    how many of the ranks run on this machine and so share its cores; None: all

    decoded_place: where decoded images are kept, "device", "host" or "none": what
    `LoaderConfig.decoded` came to. engine: who decodes JPEGs, "native" or "dali": what
    `LoaderConfig.engine` came to.

    GratisError: a root or config of another type, no dataset, no such split, a damaged file, a crop
    larger than the images, a batch that the ranks cannot share; during iteration, a shard that is
    not as published or a sample that cannot be decoded. `gratis.errors.Outage`, one of them: the
    server was away for longer than `LoaderConfig.outage_s`; meanwhile the logger gratis.network
    warns."""

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
            raise GratisError(f"root is {shown(root)}; it must be a folder or an address")
        if root == "":  # would be the folder that one happens to stand in
            raise GratisError("root is empty; name the folder or address of a dataset")
        if not isinstance(config, LoaderConfig):
            kind = "a LoaderConfig, as LoaderConfig(batch_size=256)"
            raise GratisError(f"config is {shown(config)}; it must be {kind}")
        self.rank, self.world_size, self._local = _ranks(
            rank, world_size, local_world_size, config.batch_size
        )
        self.split, self.config = split, config
        self._remote = Remote(str(root), config.network) if is_remote(root) else None
        folder = Path(root)
        if self._remote:
            folder = fetch_dataset(self._remote, cache_folder(config.cache), split)
        self.device = device_of(device)
        fetched = self._remote is not None
        self.manifest, self.stats, self._index = open_dataset(folder, split, root, fetched=fetched)
        # shards are opened later, from wherever the process stands then
        self.root = folder.absolute()
        for stage in config.stages:
            check_images(stage, self.manifest, root)
        if config.soft_labels and (len(self.classes) == 0 or (self._index.label < 0).any()):
            raise GratisError(f"mix is for images with labels; those of {root} have none")
        samples = self.num_samples
        self._check_last_batch(f"split {split} of {root}")
        self._hash = self.manifest.hash
        self._timer = StageTimer()
        self._begin = (0, 0)  # epoch and step at which the next one begins
        self._at = (0, 0)  # epoch begun last, and batches of it that were taken
        quarantine = config.bad_samples == "quarantine"
        self._quarantine = Quarantine(config.seed, samples, allowed=quarantine)
        self._decoded: DecodedCache | None = None  # outlives an epoch that is broken off
        self.decoded_place: DecodedPlace = choose_place(
            config, self.manifest, self._index, self.device, local_world=self._local
        )
        kept = self.decoded_place != "none"
        self.engine: Engine = choose_engine(config, self.manifest, self.device, decoded=kept)
        self._process = os.getpid()  # that made it
        self._prefetcher: Prefetcher | None = None
        self._running: Callable[[], EpochIterator | None] = lambda: None

    def _check_last_batch(self, split: str) -> None:
        size = self.config.batch_size
        if not len(self):
            less = f"{self._epoch_rows} samples, less than one batch of {size}"
            raise GratisError(f"{split} has {less}; choose a smaller one, or remainder='short'")
        last = self._epoch_rows % size
        if self.config.remainder == "short" and 0 < last < self.world_size:
            few = f"{last} samples in its last batch of {size}, fewer than {self.world_size} ranks"
            advice = "remainder='drop' (training), remainder='pad', or another batch_size"
            raise GratisError(f"{split} has {few}; choose {advice}")

    def _check_worker(self) -> None:
        """Of several workers of torch's DataLoader, each would load all that this rank does."""
        worker = get_worker_info()
        if worker is None or worker.num_workers == 1:
            return
        if self._process != os.getpid() or self.world_size < worker.num_workers:
            each = f"each of {worker.num_workers} DataLoader workers would load every sample"
            raise GratisError(f"{each}; use num_workers=0, as the loader has threads of its own")

    def __len__(self) -> int:
        """Batches in an epoch, the same on every rank."""
        return num_steps(self._epoch_rows, self.config.batch_size, self.config.remainder)

    @property
    def _epoch_rows(self) -> int:
        """Samples of an epoch, over all ranks, as often as they come."""
        return self.num_samples * self.config.repeats

    @property
    def num_samples(self) -> int:
        """Of the split, over all ranks."""
        return len(self._index.label)

    @property
    def classes(self) -> tuple[ImageClass, ...]:
        """Of the dataset; a label is a position here. () where no sample has one: all labels are
        -1."""
        return self.manifest.classes

    @property
    def epoch(self) -> int:
        """The epoch that is under way, or that was broken off; after a whole one, the next."""
        return self._state()[0]

    def __iter__(self) -> EpochIterator:
        return EpochIterator(self)

    def begin(self, iterator: EpochIterator) -> tuple[Prefetcher, int]:
        """Begins the next epoch; for the iterator that takes its first batch."""
        self._check_worker()
        epoch, step = self._begin
        plan = self.epoch_plan(epoch, step)
        if self._prefetcher and (running := self._running()):
            running.leave()
        if self._prefetcher is None or self._prefetcher.closed:
            self._prefetcher = self._make_prefetcher(plan)
        self._quarantine.begin()
        self._begin, self._at = (epoch + 1, 0), (epoch, step)
        self._running = weakref.ref(iterator)
        return self._prefetcher, self._prefetcher.begin(plan)

    def set_epoch(self, epoch: int) -> None:
        """The next epoch to begin is this one, from its first batch; but if a state loaded from
        inside this very epoch still waits, it begins there: training loops call this before every
        epoch, after resuming too. An epoch under way is not changed. GratisError for what is no
        epoch."""
        number = whole("epoch", epoch)
        if not 0 <= number < EPOCHS:
            raise GratisError(f"epoch is {number}; it must be at least 0 and below 2**32")
        if number != self._begin[0]:
            self._begin = (number, 0)
        if not self._under_way:
            self._at = self._begin

    @property
    def threads(self) -> int:
        """Of the decoder: as configured, or this process's share of the cores that it may use."""
        return self.config.threads or max(1, len(os.sched_getaffinity(0)) // self._local)

    def epoch_plan(self, epoch: int, step: int = 0) -> EpochPlan:
        """What this rank loads in an epoch, from a step on: a plain value."""
        return EpochPlan(
            manifest=self.manifest,
            index=self._index,
            stats=self.stats,
            config=self.config.at_epoch(epoch),
            rank=self.rank,
            world_size=self.world_size,
            device=self.device,
            epoch=epoch,
            first_step=step,
            soft_labels=self.config.soft_labels,
        )

    def shard_reader(self) -> ShardReader:
        """Opens the split's shards, on this machine or on a server; for who closes it."""
        split, cache = self.manifest.splits[self.split], None
        if self._remote:
            limit = int(self.config.cache_gb * 1e9)
            cache = ShardCache(self._remote, self.root, split.shards, limit)
        return ShardReader(self.root, split, self._index, cache)

    def state_dict(self) -> dict[str, Any]:
        """Where the loader stands by the batches that were taken, as integers and strings; equal on
        every rank."""
        epoch, step = self._state()
        return {"epoch": epoch, "step": step} | self._identity()

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """The next epoch to begin continues there, with any number of ranks. GratisError if the
        state is of other batches."""
        if not isinstance(state, Mapping):
            raise GratisError(f"{SAVED} is {shown(state)}; it must be what state_dict() gave")
        for name, value in self._identity().items():
            if (saved := state.get(name)) != value:
                raise GratisError(f"{SAVED} has {name} {shown(saved)}, this loader {value!r}")
        epoch, step = (whole(f"{SAVED}'s {name}", state.get(name)) for name in ("epoch", "step"))
        if not 0 <= epoch < EPOCHS or not 0 <= step <= len(self):
            place = f"epoch {epoch}, step {step}, of {len(self)} steps an epoch"
            raise GratisError(f"{SAVED} is at {place}")
        self.close()
        self._begin = self._at = (epoch, step) if step < len(self) else (epoch + 1, 0)

    def dropped(self, epoch: int) -> NDArray[np.int64]:
        """Ids that `remainder="drop"` leaves out of an epoch, as often as it does."""
        return samples_of(self.epoch_plan(epoch).order()[len(self) * self.config.batch_size :])

    def coverage(self, ids: ArrayLike, epoch: int | None = None) -> Coverage:
        """Whether an epoch (the one begun last) saw every sample once (or `repeats` times), from
        the ids of all ranks' batches, padding included."""
        begun, repeats = self._at[0] if epoch is None else epoch, self.config.repeats
        every = np.asarray(ids, np.int64)
        return coverage(every, self.num_samples, self.dropped(begun), repeats)

    def take_counters(self) -> LoaderCounters:
        """What the loader did since they were last taken. For any thread."""
        depth = self._prefetcher.depth if self._prefetcher else 0
        return self._timer.take(depth=depth, capacity=self.config.prefetch)

    def take_warnings(self) -> list[str]:
        """A message for each sample that was quarantined since they were last taken. For any
        thread."""
        return self._quarantine.take_warnings()

    @property
    def quarantined(self) -> Mapping[int, str]:
        """Samples that could not be decoded so far, by id, with shard, key and offset; of this
        rank."""
        return dict(self._quarantine.bad)

    def close(self) -> None:
        """Ends the epoch that is under way, if any, and frees all there is. The loader stays
        usable."""
        if self._prefetcher:
            self._prefetcher.close()
        self._prefetcher = self._decoded = None

    def __enter__(self) -> Loader:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def __reduce__(self) -> NoReturn:
        """GratisError: what pickle and copy get, for another process or this one."""
        raise GratisError(
            "a Loader cannot be pickled or copied, as a copy would load every sample again: hand "
            f"over root, split ({self.split!r}) and config, and call Loader(root, split, config) "
            "there with a rank of its own; state_dict() says where it stands"
        )

    def taken(self, samples: int) -> None:
        """Counts one batch as taken; for the iterator."""
        self._at = (self._at[0], self._at[1] + 1)
        self._timer.add(images=samples, batches=1)

    def _make_prefetcher(self, plan: EpochPlan) -> Prefetcher:
        if self._decoded is None and self.decoded_place != "none":
            device = self.device if self.decoded_place == "device" else None
            square = self.manifest.shape == "square"
            sizes = self._index.sizes(self.manifest)
            self._decoded = DecodedCache(*sizes, device, square=square)
        shards, timer, quarantine = self.shard_reader(), self._timer, self._quarantine
        pipeline = BatchPipeline(
            plan,
            shards,
            timer,
            quarantine,
            threads=self.threads,
            decoded=self._decoded,
            engine=self.engine,
        )
        return Prefetcher(pipeline, timer, self.config.prefetch)

    @property
    def _under_way(self) -> bool:
        """Batches of an epoch are still to be taken, by somebody who can."""
        going = self._prefetcher is not None and self._prefetcher.under_way
        return going and self._running() is not None

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


def _ranks(
    rank: object, world_size: object, local_world_size: object, batch_size: int
) -> tuple[int, int, int]:
    """rank, world_size and local_world_size as whole numbers that fit each other, and the batch."""
    rank, world = whole("rank", rank), whole("world_size", world_size)
    if world < 1:
        raise GratisError(f"world_size is {world}; it must be at least 1")
    if not 0 <= rank < world:
        allowed = f"from 0 to {world - 1}"
        raise GratisError(f"rank is {rank}; with world_size {world} it must be {allowed}")
    if batch_size % world:
        shared = f"cannot be shared by {world} ranks"
        raise GratisError(f"batch_size {batch_size} {shared}; choose a multiple")
    local = world if local_world_size is None else whole("local_world_size", local_world_size)
    if not 1 <= local <= world:
        allowed = f"with world_size {world} it must be 1 to {world}"
        raise GratisError(f"local_world_size is {local}; {allowed}")
    return rank, world, local


class EpochIterator:
    """The batches of one epoch that are still to come; it begins when the first is taken. Dropped
    between first and last, it closes the prefetcher."""

    def __init__(self, loader: Loader) -> None:
        self._loader = loader
        self._prefetcher: Prefetcher | None = None
        self._ticket = 0
        self._over = False
        self._begins = RLock()  # threads may take turns: one of them begins
        self._finalizer: Callable[[], object] = lambda: None

    def __iter__(self) -> EpochIterator:
        return self

    def __next__(self) -> Batch:
        if self._over:
            raise StopIteration
        with self._begins:
            if self._prefetcher is None:
                self._prefetcher, self._ticket = self._loader.begin(self)
                self._finalizer = weakref.finalize(self, self._prefetcher.leave, self._ticket)
        ready = self._prefetcher.take(self._ticket)
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

    def leave(self) -> None:
        """Ends its epoch, of which somebody else begins another."""
        self._finalizer()
