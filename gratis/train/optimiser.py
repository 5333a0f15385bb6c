"""The original update rule: v <- 0.9 v - rate (g + decay w), w <- w + v; biases at their own rate,
without decay.

torch's fused SGD computes step <- momentum step + (1 - dampening)(g + decay w), w <- w - lr step.
At lr 1, dampening 1 - rate and steps that begin at zero that is the original rule with step = -v,
in one pass over memory. What differs from torch's usual form is a change of rate: the original goes
on with its old velocity (trap 12)."""

from __future__ import annotations

from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.autograd.profiler import record_function
from torch.optim.sgd import sgd

from gratis.train.recipes import CONVS, Recipe
from gratis.train.schedule import Kind, Rates


class Optimiser:
    """Holds one step (the negative velocity) per parameter, of its shape. A rate of 0 freezes: not
    even decay acts.

    It calls torch's function, for torch's class brings the compiler with it: two seconds of each
    rank's start."""

    def __init__(self, network: nn.Module, recipe: Recipe) -> None:
        self.parameters = dict(network.named_parameters())
        self._inside = recipe.velocity == "inside"
        self._terms = {name: (_kind(name), _decay(name, recipe)) for name in self.parameters}
        self._common: dict[str, Any] = {"momentum": recipe.momentum, "fused": True}
        self._common |= {"nesterov": False, "maximize": False}
        # each parameter's negative velocity, by the parameter's name; torch would start an absent
        # one at the bare gradient, without the rate
        self.steps = {
            name: torch.zeros_like(parameter) for name, parameter in self.parameters.items()
        }

    def step(self, rates: Rates) -> None:
        """Applies and clears the gradients."""
        together: dict[tuple[float, float], list[str]] = {}
        for name, parameter in self.parameters.items():
            kind, decay = self._terms[name]
            if rates[kind] != 0 and parameter.grad is not None:
                together.setdefault((rates[kind], decay), []).append(name)
        # a group costs the host a call and a GPU a kernel, whose start a small group does not
        # repay: as few as may be. The profiler knows what torch's class does by this name
        with torch.no_grad(), record_function("Optimizer.step"):
            for (rate, decay), names in together.items():
                own: list[Tensor] = [self.parameters[name] for name in names]
                lr, dampening = (1.0, 1.0 - rate) if self._inside else (rate, 0.0)
                grads = cast(list[Tensor], [one.grad for one in own])
                steps: list[Tensor | None] = [self.steps[name] for name in names]
                terms = self._common | {"weight_decay": decay, "lr": lr, "dampening": dampening}
                sgd(own, grads, steps, **terms)
        for parameter in self.parameters.values():
            parameter.grad = None

    def freeze(self, rates: Rates) -> None:
        """Switches off the gradients of what does not learn at these rates: backward then skips
        their work."""
        for name, parameter in self.parameters.items():
            parameter.requires_grad_(rates[self._terms[name][0]] != 0)


def _kind(name: str) -> Kind:
    layer, which = name.split(".")
    if layer == "conv1":
        return "conv1_weights" if which == "weight" else "conv1_biases"
    if layer in CONVS:
        return "conv_weights" if which == "weight" else "conv_biases"
    return "weights" if which == "weight" else "biases"


def _decay(name: str, recipe: Recipe) -> float:
    return recipe.weight_decay if name.endswith("weight") or recipe.bias_decay else 0.0
