"""Part 2: the loader alone, its routes and DALI's own, beside what the machine could at most."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import partial
from pathlib import Path

import torch

from benchmarks.report.results import Measurement, Result, ResultFile
from benchmarks.report.setting import Setting, rounds
from benchmarks.report.stock import Kind, stock
from benchmarks.timing import endless, measure
from gratis.loader import Loader, LoaderConfig
from gratis.train.mesh.device import GpuMeter
from gratis.train.rank import training_config

UNTIMED = 6  # batches that are ready when the first round begins
COPIED = {"cuda": 1 << 30, "cpu": 1 << 28}  # bytes
# share of a batch for the hardware decoder; CUDA cores do the rest
LOADS = (0.0, 0.25, 0.5, 0.65, 0.8, 1.0)
FILL_S = 60.0  # that the first epoch of a decoded route may take, of which nothing is timed


def measurements(setting: Setting, _: ResultFile) -> Iterator[Measurement]:
    for name, make in limits(setting.device).items():
        yield Measurement(f"limit: {name}", "plain torch copies", make)
    for batch in setting.batches:
        for route, (shards, config) in routes(setting, batch).items():
            make = partial(measure_loader, setting, shards, config)
            yield Measurement(f"{route}, batch {batch}", f"Loader, {route}", make, needs=30)
    middle = setting.batches[0]
    for threads in thread_counts():
        make = partial(measure_loader, setting, *routes(setting, middle, threads)["jpeg"])
        yield Measurement(f"jpeg, threads {threads}, batch {middle}", "Loader", make, needs=30)
    for name, make in stocks(setting, middle).items():
        how = "benchmarks/report/stock.py"
        yield Measurement(f"{name}, batch {middle}", how, make, needs=30)


def limits(device: torch.device) -> dict[str, Callable[[], Result]]:
    """GB/s of copies: what no loader can exceed. A device's own copy reads and writes, so it counts
    twice."""
    places = {"host memory, copied": ("cpu", "cpu")}
    if device.type == "cuda":
        places["host to device, pinned (PCIe)"] = ("cpu", "cuda")
        places["device memory, copied (HBM)"] = ("cuda", "cuda")
    return {name: partial(copies, *places[name], device) for name in places}


def copies(source: str, target: str, device: torch.device) -> Result:
    size, pinned = COPIED[device.type], source == "cpu" and target == "cuda"
    a = torch.ones(size, dtype=torch.uint8, device=source, pin_memory=pinned)
    b = torch.zeros(size, dtype=torch.uint8, device=target)
    gigabytes = (1 if pinned else 2) * size / 1e9
    times = [measure(lambda: b.copy_(a, non_blocking=pinned), device).wall_s for _ in range(6)]
    return {"GB/s": [gigabytes / each for each in times[1:]]}


def routes(
    setting: Setting, batch: int, threads: int | None = None
) -> dict[str, tuple[Path, LoaderConfig]]:
    """Name to (shards, configuration): bytes decoded every time, raw pixels, and pixels that stay
    decoded."""
    config = training_config(replace(setting.recipe, batch=batch))
    config = replace(config, remainder="drop", prefetch=2, threads=threads)
    named = {"jpeg": (setting.jpeg, config), "raw": (setting.raw, config)}
    named["decoded, host"] = (setting.jpeg, replace(config, decoded="host"))
    if setting.cuda:
        named["decoded, device"] = (setting.jpeg, replace(config, decoded="device"))
    return named


def thread_counts() -> list[int]:
    cores = len(os.sched_getaffinity(0))
    return sorted({2**k for k in range(cores.bit_length()) if 2**k < cores} | {cores})


def measure_loader(setting: Setting, shards: Path, config: LoaderConfig) -> Result:
    with Loader(shards, "train", config, device=setting.device) as loader:
        if loader.decoded_place != "none":
            fill(loader)
        return throughput(endless(loader), config.batch_size, setting)


def fill(loader: Loader) -> None:
    """The first epochs, in which images are decoded. `drop` leaves some out of each."""
    began = time.monotonic()
    for _ in range(2):
        for _ in loader:
            if time.monotonic() - began > FILL_S:
                raise RuntimeError(
                    f"the split is not decoded once in {FILL_S:g} s; give --shards or --src of "
                    f"fewer images"
                )


def throughput(batches: Iterator[object], size: int, setting: Setting) -> Result:
    """Whole batches in windows of a few seconds: images/s, CPU seconds of the process per 1,000,
    the JPEG engine."""
    meter, rates, costs, engine = GpuMeter(setting.device), [], [], []
    take = partial(next, batches)
    for number in rounds(setting.rounds):
        untimed = 0 if number else UNTIMED
        timing = measure(take, setting.device, least_s=setting.round_s, untimed=untimed)
        images = timing.calls * size
        rates.append(images / timing.wall_s)
        costs.append(1000 * timing.cpu_s / images)
        if (busy := meter.read()) and busy["nvjpg_busy"] is not None:
            engine.append(busy["nvjpg_busy"])
    result: Result = {"images/s": rates, "CPU s per 1,000": costs}
    return result | {"NVJPG busy": engine} if engine else result


def stocks(setting: Setting, batch: int) -> dict[str, Callable[[], Result]]:
    """DALI as its documentation has it, with its own reader and random numbers; where it decodes is
    swept."""

    def measured(kind: Kind, load: float | None = None) -> Result:
        shards = setting.raw if kind == "raw" else setting.jpeg
        crop, device = setting.recipe.crop, setting.device
        batches = stock(kind, shards, batch=batch, crop=crop, device=device, load=load)
        return throughput(batches, batch, setting)

    own = "DALI's own reader"
    makes = {
        f"{own}, region decoded on the host": partial(measured, "host"),
        f"{own}, raw, cropped on the host": partial(measured, "raw"),
    }
    if setting.cuda:
        makes[f"{own}, region decoded by nvJPEG"] = partial(measured, "region")
        for load in LOADS:
            name = f"{own}, whole images by nvJPEG, hw_decoder_load {load:g}"
            makes[name] = partial(measured, "whole", load)
    return dict(makes)
