"""Locks on files: of a run, its command locks `starter` before there are ranks, its first rank
`lock`."""

from __future__ import annotations

import fcntl
import os
import socket
from contextlib import suppress
from pathlib import Path
from typing import TextIO

from gratis.errors import GratisError

STARTER, LOCK = "starter", "lock"
RESERVED: list[TextIO] = []  # open while this process lives


def reserve(folder: Path) -> bool:
    """Whether the run is this process's while it lives; its first rank has a lock of its own,
    later. GratisError where nothing can be written."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        file = hold(folder / STARTER)
        if file:
            RESERVED.append(file)
            write_holder(file, os.getpid())
    except OSError as error:
        where = f"run {folder}" if folder.is_dir() else f"--runs {folder.parent}"
        what = "cannot be written" if folder.is_dir() else "cannot hold a run"
        raise GratisError(f"{where} {what} ({error.strerror}); choose another") from None
    return file is not None


def lock(folder: Path, pid: int | None = None) -> TextIO:
    """Marks the run as in use for as long as the returned file is open and its process lives;
    GratisError if it is.

    pid: the process that messages to others name; default: this one.
    """
    folder.mkdir(parents=True, exist_ok=True)
    file = hold(folder / LOCK)
    if file is None:  # `starter` would name the command that started this rank
        raise GratisError(
            f"run {folder} is in use by {holder(folder / LOCK)}; choose another --run, or end it"
        )
    write_holder(file, pid or os.getpid())
    return file


def in_use(folder: Path) -> str | None:
    """Who has locked the run, in words; None if nobody has. Takes no right to write there."""
    for path in (folder / STARTER, folder / LOCK):
        try:
            file = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
        except (FileNotFoundError, NotADirectoryError):
            continue
        except OSError:  # whoever keeps it from us may be at work on it
            return "another user"
        try:
            # looking takes a lock for a moment, which rank 0 might miss
            fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except (BlockingIOError, PermissionError):
            return holder(path)
        except OSError:  # no locks there: who wants one is told
            continue
        finally:
            os.close(file)
    return None


def is_others(folder: Path) -> bool:
    """Whether the run is there and this user may not go on with it."""
    if not os.path.lexists(folder):
        return False
    files = [folder / name for name in (STARTER, LOCK, "rank-0.jsonl")]
    try:
        return not all(os.access(path, os.W_OK) for path in (folder, *filter(Path.exists, files)))
    except PermissionError:  # one may not even look
        return True


def hold(path: Path, *, shared: bool = False, what: Path | None = None) -> TextIO | None:
    """The file, locked while it is open and its process lives; None if another process has it.
    shared: only those who want it alone are kept out.

    GratisError, about `what` or the file, where the file system has no locks (ENOLCK, ENOTSUP):
    nobody would be known to have it."""
    file = path.open("a+")
    try:
        fcntl.flock(file, (fcntl.LOCK_SH if shared else fcntl.LOCK_EX) | fcntl.LOCK_NB)
    except (BlockingIOError, PermissionError):  # the two by which systems say that it is taken
        file.close()
        return None
    except OSError as error:
        file.close()
        raise GratisError(
            f"{what or path} cannot be locked ({error.strerror}); choose a folder on another disk"
        ) from None
    return file


def write_holder(file: TextIO, pid: int) -> None:
    with suppress(OSError):  # a full disk: others then learn less
        file.truncate(0)
        # past the buffer, which closing the file would write again, and fail
        os.write(file.fileno(), f"process {pid} on {socket.gethostname()}\n".encode())


def holder(path: Path) -> str:
    return path.read_text().strip() or "a living process"
