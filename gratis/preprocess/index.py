"""The index command: tars that somebody else wrote become a dataset as they are. No tar is
rewritten.

    gratis index TARS              a manifest, indices and statistics beside them
    gratis index TARS --out OUT    or in OUT, with a symbolic link to each tar

The loader reads RGB or greyscale JPEGs (or PPMs as this project writes them) of any size, each with
a class number (sources/webdataset.py says where that is looked for). The dataset's images are
square where all are so and of one size, else whole: the index then holds their sizes. Tars of other
images are refused: `make shards SRC=TARS` makes them so; with --max-rejects odd ones are left out.
Every image is decoded once, for the
statistics, and because one that no decoder takes would end an epoch: such images are refused beyond
--max-rejects, else left out of the index. An .idx beside a tar, or another file of a dataset's
names, is replaced if an index command wrote it, and refused otherwise. In OUT a tar that is no link
is always refused, and links of an earlier index to tars that are no more are removed.

The decoder here is Pillow's libjpeg-turbo, which takes more JPEGs than the loader hands to its own
(arithmetic coding, an end that is missing). Each is asked the loader's own question, so that
training refuses none that was taken here."""

from __future__ import annotations

import dataclasses
import os
from collections import Counter
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import tyro
from numpy.typing import NDArray

from gratis import addresses, dataset, image
from gratis.atomic import sha256_file
from gratis.command_line import check_ranges
from gratis.dataset import Manifest
from gratis.errors import GratisError
from gratis.jpeg_variants import disagreements
from gratis.preprocess.codecs import CODECS
from gratis.preprocess.disagreements import print_disagreements
from gratis.preprocess.execution.workers import ReportProgress, TaskProgress, run_tasks
from gratis.preprocess.output.receipt import ShardReceipt, read_receipt, write_receipt
from gratis.preprocess.output.store import WORK, LocalStore
from gratis.preprocess.sources.listing import Item
from gratis.preprocess.sources.reader import ImageReader
from gratis.preprocess.sources.source import Source, SourceOptions, ValFrom
from gratis.preprocess.sources.tar import idx_bytes, idx_line, members
from gratis.preprocess.sources.webdataset import group_samples, open_webdataset
from gratis.preprocess.stages.ownership import (
    INDEXING,
    dataset_files,
    lock_output,
    refuse_unindexed,
    stale_files,
)
from gratis.preprocess.stages.plan import PLAN, draft_manifest
from gratis.preprocess.stages.progress import Progress
from gratis.preprocess.stages.publish import publish, summary
from gratis.preprocess.stages.shard import ImageTask, refuse_unread
from gratis.preprocess.verify import local_folder

LONGEST = f"a side {dataset.MOST_ASPECT} times the other"
NOT_DECODED = "is a JPEG that Pillow decodes and training's decoder would give up on"


@dataclass(frozen=True, kw_only=True)
class IndexConfig:
    """Makes a dataset of tars that somebody else wrote, without rewriting them."""

    tars: tyro.conf.Positional[str]
    """Folder of WebDataset tars. The split is a word of a tar's name, or of its folder's; all are
    for training where none has such a word."""
    out: str | None = None
    """Folder for the dataset, with a link to each tar. Default: the tars' own."""
    val_from: ValFrom = "val"
    """Split of the tars that becomes the validation split. test: on your own responsibility."""
    unlabelled: bool = False
    """Read no labels: all are -1, for self-supervised training."""
    max_rejects: int = 0
    """Publish although up to so many images cannot be decoded: without them."""
    workers: int | None = None
    """Processes. Default: one per core that this process may use."""

    def __post_init__(self) -> None:
        check_ranges(self, {"max_rejects": (0, 1 << 31), "workers": (1, 10_000)})


@dataclass(frozen=True, kw_only=True)
class IndexTask(ImageTask):
    """One tar, for a worker: `items` are its images in order, all of which must be of this codec.
    It decodes every image, and hashes the tar. root: the folder of all tars; size: of the first
    image of all if it is square, else 0."""

    root: str
    tar: str
    name: str

    def make(self, begin: Callable[[int], None], report: ReportProgress) -> None:
        """Writes the tar's .idx and receipt to the work folder."""
        good: list[Item] = []
        disputed: Counter[str] = Counter()
        sizes: list[tuple[int, ...]] = []

        def decode(item: Item, data: bytes) -> tuple[NDArray[np.uint8], int]:
            pixels = _pixels(self, item, data)
            good.append(item)
            sizes.append(pixels.shape[:2])
            disputed.update(disagreements(data))
            return pixels, 0

        rejects, sums = self.read_images(begin, report, decode)
        store = LocalStore(self.out)
        offsets = [item.offset for item in good]
        height, width = np.array(sizes, np.int32).reshape(-1, 2).T
        store.write(f"{WORK}/{self.name}.idx", _idx(self.tar, set(offsets)))
        receipt = ShardReceipt(
            offset=np.array(offsets, np.int64),
            size=np.array([item.size for item in good], np.int32),
            label=np.array([item.label for item in good], np.int32),
            bytes=os.path.getsize(self.tar),
            sha256=sha256_file(Path(self.tar)),
            conversions={},
            rejects=rejects,
            sums=sums,
            disagreements=dict(disputed),
            width=width,
            height=height,
        )
        write_receipt(store, self.name, receipt)


