"""WebDataset archives as a source: a dataset of this project, or any tars of `<key>.<ext>` members.

    SRC/manifest.json             its splits and classes; works where no folder can be listed (HTTP)
    SRC/*.tar                     the split is a word of the tar's name (splits.py); "train" if none
                                  has such a word
    SRC/train/*.tar, SRC/val/*.tar

A sample's members lie side by side and share the name up to its first dot. Its image is the only
one among them, or the only one without a further dot in its extension: `x.jpg` beside
`x.depth.png`, or `x.pgm`. Its label is its `.cls` member, or a field of its `.json` (labels.py).
Hidden members (`._x.jpg`) are passed over.

Such tars are either sharded again (`gratis shards`) or, if their images are square and of one size
already, used as they are (`gratis index`).
"""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from tqdm import tqdm

from gratis import addresses, dataset
from gratis.dataset import ImageClass, Manifest
from gratis.errors import GratisError
from gratis.preprocess.sources.folders import CONTAINERS, some, split_folders
from gratis.preprocess.sources.labels import ClassNames, NoLabelError, label_ending, read_label
from gratis.preprocess.sources.listing import (
    HIDDEN_FILES,
    IMAGE_NAME,
    OTHER_IMAGE_NAME,
    QUIET_S,
    Listing,
    ListingBuilder,
    is_hidden,
)
from gratis.preprocess.sources.shard_lists import ShardList, read_shard_list
from gratis.preprocess.sources.source import DEFAULT, Source, SourceOptions
from gratis.preprocess.sources.splits import SplitName, choose, divide, split_of, unread_note
from gratis.preprocess.sources.tar import COMPRESSED_TARS, Member, extension_of, members

MAP_NAME = re.compile(r"\.p[bgn]m$", re.IGNORECASE)  # often a mask or depth beside the image


class TarSample(NamedTuple):
    """A sample's members, and its image among them, if there is one."""

    key: str
    parts: list[Member]
    picture: Member | None


def open_webdataset(
    root: str, options: SourceOptions = DEFAULT, *, unique: bool = True
) -> Source | None:
    """The archives' classes and listings; None where there are no tars. unique: every sample gets a
    key of its own."""
    manifest = _manifest(root)
    listed = None if manifest else read_shard_list(root)
    found, notes, skipped = _find_archives(root, manifest, listed)
    if not found:
        return None
    archives, unread = choose(root, found, options.val_from)
    if unread:
        notes.append(unread_note(unread, _described(found[unread])))
    builders: dict[str, ListingBuilder] = {}
    names = ClassNames()
    for split, paths in archives.items():
        builder = builders[split] = ListingBuilder((), official=True)
        for path in tqdm(
            paths, f"listing {split}", unit="tar", delay=QUIET_S, leave=False, disable=None
        ):
            before = len(builder)
            builder.containers.append(path)
            samples = _list_archive(path, builder, None if options.unlabelled else names)
            if listed:
                listed.check(path, samples)
            if len(builder) == before:
                builder.containers.pop()
                notes.append(f"passed over {path}: it holds no images")
        if not len(builder):
            raise GratisError(
                f"{root}: the tars of the split {split} hold no images; fill or remove them"
            )
    classes: tuple[ImageClass, ...] = ()
    if not options.unlabelled:
        labels = np.unique(builders["train"].labels)
        classes = _classes(root, manifest, int(labels[-1]), names.names())
    splits: dict[str, Listing] = {}
    for split, builder in builders.items():
        builder.wnids = tuple(entry.wnid for entry in classes)
        splits[split] = builder.build(unique=unique)
        notes += builder.notes
        skipped += builder.skipped
        if not (options.unlabelled or manifest):
            _refuse_unknown(split, splits[split], labels)
    return Source(classes=classes, splits=splits, skipped=tuple(skipped), notes=tuple(notes))


