"""The shards command: plan, map, reduce. SRC becomes a dataset (preprocess.dataset) in OUT.

    python -m preprocess shards --src SRC --out shards

The plan shuffles each split once, by seed, and cuts it into shards; it knows nothing of workers. The map makes shards
(preprocess.shard). The reduce adds up statistics, writes indices and, last, the manifest. So the same source and
settings give the same bytes with any number of workers and after any interruption; a rerun does only what is missing.
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import importlib.metadata
import json
import os
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
import PIL
from numpy.typing import NDArray
from PIL import features

from preprocess import dataset
from preprocess.dataset import Manifest
from preprocess.errors import UserError
from preprocess.estimate import describe, estimate_apart, refuse_full_disk
from preprocess.progress import Progress
from preprocess.reduce import publish
from preprocess.shard import WORK, ShardTask, read_receipt, receipt_path
from preprocess.sources import Source, open_source
from preprocess.workers import run_tasks

PLAN = "plan.json"


@dataclass(frozen=True, kw_only=True)
class ShardsConfig:
    """Makes a dataset of size x size images from the official archives or class folders."""

    src: Path
    """Folder with the ILSVRC2012 archives (read in place), or with train/<class>/* and perhaps val/<class>/*."""
    out: Path = Path("shards")
    """Folder of the dataset. Interrupted work in it is resumed."""
    workers: int | None = None
    """Processes. Default: one per core that this process may use."""
    codec: Literal["jpeg", "raw"] = "jpeg"
    """raw: PPM members, six times the disk and no decoding."""
    quality: int = 95
    """Of the JPEGs, 1 to 100."""
    size: int = 256
    """Side of the images in pixels."""
    seed: int = 0
    """Of the shuffle."""
    samples_per_shard: int = 1000
    max_rejects: int = 0
    """Publish although up to so many files could not be used."""
    dry_run: bool = False
    """Write nothing: say what it would cost in disk and time, measured on a few images."""
    run_dir: Path | None = None
    """Append progress events to shards.jsonl there."""

    def __post_init__(self) -> None:
        if self.workers is not None and self.workers < 1:
            raise UserError(f"--workers {self.workers}: at least 1")
        if not 1 <= self.quality <= 100:
            raise UserError(f"--quality {self.quality}: between 1 and 100")
        if not 8 <= self.size <= 4096:
            raise UserError(f"--size {self.size}: between 8 and 4096 pixels")
        if not 0 <= self.seed < 2**63:
            raise UserError(f"--seed {self.seed}: between 0 and 2**63 - 1")
        if not 1 <= self.samples_per_shard <= 100_000:
            raise UserError(f"--samples-per-shard {self.samples_per_shard}: between 1 and 100,000")
        if self.max_rejects < 0:
            raise UserError(f"--max-rejects {self.max_rejects}: 0 or more")

    @property
    def processes(self) -> int:
        return self.workers or len(os.sched_getaffinity(0))

    def settings(self) -> dict[str, object]:
        """What decides the bytes of the output, source and tools apart."""
        return {
            "size": self.size,
            "codec": self.codec,
            "quality": self.quality if self.codec == "jpeg" else None,
            "seed": self.seed,
            "samples-per-shard": self.samples_per_shard,
        }


def make_shards(config: ShardsConfig) -> Manifest | None:
    """Makes what is missing of the dataset, publishes it, returns its manifest. A complete one is left as it is.

    None after a dry run.
    """
    source = open_source(config.src)
    if (config.out / dataset.MANIFEST).exists():
        manifest = dataset.read_manifest(config.out)
        _refuse_other(config.out, _settings_of(manifest, config, source), _wanted(config, source))
        print(f"{config.out} is already there: {summary(manifest)}")
        return manifest
    for line in source.skipped:
        print(line, file=sys.stderr)
    if not pillow_name().startswith("pillow-simd"):
        print(f"warning: {pillow_name()} runs, not pillow-simd: half the speed; see docker/install.py", file=sys.stderr)
    cost = estimate_apart(sum(map(len, source.splits.values())), next(plan(config, source)))
    if config.dry_run:
        print(describe(cost, config.processes))
        return None
    with _claimed(config.out):
        if cost:
            refuse_full_disk(config.out, cost.bytes)
        _agree_on_plan(config, source)
        _map(config, source)
        manifest = publish(
            config.out,
            [(split, len(part)) for split, part in source.splits.items()],
            config.samples_per_shard,
            config.max_rejects,
            Manifest(
                format=dataset.FORMAT,
                image_size=config.size,
                codec=config.codec,
                quality=config.quality if config.codec == "jpeg" else None,
                seed=config.seed,
                source=source.fingerprint,
                tools=tools(),
                classes=source.classes,
                splits={},
                stats_sha256="",
            ),
        )
    print(f"{config.out}: {summary(manifest)}")
    return manifest


def shuffled(count: int, seed: int, salt: str) -> NDArray[np.int64]:
    """A permutation of range(count), the same on every machine and NumPy: sorts by a 64-bit mix of seed and number."""
    start = int.from_bytes(hashlib.sha256(f"{seed} {salt}".encode()).digest()[:8], "little")
    with np.errstate(over="ignore"):
        z = np.uint64(start) + np.arange(1, count + 1, dtype=np.uint64) * np.uint64(0x9E3779B97F4A7C15)
        z = (z ^ (z >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)  # splitmix64, a bijection: no ties
        z = (z ^ (z >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return np.argsort(z ^ (z >> np.uint64(31)), kind="stable")


def plan(config: ShardsConfig, source: Source) -> Iterator[ShardTask]:
    """The tasks in order, made one by one: a task holds its items, the plan as a whole would hold all of them."""
    for split, listing in source.splits.items():
        order = shuffled(len(listing), config.seed, split)
        for number, start in enumerate(range(0, len(order), config.samples_per_shard)):
            rows = order[start : start + config.samples_per_shard]
            yield ShardTask(
                out=config.out,
                split=split,
                number=number,
                items=tuple(listing.item(int(row)) for row in rows),
                size=config.size,
                codec=config.codec,
                quality=config.quality,
            )


def summary(manifest: Manifest) -> str:
    """One line: "1000 train and 200 val images of 10 classes, 128 px, in 3 shards"."""
    counts = " and ".join(f"{split.samples:,} {name}" for name, split in manifest.splits.items())
    shards = sum(len(split.shards) for split in manifest.splits.values())
    return f"{counts} images of {len(manifest.classes):,} classes, {manifest.image_size} px, in {shards:,} shards"


def pillow_name() -> str:
    """Which Pillow is running, with its version: "pillow-simd 12.1.1.post0"."""
    for name in ("pillow-simd", "pillow"):
        with contextlib.suppress(importlib.metadata.PackageNotFoundError):
            if importlib.metadata.version(name) == PIL.__version__:
                return f"{name} {PIL.__version__}"
    return f"unknown {PIL.__version__}"


def tools() -> dict[str, str]:
    """What shapes the bytes beside the settings."""
    return {"pillow": pillow_name(), "libjpeg-turbo": str(features.version("libjpeg_turbo")), "numpy": np.__version__}


@contextlib.contextmanager
def _claimed(out: Path) -> Iterator[None]:
    """Makes OUT and holds its lock. The lock lies in the work folder, which publication removes."""
    try:
        (out / WORK).mkdir(parents=True, exist_ok=True)
        lock = os.open(out / WORK / "lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
    except OSError as error:
        raise UserError(f"cannot write to {out}: {error.strerror}; choose another OUT") from None
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        os.close(lock)
        raise UserError(f"another process is making shards in {out}; wait for it, or choose another OUT") from None
    try:
        yield
    except OSError as error:  # a disk that is full, a folder that somebody removed
        raise UserError(f"{out}: {error}; what is finished stays: mend that and run it again") from None
    finally:
        os.close(lock)


def _wanted(config: ShardsConfig, source: Source) -> dict[str, object]:
    return {"source": source.fingerprint} | config.settings()


def _settings_of(manifest: Manifest, config: ShardsConfig, source: Source) -> dict[str, object]:
    """What a whole dataset was made from. Its cut into shards is judged by the shards' sample counts."""
    same_cut = manifest.source == source.fingerprint and all(
        len(split.shards) == -(-len(source.splits[name]) // config.samples_per_shard)
        and max(shard.samples for shard in split.shards) <= config.samples_per_shard
        for name, split in manifest.splits.items()
    )
    largest = max(shard.samples for split in manifest.splits.values() for shard in split.shards)
    return {
        "source": manifest.source,
        "size": manifest.image_size,
        "codec": manifest.codec,
        "quality": manifest.quality,
        "seed": manifest.seed,
        "samples-per-shard": config.samples_per_shard if same_cut else largest,
    }


def _refuse_other(out: Path, there: dict[str, object], wanted: dict[str, object]) -> None:
    if there == wanted:
        return
    names = [name for name in wanted if there.get(name) != wanted[name]]
    differences = ", ".join(f"{name} {there.get(name)} there and {wanted[name]} asked for" for name in names)
    raise UserError(f"{out} is another dataset: {differences}; choose another OUT or remove it")


def _agree_on_plan(config: ShardsConfig, source: Source) -> None:
    """Writes down what is being made; refuses unfinished work of other settings, another source or other tools."""
    wanted = _wanted(config, source) | tools()
    path = config.out / WORK / PLAN
    if path.exists():
        _refuse_other(config.out, json.loads(path.read_text()), wanted)
    else:
        dataset.write_durably(path, json.dumps(wanted).encode())
    for leftover in (config.out / WORK).glob("*.tmp"):
        leftover.unlink(missing_ok=True)


def _map(config: ShardsConfig, source: Source) -> None:
    total = sum(map(len, source.splits.values()))
    done, rejects, missing = 0, 0, []
    for number, task in enumerate(plan(config, source)):
        receipt = _finished(task)
        if receipt is None:
            missing.append(number)
        else:
            done += len(task.items)
            rejects += receipt
    if not missing:
        return
    wanted = set(missing)
    tasks = (task for number, task in enumerate(plan(config, source)) if number in wanted)
    workers = min(config.processes, len(missing))
    with Progress(config.run_dir, total=total, done=done, rejects=rejects) as progress:
        for step in run_tasks(tasks, workers):
            progress.add(step)


def _finished(task: ShardTask) -> int | None:
    """How many files the finished shard rejected; None if it is not finished."""
    try:
        receipt = read_receipt(receipt_path(task.out, task.name))
        whole = (task.out / f"{task.name}.tar").stat().st_size == receipt.bytes
        return len(receipt.rejects) if whole and (task.out / f"{task.name}.idx").exists() else None
    except (OSError, ValueError, KeyError, EOFError):
        return None
