"""Ownership of OUT: a lock against other processes, and which files there an unfinished run of ours
has left."""

from __future__ import annotations

import contextlib
import re
from collections.abc import Iterator
from pathlib import Path
from typing import TextIO

from gratis import dataset
from gratis.dataset import Manifest
from gratis.errors import GratisError
from gratis.locks import hold
from gratis.preprocess.output.shard_writer import OWNER
from gratis.preprocess.output.store import WORK, LocalStore, Store
from gratis.preprocess.sources.tar_headers import BLOCK
from gratis.preprocess.stages.plan import PLAN, ShardPlan

INDEXING = f"{WORK}/indexing"  # an index command has begun to write beside the work folder
DATASET_FILE = re.compile(r"(train|val)(-\d{5,}\.(tar|idx)|\.index\.npz)|stats\.npz|rejects\.jsonl")


@contextlib.contextmanager
def lock_output(store: Store, *, shared: bool) -> Iterator[None]:
    """Makes OUT and holds its lock: tasks share it, everything else has it alone. The lock is in
    the work folder, which publication removes. A URL has no lock. GratisError instead of
    OSError."""
    with contextlib.ExitStack() as stack:
        if isinstance(store, LocalStore):
            stack.enter_context(_lock(store.root, shared))
        try:
            if not shared:
                for name in store.sizes(WORK):
                    if name.endswith(".tmp"):  # of a run that was killed
                        store.remove(f"{WORK}/{name}")
            yield
        except OSError as error:  # a full disk, a folder that was removed, a network that fails
            raise GratisError(
                f"{store.address}: {error}; what is finished stays: mend that and run it again"
            ) from None


def _lock(out: Path, shared: bool) -> TextIO:
    try:
        (out / WORK).mkdir(parents=True, exist_ok=True)
        lock = hold(out / WORK / "lock", shared=shared, what=out)
    except OSError as error:
        raise GratisError(f"cannot write to {out}: {error.strerror}; choose another OUT") from None
    if lock is None:
        way_out = "wait for it, or choose another OUT"
        raise GratisError(f"another process is making shards in {out}; {way_out}")
    return lock


def foreign_files(store: Store) -> list[str]:
    """The files in OUT, sorted, that have names of a dataset although no plan is there.

    Every run writes its plan before its first shard, and removes it after its manifest is written:
    call this first and look for the manifest then, and no run of ours is mistaken for a
    foreign one, not even if it ends in between."""
    names = sorted(name for name in store.sizes() if DATASET_FILE.fullmatch(name))
    return [] if PLAN in _work(store) else names


def refuse_foreign(store: Store, names: list[str]) -> None:
    """GratisError for the first of these files, if there is one."""
    if names:
        reason = (
            "no unfinished run of this command has written it, and the dataset's files would "
            "replace such ones"
        )
        raise GratisError(
            f"{store.address} holds {names[0]}: {reason}; choose another OUT, or move them away"
        )


def refuse_unplanned(store: Store, plan: ShardPlan, files: list[str]) -> None:
    """GratisError for the first of these files that are there without a plan, unless they are what
    remains of a dataset of ours whose manifest was removed: the plan names them all, there are tars
    among them, each with our writer's owner, and codec and size are the plan's. Quality, seed and
    source are not compared: a dataset that differs in these alone is made again by the plan. At a
    URL, where looking takes long, no file counts as ours."""
    if isinstance(store, LocalStore) and any(name.endswith(".tar") for name in files):
        root, planned = store.root, plan_files(plan)
        files = [n for n in files if n not in planned or not _is_ours(root / n, plan.draft)]
    refuse_foreign(store, files)


def _is_ours(path: Path, draft: Manifest) -> bool:
    """Whether a run of this draft may have written the file: a tar by its first header, the
    statistics by their size. All others belong to the tars."""
    with contextlib.suppress(OSError, GratisError):
        if path.name == dataset.STATS:
            side = draft.image_size if draft.shape == "square" else 0
            return len(dataset.read_stats(path.parent).mean) == side
        if path.suffix != ".tar":
            return True
        if path.is_file():
            with path.open("rb") as file:
                head = file.read(BLOCK)
            # USTAR's name and uname
            name, owner = head[:100].rstrip(b"\0"), head[265:297].rstrip(b"\0")
            extension = f".{dataset.EXTENSIONS[draft.codec]}"
            return owner == OWNER.encode() and name.endswith(extension.encode())
    return False


def refuse_unindexed(store: LocalStore, names: set[str]) -> None:
    """GratisError for the first of these files if no index command has left it, complete or
    interrupted. What an index leaves of tars are links: a tar that is no link is always
    refused."""
    taken = sorted(names & store.sizes().keys())
    tars = [name for name in taken if name.endswith(".tar")]
    refuse_foreign(store, [name for name in tars if not (store.root / name).is_symlink()])
    if taken and not (store.root / INDEXING).exists():
        try:
            dataset.read_index(store.root, "train")
        except GratisError:
            refuse_foreign(store, taken)


def stale_files(store: LocalStore, names: set[str]) -> list[str]:
    """What an earlier index has left in OUT, a folder apart from the tars, beside the files of
    these names: links to tars, their .idx, and the index of a split that is no more. Call it after
    `refuse_unindexed`."""
    files = store.sizes()
    if not names & files.keys():  # no index was here
        return []
    tars = [name for name in files if DATASET_FILE.fullmatch(name) and name.endswith(".tar")]
    links = {name for name in tars if (store.root / name).is_symlink()}
    indices = {f"{link[:-4]}.idx" for link in links}
    indices |= {dataset.index_name(link.partition("-")[0]) for link in links}
    return sorted(((links | indices) & files.keys()) - names)


def discard(store: Store) -> None:
    """Removes what an unfinished run left behind: the files that its plan names, and the plan last,
    so that an interrupted discard can be repeated. The lock stays, and so does everything beside
    the work folder if there is no plan."""
    if PLAN in _work(store):
        planned = _planned(store)
        for name in store.sizes():
            if DATASET_FILE.fullmatch(name) if planned is None else name in planned:
                store.remove(name)
    for name in sorted(_work(store), key=lambda name: name == PLAN):
        if name != f"{WORK}/lock":
            store.remove(name)


def _work(store: Store) -> list[str]:
    return [f"{WORK}/{name}" for name in store.sizes(WORK)]


def _planned(store: Store) -> set[str] | None:
    try:
        return plan_files(ShardPlan.from_json(store.read(PLAN)))
    except (ValueError, KeyError, TypeError, AttributeError):  # another version's
        return None


def plan_files(plan: ShardPlan) -> set[str]:
    """All files that the plan's run may write beside the work folder."""
    return dataset_files(plan.shard_names())


def dataset_files(shards: dict[str, list[str]]) -> set[str]:
    """All files of a dataset of these shards (by split, without .tar) but the manifest."""
    names = [name for split in shards.values() for name in split]
    files = {f"{name}.{extension}" for name in names for extension in ("tar", "idx")}
    return (
        files | {dataset.index_name(split) for split in shards} | {dataset.STATS, dataset.REJECTS}
    )
