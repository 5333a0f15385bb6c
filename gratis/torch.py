"""The loader as PyTorch's programs know one: pairs, in place of torch.utils.data.DataLoader.

loader = DataLoader(ShardDataset("shards", "train"), batch_size=256, device="cuda:0")
for images, labels in loader: ...
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch.utils.data import IterableDataset, default_collate, get_worker_info

from gratis.errors import GratisError
from gratis.loader import Loader, LoaderConfig

__all__ = ["DataLoader", "LoaderConfig", "ShardDataset"]
OF_WORKERS = {"prefetch_factor", "persistent_workers", "timeout", "worker_init_fn", "in_order"}


class ShardDataset:
    """One split: what `DataLoader` reads, and what programs ask of `loader.dataset`; len: samples.
    It is its loaders' sampler too: `set_epoch` says which epoch the next iteration of each of them
    begins; without it that is the one after the last.

    root, split     as of `gratis.Loader`
    config          None: LoaderConfig.imagenet() for "train", .evaluation() for another split; of
                    images stored with less than 224 px give them a `crop`
    classes         names of the class folders (ImageNet's wnids), sorted; a label is a position
    class_to_idx    from name to label"""

    def __init__(self, root: Path | str, split: str, config: LoaderConfig | None = None) -> None:
        if config is None:
            config = LoaderConfig.imagenet() if split == "train" else LoaderConfig.evaluation()
        any_batch = replace(config, batch_size=1) if isinstance(config, LoaderConfig) else config
        loader = Loader(root, split, any_batch)
        self.root, self.split, self.config, self._len = root, split, config, loader.num_samples
        self.classes = [each.wnid for each in loader.classes]
        self.class_to_idx = {name: label for label, name in enumerate(self.classes)}
        self.next_epoch, self.times_set = 0, 0

    def __len__(self) -> int:
        return self._len

    def set_epoch(self, epoch: int) -> None:
        self.next_epoch, self.times_set = epoch, self.times_set + 1

    def __getitem__(self, index: object) -> Any:
        raise GratisError("a ShardDataset is read in batches, by gratis.torch.DataLoader")


class DataLoader(IterableDataset[Any]):
    """Pairs (images, labels), the rows of one rank, on `device`; len: batches of an epoch.
    What wants torch's own class takes torch.utils.data.DataLoader(loader, batch_size=None).

    batch_size          rows of a rank, as torch's; None: config.batch_size / world_size
    shuffle, sampler    the order is the config's; only that and the dataset itself are taken
    drop_last           False: a short last batch; None: as config.remainder says
    collate_fn          gets a batch as a list of (image, label), for what `config.mix` cannot do;
                        with that, labels are float32 [b,classes], as CrossEntropyLoss takes them
    rank, world_size    None: torch.distributed's, else RANK and WORLD_SIZE in the environment
    num_workers, pin_memory, ...    for programs that give or read them; without effect
    loader              the `gratis.Loader`, whose batches have ids too; errors are its own"""

    def __init__(
        self,
        dataset: ShardDataset,
        batch_size: int | None = None,
        shuffle: bool | None = None,
        sampler: ShardDataset | None = None,
        *,
        num_workers: int = 0,
        collate_fn: Callable[[list[Any]], Any] | None = None,
        pin_memory: bool = False,
        drop_last: bool | None = None,
        device: torch.device | str = "cpu",
        rank: int | None = None,
        world_size: int | None = None,
        **workers: Any,
    ) -> None:
        if unknown := workers.keys() - OF_WORKERS:
            raise TypeError(f"DataLoader takes no {', '.join(sorted(unknown))}")
        if not isinstance(dataset, ShardDataset):
            raise GratisError(f"dataset is {dataset!r}; it must be a gratis.torch.ShardDataset")
        config, here = dataset.config, _ranks()
        if sampler not in (None, dataset):
            raise GratisError(f"sampler is {sampler!r}; it may be the dataset itself, or None")
        if shuffle is not None and sampler is None and shuffle != config.augment:
            raise GratisError(f"shuffle is {shuffle} where the config has augment={config.augment}")
        rank, world = (b if a is None else a for a, b in zip((rank, world_size), here, strict=True))
        if batch_size is not None:
            config = replace(config, batch_size=batch_size)
            if isinstance(world, int) and world > 0:  # else the loader says what is wrong with it
                config = replace(config, batch_size=config.batch_size * world)
        if drop_last is not None:
            config = replace(config, remainder="drop" if drop_last else "short")
        local = (_number("LOCAL_WORLD_SIZE", 0) or None) if world == here[1] else None
        ranks: dict[str, Any] = {"rank": rank, "world_size": world, "local_world_size": local}
        self.loader = Loader(dataset.root, dataset.split, config, device=device, **ranks)
        self.dataset, self.sampler, self.batch_sampler = dataset, dataset, None
        self.batch_size, self.drop_last = config.batch_size // world, config.remainder == "drop"
        self.num_workers, self.pin_memory, self.device = num_workers, pin_memory, self.loader.device
        self.collate_fn, self._here = collate_fn, here if (rank, world) == here else None
        self._times_set = 0  # of the dataset's epoch, as far as it is known here

    def __len__(self) -> int:
        return len(self.loader)

    def __iter__(self) -> Iterator[Any]:
        if get_worker_info() is not None:
            raise GratisError("the loader has threads of its own; use num_workers=0")
        if self._here and self._here != _ranks():
            now = f"rank, world_size was {self._here} and is {_ranks()}"
            raise GratisError(f"{now}; make the loader after torch.distributed.init_process_group")
        if self._times_set != self.dataset.times_set:
            self.loader.set_epoch(self.dataset.next_epoch)
            self._times_set = self.dataset.times_set
        collate = None if self.collate_fn is default_collate else self.collate_fn
        for images, labels, _ in self.loader:
            yield collate(list(zip(images, labels, strict=True))) if collate else (images, labels)

    def set_epoch(self, epoch: int) -> None:
        self.dataset.set_epoch(epoch)

    def state_dict(self) -> dict[str, Any]:
        return self.loader.state_dict()

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self.loader.load_state_dict(state)
        self._times_set = self.dataset.times_set


def _ranks() -> tuple[int, int]:
    if torch.distributed.is_available() and torch.distributed.is_initialized():
        return torch.distributed.get_rank(), torch.distributed.get_world_size()
    world = _number("WORLD_SIZE", 1)
    if world > 1 and "RANK" not in os.environ:
        raise GratisError(f"WORLD_SIZE is {world} without RANK; first initialise torch.distributed")
    return _number("RANK", 0), world


def _number(name: str, otherwise: int) -> int:
    if not (text := os.environ.get(name, str(otherwise))).isdecimal():
        raise GratisError(f"{name} is {text!r} in the environment; it must be a whole number")
    return int(text)
