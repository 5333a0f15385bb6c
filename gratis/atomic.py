"""Files that a crash cannot leave half-written, their sums, and one writer at a time.

A file is written under another name beside its own and renamed, so that its name shows the whole
old content or the whole new one, after a power cut too. A kill leaves <name>.<pid>-<digits>.tmp.
"""

from __future__ import annotations

import hashlib
import os
import secrets
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import BinaryIO

from gratis.errors import GratisError
from gratis.locks import hold


@contextmanager
def atomic_path(path: Path, suffix: str = ".tmp") -> Iterator[Path]:
    """A temporary path to write to; it becomes `path` when the block ends without an exception, and
    is removed otherwise. Of two writers at once, the one that ends later wins. suffix: of the
    temporary name, for libraries that choose a format by it. Raises OSError."""
    temporary = path.with_name(temporary_name(path.name, suffix))
    try:
        yield temporary
        move_synced(temporary, path)
    finally:
        with suppress(OSError):
            temporary.unlink()


@contextmanager
def atomic_output(path: Path, way_out: str, suffix: str = ".tmp") -> Iterator[Path]:
    """`atomic_path` for a command's result: makes the folder, and raises GratisError, which ends in
    `way_out`, instead of OSError."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with atomic_path(path, suffix) as temporary:
            yield temporary
    except OSError as error:
        reason = error.strerror or error
        raise GratisError(f"{path} cannot be written ({reason}); {way_out}") from None


def atomic_write(path: Path, data: bytes) -> None:
    """Writes or replaces the file as a whole. Raises OSError."""
    with atomic_path(path) as temporary:
        temporary.write_bytes(data)


def temporary_name(name: str, suffix: str = ".tmp") -> str:
    """A name that no other process uses: another one, or one on another host, may write the same
    file."""
    return f"{name}.{os.getpid()}-{secrets.token_hex(4)}{suffix}"


def move_synced(temporary: Path, path: Path) -> None:
    """Renames a finished file; it and its name survive a power cut."""
    fsync(temporary)
    temporary.replace(path)
    fsync(path.parent)


def fsync(path: Path) -> None:
    """Flushes a file's content, or the names in a folder, to the disk."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


@contextmanager
def exclusive(folder: Path, what: str) -> Iterator[None]:
    """Makes the folder and locks it until the block or the process ends. GratisError, which begins
    with `what`, while another process has it: two would disturb each other's measurements and
    overwrite each other's results."""
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


def open_nonblocking(path: str | Path, flags: int) -> int:
    """An opener for `open`: a pipe in a file's place reads as empty instead of waiting for a
    writer."""
    return os.open(path, flags | os.O_NONBLOCK)


def sha256_file(path: Path) -> str:
    """Of the whole file, hexadecimal."""
    with open(path, "rb", opener=open_nonblocking) as file:
        return sha256_stream(file)


def sha256_stream(file: BinaryIO) -> str:
    """Of what is still to be read of an open file, hexadecimal."""
    digest = hashlib.sha256()
    while chunk := file.read(1 << 20):
        digest.update(chunk)
    return digest.hexdigest()
