"""The parts of `make paper`: each is a command of ours in the time that is left, and what the
report says of it."""

from __future__ import annotations

import time
from dataclasses import dataclass, replace
from pathlib import Path

from gratis.dataset import Manifest
from gratis.history import outcome, records
from gratis.processes import OVER, first_line, said, timed
from gratis.train.analysis.figures import CAPTIONS
from gratis.train.paper.ablate import as_arguments, has
from gratis.train.paper.options import Paper
from gratis.train.paper.switches import SWITCHES
from gratis.train.recipes import RECIPES, Recipe, RecipeName

EXPLAINED = "From the stored image to the network's input, and where training cuts out its crops."
FIGURE1 = (
    "The paper's figure 1 is of CIFAR-10, where ReLU reaches 25 % training error six times as fast."
)
FIGURE1_SIZE = 32
TRAINING_SHARE, FIGURE1_SHARE = 0.5, 0.5  # of the time that is left when they begin
SEARCHED = 2000  # training images among which nearest neighbours are looked for


@dataclass(frozen=True, kw_only=True)
class PartResult:
    """What became of one part. lines: Markdown for the report."""

    title: str
    state: str  # "done", or why not
    lines: tuple[str, ...] = ()


@dataclass(frozen=True, kw_only=True)
class Work:
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


def train(work: Work) -> PartResult:
    """Until it is finished or half of the time is over; then it is told to save itself."""
    options, told, fault = work.options, outcome(work.run), None
    if options.run is None and told not in ("finished", "diverged"):
        command = [
            "train",
            "--shards",
            options.shards,
            "--runs",
            str(options.runs),
            "--run",
            work.run.name,
        ]
        command += ["--recipe", work.recipe_name, "--port", "0", "--save-probabilities"]
        command += ["--gpus", str(options.gpus)] if options.gpus else []
        fault = timed(work.log("training"), command, TRAINING_SHARE * work.left)
        told = outcome(work.run)
        if not (work.run / "checkpoints").is_dir():
            return PartResult(title="Training", state=fault or "ended before its first checkpoint")
    states = [fault] if fault and OVER not in fault else []
    states += ["done" if told == "finished" else so_far(work.run)]
    states += (
        ["the same command goes on"]
        if options.run is None and told not in ("finished", "diverged")
        else []
    )
    return PartResult(title="Training", state="; ".join(states), lines=errors(work.run))


def so_far(run: Path) -> str:
    """How far an unfinished run is."""
    starts = [record for record in records(run) if record["kind"] == "start"]
    told = {"preempted": "stopped", None: "unfinished"}.get(outcome(run), outcome(run))
    steps = max((record["step"] for record in records(run) if record["kind"] == "step"), default=0)
    total = starts[-1]["epochs"] * starts[-1]["steps_per_epoch"] if starts else 0
    return f"{told} at step {steps:,} of {total:,}"


def errors(run: Path) -> tuple[str, ...]:
    evals = [record for record in records(run) if record["kind"] == "eval"]
    return tuple(
        f"Errors by {'the centre view' if views == 1 else f'{views} views'} after epoch "
        f"{last['epoch']}: "
        f"top-1 {1 - last['top1']:.1%}, top-5 {1 - last['top5']:.1%} of {last['images']:,} images."
        for views in (1, 10)
        if (last := next((record for record in reversed(evals) if record["views"] == views), None))
    )


def figures(work: Work) -> PartResult:
    """Drawn anew where the run has gone on since."""
    saved = work.run / "checkpoints" / "latest"
    pngs = {work.folder / f"{name}.png": caption for name, caption in CAPTIONS.items()}
    if not saved.exists():
        return PartResult(
            title="Figures of the run", state="skipped: the run has no checkpoint yet"
        )
    fault = None
    if not all(png.exists() and png.stat().st_mtime >= saved.stat().st_mtime for png in pngs):
        command = ["figures", "--run", work.run.name, "--runs", str(work.options.runs)]
        command += [
            "--shards",
            work.options.shards,
            "--out",
            str(work.folder),
            "--search",
            str(SEARCHED),
        ]
        fault = timed(work.log("figures"), command, work.left)
    return PartResult(title="Figures of the run", state=fault or "done", lines=pictures(pngs))


