"""The inspect command: what is in a dataset, in a screenful.

python -m preprocess inspect shards
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import tyro

from preprocess import dataset
from preprocess.dataset import ImageClass, Manifest, Stats

# of ILSVRC2012, as its authors' successor code ships it : columns by descending eigenvalue, rows R, G, B
PUBLISHED = np.array([[-0.56351, -0.71258, 0.41796], [-0.57618, -0.02354, -0.81698], [-0.59200, 0.70120, 0.39731]])
PUBLISHED_SQRT = (121.7801, 37.0939, 19.7208)
EXTREMES = 3  # classes shown from either end of the counts


@dataclass(frozen=True, kw_only=True)
class InspectConfig:
    """Prints what a dataset holds: counts, classes, conversions, statistics."""

    shards: tyro.conf.Positional[Path]
    """Folder of the dataset."""


def inspect(config: InspectConfig) -> None:
    manifest = dataset.read_manifest(config.shards)
    codec = manifest.codec if manifest.quality is None else f"{manifest.codec} quality {manifest.quality}"
    print(f"dataset {manifest.hash[:8]}: {manifest.image_size} px, {codec}, seed {manifest.seed}")
    print(
        f"source {manifest.source[:8]}; " + ", ".join(f"{name} {version}" for name, version in manifest.tools.items())
    )
    for name in manifest.splits:
        _show_split(config.shards, manifest, name)
    _show_stats(dataset.read_stats(config.shards))


def _show_split(root: Path, manifest: Manifest, name: str) -> None:
    split = manifest.splits[name]
    size = sum(shard.bytes for shard in split.shards)
    print(f"{name}: {split.samples:,} images in {len(split.shards):,} shards, {size / 1e6:,.1f} MB")
    for title, counts in (("converted", split.conversions), ("rejected", split.rejects)):
        print(f"  {title}: " + (", ".join(f"{count:,} {kind}" for kind, count in counts.items()) or "none"))
    images = np.bincount(dataset.read_index(root, name).label, minlength=len(manifest.classes))
    order = np.argsort(images, kind="stable")
    print(f"  per class: {images.min():,} to {images.max():,}, median {np.median(images):,.0f}")
    if images.min() < images.max():
        for title, labels in (("fewest", order[:EXTREMES]), ("most", order[::-1][:EXTREMES])):
            print(f"  {title}: " + "; ".join(f"{images[k]:,} {_name(manifest.classes[k])}" for k in labels))


def _name(entry: ImageClass) -> str:
    return entry.wnid if entry.words == entry.wnid else f"{entry.wnid} {entry.words.partition(',')[0]}"


def _show_stats(stats: Stats) -> None:
    means = ", ".join(f"{value:.2f}" for value in stats.mean.mean(axis=(0, 1)))
    print(f"statistics of {stats.num_images:,} images: mean R, G, B {means}")
    cosines = np.abs((stats.eigenvectors * PUBLISHED).sum(axis=0))
    for k in range(3):
        vector = ", ".join(f"{value:+.4f}" for value in stats.eigenvectors[:, k])
        print(
            f"  component {k + 1}: sqrt(eigenvalue) {np.sqrt(stats.eigenvalues[k]):.2f} "
            f"(ILSVRC2012: {PUBLISHED_SQRT[k]:.2f}), direction {vector}, |cos| with ILSVRC2012's {cosines[k]:.4f}"
        )