RunTasks = Callable[[Iterable[IndexTask], int], Iterable[TaskProgress]]


def index_tars(config: IndexConfig, run: RunTasks = run_tasks) -> Manifest:
    """Publishes the dataset, returns its manifest. GratisError, and nothing published, where the
    tars are not fit. run: runs all tasks, by so many workers."""
    root, out = (local_folder(path, "index") for path in (config.tars, config.out or config.tars))
    if not root.is_dir():
        raise GratisError(f"no such folder: {root}; give the one that holds the tars")
    if (out / dataset.MANIFEST).exists():
        manifest = dataset.read_manifest(out)
        again = f"remove {dataset.MANIFEST} to index its tars again"
        print(f"{out} is a dataset already: {summary(manifest)}; {again}")
        return manifest
    if (out / PLAN).exists():
        raise GratisError(
            f"{out} holds unfinished work of the shards command; finish or remove it, or give --out"
        )
    options = SourceOptions(val_from=config.val_from, unlabelled=config.unlabelled)
    source = open_webdataset(str(root), options, unique=False)  # no key is written
    if not source:
        raise GratisError(f"{root} holds no tars; give the folder that does")
    source.report()
    source.refuse_lost(config.max_rejects)
    apart = out.resolve() != root.resolve()
    names = _shard_names(source, root, apart)
    first = _first_image(source, root)
    store, shards = LocalStore(str(out)), {split: list(n.values()) for split, n in names.items()}
    files = dataset_files(shards)
    refuse_unindexed(store, {name for name in files if apart or not name.endswith(".tar")})
    stale = stale_files(store, files) if apart else []
    with lock_output(store, shared=False):
        try:
            _map(config, source, _tasks(config, store, source, names, first), run)
            print_disagreements(store, shards)
            store.write(INDEXING, b"")
            for tar, name in (pair for split in names.values() for pair in split.items()):
                _link_tar(store, tar, name)
            for name in stale:  # before the manifest, which says that nothing is left to do
                store.remove(name)
            largest = max(int(np.bincount(one.container).max()) for one in source.splits.values())
            draft = draft_manifest(source, size=first[0], codec=first[1], samples_per_shard=largest)
            draft = _with_shape(draft, store, shards)
            manifest = publish(store, draft, shards, config.max_rejects, len(source.skipped))
        finally:  # a rerun does all of the work again, as a tar may have changed by then
            if not (out / INDEXING).exists():
                store.remove(WORK)
    print(f"{out}: {summary(manifest)}")
    return manifest


def _shard_names(source: Source, root: Path, apart: bool) -> dict[str, dict[str, str]]:
    """By split: each tar's path, and its shard's name in the dataset (without .tar)."""
    names: dict[str, dict[str, str]] = {}
    for split, listing in source.splits.items():
        tars = [Path(path) for path in listing.containers]
        for tar in tars:
            if not apart and (tar.parent != root or not dataset.SHARD_NAME.fullmatch(tar.name)):
                raise GratisError(
                    f"{tar} cannot stay where it is: give --out, a folder for the dataset with "
                    f"links to the tars"
                )
        shards = [f"{split}-{k:05d}" if apart else tar.stem for k, tar in enumerate(tars)]
        names[split] = dict(zip(listing.containers, shards, strict=True))
    return names


