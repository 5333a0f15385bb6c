"""The loader alone, by route, each beside stock DALI in turn; torchvision's decode_jpeg as another
peer."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from functools import partial
from typing import Any

import torch

from benchmarks.report.plan import Measurement
from benchmarks.report.results import Result
from benchmarks.report.setting import Setting, rounds
from benchmarks.report.stock import AREA, stock_dali, torchvision_jpeg
from benchmarks.timing import endless, measure
from gratis.loader import GPU_DECODER, Loader, LoaderConfig
from gratis.train.mesh.device import GpuMeter

UNTIMED = 6  # batches that are ready when a round begins
FILL_S = 30.0  # that the first epoch of a decoded route may take, of which nothing is timed
STOCK = "stock DALI"
# fields of LoaderConfig, of the routes on a GPU and on a CPU
ROUTES: dict[bool, dict[str, dict[str, Any]]] = {
    True: {
        "decoded on CUDA cores": {"engine": "dali"},
        "decoded by the engine on the CPU, copied as uint8, finished on the device": {
            "engine": "native"
        },
        "decoded by nvJPEG's hardware": {"engine": "dali"},
        "kept decoded on the device": {"decoded": "device"},
        "kept decoded in the machine's memory": {"decoded": "host"},
    },
    False: {
        "decoded by the engine": {"engine": "native"},
        "decoded by DALI": {"engine": "dali"},
        "kept decoded in the machine's memory": {"decoded": "host"},
    },
}
HARDWARE = "decoded by nvJPEG's hardware"
HARDWARE_LOAD = 1.0  # share of a batch
RAW = "raw pixels"
CROPS = ("crop", "resized crop")
BATCHES = {True: (256, 1024), False: (32,)}
COPIED = {"cuda": 1 << 30, "cpu": 1 << 26}  # bytes


def measurements(*, cuda: bool) -> list[Measurement]:
    rows = []
    for batch in BATCHES[cuda]:
        for crop in CROPS:
            smallest = batch == BATCHES[cuda][0]
            for route in (*ROUTES[cuda], RAW):
                first = smallest and (crop == CROPS[0] or route != RAW)
                if crop != CROPS[0] and route == "kept decoded on the device":
                    continue  # parts are resized out of the machine's memory
                name = f"{crop}, batch {batch}, {route}"
                make = partial(beside_stock, route=route, batch=batch, crop=crop)
                gpu_s = 12.0 if "kept" in route else 7.0  # they are decoded first
                rows.append(Measurement("b", name, make, gpu_s if cuda else 1.5, "", first))
            name = f"{crop}, batch {batch}, torchvision's decode_jpeg"
            make = partial(beside_stock, route="torchvision", batch=batch, crop=crop)
            rows.append(Measurement("b", name, make, 7 if cuda else 1, "torchvision", smallest))
    for name, places in limits(cuda=cuda).items():
        make = partial(copies, places=places)
        rows.append(Measurement("b", f"limit: {name}", make, 2 if cuda else 0.3, first=False))
    return rows


def limits(*, cuda: bool) -> dict[str, tuple[str, str]]:
    """Copies, which no loader can exceed: from where to where."""
    places = {"host memory, copied": ("cpu", "cpu")}
    if cuda:
        places["host to device, pinned"] = ("cpu", "cuda")
        places["device memory, copied"] = ("cuda", "cuda")
    return places


def copies(setting: Setting, *, places: tuple[str, str]) -> Result:
    """GB/s. A copy within one memory reads and writes it, so it counts twice."""
    source, target = places
    size, pinned = COPIED[setting.device.type], source == "cpu" and target == "cuda"
    a = torch.ones(size, dtype=torch.uint8, device=source, pin_memory=pinned)
    b = torch.zeros(size, dtype=torch.uint8, device=target)
    gigabytes = (1 if pinned else 2) * size / 1e9
    copy = lambda: b.copy_(a, non_blocking=pinned)  # noqa: E731
    times = [measure(copy, setting.device).wall_s for _ in range(6)]
    return {"GB/s": [gigabytes / each for each in times[1:]]}


def loader_config(setting: Setting, batch: int, crop: str, **fields: Any) -> LoaderConfig:
    """ImageNet's normalisation, float32, and the crop by its name."""
    side = setting.recipe.crop
    area = None if crop == CROPS[0] else AREA
    return LoaderConfig(
        batch_size=batch, crop=side, area=area, remainder="drop", prefetch=2, **fields
    )


