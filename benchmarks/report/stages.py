"""Where a training step's time goes, by layer: forward and backward, of what the profiler saw."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor
from torch.profiler import ProfilerActivity, profile, record_function

from benchmarks.train.bench import resident_batch, training_step
from gratis.train.network.alexnet import AlexNet
from gratis.train.network.dropout import DropoutKey
from gratis.train.recipes import Layer, Recipe

MARK, BACKWARD, UPDATE = "stage:", "autograd::engine::evaluate_function:", "Optimizer.step"
PROFILED = 5  # steps
REST = "rest"  # the loss, and what belongs to no layer


class MarkedAlexNet(AlexNet):
    """Marks for the profiler which layer runs. Compiled it would mark nothing."""

    at = ""

    def _conv(self, layer: Layer, x: Tensor) -> Tensor:
        self.at = layer
        return self._mark(layer, super()._conv, layer, x)

    def _dense(self, layer: Layer, x: Tensor) -> Tensor:
        self.at = layer
        return self._mark(layer, super()._dense, layer, x)

    def _active(self, x: Tensor) -> Tensor:
        return self._mark(f"activation {self.at}", super()._active, x)

    def _lrn(self, x: Tensor) -> Tensor:
        return self._mark(f"normalisation {self.at}", super()._lrn, x)

    def _pool(self, x: Tensor) -> Tensor:
        return self._mark(f"pooling {self.at}", super()._pool, x)

    def _drop(self, x: Tensor, layer: int, key: DropoutKey | None) -> Tensor:
        return self._mark(f"dropout {layer}", super()._drop, x, layer, key)

    def _mark(self, stage: str, call: Callable[..., Tensor], *arguments: object) -> Tensor:
        with record_function(MARK + stage):
            return call(*arguments)


def by_stage(recipe: Recipe, device: torch.device) -> tuple[dict[str, float], float]:
    """Share of the time by stage, the largest first, and seconds of work a step: the device's,
    without its gaps.

    A stage is a layer ("conv2") or what follows it ("normalisation conv2"), forward and backward
    together; "update"; "rest". Eager, as compiled layers are fused."""
    batch = resident_batch(recipe, device)
    step = training_step(recipe, device, "off", MarkedAlexNet)
    for _ in range(3):
        step(*batch)
    cuda = device.type == "cuda"
    activities = [ProfilerActivity.CPU] + ([ProfilerActivity.CUDA] if cuda else [])
    with profile(activities=activities) as profiled:
        for _ in range(PROFILED):
            step(*batch)
        if cuda:
            torch.cuda.synchronize()
    column = "self_device_time_total" if cuda else "self_cpu_time_total"
    times = sum_by_stage(profiled.events(), column)
    whole = sum(times.values())
    order = sorted(times, key=lambda stage: -times[stage])
    return {stage: times[stage] / whole for stage in order}, whole / 1e6 / PROFILED


def sum_by_stage(events: Any, column: str) -> dict[str, float]:
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
    totals: dict[str, float] = {}
    for event in operations:
        stage = stage_of(event, forward)
        totals[stage] = totals.get(stage, 0.0) + getattr(event, column)
    return totals


def stage_of(event: Any, forward: dict[int, str]) -> str:
    for one in ancestry(event):
        if one.name.startswith(MARK):
            return str(one.name.removeprefix(MARK))
        if one.name.startswith(BACKWARD):
            return forward.get(one.sequence_nr, "").removeprefix(MARK) or REST
        if one.name.startswith(UPDATE):
            return "update"
    return REST


def ancestry(event: Any) -> Iterator[Any]:
    """The event, what it is part of, what that is part of."""
    while event is not None:
        yield event
        event = event.cpu_parent