def _find_archives(
    root: str, manifest: Manifest | None, listed: ShardList | None
) -> tuple[dict[SplitName, list[str]], list[str], list[str]]:
    """The archives by split, in order, {} if there are none; and messages on what is not read, and
    on what is lost."""
    if manifest:
        splits = {name: split.shards for name, split in manifest.splits.items()}
        named = {k: [addresses.join(root, shard.name) for shard in v] for k, v in splits.items()}
        return {k: v for name, v in named.items() if (k := split_of(name))}, [], []
    if listed:
        return listed.tars, listed.unlisted(root), []
    if not addresses.is_folder(root):
        return {}, [], []
    folders, notes = split_folders(root)
    lost: list[str] = []
    places = {place: _tars(place, notes, lost) for place in (root, *folders.values())}
    loose = places.pop(root)
    inside = {folder: tars for folder, tars in places.items() if tars}
    for split, folder in folders.items():
        for tar in inside.get(folder, []):
            if split_of(tar) not in (None, split):
                raise GratisError(
                    f"{tar} names another split than its folder, {split}; rename or move it"
                )
    if without := [folder for folder in folders.values() if folder not in inside]:
        notes.append(f"not read, as they hold no tars: {', '.join(without)}")
    divided = divide([*loose, *inside])
    archives = {
        split: [tar for path in paths for tar in inside.get(path, [path])]
        for split, paths in divided.items()
    }
    return archives, notes, lost


def _tars(folder: str, notes: list[str], lost: list[str]) -> list[str]:
    """The tars in a folder, in order."""
    files = [entry.name for entry in addresses.entries(folder) if not entry.is_folder]
    files = [name for name in files if not is_hidden(name)]
    tars = [name for name in files if name.lower().endswith(".tar")]
    if tars and (others := [name for name in files if _may_hold_images(name, set(tars))]):
        notes.append(f"not read, beside tars: {some(others)} in {folder}")
    for name in files:
        if name.lower().endswith(COMPRESSED_TARS):
            lost.append(f"skipped {folder}: {name!r}: it is compressed; decompress it to a .tar")
    return [addresses.join(folder, name) for name in tars]


def _may_hold_images(name: str, tars: set[str]) -> bool:
    """Of a file beside tars: not 00000.parquet or 00000.tar.idx, which are of 00000.tar."""
    small = name.lower()
    named = small.endswith(CONTAINERS) or ".tar." in small or IMAGE_NAME.fullmatch(name)
    read = name in tars or small.endswith(COMPRESSED_TARS)
    return bool(named) and not read and f"{name.partition('.')[0]}.tar" not in tars


def _described(tars: list[str]) -> str:
    counted = "1 tar" if len(tars) == 1 else f"{len(tars):,} tars, the first"
    return f"{counted} {tars[0]}"


def _list_archive(path: str, builder: ListingBuilder, names: ClassNames | None) -> int:
    """Adds the archive's samples, and tells `names` what their classes are called. names: None
    where labels are not to be read. Returns how many samples there are, with and without image."""
    samples = 0

    def pass_over(name: str) -> None:
        builder.pass_over(name, HIDDEN_FILES)

    with addresses.Bytes(path) as archive:
        files = members(archive, path, builder.skip, 0, archive.size)
        for group in group_samples(path, files, pass_over):
            samples += 1
            if group.picture is None:
                _leave_out(group, builder)
            elif names is None:
                builder.add(*group.picture, -1)
            else:
                try:
                    label = read_label(archive, path, group.key, group.parts)
                except NoLabelError as error:
                    raise GratisError(f"{error}{_elsewhere(archive, path, group)}") from None
                names.add(label, group.key)
                builder.add(*group.picture, label.number)
    return samples


def _leave_out(group: TarSample, builder: ListingBuilder) -> None:
    """A sample without an image that is read: lost if it has a label, or an image of another
    kind."""
    first = group.parts[0].name
    if other := [part.name for part in group.parts if OTHER_IMAGE_NAME.fullmatch(part.name)]:
        builder.leave_out(other[0])
    elif any(label_ending(part.name) == "cls" for part in group.parts):
        builder.skip(first, "its sample has a label and no image")
    else:
        builder.pass_over(first, "samples without an image")


