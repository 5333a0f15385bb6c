"""What operations cost the loader, in one process, in turns:
`python -m benchmarks.loader.operations_bench SHARDS [--rounds 5]`.

Printed: CPU seconds per 1,000 images of resized crops with each set of operations (median, least
and most of the rounds), and the ratio to none. Where torchvision can be imported, also what its own
transforms (v2) cost on uint8 tensors of that size, without decoding."""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from statistics import median
from typing import Any

import torch

from gratis.loader.augmentations import (
    AugMix,
    ColorJitter,
    GaussianBlur,
    Operation,
    RandAugment,
    RandomGrayscale,
    RandomSolarize,
    TrivialAugmentWide,
)
from gratis.loader.config import LoaderConfig
from gratis.loader.loader import Loader

SETS: dict[str, tuple[Operation, ...]] = {
    "none": (),
    "TrivialAugmentWide": (TrivialAugmentWide(),),
    "RandAugment(2, 9)": (RandAugment(2, 9),),
    "ColorJitter": (ColorJitter(0.4, 0.4, 0.4, 0.1),),
    "ColorJitter, no hue": (ColorJitter(0.4, 0.4, 0.4),),
    "AugMix": (AugMix(),),
    "SimCLR's": (
        ColorJitter(0.4, 0.4, 0.2, 0.1, p=0.8),
        RandomGrayscale(0.2),
        GaussianBlur(23, p=0.5),
        RandomSolarize(128, 0.2),
    ),
}
MOST = 40  # images that torchvision gets


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("shards", type=Path)
    parser.add_argument("--rounds", type=int, default=5)
    options = parser.parse_args()
    torch.set_num_threads(1)
    loaders = {name: make(options.shards, operations) for name, operations in SETS.items()}
    show({name: partial(epoch, loader) for name, loader in loaders.items()}, options.rounds)
    try:
        theirs = torchvision_sets()
    except ImportError:
        return 0
    pixels = next(iter(make(options.shards, (), normalize=None, dtype=torch.uint8))).images[:MOST]
    print("torchvision's transforms alone")
    runs = {name: partial(transformed, transform, pixels) for name, transform in theirs.items()}
    show(runs, options.rounds)
    return 0


def make(root: Path, operations: tuple[Operation, ...], **changes: Any) -> Loader:
    given = {"batch_size": 125, "threads": 1, "operations": operations} | changes
    return Loader(root, "train", LoaderConfig.imagenet(**given))


def epoch(loader: Loader) -> float:
    begun, count = time.process_time(), 0
    for batch in loader:
        count += len(batch.ids)
    return (time.process_time() - begun) / count * 1000


def transformed(transform: Any, pixels: torch.Tensor) -> float:
    begun = time.process_time()
    for image in pixels:
        transform(image)
    return (time.process_time() - begun) / len(pixels) * 1000


def torchvision_sets() -> dict[str, Any]:
    from torchvision.transforms import v2

    jitter = v2.ColorJitter(0.4, 0.4, 0.2, 0.1)
    blur = v2.GaussianBlur(23, (0.1, 2.0))
    simclr = [v2.RandomApply([jitter], 0.8), v2.RandomGrayscale(0.2), v2.RandomApply([blur], 0.5)]
    return {
        "TrivialAugmentWide": v2.TrivialAugmentWide(),
        "RandAugment(2, 9)": v2.RandAugment(2, 9),
        "ColorJitter": v2.ColorJitter(0.4, 0.4, 0.4, 0.1),
        "ColorJitter, no hue": v2.ColorJitter(0.4, 0.4, 0.4),
        "AugMix": v2.AugMix(),
        "SimCLR's": v2.Compose([*simclr, v2.RandomSolarize(128, 0.2)]),
    }


def show(runs: Mapping[str, Callable[[], float]], rounds: int) -> None:
    """The first round, which compiles and allocates, does not count."""
    seconds: dict[str, list[float]] = {name: [] for name in runs}
    for _ in range(rounds + 1):
        for name, run in runs.items():
            seconds[name].append(run())
    base = seconds.get("none")
    for name, each in seconds.items():
        ratios = [a / b for a, b in zip(each[1:], base[1:], strict=True)] if base else []
        ratio = f", {median(ratios):.2f} [{min(ratios):.2f}-{max(ratios):.2f}]" if ratios else ""
        least, most = min(each[1:]), max(each[1:])
        print(f"{name:20s} {median(each[1:]):.3f} [{least:.3f}-{most:.3f}]{ratio}", flush=True)


if __name__ == "__main__":
    raise SystemExit(main())
