"""The index command: tars that somebody else wrote become a dataset as they are. No tar is
rewritten.

    gratis index TARS              a manifest, indices and statistics beside them
    gratis index TARS --out OUT    or in OUT, with a symbolic link to each tar

The loader reads images that are square, of one size, RGB or greyscale JPEG (or PPM as this project
writes it), each with a class number (gratis.preprocess.sources.webdataset says where it is looked
for). Other images are no matter of an index: the tars are refused, and `make shards SRC=TARS` makes
them so. Every image is decoded once, for the statistics, and because one that no decoder takes
would end an epoch: such are refused beyond --max-rejects, else left out of the index. An .idx
beside a tar, or another file of a dataset's names, is written over if an index has left it: else it
is refused. In OUT a tar that is no link is always refused, and links of an earlier index to tars
that are no more go. The decoder here is Pillow's libjpeg-turbo. Files of other encoders may be odd
enough for training's to refuse what it took; the loader names such a sample, and its
`bad_samples="quarantine"` goes on without it."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import tyro
from numpy.typing import NDArray

from gratis import addresses, dataset, image
from gratis.atomic import sha256_file
from gratis.dataset import Manifest, read_manifest
from gratis.errors import GratisError
from gratis.preprocess.execution.workers import Report, run_tasks
from gratis.preprocess.output.ownership import (
    INDEXING,
    claimed,
    names_in,
    refuse_unindexed,
    surplus,
)
from gratis.preprocess.output.store import WORK, LocalStore, publish_bytes
from gratis.preprocess.sources.archives import members
from gratis.preprocess.sources.listing import Item, Listing
from gratis.preprocess.sources.source import Reader, Source
from gratis.preprocess.sources.webdataset import (
    find_archives,
    grouped,
    idx_bytes,
    idx_line,
    list_archives,
)
from gratis.preprocess.stages.plan import PLAN, tools
from gratis.preprocess.stages.progress import Progress
from gratis.preprocess.stages.publish import publish, summary
from gratis.preprocess.stages.shard import (
    Receipt,
    read_receipt,
    refuse_unread,
    rejected,
    write_receipt,
)
from gratis.preprocess.stages.statistics import Accumulator
from gratis.preprocess.verify import local_folder

SMALLEST = 8  # pixels a side, as of the shards command
KINDS = {"jpeg": "JPEG", "raw": "PPM"}  # codec of a dataset -> what Pillow calls the files


@dataclass(frozen=True, kw_only=True)
class IndexConfig:
    """Makes a dataset of tars that somebody else wrote, without rewriting them."""

    tars: tyro.conf.Positional[str]
    """Folder of WebDataset tars: val*.tar and val/*.tar are the validation split, all others are
    for training."""
    out: str | None = None
    """Folder for the dataset, with a link to each tar. Default: the tars' own."""
    max_rejects: int = 0
    """Publish although up to so many images cannot be decoded: without them."""
    workers: int | None = None
    """Processes. Default: one per core that this process may use."""

    def __post_init__(self) -> None:
        if self.max_rejects < 0:
            raise GratisError(f"--max-rejects {self.max_rejects}: 0 or more")
        if self.workers is not None and not 1 <= self.workers <= 10_000:
            raise GratisError(f"--workers {self.workers}: between 1 and 10,000")


@dataclass(frozen=True, kw_only=True)
class IndexTask:
    """One tar, for a worker: `items` are its images in order, all to be of this size and codec."""

    out: str
    split: str
    tar: str
    name: str
    items: tuple[Item, ...]
    size: int
    codec: str
    condemned: dict[int, str] = field(default_factory=dict)

    def make(self, begin: Callable[[int], None], report: Report) -> None:
        with Reader() as reader:
            receipt = _look(self, reader, begin, report)
        begin(-1)
        store = LocalStore(self.out)
        publish_bytes(
            store, f"{WORK}/{self.name}.idx", _idx(self.tar, set(receipt.offset.tolist()))
        )
        write_receipt(store, self.name, receipt)

    def condemn(self, position: int, cause: str) -> IndexTask:
        return dataclasses.replace(self, condemned=self.condemned | {position: cause})


def index(config: IndexConfig) -> Manifest:
    """Publishes the dataset, returns its manifest. GratisError, and nothing published, where the
    tars are not fit."""
    root, out = (local_folder(place, "index") for place in (config.tars, config.out or config.tars))
    if not root.is_dir():
        raise GratisError(f"no such folder: {root}; give the one that holds the tars")
    if (out / dataset.MANIFEST).exists():
        manifest = read_manifest(out)
        print(f"{out} is a dataset already: {summary(manifest)}")
        return manifest
    if (out / PLAN).exists():
        raise GratisError(
            f"{out} holds unfinished work of the shards command; finish or remove it, or give --out"
        )
    source = _open(root)
    named = _names(source, root, out)
    size, codec = _first(source, root)
    tasks = (
        IndexTask(
            out=str(out),
            split=split,
            tar=place,
            name=name,
            size=size,
            codec=codec,
            items=_items(listing, k),
        )
        for split, listing in source.splits.items()
        for k, (place, name) in enumerate(named[split].items())
    )
    store, names = (
        LocalStore(str(out)),
        {split: list(places.values()) for split, places in named.items()},
    )
    apart, written = out.resolve() != root.resolve(), names_in(names)
    refuse_unindexed(
        store, written if apart else {name for name in written if not name.endswith(".tar")}
    )
    old = surplus(store, written) if apart else []
    with claimed(str(out), store, shared=False):
        try:
            _map(config, tasks, source)
            publish_bytes(store, INDEXING, b"")
            for places in named.values():
                for place, name in places.items():
                    _lay_out(store, place, name)
            for name in old:  # before the manifest, which says that nothing is left to do
                store.remove(name)
            manifest = publish(
                store, str(out), _draft(source, size, codec), names, config.max_rejects
            )
        finally:  # of the work itself nothing is resumed: a tar may be another one by then
            if not (out / INDEXING).exists():
                store.remove(WORK)
    print(f"{out}: {summary(manifest)}")
    return manifest


def _open(root: Path) -> Source:
    found = find_archives(str(root))
    if not found:
        raise GratisError(f"{root} holds no tars; give the folder that does")
    classes, splits, skipped = list_archives(str(root), found, unique=False)  # no key is written
    for line in skipped:
        print(line)
    return Source(classes=classes, splits=splits, skipped=skipped)


def _names(source: Source, root: Path, out: Path) -> dict[str, dict[str, str]]:
    """By split: each tar's place, and its shard's name in the dataset (without .tar)."""
    if out.resolve() != root.resolve():
        return {
            split: {place: f"{split}-{k:05d}" for k, place in enumerate(listing.containers)}
            for split, listing in source.splits.items()
        }
    places = [Path(place) for listing in source.splits.values() for place in listing.containers]
    for place in places:
        if place.parent != root or not dataset.SHARD_NAME.fullmatch(place.name):
            raise GratisError(
                f"{place} cannot stay where it is: give --out, a folder for the dataset with "
                f"links to the tars"
            )
    return {
        split: {place: Path(place).stem for place in listing.containers}
        for split, listing in source.splits.items()
    }


def _first(source: Source, root: Path) -> tuple[int, str]:
    """Size and codec of the first image that has any, which all others must share."""
    listing = source.splits["train"]
    for row in range(len(listing)):
        item = listing.item(row)
        try:
            refuse_unread({}, row, item)
            with Reader() as reader:
                kind, width, height, _ = image.probe(reader.read(item))
        except image.Reject:
            continue
        codec = next((codec for codec, name in KINDS.items() if kind == name), None)
        if codec is None or width != height or width < SMALLEST:
            raise _unfit(item, f"is {width} x {height} {kind}")
        return width, codec
    raise GratisError(f"{root} holds no image that can be read")


def _unfit(item: Item, what: str) -> GratisError:
    return GratisError(
        f"{item.container}: {item.name!r} {what}, where the loader needs square images of one "
        f"size as JPEG: "
        f"make shards SRC={os.path.dirname(item.container)} makes them so"
    )


def _items(listing: Listing, number: int) -> tuple[Item, ...]:
    # tars were listed one after the other
    begin, end = np.searchsorted(listing.container, [number, number + 1])
    return tuple(listing.item(row) for row in range(begin, end))


def _map(config: IndexConfig, tasks: Iterable[IndexTask], source: Source) -> None:
    tars = sum(len(listing.containers) for listing in source.splits.values())
    workers = min(config.workers or len(os.sched_getaffinity(0)), tars)
    with Progress(None, total=sum(map(len, source.splits.values())), done=0, rejects=0) as progress:
        for step in run_tasks(tasks, workers):
            progress.add(step)


def _look(task: IndexTask, reader: Reader, begin: Callable[[int], None], report: Report) -> Receipt:
    """Decodes every image, hashes the tar."""
    good: list[Item] = []
    statistics = Accumulator(task.size) if task.split == "train" else None
    rejects: list[dict[str, str]] = []
    for position, item in enumerate(task.items):
        begin(position)
        try:
            refuse_unread(task.condemned, position, item)
            pixels = _pixels(task, item, reader.read(item))
        except image.Reject as reject:
            rejects.append(rejected(task.split, item, reject))
            report(0, item.size, 0, 1)
            continue
        good.append(item)
        if statistics:
            statistics.add(pixels)
        report(1, item.size, 0, 0)
    begin(-1)
    return Receipt(
        offset=np.array([item.offset for item in good], np.int64),
        size=np.array([item.size for item in good], np.int32),
        label=np.array([item.label for item in good], np.int32),
        bytes=os.path.getsize(task.tar),
        sha256=sha256_file(Path(task.tar)),
        conversions={},
        rejects=rejects,
        sums=statistics.sums() if statistics else None,
    )


def _pixels(task: IndexTask, item: Item, data: bytes) -> NDArray[np.uint8]:
    kind, width, height, mode = image.probe(data)
    if (
        kind != KINDS[task.codec]
        or (width, height) != (task.size, task.size)
        or mode not in ("RGB", "L")
    ):
        first = f"the first one {task.size} x {task.size} {KINDS[task.codec]}"
        raise _unfit(item, f"is {width} x {height} {mode} {kind}, {first}")
    pixels = image.decode_or_reject(data)
    if task.codec == "raw" and data != image.encode_ppm(pixels):
        raise _unfit(item, "is no PPM as this project writes it")
    return pixels


def _idx(place: str, offsets: set[int]) -> bytes:
    with addresses.Bytes(place) as archive:
        found = grouped(place, members(archive, place, lambda name, reason: None, 0, archive.size))
        lines = [
            idx_line(group) for group in found if group.picture and group.picture.offset in offsets
        ]
    return idx_bytes(lines)


def _lay_out(store: LocalStore, place: str, name: str) -> None:
    # publish would remove it, as is right for shards of our own
    if not len(read_receipt(store, name).label):
        raise GratisError(f"{place} holds no image that can be used; move it elsewhere")
    (store.root / WORK / f"{name}.idx").replace(store.root / f"{name}.idx")
    link, tar = store.root / f"{name}.tar", Path(place).resolve()
    if link.resolve() != tar:
        if link.is_symlink():  # of an earlier index, to another tar
            link.unlink()
        link.symlink_to(os.path.relpath(tar, store.root.resolve()))


def _draft(source: Source, size: int, codec: str) -> Manifest:
    return Manifest(
        format=dataset.FORMAT,
        image_size=size,
        codec=codec,
        quality=None,
        seed=0,
        samples_per_shard=max(
            int(np.bincount(listing.container).max()) for listing in source.splits.values()
        ),
        source=source.fingerprint,
        tools=tools(),
        classes=source.classes,
        splits={},
        stats_sha256="",
    )
