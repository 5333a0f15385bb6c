"""The parts of `make paper`: each is a command of ours in the time that is left, and its
section of the report."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, NamedTuple

from gratis.dataset import Manifest
from gratis.errors import GratisError
from gratis.history import outcome, records
from gratis.processes import OVER, log_header, read_log, timed
from gratis.train.analysis.figures import CAPTIONS
from gratis.train.paper.ablate import Ablate, ablate_within, check_jobs, seeds_of, switchable
from gratis.train.paper.arguments import flags
from gratis.train.paper.trainings import OVER_FOR_GOOD
from gratis.train.recipes import RECIPES, Recipe, RecipeName

EXPLAINED = "From the stored image to the network's input, and where training cuts out its crops."
FIGURE1 = (
    "The paper's figure 1 is of CIFAR-10, where ReLU reaches 25 % training error six times as fast."
)
FIGURE1_SIZE = 32
TRAINING_SHARE, FIGURE1_SHARE = 0.5, 0.5  # of the time that is left when they begin
SHORT = 3  # epochs of an ablation's run in an hour's report
SEARCHED = 2000  # training images among which nearest neighbours are looked for


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
    ablate_epochs: int | None = None
    """Of each run of the ablation. Default: 3; with --hours the recipe's."""
    seeds: str | None = None
    """Of the ablation. Default: 0,1; with --hours 0,1,2."""
    jobs: int = 1
    """As `gratis ablate` takes it."""
    longest_epochs: int = 20
    """With --hours: of the run at full width. On tiny100 one takes 7 minutes on two quiet cores."""
    hours: float | None = None
    """Instead of --minutes: the paper's claims at this size, each part in the order of worth, n >=
    3 seeds; the same command goes on wherever it was stopped."""
    docs: Path | None = None
    """With --hours: a page that the report is also written to, such as docs/paper.md."""

    def __post_init__(self) -> None:
        if not self.minutes > 0:
            raise GratisError(f"--minutes {self.minutes:g} must be above 0")
        if self.hours is not None and not self.hours > 0:
            raise GratisError(f"--hours {self.hours:g} must be above 0")
        if self.hours and self.run:
            raise GratisError("--hours trains runs of its own; leave --run out, or --hours")
        if self.docs and not self.hours:
            raise GratisError(f"--docs {self.docs} is for --hours; give both, or leave it out")
        for name in ("ablate_epochs", "longest_epochs"):
            if (epochs := getattr(self, name)) is not None and epochs < 1:
                flag = name.replace("_", "-")
                raise GratisError(f"--{flag} {epochs} must be at least 1")
        seeds_of(self.chosen_seeds)
        check_jobs(self.jobs)

    @property
    def chosen_seeds(self) -> str:
        return self.seeds or ("0,1,2" if self.hours else "0,1")


class PartResult(NamedTuple):
    """What became of one part. lines: Markdown for the report. made: when, and at which commit."""

    state: str  # "done", or why not
    lines: Sequence[str] = ()
    made: str = ""


@dataclass(frozen=True, kw_only=True)
class PartContext:
    """What every part needs. ends: when the minutes are over, on time.monotonic's clock.

    recipe: the run's own settings, which began as those of the name; of a run that is yet to be,
    the name's."""

    options: Paper
    manifest: Manifest
    recipe_name: RecipeName
    recipe: Recipe
    run: Path
    ends: float

    @property
    def folder(self) -> Path:
        return self.run / "paper"

    @property
    def left(self) -> float:
        return self.ends - time.monotonic()

    def log(self, name: str) -> Path:
        return self.folder / f"{name}.log"

    def flags(self, **more: object) -> list[str]:
        """The dataset and the folder of runs, and more options, as a command takes them."""
        return flags(shards=self.options.shards, runs=self.options.runs, **more)

    def pictures(self, captions: Mapping[Any, str]) -> tuple[str, ...]:
        """The PNGs of these names that are there, with their captions."""
        return tuple(
            f"![{name}]({name}.png)\n\n{caption}"
            for name, caption in captions.items()
            if (self.folder / f"{name}.png").exists()
        )


def train(context: PartContext) -> PartResult:
    """Until it is finished or half of the time is over; then it saves itself."""
    options, ended, failure = context.options, outcome(context.run), None
    goes_on = options.run is None and ended not in OVER_FOR_GOOD
    if goes_on:
        command = ["train", *context.flags(run=context.run.name, recipe=context.recipe_name)]
        command += flags(gpus=options.gpus, port=0, save_probabilities=True)
        failure = timed(context.log("training"), command, TRAINING_SHARE * context.left)
        ended = outcome(context.run)
        if not (context.run / "checkpoints").is_dir():
            return PartResult(failure or "ended before its first checkpoint")
    states = [failure] if failure and OVER not in failure else []
    states += ["done" if ended == "finished" else progress(context.run)]
    states += ["the same command goes on"] if goes_on and ended not in OVER_FOR_GOOD else []
    return PartResult("; ".join(states), errors(context.run))


