"""WebDataset archives as a source: a dataset of this project, or anybody's tars of `<key>.<ext>`
members.

    SRC/manifest.json           its splits and classes; works where no folder can be listed (a web
    server) SRC/*.tar                   val*.tar and validation*.tar are the split "val", all others
    "train" SRC/train/*.tar, SRC/val/*.tar

A sample's members lie side by side and share what precedes the name's first dot. Its image is the
only one among them, or the only one without a further dot in its extension: `x.jpg` beside
`x.depth.png`. Its label is its `.cls` member, or "label" in its `.json` (img2dataset writes such
with save_additional_columns=["label"]).

Such tars are either sharded again (`gratis shards`) or, if their images are square and of one size
already, taken as they are (`gratis index`).
"""

from __future__ import annotations

import json
import os
import re
import tempfile
from collections.abc import Iterable, Iterator
from itertools import groupby
from pathlib import Path
from typing import NamedTuple

from tqdm import tqdm

from gratis import addresses, dataset
from gratis.dataset import ImageClass, Manifest
from gratis.errors import GratisError
from gratis.preprocess.sources.archives import Member, members
from gratis.preprocess.sources.listing import IMAGE_NAME, Listing, ListingBuilder

VAL_NAME = re.compile(r"val(idation)?([-_.]|\d|$)")
LONGEST_LABEL = 1 << 16  # bytes of a .cls or .json member
MOST_CLASSES = (
    100_000  # five times all of ImageNet's; the manifest lists every number up to the largest
)

Found = dict[str, list[str]]  # split -> archives in order


class Group(NamedTuple):
    """A sample's members side by side, and its image among them, if there is one."""

    key: str
    parts: list[Member]
    picture: Member | None


def find_archives(root: str) -> Found:
    """The archives by split; {} if there are none."""
    if addresses.is_file(addresses.join(root, dataset.MANIFEST)):
        splits = _manifest(root).splits.items()
        return {
            name: [addresses.join(root, shard.name) for shard in split.shards]
            for name, split in splits
        }
    found: Found = {"train": [], "val": []}
    for folder in ("", "train", "val"):
        place = addresses.join(root, folder) if folder else root
        if not addresses.is_folder(place):
            continue
        for entry in addresses.entries(place):
            if entry.name.endswith(".tar") and not entry.is_folder:
                split = folder or ("val" if VAL_NAME.match(entry.name) else "train")
                found[split].append(addresses.join(place, entry.name))
    if found["val"] and not found["train"]:
        raise GratisError(
            f"{root} holds tars of a validation split alone; put the training split's beside them"
        )
    return {split: places for split, places in found.items() if places}


def list_archives(
    root: str, found: Found, *, unique: bool = True
) -> tuple[tuple[ImageClass, ...], dict[str, Listing], tuple[str, ...]]:
    """Classes, a listing by split, and what was skipped. unique: every sample has a key of its
    own."""
    builders = {split: ListingBuilder((), official=True) for split in found}
    largest = -1
    for split, places in found.items():
        for place in tqdm(places, f"listing {split}", unit="tar", delay=2.0, leave=False):
            builders[split].containers.append(place)
            largest = max(largest, _list_archive(place, builders[split]))
        if not len(builders[split]):
            raise GratisError(
                f"{root}: the tars of the split {split} hold no images; fill or remove them"
            )
    classes = _classes(root, largest)
    wnids = tuple(entry.wnid for entry in classes)
    for builder in builders.values():
        builder.wnids = wnids
    skipped = tuple(line for builder in builders.values() for line in builder.skipped)
    return (
        classes,
        {split: builder.build(unique=unique) for split, builder in builders.items()},
        skipped,
    )


def _list_archive(place: str, builder: ListingBuilder) -> int:
    """Adds the archive's samples; their largest label."""
    largest = -1
    with addresses.Bytes(place) as archive:
        for group in grouped(place, members(archive, place, builder.skip, 0, archive.size)):
            if group.picture is None:
                builder.skip(group.key, "it has no image")
                continue
            label = label_of(archive, place, group)
            builder.add(*group.picture, label)
            largest = max(largest, label)
    return largest


def grouped(place: str, found: Iterable[Member]) -> Iterator[Group]:
    """The members of the archive at `place` by sample. GratisError for a sample of several images
    of which not one alone is plainly named; their order decides nothing."""
    for key, parts in groupby(found, lambda member: _key(member.name)):
        listed = list(parts)
        images = [member for member in listed if IMAGE_NAME.fullmatch(member.name)]
        plain = (
            [member for member in images if "." not in _extension(member.name)]
            if len(images) > 1
            else images
        )
        if len(plain) != 1 and images:
            shown = " and ".join(
                sorted(os.path.basename(member.name)[:200] for member in images)[:2]
            )
            way_out = "leave one, or give the others a further extension (x.mask.png)"
            raise GratisError(
                f"{place}: the sample {key[:200]!r} has {len(images)} images, {shown}; {way_out}"
            )
        yield Group(key, listed, plain[0] if plain else None)


def label_of(archive: addresses.Bytes, place: str, group: Group) -> int:
    """The sample's class number. GratisError if it has none."""
    for value in _labels(archive, group.parts):
        if type(value) is int and 0 <= value < MOST_CLASSES:
            return value
        wrong = f"the label of {group.key[:200]!r} is {str(value)[:50]!r}"
        raise GratisError(f"{place}: {wrong}, no class number from 0 to {MOST_CLASSES - 1:,}")
    raise GratisError(
        f'{place}: {group.key[:200]!r} has no label: neither a .cls member nor "label" in its .json'
    )


def idx_line(group: Group) -> str:
    """The sample's line in DALI's index: extension, offset, size and name of each member, between
    blanks."""
    fields = (
        f"{_extension(name)} {offset} {size} {name}"
        for name, offset, size in (
            (re.sub(r"\s", "_", part.name), part.offset, part.size) for part in group.parts
        )
    )
    return " ".join(fields) + "\n"


def idx_bytes(lines: list[str]) -> bytes:
    """DALI's index of an archive. A name in it may be in no known encoding, and stays the bytes
    that it is."""
    return (f"v1.2 {len(lines)}\n" + "".join(lines)).encode("utf-8", "surrogateescape")


def _key(name: str) -> str:
    folder, slash, base = name.rpartition("/")
    return folder + slash + base.partition(".")[0]


def _extension(name: str) -> str:
    return os.path.basename(name).partition(".")[2]


def _labels(archive: addresses.Bytes, parts: list[Member]) -> Iterator[object]:
    for member in parts:
        extension = _extension(member.name)
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


def _classes(root: str, largest: int) -> tuple[ImageClass, ...]:
    if addresses.is_file(addresses.join(root, dataset.MANIFEST)):
        classes = _manifest(root).classes
        if largest >= len(classes):
            raise GratisError(
                f"{root} holds label {largest}, its manifest {len(classes)} classes; copy it again"
            )
        return classes
    # without names a class is its number, padded so that sorting keeps the order
    return tuple(
        ImageClass(wnid=f"{k:06d}", words=f"{k:06d}", ilsvrc_id=None) for k in range(largest + 1)
    )


def _manifest(root: str) -> Manifest:
    if not addresses.is_url(root):
        return dataset.read_manifest(Path(root))
    with tempfile.TemporaryDirectory() as folder:
        (Path(folder) / dataset.MANIFEST).write_bytes(
            addresses.read(addresses.join(root, dataset.MANIFEST))
        )
        return dataset.read_manifest(Path(folder))
