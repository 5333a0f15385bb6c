"""How a command's files come to be: whole, under one maker at a time."""

from __future__ import annotations

import os
import secrets
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from gratis.errors import GratisError
from gratis.locks import hold


@contextmanager
def written(path: Path, way_out: str) -> Iterator[Path]:
    """A file to write, which is at `path` when the block has ended well; its folder is made.

    Otherwise what was there stays and the draft is removed; only a kill, or a disk that fails then
    too, leaves it (<name>.<8 digits>.tmp). Of two writers at once the later one's stays.
    GratisError with the way out where writing fails."""
    draft = path.with_name(f"{path.name}.{secrets.token_hex(4)}.tmp")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        yield draft
        os.replace(draft, path)
    except OSError as error:
        raise GratisError(
            f"{path} cannot be written ({error.strerror or error}); {way_out}"
        ) from None
    finally:
        with suppress(OSError):
            draft.unlink()


@contextmanager
def alone(folder: Path, what: str) -> Iterator[None]:
    """Makes the folder and has it until the block's or the process's end; GratisError, of `what`,
    if another has it.

    Two would disturb each other's measurements and overwrite each other's results.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        lock = hold(folder / "lock")
    except OSError as error:
        raise GratisError(
            f"{what}: {folder} cannot be made ({error.strerror}); choose another"
        ) from None
    if lock is None:
        raise GratisError(
            f"{what}: another report is being made there; wait for it, or choose another"
        )
    with lock:
        yield
