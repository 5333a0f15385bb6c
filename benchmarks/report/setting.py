"""What the parts work on: a device, datasets, and how much of it a part can do in its minutes."""

from __future__ import annotations

import math
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch

from benchmarks.timing import measure
from gratis.dataset import read_manifest, require_split, require_square
from gratis.errors import GratisError
from gratis.train.paper.arguments import flags
from gratis.train.recipes import RECIPES, Recipe, RecipeName

TRIED = 2
# training images a class: on a GPU enough for its largest batch, on a CPU quick
DRAWN = {True: 820, False: 100}
# of a measurement's rounds: on a busy machine there are fewer, and their n is smaller
MOST_S = 60.0


@dataclass(frozen=True, kw_only=True)
class Setting:
    device: torch.device
    out: Path
    jpeg: Path  # shards
    raw: Path
    recipe: Recipe
    recipe_name: RecipeName  # where the recipe began
    batches: tuple[int, ...]  # the one that matters most first
    free_batches: tuple[int, ...]  # of the free ratio
    rounds: int
    round_s: float  # of training or loading in a round
    runs: int = 5  # alternating ones of the free ratio

    @property
    def cuda(self) -> bool:
        return self.device.type == "cuda"


def prepare(
    out: Path, device: torch.device, shards: Path | None, src: str | None, size: int | None
) -> Setting:
    """Datasets that are missing are made: from `src`, or of a drawn sample; raw ones from the
    JPEGs' shards."""
    cuda = device.type == "cuda"
    side = size or (256 if cuda else 128)
    data = out / "data"
    jpeg = shards or data / "jpeg"
    if shards is None:
        if src is None:
            src = str(data / f"source-{DRAWN[cuda]}")
            stage("sample", out=src, train_per_class=DRAWN[cuda])
        stage("shards", src=src, out=jpeg, size=side, codec="jpeg")
    manifest = read_manifest(jpeg)
    require_split(jpeg, manifest, "train")
    require_square(jpeg, manifest, "report")
    if manifest.codec != "jpeg":
        raise GratisError(
            f"--shards {jpeg} holds {manifest.codec} samples; give JPEG shards, the raw ones "
            f"are made"
        )
    side = manifest.image_size
    raw = data / f"raw-{manifest.hash[:8]}"
    stage("shards", src=jpeg, out=raw, size=side, codec="raw")
    name: RecipeName = "released" if cuda else "sample"
    width = 1.0 if cuda else 0.125
    recipe = replace(RECIPES[name], image_size=side, crop=side * 7 // 8, width=width)
    own = sizes(cuda=cuda, images=manifest.splits["train"].samples)
    return Setting(out=out, jpeg=jpeg, raw=raw, recipe=recipe, recipe_name=name, **own)


def sizes(*, cuda: bool, images: int) -> dict[str, Any]:
    """Of a setting: what depends on the device, with batches that so many images fill."""
    wanted, free = ((512, 256, 128, 1024, 2048), (128, 512, 1024)) if cuda else ((64, 32), (32,))
    smallest = (max(2, images // 8 * 2),)
    return {
        "device": torch.device("cuda", 0) if cuda else torch.device("cpu"),
        "batches": tuple(size for size in wanted if 4 * size <= images) or smallest,
        "free_batches": tuple(size for size in free if 4 * size <= images) or smallest,
        "rounds": 5 if cuda else 3,
        "round_s": 2.0 if cuda else 1.0,
    }


def steps_for(step: Callable[[], object], setting: Setting) -> int:
    """How many of these steps, which have been taken before, make a round."""
    step_s = measure(step, setting.device, calls=TRIED).call_s
    return max(TRIED, math.ceil(setting.round_s / step_s))


def rounds(count: int) -> Iterator[int]:
    """So many, or as many as begin within MOST_S, at least one."""
    began = time.monotonic()
    for number in range(count):
        if number and time.monotonic() - began > MOST_S:
            return
        yield number


def stage(verb: str, **options: object) -> None:
    """`gratis VERB --option value ...`, which knows when there is nothing to do. GratisError where
    it fails."""
    command = [sys.executable, "-m", "gratis", verb, *flags(**options)]
    done = subprocess.run(command, stderr=subprocess.PIPE, text=True)
    if done.returncode:
        message = done.stderr.strip() or f"gratis {verb} failed"
        raise GratisError(message.splitlines()[-1].removeprefix("error: "))
