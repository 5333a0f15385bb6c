"""Reduce: receipts become the index, the statistics and, last, the manifest; then the work folder
goes."""

from __future__ import annotations

import dataclasses
import json
import tempfile
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from gratis import addresses, dataset
from gratis.dataset import Index, Manifest, Shard, Split
from gratis.errors import GratisError
from gratis.preprocess.output.store import WORK, Store, publish_bytes
from gratis.preprocess.stages.shard import Receipt, read_receipt
from gratis.preprocess.stages.statistics import finish, merge, no_sums

SHOWN = 5  # rejects named in the error line


def publish(
    store: Store, place: str, draft: Manifest, names: dict[str, list[str]], max_rejects: int
) -> Manifest:
    """Publishes the dataset from the receipts of these shards, by split. draft: what the manifest
    says beside them.

    GratisError, and nothing published, if more than max_rejects files were rejected.
    """
    rejects = [
        r
        for shards in names.values()
        for receipt in _receipts(store, shards)
        for r in receipt.rejects
    ]
    publish_bytes(store, dataset.REJECTS, "".join(json.dumps(r) + "\n" for r in rejects).encode())
    if len(rejects) > max_rejects:
        raise GratisError(_complaint(addresses.join(place, dataset.REJECTS), rejects))
    sums = no_sums(draft.image_size)
    for receipt in _receipts(store, names["train"]):
        assert receipt.sums is not None
        sums = merge(sums, receipt.sums)
    if sums.images == 0:
        raise GratisError(
            f"no file of the training split could be used, {len(rejects)} were rejected"
        )
    with store.staging() as folder:
        stats_sha256 = dataset.write_stats(folder, finish(sums))
        store.publish(folder / dataset.STATS, dataset.STATS)
        splits = {
            split: _write_split(store, folder, split, shards) for split, shards in names.items()
        }
    manifest = dataclasses.replace(draft, splits=splits, stats_sha256=stats_sha256)
    publish_bytes(store, dataset.MANIFEST, manifest.to_json())
    store.remove(WORK)
    return manifest


def summary(manifest: Manifest) -> str:
    """One line: "1000 train and 200 val images of 10 classes, 128 px, in 3 shards"."""
    counts = " and ".join(f"{split.samples:,} {name}" for name, split in manifest.splits.items())
    images = "image" if sum(split.samples for split in manifest.splits.values()) == 1 else "images"
    classes = "class" if len(manifest.classes) == 1 else "classes"
    count = sum(len(split.shards) for split in manifest.splits.values())
    shards = "shard" if count == 1 else "shards"
    size = manifest.image_size
    return (
        f"{counts} {images} of {len(manifest.classes):,} {classes}, {size} px, in {count:,} "
        f"{shards}"
    )


def published(place: str, store: Store) -> Manifest:
    """The manifest of a dataset that is there. GratisError if it cannot be read."""
    if not addresses.is_url(place):
        return dataset.read_manifest(Path(place))
    with tempfile.TemporaryDirectory() as folder:
        (Path(folder) / dataset.MANIFEST).write_bytes(store.read(dataset.MANIFEST))
        return dataset.read_manifest(Path(folder))


def _receipts(store: Store, shards: list[str]) -> Iterator[Receipt]:
    # read anew for each purpose: all of ILSVRC2012's would be 1 GB at once
    for shard in shards:
        yield read_receipt(store, shard)


def _write_split(store: Store, folder: Path, split: str, names: list[str]) -> Split:
    shards: list[Shard] = []
    parts: list[Index] = []
    conversions: Counter[str] = Counter()
    rejects: Counter[str] = Counter()
    for name, receipt in zip(names, _receipts(store, names), strict=True):
        conversions.update(receipt.conversions)
        rejects.update(reject["kind"] for reject in receipt.rejects)
        if not len(receipt.label):  # every file of it was rejected: readers choke on empty archives
            store.remove(f"{name}.tar")
            store.remove(f"{name}.idx")
            continue
        number = np.full(len(receipt.label), len(shards), np.int32)
        parts.append(Index(number, receipt.offset, receipt.size, receipt.label))
        shards.append(
            Shard(
                name=f"{name}.tar",
                samples=len(receipt.label),
                bytes=receipt.bytes,
                sha256=receipt.sha256,
            )
        )
    if not parts:
        raise GratisError(f"no file of the split {split} could be used")
    index_sha256 = dataset.write_index(
        folder, split, Index(*(np.concatenate(c) for c in zip(*parts, strict=True)))
    )
    store.publish(folder / dataset.index_name(split), dataset.index_name(split))
    return Split(
        shards=tuple(shards),
        index_sha256=index_sha256,
        conversions=dict(sorted(conversions.items())),
        rejects=dict(sorted(rejects.items())),
    )


def _complaint(where: str, rejects: list[dict[str, str]]) -> str:
    kinds = ", ".join(
        f"{count} {kind}" for kind, count in Counter(r["kind"] for r in rejects).most_common()
    )
    first = "; ".join(f"{r['split']}/{r['file']} ({r['kind']})" for r in rejects[:SHOWN])
    more = "; ..." if len(rejects) > SHOWN else ""
    return (
        f"{len(rejects)} files cannot be used ({kinds}): {first}{more}; see {where}; "
        f"nothing is published: mend them, or run again with --max-rejects {len(rejects)}"
    )
