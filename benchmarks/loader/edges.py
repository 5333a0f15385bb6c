"""What taking a batch costs the thread that trains: `gratis.torch.DataLoader` and the loader under
it beside torch's DataLoader without workers.

    python -m benchmarks.loader.edges SHARDS

CPU microseconds of the calling thread per batch, without the first batch of an epoch: median and
range of alternating rounds of one epoch. Waiting is not in it, and neither is decoding, which other
threads do. torch's DataLoader reads tensors that are ready in memory, as many batches of the same
shape: whole ones (batch_size=None), or samples that it collates."""

from __future__ import annotations

import argparse
import copy
import statistics
import time
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

import torch
from torch.utils.data import DataLoader as TorchDataLoader
from torch.utils.data import Dataset, IterableDataset, TensorDataset

from gratis.loader import Batch, Loader, LoaderConfig
from gratis.torch import DataLoader, ShardDataset


class ReadyBatches(IterableDataset[Any]):
    """The same batch over and over, which nobody made."""

    def __init__(self, images: torch.Tensor, labels: torch.Tensor, count: int) -> None:
        self._pair, self._count = (images, labels), count

    def __iter__(self) -> Iterator[Any]:
        return iter([self._pair] * self._count)


def per_batch_us(batches: Iterable[Any]) -> float:
    """CPU microseconds of this thread for a batch, but for the first."""
    taken = iter(batches)
    next(taken)
    count, began = 0, time.thread_time()
    for _ in taken:
        count += 1
    return (time.thread_time() - began) / count * 1e6


def ways(shards: Path, batch: int, crop: int) -> dict[str, Callable[[], Iterable[Any]]]:
    """What is measured, by name; each call gives an epoch."""
    config = LoaderConfig.imagenet(batch_size=batch, crop=crop, remainder="drop")
    loader = Loader(shards, "train", config)
    ours = DataLoader(ShardDataset(shards, "train", config))
    count = len(loader)
    images, labels = torch.zeros(batch, 3, crop, crop), torch.zeros(batch, dtype=torch.int64)
    ready = ReadyBatches(images, labels, count)
    alone: Any = copy.copy(ours)
    alone.loader = [Batch(images, labels, labels)] * count
    few = min(count, 50)  # collating copies every sample
    samples: Dataset[Any] = TensorDataset(
        images.expand(few, -1, -1, -1, -1).flatten(0, 1), labels.expand(few, -1).flatten()
    )
    return {
        "gratis.Loader": lambda: loader,
        "gratis.torch.DataLoader": lambda: ours,
        "the same, ready batches": lambda: alone,
        "in torch's DataLoader(loader, batch_size=None)": lambda: TorchDataLoader(
            ours, batch_size=None
        ),
        "torch's DataLoader, ready batches": lambda: TorchDataLoader(ready, batch_size=None),
        "torch's DataLoader, ready samples": lambda: TorchDataLoader(samples, batch_size=batch),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("shards", type=Path)
    parser.add_argument("--batch", type=int, default=64)
    parser.add_argument("--crop", type=int, default=56)
    parser.add_argument("--rounds", type=int, default=5)
    args = parser.parse_args()
    measured = ways(args.shards, args.batch, args.crop)
    results: dict[str, list[float]] = {name: [] for name in measured}
    for _ in range(args.rounds + 1):  # the first is not counted
        for name, batches in measured.items():
            results[name].append(per_batch_us(batches()))
    for name, (_, *values) in results.items():
        spread = f"[{min(values):.1f}..{max(values):.1f}]"
        print(f"{name:<48}{statistics.median(values):8.1f} us {spread}, n = {len(values)}")


if __name__ == "__main__":
    main()
