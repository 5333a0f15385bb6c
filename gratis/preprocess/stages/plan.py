"""Plan: each split shuffled once, by seed, and cut into shards. It does not depend on the number of
workers.

A shard is a slice of the shuffled listing; its items are looked up when a worker is about to get
them, as the items of all shards at once would not fit memory. The plan is written to OUT before the
first shard, so that a rerun, the tasks of a batch scheduler and their merge agree on it."""

from __future__ import annotations

import contextlib
import hashlib
import importlib.metadata
import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import PIL
from numpy.typing import NDArray
from PIL import features

from gratis.dataset import FORMAT, Manifest
from gratis.errors import GratisError
from gratis.image import Whole
from gratis.network import DEFAULT_LIMITS, NetworkLimits
from gratis.preprocess.output.store import WORK, Store
from gratis.preprocess.sources.reader import NO_STAMPS, Stamp
from gratis.preprocess.sources.rows import keep_together, row_groups
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
class ShardPlan:
    """draft: the manifest without what only finished shards tell; counts: planned samples by split;
    lost: files that the listing skipped."""

    draft: Manifest
    counts: dict[str, int]
    lost: int = 0

    def shard_names(self) -> dict[str, list[str]]:
        """By split, without .tar."""
        shards = {split: -(-n // self.draft.samples_per_shard) for split, n in self.counts.items()}
        return {split: [f"{split}-{k:05d}" for k in range(n)] for split, n in shards.items()}

    def to_json(self) -> bytes:
        draft = json.loads(self.draft.to_json())
        return json.dumps({"draft": draft, "counts": self.counts, "lost": self.lost}).encode()

    @classmethod
    def from_json(cls, text: bytes) -> ShardPlan:
        """Raises KeyError, TypeError or ValueError."""
        raw = json.loads(text)
        draft = Manifest.from_json(json.dumps(raw["draft"]).encode())
        return cls(draft=draft, counts=raw["counts"], lost=raw.get("lost", 0))


def permutation(count: int, seed: int, salt: str) -> NDArray[np.int64]:
    """A permutation of range(count), the same on every machine and NumPy: sorts by a 64-bit mix of
    seed and number."""
    start = int.from_bytes(hashlib.sha256(f"{seed} {salt}".encode()).digest()[:8], "little")
    with np.errstate(over="ignore"):
        z = np.arange(1, count + 1, dtype=np.uint64) * np.uint64(0x9E3779B97F4A7C15)
        z += np.uint64(start)
        # splitmix64, a bijection: no ties
        z = (z ^ (z >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
        z = (z ^ (z >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return np.argsort(z ^ (z >> np.uint64(31)), kind="stable")


def draft_manifest(
    source: Source,
    *,
    size: int,
    codec: str,
    samples_per_shard: int,
    quality: int | None = None,
    seed: int = 0,
    whole: Whole | None = None,
) -> Manifest:
    """The manifest of the dataset to be, without what only its shards tell. whole: images keep
    their shape; None: they are square."""
    return Manifest(
        format=FORMAT,
        image_size=size,
        codec=codec,
        quality=quality,
        seed=seed,
        samples_per_shard=samples_per_shard,
        source=source.fingerprint,
        tools=tools(),
        classes=source.classes,
        splits={},
        stats_sha256="",
        shape="whole" if whole else "square",
        max_aspect=whole.max_aspect if whole else None,
        enlarge=whole.enlarge if whole else False,
    )


def whole_of(manifest: Manifest) -> Whole | None:
    """How its images kept their shape; None: they are square, or somebody else's."""
    return Whole(manifest.max_aspect, manifest.enlarge) if manifest.max_aspect else None


def slices(source: Source, draft: Manifest) -> Iterator[Slice]:
    """All shards in order."""
    for split, listing in source.splits.items():
        order = permutation(len(listing), draft.seed, split)
        if (groups := row_groups(listing)) is not None:
            order = keep_together(order, groups, draft.samples_per_shard)
        for number, start in enumerate(range(0, len(order), draft.samples_per_shard)):
            yield Slice(split, number, order[start : start + draft.samples_per_shard])


def make_task(
    part: Slice,
    source: Source,
    draft: Manifest,
    out: str,
    *,
    tolerant: bool = True,
    limits: NetworkLimits = DEFAULT_LIMITS,
    stamps: Mapping[str, Stamp] = NO_STAMPS,
) -> ShardTask:
    listing = source.splits[part.split]
    items = tuple(listing.item(int(row)) for row in part.rows)
    containers = {item.container for item in items}
    return ShardTask(
        out=out,
        split=part.split,
        number=part.number,
        items=items,
        size=draft.image_size,
        codec=draft.codec,
        quality=draft.quality or 0,
        tolerant=tolerant,
        limits=limits,
        whole=whole_of(draft),
        stamps={name: stamp for name, stamp in stamps.items() if name in containers},
    )


def write_plan(store: Store, plan: ShardPlan) -> None:
    """Writes the plan; GratisError where there is unfinished work of other settings, another source
    or other tools.

    Tasks, and runs at a URL, may do this at the same time: the first one's plan stays, and all read
    it."""
    try:
        if PLAN not in {f"{WORK}/{name}" for name in store.sizes(WORK)}:
            store.create(PLAN, plan.to_json())
        there = ShardPlan.from_json(store.read(PLAN))
    except (ValueError, KeyError, TypeError):
        raise GratisError(
            f"{store.address} holds unfinished work of another version; add --discard to remove it"
        ) from None
    way_out = "add --discard to remove that unfinished work, or choose another"
    refuse_other(store, there.draft, plan.draft, way_out)


def refuse_other(store: Store, there: Manifest, wanted: Manifest, way_out: str) -> None:
    """GratisError naming every setting in which the dataset in the store differs from the wanted
    one."""
    one, other = settings(there), settings(wanted)
    differences = ", ".join(
        f"{k} {_shown(one.get(k))} there and {_shown(v)} asked for"
        for k, v in other.items()
        if one.get(k) != v
    )
    if differences:
        raise GratisError(f"{store.address} is another dataset: {differences}; {way_out} OUT")


def _shown(value: object) -> object:
    """A source's sha256 as `gratis inspect` shows it."""
    return value[:8] if isinstance(value, str) and len(value) == 64 else value


def settings(manifest: Manifest) -> dict[str, object]:
    """What decides the bytes of the output."""
    names = (
        *("source", "shape", "image_size", "max_aspect", "enlarge"),
        *("codec", "quality", "seed", "samples_per_shard"),
    )
    values = {name.replace("_", "-"): getattr(manifest, name) for name in names}
    return values | manifest.tools


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
