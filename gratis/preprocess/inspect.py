"""The inspect command: what is in a dataset, in a screenful and, on request, in pictures.

gratis inspect shards --png pictures --src SRC
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import tyro
from numpy.typing import NDArray

from gratis import addresses, dataset, image
from gratis.dataset import ImageClass, Index, Manifest, Stats
from gratis.errors import GratisError
from gratis.preprocess import contact_sheets
from gratis.preprocess.sources.listing import Item
from gratis.preprocess.sources.open import open_source
from gratis.preprocess.sources.reader import ImageReader
from gratis.preprocess.sources.source import SourceOptions
from gratis.preprocess.sources.tar_headers import BLOCK
from gratis.preprocess.stages.plan import permutation, whole_of
from gratis.preprocess.verify import local_folder

# of ILSVRC2012, from cuda-convnet2: columns by descending eigenvalue, rows R, G, B
ILSVRC_EIGENVECTORS = np.array(
    [[-0.56351, -0.71258, 0.41796], [-0.57618, -0.02354, -0.81698], [-0.59200, 0.70120, 0.39731]]
)
ILSVRC_DEVIATIONS = (121.7801, 37.0939, 19.7208)
MONTAGE_PAIRS = 12  # pairs in the montage
EXTREMES = 3  # classes shown from either end of the counts
SHOWN = 5  # of the classes, the first ones


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


def inspect_dataset(config: InspectConfig) -> None:
    root = local_folder(config.shards, "inspect")
    manifest = dataset.read_manifest(root)
    codec = manifest.codec + ("" if manifest.quality is None else f" quality {manifest.quality}")
    size = f"{manifest.image_size} px"
    if manifest.shape == "whole":
        size = f"whole images, shorter side {size}"
    print(f"dataset {manifest.hash[:8]}: {size}, {codec}, seed {manifest.seed}")
    versions = ", ".join(f"{name} {version}" for name, version in manifest.tools.items())
    print(f"source {manifest.source[:8]}; {versions}")
    if manifest.classes:
        first = ", ".join(_name(entry) for entry in manifest.classes[:SHOWN])
        more = f" and {len(manifest.classes) - SHOWN:,} more" if manifest.classes[SHOWN:] else ""
        print(f"{len(manifest.classes):,} classes, labels from 0: {first}{more}")
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
        kinds = ", ".join(f"{count:,} {kind}" for kind, count in counts.items())
        print(f"  {title}: {kinds or 'none'}")
    index = dataset.read_index(root, name, split.index_sha256)
    if index.width is not None and index.height is not None:
        _show_sizes(index.width, index.height)
    if not manifest.classes:
        print("  per class: no image has a label")
        return
    images = _images_per_class(index, manifest)
    order = np.argsort(images, kind="stable")
    print(f"  per class: {images.min():,} to {images.max():,}, median {np.median(images):,.0f}")
    if images.min() < images.max():
        for title, labels in (("fewest", order[:EXTREMES]), ("most", order[::-1][:EXTREMES])):
            classes = "; ".join(f"{images[k]:,} {_name(manifest.classes[k])}" for k in labels)
            print(f"  {title}: {classes}")


def _show_sizes(width: NDArray[np.int32], height: NDArray[np.int32]) -> None:
    """width, height: of the images in pixels."""
    for title, side in (("width", width), ("height", height), ("width / height", width / height)):
        least, median, most = np.quantile(side, (0, 0.5, 1))
        print(f"  {title}: {least:,.4g} to {most:,.4g}, median {median:,.4g}")


def _images_per_class(index: Index, manifest: Manifest) -> NDArray[np.int64]:
    return np.bincount(index.label[index.label >= 0], minlength=len(manifest.classes))


def _name(entry: ImageClass) -> str:
    first = entry.words.partition(",")[0]
    return entry.wnid if entry.words == entry.wnid else f"{entry.wnid} {first}"


def _show_stats(stats: Stats) -> None:
    mean, std = (", ".join(f"{value:.2f}" for value in values) for values in stats.channels)
    print(f"statistics of {stats.num_images:,} images: mean R, G, B {mean}; deviation {std}")
    cosines = _cosines(stats)
    for k in range(3):
        vector = ", ".join(f"{value:+.4f}" for value in stats.eigenvectors[:, k])
        deviation = f"{np.sqrt(stats.eigenvalues[k]):.2f} (ILSVRC2012: {ILSVRC_DEVIATIONS[k]:.2f})"
        cosine = f"|cos| with ILSVRC2012's {cosines[k]:.4f}"
        print(f"  component {k + 1}: sqrt(eigenvalue) {deviation}, direction {vector}, {cosine}")


def _cosines(stats: Stats) -> list[float]:
    return [
        float(value) for value in np.abs((stats.eigenvectors * ILSVRC_EIGENVECTORS).sum(axis=0))
    ]


def _draw(
    config: InspectConfig, root: Path, folder: Path, manifest: Manifest, stats: Stats
) -> None:
    counts = {
        name: _images_per_class(dataset.read_index(root, name, split.index_sha256), manifest)
        for name, split in manifest.splits.items()
    }
    try:
        folder.mkdir(parents=True, exist_ok=True)
        if manifest.shape == "square":
            contact_sheets.draw_mean(stats, folder / "mean.png")
        contact_sheets.draw_components(stats, _cosines(stats), folder / "components.png")
        if manifest.classes:
            contact_sheets.draw_classes(counts, folder / "classes.png")
        if config.src is not None:
            whole = whole_of(manifest)
            pairs = _pairs(root, manifest, config.src)
            contact_sheets.draw_montage(pairs, folder / "montage.png", manifest.image_size, whole)
    except OSError as error:
        raise GratisError(f"cannot draw into {folder}: {error}; choose another --png") from None
    print(f"pictures in {folder}: {', '.join(sorted(path.name for path in folder.glob('*.png')))}")


def _pairs(root: Path, manifest: Manifest, src: str) -> list[tuple[bytes, NDArray[np.uint8]]]:
    """Some training images, chosen by the seed: the source file's bytes, and the image it
    became."""
    split = manifest.splits["train"]
    index = dataset.read_index(root, "train", split.index_sha256)
    rows = permutation(len(index.label), manifest.seed, "montage")[:MONTAGE_PAIRS]
    paths = [root / split.shards[index.shard[row]].name for row in rows]
    keys = [_key(path, int(index.offset[row])) for path, row in zip(paths, rows, strict=True)]
    items = _find(src, set(keys), not manifest.classes)
    if missing := [key for key in keys if key not in items]:
        raise GratisError(
            f"{src} has no file for {missing[0]!r}: it is not this dataset's source; give the "
            f"right --src"
        )
    pairs = []
    with ImageReader() as reader:
        for path, row, key in zip(paths, rows, keys, strict=True):
            data = _read(path, int(index.offset[row]), int(index.size[row]))
            pairs.append((reader.read(items[key]), image.decode(data)))
    return pairs


def _key(shard: Path, offset: int) -> str:
    # a USTAR header starts with the name
    header = _read(shard, offset - BLOCK, 100)
    return header.partition(b"\0")[0].decode().partition(".")[0]


def _read(path: Path, offset: int, size: int) -> bytes:
    with addresses.Bytes(str(path)) as archive:
        return archive.read(offset, size)


def _find(src: str, keys: set[str], unlabelled: bool) -> dict[str, Item]:
    options = SourceOptions(unlabelled=unlabelled)
    listing = open_source(src, options).splits["train"]
    items = (listing.item(row) for row in range(len(listing)))
    return {item.key: item for item in items if item.key in keys}
