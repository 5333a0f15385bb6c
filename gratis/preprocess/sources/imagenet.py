"""The official ILSVRC2012 archives and their devkit as a source."""

from __future__ import annotations

import gzip
import hashlib
import os
import zlib
from typing import NamedTuple

from tqdm import tqdm

from gratis import addresses
from gratis.dataset import ImageClass
from gratis.errors import GratisError
from gratis.preprocess.sources import matlab
from gratis.preprocess.sources.listing import QUIET_S, ListingBuilder, is_hidden
from gratis.preprocess.sources.source import Source, SourceOptions
from gratis.preprocess.sources.tar import Member, members

TRAIN = "ILSVRC2012_img_train.tar"
VAL = "ILSVRC2012_img_val.tar"
DEVKIT = "ILSVRC2012_devkit_t12.tar.gz"
META = "ILSVRC2012_devkit_t12/data/meta.mat"
TRUTH = "ILSVRC2012_devkit_t12/data/ILSVRC2012_validation_ground_truth.txt"
ARCHIVE_MD5 = {
    TRAIN: "1d675b47d978889d74fa0da5fadfb00e",
    VAL: "29b22e2961454d5413ddabcf34fc5622",
    DEVKIT: "fa75699e90414af021442c21a62c3abf",
}
MD5_CHUNK = 8 << 20
GZIP = b"\x1f\x8b"
MOST_DEVKIT = 64 << 20  # bytes of the devkit, unpacked; the official meta.mat has half a million


class Synset(NamedTuple):
    """A class of the devkit. ilsvrc_id: 1-based, in another order than the wnids; images: how many
    the training archive has."""

    wnid: str
    words: str
    ilsvrc_id: int
    images: int


class _Unpacked(NamedTuple):
    """The bytes of a small archive, to be read at random."""

    data: bytes

    @property
    def size(self) -> int:
        return len(self.data)

    def read(self, start: int, size: int) -> bytes:
        return self.data[start : start + size]


def open_imagenet(root: str, options: SourceOptions) -> Source | None:
    """The archives' classes and listings; None where none of the three archives is."""
    there = [addresses.is_file(addresses.join(root, name)) for name in (TRAIN, VAL, DEVKIT)]
    if not any(there):
        return None
    for name, exists in zip((TRAIN, VAL, DEVKIT), there, strict=True):
        if not exists:
            raise GratisError(f"{root} lacks {name}; put it beside the other archives")
    if options.val_from == "test":
        raise GratisError("--val-from test: the labels of the official test images are not public")
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
    classes = [ImageClass(wnid=s.wnid, words=s.words, ilsvrc_id=s.ilsvrc_id) for s in synsets]
    splits = {"train": train.build(), "val": val.build()}
    source = Source(
        classes=tuple(classes),
        splits=splits,
        skipped=(*train.skipped, *val.skipped),
        notes=(*train.notes, *val.notes),
    )
    return source.without_labels() if options.unlabelled else source


def check_md5(root: str, published: dict[str, str]) -> None:
    """Compares the archives of a folder with their published md5 sums. GratisError naming the first
    that differs."""
    for name, expected in published.items():
        path = addresses.join(root, name)
        if not addresses.is_file(path):
            raise GratisError(
                f"{root} lacks {name}, so that there is no md5 to check; leave --check-md5 out"
            )
        md5 = _md5(path, name)
        if md5 != expected:
            raise GratisError(
                f"{path} has md5 {md5}, the published one is {expected}; get it again"
            )


def _md5(path: str, name: str) -> str:
    digest = hashlib.md5(usedforsecurity=False)
    with addresses.Bytes(path) as archive:
        style = {"unit": "B", "unit_scale": True, "delay": QUIET_S, "leave": False, "disable": None}
        with tqdm(total=archive.size, desc=f"md5 {name}", **style) as bar:
            for start in range(0, archive.size, MD5_CHUNK):
                digest.update(archive.read(start, min(MD5_CHUNK, archive.size - start)))
                bar.update(MD5_CHUNK)
    return digest.hexdigest()


