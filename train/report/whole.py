"""Part 5: whole trainings, then the ablations. Each is a run of `python -m train`: stopped at the part's end it has
saved, and the next call goes on with it."""

from __future__ import annotations

import shutil
from functools import partial
from pathlib import Path

from train.report.book import Book, OutOfTime, Result
from train.report.live import trained
from train.report.setting import Setting

PART = 5
SEEDS = (0, 1, 2)
LEAST_S = 60.0  # a run is not begun for less
VARIANTS: dict[str, tuple[str, ...]] = {
    "whole": (),
    "no response normalisation": ("--no-lrn", "--no-map-norm"),
    "separate pooling": ("--pool", "separate"),
    "one tower": ("--towers", "1", "--tower-ranks", "1"),
    "no colour noise": ("--noise", "off"),
    "no dropout": ("--dropout", "off"),
}
PAPER = {"no response normalisation": "1.4 / 1.2", "separate pooling": "0.4 / 0.3", "one tower": "1.7 / 1.2"}
"""Points of top-1 / top-5 error that the paper says each is worth. One tower is of half the kernels there, all here."""


def run(setting: Setting, book: Book) -> None:
    plans = [(name, seed) for seed in SEEDS for name in VARIANTS]
    if setting.cuda:
        plans += [("paper recipe", seed) for seed in SEEDS]
    for name, seed in plans:
        command = f"python -m train {' '.join(flags(setting, name))} --seed {seed}"
        book.measure(PART, f"{name}, seed {seed}", command, partial(result, setting, book, name, seed),
                     needs=LEAST_S)  # fmt: skip


def flags(setting: Setting, name: str) -> tuple[str, ...]:
    """A GPU trains the recipe's 90 epochs in full size; a CPU an eighth of the width, and few."""
    chosen = setting.flags if setting.cuda else (*setting.flags, "--epochs", "4")
    if name == "paper recipe":
        return ("--recipe", "paper", *chosen[2:])
    return (*chosen, *VARIANTS[name])


def result(setting: Setting, book: Book, name: str, seed: int) -> Result:
    """The table's numbers. OutOfTime if it has to go on another time."""
    run_name = f"{name.replace(' ', '-')}-{seed}"
    folder = setting.out / "runs"
    done = finished(setting.out / "logs" / f"{run_name}.txt")
    if done is None:
        shards = setting.jpeg
        arguments = ("--shards", str(shards), "--runs", str(folder), "--run", run_name, *flags(setting, name),
                     "--seed", str(seed), "--gpus", "1", "--save-every", "30")  # fmt: skip
        log = setting.out / "logs" / f"{run_name}.txt"
        if trained(arguments, seconds=max(1.0, book.left - 30), log=log) is None:
            raise OutOfTime
        done = finished(log)
        if done is None:
            raise RuntimeError("training ended without a result line")
    shutil.rmtree(folder / run_name / "checkpoints", ignore_errors=True)
    found: Result = dict(done)
    for top in ("top1", "top5"):
        for views in ("", "_10view"):
            if top + views in done:
                found[f"error {top}{views}, %"] = 100 * (1 - float(str(found.pop(top + views))))
    return found


def finished(log: Path) -> dict[str, float] | None:
    """What the line for machines says at the end of a run's output."""
    if not log.exists():
        return None
    lines = [line for line in log.read_text(errors="replace").splitlines() if line.startswith("result ")]
    if not lines:
        return None
    pairs = (part.partition("=") for part in lines[-1].split()[1:])
    return {key: float(value) for key, _, value in pairs}
