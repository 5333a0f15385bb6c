"""AlexNet alone, forward and backward, on one batch that stays on the device; beside
torchvision's."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from typing import Literal, NamedTuple

import torch

from benchmarks.report.plan import Measurement
from benchmarks.report.results import Result
from benchmarks.report.setting import Setting, rounds, steps_for
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

Compute = Literal["float32", "bfloat16"]
PRECISIONS: dict[str, Compute] = {"float32": "float32", "tf32": "float32", "bfloat16": "bfloat16"}
PAIRS = {True: 30, False: 3}  # of updates
COMPILE_S = 40.0


class Form(NamedTuple):
    """How the network is trained."""

    precision: str
    compile: Choice = "off"
    channels_last: bool = True

    def __str__(self) -> str:
        layout = "channels last" if self.channels_last else "channels first"
        compiled = "compiled" if self.compile == "on" else "eager"
        return f"{self.precision}, {compiled}, {layout}"


FORMS: dict[bool, tuple[Form, ...]] = {
    True: (
        Form("bfloat16"),
        Form("bfloat16", "on"),
        Form("tf32"),
        Form("float32"),
        Form("bfloat16", channels_last=False),
        Form("tf32", "on"),
        Form("float32", "on"),
    ),
    False: (Form("float32"), Form("float32", channels_last=False)),
}
BATCHES = {True: (512, 128, 256, 1024, 2048), False: (32,)}
FIRST = 2  # forms that are measured at the other sizes too


def measurements(*, cuda: bool) -> list[Measurement]:
    middle, *others = BATCHES[cuda]
    precision = "bfloat16" if cuda else "float32"
    rows = [_matrix(name, cuda) for name in (PRECISIONS if cuda else ["float32"])]
    rows += [_row(form, middle, cuda, place < FIRST + 1) for place, form in enumerate(FORMS[cuda])]
    make = partial(peer, precision=precision, batch=middle)
    name = f"torchvision's alexnet, {precision}, batch {middle}"
    rows.append(Measurement("c", name, make, 6 if cuda else 1, "torchvision"))
    for batch, form in itertools.product(others, FORMS[cuda][:FIRST]):
        rows.append(_row(form, batch, cuda, False))
    for batch in others:
        make = partial(peer, precision=precision, batch=batch)
        name = f"torchvision's alexnet, {precision}, batch {batch}"
        rows.append(Measurement("c", name, make, 6, "torchvision", first=False))
    rows.append(
        Measurement("c", "the original update rule", updates, 8 if cuda else 1, first=False)
    )
    return rows


def _matrix(precision: str, cuda: bool) -> Measurement:
    make = partial(matrix, precision=precision)
    return Measurement("c", f"limit: matrix product, {precision}", make, 3 if cuda else 0.5)


def _row(form: Form, batch: int, cuda: bool, first: bool) -> Measurement:
    compiled = form.compile == "on"
    seconds = (COMPILE_S if compiled else 6.0) if cuda else 2.0
    make = partial(ours, form=form, batch=batch)
    needs = "gcc and Python's headers" if compiled else ""
    return Measurement("c", f"{form}, batch {batch}", make, seconds, needs, first)


@contextmanager
def products(precision: str) -> Iterator[None]:
    """Products of that precision on a GPU; the trainer itself leaves TF32 off."""
    before = torch.get_float32_matmul_precision(), torch.backends.cudnn.allow_tf32
    torch.set_float32_matmul_precision("high" if precision == "tf32" else "highest")
    torch.backends.cudnn.allow_tf32 = precision == "tf32"
    try:
        yield
    finally:
        torch.set_float32_matmul_precision(before[0])
        torch.backends.cudnn.allow_tf32 = before[1]


def seconds(step: Callable[[], object], setting: Setting) -> list[float]:
    """Per step, by round; compiling and finding the fastest algorithms is over before."""
    for _ in range(3):
        step()
    steps = steps_for(step, setting)
    return [one_round({"": step}, steps, setting.device)[""] for _ in rounds(setting.rounds)]


def matrix(setting: Setting, *, precision: str) -> Result:
    """TFLOP/s of a large product."""
    with products(precision):
        times = seconds(matmul_step(PRECISIONS[precision], setting.device), setting)
    return {"TFLOP/s": [matmul_flops(setting.device) / each / 1e12 for each in times]}


def ours(setting: Setting, *, form: Form, batch: int) -> Result:
    recipe = replace(setting.recipe, batch=batch, compute=PRECISIONS[form.precision])
    with products(form.precision), torch.random.fork_rng(devices=[]):
        images, labels = resident_batch(recipe, setting.device)
        images = images if form.channels_last else images.contiguous()
        step = training_step(recipe, setting.device, form.compile, channels_last=form.channels_last)
        times = seconds(lambda: step(images, labels), setting)
    return {
        "images/s": [batch / each for each in times],
        "TFLOP/s": [step_flops(recipe) / each / 1e12 for each in times],
    } | peak(setting)


def peak(setting: Setting) -> Result:
    if not setting.cuda:
        return {}
    return {"peak memory, GB": torch.cuda.max_memory_allocated(setting.device) / 1e9}


def peer(setting: Setting, *, precision: str, batch: int) -> Result:
    """torchvision's network of its own size (width 1), as most would write its training: eager,
    torch.optim.SGD, on a GPU channels last and autocast."""
    from torchvision.models import alexnet

    recipe = replace(setting.recipe, batch=batch)
    with torch.random.fork_rng(devices=[]):
        images, labels = resident_batch(recipe, setting.device)
        network = alexnet().to(setting.device)
        network.to(memory_format=torch.channels_last)
        autocast = precision == "bfloat16"
        step = baseline_step(recipe, setting.device, autocast=autocast, network=network)
        times = seconds(lambda: step(images / 58, labels), setting)
    return {"images/s": [batch / each for each in times]} | peak(setting)


def updates(setting: Setting) -> Result:
    """Of single updates that take turns: the original rule's time over that of torch's fused
    SGD."""
    ratios = update_ratios(setting.recipe, setting.device, PAIRS[setting.cuda])
    return {"original rule over fused SGD": ratios}
