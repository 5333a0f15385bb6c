"""Part 5: the whole network, and the network with one part switched off, trained by `gratis ablate`
as far as the part's time goes. What is unfinished goes on with the next call."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from dataclasses import replace
from functools import partial

from benchmarks.report.results import Measurement, OutOfTime, Result, ResultFile
from benchmarks.report.setting import Setting
from gratis.history import outcome
from gratis.processes import OVER
from gratis.train.paper.ablate import Ablate, ablate_within, switchable

NAME = "ablations"
SEEDS = {True: "0,1,2", False: "0,1"}  # on a GPU, on a CPU
CPU_EPOCHS = 4  # on a GPU the recipe's
LEAST_S, SAVING_S = 60.0, 30.0  # to begin a training, and for it to save itself


def measurements(setting: Setting, results: ResultFile) -> Iterator[Measurement]:
    options = ablate_options(setting, results)
    command = f"gratis ablate --recipe {options.recipe} --seeds {options.seeds} ..."
    yield Measurement(NAME, command, partial(ablations, options, results), LEAST_S, stops=True)


def ablate_options(setting: Setting, results: ResultFile) -> Ablate:
    """In folders of this machine, code and data: results of another are not taken for its own."""
    recipe = setting.recipe
    return Ablate(
        shards=str(setting.jpeg),
        fields=switchable(recipe),
        seeds=SEEDS[setting.cuda],
        runs=results.runs,
        out=results.runs / "ablation",
        gpus=1,
        recipe=setting.recipe_name,
        whole=recipe if setting.cuda else replace(recipe, epochs=CPU_EPOCHS),
    )


def ablations(options: Ablate, results: ResultFile) -> Result:
    """Top-1 errors by setting, one a seed. OutOfTime if trainings are missing."""
    seconds = max(1.0, results.left - SAVING_S)
    state = ablate_within(seconds, results.runs / "ablate.log", options)
    for checkpoints in options.runs.glob("*/checkpoints"):  # of the whole AlexNet 1 GB a run
        if outcome(checkpoints.parent) == "finished":
            shutil.rmtree(checkpoints)
    if OVER in state:
        raise OutOfTime
    if state != "done":
        raise RuntimeError(state)
    rows = json.loads((results.runs / "ablation" / "ablation.json").read_text())["rows"]
    return {f"top-1 error in %, {row['words']}": row["top1"] or "none" for row in rows}


def table(results: ResultFile) -> list[str]:
    """What is measured so far, as Markdown; empty if nothing is."""
    path = results.runs / "ablation" / "ablation.md"
    return [path.read_text()] if path.exists() else []