def beside_stock(setting: Setting, *, route: str, batch: int, crop: str) -> Result:
    """images/s and CPU seconds of the process per 1,000 of a route and of stock DALI, round by
    round in turn. Where stock DALI fails, the route alone, and why."""
    setting.check_batch(batch)
    given: dict[str, Any] = {
        "batch": batch,
        "crop": setting.recipe.crop,
        "device": setting.device,
        "resized": crop != CROPS[0],
    }
    with ExitStack() as stack:
        contenders: dict[str, Iterator[object]] = {}
        told: Result = {}
        if route == "torchvision":
            contenders[""] = torchvision_jpeg(setting.jpeg, **given)
        else:
            loader = stack.enter_context(open_loader(setting, route, batch, crop))
            if route == HARDWARE:
                stack.callback(GPU_DECODER.update, dict(GPU_DECODER))
                GPU_DECODER["hw_decoder_load"] = HARDWARE_LOAD
            if loader.decoded_place != "none":
                fill(loader)
            contenders[""] = endless(loader)
        take_first(contenders[""])
        try:
            contenders[STOCK] = stock_dali(setting.long_jpeg, **given)
            take_first(contenders[STOCK])
        except Exception as error:  # the route can be measured
            del contenders[STOCK]
            told = {STOCK: f"failed: {error}".splitlines()[0]}
        result = alternate(contenders, batch, setting)
        if route != "torchvision":
            told |= decoders_of(loader)
    return result | told


def take_first(batches: Iterator[object]) -> None:
    for _ in range(2):
        next(batches)


def open_loader(setting: Setting, route: str, batch: int, crop: str) -> Loader:
    if route == RAW:
        config = loader_config(setting, batch, crop)
        return Loader(setting.long_raw, "train", config, device=setting.device)
    fields = ROUTES[setting.cuda][route]
    return Loader(
        setting.long_jpeg,
        "train",
        loader_config(setting, batch, crop, **fields),
        device=setting.device,
    )


def decoders_of(loader: Loader) -> Result:
    """Which decoder took how many images, where the loader counts them."""
    counters = loader.take_counters()
    native, refused = counters.get("native", 0), counters.get("fallback", 0)
    return {"by the engine": float(native), "refused": float(refused)} if native + refused else {}


def fill(loader: Loader) -> None:
    """The first epoch, in which images are decoded; `drop` leaves few of them for later ones."""
    began = time.monotonic()
    for _ in loader:
        if time.monotonic() - began > FILL_S:
            raise RuntimeError(f"the split is not decoded once in {FILL_S:g} s; give less")


def alternate(contenders: dict[str, Iterator[object]], batch: int, setting: Setting) -> Result:
    """Rounds of all in turn: images/s, CPU seconds per 1,000 images, how busy the JPEG hardware
    was, and ours over stock DALI's rate."""
    rates: dict[str, list[float]] = {name: [] for name in contenders}
    costs: dict[str, list[float]] = {name: [] for name in contenders}
    meter, engine = GpuMeter(setting.device), list[float]()
    takes: dict[str, Callable[[], object]] = {
        name: partial(next, batches) for name, batches in contenders.items()
    }
    for _ in rounds(setting.rounds):
        for name, take in takes.items():
            timing = measure(take, setting.device, least_s=setting.round_s, untimed=UNTIMED)
            rates[name].append(timing.calls * batch / timing.wall_s)
            costs[name].append(1000 * timing.cpu_s / (timing.calls * batch))
            busy = meter.read()
            if name == "" and busy and busy["nvjpg_busy"] is not None:
                engine.append(busy["nvjpg_busy"])
    result: Result = {}
    for name in contenders:
        prefix = f"{name}, " if name else ""
        result |= {f"{prefix}images/s": rates[name], f"{prefix}CPU s per 1,000": costs[name]}
    if STOCK in rates:
        pairs = zip(rates[""], rates[STOCK], strict=True)
        result["over stock DALI"] = [ours / theirs for ours, theirs in pairs]
    return result | {"JPEG hardware busy": engine} if engine else result
