"""What training prints may be lost without loss: the events have all of it."""

from __future__ import annotations

import io
import os
import sys
from contextlib import suppress
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from _typeshed import ReadableBuffer


class Lossy(io.FileIO):
    """Whatever cannot be written (EPIPE after `| head`, EIO of a terminal that is gone, ENOSPC) is
    dropped."""

    def write(self, data: ReadableBuffer, /) -> int:
        size = memoryview(data).nbytes
        with suppress(OSError):
            return super().write(data) or size  # None: a pipe that would have to be waited for
        return size


def lose_unwritable() -> None:
    """From now on this process's stdout and stderr never fail. Where they were closed, all goes
    nowhere.

    Streams that somebody else has put in their place are left alone.
    """
    for name, number in (("stdout", 1), ("stderr", 2)):
        stream = getattr(sys, name)
        if stream is None:
            setattr(sys, name, open(os.devnull, "w"))  # noqa: SIM115
        elif stream is getattr(sys, f"__{name}__"):
            with suppress(OSError):
                stream.flush()
            raw = Lossy(number, "w", closefd=False)
            lossy = io.TextIOWrapper(
                io.BufferedWriter(raw),
                encoding=stream.encoding,
                errors=stream.errors,
                line_buffering=True,
            )
            setattr(sys, name, lossy)
