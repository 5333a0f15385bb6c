"""What a report was made on: hardware, driver, versions."""

from __future__ import annotations

import hashlib
import os
import platform
from pathlib import Path

import psutil
import torch

from benchmarks.report.setting import DRAWN, Setting
from gratis import doctor
from gratis.dataset import read_manifest

ROOT = Path(__file__).resolve().parent.parent.parent
MEASURED = ("gratis", "benchmarks")  # what measures and what is measured
PACKAGES = (
    "torch",
    "torchvision",
    "nvidia-dali-cuda130",
    "nvidia-nvjpeg",
    "numpy",
    "numba",
    "pillow-simd",
    "Pillow",
    "pytest",
)


def describe(setting: Setting) -> dict[str, str]:
    """For the page, and to know a result of other code, data or hardware: nothing but the commit
    changes from one call to the next with the same."""
    facts = {
        "cpu": [*doctor.cpu()][-1].what,
        "cores": str(len(os.sched_getaffinity(0))),
        "memory": f"{psutil.virtual_memory().total / 2**30:.0f} GiB",
        "system": f"{platform.system()} {platform.machine()}",
        "python": platform.python_version(),
        "gratis": f"code {_code()}",
        "commit": doctor.ask("git", "-C", str(ROOT), "rev-parse", "--short", "HEAD") or "unknown",
    }
    installed = {package: doctor.version(package) for package in PACKAGES}
    facts |= {package: version for package, version in installed.items() if version}
    count = torch.cuda.device_count()
    facts["gpu"] = "none"
    if count:
        one = torch.cuda.get_device_properties(0)
        facts["gpu"] = f"{count} x {one.name}, {one.total_memory / 2**30:.0f} GiB"
        facts["cuda"] = str(torch.version.cuda)
        facts["cudnn"] = str(torch.backends.cudnn.version())  # type: ignore[no-untyped-call]
        driver = ("nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader")
        facts["driver"] = doctor.ask(*driver).partition("\n")[0] or "unknown"
    facts["dataset"] = _dataset(setting)
    return facts


def _dataset(setting: Setting) -> str:
    """What is measured on, which need not be made yet."""
    if setting.shards is None:
        return f"{setting.src or f'{10 * DRAWN[setting.cuda]:,} drawn images'}, {setting.side} px"
    manifest = read_manifest(setting.shards)
    images = f"{manifest.splits['train'].samples:,} images of {manifest.image_size} px"
    return f"{manifest.hash[:8]}: {images}"


def _code() -> str:
    """Of the sources as they are, committed or not: results of other sources are kept apart."""
    digest = hashlib.sha256()
    for path in sorted(path for room in MEASURED for path in (ROOT / room).rglob("*.py")):
        own = hashlib.sha256(path.read_bytes()).hexdigest()
        digest.update(f"{path.relative_to(ROOT)} {own}\n".encode())
    return digest.hexdigest()[:8]
