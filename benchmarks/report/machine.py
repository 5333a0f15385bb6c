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
    facts = {
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
            facts[package] = str(version(package))
        except PackageNotFoundError:
            continue
    count = torch.cuda.device_count()
    facts["gpu"] = "none"
    if count:
        one = torch.cuda.get_device_properties(0)
        facts["gpu"] = f"{count} x {one.name}, {one.total_memory / 2**30:.0f} GiB"
        facts["cuda"] = str(torch.version.cuda)
        facts["cudnn"] = str(torch.backends.cudnn.version())  # type: ignore[no-untyped-call]
        facts["driver"] = _driver()
    return facts


def _cpu() -> str:
    for line in Path("/proc/cpuinfo").read_text().splitlines():
        if line.startswith("model name"):
            return line.partition(":")[2].strip()
    return platform.processor() or "unknown"


def _code() -> str:
    """Of the sources as they are, committed or not: results of other sources are kept apart."""
    digest = hashlib.sha256()
    for path in sorted(path for room in MEASURED for path in (ROOT / room).rglob("*.py")):
        own = hashlib.sha256(path.read_bytes()).hexdigest()
        digest.update(f"{path.relative_to(ROOT)} {own}\n".encode())
    return digest.hexdigest()[:8]


def _commit() -> str:
    """Of the checkout, where it is one."""
    try:
        command = ["git", "rev-parse", "--short", "HEAD"]
        done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
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
