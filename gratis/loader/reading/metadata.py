"""Opens a dataset: all that the loader reads beside the shards, held against the manifest once."""

from __future__ import annotations

from pathlib import Path

from gratis.dataset import (
    STATS,
    Index,
    Manifest,
    Stats,
    index_name,
    read_index,
    read_manifest,
    read_stats,
    require_split,
)
from gratis.errors import GratisError

WAY_OUT = "make the shards again, or verify the copy"


def open_dataset(
    root: Path, split: str, named: Path | str, *, fetched: bool
) -> tuple[Manifest, Stats, Index]:
    """The manifest, the statistics and the split's index of the dataset that the user calls
    `named`.

    fetched: the files came from a server, and their sums were compared then; else they are here.
    GratisError for files that are missing, damaged, of another dataset, or that do not fit each
    other. For the index of ILSVRC: 0.05 CPU s, of which the sums are 0.02."""
    manifest = read_manifest(root)
    entry = require_split(named, manifest, split)
    stats = read_stats(root, None if fetched else manifest.stats_sha256)
    index = read_index(root, split, None if fetched else entry.index_sha256)
    if len(stats.mean) != manifest.image_size:
        mean, images = f"{len(stats.mean)} px", f"{manifest.image_size} px"
        sides = f"a mean image of {mean}, the manifest images of {images}"
        raise GratisError(f"{root / STATS} has {sides}; {WAY_OUT}")
    if len(index.label) != entry.samples:
        counts = f"{len(index.label)} samples, not {entry.samples}"
        raise GratisError(f"the {split} index of {named} has {counts}; verify it")
    first_label = 0 if manifest.classes else -1
    for name, rows, least, below in (
        ("shard", index.shard, 0, len(entry.shards)),
        ("label", index.label, first_label, len(manifest.classes)),
        ("offset", index.offset, 0, 1 << 62),
        ("size", index.size, 1, 1 << 31),
    ):
        if len(rows) and not (least <= rows.min() and rows.max() < below):
            span = f"{name}s from {rows.min()} to {rows.max()}"
            raise GratisError(f"{root / index_name(split)} is damaged ({span}); {WAY_OUT}")
    return manifest, stats, index
