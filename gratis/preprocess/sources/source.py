"""Sources: the official ILSVRC2012 archives, class folders, or WebDataset archives; in a folder or
at a URL.

All become listings: nothing is extracted or copied. A label is the rank of its class's wnid in
sorted order."""

from __future__ import annotations

import hashlib
import os
from dataclasses import dataclass

import numpy as np
from tqdm import tqdm

from gratis import addresses
from gratis.atomic import open_files
from gratis.dataset import ImageClass
from gratis.errors import GratisError
from gratis.preprocess.sources import webdataset
from gratis.preprocess.sources.archives import DEVKIT, TRAIN, VAL, Synset, members, read_devkit
from gratis.preprocess.sources.listing import IMAGE_NAME, Item, Listing, ListingBuilder

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
        """sha256 of classes, names, sizes and labels. Contents are not read: an edit that keeps
        sizes goes unseen."""
        digest = hashlib.sha256()
        for part in [[c.wnid, c.words, c.ilsvrc_id] for c in self.classes]:
            digest.update(repr(part).encode())
        for split, listing in sorted(self.splits.items()):
            digest.update(split.encode())
            for column in (listing.label, listing.size, listing.name_end):
                digest.update(column.astype(column.dtype.newbyteorder("<")).tobytes())
            digest.update(listing.names)
            for row in np.flatnonzero(
                listing.shared
            ).tolist():  # these keys come from the archives' names too
                digest.update(listing.item(row).key.encode())
        return digest.hexdigest()

    def limited(self, classes: int | None, per_class: int | None) -> Source:
        """The first `classes` classes, and of each the first `per_class` images of a split, as they
        are listed."""
        if classes is None and per_class is None:
            return self
        kept = self.classes[:classes]
        splits = {}
        for split, listing in self.splits.items():
            rows = np.flatnonzero(listing.label < len(kept))
            if per_class is not None:
                order = rows[np.argsort(listing.label[rows], kind="stable")]
                labels = listing.label[order]
                rows = np.sort(
                    order[np.arange(len(order)) - np.searchsorted(labels, labels) < per_class]
                )
            splits[split] = listing.take(rows)
            if not len(rows):  # classes are cut, as each is listed with an image at least
                way_out = (
                    f"with {int(listing.label.min()) + 1} there is one; or take {split} out of SRC"
                )
                raise GratisError(
                    f"--limit-classes {classes} leaves no image of the split {split}; {way_out}"
                )
        return Source(classes=kept, splits=splits, skipped=self.skipped)


def open_source(root: str) -> Source:
    """Lists the source at `root`. Raises GratisError naming what is missing, unreadable, empty or
    contradictory."""
    try:
        return _open(root)
    except OSError as error:  # of a local one; servers' are told already
        told = f"cannot read {error.filename or root}: {error.strerror or error}"
        raise GratisError(f"{told}; mend that, or its permissions, or give another SRC") from None


def _open(root: str) -> Source:
    if not addresses.is_url(root) and not addresses.is_folder(root):
        raise GratisError(
            f"no such folder: {root}; SRC is a folder with the ILSVRC2012 archives, "
            f"train/<class>/* or WebDataset tars"
        )
    if any(addresses.is_file(addresses.join(root, name)) for name in (TRAIN, VAL, DEVKIT)):
        return _open_archives(root)
    train = addresses.join(root, "train")
    folders = addresses.is_folder(train) and bool(_folders(train))
    found = {} if folders else webdataset.find_archives(root)
    if found:
        classes, splits, skipped = webdataset.list_archives(root, found)
        return Source(classes=classes, splits=splits, skipped=skipped)
    if addresses.is_folder(train):
        return _open_folders(root)
    raise GratisError(
        f"{root} holds neither {TRAIN} nor train/<class>/ nor WebDataset tars{_but(root)}; give "
        f"the folder that does "
        "(a web server lists no folders: there, the ILSVRC2012 archives or a dataset with its "
        "manifest.json)"
    )


