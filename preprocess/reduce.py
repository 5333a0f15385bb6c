"""Reduce: receipts become the index, the statistics and, last, the manifest; then the work folder goes."""

from __future__ import annotations

import dataclasses
import json
import shutil
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from preprocess import dataset
from preprocess.dataset import Index, Manifest, Shard, Split
from preprocess.errors import UserError
from preprocess.shard import WORK, Receipt, read_receipt, receipt_path
from preprocess.stats import finish, merge, no_sums

SHOWN = 5  # rejects named in the error line


def publish(
    out: Path, splits: list[tuple[str, int]], samples_per_shard: int, max_rejects: int, draft: Manifest
) -> Manifest:
    """Publishes the dataset from the receipts of all its shards: `draft` with splits and statistics filled in.

    splits: names and planned samples. UserError, and nothing published, if more than max_rejects files were rejected.
    """
    names = {split: [f"{split}-{k:05d}" for k in range(-(-count // samples_per_shard))] for split, count in splits}
    rejects = [r for shards in names.values() for receipt in _receipts(out, shards) for r in receipt.rejects]
    _write_rejects(out, rejects)
    if len(rejects) > max_rejects:
        raise UserError(_complaint(out, rejects))
    sums = no_sums(draft.image_size)
    for receipt in _receipts(out, names["train"]):
        assert receipt.sums is not None
        sums = merge(sums, receipt.sums)
    if sums.images == 0:
        raise UserError(f"no file of the training split could be used, {len(rejects)} were rejected")
    stats_sha256 = dataset.write_stats(out, finish(sums))
    manifest = dataclasses.replace(
        draft,
        splits={split: _write_split(out, split, shards) for split, shards in names.items()},
        stats_sha256=stats_sha256,
    )
    dataset.sync_folder(out)
    dataset.write_durably(out / dataset.MANIFEST, manifest.to_json())
    shutil.rmtree(out / WORK, ignore_errors=True)
    return manifest


def _receipts(out: Path, shards: list[str]) -> Iterator[Receipt]:
    # read anew for each purpose: all of ILSVRC2012's would be 1 GB at once
    for shard in shards:
        yield read_receipt(receipt_path(out, shard))


def _write_split(out: Path, split: str, names: list[str]) -> Split:
    shards: list[Shard] = []
    parts: list[Index] = []
    conversions: Counter[str] = Counter()
    rejects: Counter[str] = Counter()
    for name, receipt in zip(names, _receipts(out, names), strict=True):
        conversions.update(receipt.conversions)
        rejects.update(reject["kind"] for reject in receipt.rejects)
        if not len(receipt.label):  # every file of it was rejected: readers choke on empty archives
            (out / f"{name}.tar").unlink(missing_ok=True)
            (out / f"{name}.idx").unlink(missing_ok=True)
            continue
        number = np.full(len(receipt.label), len(shards), np.int32)
        parts.append(Index(number, receipt.offset, receipt.size, receipt.label))
        shards.append(Shard(name=f"{name}.tar", samples=len(receipt.label), bytes=receipt.bytes, sha256=receipt.sha256))
    if not parts:
        raise UserError(f"no file of the split {split} could be used")
    index = Index(*(np.concatenate(column) for column in zip(*parts, strict=True)))
    return Split(
        shards=tuple(shards),
        index_sha256=dataset.write_index(out, split, index),
        conversions=dict(sorted(conversions.items())),
        rejects=dict(sorted(rejects.items())),
    )


def _write_rejects(out: Path, rejects: list[dict[str, str]]) -> None:
    dataset.write_durably(out / dataset.REJECTS, "".join(json.dumps(r) + "\n" for r in rejects).encode())


def _complaint(out: Path, rejects: list[dict[str, str]]) -> str:
    kinds = ", ".join(f"{count} {kind}" for kind, count in Counter(r["kind"] for r in rejects).most_common())
    first = "; ".join(f"{r['split']}/{r['file']} ({r['kind']})" for r in rejects[:SHOWN])
    more = "; ..." if len(rejects) > SHOWN else ""
    return (
        f"{len(rejects)} files cannot be used ({kinds}): {first}{more}; see {out / dataset.REJECTS}; "
        f"nothing is published: mend them, or run again with --max-rejects {len(rejects)}"
    )
