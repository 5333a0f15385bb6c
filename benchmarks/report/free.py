"""Part 4: the free ratio, training from the loader over training from resident batches; what holds
it back, live."""

from __future__ import annotations

import itertools
import json
import shutil
import socket
import statistics
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from dataclasses import replace
from functools import partial
from typing import Any, Literal

import torch
from torch import Tensor

from benchmarks.report.loading import fill
from benchmarks.report.results import Measurement, Result, ResultFile
from benchmarks.report.setting import Setting, rounds, steps_for
from benchmarks.timing import endless
from benchmarks.train.bench import UNTIMED, one_round, resident_batch, training_step
from benchmarks.train.update import Step
from gratis.loader import Loader
from gratis.processes import end, read_log
from gratis.train.mesh.device import WaitClock
from gratis.train.paper.arguments import flags, recipe_flags
from gratis.train.rank import training_config
from gratis.train.recipes import RECIPES, Recipe

ROUTES = ("jpeg", "raw", "decoded")
GOAL = 0.99
# above 1: batches that are there cannot be slower than a loader's but by other work on the machine
NOISE = 0.05
LIVE_S, POLL_S = 12.0, 0.5
WAIT_LIMIT = 0.05  # share of time lost at which the status page calls a run input-bound


def measurements(setting: Setting, _: ResultFile) -> Iterator[Measurement]:
    command = "resident and loader steps in alternating runs; then train, live"
    for batch, route in itertools.product(setting.free_batches, ROUTES):
        make = partial(free, setting, route, batch)
        yield Measurement(f"{route}, batch {batch}", command, make, needs=60)


def free(setting: Setting, route: str, batch: int) -> Result:
    """The ratio by run, its bottleneck as these runs show it and as the status page names it, and
    do they agree."""
    compute: Literal["bfloat16", "float32"] = "bfloat16" if setting.cuda else "float32"
    recipe = replace(setting.recipe, batch=batch, compute=compute)
    decoded: Literal["auto", "none"] = "auto" if route == "decoded" else "none"
    config = replace(training_config(recipe), remainder="drop", decoded=decoded)
    shards = setting.raw if route == "raw" else setting.jpeg
    with (
        torch.random.fork_rng(devices=[]),
        Loader(shards, "train", config, device=setting.device) as loader,
    ):
        if loader.decoded_place != "none":
            fill(loader)
        step = training_step(recipe, setting.device, "on" if setting.cuda else "off")
        still, source = resident_batch(recipe, setting.device), TimedBatches(loader, setting.device)
        contenders: dict[str, Step] = {
            "resident": lambda: step(*still),
            "loader": lambda: step(*source.take()),
        }
        for one in contenders.values():
            for _ in range(3):
                one()
        steps, runs, waits = steps_for(contenders["resident"], setting), [], []
        for _ in rounds(setting.runs):
            source.began()
            runs.append(one_round(contenders, steps, setting.device))
            waits.append(source.waited() / runs[-1]["loader"])
        keeps = loader.decoded_place
    ratios = [one["resident"] / one["loader"] for one in runs]
    ratio, waited = statistics.median(ratios), statistics.median(waits)
    status = live(setting, route, recipe, decoded)
    judged, share = status["verdict"], status["data_wait_fraction"] or 0.0
    bound = "input-bound" if waited >= WAIT_LIMIT else "compute-bound"
    shared = ratio < 1 - WAIT_LIMIT and bound == "compute-bound"
    takes = ": the loader takes cores or memory from training" if shared else ""
    reached = "met" if ratio <= 1 + NOISE else "undecided, the machine was busy"
    return {
        "free ratio": ratios,
        "loader, images/s": [batch / one["loader"] for one in runs],
        "resident, images/s": [batch / one["resident"] for one in runs],
        "kept decoded": keeps,
        "goal": f"below {GOAL}" if ratio < GOAL else reached,
        "waited in these runs, share": waits,
        "bottleneck": bound + takes,
        "status, live": judged["text"],
        "waited live, share": float(share),
        "agree": "yes" if judged["kind"] == bound else f"no: {judged['kind']}",
    }


class TimedBatches:
    """Batches of epoch after epoch, and the seconds for which they kept training waiting."""

    def __init__(self, loader: Loader, device: torch.device) -> None:
        self._batches, self._clock, self._taken = endless(loader), WaitClock(device), 0

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


def live(setting: Setting, route: str, recipe: Recipe, decoded: str) -> dict[str, Any]:
    """The last status, read over HTTP as a user would, that named a bottleneck in LIVE_S seconds of
    a `gratis train` of its own. RuntimeError if there was none. What the run wrote is removed."""
    runs, name = setting.out / "runs", f"free-{route}-{recipe.batch}"
    shutil.rmtree(runs / name, ignore_errors=True)
    shards = setting.raw if route == "raw" else setting.jpeg
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = str(probe.getsockname()[1])
    own: dict[str, object] = {"shards": shards, "runs": runs, "run": name, "decoded": decoded}
    own |= {"recipe": setting.recipe_name, "gpus": 1, "save_every": 1e6, "port": port}
    endless_recipe = recipe_flags(replace(recipe, epochs=10_000), RECIPES[setting.recipe_name])
    command = [sys.executable, "-m", "gratis", "train", *flags(**own), *endless_recipe]
    log = setting.out / "logs" / f"{name}.txt"
    log.parent.mkdir(parents=True, exist_ok=True)
    with log.open("wb") as file:
        process = subprocess.Popen(
            command, stdout=file, stderr=subprocess.STDOUT, start_new_session=True
        )
    last, ends = dict[str, Any](), time.monotonic() + 4 * LIVE_S + 60
    try:
        while time.monotonic() < ends and process.poll() is None:
            time.sleep(POLL_S)
            status = read_status(port)
            if status.get("verdict", {}).get("kind", "starting") not in ("starting", "stalled"):
                ends = ends if last else time.monotonic() + LIVE_S
                last = status
    finally:
        if process.poll() is None:
            end(process)
        shutil.rmtree(runs / name, ignore_errors=True)
    if not last:
        lines = read_log(log).strip().splitlines()
        raise RuntimeError(f"no verdict: {lines[-1] if lines else 'no output'}")
    return last


def read_status(port: str) -> dict[str, Any]:
    """Empty while there is no answer."""
    try:
        with urllib.request.urlopen(f"http://127.0.0.1:{port}/status", timeout=5) as answer:
            status: dict[str, Any] = json.load(answer)
    except (OSError, ValueError):
        return {}
    return status
