"""What a report was made on: hardware, driver, versions."""

from __future__ import annotations

import hashlib
import importlib
import os
import platform
import subprocess
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import psutil
import torch

ROOT = Path(__file__).resolve().parent.parent.parent
MEASURED = ("gratis", "benchmarks")  # what measures and what is measured
PACKAGES = ("torch", "nvidia-dali-cuda130", "numpy", "numba", "pillow-simd", "Pillow", "pytest")


def describe() -> dict[str, str]:
    """Nothing in it but the commit changes from one call to the next with one code on one
    machine."""
    found = {
        "cpu": _cpu(),
        "cores": str(len(os.sched_getaffinity(0))),
        "memory": f"{psutil.virtual_memory().total / 2**30:.0f} GiB",
        "system": f"{platform.system()} {platform.machine()}",
        "python": platform.python_version(),
        "gratis": f"code {_code()}",
        "commit": _commit(),
    }
    for package in PACKAGES:
        try:
            found[package] = str(version(package))
        except PackageNotFoundError:
            continue
    count = torch.cuda.device_count()
    found["gpu"] = "none"
    if count:
        one = torch.cuda.get_device_properties(0)
        found["gpu"] = f"{count} x {one.name}, {one.total_memory / 2**30:.0f} GiB"
        found["cuda"] = str(torch.version.cuda)
        found["cudnn"] = str(torch.backends.cudnn.version())  # type: ignore[no-untyped-call]
        found["driver"] = _driver()
    return found


def _cpu() -> str:
    for line in Path("/proc/cpuinfo").read_text().splitlines():
        if line.startswith("model name"):
            return line.partition(":")[2].strip()
    return platform.processor() or "unknown"


def _code() -> str:
    """Of the sources as they are, committed or not: results of other sources are another book's."""
    found = hashlib.sha256()
    for path in sorted(path for room in MEASURED for path in (ROOT / room).rglob("*.py")):
        found.update(
            f"{path.relative_to(ROOT)} {hashlib.sha256(path.read_bytes()).hexdigest()}\n".encode()
        )
    return found.hexdigest()[:8]


def _commit() -> str:
    """Of the checkout, where it is one."""
    try:
        done = subprocess.run(
            ["git", "rev-parse", "--short", "HEAD"], cwd=ROOT, capture_output=True, text=True
        )
    except FileNotFoundError:
        return "unknown"
    return done.stdout.strip() or "unknown"


def _driver() -> str:
    try:
        pynvml = importlib.import_module("pynvml")
        pynvml.nvmlInit()
        return str(pynvml.nvmlSystemGetDriverVersion())
    except Exception:  # no library, or a driver that refuses: either way it does not tell
        return "unknown"
