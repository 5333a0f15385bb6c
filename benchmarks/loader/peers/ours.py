"""This loader, whole and stage by stage."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch

from benchmarks.loader.peers.common import BATCH, VIEWS_BATCH, Batches, Stream, Work, crop_of
from gratis.loader.augmentations import TimmRandAugment, TrivialAugmentWide
from gratis.loader.config import LoaderConfig
from gratis.loader.decoding.cpu import decode
from gratis.loader.decoding.dali_runner import DaliRunner
from gratis.loader.epoch.stage_timer import StageTimer
from gratis.loader.loader import Loader
from gratis.loader.mixing import CutMix, MixUp, RandomErasing
from gratis.loader.reading.batch_reader import BatchReader
from gratis.loader.reading.quarantine import Quarantine

MIX = MixUp(0.8), CutMix(1.0)


def crop(root: Path, threads: int, scratch: Path) -> Batches:
    return _endless(_loader(root, threads))


def resized(root: Path, threads: int, scratch: Path) -> Batches:
    return _endless(_imagenet(root, threads))


def trivial(root: Path, threads: int, scratch: Path) -> Batches:
    return _endless(_imagenet(root, threads, operations=(TrivialAugmentWide(),)))


def mixup(root: Path, threads: int, scratch: Path) -> Batches:
    return _endless(_imagenet(root, threads, mix=MIX))


def vit(root: Path, threads: int, scratch: Path) -> Batches:
    """timm's recipe."""
    changes = {"interpolation": "bicubic", "operations": (TimmRandAugment(),), "mix": MIX}
    erasing = RandomErasing(0.25, mode="pixel")
    return _endless(_imagenet(root, threads, erasing=erasing, **changes))


def views(root: Path, threads: int, scratch: Path) -> Batches:
    return _endless(_loader(root, threads, batch_size=VIEWS_BATCH, augment=False, views=10))


def bfloat16(root: Path, threads: int, scratch: Path) -> Batches:
    return _endless(_loader(root, threads, dtype=torch.bfloat16))


def uint8(root: Path, threads: int, scratch: Path) -> Batches:
    """Without noise: pixels as they are."""
    return _endless(_loader(root, threads, dtype=torch.uint8, normalize=None, noise="off"))


WORKS: dict[Work, Stream] = {
    "crop": crop,
    "resized": resized,
    "views": views,
    "bfloat16": bfloat16,
    "uint8": uint8,
    "trivial": trivial,
    "mixup": mixup,
    "vit": vit,
}


def read(root: Path, threads: int, scratch: Path) -> Batches:
    """Stage: the bytes alone."""
    return _stage(root, threads, decoded=False)


def decoded(root: Path, threads: int, scratch: Path) -> Batches:
    """Stages: bytes and DALI's decode of the crop."""
    return _stage(root, threads, decoded=True)


def _stage(root: Path, threads: int, *, decoded: bool) -> Batches:
    loader, timer, nothing = _loader(root, threads), StageTimer(), torch.zeros(1)
    quarantine = Quarantine(0, loader.num_samples, allowed=False)
    reader = BatchReader(loader.shard_reader(), timer, quarantine)
    runner = DaliRunner(timer, reader)
    for epoch in range(1 << 30):
        plan = loader.epoch_plan(epoch)
        batches: Iterator[Any] = reader.batches(plan)
        for _ in decode(batches, plan, runner, threads) if decoded else batches:
            yield nothing


def _imagenet(root: Path, threads: int, **changes: Any) -> Loader:
    fields: dict[str, Any] = {"batch_size": BATCH, "crop": crop_of(root), "threads": threads}
    return Loader(root, "train", LoaderConfig.imagenet(remainder="drop", **fields | changes))


def _loader(root: Path, threads: int, **changes: Any) -> Loader:
    fields: dict[str, Any] = {"batch_size": BATCH, "crop": crop_of(root), "threads": threads}
    return Loader(root, "train", LoaderConfig.alexnet(remainder="drop", **fields | changes))


def _endless(loader: Loader) -> Batches:
    while True:
        yield from (batch.images for batch in loader)