class Reader:
    """Reads items' bytes. Keeps local archives open until its block ends, of many the last; class
    folders' files are opened one by one."""

    def __init__(self) -> None:
        self._archives: dict[str, int] = {}
        self._most = open_files()

    def read(self, item: Item) -> bytes:
        if addresses.is_url(item.container):
            if item.offset < 0:
                return addresses.read_range(addresses.join(item.container, item.name), 0, None)
            return addresses.read_range(item.container, item.offset, item.offset + item.size)
        if item.offset < 0:
            with open(os.path.join(item.container, item.name), "rb") as file:
                return file.read()
        if item.container not in self._archives:
            if len(self._archives) >= self._most:
                os.close(self._archives.pop(next(iter(self._archives))))
            self._archives[item.container] = os.open(item.container, os.O_RDONLY | os.O_CLOEXEC)
        return os.pread(self._archives[item.container], item.size, item.offset)

    def __enter__(self) -> Reader:
        return self

    def __exit__(self, *error: object) -> None:
        while self._archives:
            os.close(self._archives.popitem()[1])


def _open_archives(root: str) -> Source:
    for name in (TRAIN, VAL, DEVKIT):
        if not addresses.is_file(addresses.join(root, name)):
            raise GratisError(f"{root} lacks {name}; put it beside the other archives")
    kit = addresses.join(root, DEVKIT)
    synsets, truth = read_devkit(kit)
    synsets = sorted(synsets)
    wnids = tuple(synset.wnid for synset in synsets)
    if len(set(wnids)) < len(wnids) or not wnids:
        raise GratisError(
            f"{kit} lists {len(wnids)} classes, {len(set(wnids))} different; get it again"
        )
    train, val = ListingBuilder(wnids, official=True), ListingBuilder(wnids, official=True)
    _list_train(addresses.join(root, TRAIN), synsets, train)
    _list_val(addresses.join(root, VAL), synsets, truth, val)
    return Source(
        classes=tuple(
            ImageClass(wnid=s.wnid, words=s.words, ilsvrc_id=s.ilsvrc_id) for s in synsets
        ),
        splits={"train": train.build(), "val": val.build()},
        skipped=(*train.skipped, *val.skipped),
    )


def _list_train(path: str, synsets: list[Synset], builder: ListingBuilder) -> None:
    builder.containers.append(path)
    found = {}
    with addresses.Bytes(path) as archive:
        for member in members(archive, path, builder.skip, 0, archive.size):
            wnid = os.path.basename(member.name).removesuffix(".tar")
            if wnid not in builder.wnids or not member.name.endswith(".tar"):
                builder.skip(member.name, "it is no class of the devkit")
            elif wnid in found:
                raise GratisError(f"{path} holds {member.name} twice; get the archive again")
            else:
                found[wnid] = member
        for label, synset in enumerate(tqdm(synsets, "listing", delay=QUIET_S, leave=False)):
            if synset.wnid not in found:
                raise GratisError(
                    f"{path} lacks {synset.wnid}.tar, a class of {DEVKIT}; get the archive again"
                )
            inner, before = found[synset.wnid], len(builder)
            for member in members(
                archive, path, builder.skip, inner.offset, inner.offset + inner.size
            ):
                builder.add(member.name, member.offset, member.size, label)
            if len(builder) - before != synset.images:
                wrong = (
                    f"{inner.name} has {len(builder) - before} images, {DEVKIT} says "
                    f"{synset.images}"
                )
                raise GratisError(f"{path}: {wrong}; get both again")


