"""The process that measures. It is ended and another begins where a measurement takes too long,
crashes or leaves the device in doubt; the report lives in the process that asked for it."""

from __future__ import annotations

import gc
import math
import os
import signal
import time
import traceback
from contextlib import suppress
from multiprocessing import get_context
from multiprocessing.connection import Connection
from typing import Any

from benchmarks.report.plan import Measurement
from benchmarks.report.results import Entry
from benchmarks.report.setting import Setting
from gratis.errors import GratisError

# after these the device is as it was; after another error it may not be
HARMLESS = (GratisError, ImportError)
START_S, END_S = 60.0, 10.0


class Worker:
    """Measures one after the other, each within its bound."""

    def __init__(self, setting: Setting) -> None:
        self._setting = setting
        self._process: Any = None
        self._connection: Any = None

    def measure(self, one: Measurement, bound: float, left: float = math.inf) -> Entry:
        """The row, whatever happens: its result, or the error in words. bound: seconds for it, that
        begin when the process stands. left: for all that is measured."""
        began = time.monotonic()
        entry, healthy = self._ask(one, bound, left)
        if not healthy:
            self.end()
        entry["wall_s"] = round(time.monotonic() - began, 1)
        return entry

    def _ask(self, one: Measurement, bound: float, left: float) -> tuple[Entry, bool]:
        try:
            if self._process is None:
                self._begin()
            self._connection.send(one)
            if not self._connection.poll(min(bound, left)):
                had = f"{bound:.0f} s" if bound <= left else f"the {left:.0f} s that were left"
                return {"error": f"not done in {had}, and ended"}, False
            entry, healthy = self._connection.recv()
        except (EOFError, OSError):
            self._process.join(END_S)
            return {"error": f"the process ended: {_ending(self._process.exitcode)}"}, False
        return entry, healthy

    def _begin(self) -> None:
        context = get_context("spawn")  # CUDA does not survive a fork
        self._connection, theirs = context.Pipe()
        self._process = context.Process(target=serve, args=(theirs, self._setting))
        self._process.start()
        theirs.close()
        if self._connection.poll(START_S):
            self._connection.recv()

    def end(self) -> None:
        """With all that it has started."""
        if self._process is None:
            return
        with suppress(ProcessLookupError, PermissionError):
            os.killpg(self._process.pid, signal.SIGKILL)
        self._process.kill()
        self._process.join(END_S)  # what the driver holds up cannot be waited for
        self._process = None


def _ending(code: int | None) -> str:
    return f"exit code {code}" if code is None or code >= 0 else signal.Signals(-code).name


def serve(connection: Connection, setting: Setting) -> None:
    """Measures what it is asked for, until nobody is left to ask."""
    os.setsid()  # what it starts is ended with it
    from gratis.signals import end_with_parent
    from gratis.train.mesh.mesh import fastest_convolutions, full_float32

    end_with_parent(os.getppid(), signal.SIGKILL)
    # as in training
    full_float32()
    fastest_convolutions()
    connection.send("ready")
    while True:
        try:
            one = connection.recv()
        except EOFError:
            return
        connection.send(attempt(one, setting))


def attempt(one: Measurement, setting: Setting) -> tuple[Entry, bool]:
    """The row, and whether this process can go on."""
    load = round(os.getloadavg()[0], 1)
    try:
        return {"result": one.make(setting), "load": load}, True
    except HARMLESS as error:
        return {"error": _words(error), "load": load}, True
    except Exception as error:  # the others can be measured
        traceback.print_exc()
        return {"error": f"{type(error).__name__}: {_words(error)}", "load": load}, False
    finally:
        clean(setting)


def _words(error: Exception) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0]


def clean(setting: Setting) -> None:
    """Lets go what the last measurement held."""
    gc.collect()
    if setting.cuda:
        import torch

        with suppress(RuntimeError):  # the device may be lost
            torch.cuda.empty_cache()
            torch.cuda.reset_peak_memory_stats()
