"""What resized crops, mixing and erasing cost in the loader, variants in turns:
`python -m benchmarks.loader.augmentation_bench SHARDS [--rounds 5]`.

Printed: CPU seconds of the whole process for 1,000 images (median, least and most of the rounds),
and the ratio to the first variant within rounds."""

from __future__ import annotations

import argparse
import time
from pathlib import Path
from statistics import median
from typing import Any

import torch

from gratis import CutMix, Loader, LoaderConfig, MixUp, RandomErasing

BASE: dict[str, Any] = {"batch_size": 128, "area": (0.08, 1.0), "remainder": "drop"}
HALF: dict[str, Any] = {"dtype": torch.bfloat16}
VARIANTS: dict[str, dict[str, Any]] = {
    "resized crop, bilinear": {},
    "bilinear, not antialiased": {"antialias": False},
    "bicubic": {"interpolation": "bicubic"},
    "bicubic, not antialiased": {"interpolation": "bicubic", "antialias": False},
    "bilinear, bfloat16": HALF,
    "MixUp": {"mix": (MixUp(),)},
    "MixUp, bfloat16": {"mix": (MixUp(),)} | HALF,
    "CutMix": {"mix": (CutMix(),)},
    "CutMix, bfloat16": {"mix": (CutMix(),)} | HALF,
    "RandomErasing(0.25)": {"erasing": RandomErasing(0.25)},
    "RandomErasing(0.25), pixel": {"erasing": RandomErasing(0.25, mode="pixel")},
    "two views of each": {"views": 2},
    "repeats=3": {"repeats": 3},
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("shards", type=Path)
    parser.add_argument("--rounds", type=int, default=5)
    options = parser.parse_args()
    torch.set_num_threads(1)
    configs = {name: LoaderConfig(**BASE | fields) for name, fields in VARIANTS.items()}
    loaders = {name: Loader(options.shards, "train", each) for name, each in configs.items()}
    for loader in loaders.values():
        cpu_seconds(loader)  # starts what waits for the next epoch
    rounds = []
    for number in range(options.rounds):
        names = list(VARIANTS)[:: -1 if number % 2 else 1]
        rounds.append({name: cpu_seconds(loaders[name]) for name in names})
    first = next(iter(VARIANTS))
    for name in VARIANTS:
        times, ratios = [r[name] for r in rounds], [r[name] / r[first] for r in rounds]
        spread = f"[{min(times):.3f}-{max(times):.3f}]"
        ratio = f"{median(ratios):.2f} ({min(ratios):.2f}-{max(ratios):.2f})"
        print(f"{name:28} {median(times):.3f} {spread}  {ratio}")


def cpu_seconds(loader: Loader) -> float:
    """Of an epoch, for 1,000 images (samples, however many views they have)."""
    before, images = time.process_time(), 0
    for batch in loader:
        images += len(batch.ids)
    return (time.process_time() - before) / images * 1000


if __name__ == "__main__":
    main()
