"""Reduce: the shards' receipts become the index, the statistics and, last, the manifest; then the
work folder is removed."""

from __future__ import annotations

import dataclasses
import json
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from gratis import addresses, dataset
from gratis.dataset import Index, Manifest, Shard, Split
from gratis.errors import GratisError
from gratis.image import ROTATED
from gratis.preprocess.output.receipt import ShardReceipt, read_receipt
from gratis.preprocess.output.store import WORK, LocalStore, Store
from gratis.preprocess.stages.plan import refuse_other
from gratis.preprocess.statistics import finish, merge, no_sums

MAX_EXAMPLES = 5  # rejects named in the message


def publish(
    store: Store, draft: Manifest, shards: dict[str, list[str]], max_rejects: int, lost: int = 0
) -> Manifest:
    """Publishes the dataset of these shards, by split, from their receipts. draft: the manifest
    without what the receipts tell.

    GratisError, and nothing is published, if more than max_rejects files were rejected, with those
    that were lost when the source was listed.
    """
    names = [name for split in shards.values() for name in split]
    rejects = [row for receipt in _receipts(store, names) for row in receipt.rejects]
    store.write(dataset.REJECTS, "".join(json.dumps(row) + "\n" for row in rejects).encode())
    if len(rejects) + lost > max_rejects:
        raise _too_many(addresses.join(store.address, dataset.REJECTS), rejects, lost)
    sums = no_sums(draft.image_size if draft.shape == "square" else None)
    for receipt in _receipts(store, shards["train"]):
        assert receipt.sums is not None
        sums = merge(sums, receipt.sums)
    if sums.images == 0:
        raise GratisError(
            f"no file of the training split could be used, {len(rejects)} were rejected"
        )
    with store.staging() as folder:
        stats_sha256 = dataset.write_stats(folder, finish(sums))
        store.publish(folder / dataset.STATS, dataset.STATS)
        whole = draft.shape == "whole"
        splits = {
            split: _split(store, folder, split, parts, whole=whole)
            for split, parts in shards.items()
        }
    manifest = dataclasses.replace(draft, splits=splits, stats_sha256=stats_sha256)
    store.write(dataset.MANIFEST, manifest.to_json())
    store.remove(WORK)
    return manifest


def announce(out: str, manifest: Manifest) -> None:
    """Prints what a run has made, and how many of its images a viewer would show turned."""
    print(f"{out}: {summary(manifest)}")
    turned = sum(split.conversions.get(ROTATED, 0) for split in manifest.splits.values())
    if turned:
        images = "1 image has" if turned == 1 else f"{turned:,} images have"
        print(f"{images} an EXIF orientation other than upright; it is ignored, as in 2012")


def summary(manifest: Manifest) -> str:
    """One line: "1000 train and 200 val images of 10 classes, 128 px, in 3 shards"."""
    counts = " and ".join(f"{split.samples:,} {name}" for name, split in manifest.splits.items())
    images = "image" if sum(split.samples for split in manifest.splits.values()) == 1 else "images"
    classes = "class" if len(manifest.classes) == 1 else "classes"
    count = sum(len(split.shards) for split in manifest.splits.values())
    shards = "shard" if count == 1 else "shards"
    size = f"{manifest.image_size} px"
    if manifest.shape == "whole":
        size = f"whole, shorter side {size}"
    of = (
        f"{images} of {len(manifest.classes):,} {classes}"
        if manifest.classes
        else (f"{images} without labels")
    )
    return f"{counts} {of}, {size}, in {count:,} {shards}"


def already_there(store: Store, draft: Manifest | None = None) -> Manifest:
    """The manifest of the dataset that is published in the store. GratisError if it cannot be read,
    or if its settings are other than the draft's."""
    if isinstance(store, LocalStore):
        manifest = dataset.read_manifest(store.root)
    else:
        url = addresses.join(store.address, dataset.MANIFEST)
        manifest = dataset.parse_manifest(store.read(dataset.MANIFEST), url)
    store.remove(WORK)  # of this run's lock, or of a run that was killed just before its end
    if draft:
        there, wanted = (dataclasses.replace(one, tools={}) for one in (manifest, draft))
        refuse_other(store, there, wanted, "remove it, or choose another")
    print(f"{store.address} is already there: {summary(manifest)}")
    return manifest


def _receipts(store: Store, shards: list[str]) -> Iterator[ShardReceipt]:
    # read again for each purpose: all of ILSVRC2012's would be 1 GB at once
    for shard in shards:
        yield read_receipt(store, shard)


def _split(store: Store, folder: Path, split: str, names: list[str], *, whole: bool) -> Split:
    """Publishes the split's index; whole: with widths and heights."""
    shards: list[Shard] = []
    parts: list[Index] = []
    conversions: Counter[str] = Counter()
    rejects: Counter[str] = Counter()
    for name, receipt in zip(names, _receipts(store, names), strict=True):
        conversions.update(receipt.conversions)
        rejects.update(reject["kind"] for reject in receipt.rejects)
        samples = len(receipt.label)
        if not samples:  # every file of it was rejected, and readers fail at empty archives
            store.remove(f"{name}.tar")
            store.remove(f"{name}.idx")
            continue
        number = np.full(samples, len(shards), np.int32)
        sizes = (receipt.width, receipt.height) if whole else (None, None)
        parts.append(Index(number, receipt.offset, receipt.size, receipt.label, *sizes))
        tar, size = f"{name}.tar", receipt.bytes
        shards.append(Shard(name=tar, samples=samples, bytes=size, sha256=receipt.sha256))
    if not parts:
        raise GratisError(f"no file of the split {split} could be used")
    columns = zip(*parts, strict=True)
    index = Index._make(None if one[0] is None else np.concatenate(one) for one in columns)
    index_sha256 = dataset.write_index(folder, split, index)
    store.publish(folder / dataset.index_name(split), dataset.index_name(split))
    return Split(
        shards=tuple(shards),
        index_sha256=index_sha256,
        conversions=dict(sorted(conversions.items())),
        rejects=dict(sorted(rejects.items())),
    )


def _too_many(path: str, rejects: list[dict[str, str]], lost: int) -> GratisError:
    counts = Counter(row["kind"] for row in rejects).most_common()
    kinds = ", ".join(f"{count} {kind}" for kind, count in counts)
    named = rejects[:MAX_EXAMPLES]
    first = "; ".join(f"{row['split']}/{row['file']} ({row['kind']})" for row in named)
    more = "; ..." if len(rejects) > MAX_EXAMPLES else ""
    skipped = f", with {lost:,} that the listing skipped" if lost else ""
    return GratisError(
        f"{len(rejects)} files cannot be used ({kinds}): {first}{more}; see {path}; nothing is "
        f"published: mend them and run again, which tries them again, or run again with "
        f"--max-rejects {len(rejects) + lost}{skipped}"
    )
