"""What every rank needs to know about a run: a new setting is declared here, and used.

`gratis train` takes the fields of RunSettings as options, a Launch carries them to the ranks as
JSON, and each attempt's `start` record keeps them as `config`."""

from __future__ import annotations

import dataclasses
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from gratis.choices import BadSamples, DecodedOption
from gratis.errors import GratisError
from gratis.network import NetworkLimits
from gratis.train.recipes import Recipe

Choice = Literal["auto", "on", "off"]
Wire = Literal["float32", "bfloat16", "float16"]


@dataclass(frozen=True, kw_only=True)
class RunSettings:
    """How a run is trained, beside its recipe. GratisError for a value out of its range."""

    seed: int = 0
    """Of initial weights, order, augmentation and dropout."""
    tower_ranks: Literal[1, 2] = 2
    """Processes over which one network is spread, where there are that many: 1 is plain data
    parallelism."""
    share_device: bool = False
    """Permits several processes on one GPU (for tests: they are slower than one)."""
    wire: Wire = "float32"
    """What features and gradients travel as between processes; 16 bits halve the traffic."""
    compile: Choice = "auto"
    """Compile the network: on a GPU it pays; on a CPU it takes longer than a short run gains."""
    bad_samples: BadSamples = "raise"
    """A training sample that cannot be decoded ends the run; quarantine: another takes its place,
    with a warning."""
    decoded: DecodedOption = "auto"
    """Keep decoded training images in the GPU's or the machine's memory; auto: where they fit.
    Batches are the same."""
    decoded_gb: float | None = None
    """Most that they may take there, all ranks, in 10**9 bytes. Default: half of a GPU's free, else
    a quarter."""
    outage_s: float = 600.0
    """Seconds for which the server of --shards may be away (0 to 86400); then the run is saved and
    ends as preempted, 75."""
    read_timeout_s: float = 30.0
    """Seconds between two bytes of its answers, after which a request is made again (up to 3600).
    """
    save_every: float = 60.0
    """Seconds of training between checkpoints. The last step always gets one."""
    save_probabilities: bool = False
    """At the end, write the ten views' mean probabilities of every validation image beside the
    events."""

    def __post_init__(self) -> None:
        if self.decoded_gb is not None and not self.decoded_gb > 0:
            raise GratisError(f"--decoded-gb {self.decoded_gb} must be above 0")
        _ = self.network  # its ranges
        if not 0 <= self.seed < 2**64:
            raise GratisError(f"--seed {self.seed} must be at least 0 and below 2**64")
        if not self.save_every >= 0:
            raise GratisError(f"--save-every {self.save_every} must be at least 0 seconds")

    @property
    def network(self) -> NetworkLimits:
        """GratisError for a limit out of its range."""
        return NetworkLimits(outage_s=self.outage_s, read_timeout_s=self.read_timeout_s)


@dataclass(frozen=True, kw_only=True)
class Launch(RunSettings):
    """One attempt at a run, the same for every rank. Ranks that begin again count attempts on from
    it."""

    runs: str
    run: str
    shards: str
    recipe_name: str
    recipe: Recipe
    attempt: int
    command: str = ""  # that the user gave, as a shell reads it; empty before version 0.3

    @property
    def remote(self) -> bool:
        """Its dataset is on a server."""
        return "://" in self.shards

    @property
    def folder(self) -> Path:
        return Path(self.runs, self.run)

    def to_json(self) -> str:
        return json.dumps(dataclasses.asdict(self))

    @classmethod
    def from_json(cls, text: str) -> Launch:
        raw: dict[str, Any] = json.loads(text)
        fields: dict[str, Any] = {
            name: tuple(value) if isinstance(value, list) else value
            for name, value in raw["recipe"].items()
        }
        return cls(**(raw | {"recipe": Recipe(**fields)}))
