"""The parts of `make paper`: each is a command of ours in the time that is left, and its
section of the report."""

from __future__ import annotations

import time
from dataclasses import dataclass, replace
from pathlib import Path

from gratis.dataset import Manifest
from gratis.history import outcome, records
from gratis.processes import OVER, log_header, read_log, timed
from gratis.train.analysis.figures import CAPTIONS
from gratis.train.paper.ablate import Ablate, ablate_within, switchable
from gratis.train.paper.arguments import flags
from gratis.train.paper.options import Paper
from gratis.train.recipes import RECIPES, Recipe, RecipeName

EXPLAINED = "From the stored image to the network's input, and where training cuts out its crops."
FIGURE1 = (
    "The paper's figure 1 is of CIFAR-10, where ReLU reaches 25 % training error six times as fast."
)
FIGURE1_SIZE = 32
TRAINING_SHARE, FIGURE1_SHARE = 0.5, 0.5  # of the time that is left when they begin
OVER_FOR_GOOD = ("finished", "diverged")  # ends after which no call goes on with a run
SEARCHED = 2000  # training images among which nearest neighbours are looked for


@dataclass(frozen=True, kw_only=True)
class PartResult:
    """What became of one part. lines: Markdown for the report."""

    title: str
    state: str  # "done", or why not
    lines: tuple[str, ...] = ()


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


def train(context: PartContext) -> PartResult:
    """Until it is finished or half of the time is over; then it saves itself."""
    options, ended, failure = context.options, outcome(context.run), None
    goes_on = options.run is None and ended not in OVER_FOR_GOOD
    if goes_on:
        command = ["train", *flags(shards=options.shards, runs=options.runs, run=context.run.name)]
        command += flags(recipe=context.recipe_name, port=0, save_probabilities=True)
        command += flags(gpus=options.gpus)
        failure = timed(context.log("training"), command, TRAINING_SHARE * context.left)
        ended = outcome(context.run)
        if not (context.run / "checkpoints").is_dir():
            why = failure or "ended before its first checkpoint"
            return PartResult(title="Training", state=why)
    states = [failure] if failure and OVER not in failure else []
    states += ["done" if ended == "finished" else progress(context.run)]
    states += ["the same command goes on"] if goes_on and ended not in OVER_FOR_GOOD else []
    return PartResult(title="Training", state="; ".join(states), lines=errors(context.run))


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
    title, saved = "Figures of the run", context.run / "checkpoints" / "latest"
    pngs = {context.folder / f"{name}.png": caption for name, caption in CAPTIONS.items()}
    if not saved.exists():
        return PartResult(title=title, state="skipped: the run has no checkpoint yet")
    failure = None
    if not all(png.exists() and png.stat().st_mtime >= saved.stat().st_mtime for png in pngs):
        options = context.options
        command = [
            "figures",
            *flags(run=context.run.name, runs=options.runs, shards=options.shards),
        ]
        command += flags(out=context.folder, search=SEARCHED)
        failure = timed(context.log("figures"), command, context.left)
    return PartResult(title=title, state=failure or "done", lines=pictures(pngs))


def explain(context: PartContext) -> PartResult:
    title, png = "One image's way through the loader", context.folder / "explain.png"
    recipe, options, log, failure = context.recipe, context.options, context.log("explain"), None
    if "://" in options.shards:
        why = "it reads local folders; copy the dataset, or give its mount"
        return PartResult(title=title, state=f"skipped: {why}")
    if recipe.crop_area:
        why = "it draws plain crops, and this run trains on resized ones"
        return PartResult(title=title, state=f"skipped: {why}")
    command = ["explain", options.shards, *flags(sample=options.sample, out=png, crop=recipe.crop)]
    command += flags(mean=recipe.mean, noise=recipe.noise, crop_positions=recipe.crop_positions)
    command += flags(crop_chunk=recipe.crop_chunk)
    # as another call drew it
    if not png.exists() or log_header(command) not in read_log(log):
        failure = timed(log, command, context.left)
    lines = pictures({png: EXPLAINED})
    if lines and not failure:  # what it has printed: offsets and colours, measured and in theory
        lines += ("\n".join(f"    {line}" for line in read_log(log).splitlines()[1:-1]),)
    return PartResult(title=title, state=failure or "done", lines=lines)


def figure1(context: PartContext) -> PartResult:
    title, shards, log = "Figure 1", context.options.shards32, context.log("figure1")
    if shards is None and context.manifest.image_size == FIGURE1_SIZE:
        shards = context.options.shards
    if shards is None:
        how = f"make shards SRC=... OUT=shards32 ARGS='--size {FIGURE1_SIZE}', then --shards32"
        return PartResult(title=title, state=f"skipped: it wants 32-pixel images: {how}")
    minutes = f"{FIGURE1_SHARE * context.left / 60:.4g}"
    command = ["figure1", *flags(shards=shards, out=context.folder, minutes=minutes)]
    failure = timed(log, command, context.left)
    lines = read_log(log).splitlines()
    result = [line for line in lines if "training error" in line][-1:]
    short = any(cut in line for cut in ("skipped, --minutes", "time is over") for line in lines)
    state = failure or (f"in part: {OVER}" if short else "done")
    drawn = pictures({context.folder / "figure1.png": FIGURE1})
    return PartResult(title=title, state=state, lines=(*result, *drawn))


def ablation(context: PartContext) -> PartResult:
    title, table, options = "Ablations", context.folder / "ablation.md", context.options
    if "val" not in context.manifest.splits:
        return PartResult(title=title, state="skipped: the dataset has no validation split")
    whole = whole_of(context)
    ablate = Ablate(
        shards=options.shards,
        fields=switchable(whole),
        seeds=options.seeds,
        runs=options.runs,
        out=context.folder,
        gpus=options.gpus,
        recipe=context.recipe_name,
        whole=whole,
    )
    state = ablate_within(context.left, context.log("ablation"), ablate)
    lines = (table.read_text(),) if table.exists() else ()
    return PartResult(title=title, state=state, lines=lines)


def whole_of(context: PartContext) -> Recipe:
    """The ablations' whole network: with the run's settings, but from new weights, which fit every
    switch."""
    recipe = RECIPES[context.options.recipe] if context.options.recipe else context.recipe
    return replace(recipe, epochs=context.options.ablate_epochs, init_from=None, conv_rate=1.0)


def tables(context: PartContext) -> PartResult:
    from gratis.train.paper.tables import tables as table_of

    lines = (table_of(context.options.runs),)
    return PartResult(title="Beside the paper's tables", state="done", lines=lines)


def pictures(pngs: dict[Path, str]) -> tuple[str, ...]:
    """Those that are there, with their captions."""
    return tuple(
        f"![{png.stem}]({png.name})\n\n{caption}" for png, caption in pngs.items() if png.exists()
    )


PARTS = (train, figures, explain, figure1, ablation, tables)
"""In the order in which they are done."""
