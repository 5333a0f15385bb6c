"""Which run a command starts or resumes: its name, its folder, and what its records hold."""

from __future__ import annotations

import dataclasses
import json
import re
import shlex
import sys
from pathlib import Path

import psutil

from gratis.dataset import Manifest
from gratis.errors import GratisError
from gratis.history import attempts, outcome, records
from gratis.locks import STARTER, in_use, is_others, reserve
from gratis.train.network import layers
from gratis.train.options import Options
from gratis.train.recipes import RELEASED, Recipe
from gratis.train.settings import Launch

OVER = ("finished", "diverged")  # outcomes after which a run's name is not taken up again by itself


def plan(options: Options, shards: Path | str, manifest: Manifest) -> Launch:
    """Names the run, prints its folder, and reserves it for this process."""
    recipe = options.fields
    classes = recipe.classes or len(manifest.classes)
    check_size(recipe, classes)
    for _ in range(100):  # until no other command was quicker
        name, resumes = run_by_name(options) if options.run else run_by_recipe(options, manifest)
        folder = options.runs / name
        if recipe.init_from and not resumes:  # one that goes on has begun with it
            from gratis.train.pretrained import fitting

            fitting(Path(recipe.init_from), recipe, classes)
        if reserve(folder):
            break
    else:  # on some file systems every lock seems taken
        raise GratisError(f"{folder / STARTER} cannot be locked; choose --runs on another disk")
    print(f"run: {folder}" + (" (unfinished: going on where it stopped)" if resumes else ""))
    images = manifest.splits["train"].samples
    if recipe.batch > images:
        more = f"--batch {recipe.batch} is more than the {images} training images"
        print(f"{more}: an epoch is one step of all")
    # a network of one tower is never spread, so its processes are all data parallel
    spread = min(options.settings.tower_ranks, recipe.towers)
    return Launch(
        **vars(options.settings) | {"tower_ranks": spread},
        runs=str(options.runs),
        run=name,
        shards=str(shards),
        recipe_name=options.recipe,
        recipe=recipe,
        attempt=attempts(folder) + 1,
        command=shlex.join(["gratis", *sys.argv[1:]]),
    )


def check_size(recipe: Recipe, classes: int) -> None:
    """GratisError for a network whose weights, gradients and velocities do not fit into this
    machine."""
    parameters = sum(own.parameters for own in layers.plan(recipe, classes).values())
    most = psutil.virtual_memory().total
    if 3 * 4 * parameters > most:
        why = f"do not fit into this machine's {most / 2**30:.0f} GiB"
        way_out = "take a smaller --width, --hidden or --classes"
        raise GratisError(f"{parameters:,} parameters {why}; {way_out}")


def run_by_name(options: Options) -> tuple[str, bool]:
    """The run that was named, and does it resume. Settings may change, but not those that decide
    who comes when."""
    name = options.run or ""
    folder = options.runs / name
    check_available(folder)
    changed = changes(folder, options.fields, options.settings.seed)
    if fixed := [changed[field] for field in ("seed", "batch") if field in changed]:
        way_out = "give what it was, or choose another --run"
        raise GratisError(f"run {folder} cannot go on so: {', '.join(fixed)}; {way_out}")
    if changed:
        print(f"run {folder} goes on with other settings: {', '.join(changed.values())}")
    return name, attempts(folder) > 0


def check_available(folder: Path) -> None:
    """GratisError for a run that another process has, or that is finished."""
    if user := in_use(folder):
        raise GratisError(f"run {folder} is in use by {user}; choose another --run, or end it")
    if outcome(folder) == "finished":
        raise GratisError(f"run {folder} is finished; choose another --run")
    if is_others(folder):
        raise GratisError(f"run {folder} cannot be written by this user; choose another --run")


def run_by_recipe(options: Options, manifest: Manifest) -> tuple[str, bool]:
    """The newest run of this recipe and dataset if it is unfinished and of these settings, else a
    new one."""
    stem = f"{options.recipe}-{manifest.hash[:8]}"
    name, resumes = choose_run(options.runs, stem)
    folder = options.runs / name
    if resumes and (changed := changes(folder, options.fields, options.settings.seed)):
        why = f"is unfinished, but {', '.join(changed.values())}"
        print(f"run {folder} {why}: another begins (--run {name} goes on with it)")
        return f"{stem}-{int(name.rsplit('-', 1)[1]) + 1}", False
    return name, resumes


def choose_run(runs: Path, stem: str) -> tuple[str, bool]:
    """(<stem>-<n>, does it resume): the newest if it is unfinished and nobody runs it, else the
    number after it.

    Says who runs it.
    """
    tails = [path.name[len(stem) + 1 :] for path in runs.glob(f"{stem}-*/")]
    numbers = sorted(int(tail) for tail in tails if re.fullmatch("[0-9]+", tail))
    if not numbers:
        return f"{stem}-1", False
    newest = runs / f"{stem}-{numbers[-1]}"
    if is_others(newest):
        print(f"run {newest} is another user's: another begins")
        return f"{stem}-{numbers[-1] + 1}", False
    if user := in_use(newest):
        print(f"run {newest} is in use by {user}: another begins")
    if user or outcome(newest) in OVER:
        return f"{stem}-{numbers[-1] + 1}", False
    return newest.name, attempts(newest) > 0


def changes(folder: Path, recipe: Recipe, seed: int) -> dict[str, str]:
    """By field, how settings differ from those of the run's last attempt: {"rate": "rate was 0.01,
    is 0.05"}."""
    starts = [record for record in records(folder) if record["kind"] == "start"]
    if not starts:
        return {}
    config = starts[-1]["config"]
    before, asked = (json.loads(json.dumps(dataclasses.asdict(one))) for one in (RELEASED, recipe))
    # of a field that its version lacked a run had the default
    there = before | config["recipe"] | {"seed": config["seed"]}
    asked |= {"seed": seed}
    return {
        name: f"{name.replace('_', '-')} was {there.get(name)}, is {value}"
        for name, value in asked.items()
        if there.get(name) != value
    }
