"""How time is measured on a device: one function for loading, training and copying."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:  # torch takes two seconds, which --help need not
    import torch

    from gratis.loader import Batch, Loader


class Timing(NamedTuple):
    """Seconds that so many calls took, by the wall clock and of CPU time."""

    calls: int
    wall_s: float
    cpu_s: float

    @property
    def call_s(self) -> float:
        return self.wall_s / self.calls


def measure(
    call: Callable[[], object],
    device: torch.device,
    *,
    calls: int = 1,
    least_s: float = 0.0,
    untimed: int = 0,
    cpu_clock: Callable[[], float] = time.process_time,
) -> Timing:
    """Calls it until both `calls` and `least_s` seconds are reached, after `untimed` calls. The
    device has finished its work at both ends."""
    for _ in range(untimed):
        call()
    wait(device)
    made, wall, cpu = 0, time.perf_counter(), cpu_clock()
    while made < calls or time.perf_counter() - wall < least_s:
        call()
        made += 1
    wait(device)
    return Timing(made, time.perf_counter() - wall, cpu_clock() - cpu)


def wait(device: torch.device) -> None:
    import torch

    if device.type == "cuda":
        torch.cuda.synchronize(device)


def endless(loader: Loader) -> Iterator[Batch]:
    """Epoch after epoch."""
    while True:
        yield from loader
