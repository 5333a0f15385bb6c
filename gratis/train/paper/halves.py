"""A dataset's classes in two halves, every second class each: one to pretrain on, one to learn.

Sorted classes are neighbours in meaning, so alternating ones make halves of like difficulty. The
images' files are copied as they are; `gratis index` makes a dataset of each half."""

from __future__ import annotations

import tarfile
from collections.abc import Iterator
from io import BytesIO
from pathlib import Path

from gratis.dataset import Manifest
from gratis.errors import GratisError

Member = tuple[tarfile.TarInfo, bytes]


def write_half(source: Path, manifest: Manifest, half: int, out: Path) -> None:
    """Tars in `out` of the classes with label % 2 == half, which become label // 2. GratisError for
    a dataset of fewer than four classes."""
    if len(manifest.classes) < 4:
        few = f"{source} has {len(manifest.classes)} classes"
        raise GratisError(f"{few}; halves of them want at least 4")
    out.mkdir(parents=True, exist_ok=True)
    for split, own in manifest.splits.items():
        for shard in own.shards:
            members = list(chosen(source / shard.name, half))
            if not members:
                continue
            # replaced whole, so that a copy which was killed is made again
            with tarfile.open(
                out / f"{split}-{shard.name}", "w", format=tarfile.USTAR_FORMAT
            ) as tar:
                for info, content in members:
                    info.size = len(content)
                    tar.addfile(info, BytesIO(content))


def chosen(path: Path, half: int) -> Iterator[Member]:
    """Image and label of each sample of the half's classes, in the shard's order."""
    image: Member | None = None
    with tarfile.open(path) as tar:
        for info in tar:
            file = tar.extractfile(info)
            assert file is not None, info.name  # shards hold files alone
            content = file.read()
            if not info.name.endswith(".cls"):
                image = info, content
                continue
            label = int(content)
            if label % 2 == half and image:
                yield image
                yield info, str(label // 2).encode()