def progress(run: Path) -> str:
    """How far an unfinished run is."""
    history = records(run)
    starts = [record for record in history if record["kind"] == "start"]
    ended = {"preempted": "stopped", None: "unfinished"}.get(outcome(run), outcome(run))
    step = max((record["step"] for record in history if record["kind"] == "step"), default=0)
    total = starts[-1]["epochs"] * starts[-1]["steps_per_epoch"] if starts else 0
    return f"{ended} at step {step:,} of {total:,}"


def errors(run: Path) -> tuple[str, ...]:
    """Of the last evaluation by the centre view and by ten views, a sentence each."""
    evals = {record["views"]: record for record in records(run) if record["kind"] == "eval"}
    names = {1: "the centre view", 10: "10 views"}
    return tuple(
        f"Errors by {name} after epoch {last['epoch']}: top-1 {1 - last['top1']:.1%}, top-5 "
        f"{1 - last['top5']:.1%} of {last['images']:,} images."
        for views, name in names.items()
        if (last := evals.get(views))
    )


def figures(context: PartContext) -> PartResult:
    """Drawn anew where the run has gone on since."""
    saved = context.run / "checkpoints" / "latest"
    if not saved.exists():
        return PartResult("skipped: the run has no checkpoint yet")
    pngs, failure = [context.folder / f"{name}.png" for name in CAPTIONS], None
    if not all(png.exists() and png.stat().st_mtime >= saved.stat().st_mtime for png in pngs):
        names = context.flags(run=context.run.name, out=context.folder, search=SEARCHED)
        failure = timed(context.log("figures"), ["figures", *names], context.left)
    return PartResult(failure or "done", context.pictures(CAPTIONS))


def explain(context: PartContext) -> PartResult:
    recipe, options, png = context.recipe, context.options, context.folder / "explain.png"
    log, failure = context.log("explain"), None
    why = "it draws plain crops, and this run trains on resized ones" if recipe.crop_area else None
    if "://" in options.shards:
        why = "it reads local folders; copy the dataset, or give its mount"
    if why:
        return PartResult(f"skipped: {why}")
    command = ["explain", options.shards, *flags(sample=options.sample, out=png, crop=recipe.crop)]
    command += flags(mean=recipe.mean, noise=recipe.noise, crop_positions=recipe.crop_positions)
    command += flags(crop_chunk=recipe.crop_chunk)
    # as another call drew it
    if not png.exists() or log_header(command) not in read_log(log):
        failure = timed(log, command, context.left)
    lines = context.pictures({"explain": EXPLAINED})
    if lines and not failure:  # what it has printed: offsets and colours, measured and in theory
        lines += ("\n".join(f"    {line}" for line in read_log(log).splitlines()[1:-1]),)
    return PartResult(failure or "done", lines)


def figure1(context: PartContext) -> PartResult:
    shards, log = context.options.shards32, context.log("figure1")
    if shards is None and context.manifest.image_size == FIGURE1_SIZE:
        shards = context.options.shards
    if shards is None:
        how = f"gratis shards --src ... --out shards32 --size {FIGURE1_SIZE}, then --shards32"
        return PartResult(f"skipped: it wants 32-pixel images: {how}")
    minutes = f"{FIGURE1_SHARE * context.left / 60:.4g}"
    command = ["figure1", *flags(shards=shards, out=context.folder, minutes=minutes)]
    failure = timed(log, command, context.left)
    result = [line for line in read_log(log).splitlines() if "training error" in line][-1:]
    state = failure or (f"in part: {OVER}" if ran_short(log) else "done")
    return PartResult(state, (*result, *context.pictures({"figure1": FIGURE1})))


def ran_short(log: Path) -> bool:
    """Has `gratis figure1` left something out, by its log?"""
    text = read_log(log)
    return "skipped, --minutes" in text or "time is over" in text


def ablation(context: PartContext) -> PartResult:
    table, options = context.folder / "ablation.md", context.options
    if "val" not in context.manifest.splits:
        return PartResult("skipped: the dataset has no validation split")
    whole = whole_of(context)
    ablate = Ablate(
        shards=options.shards,
        fields=switchable(whole),
        seeds=options.chosen_seeds,
        runs=options.runs,
        out=context.folder,
        gpus=options.gpus,
        jobs=options.jobs,
        recipe=context.recipe_name,
        whole=whole,
    )
    state = ablate_within(context.left, context.log("ablation"), ablate)
    lines = (table.read_text(),) if table.exists() else ()
    return PartResult(state, lines)


def whole_of(context: PartContext) -> Recipe:
    """The ablations' whole network: with the run's settings, but from new weights, which fit every
    switch."""
    recipe = RECIPES[context.options.recipe] if context.options.recipe else context.recipe
    epochs = context.options.ablate_epochs or (recipe.epochs if context.options.hours else SHORT)
    return replace(recipe, epochs=epochs, init_from=None, conv_rate=1.0)


def tables(context: PartContext) -> PartResult:
    from gratis.train.paper.tables import tables as tables_of

    return PartResult("done", (tables_of(context.options.runs),))


PARTS = {
    "Training": train,
    "Figures of the run": figures,
    "One image's way through the loader": explain,
    "Figure 1": figure1,
    "Ablations": ablation,
    "Beside the paper's tables": tables,
}
"""By their titles in the report, in the order in which they are done."""
