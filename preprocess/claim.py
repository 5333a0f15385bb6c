"""Claim: who may write in OUT, and what earlier runs that did not finish left there."""

from __future__ import annotations

import contextlib
import fcntl
import os
import re
from collections.abc import Iterator
from pathlib import Path

from preprocess import dataset, files
from preprocess.errors import UserError
from preprocess.plan import PLAN, Plan
from preprocess.shard import BLOCK, OWNER
from preprocess.store import WORK, LocalStore, Store

INDEXING = f"{WORK}/indexing"  # an index command has begun to write beside the work folder
UNFINISHED = re.compile(r"(train|val)(-\d{5,}\.(tar|idx)|\.index\.npz)|stats\.npz|rejects\.jsonl")


@contextlib.contextmanager
def claimed(out: str, store: Store, *, shared: bool) -> Iterator[None]:
    """Makes OUT and holds its lock: tasks share it, all else has it alone. It lies in the work folder, which
    publication removes. A URL has no lock.
    """
    with contextlib.ExitStack() as held:
        if not files.is_url(out):
            held.enter_context(_locked(Path(out), shared))
        try:
            if not shared:
                for name in store.sizes(WORK):
                    if name.endswith(".tmp"):  # of a run that was killed
                        store.remove(f"{WORK}/{name}")
            yield
        except OSError as error:  # a disk that is full, a folder that somebody removed, a network that fails
            raise UserError(f"{out}: {error}; what is finished stays: mend that and run it again") from None


@contextlib.contextmanager
def _locked(out: Path, shared: bool) -> Iterator[None]:
    try:
        (out / WORK).mkdir(parents=True, exist_ok=True)
        lock = os.open(out / WORK / "lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
    except OSError as error:
        raise UserError(f"cannot write to {out}: {error.strerror}; choose another OUT") from None
    try:
        try:
            fcntl.flock(lock, (fcntl.LOCK_SH if shared else fcntl.LOCK_EX) | fcntl.LOCK_NB)
        except (BlockingIOError, PermissionError):  # the two by which systems say that it is taken
            raise UserError(f"another process is making shards in {out}; wait for it, or choose another OUT") from None
        except OSError as error:  # a file system without locks
            raise UserError(f"{out} cannot be locked ({error.strerror}); choose an OUT on another disk") from None
        yield
    finally:
        os.close(lock)


def foreign(store: Store, plan: Plan) -> str | None:
    """The first file in OUT that has a name of ours though no plan lies there: somebody else's, or None.

    Every run writes its plan before its first shard, and its manifest before the plan goes. Whoever calls this and then
    looks for the manifest takes no run of ours, not even one that ends meanwhile, for somebody else. What `plan` made
    is ours where somebody has removed the manifest, too.
    """
    names = sorted(name for name in store.sizes() if UNFINISHED.fullmatch(name))
    if not names or PLAN in _work(store) or (names_of(plan).issuperset(names) and _ours(store, names)):
        return None
    return names[0]


def _ours(store: Store, names: list[str]) -> bool:
    """Whether there are tars among them, and our writer has signed each. Not at a URL, where looking takes long."""
    tars = [store.root / name for name in names if name.endswith(".tar")] if isinstance(store, LocalStore) else []
    return bool(tars) and all(map(_signed, tars))


def _signed(tar: Path) -> bool:
    with contextlib.suppress(OSError):
        if tar.is_file():
            with tar.open("rb") as file:
                return file.read(BLOCK)[265:297].rstrip(b"\0") == OWNER.encode()  # USTAR's uname
    return False


def refuse_foreign(place: str, name: str | None) -> None:
    """UserError for a name that `foreign` has found."""
    if name:
        told = "no unfinished run of this command has written it, and the dataset's files would replace such ones"
        raise UserError(f"{place} holds {name}: {told}; choose another OUT, or move them away")


def refuse_others(store: Store, place: str, plan: Plan) -> None:
    """UserError for a file that the plan names, in a folder where nothing has been made by it."""
    taken = sorted(names_of(plan) & store.sizes().keys())
    refuse_foreign(place, None if not taken or _ours(store, taken) else taken[0])


def refuse_unindexed(store: LocalStore, names: set[str]) -> None:
    """UserError for one of these files if no index has left it, neither a whole one nor one that was broken off."""
    taken = sorted(names & store.sizes().keys())
    if taken and not (store.root / INDEXING).exists():
        try:
            dataset.read_index(store.root, "train")
        except UserError:
            refuse_foreign(str(store.root), taken[0])


def discard(store: Store) -> None:
    """Removes what an unfinished run left behind: what its plan names, and the plan last, so that a discard that was
    interrupted is known for one. The lock stays, and without a plan all that lies beside the work folder."""
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
    files = {f"{name}.{kind}" for names in shards.values() for name in names for kind in ("tar", "idx")}
    return files | {dataset.index_name(split) for split in shards} | {dataset.STATS, dataset.REJECTS}
