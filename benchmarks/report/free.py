"""The free ratio: training from the loader over training on one batch that stays on the device;
beside it, as a control, training on batches that are there already but change from step to step."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import partial
from typing import Any

import torch
from torch import Tensor

from benchmarks.report.loading import fill, loader_config
from benchmarks.report.plan import Measurement
from benchmarks.report.results import Result
from benchmarks.report.setting import Setting, rounds, steps_for
from benchmarks.timing import endless
from benchmarks.train.bench import UNTIMED, baseline_step, one_round, resident_batch, training_step
from benchmarks.train.update import Step
from gratis.loader import Loader, LoaderConfig
from gratis.train.mesh.device import WaitClock
from gratis.train.rank import training_config

STILL = 4  # batches of the control
# fields of LoaderConfig by route
ROUTES: dict[str, dict[str, Any]] = {
    "as it comes": {},
    "kept decoded": {"decoded": "auto"},
    "the engine": {"engine": "native"},
    "DALI": {"engine": "dali"},
}
FIRST = ("as it comes", "the engine", "kept decoded")
NETWORKS = ("AlexNet", "ResNet-50")
BATCH = {True: {"AlexNet": 512, "ResNet-50": 256}, False: {"AlexNet": 16, "ResNet-50": 8}}


def measurements(*, cuda: bool) -> list[Measurement]:
    rows = []
    for network, (route, fields) in itertools.product(NETWORKS, ROUTES.items()):
        make = partial(free, network=network, fields=fields)
        name = f"{network}, batch {BATCH[cuda][network]}, {route}"
        needs = "torchvision" if network == "ResNet-50" else ""
        gpu_s = 22.0 if "decoded" in fields else 18.0
        rows.append(Measurement("d", name, make, gpu_s if cuda else 3, needs, route in FIRST))
    return rows


def free(setting: Setting, *, network: str, fields: dict[str, Any]) -> Result:
    """The ratio by round; the control's; and the share of its time that training waited for the
    loader."""
    batch = BATCH[setting.cuda][network]
    setting.check_batch(batch)
    make = {"AlexNet": alexnet, "ResNet-50": resnet50}[network]
    with torch.random.fork_rng(devices=[]):
        step, still, config = make(setting, batch)
        config = replace(config, **fields)
        with Loader(setting.long_jpeg, "train", config, device=setting.device) as loader:
            if loader.decoded_place != "none":
                fill(loader)
            source = TimedBatches(loader, setting.device)
            return measure(setting, step, still, source, batch) | {"engine": loader.engine}


def measure(
    setting: Setting,
    step: Callable[[Tensor, Tensor], None],
    still: list[tuple[Tensor, Tensor]],
    source: TimedBatches,
    batch: int,
) -> Result:
    changing = itertools.cycle(still)
    contenders: dict[str, Step] = {
        "resident": lambda: step(*still[0]),
        "control": lambda: step(*next(changing)),
        "loader": lambda: step(*source.take()),
    }
    for one in contenders.values():
        for _ in range(3):
            one()
    steps, runs, waits = steps_for(contenders["resident"], setting), [], []
    for _ in rounds(setting.rounds):
        source.began()
        runs.append(one_round(contenders, steps, setting.device))
        waits.append(source.waited() / runs[-1]["loader"])
    return {
        "free ratio": [one["resident"] / one["loader"] for one in runs],
        "control's ratio": [one["resident"] / one["control"] for one in runs],
        "loader, images/s": [batch / one["loader"] for one in runs],
        "resident, images/s": [batch / one["resident"] for one in runs],
        "waited, share": waits,
        "kept decoded": source.place,
    }


Made = tuple[Callable[[Tensor, Tensor], None], list[tuple[Tensor, Tensor]], LoaderConfig]


def alexnet(setting: Setting, batch: int) -> Made:
    """The recipe's step, compiled on a GPU; its batches; what it wants of the loader."""
    compute = "bfloat16" if setting.cuda else "float32"
    recipe = replace(setting.recipe, batch=batch, compute=compute)  # type: ignore[arg-type]
    step = training_step(recipe, setting.device, "auto")
    still = [resident_batch(recipe, setting.device) for _ in range(STILL)]
    return step, still, replace(training_config(recipe), remainder="drop")


def resnet50(setting: Setting, batch: int) -> Made:
    """torchvision's network by SGD, channels last, on a GPU autocast to bfloat16; resized crops as
    its recipe has them. ImportError without torchvision."""
    from torchvision import models

    recipe = replace(setting.recipe, batch=batch)
    network = models.resnet50().to(setting.device).to(memory_format=torch.channels_last)
    step = baseline_step(recipe, setting.device, autocast=setting.cuda, network=network)
    dtype = torch.bfloat16 if setting.cuda else torch.float32
    config = loader_config(setting, batch, "resized crop", layout="channels_last", dtype=dtype)
    still = [resident_batch(recipe, setting.device) for _ in range(STILL)]
    return step, [((images / 70).to(dtype), labels) for images, labels in still], config


class TimedBatches:
    """Batches of epoch after epoch, and the seconds for which they kept training waiting."""

    def __init__(self, loader: Loader, device: torch.device) -> None:
        self._batches: Iterator[Any] = endless(loader)
        self._clock, self._taken, self.place = WaitClock(device), 0, loader.decoded_place

    def take(self) -> tuple[Tensor, Tensor]:
        self._clock.asked()
        images, labels, _ = next(self._batches)
        self._clock.got()
        self._taken += 1
        if self._taken <= UNTIMED:
            self._clock.forget()
        return images, labels

    def began(self) -> None:
        """A round: its first batches, which `one_round` does not time, do not count."""
        self._taken = 0

    def waited(self) -> float:
        """Seconds a batch of the round. The device must have been waited for."""
        return self._clock.take() / (self._taken - UNTIMED)
