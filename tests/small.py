"""Small runs: the sample recipe at a sixteenth of its width, as commands, and what they leave on
record."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

from gratis.history import records

ROOT = Path(__file__).resolve().parent.parent
SMALL = (*"--recipe sample --width 0.0625 --batch 100 --epochs 2 --port 0".split(),)  # twenty steps


def command(runs: Path, shards: Path, *arguments: str) -> list[str]:
    return [
        sys.executable,
        *"-m gratis train --runs".split(),
        str(runs),
        "--shards",
        str(shards),
        *SMALL,
        *arguments,
    ]


def gratis(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "gratis", *arguments],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )


def of_kind(run: Path, kind: str, rank: int = 0) -> list[dict[str, Any]]:
    return [record for record in records(run, rank) if record["kind"] == kind]
