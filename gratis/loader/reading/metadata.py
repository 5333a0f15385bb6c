"""Opens a dataset: all that the loader reads beside the shards, held against the manifest once."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from gratis.dataset import (
    MOST_ASPECT,
    MOST_PIXELS,
    STATS,
    Index,
    Manifest,
    Split,
    Stats,
    index_name,
    read_index,
    read_manifest,
    read_stats,
    require_split,
)
from gratis.errors import GratisError
from gratis.loader.config import LoaderConfig

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
    whole = manifest.shape == "whole"
    if (index.width is not None) != whole or (stats.channel_mean is not None) != whole:
        other = f"{root / index_name(split)} and {STATS} are not of {manifest.shape} images"
        raise GratisError(f"{other}, as the manifest's are; {WAY_OUT}")
    if not whole and len(stats.mean) != manifest.image_size:
        mean, images = f"{len(stats.mean)} px", f"{manifest.image_size} px"
        sides = f"a mean image of {mean}, the manifest images of {images}"
        raise GratisError(f"{root / STATS} has {sides}; {WAY_OUT}")
    if len(index.label) != entry.samples:
        counts = f"{len(index.label)} samples, not {entry.samples}"
        raise GratisError(f"the {split} index of {named} has {counts}; verify it")
    _check_index(root / index_name(split), manifest, entry, index)
    return manifest, stats, index


def check_images(config: LoaderConfig, manifest: Manifest, named: Path | str) -> None:
    """GratisError where the configuration is for images of another shape or size."""
    side, shape = manifest.image_size, manifest.shape
    if config.shape not in ("any", shape):
        anew = f"make them anew: gratis shards --src SRC --out OUT --shape {config.shape}"
        raise GratisError(f"shape is {config.shape!r}; {named} has {shape} images; {anew}")
    if shape == "whole":
        if config.normalize == "mean-image":
            way_out = "take normalize='imagenet', or make the shards with --shape square"
            raise GratisError(
                f"normalize='mean-image' is for square images; those of {named} keep their shape "
                f"and have no mean image; {way_out}"
            )
        return
    fits = config.area is not None or config.resize is not None
    if config.crop > side and not (fits and config.normalize != "mean-image"):
        advice = f"choose crop={max(1, side * 7 // 8)}, or any up to {side}"
        small = f"crop is {config.crop}; the images of {named} have {side} px a side"
        raise GratisError(f"{small}; {advice}")


def _check_index(path: Path, manifest: Manifest, split: Split, index: Index) -> None:
    """GratisError for an index with values that no dataset has."""
    first_label = 0 if manifest.classes else -1
    ranges: list[tuple[str, NDArray[Any] | None, int, int]] = [
        ("shard", index.shard, 0, len(split.shards)),
        ("label", index.label, first_label, len(manifest.classes)),
        ("offset", index.offset, 0, 1 << 62),
        ("size", index.size, 1, 1 << 31),
        ("width", index.width, 1, 1 << 16),
        ("height", index.height, 1, 1 << 16),
    ]
    if index.width is not None and index.height is not None:
        sides = np.sort(np.stack([index.width, index.height]).astype(np.int64), axis=0)
        ranges.append(("pixel number", sides[0] * sides[1], 1, MOST_PIXELS + 1))
        ranges.append(("aspect ratio", sides[1] // sides[0].clip(1), 1, MOST_ASPECT + 1))
    for name, rows, least, below in ranges:
        if rows is not None and len(rows) and not (least <= rows.min() and rows.max() < below):
            span = f"{name}s from {rows.min()} to {rows.max()}"
            raise GratisError(f"{path} is damaged ({span}); {WAY_OUT}")
