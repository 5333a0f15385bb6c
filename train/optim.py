"""The original update rule: v <- 0.9 v - rate (g + decay w), w <- w + v; biases at their own rate, without decay.

torch's fused SGD computes step <- momentum step + (1 - dampening)(g + decay w), w <- w - lr step. At lr 1, dampening
1 - rate and steps that begin at zero that is the original rule with step = -v, in one pass over memory. What differs
from torch's usual form is a change of rate: the original goes on with its old velocity (trap 12).
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from train.recipes import KEPT, Recipe
from train.schedule import Kind, Rates


class Optimiser:
    """Holds one step (the negative velocity) per parameter, of its shape. A rate of 0 freezes: not even decay acts."""

    def __init__(self, network: nn.Module, recipe: Recipe) -> None:
        self.parameters = dict(network.named_parameters())
        self._inside = recipe.velocity == "inside"
        self._terms = {name: (_kind(name), _decay(name, recipe)) for name in self.parameters}
        self._sgd = torch.optim.SGD(self.parameters.values(), lr=1.0, momentum=recipe.momentum, fused=True)
        self._group = self._sgd.param_groups[0]
        for parameter in self.parameters.values():
            # torch would start an absent buffer at the bare gradient, without the rate
            self._sgd.state[parameter]["momentum_buffer"] = torch.zeros_like(parameter)

    def step(self, rates: Rates) -> None:
        """Applies and clears the gradients."""
        together: dict[tuple[float, float], list[nn.Parameter]] = {}
        for name, parameter in self.parameters.items():
            kind, decay = self._terms[name]
            if rates[kind] != 0:
                together.setdefault((rates[kind], decay), []).append(parameter)
        # a group costs the host a call and a GPU a kernel, whose start a small group does not repay: as few as may be
        self._sgd.param_groups = [
            self._group | {"params": own, "weight_decay": decay} | self._factors(rate)
            for (rate, decay), own in together.items()
        ]
        self._sgd.step()
        for parameter in self.parameters.values():
            parameter.grad = None

    def _factors(self, rate: float) -> dict[str, float]:
        return {"lr": 1.0, "dampening": 1.0 - rate} if self._inside else {"lr": rate, "dampening": 0.0}

    def freeze(self, rates: Rates) -> None:
        """Switches off the gradients of what does not learn at these rates: backward then skips their work."""
        for name, parameter in self.parameters.items():
            parameter.requires_grad_(rates[self._terms[name][0]] != 0)

    @property
    def steps(self) -> dict[str, Tensor]:
        """Each parameter's negative velocity, by the parameter's name."""
        return {name: self._sgd.state[p]["momentum_buffer"] for name, p in self.parameters.items()}


def _kind(name: str) -> Kind:
    layer, which = name.split(".")
    if layer == "conv1":
        return "conv1_weights" if which == "weight" else "conv1_biases"
    if layer in KEPT:
        return "conv_weights" if which == "weight" else "conv_biases"
    return "weights" if which == "weight" else "biases"


def _decay(name: str, recipe: Recipe) -> float:
    return recipe.weight_decay if name.endswith("weight") or recipe.bias_decay else 0.0
