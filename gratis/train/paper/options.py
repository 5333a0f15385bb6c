"""What `gratis paper` is asked for."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from gratis.errors import GratisError
from gratis.train.paper.ablate import seeds_of
from gratis.train.recipes import RecipeName


@dataclass(frozen=True, kw_only=True)
class Paper:
    """Trains, draws and tabulates what the machine can in the minutes given, into one report under
    the run."""

    shards: str
    """Folder of the dataset, or its address."""
    minutes: float = 60.0
    """Time for all of it; half of it at most goes to training."""
    run: str | None = None
    """A run of these shards, to be reported as it is. Default: paper-<recipe>-<dataset>, trained
    here."""
    runs: Path = Path("runs")
    """Folder of all runs."""
    recipe: RecipeName | None = None
    """Default: --run's with its settings, else the first for that image size. Beside --run: the
    ablations' alone."""
    gpus: int | None = None
    """As `gratis train` takes it."""
    shards32: str | None = None
    """A dataset of 32-pixel images, for figure 1."""
    sample: str = "0"
    """Key or id of the training image whose way through the loader is drawn."""
    ablate_epochs: int = 3
    """Of each run of the ablation."""
    seeds: str = "0,1"
    """Of the ablation."""

    def __post_init__(self) -> None:
        if not self.minutes > 0:
            raise GratisError(f"--minutes {self.minutes:g} must be above 0")
        if self.ablate_epochs < 1:
            raise GratisError(f"--ablate-epochs {self.ablate_epochs} must be at least 1")
        seeds_of(self.seeds)
