"""This loader, whole and stage by stage."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch

from benchmarks.loader.peers.common import BATCH, Batches, crop_of
from gratis.loader.config import LoaderConfig
from gratis.loader.decoding.cpu import decode
from gratis.loader.decoding.dali_runner import DaliRunner
from gratis.loader.epoch.stage_timer import StageTimer
from gratis.loader.loader import Loader
from gratis.loader.reading.batch_reader import BatchReader
from gratis.loader.reading.quarantine import Quarantine


def whole(root: Path, threads: int, scratch: Path) -> Batches:
    loader = _loader(root, threads)
    while True:
        yield from (batch.images for batch in loader)


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


def _loader(root: Path, threads: int) -> Loader:
    config = LoaderConfig.alexnet(
        batch_size=BATCH, crop=crop_of(root), threads=threads, remainder="drop"
    )
    return Loader(root, "train", config)
