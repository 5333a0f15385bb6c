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
    from torch import nn

Step = Callable[[], object]
CLASSES = 1000


def update_ratios(recipe: Recipe, device: torch.device, rounds: int) -> list[float]:
    """The original rule's time over fused SGD's: `rounds` readings, of two pairs of steps each."""
    import torch

    own, plain = optimiser_steps(recipe, device).values()
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        ratios = []
        for number in range(-2, rounds):
            ratio = 1.0
            for pair in ((own, plain), (plain, own)):
                seconds = {step: _seconds(step, device) for step in pair}
                ratio *= seconds[own] / seconds[plain]
            if number >= 0:  # the first ones meet fresh memory
                ratios.append(math.sqrt(ratio))
    finally:
        torch.set_num_threads(threads)
    return ratios


def optimiser_steps(recipe: Recipe, device: torch.device) -> dict[str, Step]:
    """A step of the original rule and one of fused SGD; the gradients stay the same."""
    import torch

    from gratis.train.optimiser import Optimiser
    from gratis.train.schedule import rates

    (own_network, give_own), (plain_network, give_plain) = (
        _network(recipe, device) for _ in range(2)
    )
    own, rate = Optimiser(own_network, recipe), rates(recipe, 0, 10_000)
    plain = torch.optim.SGD(
        plain_network.parameters(), lr=0.01, momentum=0.9, weight_decay=5e-4, fused=True
    )

    def step_own() -> None:
        give_own()
        own.step(rate)

    def step_plain() -> None:
        give_plain()
        plain.step()
        plain.zero_grad()

    return {"original rule": step_own, "fused SGD": step_plain}


def _network(recipe: Recipe, device: torch.device) -> tuple[nn.Module, Step]:
    """And what gives it its gradients again."""
    import torch

    from gratis.train.network.alexnet import AlexNet

    network = AlexNet(recipe, CLASSES).to(device)
    gradients = [torch.full_like(parameter, 1e-6) for parameter in network.parameters()]

    def give() -> None:
        for parameter, gradient in zip(network.parameters(), gradients, strict=True):
            parameter.grad = gradient

    return network, give


def _seconds(step: Step, device: torch.device) -> float:
    timing = measure(step, device, cpu_clock=time.thread_time)
    return timing.wall_s if device.type == "cuda" else timing.cpu_s