def _elsewhere(archive: addresses.Bytes, path: str, group: TarSample) -> str:
    """The end of a message on a sample without a label."""
    for member in members(archive, path, lambda name, reason: None, 0, archive.size):
        apart = _key(member.name) == group.key and member not in group.parts
        if apart and label_ending(member.name):
            return (
                f"; {member.name[-200:]!r} lies elsewhere in this tar, at byte {member.offset:,}: "
                f"a sample's members must lie side by side; write the tar sorted by name"
            )
    return "; add one, or go without labels: --unlabelled"


def group_samples(
    path: str, files: Iterable[Member], pass_over: Callable[[str], None] = lambda name: None
) -> Iterator[TarSample]:
    """The members of the archive at `path` by sample; pass_over(name) is called for hidden ones.
    GratisError for a sample of several images unless exactly one has no further extension, in
    whatever order they are."""
    key, parts = "", list[Member]()
    for member in files:
        name = member.name
        if is_hidden(name):
            pass_over(name)
            continue
        own = _key(name)
        if own != key and parts:
            yield TarSample(key, parts, _picture(path, key, parts))
            parts = []
        key = own
        parts.append(member)
    if parts:
        yield TarSample(key, parts, _picture(path, key, parts))


def _picture(path: str, key: str, parts: list[Member]) -> Member | None:
    images = [member for member in parts if IMAGE_NAME.fullmatch(member.name)]
    if len(images) < 2:
        return images[0] if images else None
    plain = [member for member in images if "." not in extension_of(member.name)]
    if len(plain) > 1:
        plain = [member for member in plain if not MAP_NAME.search(member.name)]
    if len(plain) != 1:
        names = sorted(os.path.basename(member.name)[:200] for member in images)
        way_out = "leave one, or give the others a further extension (x.mask.png)"
        raise GratisError(
            f"{path}: the sample {key[:200]!r} has {len(images)} images, "
            f"{names[0]} and {names[1]}; {way_out}; a key ends at its first dot"
        )
    return plain[0]


def label_of(archive: addresses.Bytes, path: str, group: TarSample) -> int:
    """The sample's class number. GratisError if it has none, or two."""
    return read_label(archive, path, group.key, group.parts).number


def _key(name: str) -> str:
    dot = name.find(".", name.rfind("/") + 1)
    return name if dot < 0 else name[:dot]


def _classes(
    root: str, manifest: Manifest | None, largest: int, names: dict[int, str]
) -> tuple[ImageClass, ...]:
    if manifest:
        classes = manifest.classes
        if largest >= len(classes):
            raise GratisError(
                f"{root} holds label {largest}, its manifest {len(classes)} classes; copy it again"
            )
        return classes
    # a class is its number, padded so that sorting keeps the order
    numbers = {label: f"{label:06d}" for label in range(largest + 1)}
    return tuple(
        ImageClass(wnid=number, words=names.get(label, number), ilsvrc_id=None)
        for label, number in numbers.items()
    )


def _refuse_unknown(split: str, listing: Listing, labels: NDArray[np.int32]) -> None:
    """GratisError for the first sample of a class that is not among these, which are train's."""
    unknown = np.flatnonzero(~np.isin(listing.label, labels))
    if len(unknown):
        item = listing.item(int(unknown[0]))
        raise GratisError(
            f"{item.source} of the split {split} has label {item.label}, which no sample of train "
            f"has ({len(unknown):,} such samples, train's labels are {labels[0]} to {labels[-1]}); "
            f"relabel or remove them"
        )


def _manifest(root: str) -> Manifest | None:
    path = addresses.join(root, dataset.MANIFEST)
    if not addresses.is_file(path):
        return None
    if not addresses.is_url(root):
        return dataset.read_manifest(Path(root))
    return dataset.parse_manifest(addresses.read(path), path)
