"""What is counted between two looks at the clock, and the one place where the host waits for the
device."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import TypeVar, cast

import psutil
import torch
from torch import Tensor

from gratis.errors import GratisError, Outage
from gratis.events import EventWriter
from gratis.loader import Batch, Loader
from gratis.network import log
from gratis.records import Outcome, StepRecord
from gratis.signals import StopSignals
from gratis.train.mesh.device import GpuMeter, WaitClock
from gratis.train.mesh.mesh import Mesh, sum_over_hosts, sum_over_world

SECONDS = 1.0  # the interval that the counters aim at
MOST_STEPS = 1000
T = TypeVar("T")


@dataclass(frozen=True, kw_only=True)
class IntervalSummary:
    """One interval over all ranks; the same on each. stop: a signal reached some rank."""

    steps: int
    loss: float  # mean over the steps
    top1: float
    images: int
    wall_s: float
    stop: Outcome | None


def agree_on_stop(signals: StopSignals, mesh: Mesh) -> Outcome | None:
    """What a signal to any of the ranks asks for. Collective; waits for the device."""
    own = torch.tensor([signals.terminated, signals.interrupted], dtype=torch.int32)
    return outcome(*sum_over_world(own.to(mesh.device)).tolist())


def outcome(terminated: float, interrupted: float) -> Outcome | None:
    """By how many ranks were signalled."""
    return "preempted" if terminated else "interrupted" if interrupted else None


class RunStopped(Exception):
    """A signal in an evaluation, or a server that is away for too long; on all ranks at one batch,
    of which none has begun."""

    def __init__(self, outcome: Outcome) -> None:
        super().__init__(outcome)
        self.outcome = outcome


def together(call: Callable[[], T], signals: StopSignals, mesh: Mesh) -> T:
    """What `call` returns; RunStopped on all ranks where it is an Outage on one. Collective, where
    the dataset is on a server."""
    answer: T | None = None
    lacks = False
    try:
        answer = call()
    except Outage as outage:
        lacks = True
        log.warning(str(outage))
    lacking, interrupted = sum_over_hosts([lacks, signals.interrupted], mesh)
    if lacking:
        raise RunStopped("interrupted" if interrupted else "preempted")
    return cast(T, answer)


class IntervalMeter:
    """Counts steps until `close`. Its length in steps is agreed by arithmetic on what all ranks
    know, not by clocks."""

    def __init__(
        self, mesh: Mesh, loader: Loader, events: EventWriter, signals: StopSignals
    ) -> None:
        self._mesh, self._loader, self._events, self._signals = mesh, loader, events, signals
        self._gpu, self._waits = GpuMeter(mesh.device), WaitClock(mesh.device)
        self._length = 1
        self.begin()

    def begin(self) -> None:
        """Starts the clock; time between `close` and `begin` (evaluation, saving) belongs to no
        interval."""
        self._device_sums = torch.zeros(3, dtype=torch.float64, device=self._mesh.device)
        self._steps = 0
        self._waits.forget()
        self._start, self._cpu_start = time.perf_counter(), time.process_time()
        self._loader.take_counters()
        self._mesh.meter.take_seconds()

    def batches(self) -> Iterator[Batch]:
        """The loader's batches of one epoch; the time spent waiting for each is counted. RunStopped
        where a rank's server is away for too long."""
        batches = iter(self._loader)
        while True:
            self._waits.asked()
            batch = together(lambda: next(batches, None), self._signals, self._mesh)
            self._waits.got()
            if batch is None:
                return
            yield batch

    def add(self, loss: Tensor, logits: Tensor, labels: Tensor) -> None:
        """One step's share of the loss and its own rows. Stays on the device."""
        self._steps += 1
        right = (logits.detach().argmax(1) == labels).sum()
        valid = (labels >= 0).sum()
        self._device_sums += torch.stack([loss.detach().double(), right.double(), valid.double()])

    @property
    def due(self) -> bool:
        return self._steps >= self._length

    def close(self, *, epoch: int, step: int, rate: float) -> IntervalSummary:
        """Writes this rank's `step` event and begins the next interval. Collective; waits for the
        device."""
        # the host waits for the device here, and nowhere else in a step
        own = self._device_sums.tolist()
        wall_s, exchange_s = time.perf_counter() - self._start, self._mesh.meter.take_seconds()
        own += [wall_s, self._signals.terminated, self._signals.interrupted]
        together = sum_over_world(torch.tensor(own, dtype=torch.float64, device=self._mesh.device))
        loss, right, images, all_walls, terminated, interrupted = together.tolist()
        summary = IntervalSummary(
            steps=self._steps,
            loss=loss / self._steps,
            top1=right / max(1.0, images),
            images=round(images),
            wall_s=all_walls / self._mesh.world,
            stop=outcome(terminated, interrupted),
        )
        record: StepRecord = {
            "steps": self._steps,
            "images": round(own[2]),  # of this rank alone, as are the seconds
            "wall_s": wall_s,
            "wait_s": self._waits.take(),
            "exchange_s": exchange_s,
            "cpu_s": time.process_time() - self._cpu_start,
            "rss_bytes": psutil.Process().memory_info().rss,
            "loader": self._loader.take_counters(),
            "loss": summary.loss,
            "top1": summary.top1,
            "lr": rate,
            "gpu": self._gpu.read(),
        }
        check_there(self._events)
        self._events.write("step", record, epoch=epoch, step=step)
        for message in self._loader.take_warnings():
            self._events.write("warning", {"message": message}, epoch=epoch, step=step)
        aim = round(self._steps * SECONDS / summary.wall_s)
        self._length = max(1, min(aim, 4 * self._length, MOST_STEPS))
        self.begin()
        return summary


def check_there(events: EventWriter) -> None:
    """GratisError once the run's folder was deleted: then nobody wants what is trained."""
    if events.deleted:
        raise GratisError(
            "the run's folder was deleted while it trained: it ends, and nothing of it is kept"
        )
