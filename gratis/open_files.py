"""How many files a reader of many may hold open at a time."""

from __future__ import annotations

import fcntl
import os
import resource
from contextlib import suppress

OTHERS = 4096  # files left to the rest of the process, of a limit of four times as many or more
SELECT = 1024  # select(2) knows no descriptors from here on


def max_open_files(wanted: int) -> int:
    """How many of `wanted` files a reader should hold open: all of them where the system allows it.
    The process's soft limit is raised for that, to the hard one at most, and others in the process
    keep three quarters of it, or 4,096."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft != resource.RLIM_INFINITY and soft < 4 * wanted:
        raised = 4 * wanted if hard == resource.RLIM_INFINITY else min(4 * wanted, hard)
        with suppress(ValueError, OSError):  # not everywhere may a process do so
            resource.setrlimit(resource.RLIMIT_NOFILE, (raised, hard))
            soft = raised
    if soft == resource.RLIM_INFINITY:
        return wanted
    return max(1, min(wanted, soft - min(OTHERS, 3 * soft // 4)))


def move_high(file: int) -> int:
    """The same open file under another number, where one is to be had that select(2) does not know:
    the low ones are left to the rest of the process, which may use it."""
    try:
        high = fcntl.fcntl(file, fcntl.F_DUPFD_CLOEXEC, SELECT)
    except OSError:  # the limit is lower, or reached
        return file
    os.close(file)
    return high
