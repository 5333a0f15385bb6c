"""Claim: who may write in OUT, and what earlier runs that did not finish left there."""

from __future__ import annotations

import contextlib
import fcntl
import os
import re
from collections.abc import Iterator
from pathlib import Path

from preprocess import files
from preprocess.errors import UserError
from preprocess.store import WORK, Store

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
        fcntl.flock(lock, (fcntl.LOCK_SH if shared else fcntl.LOCK_EX) | fcntl.LOCK_NB)
        yield
    except BlockingIOError:
        raise UserError(f"another process is making shards in {out}; wait for it, or choose another OUT") from None
    finally:
        os.close(lock)


def discard(store: Store) -> None:
    """Removes what unfinished runs left behind, and their plan. The lock stays."""
    for name in store.sizes(WORK):
        if name != "lock":
            store.remove(f"{WORK}/{name}")
    for name in store.sizes():
        if UNFINISHED.fullmatch(name):
            store.remove(name)
