"""Where a step's time goes: the kernels of some steps by their time, and how long the GPU stood
still."""

from __future__ import annotations

from dataclasses import replace
from functools import partial
from typing import Any

import torch
from torch.profiler import ProfilerActivity, profile

from benchmarks.report.plan import Measurement
from benchmarks.report.results import Result
from benchmarks.report.setting import Setting
from benchmarks.timing import measure
from benchmarks.train.bench import resident_batch, training_step
from gratis.train.settings import Choice

PROFILED, LISTED, NAMED = 5, 12, 70  # steps, kernels, characters of a name
BATCH = {True: 512, False: 32}


def measurements(*, cuda: bool) -> list[Measurement]:
    rows = [Measurement("g", "eager", partial(kernels, compile="off"), 8 if cuda else 2)]
    if cuda:
        make, needs = partial(kernels, compile="on"), "gcc and Python's headers"
        rows.append(Measurement("g", "compiled", make, 45, needs, first=False))
    return rows


def kernels(setting: Setting, *, compile: Choice) -> Result:
    """Share of the device's time by kernel (on a CPU by operator), and of the step that it was
    idle: the step's time is taken without the profiler, which slows the host down."""
    batch, compute = BATCH[setting.cuda], "bfloat16" if setting.cuda else "float32"
    recipe = replace(setting.recipe, batch=batch, compute=compute)  # type: ignore[arg-type]
    with torch.random.fork_rng(devices=[]):
        resident = resident_batch(recipe, setting.device)
        train = training_step(recipe, setting.device, compile)

        def step() -> None:
            train(*resident)

        step_s = measure(step, setting.device, calls=PROFILED, untimed=3).call_s
        activities = [ProfilerActivity.CPU]
        activities += [ProfilerActivity.CUDA] if setting.cuda else []
        with profile(activities=activities) as profiled:
            measure(step, setting.device, calls=PROFILED)
    times = by_kernel(profiled.events(), cuda=setting.cuda)
    whole = sum(times.values())
    order = sorted(times, key=lambda name: -times[name])[:LISTED]
    result: Result = {name[:NAMED]: f"{times[name] / whole:.1%}" for name in order}
    result["step, ms"] = 1e3 * step_s
    if setting.cuda:
        result["GPU idle, share"] = max(0.0, 1 - whole / 1e6 / PROFILED / step_s)
    return result


def by_kernel(events: Any, *, cuda: bool) -> dict[str, float]:
    """Microseconds. On a GPU of kernels and copies, which are events of the device alone: an
    operator's own device time is that of its kernels, and would count them twice."""
    times: dict[str, float] = {}
    for event in events:
        on_device = event.device_type.name != "CPU"
        if on_device == cuda and not event.is_user_annotation:
            spent = event.self_device_time_total if cuda else event.self_cpu_time_total
            times[event.name] = times.get(event.name, 0.0) + spent
    return times
