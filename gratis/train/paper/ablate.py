"""Which parts of the network matter, measured: one thing switched off at a time, the same seeds for
each.

gratis ablate --shards S --fields lrn,overlap,towers,color_noise --seeds 0,1,2 --recipe tiny

Every run is one of `gratis train`, in a folder of its own under --runs; those that are finished are
not done again, so the command may be interrupted, repeated, and extended by fields and seeds. The
table (Markdown, and JSON beside it) holds errors averaged over ten views, and differences to the
whole network *of the same seed*: mean and extremes."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import math
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import NamedTuple

from gratis.dataset import Manifest, read_manifest, require_split, require_square
from gratis.errors import GratisError
from gratis.history import outcome, records
from gratis.locks import in_use
from gratis.processes import GRACE_S, OVER, command_of_child, read_log, timed
from gratis.signals import terminate_exits
from gratis.train.options import Fields, read
from gratis.train.paper.ablation_table import WHOLE, Ablation, Errors, ErrorTable, write
from gratis.train.paper.arguments import flags, recipe_flags
from gratis.train.paper.children import Children
from gratis.train.paper.costs import cost_of
from gratis.train.paper.switches import SWITCHES
from gratis.train.recipes import RECIPES, RELEASED, Recipe, RecipeName

VIEWS = 10
DIVERGED = (float("inf"), float("inf"))
OVER_FOR_GOOD = ("finished", "diverged")  # ends after which no call goes on with a run


@dataclass(frozen=True, kw_only=True)
class Ablate:
    """Trains with one part switched off at a time, several seeds each, and writes a table beside
    the paper's."""

    shards: str | None = None
    """Required: folder of the dataset, or its address; it needs a validation split."""
    fields: str = ",".join(SWITCHES)
    """What to switch off, one at a time, comma-separated; empty: the whole network alone."""
    seeds: str = "0,1"
    """Comma-separated; every setting is trained with each."""
    runs: Path = Path("runs")
    """Folder of all runs."""
    out: Path | None = None
    """Folder of the table. Default: ablation-<recipe>-<dataset>-<settings> in --runs."""
    gpus: int | None = None
    """As `gratis train` takes it."""
    jobs: int = 1
    """Runs at a time, each on its share of the cores, with 1 to 3 GB of memory. On two cores two
    take 0.6 of the time."""
    minutes: float | None = None
    """Begin no run that, going by the longest so far, ends later; the same command goes on.
    Default: all of them."""
    recipe: RecipeName = "released"
    """Where the recipe's fields below begin."""
    whole: Fields = RELEASED

    def __post_init__(self) -> None:
        if unknown := [name for name in self.switches if name not in SWITCHES]:
            raise GratisError(f"--fields {unknown[0]!r} is none of {','.join(SWITCHES)}")
        seeds_of(self.seeds)
        if self.minutes is not None and not self.minutes > 0:
            raise GratisError(f"--minutes {self.minutes:g} must be above 0")
        check_jobs(self.jobs)

    @property
    def switches(self) -> list[str]:
        names = (name.strip() for name in self.fields.split(","))
        return list(dict.fromkeys(name for name in names if name))


def check_jobs(jobs: int) -> None:
    if jobs < 1:
        raise GratisError(f"--jobs {jobs} must be at least 1")


def seeds_of(text: str) -> list[int]:
    """Of "0,1,2", each once. GratisError for anything else."""
    if not all(seed.strip().isdecimal() for seed in text.split(",")):
        raise GratisError(f"--seeds {text} must be whole numbers, comma-separated, such as 0,1,2")
    return list(dict.fromkeys(int(seed) for seed in text.split(",")))


def main(arguments: list[str]) -> None:
    options = read(Ablate, arguments, "released", "gratis ablate", fields="whole")
    terminate_exits()
    print(ablate(options), flush=True)


def ablate(options: Ablate) -> Path:
    """Trains what is not trained yet and writes the table; its path."""
    if options.shards is None:
        raise GratisError("ablate needs a dataset: --shards FOLDER")
    from gratis.loader import dataset_folder

    manifest = read_manifest(dataset_folder(options.shards))
    require_split(options.shards, manifest, "val")
    require_square(options.shards, manifest, "ablate")
    stem = stem_of(options.recipe, manifest, options.whole)
    folder = options.out or options.runs / f"ablation-{stem}"

    def report(done: Done) -> Path:
        return write(
            folder,
            Ablation(
                manifest=manifest,
                recipe_name=options.recipe,
                whole=options.whole,
                results=done.errors,
                rates=done.rates,
                cost=cost_of(done.folders),
            ),
        )

    return report(train_all(options, stem, report))


def ablate_within(seconds: float, log: Path, options: Ablate) -> str:
    """`gratis ablate` as a process for at most so long; "done", or why something is missing. Its
    output goes to `log`; the same call goes on."""
    command = ["ablate", *flags(shards=options.shards, runs=options.runs, out=options.out)]
    command += flags(fields=options.fields, seeds=options.seeds, gpus=options.gpus)
    command += flags(jobs=options.jobs)
    command += flags(minutes=f"{seconds / 60:.4g}", recipe=options.recipe)
    command += recipe_flags(options.whole, RECIPES[options.recipe])
    failure = timed(log, command, seconds)
    return failure or (f"in part: {OVER}" if "skipped, it would" in read_log(log) else "done")


