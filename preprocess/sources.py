"""Sources: a folder with the official ILSVRC2012 archives, or train/<class>/* and, if present, val/<class>/* folders.

Both become listings: nothing is extracted or copied. A label is the rank of its class's wnid in sorted order.
"""

from __future__ import annotations

import hashlib
import os
from dataclasses import dataclass
from pathlib import Path

from tqdm import tqdm

from preprocess.archives import DEVKIT, TRAIN, VAL, Synset, members, read_devkit
from preprocess.dataset import ImageClass
from preprocess.errors import UserError
from preprocess.listing import Item, Listing, ListingBuilder

QUIET_S = 2.0  # a progress bar appears for what takes longer


@dataclass(frozen=True, kw_only=True)
class Source:
    """Classes in label order, and a listing for "train" and, where there is one, "val".

    skipped says, in a line each, what in the source is no sample.
    """

    classes: tuple[ImageClass, ...]
    splits: dict[str, Listing]
    skipped: tuple[str, ...]

    @property
    def fingerprint(self) -> str:
        """sha256 of classes, names, sizes and labels. Contents are not read: an edit that keeps sizes goes unseen."""
        digest = hashlib.sha256()
        for part in [[c.wnid, c.words, c.ilsvrc_id] for c in self.classes]:
            digest.update(repr(part).encode())
        for split, listing in sorted(self.splits.items()):
            digest.update(split.encode())
            for column in (listing.label, listing.size, listing.name_end):
                digest.update(column.astype(column.dtype.newbyteorder("<")).tobytes())
            digest.update(listing.names)
        return digest.hexdigest()


def open_source(root: Path) -> Source:
    """Lists the source at `root`. Raises UserError naming what is missing, empty or contradictory."""
    if not root.is_dir():
        raise UserError(f"no such folder: {root}; SRC is a folder with the ILSVRC2012 archives or train/<class>/*")
    if any((root / name).exists() for name in (TRAIN, VAL, DEVKIT)):
        return _open_archives(root)
    if (root / "train").is_dir():
        return _open_folders(root)
    raise UserError(f"{root} holds neither {TRAIN} nor a folder train/<class>/; give the folder that does")


class Reader:
    """Reads items' bytes. Keeps the archives open; class folders' files are opened one by one."""

    def __init__(self) -> None:
        self._archives: dict[str, int] = {}

    def read(self, item: Item) -> bytes:
        if item.offset < 0:
            with open(os.path.join(item.container, item.name), "rb") as file:
                return file.read()
        if item.container not in self._archives:
            self._archives[item.container] = os.open(item.container, os.O_RDONLY | os.O_CLOEXEC)
        return os.pread(self._archives[item.container], item.size, item.offset)


def _open_archives(root: Path) -> Source:
    for name in (TRAIN, VAL, DEVKIT):
        if not (root / name).is_file():
            raise UserError(f"{root} lacks {name}; put it beside the other archives")
    synsets, truth = read_devkit(root / DEVKIT)
    synsets = sorted(synsets)
    wnids = tuple(synset.wnid for synset in synsets)
    if len(set(wnids)) < len(wnids) or not wnids:
        raise UserError(f"{root / DEVKIT} lists {len(wnids)} classes, {len(set(wnids))} different; get it again")
    train, val = ListingBuilder(wnids, official=True), ListingBuilder(wnids, official=True)
    _list_train(root / TRAIN, synsets, train)
    _list_val(root / VAL, synsets, truth, val)
    return Source(
        classes=tuple(ImageClass(wnid=s.wnid, words=s.words, ilsvrc_id=s.ilsvrc_id) for s in synsets),
        splits={"train": train.build(), "val": val.build()},
        skipped=(*train.skipped, *val.skipped),
    )


def _list_train(path: Path, synsets: list[Synset], builder: ListingBuilder) -> None:
    builder.containers.append(str(path))
    found = {}
    for member in members(path, builder.skip):
        wnid = os.path.basename(member.name).removesuffix(".tar")
        if wnid not in builder.wnids or not member.name.endswith(".tar"):
            builder.skip(member.name, "it is no class of the devkit")
        elif wnid in found:
            raise UserError(f"{path} holds {member.name} twice; get the archive again")
        else:
            found[wnid] = member
    for label, synset in enumerate(tqdm(synsets, "listing", delay=QUIET_S, leave=False)):
        if synset.wnid not in found:
            raise UserError(f"{path} lacks {synset.wnid}.tar, a class of {DEVKIT}; get the archive again")
        inner, before = found[synset.wnid], len(builder)
        for member in members(path, builder.skip, inner.offset, inner.offset + inner.size):
            builder.add(member.name, member.offset, member.size, label)
        if len(builder) - before != synset.images:
            count = len(builder) - before
            raise UserError(f"{path}: {inner.name} has {count} images, {DEVKIT} says {synset.images}; get both again")


def _list_val(path: Path, synsets: list[Synset], truth: list[int], builder: ListingBuilder) -> None:
    builder.containers.append(str(path))
    label_of = {synset.ilsvrc_id: label for label, synset in enumerate(synsets)}
    found = sorted(members(path, builder.skip))
    if len(found) != len(truth):
        raise UserError(
            f"{path} has {len(found)} images, the ground truth in {DEVKIT} has {len(truth)} lines; get both again"
        )
    for member, ilsvrc_id in zip(found, truth, strict=True):
        if ilsvrc_id not in label_of:
            raise UserError(f"the ground truth in {DEVKIT} names class {ilsvrc_id} for {member.name}: no such class")
        builder.add(member.name, member.offset, member.size, label_of[ilsvrc_id])


def _open_folders(root: Path) -> Source:
    wnids = tuple(_folders(root / "train"))
    if not wnids:
        raise UserError(f"{root / 'train'} has no class folders; expected {root / 'train'}/<class>/<image>")
    splits, skipped = {}, []
    for split in ("train", "val"):
        if (root / split).is_dir():
            builder = ListingBuilder(wnids, official=False)
            _list_folders(root / split, builder)
            splits[split] = builder.build()
            skipped += builder.skipped
    classes = tuple(ImageClass(wnid=wnid, words=wnid, ilsvrc_id=None) for wnid in wnids)
    return Source(classes=classes, splits=splits, skipped=tuple(skipped))


def _list_folders(root: Path, builder: ListingBuilder) -> None:
    labels = {wnid: label for label, wnid in enumerate(builder.wnids)}
    for wnid in tqdm(_folders(root), "listing", delay=QUIET_S, leave=False):
        folder = root / wnid
        if wnid not in labels:
            raise UserError(f"{folder} has no counterpart in {root.parent / 'train'}; remove it or add the class there")
        builder.containers.append(str(folder))
        before = len(builder)
        with os.scandir(folder) as entries:
            for entry in sorted(entries, key=lambda entry: entry.name):
                if not entry.is_file():
                    builder.skip(entry.name, "it is not a file")
                elif not entry.name.startswith("."):
                    builder.add(entry.name, -1, entry.stat().st_size, labels[wnid])
        if len(builder) == before:
            raise UserError(f"{folder} holds no images; fill the class folder or remove it")


def _folders(root: Path) -> list[str]:
    return sorted(entry.name for entry in os.scandir(root) if entry.is_dir() and not entry.name.startswith("."))
