"""The original update rule: v <- 0.9 v - rate (g + decay w), w <- w + v; biases at their own rate, without decay.

torch's fused SGD computes step <- momentum step + (1 - dampening)(g + decay w), w <- w - lr step. At lr 1, dampening
1 - rate and steps that begin at zero that is the original rule with step = -v, in one pass over memory. What differs
from torch's usual form is a change of rate: the original goes on with its old velocity (trap 12).
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from train.recipes import KEPT, Recipe
from train.schedule import Kind, Rates


class Optimiser:
    """Holds one step (the negative velocity) per parameter, of its shape. A rate of 0 freezes: not even decay acts."""

    def __init__(self, network: nn.Module, recipe: Recipe) -> None:
        self.parameters = dict(network.named_parameters())
        self._inside = recipe.velocity == "inside"
        groups: dict[Kind, dict[str, Any]] = {}
        for name, parameter in self.parameters.items():
            empty: dict[str, Any] = {"params": [], "kind": _kind(name), "weight_decay": _decay(name, recipe)}
            groups.setdefault(_kind(name), empty)["params"].append(parameter)
        self._sgd = torch.optim.SGD(groups.values(), lr=1.0, momentum=recipe.momentum, fused=True)
        for parameter in self.parameters.values():
            # torch would start an absent buffer at the bare gradient, without the rate
            self._sgd.state[parameter]["momentum_buffer"] = torch.zeros_like(parameter)

    def step(self, rates: Rates) -> None:
        """Applies and clears the gradients."""
        for group in self._sgd.param_groups:
            rate = rates[group["kind"]]
            group["lr"], group["dampening"] = (1.0, 1.0 - rate) if self._inside else (rate, 0.0)
            if rate == 0:
                for parameter in group["params"]:
                    parameter.grad = None
        self._sgd.step()
        self._sgd.zero_grad()

    def freeze(self, rates: Rates) -> None:
        """Switches off the gradients of what does not learn at these rates: backward then skips their work."""
        for group in self._sgd.param_groups:
            for parameter in group["params"]:
                parameter.requires_grad_(rates[group["kind"]] != 0)

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
