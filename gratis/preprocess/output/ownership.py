"""Claim: who may write in OUT, and what earlier runs that did not finish left there."""

from __future__ import annotations

import contextlib
import fcntl
import os
import re
from collections.abc import Iterator
from pathlib import Path

from gratis import addresses, dataset
from gratis.dataset import Manifest
from gratis.errors import GratisError
from gratis.preprocess.output.store import WORK, LocalStore, Store
from gratis.preprocess.stages.plan import PLAN, Plan
from gratis.preprocess.stages.shard import BLOCK, OWNER

INDEXING = f"{WORK}/indexing"  # an index command has begun to write beside the work folder
UNFINISHED = re.compile(r"(train|val)(-\d{5,}\.(tar|idx)|\.index\.npz)|stats\.npz|rejects\.jsonl")


@contextlib.contextmanager
def claimed(out: str, store: Store, *, shared: bool) -> Iterator[None]:
    """Makes OUT and holds its lock: tasks share it, all else has it alone. It lies in the work
    folder, which publication removes. A URL has no lock."""
    with contextlib.ExitStack() as held:
        if not addresses.is_url(out):
            held.enter_context(_locked(Path(out), shared))
        try:
            if not shared:
                for name in store.sizes(WORK):
                    if name.endswith(".tmp"):  # of a run that was killed
                        store.remove(f"{WORK}/{name}")
            yield
        except (
            OSError
        ) as error:  # a disk that is full, a folder that somebody removed, a network that fails
            raise GratisError(
                f"{out}: {error}; what is finished stays: mend that and run it again"
            ) from None


@contextlib.contextmanager
def _locked(out: Path, shared: bool) -> Iterator[None]:
    try:
        (out / WORK).mkdir(parents=True, exist_ok=True)
        lock = os.open(out / WORK / "lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
    except OSError as error:
        raise GratisError(f"cannot write to {out}: {error.strerror}; choose another OUT") from None
    try:
        try:
            fcntl.flock(lock, (fcntl.LOCK_SH if shared else fcntl.LOCK_EX) | fcntl.LOCK_NB)
        except (BlockingIOError, PermissionError):  # the two by which systems say that it is taken
            raise GratisError(
                f"another process is making shards in {out}; wait for it, or choose another OUT"
            ) from None
        except OSError as error:  # a file system without locks
            raise GratisError(
                f"{out} cannot be locked ({error.strerror}); choose an OUT on another disk"
            ) from None
        yield
    finally:
        os.close(lock)


def foreign(store: Store) -> list[str]:
    """The files in OUT, sorted, that have names of ours though no plan lies there.

    Every run writes its plan before its first shard, and its manifest before the plan goes. Whoever
    calls this and then looks for the manifest takes no run of ours, not even one that ends
    meanwhile, for somebody else."""
    names = sorted(name for name in store.sizes() if UNFINISHED.fullmatch(name))
    return [] if PLAN in _work(store) else names


def refuse_foreign(place: str, name: str | None) -> None:
    """GratisError for a name that `foreign` has found."""
    if name:
        told = (
            "no unfinished run of this command has written it, and the dataset's files would "
            "replace such ones"
        )
        raise GratisError(f"{place} holds {name}: {told}; choose another OUT, or move them away")


def refuse_others(store: Store, place: str, plan: Plan, taken: list[str]) -> None:
    """GratisError for one of these files, which lie there without a plan, unless they are what a
    dataset leaves whose manifest was removed: the plan names them all, there are tars among them,
    our writer has signed each, and codec and size are the plan's. Quality, seed and source are not
    looked for: one that differs in these alone is made anew by the plan. At a URL, where looking
    takes long, nothing is ours."""
    planned, local = names_of(plan), store if isinstance(store, LocalStore) else None
    if local is None or not any(name.endswith(".tar") for name in taken):
        others = taken
    else:
        others = [
            name
            for name in taken
            if name not in planned or not _ours(local.root / name, plan.draft)
        ]
    refuse_foreign(place, others[0] if others else None)


def _ours(path: Path, draft: Manifest) -> bool:
    """Whether this draft's run may have written the file: a tar by its first header, the statistics
    by their size. All others go with the tars."""
    with contextlib.suppress(OSError, GratisError):
        if path.name == dataset.STATS:
            return len(dataset.read_stats(path.parent).mean) == draft.image_size
        if path.suffix != ".tar":
            return True
        if path.is_file():
            with path.open("rb") as file:
                head = file.read(BLOCK)
            # USTAR's name and uname
            name, owner = (head[:100].rstrip(b"\0"), head[265:297].rstrip(b"\0"))
            return owner == OWNER.encode() and name.endswith(
                f".{dataset.EXTENSIONS[draft.codec]}".encode()
            )
    return False


def refuse_unindexed(store: LocalStore, names: set[str]) -> None:
    """GratisError for one of these files if no index has left it, neither a whole one nor one that
    was broken off. What an index leaves of tars are links: one that is none is refused in any
    case."""
    taken = sorted(names & store.sizes().keys())
    tars = [
        name for name in taken if name.endswith(".tar") and not (store.root / name).is_symlink()
    ]
    refuse_foreign(str(store.root), tars[0] if tars else None)
    if taken and not (store.root / INDEXING).exists():
        try:
            dataset.read_index(store.root, "train")
        except GratisError:
            refuse_foreign(str(store.root), taken[0])


def surplus(store: LocalStore, names: set[str]) -> list[str]:
    """What an earlier index has left in OUT, a folder apart from the tars, beside the files of
    these names: links to tars, their .idx, and the index of a split that is no more. Call it after
    `refuse_unindexed`."""
    there = store.sizes()
    if not names & there.keys():  # no index was here
        return []
    links = [
        n
        for n in there
        if UNFINISHED.fullmatch(n) and n.endswith(".tar") and (store.root / n).is_symlink()
    ]
    indices = {f"{link[:-4]}.idx" for link in links} | {
        dataset.index_name(link.partition("-")[0]) for link in links
    }
    return sorted((indices.union(links) & there.keys()) - names)


def discard(store: Store) -> None:
    """Removes what an unfinished run left behind: what its plan names, and the plan last, so that a
    discard that was interrupted is known for one. The lock stays, and without a plan all that lies
    beside the work folder."""
    if PLAN in _work(store):
        planned = _planned(store)
        for name in store.sizes():
            if UNFINISHED.fullmatch(name) if planned is None else name in planned:
                store.remove(name)
    for name in sorted(_work(store), key=lambda name: name == PLAN):
        if name != f"{WORK}/lock":
            store.remove(name)


def _work(store: Store) -> list[str]:
    return [f"{WORK}/{name}" for name in store.sizes(WORK)]


def _planned(store: Store) -> set[str] | None:
    try:
        return names_of(Plan.from_json(store.read(PLAN)))
    except (ValueError, KeyError, TypeError, AttributeError):  # another version's
        return None


def names_of(plan: Plan) -> set[str]:
    """All that the plan's run may write beside the work folder."""
    return names_in(plan.shard_names())


def names_in(shards: dict[str, list[str]]) -> set[str]:
    """All files of a dataset of these shards (by split, without .tar) but the manifest."""
    addresses = {
        f"{name}.{kind}" for names in shards.values() for name in names for kind in ("tar", "idx")
    }
    return (
        addresses
        | {dataset.index_name(split) for split in shards}
        | {dataset.STATS, dataset.REJECTS}
    )
