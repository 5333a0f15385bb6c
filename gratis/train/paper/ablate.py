"""Which parts of the network matter, measured: one thing switched off at a time, the same seeds for
each.

gratis ablate --shards S --fields lrn,overlap,towers,color_noise,dropout --seeds 0,1 --recipe tiny
--epochs 10

Every run is one of `gratis train`, in a folder of its own under --runs; those that are finished are
not done again, so the command may be interrupted, repeated, and extended by fields and seeds. The
table (Markdown, and JSON beside it) holds errors averaged over ten views, and differences to the
whole network *of the same seed*: mean and extremes."""

from __future__ import annotations

import dataclasses
import hashlib
import itertools
import json
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from gratis.atomic import atomic_output
from gratis.dataset import Manifest, read_manifest, require_split, require_square
from gratis.errors import GratisError
from gratis.history import outcome, records
from gratis.processes import OVER, read_log, timed
from gratis.signals import terminate_exits
from gratis.train.options import Fields, read
from gratis.train.paper.arguments import flags, recipe_flags
from gratis.train.paper.markdown import table
from gratis.train.paper.switches import SWITCHES
from gratis.train.recipes import RECIPES, RELEASED, Recipe, RecipeName

WHOLE = "whole"
VIEWS = 10
DIFFERENCES = ("top-1 difference", "top-5 difference")
HEADINGS = ("", "n", "top-1", "top-5", *DIFFERENCES, "paper's", "on")


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

    @property
    def switches(self) -> list[str]:
        names = (name.strip() for name in self.fields.split(","))
        return list(dict.fromkeys(name for name in names if name))


def seeds_of(text: str) -> list[int]:
    """Of "0,1,2", each once. GratisError for anything else."""
    if not all(seed.strip().isdecimal() for seed in text.split(",")):
        raise GratisError(f"--seeds {text} must be whole numbers, comma-separated, such as 0,1,2")
    return list(dict.fromkeys(int(seed) for seed in text.split(",")))


Errors = tuple[float, float]  # top-1 and top-5, in per cent
ErrorTable = dict[str, dict[int, Errors]]  # by setting, by seed


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
    stem = f"{options.recipe}-{manifest.hash[:8]}-{digest(options.whole)}"
    folder = options.out or options.runs / f"ablation-{stem}"
    errors = train_all(options, stem, lambda errors: write(folder, options, manifest, errors))
    return write(folder, options, manifest, errors)


def ablate_within(seconds: float, log: Path, options: Ablate) -> str:
    """`gratis ablate` as a process for at most so long; "done", or why something is missing. Its
    output goes to `log`; the same call goes on."""
    command = ["ablate", *flags(shards=options.shards, runs=options.runs, out=options.out)]
    command += flags(fields=options.fields, seeds=options.seeds, gpus=options.gpus)
    command += flags(minutes=f"{seconds / 60:.4g}", recipe=options.recipe)
    command += recipe_flags(options.whole, RECIPES[options.recipe])
    failure = timed(log, command, seconds)
    return failure or (f"in part: {OVER}" if "skipped, it would" in read_log(log) else "done")


def switchable(recipe: Recipe) -> str:
    """The switches that have something to turn off in this recipe, as --fields takes them."""
    return ",".join(name for name in SWITCHES if has(name, recipe))


def digest(recipe: Recipe) -> str:
    """Six digits that name the settings, so that other settings are other runs; fields to come
    change no name."""
    settings = dataclasses.asdict(recipe)
    changed = {name: value for name, value in settings.items() if value != getattr(RELEASED, name)}
    return hashlib.sha256(json.dumps(changed).encode()).hexdigest()[:6]


def train_all(options: Ablate, stem: str, report: Callable[[ErrorTable], object]) -> ErrorTable:
    """Seed by seed, so that what an early end leaves is whole comparisons. report: after each
    run."""
    if off := [name for name in options.switches if not has(name, options.whole)]:
        raise GratisError(f"--fields {off[0]}: these settings have that off already; leave it out")
    settings = {WHOLE: options.whole}
    settings |= {name: SWITCHES[name].off(options.whole) for name in options.switches}
    results: ErrorTable = {name: {} for name in settings}
    ends = time.monotonic() + 60 * options.minutes if options.minutes else None
    planned, longest = list(itertools.product(seeds_of(options.seeds), settings)), 0.0
    for number, (seed, name) in enumerate(planned, 1):
        run = f"ablate-{stem}-{name}-s{seed}"
        if outcome(options.runs / run) != "finished":
            if ends and time.monotonic() + longest > ends:
                late = f"skipped, it would end after --minutes {options.minutes:g}"
                print(f"{run}: {late}", flush=True)
                continue
            print(f"{number} of {len(planned)}: {name}, seed {seed}", flush=True)
            began = time.monotonic()
            launch(options, run, settings[name], seed)
            longest = max(longest, time.monotonic() - began)
        if errors := errors_of(options.runs / run):
            results[name][seed] = errors
            report(results)
    return results


