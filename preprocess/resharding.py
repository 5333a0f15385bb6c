"""WebDataset archives as a source: a dataset of this project, or anybody's tars of `<key>.<ext>` members.

    SRC/manifest.json           its splits and classes; works where no folder can be listed (a web server)
    SRC/*.tar                   val*.tar and validation*.tar are the split "val", all others "train"
    SRC/train/*.tar, SRC/val/*.tar

A sample's members lie side by side and share what precedes the name's first dot. Its label is its `.cls` member, or
"label" in its `.json` (img2dataset writes such with save_additional_columns=["label"]).
"""

from __future__ import annotations

import json
import os
import re
import tempfile
from collections.abc import Iterator
from itertools import groupby
from pathlib import Path

from tqdm import tqdm

from preprocess import dataset, files
from preprocess.archives import Member, members
from preprocess.dataset import ImageClass, Manifest
from preprocess.errors import UserError
from preprocess.listing import IMAGE_NAME, Listing, ListingBuilder

VAL_NAME = re.compile(r"val(idation)?([-_.]|\d|$)")
LONGEST_LABEL = 1 << 16  # bytes of a .cls or .json member

Found = dict[str, list[str]]  # split -> archives in order


def find_archives(root: str) -> Found:
    """The archives by split; {} if there are none."""
    if files.is_file(files.join(root, dataset.MANIFEST)):
        splits = _manifest(root).splits.items()
        return {name: [files.join(root, shard.name) for shard in split.shards] for name, split in splits}
    found: Found = {"train": [], "val": []}
    for folder in ("", "train", "val"):
        place = files.join(root, folder) if folder else root
        if not files.is_folder(place):
            continue
        for entry in files.entries(place):
            if entry.name.endswith(".tar") and not entry.is_folder:
                split = folder or ("val" if VAL_NAME.match(entry.name) else "train")
                found[split].append(files.join(place, entry.name))
    if found["val"] and not found["train"]:
        raise UserError(f"{root} holds tars of a validation split alone; put the training split's beside them")
    return {split: places for split, places in found.items() if places}


def list_archives(root: str, found: Found) -> tuple[tuple[ImageClass, ...], dict[str, Listing], tuple[str, ...]]:
    """Classes, a listing by split, and what was skipped. Keys are kept as they are."""
    builders = {split: ListingBuilder((), official=True) for split in found}
    largest = -1
    for split, places in found.items():
        for place in tqdm(places, f"listing {split}", unit="tar", delay=2.0, leave=False):
            builders[split].containers.append(place)
            largest = max(largest, _list_archive(place, builders[split]))
    classes = _classes(root, largest)
    wnids = tuple(entry.wnid for entry in classes)
    for builder in builders.values():
        builder.wnids = wnids
    skipped = tuple(line for builder in builders.values() for line in builder.skipped)
    return classes, {split: builder.build() for split, builder in builders.items()}, skipped


def _list_archive(place: str, builder: ListingBuilder) -> int:
    """Adds the archive's samples; their largest label."""
    largest = -1
    with files.Bytes(place) as archive:
        for key, group in groupby(members(archive, place, builder.skip, 0, archive.size), lambda m: _key(m.name)):
            parts = list(group)
            pictures = [member for member in parts if IMAGE_NAME.fullmatch(member.name)]
            if not pictures:
                builder.skip(key, "it has no image")
                continue
            label = _label(archive, place, key, parts)
            builder.add(pictures[0].name, pictures[0].offset, pictures[0].size, label)
            largest = max(largest, label)
    return largest


def _key(name: str) -> str:
    folder, slash, base = name.rpartition("/")
    return folder + slash + base.partition(".")[0]


def _label(archive: files.Bytes, place: str, key: str, parts: list[Member]) -> int:
    for value in _labels(archive, parts):
        if isinstance(value, int) and 0 <= value < 1_000_000:
            return value
        raise UserError(f"{place}: the label of {key[:200]!r} is {str(value)[:50]!r}, no class number from 0 on")
    raise UserError(f'{place}: {key[:200]!r} has no label: neither a .cls member nor "label" in its .json')


def _labels(archive: files.Bytes, parts: list[Member]) -> Iterator[object]:
    for member in parts:
        extension = os.path.basename(member.name).partition(".")[2]
        if extension not in ("cls", "json") or member.size > LONGEST_LABEL:
            continue
        text = archive.read(member.offset, member.size)
        try:
            value = json.loads(text)  # of a .cls too: digits are JSON
        except ValueError:
            value = text.decode(errors="replace")
        if extension == "cls":
            yield value
        elif isinstance(value, dict) and "label" in value:
            yield value["label"]


def _classes(root: str, largest: int) -> tuple[ImageClass, ...]:
    if files.is_file(files.join(root, dataset.MANIFEST)):
        classes = _manifest(root).classes
        if largest >= len(classes):
            raise UserError(f"{root} holds label {largest}, its manifest {len(classes)} classes; copy it again")
        return classes
    # without names a class is its number, padded so that sorting keeps the order
    return tuple(ImageClass(wnid=f"{k:06d}", words=f"{k:06d}", ilsvrc_id=None) for k in range(largest + 1))


def _manifest(root: str) -> Manifest:
    if not files.is_url(root):
        return dataset.read_manifest(Path(root))
    with tempfile.TemporaryDirectory() as folder:
        (Path(folder) / dataset.MANIFEST).write_bytes(files.read(files.join(root, dataset.MANIFEST)))
        return dataset.read_manifest(Path(folder))
