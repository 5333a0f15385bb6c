"""What an update costs: the original rule against torch's fused SGD, on parameters of a recipe's
shapes.

gratis bench train       # prints it among the rest

A step of either is some passes over memory and varies with what else the machine does. So single
steps take turns and each is compared with its neighbour; on a CPU on one thread, by that thread's
own CPU time. Who comes second in a pair finds the cache as the other left it, so a reading is the
geometric mean of two pairs of opposite order."""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from typing import TYPE_CHECKING

from benchmarks.timing import measure
from gratis.train.recipes import Recipe

if TYPE_CHECKING:
    import torch

Step = Callable[[], object]
CLASSES = 1000


def update_ratios(recipe: Recipe, device: torch.device, rounds: int) -> list[float]:
    """The original rule's time over fused SGD's: `rounds` readings, of two pairs of steps each."""
    import torch

    original, fused = optimiser_steps(recipe, device)
    threads, clock = torch.get_num_threads(), "wall_s" if device.type == "cuda" else "cpu_s"
    torch.set_num_threads(1)
    try:
        ratios = []
        for number in range(-2, rounds):
            ratio = 1.0
            for pair in ((original, fused), (fused, original)):
                times = {step: measure(step, device, cpu_clock=time.thread_time) for step in pair}
                seconds = {step: getattr(times[step], clock) for step in pair}
                ratio *= seconds[original] / seconds[fused]
            if number >= 0:  # the first ones meet fresh memory
                ratios.append(math.sqrt(ratio))
    finally:
        torch.set_num_threads(threads)
    return ratios


def optimiser_steps(recipe: Recipe, device: torch.device) -> tuple[Step, Step]:
    """A step of the original rule and one of fused SGD; the gradients stay the same."""
    import torch

    from gratis.train.network.alexnet import AlexNet
    from gratis.train.optimiser import Optimiser
    from gratis.train.schedule import rates

    own, other = (AlexNet(recipe, CLASSES).to(device) for _ in range(2))
    gradients = {
        parameter: torch.full_like(parameter, 1e-6)
        for network in (own, other)
        for parameter in network.parameters()
    }
    original, rate = Optimiser(own, recipe), rates(recipe, 0, 10_000)
    fused = torch.optim.SGD(
        other.parameters(), lr=0.01, momentum=0.9, weight_decay=5e-4, fused=True
    )

    def set_gradients(network: AlexNet) -> None:
        for parameter in network.parameters():
            parameter.grad = gradients[parameter]

    def original_step() -> None:
        set_gradients(own)
        original.step(rate)

    def fused_step() -> None:
        set_gradients(other)
        fused.step()
        fused.zero_grad()

    return original_step, fused_step