def switchable(recipe: Recipe) -> str:
    """The switches that have something to turn off in this recipe, as --fields takes them."""
    return ",".join(name for name in SWITCHES if has(name, recipe))


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
        return {name: min(own, key=lambda factor: own[factor]) for name, own in whole.items()}


def rates_of(name: str) -> tuple[float, ...]:
    return SWITCHES[name].rates if name in SWITCHES else (1.0,)


def planned(settings: list[str], seeds: list[int]) -> Iterator[Training]:
    """Seed by seed, so that what an early end leaves is whole comparisons."""
    for seed in seeds:
        for name in settings:
            rates = rates_of(name)
            later = seed != seeds[0] and len(rates) > 1
            yield from (Training(seed, name, factor) for factor in ((None,) if later else rates))


def train_all(options: Ablate, stem: str, report: Callable[[Done], object]) -> Done:
    """Trains what is not over yet, as many runs at a time as --jobs says. report: called after each
    of them, and at the end."""
    if off := [name for name in options.switches if not has(name, options.whole)]:
        raise GratisError(f"--fields {off[0]}: these settings have that off already; leave it out")
    settings = {WHOLE: options.whole}
    settings |= {name: SWITCHES[name].off(options.whole) for name in options.switches}
    done = Done(errors={name: {} for name in settings})
    queue, children, running = Queue(options, stem, done), Children(options.jobs), dict[Path, Run]()
    try:
        while True:
            names = {run.training.name for run in running.values()}
            if not children.full and (run := queue.next(names)):
                wait_until_free(run.folder)
                children.start(command_of(options, run, settings[run.training.name]), run.folder)
                running[run.folder] = run
            elif running:
                child = children.next_ended()
                run = running.pop(child.folder)
                queue.longest = max(queue.longest, child.seconds)
                code = child.process.returncode
                if code and outcome(run.folder) != "diverged":  # which is no number
                    why = f"run {run.folder.name} ended with exit code {code}"
                    raise GratisError(f"{why}; the same command goes on")
                add(done, run)
                report(done)
            else:
                return done
    finally:
        children.end()
        if done.folders:  # what earlier calls have trained too, however this one ends
            report(done)


class Queue:
    """The trainings that are left. longest: what the longest has taken so far, in seconds."""

    def __init__(self, options: Ablate, stem: str, done: Done) -> None:
        self._options, self._stem, self._done = options, stem, done
        self._left = list(planned([*done.errors], seeds_of(options.seeds)))
        self._total, self.longest = len(self._left), 0.0
        self._ends = time.monotonic() + 60 * options.minutes if options.minutes else math.inf

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
            run = Run(training, factor, self._options.runs / run_of(self._stem, name, seed, factor))
            if outcome(run.folder) in OVER_FOR_GOOD:
                add(self._done, run)
            elif time.monotonic() + self.longest > self._ends:
                late = f"skipped, it would end after --minutes {self._options.minutes:g}"
                print(f"{run.folder.name}: {late}", flush=True)
            else:
                number, rate = self._total - len(self._left), f" at {factor:g} times the rate"
                what = f"{name}{'' if factor == 1 else rate}, seed {seed}"
                print(f"{number} of {self._total}: {what}", flush=True)
                return run
        return None


def add(done: Done, run: Run) -> None:
    """What the run's records say of it: of several rates the best, once all are tried."""
    (seed, name, wanted), factor = run.training, run.factor
    errors, rates = errors_of(run.folder), rates_of(name)
    done.folders.append(run.folder)
    if wanted is not None and len(rates) > 1:
        tried = done.tried.setdefault(name, {})
        tried[factor] = errors or DIVERGED
        best = min(tried.values())
        errors = best if len(tried) == len(rates) and best != DIVERGED else None
    if errors:
        done.errors[name][seed] = errors


def has(name: str, recipe: Recipe) -> bool:
    """Is there something for the switch to turn off?"""
    # of one column half the channels would be taken again, and it exchanges nothing
    if name in ("towers", "exchange") and recipe.towers == 1:
        return False
    return SWITCHES[name].off(recipe) != recipe


def command_of(options: Ablate, run: Run, recipe: Recipe) -> list[str]:
    """The run by the one launch path."""
    recipe = replace(recipe, rate=run.factor * recipe.rate)
    command = ["train", *flags(shards=options.shards, run=run.folder.name, runs=options.runs)]
    command += flags(seed=run.training.seed, port=0, gpus=options.gpus, recipe=options.recipe)
    command += flags(save_probabilities=run.training.name == WHOLE)
    command += recipe_flags(recipe, RECIPES[options.recipe])
    return command_of_child(command)  # saves itself and ends when this process does


def wait_until_free(folder: Path) -> None:
    """For a run that is still being saved because the command before this one was killed."""
    ends = time.monotonic() + GRACE_S
    while in_use(folder) and time.monotonic() < ends:
        time.sleep(0.2)


def errors_of(folder: Path) -> Errors | None:
    """Of the ten views; None before they were evaluated."""
    evals = [one for one in records(folder) if one["kind"] == "eval" and one["views"] == VIEWS]
    if outcome(folder) != "finished" or not evals:
        return None
    return 100 * (1 - evals[-1]["top1"]), 100 * (1 - evals[-1]["top5"])
