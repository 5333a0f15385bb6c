"""A model of time per step on 2 to 64 GPUs: `python -m train scaling`, `python -m train scaling --tflops 300`.

step = compute + exchanges between towers + what of the gradients' all-reduce backward does not hide

- compute: the plan's FLOPs of one GPU's share over the rate that one GPU was seen to achieve (`--tflops`, which
  `python -m train bench` measures on yours; the default is a guess, and says so)
- towers: what the summary's rows say one rank sends, forward and backward, over the link inside a node, and a latency
  for each of the eleven exchanges; nothing else can run meanwhile, as in 2012
- gradients: a ring over the data axis sends 2 (n - 1) / n of a rank's parameters' bytes, over the slowest link in it.
  The dense layers hold 96 % of them and come first in backward, so all but a tenth of backward, which is two thirds of
  compute, hides them
- the loader is taken to be free: that is what the bench's ratio is about

Bandwidths are the vendors' per direction, of which collectives are taken to reach four fifths: PCIe 4.0 x16 31.5 GB/s,
NVLink 4 450 GB/s, InfiniBand NDR 50 GB/s per GPU. Eight GPUs a node; beyond, the data axis crosses InfiniBand.
What it leaves out: slower kernels at small batches, stragglers, contention on a shared PCIe switch.
"""

from __future__ import annotations

from dataclasses import dataclass

from rich.console import Console
from rich.table import Table

from preprocess.errors import UserError
from train.layers import plan
from train.options import Fields, Name, read
from train.recipes import RELEASED, Recipe
from train.summary import CLASSES, FLOAT, backward_macs, exchanges

REACHED = 0.8  # of a link's nominal bandwidth
LATENCY_S = 20e-6  # of one collective
HIDDEN = 0.9 * 2 / 3  # of compute, behind which gradients travel
NODE = 8  # GPUs


@dataclass(frozen=True, kw_only=True)
class Link:
    name: str
    bytes_per_s: float  # nominal, per direction and GPU


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
    """One step of `recipe.batch` images over gpus / towers pairs (or singles). flops is one GPU's rate per second."""
    layers = plan(recipe, CLASSES)
    data = gpus // towers
    macs = sum(own.macs for own in layers.values()) + backward_macs(layers)
    compute_s = 2 * macs * recipe.batch / gpus / flops
    rows = exchanges(recipe, CLASSES) if towers == 2 else []
    sent = sum(row.forward + row.backward for row in rows) / 2 * recipe.batch / data * bytes_each  # by one of the two
    collectives = sum(1 + (row.backward > 0) for row in rows)
    towers_s = sent / (REACHED * inside.bytes_per_s) + collectives * LATENCY_S
    link = inside if gpus <= NODE else min(inside, INFINIBAND, key=lambda one: one.bytes_per_s)
    parameters = sum(own.parameters for own in layers.values()) / towers
    ring_s = 2 * (data - 1) / data * parameters * bytes_each / (REACHED * link.bytes_per_s)
    ring_s += 2 * (data - 1) * LATENCY_S
    return Predicted(compute_s=compute_s, towers_s=towers_s, gradients_s=max(0.0, ring_s - HIDDEN * compute_s))


@dataclass(frozen=True, kw_only=True)
class Scaling:
    """Predicts images per second on 2 to 64 GPUs, pairs of towers against plain data parallelism."""

    tflops: float = 200.0
    """That one GPU achieves in training: `python -m train bench` measures it. The default is a guess."""
    batch_per_gpu: int = 512
    wire_bytes: int = 4
    """Of a feature or gradient in transit; 2 with --wire bfloat16."""
    recipe: Name = "released"
    """Where the fields below begin."""
    fields: Fields = RELEASED

    def __post_init__(self) -> None:
        if not self.tflops > 0 or self.batch_per_gpu < 1 or self.wire_bytes not in (2, 4):
            raise UserError("--tflops must be above 0, --batch-per-gpu at least 1, --wire-bytes 2 or 4")


def main(arguments: list[str]) -> None:
    def make(name: Name, fields: Recipe) -> Scaling:
        return Scaling(recipe=name, fields=fields)

    options = read(make, arguments, "released", "python -m train scaling")
    title = f"{options.recipe}, {options.batch_per_gpu} images and {options.tflops:g} TFLOP/s a GPU"
    Console(width=110).print(_table(options, title))


def _table(options: Scaling, title: str) -> Table:
    from dataclasses import replace

    table = Table(title=title)
    for heading in ("GPUs", "link", "layout", "compute ms", "towers ms", "gradients ms", "images/s", "efficiency"):
        table.add_column(heading, justify="left" if heading in ("link", "layout") else "right")
    for inside in (PCIE4, NVLINK):
        for gpus in (2, 4, 8, 16, 32, 64):
            recipe = replace(options.fields, batch=options.batch_per_gpu * gpus)
            for towers in sorted({options.fields.towers, 1}, reverse=True):
                found = predict(
                    recipe, gpus=gpus, towers=towers, flops=options.tflops * 1e12, inside=inside,
                    bytes_each=options.wire_bytes,
                )  # fmt: skip
                link = inside.name if gpus <= NODE else f"{inside.name}, InfiniBand"
                parts = (found.compute_s, found.towers_s, found.gradients_s)
                table.add_row(
                    str(gpus), link, "pairs" if towers == 2 else "data", *(f"{1e3 * part:.2f}" for part in parts),
                    f"{recipe.batch / found.step_s:,.0f}", f"{found.compute_s / found.step_s:.0%}",
                )  # fmt: skip
    return table
