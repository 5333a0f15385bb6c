"""Where a training step's time goes, by layer: forward and backward, of what the profiler saw."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.profiler import ProfilerActivity, profile, record_function

from benchmarks.train.bench import CLASSES, resident_batch
from gratis.train.metrics import share_of_loss
from gratis.train.network.alexnet import AlexNet
from gratis.train.network.dropout import DropoutKey
from gratis.train.optimiser import Optimiser
from gratis.train.recipes import Layer, Recipe
from gratis.train.schedule import rates

MARK, BACKWARD, UPDATE = "stage:", "autograd::engine::evaluate_function:", "Optimizer.step"
PROFILED = 5  # steps
REST = "rest"  # the loss, and what belongs to no layer


class Marked(AlexNet):
    """Says to the profiler which layer it is in. Compiled it would say nothing."""

    at = ""

    def _conv(self, layer: Layer, x: Tensor) -> Tensor:
        self.at = layer
        with record_function(MARK + layer):
            return super()._conv(layer, x)

    def _dense(self, layer: Layer, x: Tensor) -> Tensor:
        self.at = layer
        with record_function(MARK + layer):
            return super()._dense(layer, x)

    def _active(self, x: Tensor) -> Tensor:
        with record_function(f"{MARK}activation {self.at}"):
            return super()._active(x)

    def _lrn(self, x: Tensor) -> Tensor:
        with record_function(f"{MARK}normalisation {self.at}"):
            return super()._lrn(x)

    def _pool(self, x: Tensor) -> Tensor:
        with record_function(f"{MARK}pooling {self.at}"):
            return super()._pool(x)

    def _drop(self, x: Tensor, layer: int, key: DropoutKey | None) -> Tensor:
        with record_function(f"{MARK}dropout {layer}"):
            return super()._drop(x, layer, key)


def by_stage(recipe: Recipe, device: torch.device) -> tuple[dict[str, float], float]:
    """Share of the time by stage, the largest first, and seconds of work a step: the device's,
    without its gaps.

    A stage is a layer ("conv2") or what follows it ("normalisation conv2"), forward and backward
    together; "update"; "rest". Eager, as compiled layers are fused."""
    network = Marked(recipe, CLASSES).to(device)
    network.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    optimiser = Optimiser(network, recipe)
    images, labels = resident_batch(recipe, device)

    def step(number: int) -> None:
        logits = network(images, DropoutKey(seed=0, step=number, rows=range(len(images))))
        share_of_loss(logits, labels, len(images)).backward()  # type: ignore[no-untyped-call]
        optimiser.step(rates(recipe, number, 10_000))

    for number in range(3):
        step(number)
    cuda = device.type == "cuda"
    with profile(
        activities=[ProfilerActivity.CPU] + ([ProfilerActivity.CUDA] if cuda else [])
    ) as profiled:
        for number in range(PROFILED):
            step(number)
        if cuda:
            torch.cuda.synchronize()
    took = summed(profiled.events(), "self_device_time_total" if cuda else "self_cpu_time_total")
    whole = sum(took.values())
    order = sorted(took, key=lambda stage: -took[stage])
    return {stage: took[stage] / whole for stage in order}, whole / 1e6 / PROFILED


def summed(events: Any, column: str) -> dict[str, float]:
    """Microseconds by stage. A backward function has the number of the forward operation that it
    belongs to."""
    from torch.autograd import DeviceType  # type: ignore[attr-defined]

    # kernels are counted in theirs
    operations = [event for event in events if event.device_type == DeviceType.CPU]
    forward: dict[int, str] = {}
    for event in sorted(operations, key=lambda event: event.time_range.start):
        names = [one.name for one in ancestry(event)]
        if event.sequence_nr >= 0 and not any(name.startswith(BACKWARD) for name in names):
            # of operations with one number the last one made the backward function
            forward[event.sequence_nr] = next((name for name in names if name.startswith(MARK)), "")
    found: dict[str, float] = {}
    for event in operations:
        stage = stage_of(event, forward)
        found[stage] = found.get(stage, 0.0) + getattr(event, column)
    return found


def stage_of(event: Any, forward: dict[int, str]) -> str:
    for one in ancestry(event):
        if one.name.startswith(MARK):
            return str(one.name.removeprefix(MARK))
        if one.name.startswith(BACKWARD):
            return forward.get(one.sequence_nr, "").removeprefix(MARK) or REST
        if one.name.startswith(UPDATE):
            return "update"
    return REST


def ancestry(event: Any) -> Any:
    """The event, what it is part of, what that is part of."""
    while event is not None:
        yield event
        event = event.cpu_parent
