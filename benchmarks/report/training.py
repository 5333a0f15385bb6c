"""Part 3: training alone, on batches that stay on the device; against the plain network and the
matrix rate."""

from __future__ import annotations

import itertools
import statistics
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from typing import Literal

import torch

from benchmarks.report.results import Measurement, Result, ResultFile
from benchmarks.report.setting import Setting, rounds, steps_for
from benchmarks.report.stages import by_stage
from benchmarks.train.bench import (
    baseline_step,
    matmul_flops,
    matmul_step,
    one_round,
    resident_batch,
    step_flops,
    training_step,
)
from benchmarks.train.update import update_ratios
from gratis.train.settings import Choice

ACCOUNT, SLOWEST = "where the time goes", 3  # layers
PAIRS = 60  # of updates
COMPILE: dict[bool, tuple[Choice, ...]] = {
    True: ("off", "on"),
    False: ("off",),
}  # on a GPU, on a CPU


Compute = Literal["float32", "bfloat16"]
PRECISIONS: dict[str, Compute] = {"float32": "float32", "tf32": "float32", "bfloat16": "bfloat16"}


def precisions(setting: Setting) -> list[str]:
    """On a CPU float32 alone: one without bfloat16's instructions takes a hundred times as long for
    a product."""
    return list(PRECISIONS) if setting.cuda else ["float32"]


def measurements(setting: Setting, _: ResultFile) -> Iterator[Measurement]:
    for name in precisions(setting):
        yield Measurement(f"matrix product, {name}", "torch.mm", partial(matrix, setting, name))
    numbers = "autocast to bfloat16" if setting.cuda else "float32"
    baseline = f"eager, channels first, {numbers}, torch.optim.SGD"
    for batch in setting.batches:
        for compile, name in itertools.product(COMPILE[setting.cuda], precisions(setting)):
            make = partial(measure_ours, setting, name, compile, batch)
            title = f"ours, {name}{', compiled' if compile == 'on' else ''}, batch {batch}"
            yield Measurement(title, "bench.training_step", make, needs=40)
        make = partial(measure_torchvision, setting, batch)
        yield Measurement(f"torchvision's layout, batch {batch}", baseline, make, needs=30)
    yield Measurement("update rule", "update.update_ratios", partial(updates, setting), needs=20)
    middle = setting.batches[0]
    for name in (name for name in precisions(setting) if name != "tf32"):
        title, make = f"{ACCOUNT}, {name}, batch {middle}", partial(account, setting, name, middle)
        yield Measurement(title, "torch.profiler, eager", make, needs=30)


@contextmanager
def products(precision: str) -> Iterator[None]:
    """Products of that precision on a GPU; the trainer itself leaves TF32 off."""
    before = torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = precision == "tf32"
    try:
        yield
    finally:
        torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32 = before


def seconds(step: Callable[[], object], setting: Setting) -> list[float]:
    """Per step, by round; compiling and finding the fastest algorithms is over before."""
    for _ in rounds(3):
        step()
    steps = steps_for(step, setting)
    return [one_round({"": step}, steps, setting.device)[""] for _ in rounds(setting.rounds)]


def matrix(setting: Setting, precision: str) -> Result:
    return {"TFLOP/s": matrix_rates(setting, precision)}


def matrix_rates(setting: Setting, precision: str) -> list[float]:
    """TFLOP/s of a large matrix product, by round."""
    with products(precision):
        times = seconds(matmul_step(PRECISIONS[precision], setting.device), setting)
    return [matmul_flops(setting.device) / each / 1e12 for each in times]


def measure_ours(setting: Setting, precision: str, compile: Choice, batch: int) -> Result:
    recipe = replace(setting.recipe, batch=batch, compute=PRECISIONS[precision])
    with products(precision), torch.random.fork_rng(devices=[]):
        images, labels = resident_batch(recipe, setting.device)
        step = training_step(recipe, setting.device, compile)
        times = seconds(lambda: step(images, labels), setting)
    achieved = [step_flops(recipe) / each / 1e12 for each in times]
    possible = statistics.median(matrix_rates(setting, precision))
    return {
        "images/s": [batch / each for each in times],
        "TFLOP/s": achieved,
        "share of the matrix rate": statistics.median(achieved) / possible,
    }


def measure_torchvision(setting: Setting, batch: int) -> Result:
    """torchvision's network as most would write its training: eager, channels first, on a GPU
    autocast to bfloat16."""
    recipe = replace(setting.recipe, batch=batch)
    with torch.random.fork_rng(devices=[]):
        images, labels = resident_batch(recipe, setting.device)
        images = (images / 58).contiguous()  # channels first
        step = baseline_step(recipe, setting.device, autocast=setting.cuda)
        times = seconds(lambda: step(images, labels), setting)
    return {"images/s": [batch / each for each in times]}


def updates(setting: Setting) -> Result:
    """Of single updates that take turns: the original rule's time over that of torch's fused
    SGD."""
    return {"original rule over fused SGD": update_ratios(setting.recipe, setting.device, PAIRS)}


def account(setting: Setting, precision: str, batch: int) -> Result:
    """Where a step's time goes: the slowest layers, and by kind of work. Eager, forward and
    backward.

    On a GPU also how much of the time it works at all: the rest it waits for the host to tell it
    what to do."""
    recipe = replace(setting.recipe, batch=batch, compute=PRECISIONS[precision])
    with torch.random.fork_rng(devices=[]):
        shares, busy = by_stage(recipe, setting.device)
        kinds: dict[str, float] = {}
        for stage, share in shares.items():
            kinds[kind(stage)] = kinds.get(kind(stage), 0.0) + share
        result: Result = {"slowest": largest(shares, SLOWEST), "by kind": largest(kinds)}
        if not setting.cuda:
            return result
        step = training_step(recipe, setting.device, "off")
        resident = resident_batch(recipe, setting.device)
        step_s = statistics.median(seconds(lambda: step(*resident), setting))
    return result | {"device busy, share of the time": min(1.0, busy / step_s)}


def kind(stage: str) -> str:
    first = stage.partition(" ")[0]
    if first.startswith("conv"):
        return "convolutions"
    return "dense layers" if first.startswith("fc") else first


def largest(shares: dict[str, float], most: int | None = None) -> str:
    order = sorted(shares, key=lambda name: -shares[name])[:most]
    return ", ".join(f"{name} {shares[name]:.1%}" for name in order)