def _with_shape(draft: Manifest, store: LocalStore, shards: dict[str, list[str]]) -> Manifest:
    """Square where all images are so and of the size that the first one told; else whole, with the
    median shorter side. The first one may have been left out since, as it crashed a decoder: sums
    of places were then made for its size, if for any."""
    receipts = [read_receipt(store, name) for names in shards.values() for name in names]
    width, height = (
        np.concatenate([column for one in receipts if (column := getattr(one, side)) is not None])
        for side in ("width", "height")
    )
    shorter = np.sort(np.minimum(width, height))
    sides = np.concatenate([shorter, np.maximum(width, height)])
    if (sides == draft.image_size).all():
        return draft
    return dataclasses.replace(draft, shape="whole", image_size=int(shorter[len(shorter) // 2]))


def _first_image(source: Source, root: Path) -> tuple[int, str]:
    """Size (0: it is not square) and codec of the first image that can be read. Others must share
    its codec."""
    listing, why = source.splits["train"], ""
    for row in range(len(listing)):
        item = listing.item(row)
        try:
            refuse_unread({}, row, item)
            with ImageReader() as reader:
                return _size_and_codec(root, item, reader.read(item))
        except image.Reject as reject:
            if reject.kind == image.UNSUPPORTED:
                raise GratisError(f"{item.source}: {reject.reason}") from None
            why = why or f"{item.source} is the first: {reject}"
    raise GratisError(f"{root} holds no image of the train split that can be read; {why}")


def _size_and_codec(root: Path, item: Item, data: bytes) -> tuple[int, str]:
    kind, width, height, _ = image.probe(data)
    codec = next((name for name, codec in CODECS.items() if kind == codec.format), None)
    if codec is None:
        raise _unfit(root, item, f"is {width} x {height} {kind}")
    _refuse_long(width, height)
    image.decode_or_reject(data)
    if codec == "jpeg" and not _is_decodable(data, codec, height, width):
        raise _unfit(root, item, NOT_DECODED)
    return width if width == height else 0, codec


def _refuse_long(width: int, height: int) -> None:
    if max(width, height) > dataset.MOST_ASPECT * min(width, height):
        raise image.Reject("too-long", f"{width} x {height} pixels, the limit is {LONGEST}")


def _unfit(root: Path | str, item: Item, what: str) -> GratisError:
    return GratisError(f"{item.container}: {item.name!r} {what}, {_way_out(root)}")


def _way_out(root: Path | str) -> str:
    needs = "where the loader needs RGB or greyscale JPEGs"
    return f"{needs}: gratis shards --src {root} makes them so"


def _is_decodable(data: bytes, codec: str, height: int, width: int) -> bool:
    return dataset.is_decodable(np.frombuffer(bytearray(data), np.uint8), codec, height, width)


def _tasks(
    config: IndexConfig,
    store: LocalStore,
    source: Source,
    names: dict[str, dict[str, str]],
    first: tuple[int, str],
) -> Iterable[IndexTask]:
    size, codec = first
    for split, listing in source.splits.items():
        for number, (tar, name) in enumerate(names[split].items()):
            # tars were listed one after the other
            begin, end = np.searchsorted(listing.container, [number, number + 1])
            items = tuple(listing.item(row) for row in range(begin, end))
            yield IndexTask(
                out=store.address,
                split=split,
                items=items,
                size=size,
                codec=codec,
                tolerant=config.max_rejects > 0,
                root=config.tars,
                tar=tar,
                name=name,
            )


def _map(config: IndexConfig, source: Source, tasks: Iterable[IndexTask], run: RunTasks) -> None:
    tars = sum(len(listing.containers) for listing in source.splits.values())
    workers = min(config.workers or len(os.sched_getaffinity(0)), tars)
    with Progress(None, total=sum(map(len, source.splits.values())), done=0, rejects=0) as progress:
        for new in run(tasks, workers):
            progress.add(new)


def _pixels(task: IndexTask, item: Item, data: bytes) -> NDArray[np.uint8]:
    kind, width, height, mode = image.probe(data)
    expected = CODECS[task.codec].format
    if kind != expected or mode not in ("RGB", "L"):
        what = f"is {width} x {height} {mode} {kind}, the first one {expected}"
        if task.tolerant:
            raise image.Reject(image.UNSUPPORTED, f"it {what}, {_way_out(task.root)}")
        raise _unfit(task.root, item, what)
    _refuse_long(width, height)
    pixels = image.decode_or_reject(data)
    if _is_decodable(data, task.codec, height, width):
        return pixels
    if task.codec == "raw":
        raise _unfit(task.root, item, "is no PPM as this project writes it")
    raise image.Reject(
        "undecodable", f"{NOT_DECODED}; gratis shards --src {task.root} writes it anew"
    )


def _idx(tar: str, offsets: set[int]) -> bytes:
    with addresses.Bytes(tar) as archive:
        files = members(archive, tar, lambda name, reason: None, 0, archive.size)
        samples = list(group_samples(tar, files))
    kept = [s for s in samples if s.picture and s.picture.offset in offsets]
    return idx_bytes([idx_line(sample.parts) for sample in kept])


def _link_tar(store: LocalStore, path: str, name: str) -> None:
    # publish would remove it, as is right for shards of our own
    if not len(read_receipt(store, name).label):
        raise GratisError(f"{path} holds no image that can be used; move it elsewhere")
    (store.root / WORK / f"{name}.idx").replace(store.root / f"{name}.idx")
    link, tar = store.root / f"{name}.tar", Path(path).resolve()
    if link.resolve() != tar:
        if link.is_symlink():  # of an earlier index, to another tar
            link.unlink()
        try:
            link.symlink_to(os.path.relpath(tar, store.root.resolve()))
        except OSError as error:
            lacks = f"no symbolic links ({error.strerror})"
            way_out = "choose an --out on another, or none"
            raise GratisError(f"the disk of {store.root} has {lacks}; {way_out}") from None