def _list_val(path: str, synsets: list[Synset], truth: list[int], builder: ListingBuilder) -> None:
    builder.containers.append(path)
    label_of = {synset.ilsvrc_id: label for label, synset in enumerate(synsets)}
    with addresses.Bytes(path) as archive:
        found = sorted(members(archive, path, builder.skip, 0, archive.size))
    if len(found) != len(truth):
        raise GratisError(
            f"{path} has {len(found)} images, the ground truth in {DEVKIT} has {len(truth)} "
            f"lines; get both again"
        )
    for member, ilsvrc_id in zip(found, truth, strict=True):
        if ilsvrc_id not in label_of:
            raise GratisError(
                f"the ground truth in {DEVKIT} names class {ilsvrc_id} for {member.name}: no such "
                f"class"
            )
        builder.add(member.name, member.offset, member.size, label_of[ilsvrc_id])


def _open_folders(root: str) -> Source:
    wnids = tuple(_folders(addresses.join(root, "train")))
    if not wnids:
        train = addresses.join(root, "train")
        raise GratisError(
            f"{train} has no class folders{_but(train)}; expected {train}/<class>/<image>"
        )
    for wnid in wnids:
        if wnid != wnid.encode(errors="replace").decode():  # surrogates, which no manifest can hold
            raise GratisError(
                f"{addresses.join(root, 'train')} holds a class folder named {wnid!r}: no UTF-8; "
                f"rename it"
            )
    splits, skipped = {}, []
    for split in ("train", "val"):
        if addresses.is_folder(addresses.join(root, split)):
            builder = ListingBuilder(wnids, official=False)
            _list_folders(addresses.join(root, split), builder)
            splits[split] = builder.build()
            skipped += builder.skipped
    classes = tuple(ImageClass(wnid=wnid, words=wnid, ilsvrc_id=None) for wnid in wnids)
    return Source(classes=classes, splits=splits, skipped=tuple(skipped))


def _list_folders(root: str, builder: ListingBuilder) -> None:
    labels = {wnid: label for label, wnid in enumerate(builder.wnids)}
    classes = _folders(root)
    if not classes:
        way_out = "sort the images into class folders as train's, or rename it to go without"
        official = (
            f"(the labels of the official images are in {DEVKIT}: SRC may hold the "
            f"archives themselves)"
        )
        raise GratisError(f"{root} has no class folders{_but(root)}; {way_out} {official}")
    loose = [
        entry.name
        for entry in addresses.entries(root)
        if not entry.is_folder and IMAGE_NAME.fullmatch(entry.name)
    ]
    if loose:
        more = f" and {len(loose) - 1:,} more" if len(loose) > 1 else ""
        builder.skipped.append(f"skipped {root}: {loose[0]!r}{more}: in no class folder")
    for wnid in tqdm(classes, "listing", delay=QUIET_S, leave=False):
        folder = addresses.join(root, wnid)
        if wnid not in labels:
            raise GratisError(
                f"{folder} has no counterpart in train; remove it or add the class there"
            )
        builder.containers.append(folder)
        before = len(builder)
        for entry in addresses.entries(folder):
            if entry.is_folder or entry.size < 0:
                builder.skip(entry.name, "it is not a file")
            elif not entry.name.startswith("."):
                builder.add(entry.name, -1, entry.size, labels[wnid])
        if len(builder) == before:
            raise GratisError(_no_images(root, folder))


def _no_images(root: str, folder: str) -> str:
    if not _folders(folder):
        return f"{folder} holds no images{_but(folder)}; fill the class folder or remove it"
    return (
        f"{folder} holds no images{_but(folder)}; class folders lie directly in {root}, images "
        f"directly in them"
    )


def _but(folder: str) -> str:
    """What the folder holds instead of what was looked for."""
    if not addresses.is_folder(folder):
        return ""
    there = [
        f"{entry.name}/" if entry.is_folder else entry.name for entry in addresses.entries(folder)
    ]
    shown = ", ".join(there[:3]) + (f" and {len(there) - 3:,} more" if len(there) > 3 else "")
    return f" but {shown}" if there else ", nor anything else"


def _folders(root: str) -> list[str]:
    return [
        entry.name
        for entry in addresses.entries(root)
        if entry.is_folder and not entry.name.startswith(".")
    ]
