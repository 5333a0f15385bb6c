"""The options by which a command names a run with a checkpoint. Without torch, so that `--help` is
quick."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True, kw_only=True)
class RunOptions:
    """Which run, and where its dataset is."""

    run: str | None = None
    """Name of the run, or its folder. Default: the one that was saved last."""
    runs: Path = Path("runs")
    """Folder of all runs."""
    shards: str | None = None
    """Folder of the dataset it was trained on, or its address. Default: where it was then."""