def explain(work: Work) -> PartResult:
    title, png = "One image's way through the loader", work.folder / "explain.png"
    if "://" in work.options.shards:
        return PartResult(
            title=title,
            state="skipped: it reads local folders; copy the dataset, or give its mount",
        )
    if work.recipe.crop_area:
        return PartResult(
            title=title, state="skipped: it draws plain crops, and this run trains on resized ones"
        )
    command = ["explain", work.options.shards, "--sample", work.options.sample, "--out", str(png)]
    command += [
        "--crop",
        str(work.recipe.crop),
        "--mean",
        work.recipe.mean,
        "--noise",
        work.recipe.noise,
    ]
    command += [
        "--crop-positions",
        work.recipe.crop_positions,
        "--crop-chunk",
        str(work.recipe.crop_chunk),
    ]
    fault = None
    # as another call drew it
    if not png.exists() or first_line(command) not in said(work.log("explain")):
        fault = timed(work.log("explain"), command, work.left)
    lines = pictures({png: EXPLAINED})
    if lines and not fault:  # what it has printed: offsets and colours, measured and in theory
        lines += (
            "\n".join(f"    {line}" for line in said(work.log("explain")).splitlines()[1:-1]),
        )
    return PartResult(title=title, state=fault or "done", lines=lines)


def figure1(work: Work) -> PartResult:
    title, shards = "Figure 1", work.options.shards32
    if shards is None and work.manifest.image_size == FIGURE1_SIZE:
        shards = work.options.shards
    if shards is None:
        why = (
            f"it wants 32-pixel images: make shards SRC=... OUT=shards32 ARGS='--size "
            f"{FIGURE1_SIZE}', then --shards32"
        )
        return PartResult(title=title, state=f"skipped: {why}")
    minutes, fault = FIGURE1_SHARE * work.left / 60, f"skipped: {OVER}"
    if minutes > 0:
        command = [
            "figure1",
            "--shards",
            shards,
            "--out",
            str(work.folder),
            "--minutes",
            f"{minutes:.2f}",
        ]
        fault = timed(work.log("figure1"), command, work.left) or ""
    lines = said(work.log("figure1")).splitlines()
    told = [line for line in lines if "training error" in line][-1:]
    short = any(cut in line for cut in ("skipped, --minutes", "time is over") for line in lines)
    state = fault or (f"in part: {OVER}" if short else "done")
    return PartResult(
        title=title, state=state, lines=(*told, *pictures({work.folder / "figure1.png": FIGURE1}))
    )


def ablation(work: Work) -> PartResult:
    title, table = "Ablations", work.folder / "ablation.md"
    if "val" not in work.manifest.splits:
        return PartResult(title=title, state="skipped: the dataset has no validation split")
    if work.left > 0:
        command = ["ablate", "--shards", work.options.shards, "--runs", str(work.options.runs)]
        whole = whole_of(work)
        command += ["--recipe", work.recipe_name, *as_arguments(whole, RECIPES[work.recipe_name])]
        command += ["--fields", ",".join(name for name in SWITCHES if has(name, whole))]
        command += [
            "--seeds",
            work.options.seeds,
            "--out",
            str(work.folder),
            "--minutes",
            f"{work.left / 60:.2f}",
        ]
        command += ["--gpus", str(work.options.gpus)] if work.options.gpus else []
        fault = timed(work.log("ablation"), command, work.left)
    else:
        fault = f"skipped: {OVER}"
    skipped = "skipped, it would" in said(work.log("ablation"))
    state = fault or (f"in part: {OVER}" if skipped else "done")
    return PartResult(
        title=title, state=state, lines=(table.read_text(),) if table.exists() else ()
    )


def whole_of(work: Work) -> Recipe:
    """The ablations' whole network: with the run's settings, but from new weights, which fit every
    switch."""
    recipe = RECIPES[work.options.recipe] if work.options.recipe else work.recipe
    return replace(recipe, epochs=work.options.ablate_epochs, init_from=None, conv_rate=1.0)


def tables(work: Work) -> PartResult:
    from gratis.train.paper.tables import tables as table_of

    return PartResult(
        title="Beside the paper's tables", state="done", lines=(table_of(work.options.runs),)
    )


def pictures(pngs: dict[Path, str]) -> tuple[str, ...]:
    """Those that are there, with their captions."""
    return tuple(
        f"![{png.stem}]({png.name})\n\n{caption}" for png, caption in pngs.items() if png.exists()
    )


PARTS = (train, figures, explain, figure1, ablation, tables)
"""In the order in which they are done."""
