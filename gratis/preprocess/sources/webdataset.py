"""WebDataset archives as a source: a dataset of this project, or any tars of `<key>.<ext>` members.

    SRC/manifest.json             its splits and classes; works where no folder can be listed (HTTP)
    SRC/*.tar                     val*.tar and validation*.tar are the split "val", others "train"
    SRC/train/*.tar, SRC/val/*.tar

A sample's members lie side by side and share the name up to its first dot. Its image is the only
one among them, or the only one without a further dot in its extension: `x.jpg` beside
`x.depth.png`. Its label is its `.cls` member, or "label" in its `.json`, which img2dataset writes
with save_additional_columns=["label"].

Such tars are either sharded again (`gratis shards`) or, if their images are square and of one size
already, used as they are (`gratis index`).
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Iterable, Iterator
from itertools import groupby
from pathlib import Path
from typing import NamedTuple

from tqdm import tqdm

from gratis import addresses, dataset
from gratis.dataset import ImageClass, Manifest
from gratis.errors import GratisError
from gratis.preprocess.sources.listing import IMAGE_NAME, QUIET_S, Listing, ListingBuilder
from gratis.preprocess.sources.source import Source
from gratis.preprocess.sources.tar import Member, extension_of, members

VAL_NAME = re.compile(r"val(idation)?([-_.]|\d|$)")
LONGEST_LABEL = 1 << 16  # bytes of a .cls or .json member
# five times all of ImageNet's; the manifest lists every number up to the largest
MOST_CLASSES = 100_000


class TarSample(NamedTuple):
    """A sample's members, and its image among them, if there is one."""

    key: str
    parts: list[Member]
    picture: Member | None


def open_webdataset(root: str, *, unique: bool = True) -> Source | None:
    """The archives' classes and listings; None where there are no tars. unique: every sample gets a
    key of its own."""
    manifest = _manifest(root)
    archives = _find_archives(root, manifest)
    if not archives:
        return None
    builders: dict[str, ListingBuilder] = {}
    largest = -1
    for split, paths in archives.items():
        builder = builders[split] = ListingBuilder((), official=True)
        for path in tqdm(paths, f"listing {split}", unit="tar", delay=QUIET_S, leave=False):
            builder.containers.append(path)
            largest = max(largest, _list_archive(path, builder))
        if not len(builder):
            raise GratisError(
                f"{root}: the tars of the split {split} hold no images; fill or remove them"
            )
    classes = _classes(root, manifest, largest)
    splits: dict[str, Listing] = {}
    for split, builder in builders.items():
        builder.wnids = tuple(entry.wnid for entry in classes)
        splits[split] = builder.build(unique=unique)
    skipped = tuple(message for builder in builders.values() for message in builder.skipped)
    return Source(classes=classes, splits=splits, skipped=skipped)


def _find_archives(root: str, manifest: Manifest | None) -> dict[str, list[str]]:
    """The archives by split, in order; {} if there are none."""
    if manifest:
        splits = {name: split.shards for name, split in manifest.splits.items()}
        return {k: [addresses.join(root, shard.name) for shard in v] for k, v in splits.items()}
    archives: dict[str, list[str]] = {"train": [], "val": []}
    for name in ("", "train", "val"):
        folder = addresses.join(root, name) if name else root
        if not addresses.is_folder(folder):
            continue
        for entry in addresses.entries(folder):
            if entry.name.endswith(".tar") and not entry.is_folder:
                split = name or ("val" if VAL_NAME.match(entry.name) else "train")
                archives[split].append(addresses.join(folder, entry.name))
    if archives["val"] and not archives["train"]:
        raise GratisError(
            f"{root} holds tars of a validation split alone; put the training split's beside them"
        )
    return {split: paths for split, paths in archives.items() if paths}


def _list_archive(path: str, builder: ListingBuilder) -> int:
    """Adds the archive's samples; their largest label."""
    largest = -1
    with addresses.Bytes(path) as archive:
        for group in group_samples(path, members(archive, path, builder.skip, 0, archive.size)):
            if group.picture is None:
                builder.skip(group.key, "it has no image")
                continue
            label = label_of(archive, path, group)
            builder.add(*group.picture, label)
            largest = max(largest, label)
    return largest


def group_samples(path: str, files: Iterable[Member]) -> Iterator[TarSample]:
    """The members of the archive at `path` by sample. GratisError for a sample of several images
    unless exactly one has no further extension, in whatever order they are."""
    for key, listed in groupby(files, lambda member: _key(member.name)):
        parts = list(listed)
        images = [member for member in parts if IMAGE_NAME.fullmatch(member.name)]
        plain = images
        if len(images) > 1:
            plain = [member for member in images if "." not in extension_of(member.name)]
        if len(plain) != 1 and images:
            names = sorted(os.path.basename(member.name)[:200] for member in images)
            way_out = "leave one, or give the others a further extension (x.mask.png)"
            raise GratisError(
                f"{path}: the sample {key[:200]!r} has {len(images)} images, "
                f"{' and '.join(names[:2])}; {way_out}"
            )
        yield TarSample(key, parts, plain[0] if plain else None)


def label_of(archive: addresses.Bytes, path: str, group: TarSample) -> int:
    """The sample's class number. GratisError if it has none."""
    for value in _labels(archive, group.parts):
        if type(value) is int and 0 <= value < MOST_CLASSES:
            return value
        wrong = f"the label of {group.key[:200]!r} is {str(value)[:50]!r}"
        raise GratisError(f"{path}: {wrong}, no class number from 0 to {MOST_CLASSES - 1:,}")
    raise GratisError(
        f'{path}: {group.key[:200]!r} has no label: neither a .cls member nor "label" in its .json'
    )


def _key(name: str) -> str:
    folder, slash, base = name.rpartition("/")
    return folder + slash + base.partition(".")[0]


def _labels(archive: addresses.Bytes, parts: list[Member]) -> Iterator[object]:
    for member in parts:
        extension = extension_of(member.name)
        if extension not in ("cls", "json") or member.size > LONGEST_LABEL:
            continue
        text = archive.read(member.offset, member.size)
        try:
            # 03 is no JSON
            value = int(text) if extension == "cls" and text.strip().isdigit() else json.loads(text)
        except (ValueError, RecursionError):
            value = text.decode(errors="replace")
        if extension == "cls":
            yield value
        elif isinstance(value, dict) and "label" in value:
            yield value["label"]


def _classes(root: str, manifest: Manifest | None, largest: int) -> tuple[ImageClass, ...]:
    if manifest:
        classes = manifest.classes
        if largest >= len(classes):
            raise GratisError(
                f"{root} holds label {largest}, its manifest {len(classes)} classes; copy it again"
            )
        return classes
    # without names a class is its number, padded so that sorting keeps the order
    names = [f"{label:06d}" for label in range(largest + 1)]
    return tuple(ImageClass(wnid=name, words=name, ilsvrc_id=None) for name in names)


def _manifest(root: str) -> Manifest | None:
    path = addresses.join(root, dataset.MANIFEST)
    if not addresses.is_file(path):
        return None
    if not addresses.is_url(root):
        return dataset.read_manifest(Path(root))
    return dataset.parse_manifest(addresses.read(path), path)
