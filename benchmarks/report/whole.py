"""Part 5: whole trainings, each with its ablations, and figures of one. Each is a run of `gratis
train`: stopped at the part's end it has saved, and the next call goes on with it."""

from __future__ import annotations

import shlex
import shutil
from functools import partial
from pathlib import Path

from benchmarks.report.book import Book, OutOfTime, Result
from benchmarks.report.live import trained
from benchmarks.report.setting import Setting
from gratis.history import outcome
from gratis.processes import OVER, timed
from gratis.train.paper.ablate import as_arguments
from gratis.train.paper.switches import SWITCHES

PART = 5
SEEDS = {True: (0, 1, 2), False: (0, 1)}  # on a GPU, on a CPU
FIRST = 0  # the seed of the training that figures are drawn of
LEAST_S = 60.0  # a run is not begun for less
WHOLE = "whole"
RECIPE = "paper recipe"  # on a GPU: the paper's own, whole
# training images among which nearest neighbours are looked for
FIGURES, SEARCHED = ("figures 3 and 4", 2000)
PAPER = {
    switch.words: " / ".join(f"{points:g}" for points in switch.paper if points)
    for switch in SWITCHES.values()
}
"""Points of top-1 / top-5 error that the paper says each is worth."""


def run(setting: Setting, book: Book) -> None:
    seeds = SEEDS[setting.cuda]
    for seed in seeds:
        for name in (WHOLE, *SWITCHES):
            training(setting, book, name, seed)
            if (name, seed) == (WHOLE, FIRST):
                command = "gratis " + shlex.join(drawing(setting, book))
                book.measure(
                    PART,
                    FIGURES,
                    command,
                    partial(figures, setting, book),
                    needs=LEAST_S,
                    stops=True,
                )
    for seed in seeds if setting.cuda else ():
        training(setting, book, RECIPE, seed)


def training(setting: Setting, book: Book, name: str, seed: int) -> None:
    told = SWITCHES[name].words if name in SWITCHES else name
    command = f"gratis train {' '.join(flags(setting, name))} --seed {seed}"
    make = partial(result, setting, book, name, seed)
    book.measure(PART, f"{told}, seed {seed}", command, make, needs=LEAST_S, stops=True)


def flags(setting: Setting, name: str) -> tuple[str, ...]:
    """A GPU trains the recipe's 90 epochs in full size; a CPU an eighth of the width, and few."""
    chosen = setting.flags if setting.cuda else (*setting.flags, "--epochs", "4")
    if name == RECIPE:
        return ("--recipe", "paper", *chosen[2:])
    off = SWITCHES[name].off(setting.recipe) if name in SWITCHES else setting.recipe
    return (*chosen, *as_arguments(off, setting.recipe))


def result(setting: Setting, book: Book, name: str, seed: int) -> Result:
    """The table's numbers. OutOfTime if it has to go on another time."""
    run_name = f"{name.replace(' ', '-')}-{seed}"
    folder, log = runs(setting, book), setting.out / "logs" / book.mark / f"{run_name}.txt"
    done = finished(log)
    if done is None:
        arguments = (
            "--shards",
            str(setting.jpeg),
            "--runs",
            str(folder),
            "--run",
            run_name,
            *flags(setting, name),
            "--seed",
            str(seed),
            *"--gpus 1 --save-every 30".split(),
        )
        if trained(arguments, seconds=max(1.0, book.left - 30), log=log) is None:
            raise OutOfTime
        done = finished(log)
        if done is None:
            raise RuntimeError("training ended without a result line")
    if (name, seed) != (WHOLE, FIRST):  # figures are drawn of that one
        shutil.rmtree(folder / run_name / "checkpoints", ignore_errors=True)
    found: Result = dict(done)
    for top in ("top1", "top5"):
        for views in ("", "_10view"):
            if top + views in done:
                found[f"error {top}{views}, %"] = 100 * (1 - float(str(found.pop(top + views))))
    return found


def runs(setting: Setting, book: Book) -> Path:
    """Of this book: a training on another machine or other data is not taken for one of its own."""
    return setting.out / "runs" / book.mark


def drawing(setting: Setting, book: Book) -> list[str]:
    return [
        "figures",
        "--runs",
        str(runs(setting, book)),
        "--run",
        f"{WHOLE}-{FIRST}",
        "--shards",
        str(setting.jpeg),
        "--out",
        str(setting.out / "figures"),
        "--search",
        str(SEARCHED),
        *"--only conv1 top5 neighbours".split(),
    ]


def figures(setting: Setting, book: Book) -> Result:
    """The paper's, of the whole network: by name the PNG, relative to the page. OutOfTime as for
    trainings."""
    run_folder = runs(setting, book) / f"{WHOLE}-{FIRST}"
    if outcome(run_folder) != "finished":
        raise RuntimeError("the whole network's training did not come to its end")
    fault = timed(setting.out / "logs" / "figures.txt", drawing(setting, book), book.left)
    if fault and OVER in fault:
        raise OutOfTime
    if fault:
        raise RuntimeError(fault)
    shutil.rmtree(run_folder / "checkpoints", ignore_errors=True)
    return {
        path.stem: f"figures/{path.name}"
        for path in sorted((setting.out / "figures").glob("*.png"))
    }


def finished(log: Path) -> dict[str, float] | None:
    """What the line for machines says at the end of a run's output."""
    if not log.exists():
        return None
    lines = [
        line for line in log.read_text(errors="replace").splitlines() if line.startswith("result ")
    ]
    if not lines:
        return None
    pairs = (part.partition("=") for part in lines[-1].split()[1:])
    return {key: float(value) for key, _, value in pairs}
