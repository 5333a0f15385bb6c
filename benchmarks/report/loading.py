"""Part 2: the loader alone, its routes and DALI's own, beside what the machine could at most."""

from __future__ import annotations

import itertools
import os
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import partial
from pathlib import Path

import torch
from torch import Tensor

from benchmarks.report.book import Book, Result
from benchmarks.report.setting import Setting, rounds
from benchmarks.report.stock import Kind, stock
from benchmarks.train.bench import wait
from gratis.loader import Loader, LoaderConfig
from gratis.train.mesh.device import GpuMeter
from gratis.train.rank import training_config

PART = 2
COPIED = {"cuda": 1 << 30, "cpu": 1 << 28}  # bytes
# share of a batch for the hardware decoder; CUDA cores do the rest
LOADS = (0.0, 0.25, 0.5, 0.65, 0.8, 1.0)
FILL_S = 60.0  # that the first epoch of a decoded route may take, of which nothing is timed


def run(setting: Setting, book: Book) -> None:
    for name, make in limits(setting.device).items():
        book.measure(PART, f"limit: {name}", "plain torch copies", make)
    middle = setting.batches[len(setting.batches) // 2]
    for batch in (middle, *(size for size in setting.batches if size != middle)):
        for route, (shards, config) in routes(setting, batch).items():
            name = f"{route}, batch {batch}"
            book.measure(
                PART, name, f"Loader, {route}", partial(loaded, setting, shards, config), needs=30
            )
    for threads in thread_counts():
        shards, config = routes(setting, middle, threads)["jpeg"]
        name = f"jpeg, threads {threads}, batch {middle}"
        book.measure(PART, name, "Loader", partial(loaded, setting, shards, config), needs=30)
    for name, make_stock in stocks(setting, middle).items():
        book.measure(PART, f"{name}, batch {middle}", "train/report/stock.py", make_stock, needs=30)


def limits(device: torch.device) -> dict[str, Callable[[], Result]]:
    """GB/s of copies: what no loader can exceed. A device's own copy reads and writes, so it counts
    twice."""
    size = COPIED[device.type]
    found: dict[str, Callable[[], Result]] = {
        "host memory, copied": partial(_copies, "cpu", "cpu", size, device)
    }
    if device.type == "cuda":
        found["host to device, pinned (PCIe)"] = partial(_copies, "cpu", "cuda", size, device)
        found["device memory, copied (HBM)"] = partial(_copies, "cuda", "cuda", size, device)
    return found


def _copies(source: str, target: str, size: int, device: torch.device) -> Result:
    pinned = source == "cpu" and target == "cuda"
    a = torch.ones(size, dtype=torch.uint8, device=source, pin_memory=pinned)
    b = torch.zeros(size, dtype=torch.uint8, device=target)
    rates = []
    for _ in range(6):
        wait(device)
        began = time.perf_counter()
        b.copy_(a, non_blocking=pinned)
        wait(device)
        rates.append((1 if pinned else 2) * size / (time.perf_counter() - began) / 1e9)
    return {"GB/s": rates[1:]}


def routes(
    setting: Setting, batch: int, threads: int | None = None
) -> dict[str, tuple[Path, LoaderConfig]]:
    """Name to (shards, configuration): bytes decoded every time, raw pixels, and pixels that stay
    decoded."""
    config = replace(
        training_config(replace(setting.recipe, batch=batch)),
        remainder="drop",
        prefetch=2,
        threads=threads,
    )
    found = {"jpeg": (setting.jpeg, config), "raw": (setting.raw, config)}
    found["decoded, host"] = (setting.jpeg, replace(config, decoded="host"))
    if setting.cuda:
        found["decoded, device"] = (setting.jpeg, replace(config, decoded="device"))
    return found


def thread_counts() -> list[int]:
    cores = len(os.sched_getaffinity(0))
    return sorted({2**k for k in range(cores.bit_length()) if 2**k < cores} | {cores})


def loaded(setting: Setting, shards: Path, config: LoaderConfig) -> Result:
    with Loader(shards, "train", config, device=setting.device) as loader:
        if loader.keeps != "none":
            fill(loader)
        return timed(endless(loader), config.batch_size, setting)


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


def endless(loader: Loader) -> Iterator[Tensor]:
    while True:
        for batch in loader:
            yield batch.images


def timed(batches: Iterator[Tensor], size: int, setting: Setting) -> Result:
    """Whole batches in windows of a few seconds: images/s, CPU seconds of the process per 1,000,
    the JPEG engine."""
    meter, rates, costs, engine = GpuMeter(setting.device), [], [], []
    for _ in itertools.islice(batches, 6):
        pass
    for _ in rounds(setting.rounds):
        wait(setting.device)
        images, wall, cpu = 0, time.perf_counter(), time.process_time()
        while time.perf_counter() - wall < setting.round_s:
            next(batches)
            images += size
        wait(setting.device)
        rates.append(images / (time.perf_counter() - wall))
        costs.append(1000 * (time.process_time() - cpu) / images)
        if (read := meter.read()) and read["nvjpg_busy"] is not None:
            engine.append(read["nvjpg_busy"])
    found: Result = {"images/s": rates, "CPU s per 1,000": costs}
    return found | {"NVJPG busy": engine} if engine else found


def stocks(setting: Setting, batch: int) -> dict[str, Callable[[], Result]]:
    """DALI as its documentation has it, with its own reader and random numbers; where it decodes is
    swept."""
    threads = len(os.sched_getaffinity(0))

    def make(kind: Kind, shards: Path, load: float | None = None) -> Callable[[], Result]:
        def measured() -> Result:
            crop = setting.recipe.crop
            batches = stock(
                kind,
                shards,
                batch=batch,
                crop=crop,
                threads=threads,
                device=setting.device,
                load=load,
            )
            return timed(batches, batch, setting)

        return measured

    found = {
        "DALI's own reader, region decoded on the host": make("host", setting.jpeg),
        "DALI's own reader, raw, cropped on the host": make("raw", setting.raw),
    }
    if setting.cuda:
        found["DALI's own reader, region decoded by nvJPEG"] = make("region", setting.jpeg)
        for load in LOADS:
            name = f"DALI's own reader, whole images by nvJPEG, hw_decoder_load {load:g}"
            found[name] = make("whole", setting.jpeg, load)
    return found
