"""A rank's device; what it is doing, by NVIDIA's management library, read once an interval; how
long it stands idle for a batch, by events in its own stream; and whether torch can compile for
it."""

from __future__ import annotations

import importlib
import os
import shutil
import sysconfig
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from gratis.errors import GratisError
from gratis.records import GpuCounters

CPU = torch.device("cpu")


def device_of(local_rank: int) -> torch.device:
    """A rank's, made current. GratisError for GPUs that torch counts, by the driver's library, and
    cannot use: training would go on without them, a hundred times as long."""
    present = torch.cuda.device_count()
    if not present:
        return CPU
    if not torch.cuda.is_available():
        raise GratisError(
            f"this machine's {present} GPUs cannot be used by torch {torch.__version__} (its "
            f"warning says why): "
            "`gratis doctor` tells what fits; CUDA_VISIBLE_DEVICES= in front of the command trains "
            "on the CPU"
        )
    device = torch.device("cuda", local_rank % present)
    torch.cuda.set_device(device)
    return device


def lacks_for_compiling() -> str | None:
    """What torch lacks here to compile for a GPU, and where to get it; None: nothing.

    Its kernels are Triton's, whose launchers are built in C, against Python's headers
    (triton/runtime/build.py)."""
    if "CC" not in os.environ and not (shutil.which("gcc") or shutil.which("clang")):
        return "a C compiler (apt install gcc)"
    # Debian's own has no headers
    scheme = sysconfig.get_default_scheme().replace("posix_local", "posix_prefix")
    if not Path(sysconfig.get_path("include", scheme), "Python.h").exists():
        return "Python's headers (apt install python3-dev)"
    return None


def check_compiler(present: int) -> None:
    """GratisError where torch could not compile for this machine's `present` GPUs, or its CPU."""
    if not present and not has_cpp_compiler():
        raise GratisError(
            "--compile on needs a C++ compiler on a CPU: apt install g++, or leave it off"
        )
    if present and (lack := lacks_for_compiling()):
        raise GratisError(f"--compile on needs {lack}; or leave it off")


def has_cpp_compiler() -> bool:
    """As torch looks for one to compile for a CPU."""
    return any(shutil.which(name) for name in (os.environ.get("CXX"), "g++", "clang++") if name)


class GpuMeter:
    """Reads one device. Tells nothing on a CPU, without the library (nvidia-ml-py), or where the
    driver refuses."""

    def __init__(self, device: torch.device) -> None:
        self._library: Any = None
        if device.type == "cuda":
            # torch counts the devices that it was allowed to see, the library all: only the
            # identity is common
            self._open(f"GPU-{torch.cuda.get_device_properties(device).uuid}")

    def _open(self, identity: str) -> None:
        try:
            pynvml: Any = importlib.import_module("pynvml")
        except ModuleNotFoundError:
            return
        try:
            pynvml.nvmlInit()
            self._handle = pynvml.nvmlDeviceGetHandleByUUID(identity)
        except pynvml.NVMLError:
            return
        self._library = pynvml

    def read(self) -> GpuCounters | None:
        if (library := self._library) is None:
            return None
        busy = self._ask(lambda: library.nvmlDeviceGetUtilizationRates(self._handle).gpu)
        nvjpg = self._ask(lambda: library.nvmlDeviceGetJpgUtilization(self._handle)[0])
        power_mw = self._ask(lambda: library.nvmlDeviceGetPowerUsage(self._handle))
        return {
            "busy": None if busy is None else busy / 100,
            "nvjpg_busy": None if nvjpg is None else nvjpg / 100,
            "memory_bytes": self._ask(lambda: library.nvmlDeviceGetMemoryInfo(self._handle).used),
            "memory_total_bytes": self._ask(
                lambda: library.nvmlDeviceGetMemoryInfo(self._handle).total
            ),
            "power_w": None if power_mw is None else power_mw / 1e3,
        }

    def _ask(self, question: Callable[[], int]) -> int | None:
        """Devices differ in what they answer."""
        try:
            return question()
        except (self._library.NVMLError, AttributeError):
            return None


class WaitClock:
    """Seconds for which training had nothing to do but wait for batches: between each `asked` and
    the next `got`.

    On a CPU by the clock. A GPU's host runs ahead, and its own waiting costs nothing while the
    device still works on earlier steps; so there the device says how long it stood between the end
    of those and having the batch."""

    def __init__(self, device: torch.device) -> None:
        self._on_device = device.type == "cuda"
        self._seconds = self._asked = 0.0
        self._marks: list[torch.cuda.Event] = []  # pairs

    def asked(self) -> None:
        if self._on_device:
            self._mark()
        else:
            self._asked = time.perf_counter()

    def got(self) -> None:
        if self._on_device:
            self._mark()  # behind the loader's own copy, for which the stream waits too
        else:
            self._seconds += time.perf_counter() - self._asked

    def take(self) -> float:
        """Since it was last taken. On a GPU its stream must have been waited for."""
        pairs = zip(self._marks[::2], self._marks[1::2], strict=True)
        milliseconds: float = sum(asked.elapsed_time(got) for asked, got in pairs)
        seconds = self._seconds + milliseconds / 1e3
        self.forget()
        return seconds

    def forget(self) -> None:
        self._seconds, self._marks = 0.0, []

    def _mark(self) -> None:
        mark = torch.cuda.Event(enable_timing=True)  # type: ignore[no-untyped-call]
        mark.record()
        self._marks.append(mark)
