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

from gratis.dataset import Manifest, read_manifest, require_split
from gratis.errors import GratisError
from gratis.history import outcome, records
from gratis.signals import terminate_exits
from gratis.train.options import Fields, read
from gratis.train.paper.switches import SWITCHES
from gratis.train.recipes import RECIPES, RELEASED, Recipe, RecipeName
from gratis.written import written

WHOLE = "whole"
VIEWS = 10


@dataclass(frozen=True, kw_only=True)
class Ablate:
    """Trains with one part switched off at a time, several seeds each, and writes a table beside
    the paper's."""

    shards: str | None = None
    """Required: folder of the dataset, or its address; it needs a validation split."""
    fields: str = ",".join(SWITCHES)
    """What to switch off, one at a time, comma-separated."""
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
        return list(dict.fromkeys(name.strip() for name in self.fields.split(",")))


def seeds_of(text: str) -> list[int]:
    """Of "0,1,2", each once. GratisError for anything else."""
    if not all(seed.strip().isdecimal() for seed in text.split(",")):
        raise GratisError(f"--seeds {text} must be whole numbers, comma-separated, such as 0,1,2")
    return list(dict.fromkeys(int(seed) for seed in text.split(",")))


Errors = tuple[float, float]  # top-1 and top-5, in per cent
Found = dict[str, dict[int, Errors]]  # by setting, by seed


def main(arguments: list[str]) -> None:
    options = read(
        lambda name, recipe: Ablate(recipe=name, whole=recipe),
        arguments,
        "released",
        "gratis ablate",
    )
    terminate_exits()
    print(ablate(options), flush=True)


def ablate(options: Ablate) -> Path:
    """Trains what is not trained yet and writes the table; its path."""
    if options.shards is None:
        raise GratisError("ablate needs a dataset: --shards FOLDER")
    from gratis.loader import dataset_folder

    manifest = read_manifest(dataset_folder(options.shards))
    require_split(options.shards, manifest, "val")
    stem = f"{options.recipe}-{manifest.hash[:8]}-{digest(options.whole)}"
    folder = options.out or options.runs / f"ablation-{stem}"
    found = train_all(options, stem, lambda found: write(folder, options, manifest, found))
    return write(folder, options, manifest, found)


def digest(recipe: Recipe) -> str:
    """Six digits that name the settings, so that other settings are other runs; fields to come
    change no name."""
    told = {
        name: value
        for name, value in dataclasses.asdict(recipe).items()
        if value != getattr(RELEASED, name)
    }
    return hashlib.sha256(json.dumps(told).encode()).hexdigest()[:6]


def train_all(options: Ablate, stem: str, tell: Callable[[Found], object]) -> Found:
    """Seed by seed, so that what an early end leaves is whole comparisons. tell: after each run."""
    settings = {WHOLE: options.whole} | {
        name: SWITCHES[name].off(options.whole) for name in options.switches
    }
    if off := [name for name in options.switches if not has(name, options.whole)]:
        raise GratisError(f"--fields {off[0]}: these settings have that off already; leave it out")
    found: Found = {name: {} for name in settings}
    ends = time.monotonic() + 60 * options.minutes if options.minutes else None
    planned, longest = list(itertools.product(seeds_of(options.seeds), settings)), 0.0
    for number, (seed, name) in enumerate(planned, 1):
        run = f"ablate-{stem}-{name}-s{seed}"
        if outcome(options.runs / run) != "finished":
            if ends and time.monotonic() + longest > ends:
                print(
                    f"{run}: skipped, it would end after --minutes {options.minutes:g}", flush=True
                )
                continue
            print(f"{number} of {len(planned)}: {name}, seed {seed}", flush=True)
            began = time.monotonic()
            launch(options, run, settings[name], seed)
            longest = max(longest, time.monotonic() - began)
        if errors := errors_of(options.runs / run):
            found[name][seed] = errors
            tell(found)
    return found


def has(name: str, recipe: Recipe) -> bool:
    """Is there something for the switch to turn off?"""
    if name == "towers" and recipe.towers == 1:  # half of its channels would be taken again
        return False
    return SWITCHES[name].off(recipe) != recipe


def launch(options: Ablate, run: str, recipe: Recipe, seed: int) -> None:
    """One run by the one launch path. A run that diverged is no number; anything else that fails
    ends this command."""
    command = [
        sys.executable,
        *"-m gratis train --shards".split(),
        str(options.shards),
        "--runs",
        str(options.runs),
    ]
    command += ["--run", run, "--seed", str(seed), "--port", "0", "--recipe", options.recipe]
    command += ["--gpus", str(options.gpus)] if options.gpus else []
    command += as_arguments(recipe, RECIPES[options.recipe])
    child = subprocess.Popen(command, stdout=subprocess.DEVNULL)
    try:
        code = child.wait()
    except BaseException:  # it saves itself before this command is gone
        child.terminate()
        child.wait()
        raise
    if code and outcome(options.runs / run) != "diverged":
        raise GratisError(
            f"run {run} ended with exit code {code}; the same command goes on with it"
        )


