"""Files that can be relied on: written whole or not at all, summed, and opened without waiting for
anybody.

A contract module: standard library alone.
"""

from __future__ import annotations

import hashlib
import os
import resource
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO

OPEN_FILES = 256  # the usual limit of a process is 1024


@contextmanager
def durably(path: Path) -> Iterator[BinaryIO]:
    """A file to write, renamed to `path` when the block has ended well: after a crash, a power cut
    too, the path holds the whole old content or the whole new one. A block that fails leaves
    <name>.tmp, which the next one overwrites."""
    temporary = path.with_name(path.name + ".tmp")
    with temporary.open("wb") as file:
        yield file
        file.flush()
        os.fsync(file.fileno())
    temporary.replace(path)
    sync_folder(path.parent)


def write_durably(path: Path, data: bytes) -> None:
    with durably(path) as file:
        file.write(data)


def sync_folder(folder: Path) -> None:
    """Makes the renames inside `folder` survive a power cut."""
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def at_once(path: str | Path, flags: int) -> int:
    """An opener for `open`: a pipe in a file's place is found empty, where else its writer would be
    waited for."""
    return os.open(path, flags | os.O_NONBLOCK)


def open_files() -> int:
    """How many files a reader of many should hold open: 256, or a quarter of what this process may
    have."""
    limit = resource.getrlimit(resource.RLIMIT_NOFILE)[0]
    return OPEN_FILES if limit == resource.RLIM_INFINITY else max(1, min(OPEN_FILES, limit // 4))


def sha256_file(path: Path) -> str:
    """Of the whole file, hexadecimal."""
    with open(path, "rb", opener=at_once) as file:
        return sha256_rest(file)


def sha256_rest(file: BinaryIO) -> str:
    """Of what is still to be read of an open file, hexadecimal."""
    digest = hashlib.sha256()
    while chunk := file.read(1 << 20):
        digest.update(chunk)
    return digest.hexdigest()
