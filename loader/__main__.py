"""Measures the loader on a dataset, or draws what it yields.

python -m loader shards --batch-size 256
python -m loader shards --preview preview.png
python -m loader explain shards --sample KEY --out explain.png
"""

from __future__ import annotations

import json
import resource
import statistics
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

import torch
import tyro

from loader import Batch, Loader, LoaderConfig
from loader.preview import draw_preview
from preprocess.arguments import parsed
from preprocess.errors import UserError, guard
from preprocess.events import LoaderCounters

TILES = 24  # of a preview


@dataclass(frozen=True, kw_only=True)
class Measure:
    """Loads batches as training would, and says how fast, at what cost, and where the time goes."""

    shards: Annotated[str, tyro.conf.Positional]
    """Folder of the dataset."""
    split: str = "train"
    batch_size: int = 256
    crop: int | None = None
    """Side of the crop. Default: 7/8 of the image's, as 224 of 256."""
    views: Literal[1, 10] = 1
    """10: evaluation's ten views."""
    order: Literal["full", "window"] = "full"
    """window: shards are shuffled, then samples within each run of 8 shards."""
    threads: int | None = None
    """Of the decoder. Default: one per core that this process may use."""
    batches: int = 26
    """In each round."""
    rounds: int = 5
    """Of which the medians and extremes are printed."""
    seed: int = 0
    device: str = "cpu"
    """cpu or cuda."""
    preview: Path | None = None
    """Draw augmented, un-normalised images with their class names to this file, and measure nothing."""

    def __post_init__(self) -> None:
        for name in ("batches", "rounds"):
            if (number := getattr(self, name)) < 1:
                raise UserError(f"{name} is {number}; it must be at least 1")
        if "://" in self.shards:
            raise UserError(f"{self.shards}: this reads local folders; copy the dataset first, or give its mount")
        if self.preview and self.views == 10:
            raise UserError("--preview draws one view of each image; leave --views at 1")
        if self.device.split(":")[0] not in ("cpu", "cuda"):
            raise UserError(f"--device {self.device}; take cpu or cuda")


def main() -> int:
    if sys.argv[1:2] == ["explain"]:
        from loader import explain

        explain.main(sys.argv[2:])
        return 0
    told = f"{Measure.__doc__} Beside it: `python -m loader explain`, one image's way through the loader."
    options = parsed(lambda: tyro.cli(Measure, prog="python -m loader", description=told))
    with _loader(options) as loader:
        if options.preview:
            print(f"{options.preview}: {draw_preview(loader, options.preview)} images")
        else:
            _measure(loader, options)
    return 0


def _loader(options: Measure) -> Loader:
    from preprocess.dataset import read_manifest

    if options.device != "cpu" and not torch.cuda.is_available():
        raise UserError(f"--device {options.device}, but there is no GPU here; take --device cpu")
    crop = read_manifest(Path(options.shards)).image_size * 7 // 8 if options.crop is None else options.crop
    config = LoaderConfig(
        batch_size=TILES if options.preview else options.batch_size, seed=options.seed, crop=crop,
        augment=options.views == 1, views=options.views, order=options.order, threads=options.threads,
    )  # fmt: skip
    return Loader(options.shards, options.split, config, device=torch.device(options.device))


def _measure(loader: Loader, options: Measure) -> None:
    """One stream of batches, epoch after epoch; the first batches, which fill the queues, are not timed."""
    started = time.perf_counter()
    batches = _endless(loader)
    next(batches)
    first = time.perf_counter() - started
    for _ in range(loader.config.prefetch + 2):
        next(batches)
    rounds = [_round(batches, loader, options.batches) for _ in range(options.rounds)]
    counters = [counters for _, _, counters in rounds]
    images = sum(taken["images"] for taken in counters)
    rates = [taken["images"] / wall for wall, _, taken in rounds]
    costs = [1000 * cpu / taken["images"] for _, cpu, taken in rounds]
    stages = {name: round(1000 * sum(taken[name] for taken in counters) / images, 4)
              for name in ("read_s", "decode_s", "finish_s", "transfer_s", "blocked_s", "wait_s")}  # fmt: skip
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    print(f"{statistics.median(rates):,.0f} images/s [{min(rates):,.0f}..{max(rates):,.0f}], "
          f"{statistics.median(costs):.3f} CPU s per 1,000 [{min(costs):.3f}..{max(costs):.3f}], "
          f"{loader.threads} decoder threads, batch {loader.config.batch_size}, n = {options.rounds}")  # fmt: skip
    print(f"wall seconds per 1,000 images: {json.dumps(stages)}; first batch after {first:.2f} s; peak {peak:,.0f} MB")


def _endless(loader: Loader) -> Iterator[Batch]:
    while True:
        yield from iter(loader)


def _round(batches: Iterator[Batch], loader: Loader, count: int) -> tuple[float, float, LoaderCounters]:
    """Wall seconds, CPU seconds of this process and counters of so many batches, each read once as a copy would."""
    loader.take_counters()
    wall, cpu = time.perf_counter(), time.process_time()
    for _ in range(count):
        next(batches).images.view(-1)[::1024].sum()
    return time.perf_counter() - wall, time.process_time() - cpu, loader.take_counters()


if __name__ == "__main__":
    sys.exit(guard(main))
