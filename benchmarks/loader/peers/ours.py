"""This loader, whole and stage by stage."""

from __future__ import annotations

from pathlib import Path

import torch

from benchmarks.loader.peers.common import BATCH, Batches, crop_of
from gratis.loader.config import LoaderConfig
from gratis.loader.loader import Loader
from gratis.loader.pipeline.stages import source_of
from gratis.loader.pipeline.work import Meter, Reader


def whole(root: Path, threads: int, scratch: Path) -> Batches:
    loader = loader_of(root, threads)
    while True:
        yield from (batch.images for batch in loader)


def read(root: Path, threads: int, scratch: Path) -> Batches:
    """Stage: the bytes alone."""
    loader = loader_of(root, threads)
    source = source_of(loader.job(0))
    reader, nothing = Reader(source, Meter(), loader._quarantine), torch.zeros(1)
    for epoch in range(1 << 30):
        for _ in reader.works(loader.job(epoch)):
            yield nothing


def decoded(root: Path, threads: int, scratch: Path) -> Batches:
    """Stages: bytes and DALI's decode of the crop."""
    from gratis.loader.decoding.cpu import Mender, Runner, decode

    loader, meter = loader_of(root, threads), Meter()
    source = source_of(loader.job(0))
    reader, nothing = Reader(source, meter, loader._quarantine), torch.zeros(1)
    runner = Runner(meter, Mender(reader, source, loader._quarantine))
    for epoch in range(1 << 30):
        job = loader.job(epoch)
        for _ in decode(reader.works(job), job, runner, threads):
            yield nothing


def loader_of(root: Path, threads: int) -> Loader:
    config = LoaderConfig(batch_size=BATCH, crop=crop_of(root), threads=threads, remainder="drop")
    return Loader(root, "train", config)
