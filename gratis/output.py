"""Output that training can go on without: its events hold all that it prints."""

from __future__ import annotations

import io
import os
import sys
from contextlib import suppress
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from _typeshed import ReadableBuffer


class LossyOutput(io.FileIO):
    """Whatever cannot be written (EPIPE after `| head`, EIO of a terminal that is gone, ENOSPC) is
    dropped."""

    def write(self, data: ReadableBuffer, /) -> int:
        size = memoryview(data).nbytes
        with suppress(OSError):
            return super().write(data) or size  # None: a pipe that would have to be waited for
        return size


def ignore_write_errors() -> None:
    """From now on writing to this process's stdout and stderr never fails. Where they were closed,
    all goes to /dev/null.

    Streams that somebody else has put in their place are left alone.
    """
    for name, number in (("stdout", 1), ("stderr", 2)):
        stream = getattr(sys, name)
        if stream is None:
            setattr(sys, name, open(os.devnull, "w"))  # noqa: SIM115
        elif stream is getattr(sys, f"__{name}__"):
            with suppress(OSError):
                stream.flush()
            raw = LossyOutput(number, "w", closefd=False)
            form = {"encoding": stream.encoding, "errors": stream.errors}
            buffer = io.BufferedWriter(raw)
            setattr(sys, name, io.TextIOWrapper(buffer, **form, line_buffering=True))
