"""The inspect command: what is in a dataset, in a screenful and, on request, in pictures.

gratis inspect shards --png pictures --src SRC
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import tyro
from numpy.typing import NDArray

from gratis import dataset, image
from gratis.dataset import ImageClass, Manifest, Stats
from gratis.errors import GratisError
from gratis.preprocess import contact_sheets
from gratis.preprocess.sources.listing import Item
from gratis.preprocess.sources.source import Reader, open_source
from gratis.preprocess.stages.plan import shuffled
from gratis.preprocess.verify import local_folder

# of ILSVRC2012, as its authors' successor code ships it : columns by descending eigenvalue, rows R,
# G, B
PUBLISHED = np.array(
    [[-0.56351, -0.71258, 0.41796], [-0.57618, -0.02354, -0.81698], [-0.59200, 0.70120, 0.39731]]
)
PUBLISHED_SQRT = (121.7801, 37.0939, 19.7208)
SHOWN = 12  # pairs in the montage
EXTREMES = 3  # classes shown from either end of the counts


@dataclass(frozen=True, kw_only=True)
class InspectConfig:
    """Prints what a dataset holds: counts, classes, conversions, statistics."""

    shards: tyro.conf.Positional[str]
    """Folder of the dataset."""
    png: Path | None = None
    """Draw the mean image, the principal directions and the classes into this folder."""
    src: str | None = None
    """With --png: the dataset's source, for a montage of originals beside what they became."""

    def __post_init__(self) -> None:
        if self.src is not None and self.png is None:
            raise GratisError("--src is for the montage, which --png DIR draws; add it")


def inspect(config: InspectConfig) -> None:
    root = local_folder(config.shards, "inspect")
    manifest = dataset.read_manifest(root)
    codec = (
        manifest.codec
        if manifest.quality is None
        else f"{manifest.codec} quality {manifest.quality}"
    )
    print(f"dataset {manifest.hash[:8]}: {manifest.image_size} px, {codec}, seed {manifest.seed}")
    print(
        f"source {manifest.source[:8]}; "
        + ", ".join(f"{name} {version}" for name, version in manifest.tools.items())
    )
    for name in manifest.splits:
        _show_split(root, manifest, name)
    stats = dataset.read_stats(root, manifest.stats_sha256)
    _show_stats(stats)
    if config.png is not None:
        _draw(config, root, config.png, manifest, stats)


def _show_split(root: Path, manifest: Manifest, name: str) -> None:
    split = manifest.splits[name]
    size = sum(shard.bytes for shard in split.shards)
    shards = "1 shard" if len(split.shards) == 1 else f"{len(split.shards):,} shards"
    print(f"{name}: {split.samples:,} images in {shards}, {size / 1e6:,.1f} MB")
    for title, counts in (("converted", split.conversions), ("rejected", split.rejects)):
        print(
            f"  {title}: "
            + (", ".join(f"{count:,} {kind}" for kind, count in counts.items()) or "none")
        )
    images = np.bincount(
        dataset.read_index(root, name, split.index_sha256).label, minlength=len(manifest.classes)
    )
    order = np.argsort(images, kind="stable")
    print(f"  per class: {images.min():,} to {images.max():,}, median {np.median(images):,.0f}")
    if images.min() < images.max():
        for title, labels in (("fewest", order[:EXTREMES]), ("most", order[::-1][:EXTREMES])):
            print(
                f"  {title}: "
                + "; ".join(f"{images[k]:,} {_name(manifest.classes[k])}" for k in labels)
            )


def _name(entry: ImageClass) -> str:
    return (
        entry.wnid if entry.words == entry.wnid else f"{entry.wnid} {entry.words.partition(',')[0]}"
    )


def _show_stats(stats: Stats) -> None:
    means = ", ".join(f"{value:.2f}" for value in stats.mean.mean(axis=(0, 1)))
    print(f"statistics of {stats.num_images:,} images: mean R, G, B {means}")
    cosines = _cosines(stats)
    for k in range(3):
        vector = ", ".join(f"{value:+.4f}" for value in stats.eigenvectors[:, k])
        print(
            f"  component {k + 1}: sqrt(eigenvalue) {np.sqrt(stats.eigenvalues[k]):.2f} "
            f"(ILSVRC2012: {PUBLISHED_SQRT[k]:.2f}), direction {vector}, |cos| with ILSVRC2012's "
            f"{cosines[k]:.4f}"
        )


def _cosines(stats: Stats) -> list[float]:
    return [float(value) for value in np.abs((stats.eigenvectors * PUBLISHED).sum(axis=0))]


def _draw(
    config: InspectConfig, root: Path, folder: Path, manifest: Manifest, stats: Stats
) -> None:
    try:
        folder.mkdir(parents=True, exist_ok=True)
        contact_sheets.draw_mean(stats, folder / "mean.png")
        contact_sheets.draw_components(stats, _cosines(stats), folder / "components.png")
        counts = {
            name: np.bincount(
                dataset.read_index(root, name, split.index_sha256).label,
                minlength=len(manifest.classes),
            )
            for name, split in manifest.splits.items()
        }
        contact_sheets.draw_classes(counts, folder / "classes.png")
        if config.src is not None:
            contact_sheets.draw_montage(_pairs(root, manifest, config.src), folder / "montage.png")
    except OSError as error:
        raise GratisError(f"cannot draw into {folder}: {error}; choose another --png") from None
    print(f"pictures in {folder}: {', '.join(sorted(path.name for path in folder.glob('*.png')))}")


def _pairs(root: Path, manifest: Manifest, src: str) -> list[tuple[bytes, NDArray[np.uint8]]]:
    """Some training images, spread by the seed, and the source files they came from."""
    index = dataset.read_index(root, "train", manifest.splits["train"].index_sha256)
    shards = manifest.splits["train"].shards
    rows = shuffled(len(index.label), manifest.seed, "montage")[:SHOWN]
    keys = [_key(root, shards[index.shard[row]].name, int(index.offset[row])) for row in rows]
    items = _find(src, set(keys))
    pairs = []
    with Reader() as reader:
        for row, key in zip(rows, keys, strict=True):
            if key not in items:
                raise GratisError(
                    f"{src} has no file for {key!r}: it is not this dataset's source; give the "
                    f"right --src"
                )
            shard = shards[index.shard[row]].name
            data = contact_sheets.member(root, shard, int(index.offset[row]), int(index.size[row]))
            pairs.append((reader.read(items[key]), image.decode(data)))
    return pairs


def _key(root: Path, shard: str, offset: int) -> str:
    # a USTAR header starts with the name
    header = contact_sheets.member(root, shard, offset - 512, 100)
    return header.partition(b"\0")[0].decode().partition(".")[0]


def _find(src: str, keys: set[str]) -> dict[str, Item]:
    listing = open_source(src).splits["train"]
    items = (listing.item(row) for row in range(len(listing)))
    return {item.key: item for item in items if item.key in keys}
