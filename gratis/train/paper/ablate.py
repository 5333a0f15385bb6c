"""Which parts of the network matter, measured: one thing switched off at a time, the same seeds for
each.

gratis ablate --shards S --fields lrn,overlap,towers,color_noise --seeds 0,1,2 --recipe tiny

Every run is one of `gratis train`, in a folder of its own under --runs; those that are finished are
not done again, so the command may be interrupted, repeated, and extended by fields and seeds. The
table (Markdown, and JSON beside it) holds errors averaged over ten views, and differences to the
whole network *of the same seed*: mean and extremes."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

from gratis.dataset import read_manifest, require_split, require_square
from gratis.errors import GratisError
from gratis.history import outcome
from gratis.locks import in_use
from gratis.processes import GRACE_S, OVER, command_of_child, read_log, timed
from gratis.signals import terminate_exits
from gratis.train.options import Fields, read
from gratis.train.paper.ablation_table import WHOLE, Ablation, write
from gratis.train.paper.arguments import flags, recipe_flags
from gratis.train.paper.children import Children
from gratis.train.paper.costs import cost_of
from gratis.train.paper.switches import SWITCHES
from gratis.train.paper.trainings import Done, Queue, Run, stem_of
from gratis.train.recipes import RECIPES, RELEASED, Recipe, RecipeName


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
    take two thirds of the time."""
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
    failure = timed(log, ["ablate", *arguments_of(options, seconds)], seconds)
    return failure or (f"in part: {OVER}" if "skipped, it would" in read_log(log) else "done")


def arguments_of(options: Ablate, seconds: float) -> list[str]:
    """These options as the command line has them, but for the minutes."""
    words = flags(shards=options.shards, runs=options.runs, out=options.out)
    words += flags(fields=options.fields, seeds=options.seeds, gpus=options.gpus)
    words += flags(jobs=options.jobs, minutes=f"{seconds / 60:.4g}", recipe=options.recipe)
    return words + recipe_flags(options.whole, RECIPES[options.recipe])


def switchable(recipe: Recipe) -> str:
    """The switches that have something to turn off in this recipe, as --fields takes them."""
    return ",".join(name for name in SWITCHES if has(name, recipe))


def train_all(options: Ablate, stem: str, report: Callable[[Done], object]) -> Done:
    """Trains what is not over yet, as many runs at a time as --jobs says. report: called after each
    of them, and at the end."""
    if off := [name for name in options.switches if not has(name, options.whole)]:
        raise GratisError(f"--fields {off[0]}: these settings have that off already; leave it out")
    settings = {WHOLE: options.whole}
    settings |= {name: SWITCHES[name].off(options.whole) for name in options.switches}
    done = Done(errors={name: {} for name in settings})
    queue = Queue(options.runs, stem, seeds_of(options.seeds), done, options.minutes)
    children, running = Children(options.jobs), dict[Path, Run]()
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
                done.add(run)
                report(done)
            else:
                return done
    finally:
        children.end()
        if done.folders:  # what earlier calls have trained too, however this one ends
            report(done)


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
