"""The paper on one's own shards: `make paper SHARDS=...`, `python -m train paper --shards S --minutes 60`.

Trains a network (or takes a run that --run names), draws the paper's figures from it, one image's way through the
loader, figure 1, the ablation table and the tables beside the paper's, as far as the minutes go, and writes one
report, `report.md` with its PNGs, into the run's folder `paper`. What does not fit is left out with its reason; the
same command later does what is missing: training goes on from its checkpoint, finished ablations stand.
"""

from __future__ import annotations

import signal
import time
from dataclasses import dataclass
from pathlib import Path

from preprocess.dataset import Manifest, read_manifest
from preprocess.errors import UserError
from train.launch import outcome, records
from train.options import Name, command
from train.paper.ablate import Ablate
from train.paper.figures import CAPTIONS
from train.paper.timed import OVER, leave, said, timed
from train.recipes import RECIPES, Recipe

EXPLAINED = "From the stored image to the network's input, and where training cuts out its crops."
FIGURE1 = "The paper's figure 1 is of CIFAR-10, where ReLU reaches 25 % training error six times as fast."
FIGURE1_SIZE = 32
TRAINING_SHARE, FIGURE1_SHARE = 0.5, 0.5  # of the time that is left when they begin
SEARCHED = 2000  # training images among which nearest neighbours are looked for


@dataclass(frozen=True, kw_only=True)
class Paper:
    """Trains, draws and tabulates what the machine can in the minutes given, into one report under the run."""

    shards: str
    """Folder of the dataset, or its address."""
    minutes: float = 60.0
    """Time for all of it; half of it at most goes to training."""
    run: str | None = None
    """A run of these shards, to be reported as it is. Default: paper-<recipe>-<dataset>, trained here."""
    runs: Path = Path("runs")
    """Folder of all runs."""
    recipe: Name | None = None
    """Default: the first one that fits the images' size (sample for up to 10 classes)."""
    gpus: int | None = None
    """As `python -m train` takes it."""
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
            raise UserError(f"--minutes {self.minutes} must be above 0")
        if self.ablate_epochs < 1:
            raise UserError(f"--ablate-epochs {self.ablate_epochs} must be at least 1")
        Ablate(seeds=self.seeds)  # checks them


@dataclass(frozen=True, kw_only=True)
class Step:
    """What became of one part. lines: Markdown for the report."""

    title: str
    state: str  # "done", or why not
    lines: tuple[str, ...] = ()


@dataclass(frozen=True, kw_only=True)
class Work:
    """What every part needs. ends: when the minutes are over, on time.monotonic's clock."""

    options: Paper
    manifest: Manifest
    recipe_name: Name
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

    @property
    def recipe(self) -> Recipe:
        return RECIPES[self.recipe_name]


def main(arguments: list[str]) -> None:
    options = command(Paper, arguments, "paper")
    signal.signal(signal.SIGTERM, leave)
    print(paper(options), flush=True)


def paper(options: Paper) -> Path:
    """Does what is missing as far as the time goes; the report's path. It is renewed after each part."""
    from loader import dataset_folder

    manifest = read_manifest(dataset_folder(options.shards))
    if options.shards32:
        read_manifest(dataset_folder(options.shards32))  # that it is there is known before an hour is spent
    name = options.recipe or fitting(manifest)
    run = options.runs / (options.run or f"paper-{name}-{manifest.hash[:8]}")
    if options.run:
        require_run_of(run, manifest, options)
    ends = time.monotonic() + 60 * options.minutes
    work = Work(options=options, manifest=manifest, recipe_name=name, run=run, ends=ends)
    parts, steps = (train, figures, explain, figure1, ablation, tables), []
    for number, part in enumerate(parts, 1):
        print(f"{number} of {len(parts)}: {part.__name__}, {max(0, work.left) / 60:.0f} minutes left", flush=True)
        steps.append(part(work))
        print(f"  {steps[-1].title}: {steps[-1].state}", flush=True)
        report = write(work, steps)
    return report