def read_devkit(path: str) -> tuple[list[Synset], list[int]]:
    """The leaf classes in the devkit's order, and the validation images' ILSVRC2012_IDs in the
    order of their names. GratisError where it is no such devkit."""
    try:
        files = _devkit_files(path)
        rows = matlab.read_struct(files[META], "synsets")
        truth = [int(line) for line in files[TRUTH].split()]
        return [_synset(row) for row in rows if matlab.whole(row["num_children"]) == 0], truth
    except (zlib.error, EOFError, OSError, LookupError, ValueError, TypeError) as error:
        reason = " ".join(str(error).split())
        raise GratisError(f"{path} is no ILSVRC2012 devkit ({reason}); get it again") from None


def _devkit_files(path: str) -> dict[str, bytes]:
    """By name; a devkit that somebody has unpacked to a plain tar is read too."""
    with addresses.open_file(path) as file:
        packed = file.read(len(GZIP)) == GZIP
        file.seek(0)
        data = (gzip.GzipFile(fileobj=file) if packed else file).read(MOST_DEVKIT + 1)
    if len(data) > MOST_DEVKIT:
        raise ValueError(f"unpacked it has more than {MOST_DEVKIT} bytes")
    files = members(_Unpacked(data), path, lambda name, reason: None, 0, len(data))
    return {file.name: data[file.offset : file.offset + file.size] for file in files}


def _synset(row: dict[str, matlab.Value]) -> Synset:
    return Synset(
        wnid=str(row["WNID"]),
        words=str(row["words"]),
        ilsvrc_id=matlab.whole(row["ILSVRC2012_ID"]),
        images=matlab.whole(row["num_train_images"]),
    )


def _list_train(path: str, synsets: list[Synset], builder: ListingBuilder) -> None:
    builder.containers.append(path)
    with addresses.Bytes(path) as archive:
        tars = _class_tars(path, archive, builder)
        for label, synset in enumerate(
            tqdm(synsets, "listing", delay=QUIET_S, leave=False, disable=None)
        ):
            if synset.wnid not in tars:
                raise GratisError(
                    f"{path} lacks {synset.wnid}.tar, a class of {DEVKIT}; get the archive again"
                )
            inner, before = tars[synset.wnid], len(builder)
            within, end = f"{path}:{inner.name}", inner.offset + inner.size
            for member in members(archive, within, builder.skip, inner.offset, end):
                builder.add(member.name, member.offset, member.size, label)
            count = len(builder) - before
            if count != synset.images:
                wrong = f"{inner.name} has {count} images, {DEVKIT} says {synset.images}"
                raise GratisError(f"{path}: {wrong}; get both again")


def _class_tars(path: str, archive: addresses.Bytes, builder: ListingBuilder) -> dict[str, Member]:
    """By wnid: the tars inside the training archive."""
    tars: dict[str, Member] = {}
    for member in members(archive, path, builder.skip, 0, archive.size):
        wnid = os.path.basename(member.name).removesuffix(".tar")
        if wnid not in builder.wnids or not member.name.endswith(".tar"):
            builder.skip(member.name, "it is no class of the devkit")
        elif wnid in tars:
            raise GratisError(f"{path} holds {member.name} twice; get the archive again")
        else:
            tars[wnid] = member
    return tars


def _list_val(path: str, synsets: list[Synset], truth: list[int], builder: ListingBuilder) -> None:
    builder.containers.append(path)
    label_of = {synset.ilsvrc_id: label for label, synset in enumerate(synsets)}
    with addresses.Bytes(path) as archive:
        listed = members(archive, path, builder.skip, 0, archive.size)
        files = sorted(member for member in listed if not is_hidden(member.name))
    if len(files) != len(truth):
        raise GratisError(
            f"{path} has {len(files)} images, the ground truth in {DEVKIT} has {len(truth)} "
            f"lines; get both again"
        )
    for member, ilsvrc_id in zip(files, truth, strict=True):
        if ilsvrc_id not in label_of:
            wrong = f"names class {ilsvrc_id} for {member.name}: no such class"
            raise GratisError(f"the ground truth in {DEVKIT} {wrong}")
        builder.add(member.name, member.offset, member.size, label_of[ilsvrc_id])
