"""Plan: each split shuffled once, by seed, and cut into shards. It knows nothing of workers.

A shard is a slice of the shuffled listing; its items are looked up when a worker is about to get
them, as the items of all shards at once would not fit memory. What is being made is written down in
OUT before the first shard, so that a rerun, the tasks of a batch scheduler and their merge agree on
it."""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import importlib.metadata
import json
from collections.abc import Iterator
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import PIL
from numpy.typing import NDArray
from PIL import features

from gratis.dataset import Manifest
from gratis.errors import GratisError
from gratis.preprocess.output.store import WORK, Store, create_bytes
from gratis.preprocess.sources.source import Source
from gratis.preprocess.stages.shard import ShardTask

PLAN = f"{WORK}/plan.json"


class Slice(NamedTuple):
    """One shard's rows of its split's listing, int64."""

    split: str
    number: int
    rows: NDArray[np.int64]

    @property
    def name(self) -> str:
        return f"{self.split}-{self.number:05d}"


@dataclass(frozen=True, kw_only=True)
class Plan:
    """`draft` is the manifest without what only the finished shards can tell; counts: planned
    samples by split."""

    draft: Manifest
    counts: dict[str, int]

    def shard_names(self) -> dict[str, list[str]]:
        cut = self.draft.samples_per_shard
        return {
            split: [f"{split}-{k:05d}" for k in range(-(-n // cut))]
            for split, n in self.counts.items()
        }

    def to_json(self) -> bytes:
        return json.dumps(
            {"draft": json.loads(self.draft.to_json()), "counts": self.counts}
        ).encode()

    @classmethod
    def from_json(cls, text: bytes) -> Plan:
        raw = json.loads(text)
        return cls(
            draft=Manifest.from_json(json.dumps(raw["draft"]).encode()), counts=raw["counts"]
        )


def shuffled(count: int, seed: int, salt: str) -> NDArray[np.int64]:
    """A permutation of range(count), the same on every machine and NumPy: sorts by a 64-bit mix of
    seed and number."""
    start = int.from_bytes(hashlib.sha256(f"{seed} {salt}".encode()).digest()[:8], "little")
    with np.errstate(over="ignore"):
        z = np.uint64(start) + np.arange(1, count + 1, dtype=np.uint64) * np.uint64(
            0x9E3779B97F4A7C15
        )
        # splitmix64, a bijection: no ties
        z = (z ^ (z >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
        z = (z ^ (z >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return np.argsort(z ^ (z >> np.uint64(31)), kind="stable")


def slices(source: Source, draft: Manifest) -> Iterator[Slice]:
    """All shards in order."""
    for split, listing in source.splits.items():
        order = shuffled(len(listing), draft.seed, split)
        for number, start in enumerate(range(0, len(order), draft.samples_per_shard)):
            yield Slice(split, number, order[start : start + draft.samples_per_shard])


def make_task(part: Slice, source: Source, draft: Manifest, out: str) -> ShardTask:
    listing = source.splits[part.split]
    return ShardTask(
        out=out,
        split=part.split,
        number=part.number,
        items=tuple(listing.item(int(row)) for row in part.rows),
        size=draft.image_size,
        codec=draft.codec,
        quality=draft.quality or 0,
    )


def agree(store: Store, place: str, plan: Plan) -> None:
    """Writes down what is being made; refuses unfinished work of other settings, another source or
    other tools.

    Tasks, and runs at a URL, may do this at the same time: the first one's plan stands, and is read
    by all."""
    try:
        if PLAN not in {f"{WORK}/{name}" for name in store.sizes(WORK)}:
            create_bytes(store, PLAN, plan.to_json())
        there = Plan.from_json(store.read(PLAN))
    except (ValueError, KeyError, TypeError):
        raise GratisError(
            f"{place} holds unfinished work of another version; add --discard to remove it"
        ) from None
    refuse_other(
        place,
        there.draft,
        plan.draft,
        "add --discard to remove that unfinished work, or choose another",
    )


def refuse_other(place: str, there: Manifest, wanted: Manifest, way_out: str) -> None:
    """GratisError naming every setting in which what lies at `place` differs from what is
    wanted."""
    one, other = settings(there), settings(wanted)
    differences = ", ".join(
        f"{k} {one.get(k)} there and {v} asked for" for k, v in other.items() if one.get(k) != v
    )
    if differences:
        raise GratisError(f"{place} is another dataset: {differences}; {way_out} OUT")


def settings(manifest: Manifest) -> dict[str, object]:
    """What decides the bytes of the output."""
    names = ("source", "image_size", "codec", "quality", "seed", "samples_per_shard")
    return {name.replace("_", "-"): getattr(manifest, name) for name in names} | dict(
        manifest.tools
    )


def without_tools(manifest: Manifest) -> Manifest:
    return dataclasses.replace(manifest, tools={})


def pillow_name() -> str:
    """Which Pillow is running, with its version: "pillow-simd 12.1.1.post0"."""
    for name in ("pillow-simd", "pillow"):
        with contextlib.suppress(importlib.metadata.PackageNotFoundError):
            if importlib.metadata.version(name) == PIL.__version__:
                return f"{name} {PIL.__version__}"
    return f"unknown {PIL.__version__}"


def tools() -> dict[str, str]:
    """What shapes the bytes beside the settings."""
    return {
        "pillow": pillow_name(),
        "libjpeg-turbo": str(features.version("libjpeg_turbo")),
        "numpy": np.__version__,
    }
