"""The shard stage of this checkout beside an older one's, for `benchmarks.loader.bench`."""

from __future__ import annotations

import os
import resource
import shutil
import subprocess
import sys
from pathlib import Path

from benchmarks.loader.tables import Record
from gratis.errors import GratisError

CHECKOUT = Path(__file__).resolve().parents[2]


def shard_stage(photographs: Path, older: Path | None, scratch: Path) -> dict[str, Record]:
    """CPU seconds per 1,000 images, the start of the command among them, and bytes of all tars, of
    each checkout at 256 px with two processes."""
    checkouts = {"ours": CHECKOUT} | ({"older": older} if older else {})
    return {name: _shards(checkout, photographs, scratch) for name, checkout in checkouts.items()}


def _shards(checkout: Path, photographs: Path, scratch: Path) -> Record:
    out = scratch / "shards"
    shutil.rmtree(out, ignore_errors=True)
    name = "gratis" if (checkout / "gratis").is_dir() else "preprocess"
    command = [sys.executable, "-m", name, "shards", "--src", photographs, "--out", out]
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    done = subprocess.run(
        [*map(str, command), "--size", "256", "--workers", "2"],
        capture_output=True,
        text=True,
        cwd=checkout,
        env=os.environ | {"PYTHONPATH": str(checkout)},
    )
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    if done.returncode:
        raise GratisError(f"{checkout}: shards failed: {done.stderr.strip()[-300:]}")
    images = len(list(photographs.glob("train/*/*")))
    cpu = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    sizes = [tar.stat().st_size for tar in out.glob("*.tar")]
    return {"cost": 1000 * cpu / images, "bytes": float(sum(sizes))}