def as_arguments(recipe: Recipe, base: Recipe) -> list[str]:
    """The options of `gratis train` that make `recipe` out of `base`."""
    found = []
    for field in dataclasses.fields(recipe):
        value, flag = getattr(recipe, field.name), field.name.replace("_", "-")
        if value == getattr(base, field.name):
            continue
        if isinstance(value, bool):
            found.append(f"--{flag}" if value else f"--no-{flag}")
        else:
            found += [f"--{flag}", *(map(str, value) if isinstance(value, tuple) else [str(value)])]
    return found


def errors_of(folder: Path) -> Errors | None:
    """Of the ten views; None before they were evaluated."""
    evals = [
        record
        for record in records(folder)
        if record["kind"] == "eval" and record["views"] == VIEWS
    ]
    if outcome(folder) != "finished" or not evals:
        return None
    return 100 * (1 - evals[-1]["top1"]), 100 * (1 - evals[-1]["top5"])


def write(folder: Path, options: Ablate, manifest: Manifest, found: Found) -> Path:
    """Writes ablation.md and ablation.json; the path of the first."""
    rows = [row(name, found) for name in found]
    report = {
        "dataset": manifest.hash,
        "train_images": manifest.splits["train"].samples,
        "classes": len(manifest.classes),
        "image_size": manifest.image_size,
        "recipe": options.recipe,
        "settings": dataclasses.asdict(options.whole),
        "rows": rows,
    }
    for name, text in (
        ("ablation.json", json.dumps(report, indent=1) + "\n"),
        ("ablation.md", markdown(rows, options, manifest)),
    ):
        with written(folder / name, "choose another --out") as draft:
            draft.write_text(text)
    return folder / "ablation.md"


def row(name: str, found: Found) -> dict[str, object]:
    """Errors of a setting by seed, and differences to the whole network's of the same seed, in
    points."""
    own, whole = found[name], found[WHOLE]
    pairs = [seed for seed in own if seed in whole]
    switch = SWITCHES.get(name)
    return {
        "setting": name,
        "words": switch.words if switch else "the whole network",
        "seeds": list(own),
        "top1": [own[seed][0] for seed in own],
        "top5": [own[seed][1] for seed in own],
        "top1_delta": [own[seed][0] - whole[seed][0] for seed in pairs] if switch else [],
        "top5_delta": [own[seed][1] - whole[seed][1] for seed in pairs] if switch else [],
        "paper": switch.paper if switch else (None, None),
        "paper_on": switch.measured_on if switch else "",
    }


def markdown(rows: list[dict[str, object]], options: Ablate, manifest: Manifest) -> str:
    told = (
        f"{manifest.splits['train'].samples:,} training images of {len(manifest.classes):,} classes"
    )
    lines = [
        f"Errors in % over ten views of {manifest.splits['val'].samples:,} validation images, "
        f"means over n seeds with "
        "the extremes; differences in points to the whole network of the same seed, positive: "
        "worse without.",
        f"Measured on {told} at {manifest.image_size} px, recipe {options.recipe}, crop "
        f"{options.whole.crop}, width "
        f"{options.whole.width:g}, {options.whole.epochs} epochs. The paper's differences are the "
        f"full network's after "
        "90 epochs on 1.2 million images of 1,000 classes: what a small short run shows need not "
        "be theirs.",
        "",
        "| | n | top-1 | top-5 | top-1 difference | top-5 difference | paper's | on |",
        "|---|---|---|---|---|---|---|---|",
    ]
    return "\n".join(lines + [_line(found) for found in rows]) + "\n"


def _line(found: dict[str, object]) -> str:
    top1, top5 = ("" if value is None else f"{value:g}" for value in found["paper"])  # type: ignore[attr-defined]
    cells = [found["words"], len(found["seeds"])]  # type: ignore[arg-type]
    cells += [_spread(found[key], "") for key in ("top1", "top5")]
    cells += [_spread(found[key], "+") for key in ("top1_delta", "top5_delta")]
    cells += [" / ".join(filter(None, (top1, top5))), found["paper_on"]]
    return "| " + " | ".join(str(cell) for cell in cells) + " |"


def _spread(values: object, sign: str) -> str:
    assert isinstance(values, list)
    if not values:
        return ""
    ends = f" [{min(values):{sign}.1f}..{max(values):{sign}.1f}]" if len(values) > 1 else ""
    return f"{statistics.mean(values):{sign}.1f}{ends}"
