"""Receipt: what is known about a finished shard, in OUT/.work/<shard>.receipt.npz until the dataset
is published. It is written last: its presence means that the shard is done."""

from __future__ import annotations

import io
import json
from pathlib import PurePath
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from gratis.image import Reject
from gratis.preprocess.output.store import WORK, LocalStore, Store
from gratis.preprocess.sources.listing import Item
from gratis.preprocess.statistics import PixelSums

COLUMNS = ("offset", "size", "label", "width", "height")


class ShardReceipt(NamedTuple):
    """A finished shard: of each sample the image's first byte, its size in bytes and its label; the
    tar's size and sha256; how many source files were converted, by kind; a row of rejects.jsonl for
    each file that was left out; the pixels' sums (train split only); of an indexed tar, how many
    JPEGs loaders read differently, by kind (gratis.jpeg_variants); each image's width and height in
    pixels, None where all are square and of the plan's size."""

    offset: NDArray[np.int64]
    size: NDArray[np.int32]
    label: NDArray[np.int32]
    bytes: int
    sha256: str
    conversions: dict[str, int]
    rejects: list[dict[str, str]]
    sums: PixelSums | None = None
    disagreements: dict[str, int] | None = None
    width: NDArray[np.int32] | None = None
    height: NDArray[np.int32] | None = None


def write_receipt(store: Store, shard: str, receipt: ShardReceipt) -> None:
    """Marks the shard as done: its tar and .idx must be there."""
    store.write(_name(shard), _pack(receipt))


def read_receipt(store: Store, shard: str) -> ShardReceipt:
    """Raises OSError, ValueError or KeyError where there is none, or a damaged one."""
    with np.load(io.BytesIO(store.read(_name(shard))), allow_pickle=False) as arrays:
        facts: dict[str, Any] = json.loads(arrays["facts"].tobytes())
        if (images := facts.pop("images")) is not None:
            pixels = arrays["pixels"].astype(np.int64)
            places = facts.pop("places", images * pixels.size // 3)
            facts["sums"] = PixelSums(images, places, pixels, arrays["products"])
        rows = {name: arrays[name] for name in COLUMNS if name in arrays}
        return ShardReceipt(**rows, **facts)


def finished_shards(store: Store, shards: list[str]) -> dict[str, int]:
    """The finished ones of these shards, and how many files each of them rejected."""
    files, work = store.sizes(), store.sizes(WORK)
    rejects: dict[str, int] = {}
    for shard in shards:
        if PurePath(_name(shard)).name not in work or f"{shard}.idx" not in files:
            continue
        try:
            receipt = read_receipt(store, shard)
        except (OSError, ValueError, KeyError, EOFError):
            continue
        if files.get(f"{shard}.tar") == receipt.bytes:
            rejects[shard] = len(receipt.rejects)
    return rejects


def forget_shard(store: Store, shard: str) -> None:
    """From now on it is not finished."""
    store.remove(_name(shard))


def written(store: Store, shard: str) -> float:
    """When the local shard was finished, Unix seconds; 0 at a URL."""
    return (store.root / _name(shard)).stat().st_mtime if isinstance(store, LocalStore) else 0.0


def reject_row(split: str, item: Item, reject: Reject) -> dict[str, str]:
    """The file's row in rejects.jsonl."""
    # classes may hold files of one name
    folder = f"{PurePath(item.container).name}/" if item.offset == -1 else ""
    row = {"split": split, "key": item.key, "file": folder + item.name}
    return row | {"kind": reject.kind, "reason": reject.reason}


def _name(shard: str) -> str:
    return f"{WORK}/{shard}.receipt.npz"


def _pack(receipt: ShardReceipt) -> bytes:
    fields = receipt._asdict()
    columns = {name: fields.pop(name) for name in COLUMNS}
    arrays = {name: column for name, column in columns.items() if column is not None}
    sums: PixelSums | None = fields.pop("sums")
    fields["images"] = sums.images if sums else None
    if sums and sums.pixels.ndim == 1:
        arrays |= {"pixels": sums.pixels, "products": sums.products}
        fields["places"] = sums.places
    elif sums:  # a shard's sums of a place fit 32 bits up to 16 million images: half the bytes
        arrays |= {"pixels": sums.pixels.astype(np.uint32), "products": sums.products}
    facts = json.dumps(fields).encode()
    file = io.BytesIO()
    np.savez(file, facts=np.frombuffer(facts, np.uint8), **arrays)
    return file.getvalue()