def has(name: str, recipe: Recipe) -> bool:
    """Is there something for the switch to turn off?"""
    # of one column half the channels would be taken again, and it exchanges nothing
    if name in ("towers", "exchange") and recipe.towers == 1:
        return False
    return SWITCHES[name].off(recipe) != recipe


def launch(options: Ablate, run: str, recipe: Recipe, seed: int) -> None:
    """One run by the one launch path. A run that diverged is no number; anything else that fails
    ends this command."""
    command = [sys.executable, *"-m gratis train".split(), *flags(shards=options.shards, run=run)]
    command += flags(runs=options.runs, seed=seed, port=0, gpus=options.gpus, recipe=options.recipe)
    command += recipe_flags(recipe, RECIPES[options.recipe])
    child = subprocess.Popen(command, stdout=subprocess.DEVNULL)
    try:
        code = child.wait()
    except BaseException:  # it saves itself before this command is gone
        child.terminate()
        child.wait()
        raise
    if code and outcome(options.runs / run) != "diverged":
        raise GratisError(f"run {run} ended with exit code {code}; the same command goes on")


def errors_of(folder: Path) -> Errors | None:
    """Of the ten views; None before they were evaluated."""
    evals = [one for one in records(folder) if one["kind"] == "eval" and one["views"] == VIEWS]
    if outcome(folder) != "finished" or not evals:
        return None
    return 100 * (1 - evals[-1]["top1"]), 100 * (1 - evals[-1]["top5"])


def write(folder: Path, options: Ablate, manifest: Manifest, results: ErrorTable) -> Path:
    """Writes ablation.md and ablation.json; the path of the first."""
    rows = [row(name, results) for name in results]
    report = {
        "dataset": manifest.hash,
        "train_images": manifest.splits["train"].samples,
        "classes": len(manifest.classes),
        "image_size": manifest.image_size,
        "recipe": options.recipe,
        "settings": dataclasses.asdict(options.whole),
        "rows": rows,
    }
    texts = {"ablation.json": json.dumps(report, indent=1) + "\n"}
    texts["ablation.md"] = markdown(rows, options, manifest)
    for name, text in texts.items():
        with atomic_output(folder / name, "choose another --out") as draft:
            draft.write_text(text)
    return folder / "ablation.md"


def row(name: str, results: ErrorTable) -> dict[str, Any]:
    """Errors of a setting by seed, and differences to the whole network's of the same seed, in
    points."""
    own, whole = results[name], results[WHOLE]
    switch = SWITCHES.get(name)
    pairs = [(own[seed], whole[seed]) for seed in own if switch and seed in whole]
    return {
        "setting": name,
        "words": switch.words if switch else "the whole network",
        "seeds": list(own),
        "top1": [top1 for top1, _ in own.values()],
        "top5": [top5 for _, top5 in own.values()],
        "top1_delta": [one[0] - other[0] for one, other in pairs],
        "top5_delta": [one[1] - other[1] for one, other in pairs],
        "paper": switch.paper if switch else (None, None),
        "paper_on": switch.measured_on if switch else "",
    }


def markdown(rows: list[dict[str, Any]], options: Ablate, manifest: Manifest) -> str:
    train, val = (manifest.splits[split].samples for split in ("train", "val"))
    whole = options.whole
    lines = [
        f"Errors in % over ten views of {val:,} validation images, means over n seeds with the "
        "extremes; differences in points to the whole network of the same seed, positive: worse "
        "without.",
        f"Measured on {train:,} training images of {len(manifest.classes):,} classes at "
        f"{manifest.image_size} px, recipe {options.recipe}, crop {whole.crop}, width "
        f"{whole.width:g}, {whole.epochs} epochs. The paper's differences are the full network's "
        "after 90 epochs on 1.2 million images of 1,000 classes: what a small short run shows need "
        "not be theirs.",
        "",
        *table(HEADINGS, map(_cells, rows)),
    ]
    return "\n".join(lines) + "\n"


def _cells(row: dict[str, Any]) -> list[str]:
    errors = [_spread(row[key], "") for key in ("top1", "top5")]
    errors += [_spread(row[key], "+") for key in ("top1_delta", "top5_delta")]
    paper = " / ".join(f"{points:g}" for points in row["paper"] if points)
    return [row["words"], str(len(row["seeds"])), *errors, paper, row["paper_on"]]


def _spread(values: list[float], sign: str) -> str:
    if not values:
        return ""
    ends = f" [{min(values):{sign}.1f}..{max(values):{sign}.1f}]" if len(values) > 1 else ""
    return f"{statistics.mean(values):{sign}.1f}{ends}"
