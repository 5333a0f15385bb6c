"""The shards command: plan, map, reduce. SRC becomes a dataset (gratis.dataset) in OUT.

    gratis shards --src SRC --out shards

The plan shuffles each split once, by seed, and cuts it into shards (stages/plan.py). The map makes
shards (stages/shard.py), by local processes, a Ray cluster or the tasks of a batch scheduler
(execution/). The reduce adds up statistics, writes indices and, last, the manifest
(stages/publish.py). So the same source and settings give the same bytes with any number of workers
and after any interruption; a rerun does only what is missing.

    #SBATCH --array=0-63                     each task makes every 64th shard,
    gratis shards --src SRC --out shards
    gratis merge shards                      and when all are done, this publishes them
"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import partial
from itertools import islice
from pathlib import Path, PurePath

from gratis import addresses, dataset
from gratis.command_line import check_ranges
from gratis.dataset import Manifest, Shape
from gratis.errors import GratisError
from gratis.image import Whole
from gratis.network import NetworkLimits
from gratis.preprocess.codecs import CODECS, CodecName
from gratis.preprocess.execution.engines import Engine, run_by
from gratis.preprocess.execution.workers import TaskProgress, closing_pool
from gratis.preprocess.output.receipt import finished_shards, forget_shard, written
from gratis.preprocess.output.store import LocalStore, Store, open_store
from gratis.preprocess.sources.imagenet import ARCHIVE_MD5, check_md5
from gratis.preprocess.sources.open import open_source
from gratis.preprocess.sources.reader import stamps_of
from gratis.preprocess.sources.source import Source, SourceOptions, ValFrom
from gratis.preprocess.stages.estimate import (
    Estimate,
    describe,
    estimate,
    estimate_apart,
    refuse_full_disk,
)
from gratis.preprocess.stages.ownership import (
    discard,
    foreign_files,
    lock_output,
    plan_files,
    refuse_unplanned,
)
from gratis.preprocess.stages.plan import (
    ShardPlan,
    Slice,
    draft_manifest,
    make_task,
    pillow_name,
    slices,
    write_plan,
)
from gratis.preprocess.stages.progress import Progress
from gratis.preprocess.stages.publish import already_there, announce, publish
from gratis.preprocess.stages.shard import ShardTask

RunTasks = Callable[[Iterable[ShardTask], int], Iterable[TaskProgress]]
MAX_ASPECT = 4.0
RANGES = {  # of options: least and most
    "workers": (1, 10_000),
    "quality": (1, 100),
    "size": (8, 4096),
    "max_aspect": (1, 15),  # times the largest size: less than a JPEG's longest side
    "seed": (0, 2**63 - 1),
    "samples_per_shard": (1, 100_000),
    "limit_classes": (1, 1 << 31),
    "limit_per_class": (1, 1 << 31),
    "max_rejects": (0, 1 << 31),
    "num_tasks": (1, 100_000),
}


@dataclass(frozen=True, kw_only=True)
class ShardsConfig:
    """Makes a dataset of images of one size from the official archives, class folders, WebDataset
    tars and other sources."""

    src: str = ""
    """Required: folder or URL (s3, gs, http) with the ILSVRC2012 archives, train/<class>/*,
    WebDataset tars, parquet files or another kind of docs/sources.md."""
    val_from: ValFrom = "val"
    """Split of SRC that becomes the validation split. test: on your own responsibility."""
    unlabelled: bool = False
    """Read no labels: all are -1, for self-supervised training. SRC may then be any folder of
    images."""
    out: str = "shards"
    """Folder or URL of the dataset. Interrupted work in it is resumed."""
    workers: int | None = None
    """Processes. Default: one per core that this process may use."""
    engine: Engine = "local"
    """ray: the same tasks on a Ray cluster (RAY_ADDRESS), which must see SRC and OUT under the same
    names."""
    codec: CodecName = "jpeg"
    """raw: PPM members, six times the disk and no decoding."""
    quality: int = 95
    """Of the JPEGs, 1 to 100."""
    size: int = 256
    """Side of the images in pixels; of whole ones the shorter side."""
    shape: Shape = "square"
    """square: the central square of each image, as AlexNet needs it. whole: images keep their
    shape, for resized crops and evaluation as in torchvision."""
    max_aspect: float = MAX_ASPECT
    """Of whole images: what is longer than so many times the shorter side loses its ends."""
    enlarge: bool = False
    """Of whole images: enlarge those whose shorter side is below SIZE, which otherwise keep their
    size."""
    seed: int = 0
    """Of the shuffle."""
    samples_per_shard: int = 1000
    limit_classes: int | None = None
    """Use the first so many classes only."""
    limit_per_class: int | None = None
    """Use the first so many images of each class and split only."""
    max_rejects: int = 0
    """Publish although up to so many files could not be used."""
    check_md5: bool = False
    """Compare the ILSVRC2012 archives with their published md5 sums first."""
    discard: bool = False
    """Remove unfinished work of other settings from OUT first; never a published dataset, or files
    of others."""
    dry_run: bool = False
    """Write nothing: say what it would cost in disk and time, measured on a few images."""
    task_id: int | None = None
    """Make only the shards of this task, from 0, and publish nothing. Default: SLURM's array
    task."""
    num_tasks: int | None = None
    """Tasks that share the work. Default: SLURM's array. 1: no sharing, the dataset is published as
    always."""
    outage_s: float = 600.0
    """Seconds for which the server of SRC or OUT may be away (0 to 86400); then it ends with 75,
    and the same command goes on."""
    read_timeout_s: float = 30.0
    """Seconds between two bytes of a server's answer, after which a request is made again (up to
    3600)."""
    run_dir: Path | None = None
    """Append progress events to shards.jsonl there."""

    def __post_init__(self) -> None:
        if not self.src:
            raise GratisError(
                "no source: give --src FOLDER; for a drawn one: gratis sample --out sample/source"
            )
        if not self.out:  # of a shell variable that is not set; it would be the current folder
            raise GratisError("--out is empty: name the folder or URL of the dataset")
        check_ranges(self, RANGES)
        _ = self.network
        if self.shape == "square" and (self.enlarge or self.max_aspect != MAX_ASPECT):
            name = "--enlarge" if self.enlarge else "--max-aspect"
            raise GratisError(f"{name} is for images that keep their shape; add --shape whole")
        if (self.task_id is None) != (self.num_tasks is None):
            raise GratisError("--task-id and --num-tasks go together; give both or neither")
        tasks = self.num_tasks or 0
        if self.task_id is not None and not 0 <= self.task_id < tasks:
            raise GratisError(
                f"--task-id {self.task_id}: from 0 to {tasks - 1}, one below --num-tasks"
            )
        if self.discard and self.is_part:
            raise GratisError(
                "--discard with --task-id would remove the other tasks' work; run it once without "
                "the task"
            )

    @property
    def network(self) -> NetworkLimits:
        """GratisError for a limit out of its range."""
        return NetworkLimits(outage_s=self.outage_s, read_timeout_s=self.read_timeout_s)

    @property
    def is_part(self) -> bool:
        return self.num_tasks is not None and self.num_tasks > 1

    @property
    def processes(self) -> int:
        return self.workers or len(os.sched_getaffinity(0))


def make_shards(config: ShardsConfig, run: RunTasks | None = None) -> Manifest | None:
    """Makes what is missing of the dataset, publishes it, returns its manifest. A complete one is
    left as it is.

    None after a dry run, and after a task's share of the work. run: runs all tasks, by so many
    workers, in place of the configured engine; the cost is then estimated in this process.
    """
    addresses.use_limits(config.network)
    if config.check_md5:
        check_md5(config.src, ARCHIVE_MD5)
    _refuse_inside(config)
    options = SourceOptions(val_from=config.val_from, unlabelled=config.unlabelled)
    source = open_source(config.src, options).limited(config.limit_classes, config.limit_per_class)
    plan = _plan(config, source)
    store = open_store(config.out)
    foreign = foreign_files(store)
    if dataset.MANIFEST in store.sizes():
        return already_there(store, plan.draft)
    refuse_unplanned(store, plan, foreign)
    source.report()
    source.refuse_lost(config.max_rejects)
    _warn()
    tolerant = config.max_rejects > 0
    part = next(slices(source, plan.draft))
    limits = config.network
    first = make_task(part, source, plan.draft, config.out, tolerant=tolerant, limits=limits)
    with closing_pool() as pool:
        images = sum(plan.counts.values())
        cost = estimate(images, first) if run else estimate_apart(images, first, pool)
        if config.dry_run:
            print(describe(cost, config.processes))
            return None
        run = run or partial(run_by, config.engine, pool=pool)
        return _make(config, store, source, plan, cost=cost, run=run)


def _make(
    config: ShardsConfig,
    store: Store,
    source: Source,
    plan: ShardPlan,
    *,
    cost: Estimate | None,
    run: RunTasks,
) -> Manifest | None:
    """What `make_shards` writes, once it is known that it may."""
    with lock_output(store, shared=config.is_part):
        # another run has published it in between, and released the lock
        if dataset.MANIFEST in store.sizes():
            return already_there(store, plan.draft)
        if config.discard:
            discard(store)
            refuse_unplanned(store, plan, sorted(plan_files(plan) & store.sizes().keys()))
        if cost and isinstance(store, LocalStore):
            refuse_full_disk(store.root, cost.bytes)
        write_plan(store, plan)
        _map(config, store, source, plan.draft, run)
        if config.is_part:
            task = f"task {config.task_id} of {config.num_tasks}"
            print(f"{config.out}: {task} is done; after the last, merge publishes")
            return None
        try:
            names = plan.shard_names()
            manifest = publish(store, plan.draft, names, config.max_rejects, plan.lost)
        # at a URL, where there is no lock, another run may have removed the receipts
        except FileNotFoundError:
            if dataset.MANIFEST not in store.sizes():
                raise
            return already_there(store, plan.draft)
    announce(config.out, manifest)
    return manifest


def _plan(config: ShardsConfig, source: Source) -> ShardPlan:
    draft = draft_manifest(
        source,
        size=config.size,
        codec=config.codec,
        quality=None if CODECS[config.codec].lossless else config.quality,
        seed=config.seed,
        samples_per_shard=config.samples_per_shard,
        whole=Whole(config.max_aspect, config.enlarge) if config.shape == "whole" else None,
    )
    counts = {split: len(listing) for split, listing in source.splits.items()}
    return ShardPlan(draft=draft, counts=counts, lost=len(source.skipped))


def _warn() -> None:
    if not pillow_name().startswith("pillow-simd"):
        slow = f"{pillow_name()} runs, not pillow-simd: half the speed; see docker/install.py"
        print(f"warning: {slow}", file=sys.stderr)


def _refuse_inside(config: ShardsConfig) -> None:
    """A source that grows by its own output would be another source in the next run."""
    if addresses.is_url(config.src) or addresses.is_url(config.out):
        src, out = PurePath(config.src), PurePath(config.out)
    else:
        src, out = Path(config.src).resolve(), Path(config.out).resolve()
    if src in (out, *out.parents):
        raise GratisError(f"OUT {config.out} lies in SRC {config.src}; choose an OUT outside of it")


def _map(
    config: ShardsConfig, store: Store, source: Source, draft: Manifest, run: RunTasks
) -> None:
    tasks, task = config.num_tasks or 1, config.task_id or 0
    parts = list(islice(slices(source, draft), task, None, tasks))
    rejects = finished_shards(store, [part.name for part in parts])
    for shard in _to_try_again(config, store, source, parts, rejects):
        forget_shard(store, shard)
        del rejects[shard]
    missing = [part for part in parts if part.name not in rejects]
    if not missing:
        return
    total = sum(len(part.rows) for part in parts)
    done = total - sum(len(part.rows) for part in missing)
    tolerant, limits = config.max_rejects > 0, config.network
    listed = (name for listing in source.splits.values() for name in listing.containers)
    stamps = stamps_of(listed)
    work = (
        make_task(one, source, draft, config.out, tolerant=tolerant, limits=limits, stamps=stamps)
        for one in missing
    )
    workers = min(config.processes, len(missing))
    rejected = sum(rejects.values())
    with Progress(config.run_dir, total=total, done=done, rejects=rejected) as progress:
        for new in run(work, workers):
            progress.add(new)


def _to_try_again(
    config: ShardsConfig, store: Store, source: Source, parts: list[Slice], rejects: dict[str, int]
) -> list[str]:
    """Finished shards with rejects whose cause may be gone: all, where there are more than may be;
    else those whose source was touched since, or lies at a URL."""
    with_rejects = {part.name: part for part in parts if rejects.get(part.name)}
    if sum(rejects.values()) > config.max_rejects:
        return list(with_rejects)
    return [name for name, part in with_rejects.items() if _touched(store, source, part)]


def _touched(store: Store, source: Source, part: Slice) -> bool:
    """Whether a file of the shard was written, or put in its place, after the shard was made."""
    listing, made = source.splits[part.split], written(store, part.name)
    items = (listing.item(int(row)) for row in part.rows)
    paths = {
        addresses.join(item.container, item.name) if item.offset == -1 else item.container
        for item in items
    }
    if not made or any(map(addresses.is_url, paths)):
        return True
    try:
        return any(max(os.stat(path).st_mtime, os.stat(path).st_ctime) > made for path in paths)
    except OSError:  # whoever reads it says so
        return True
