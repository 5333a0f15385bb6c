"""Two ranks on one device over gloo, which NCCL refuses, follow one: the same batches, losses and
network."""

from __future__ import annotations

import shutil
from dataclasses import replace
from functools import partial
from typing import Any

from benchmarks.report.plan import Measurement
from benchmarks.report.results import Result
from benchmarks.report.setting import Setting, stage
from gratis.history import records
from gratis.train.paper.arguments import recipe_flags
from gratis.train.recipes import RECIPES

BATCH, WIDTH = {True: 400, False: 80}, {True: 0.25, False: 1 / 16}  # some ten steps, and five
CLOSE = 1e-3  # relative: a GPU's library adds in any order


def measurements(*, cuda: bool) -> list[Measurement]:
    words = {1: "two ranks, half of each batch,", 2: "two ranks, a tower each,"}
    return [
        Measurement(
            "e",
            f"{words[towers]} against one",
            partial(pair, towers=towers),
            (30 if cuda else 20) / towers,  # the first trains the one too
            first=towers == 1,
        )
        for towers in (1, 2)
    ]


def pair(setting: Setting, *, towers: int) -> Result:
    """An epoch in float32, eager: the mean loss of training and the validation's, of one rank and
    of two. RuntimeError where they part."""
    one = trained(setting, "one-rank", gpus=1)
    two = trained(setting, f"two-ranks-{towers}", gpus=2, share_device=True, tower_ranks=towers)
    apart = {name: abs(one[name] - two[name]) / one[name] for name in one}
    if (most := max(apart.values())) > CLOSE:
        raise RuntimeError(f"{one} of one rank, {two} of two: apart by {most:.2g} of it")
    shares: Result = {f"{name}, apart by a share of": value for name, value in apart.items()}
    return {f"{name} of two": value for name, value in two.items()} | shares


def trained(setting: Setting, name: str, **options: Any) -> dict[str, float]:
    """Losses of a run that is made unless it is there."""
    runs, side = setting.out / "runs", setting.recipe.image_size
    base = RECIPES["sample"]
    recipe = replace(
        base,
        image_size=side,
        crop=side * 7 // 8,
        width=WIDTH[setting.cuda],
        batch=BATCH[setting.cuda],
        epochs=1,
    )
    known = records(runs / name) if (runs / name).exists() else []
    if not any(record["kind"] == "end" and record["outcome"] == "finished" for record in known):
        shutil.rmtree(runs / name, ignore_errors=True)
        options |= {"shards": setting.jpeg, "runs": runs, "run": name, "port": 0}
        options |= {"recipe": "sample", "compile": "off", "save_every": 0, "seed": 1}
        stage("train", recipe_flags(recipe, base), device=setting.device, **options)
        known = records(runs / name)
    steps = [record for record in known if record["kind"] == "step"]
    images = sum(record["images"] for record in steps)
    return {
        "training loss": sum(record["loss"] * record["images"] for record in steps) / images,
        "validation loss": next(record["nll"] for record in known if record["kind"] == "eval"),
    }