def require_run_of(run: Path, manifest: Manifest, options: Paper) -> None:
    """UserError unless the run has a checkpoint and was trained on this dataset."""
    if not (run / "checkpoints").is_dir():
        raise UserError(f"there is no run {options.run} with a checkpoint in {options.runs}; choose another --run")
    trained_on = [one["dataset"] for one in records(run) if one["kind"] == "start"][-1:]
    if trained_on != [manifest.hash]:
        other = trained_on[0][:8] if trained_on else "an unknown one"
        raise UserError(
            f"run {options.run} was trained on dataset {other}, {options.shards} is {manifest.hash[:8]}: "
            "give the --shards it was trained on, or another --run"
        )


def fitting(manifest: Manifest) -> Name:
    """The recipe for images of this size; UserError if there is none."""
    few = len(manifest.classes) <= 10
    order: tuple[Name, ...] = ("released", "sample", "tiny") if few else ("released", "tiny")
    for name in order:
        if RECIPES[name].image_size == manifest.image_size:
            return name
    sizes = sorted({recipe.image_size for recipe in RECIPES.values()})
    raise UserError(
        f"no recipe is for {manifest.image_size}-pixel images; make shards with --size {' or '.join(map(str, sizes))}"
    )


def train(work: Work) -> Step:
    """Until it is finished or half of the time is over; then it is told to save itself."""
    options, told = work.options, outcome(work.run)
    if options.run is None and told not in ("finished", "diverged"):
        command = ["train", "--shards", options.shards, "--runs", str(options.runs), "--run", work.run.name]
        command += ["--recipe", work.recipe_name, "--port", "0", "--save-probabilities"]
        command += ["--gpus", str(options.gpus)] if options.gpus else []
        fault = timed(work.log("training"), command, TRAINING_SHARE * work.left)
        told = outcome(work.run)
        if not (work.run / "checkpoints").is_dir():
            return Step(title="Training", state=fault or "ended before its first checkpoint")
    return Step(title="Training", state="done" if told == "finished" else so_far(work.run), lines=errors(work.run))


def so_far(run: Path) -> str:
    """How far an unfinished run is."""
    starts = [record for record in records(run) if record["kind"] == "start"]
    told = {"preempted": "stopped", None: "unfinished"}.get(outcome(run), outcome(run))
    steps = max((record["step"] for record in records(run) if record["kind"] == "step"), default=0)
    total = starts[-1]["epochs"] * starts[-1]["steps_per_epoch"] if starts else 0
    return f"{told} at step {steps:,} of {total:,}; the same command goes on"


def errors(run: Path) -> tuple[str, ...]:
    evals = [record for record in records(run) if record["kind"] == "eval"]
    return tuple(
        f"Errors by {'the centre view' if views == 1 else f'{views} views'} after epoch {last['epoch']}: "
        f"top-1 {1 - last['top1']:.1%}, top-5 {1 - last['top5']:.1%} of {last['images']:,} images."
        for views in (1, 10)
        if (last := next((record for record in reversed(evals) if record["views"] == views), None))
    )


def figures(work: Work) -> Step:
    """Drawn anew where the run has gone on since."""
    saved = work.run / "checkpoints" / "latest"
    pngs = {work.folder / f"{name}.png": caption for name, caption in CAPTIONS.items()}
    if not saved.exists():
        return Step(title="Figures of the run", state="skipped: the run has no checkpoint yet")
    fault = None
    if not all(png.exists() and png.stat().st_mtime >= saved.stat().st_mtime for png in pngs):
        command = ["train", "figures", "--run", work.run.name, "--runs", str(work.options.runs)]
        command += ["--shards", work.options.shards, "--out", str(work.folder), "--search", str(SEARCHED)]
        fault = timed(work.log("figures"), command, work.left)
    return Step(title="Figures of the run", state=fault or "done", lines=pictures(pngs))


