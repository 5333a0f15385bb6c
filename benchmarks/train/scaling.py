"""A model of time per step on 2 to 64 GPUs: `gratis bench scaling`, `gratis bench scaling --tflops
300`.

step = compute + exchanges between towers + what of the gradients' all-reduce backward does not hide

- compute: the plan's FLOPs of one GPU's share over the rate that one GPU was seen to achieve
  (`--tflops`, which `gratis bench train` measures on yours; the default is a guess, and says so)
- towers: what the summary's rows say one rank sends, forward and backward, over the link inside a
  node, and a latency for each of the eleven exchanges; nothing else can run meanwhile, as in 2012
- gradients: a ring over the data axis sends 2 (n - 1) / n of a rank's parameters' bytes, over the
  slowest link in it. The dense layers hold 96 % of them and come first in backward, so all but a
  tenth of backward, which is two thirds of compute, hides them
- the loader is taken to be free: that is what the bench's ratio is about

Bandwidths are the vendors' per direction, of which collectives are taken to reach four fifths: PCIe
4.0 x16 31.5 GB/s, NVLink 4 450 GB/s, InfiniBand NDR 50 GB/s per GPU. Eight GPUs a node; beyond, the
data axis crosses InfiniBand. What it leaves out: slower kernels at small batches, stragglers,
contention on a shared PCIe switch.

Prediction against measurement: `gratis bench scaling --measured runs/ONE runs/MESH --link-gb 1.3
--latency-us 150` takes one GPU's rate from a run of one process, predicts the step of the other
run's mesh over that link, and prints what that run's own records say beside it. No GPU has been
measured yet. On two CPU cores, gloo over loopback (1 MiB in 0.63 ms, a word in 0.12 ms: best of
40), recipe `tiny`, batch 64, the model says that two towers lose 5 % against one process (7 of 155
ms a step are exchanges); the runs in the README gained 2 % (n = 1 each): that a thread a process
needs no thread to wait for outweighs it, and the model leaves that out."""

from __future__ import annotations

import json
import statistics
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from gratis.errors import GratisError
from gratis.history import records
from gratis.train.analysis.summary import CLASSES, FLOAT, backward_macs, exchanges
from gratis.train.network.layers import plan
from gratis.train.options import Fields, read
from gratis.train.recipes import RELEASED, Recipe, RecipeName
from gratis.train.settings import Launch

REACHED = 0.8  # of a link's nominal bandwidth
LATENCY_S = 20e-6  # of one collective
HIDDEN = 0.9 * 2 / 3  # of compute, behind which gradients travel
NODE = 8  # GPUs
SKIPPED = 2  # first records of an attempt, which wait for caches to fill


@dataclass(frozen=True, kw_only=True)
class Link:
    name: str
    bytes_per_s: float  # nominal, per direction and GPU
    latency_s: float = LATENCY_S


PCIE4, NVLINK, INFINIBAND = (
    Link(name=name, bytes_per_s=gigabytes * 1e9)
    for name, gigabytes in (("PCIe 4", 31.5), ("NVLink 4", 450.0), ("InfiniBand NDR", 50.0))
)


@dataclass(frozen=True, kw_only=True)
class Predicted:
    """Seconds of one step."""

    compute_s: float
    towers_s: float
    gradients_s: float  # not hidden behind backward

    @property
    def step_s(self) -> float:
        return self.compute_s + self.towers_s + self.gradients_s


def predict(
    recipe: Recipe, *, gpus: int, towers: int, flops: float, inside: Link, bytes_each: int = FLOAT
) -> Predicted:
    """One step of `recipe.batch` images over gpus / towers pairs (or singles). flops is one GPU's
    rate per second."""
    classes = recipe.classes or CLASSES
    layers = plan(recipe, classes)
    data = gpus // towers
    macs = sum(own.macs for own in layers.values()) + backward_macs(layers)
    compute_s = 2 * macs * recipe.batch / gpus / flops
    rows = exchanges(recipe, classes) if towers == 2 else []
    # by one of the two
    sent = sum(row.forward + row.backward for row in rows) / 2 * recipe.batch / data * bytes_each
    collectives = sum(1 + (row.backward > 0) for row in rows)
    towers_s = sent / (REACHED * inside.bytes_per_s) + collectives * inside.latency_s
    link = inside if gpus <= NODE else min(inside, INFINIBAND, key=lambda one: one.bytes_per_s)
    parameters = sum(own.parameters for own in layers.values()) / towers
    ring_s = 2 * (data - 1) / data * parameters * bytes_each / (REACHED * link.bytes_per_s)
    ring_s += 2 * (data - 1) * link.latency_s
    return Predicted(
        compute_s=compute_s, towers_s=towers_s, gradients_s=max(0.0, ring_s - HIDDEN * compute_s)
    )


@dataclass(frozen=True, kw_only=True)
class Scaling:
    """Predicts images per second on 2 to 64 GPUs, pairs of towers against plain data
    parallelism."""

    tflops: float = 200.0
    """That one GPU achieves in training: `gratis bench train` measures it. The default is a
    guess."""
    batch_per_gpu: int = 512
    wire_bytes: int = 4
    """Of a feature or gradient in transit; 2 with --wire bfloat16."""
    measured: tuple[Path, Path] | None = None
    """Two runs of one recipe and machine, of one process and of a mesh: predicts the second, and
    compares."""
    link_gb: float = 31.5
    """With --measured: the link's nominal gigabytes per second and direction."""
    latency_us: float = 20.0
    """With --measured: of one collective."""
    recipe: RecipeName = "released"
    """Where the fields below begin."""
    fields: Fields = RELEASED

    def __post_init__(self) -> None:
        if not (self.link_gb > 0 and self.latency_us >= 0):
            raise GratisError("--link-gb must be above 0, --latency-us at least 0")
        if not self.tflops > 0 or self.batch_per_gpu < 1 or self.wire_bytes not in (2, 4):
            raise GratisError(
                "--tflops must be above 0, --batch-per-gpu at least 1, --wire-bytes 2 or 4"
            )


