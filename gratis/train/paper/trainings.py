"""The runs of an ablation: their names, what their records say, and which comes next."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import math
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

from gratis.dataset import Manifest
from gratis.history import outcome, records
from gratis.train.paper.ablation_table import Errors, ErrorTable
from gratis.train.paper.switches import SWITCHES
from gratis.train.recipes import RELEASED, Recipe

VIEWS = 10
DIVERGED = Errors(float("inf"), float("inf"))
OVER_FOR_GOOD = ("finished", "diverged")  # ends after which no call goes on with a run


def stem_of(recipe_name: str, manifest: Manifest, whole: Recipe) -> str:
    """What the runs of one whole network on one dataset have in their names."""
    return f"{recipe_name}-{manifest.hash[:8]}-{digest(whole)}"


def run_of(stem: str, name: str, seed: int, factor: float = 1.0) -> str:
    """The run's name; factor: of the rate."""
    return f"ablate-{stem}-{name}{'' if factor == 1 else f'-x{factor:g}'}-s{seed}"


def digest(recipe: Recipe) -> str:
    """Six digits that name the settings, so that other settings are other runs; fields to come
    change no name."""
    settings = dataclasses.asdict(recipe)
    changed = {name: value for name, value in settings.items() if value != getattr(RELEASED, name)}
    return hashlib.sha256(json.dumps(changed).encode()).hexdigest()[:6]


class Training(NamedTuple):
    """One run to be: a setting with a seed. factor: of the rate; None: the one that was best with
    the first seed."""

    seed: int
    name: str
    factor: float | None


class Run(NamedTuple):
    """A training with its rate's factor and its folder."""

    training: Training
    factor: float
    folder: Path


@dataclass
class Done:
    """What is trained and evaluated. tried: of settings that choose a rate, the first seed's errors
    by factor; DIVERGED where they are no number."""

    errors: ErrorTable
    tried: dict[str, dict[float, Errors]] = field(default_factory=dict)
    folders: list[Path] = field(default_factory=list)

    @property
    def rates(self) -> dict[str, float]:
        """The best factor of each setting all of whose rates were tried."""
        whole = {name: own for name, own in self.tried.items() if len(own) == len(rates_of(name))}
        return {name: min(own, key=lambda factor: own[factor][:2]) for name, own in whole.items()}

    def add(self, run: Run) -> None:
        """What the run's records say of it: of several rates the best, once all are tried."""
        (seed, name, wanted), factor = run.training, run.factor
        errors, rates = errors_of(run.folder), rates_of(name)
        self.folders.append(run.folder)
        if wanted is not None and len(rates) > 1:
            tried = self.tried.setdefault(name, {})
            tried[factor] = errors or DIVERGED
            best = min(tried.values(), key=lambda own: own[:2])
            errors = best if len(tried) == len(rates) and best != DIVERGED else None
        if errors:
            self.errors[name][seed] = errors


def rates_of(name: str) -> tuple[float, ...]:
    return SWITCHES[name].rates if name in SWITCHES else (1.0,)


def planned(settings: list[str], seeds: list[int]) -> Iterator[Training]:
    """Seed by seed, so that what an early end leaves is whole comparisons."""
    for seed in seeds:
        for name in settings:
            rates = rates_of(name)
            later = seed != seeds[0] and len(rates) > 1
            yield from (Training(seed, name, factor) for factor in ((None,) if later else rates))


class Queue:
    """The trainings that are left, of the settings in `done`. runs: folder of all runs. minutes:
    none is begun that would end later, going by the longest so far.

    longest: what that has taken, in seconds."""

    def __init__(
        self, runs: Path, stem: str, seeds: list[int], done: Done, minutes: float | None = None
    ) -> None:
        self._runs, self._stem, self._done, self._minutes = runs, stem, done, minutes
        self._left = list(planned([*done.errors], seeds))
        self._total, self.longest = len(self._left), 0.0
        self._ends = time.monotonic() + 60 * minutes if minutes else math.inf

    def next(self, running: set[str]) -> Run | None:
        """The next that can begin now; None: there is none. running: settings that are under way.

        What an earlier call has trained is added to `done`, and was in that call's report."""
        for training in [*self._left]:
            seed, name, wanted = training
            factor = self._done.rates.get(name) if wanted is None else wanted
            if factor is None and name in running:
                continue  # its rate will be known
            self._left.remove(training)
            if factor is None:
                late = "skipped, it would begin before its rate is known"
                print(f"{name}, seed {seed}: {late}", flush=True)
                continue
            run = Run(training, factor, self._runs / run_of(self._stem, name, seed, factor))
            if outcome(run.folder) in OVER_FOR_GOOD:
                self._done.add(run)
            elif time.monotonic() + self.longest > self._ends:
                late = f"skipped, it would end after --minutes {self._minutes:g}"
                print(f"{run.folder.name}: {late}", flush=True)
            else:
                number, rate = self._total - len(self._left), f" at {factor:g} times the rate"
                what = f"{name}{'' if factor == 1 else rate}, seed {seed}"
                print(f"{number} of {self._total}: {what}", flush=True)
                return run
        return None


def errors_of(folder: Path) -> Errors | None:
    """Of the ten views; None before they were evaluated. Losses as far as they are on record."""
    history = records(folder)
    evals = {record["views"]: record for record in history if record["kind"] == "eval"}
    if outcome(folder) != "finished" or VIEWS not in evals:
        return None
    trained, centre, ten = last_epoch(history), evals.get(1), evals[VIEWS]
    losses = (trained["loss"], centre["nll"]) if trained and centre else None
    return Errors(100 * (1 - ten["top1"]), 100 * (1 - ten["top5"]), losses)


def last_epoch(history: list[dict[str, Any]]) -> dict[str, Any] | None:
    """The last attempt's `step` records of its last epoch as one: the last, with the mean loss of
    all of their images; None where a loss was no number, or there is none."""
    steps = [record for record in history if record["kind"] == "step"]
    last = (steps[-1]["attempt"], steps[-1]["epoch"]) if steps else ()
    steps = [step for step in steps if (step["attempt"], step["epoch"]) == last]
    if not steps or None in [step["loss"] for step in steps]:
        return None
    images = sum(step["images"] for step in steps)
    loss = sum(step["images"] * step["loss"] for step in steps) / images
    return {**steps[-1], "images": images, "loss": loss}
