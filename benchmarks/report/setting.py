"""What is measured on: a device, and datasets that are made where they are missing."""

from __future__ import annotations

import os
import shutil
import subprocess
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path

import numpy as np
import torch

from benchmarks.timing import measure
from gratis.dataset import (
    MANIFEST,
    STATS,
    Index,
    Manifest,
    Shard,
    read_index,
    read_manifest,
    require_split,
    require_square,
    write_index,
)
from gratis.errors import GratisError
from gratis.processes import command_of_child
from gratis.train.paper.arguments import flags
from gratis.train.recipes import RECIPES, Recipe, RecipeName

# training images a class that are drawn, of ten: four batches of 1,024 on a GPU
DRAWN = {True: 410, False: 40}
SIDE = {True: 256, False: 128}
# How often each image is in the datasets that are loaded for their rate: epochs of so few images
# would end ten times a second, and their ends would be measured
REPEATS = {True: 8, False: 2}
ROUNDS_S = 20.0  # of a measurement's rounds: on a busy machine there are fewer, and n is smaller


@dataclass(frozen=True, kw_only=True)
class Setting:
    device: torch.device
    out: Path
    shards: Path | None = None
    src: str | None = None
    size: int | None = None
    train_shards: Path | None = None

    @property
    def cuda(self) -> bool:
        return self.device.type == "cuda"

    @property
    def side(self) -> int:
        return self.size or SIDE[self.cuda]

    @property
    def jpeg(self) -> Path:
        return self.shards or self.out / "data" / f"jpeg-{self.side}"

    @property
    def raw(self) -> Path:
        return self.out / "data" / f"raw-{self.manifest.hash[:8]}"

    @property
    def long_jpeg(self) -> Path:
        """The same samples, each several times."""
        return self._long(self.jpeg)

    @property
    def long_raw(self) -> Path:
        return self._long(self.raw)

    def _long(self, root: Path) -> Path:
        return self.out / "data" / f"long-{root.name}-{self.manifest.hash[:8]}"

    @cached_property
    def manifest(self) -> Manifest:
        return read_manifest(self.jpeg)

    @property
    def recipe_name(self) -> RecipeName:
        return "released" if self.cuda else "sample"

    @property
    def recipe(self) -> Recipe:
        """The network, at full width on a GPU."""
        side, width = self.manifest.image_size, 1.0 if self.cuda else 1 / 16
        own = RECIPES[self.recipe_name]
        return replace(own, image_size=side, crop=side * 7 // 8, width=width)

    @property
    def rounds(self) -> int:
        return 5 if self.cuda else 2

    @property
    def round_s(self) -> float:
        """Of training or loading in a round."""
        return 0.5 if self.cuda else 0.1

    def check_batch(self, batch: int) -> None:
        """RuntimeError where the split holds less than two batches."""
        samples = REPEATS[self.cuda] * self.manifest.splits["train"].samples
        if samples < 2 * batch:
            raise RuntimeError(f"{self.jpeg} has {samples:,} training images, too few for {batch}")


def prepare(setting: Setting) -> None:
    """Datasets that are missing are made: from `src`, or of a drawn sample; raw ones from the
    JPEGs' shards."""
    if setting.shards is None:
        src = setting.src
        if src is None:
            drawn = DRAWN[setting.cuda]
            src = str(setting.out / "data" / f"source-{drawn}")
            stage("sample", out=src, train_per_class=drawn)
        stage("shards", src=src, out=setting.jpeg, size=setting.side, codec="jpeg")
    check_shards(setting.jpeg)
    stage("shards", src=setting.jpeg, out=setting.raw, size=setting.recipe.image_size, codec="raw")
    lengthen(setting.jpeg, setting.long_jpeg, REPEATS[setting.cuda])
    lengthen(setting.raw, setting.long_raw, REPEATS[setting.cuda])


def lengthen(root: Path, out: Path, repeats: int) -> None:
    """A dataset whose training split has each sample so many times, in links to root's shards."""
    if (out / MANIFEST).exists():
        return
    shutil.rmtree(out, ignore_errors=True)
    out.mkdir(parents=True)
    manifest, index = read_manifest(root), read_index(root, "train")
    split, shards = manifest.splits["train"], list[Shard]()
    for shard in repeats * split.shards:
        name = f"train-{len(shards):05}.tar"
        for extension in (".tar", ".idx"):
            link = (out / name).with_suffix(extension)
            link.symlink_to((root / shard.name).with_suffix(extension).resolve())
        shards.append(replace(shard, name=name))
    present = {name: column for name, column in index._asdict().items() if column is not None}
    columns = {name: np.tile(column, repeats) for name, column in present.items()}
    first = np.repeat(np.arange(repeats, dtype=np.int32), len(index.label)) * len(split.shards)
    columns["shard"] = columns["shard"] + first
    sha256 = write_index(out, "train", Index(**columns))
    shutil.copy(root / STATS, out)
    whole = replace(split, shards=tuple(shards), index_sha256=sha256)
    (out / MANIFEST).write_bytes(replace(manifest, splits={"train": whole}).to_json())


def check_shards(shards: Path) -> None:
    """GratisError where they cannot be measured on."""
    manifest = read_manifest(shards)
    require_split(shards, manifest, "train")
    require_square(shards, manifest, "report")
    if manifest.codec != "jpeg":
        raise GratisError(
            f"--shards {shards} holds {manifest.codec} samples; give JPEG shards, the raw ones "
            f"are made"
        )


def steps_for(step: Callable[[], object], setting: Setting) -> int:
    """How many of these steps, which have been taken before, make a round."""
    step_s = measure(step, setting.device, calls=2).call_s
    return max(2, round(setting.round_s / step_s))


def rounds(count: int) -> Iterator[int]:
    """So many, or as many as begin within ROUNDS_S, at least one."""
    began = time.monotonic()
    for number in range(count):
        if number and time.monotonic() - began > ROUNDS_S:
            return
        yield number


def stage(
    verb: str, more: Sequence[str] = (), *, device: torch.device | None = None, **options: object
) -> str:
    """What `gratis VERB --option value ... MORE` prints, which knows when there is nothing to do.
    RuntimeError where it fails. It ends with this process. device: a CPU hides all GPUs from it."""
    hidden = {"CUDA_VISIBLE_DEVICES": ""} if device and device.type == "cpu" else {}
    done = subprocess.run(
        command_of_child([verb, *flags(**options), *more]),
        capture_output=True,
        text=True,
        env=os.environ | hidden,
    )
    if done.returncode:
        message = done.stderr.strip() or f"gratis {verb} failed"
        raise RuntimeError(message.splitlines()[-1].removeprefix("error: "))
    return done.stdout