def explain(work: Work) -> Step:
    title, png = "One image's way through the loader", work.folder / "explain.png"
    if "://" in work.options.shards:
        return Step(title=title, state="skipped: it reads local folders; copy the dataset, or give its mount")
    fault = None
    if not png.exists():
        command = ["loader", "explain", work.options.shards, "--sample", work.options.sample, "--out", str(png)]
        command += ["--crop", str(work.recipe.crop), "--mean", work.recipe.mean, "--noise", work.recipe.noise]
        fault = timed(work.log("explain"), command, work.left)
    return Step(title=title, state=fault or "done", lines=pictures({png: EXPLAINED}))


def figure1(work: Work) -> Step:
    title, shards = "Figure 1", work.options.shards32
    if shards is None and work.manifest.image_size == FIGURE1_SIZE:
        shards = work.options.shards
    if shards is None:
        why = (
            f"it wants 32-pixel images: make shards SRC=... OUT=shards32 ARGS='--size {FIGURE1_SIZE}', then --shards32"
        )
        return Step(title=title, state=f"skipped: {why}")
    minutes, fault = FIGURE1_SHARE * work.left / 60, f"skipped: {OVER}"
    if minutes > 0:
        command = ["train", "figure1", "--shards", shards, "--out", str(work.folder), "--minutes", f"{minutes:.2f}"]
        fault = timed(work.log("figure1"), command, work.left) or ""
    lines = said(work.log("figure1")).splitlines()
    told = [line for line in lines if "training error" in line][-1:]
    short = any(cut in line for cut in ("skipped, --minutes", "time is over") for line in lines)
    state = fault or (f"in part: {OVER}" if short else "done")
    return Step(title=title, state=state, lines=(*told, *pictures({work.folder / "figure1.png": FIGURE1})))


def ablation(work: Work) -> Step:
    title, table = "Ablations", work.folder / "ablation.md"
    if "val" not in work.manifest.splits:
        return Step(title=title, state="skipped: the dataset has no validation split")
    if work.left > 0:
        command = ["train", "ablate", "--shards", work.options.shards, "--runs", str(work.options.runs)]
        command += ["--recipe", work.recipe_name, "--epochs", str(work.options.ablate_epochs)]
        command += ["--seeds", work.options.seeds, "--out", str(work.folder), "--minutes", f"{work.left / 60:.2f}"]
        command += ["--gpus", str(work.options.gpus)] if work.options.gpus else []
        fault = timed(work.log("ablation"), command, work.left)
    else:
        fault = f"skipped: {OVER}"
    skipped = "skipped, it would" in said(work.log("ablation"))
    state = fault or (f"in part: {OVER}" if skipped else "done")
    return Step(title=title, state=state, lines=(table.read_text(),) if table.exists() else ())


def tables(work: Work) -> Step:
    from train.paper.tables import tables as written

    return Step(title="Beside the paper's tables", state="done", lines=(written(work.options.runs),))


def pictures(pngs: dict[Path, str]) -> tuple[str, ...]:
    """Those that are there, with their captions."""
    return tuple(f"![{png.stem}]({png.name})\n\n{caption}" for png, caption in pngs.items() if png.exists())


def write(work: Work, steps: list[Step]) -> Path:
    """report.md: what was measured on what, then every part with its state."""
    splits = {name: split.samples for name, split in work.manifest.splits.items()}
    data = ", ".join(f"{count:,} {name}" for name, count in splits.items())
    lines = [
        f"# The paper of 2012 on dataset {work.manifest.hash[:8]}, run {work.run.name}", "",
        f"Measured on {data} images of {len(work.manifest.classes):,} classes at {work.manifest.image_size} px, to "
        "which smaller originals were enlarged; what is of other data says so. The paper's numbers are on ILSVRC at "
        "256 px (1.2 million images of 1,000 classes), 90 epochs: a target for that dataset, not for another.", "",
    ]  # fmt: skip
    for step in steps:
        lines += [f"## {step.title}", "", f"*{step.state}*", ""]
        for line in step.lines:
            lines += [line, ""]
    path = work.folder / "report.md"
    try:
        work.folder.mkdir(parents=True, exist_ok=True)
        path.write_text("\n".join(lines))
    except OSError as error:
        raise UserError(f"{path} cannot be written ({error.strerror}); make room, or choose other --runs") from None
    return path