def main(arguments: list[str]) -> None:
    def make(name: RecipeName, fields: Recipe) -> Scaling:
        return Scaling(recipe=name, fields=fields)

    options = read(make, arguments, "released", "gratis bench scaling")
    if options.measured:
        link = Link(
            name="link", bytes_per_s=options.link_gb * 1e9, latency_s=options.latency_us * 1e-6
        )
        Console(width=110).print(
            _comparison(seen(options.measured[0]), seen(options.measured[1]), link)
        )
        return
    title = f"{options.recipe}, {options.batch_per_gpu} images and {options.tflops:g} TFLOP/s a GPU"
    Console(width=110).print(_table(options, title))


@dataclass(frozen=True, kw_only=True)
class Seen:
    """What a run's last attempt says of itself. Seconds are medians over its records, of one
    step."""

    recipe: Recipe  # with the dataset's number of classes
    gpus: int
    towers: int
    cpu: bool
    wire_bytes: int
    step_s: float
    exchange_s: float  # of the rank that waits least for others


def seen(folder: Path) -> Seen:
    """GratisError where the run has too few records."""
    start = next((record for record in records(folder)[::-1] if record["kind"] == "start"), None)
    ranks = (
        [_steps(folder, rank, start["attempt"]) for rank in range(start["world"])] if start else []
    )
    if start is None or not all(len(own) > SKIPPED for own in ranks):
        raise GratisError(
            f"{folder} has no records of training to compare with; name a run that trained for a "
            f"while"
        )
    launch = Launch.from_json(json.dumps(start["config"]))
    each = [
        [statistics.median(step[key] / step["steps"] for step in own[SKIPPED:]) for own in ranks]
        for key in ("wall_s", "exchange_s")
    ]
    return Seen(
        recipe=replace(launch.recipe, classes=start["classes"]),
        gpus=start["world"],
        towers=start["mesh"]["tower"],
        cpu=start["device"] == "cpu",
        wire_bytes=FLOAT if launch.wire == "float32" else FLOAT // 2,
        step_s=max(each[0]),
        exchange_s=min(each[1]),
    )


def _steps(folder: Path, rank: int, attempt: int) -> list[dict[str, Any]]:
    return [r for r in records(folder, rank) if r["kind"] == "step" and r["attempt"] == attempt]


def _comparison(one: Seen, mesh: Seen, link: Link) -> Table:
    if one.gpus != 1 or replace(one.recipe, batch=mesh.recipe.batch) != mesh.recipe:
        raise GratisError("--measured wants a run of one process first, and both of one recipe")
    layers = plan(one.recipe, one.recipe.classes or CLASSES)
    macs = sum(own.macs for own in layers.values()) + backward_macs(layers)
    # processes without GPUs of their own share the machine that the one process had to itself
    flops = 2 * macs * one.recipe.batch / one.step_s / (mesh.gpus if mesh.cpu else 1)
    found = predict(
        mesh.recipe,
        gpus=mesh.gpus,
        towers=mesh.towers,
        flops=flops,
        inside=link,
        bytes_each=mesh.wire_bytes,
    )
    table = Table(
        title=f"{mesh.gpus // mesh.towers} x {mesh.towers} against one, batch {mesh.recipe.batch}"
    )
    for heading in ("ms a step", "predicted", "measured"):
        table.add_column(heading, justify="right")
    exchanged = found.towers_s + found.gradients_s
    for name, predicted, measured in (
        ("step", found.step_s, mesh.step_s),
        ("of it exchanges", exchanged, mesh.exchange_s),
        ("one process", one.step_s, one.step_s),
    ):
        table.add_row(name, f"{1e3 * predicted:.2f}", f"{1e3 * measured:.2f}")
    return table


def _table(options: Scaling, title: str) -> Table:
    table = Table(title=title)
    for heading in (
        "GPUs",
        "link",
        "layout",
        "compute ms",
        "towers ms",
        "gradients ms",
        "images/s",
        "efficiency",
    ):
        table.add_column(heading, justify="left" if heading in ("link", "layout") else "right")
    for inside in (PCIE4, NVLINK):
        for gpus in (2, 4, 8, 16, 32, 64):
            recipe = replace(options.fields, batch=options.batch_per_gpu * gpus)
            for towers in sorted({options.fields.towers, 1}, reverse=True):
                found = predict(
                    recipe,
                    gpus=gpus,
                    towers=towers,
                    flops=options.tflops * 1e12,
                    inside=inside,
                    bytes_each=options.wire_bytes,
                )
                link = inside.name if gpus <= NODE else f"{inside.name}, InfiniBand"
                parts = (found.compute_s, found.towers_s, found.gradients_s)
                table.add_row(
                    str(gpus),
                    link,
                    "pairs" if towers == 2 else "data",
                    *(f"{1e3 * part:.2f}" for part in parts),
                    f"{recipe.batch / found.step_s:,.0f}",
                    f"{found.compute_s / found.step_s:.0%}",
                )
    return table
