"""Rates as a pure function of the recipe and of how far the run is. Specification, section 4.1."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Literal

from gratis.train.recipes import Recipe

# what has a rate of its own
Kind = Literal["weights", "biases", "conv_weights", "conv_biases", "conv1_weights", "conv1_biases"]
Rates = dict[Kind, float]  # 0 freezes
MOST_DROPS = 3  # of the plateau schedule; the paper's


def rates(recipe: Recipe, step: int, steps_per_epoch: int, errors: Sequence[float] = ()) -> Rates:
    """The rates of step `step` of the run, counted from 0.

    errors are the validation errors after each complete epoch; the plateau schedule alone asks for
    them."""
    progress = step / (recipe.epochs * steps_per_epoch)
    warm = min(1.0, (step + 1) / recipe.warmup_steps) if recipe.warmup_steps else 1.0
    base = recipe.rate * batch_factor(recipe)
    decline = _decline(recipe, progress, errors)
    bias_decline = decline if recipe.bias_follows else _bias_decline(recipe, progress)
    weights, biases = base * warm * decline, base * warm * recipe.bias_rate * bias_decline
    conv1 = _conv1_factor(recipe, progress)
    conv_weights, conv_biases = weights * recipe.conv_rate, biases * recipe.conv_rate
    slow = min(conv_weights, base / 1000) if conv1 == "slow" else conv_weights
    return {
        "weights": weights,
        "biases": biases,
        "conv_weights": conv_weights,
        "conv_biases": conv_biases,
        "conv1_weights": 0.0 if conv1 == "frozen" else slow,
        "conv1_biases": 0.0 if conv1 == "frozen" else conv_biases,
    }


def batch_factor(recipe: Recipe) -> float:
    """What a larger batch multiplies the rates by. Theory asks for the root; linear is what
    Krizhevsky used to 1024."""
    ratio = recipe.batch / recipe.rate_batch
    return {"off": 1.0, "linear": ratio, "sqrt": math.sqrt(ratio)}[recipe.scale_rate]


def drops(errors: Sequence[float], patience: int) -> int:
    """How often the rate was divided by ten: each time the best error is `patience` epochs old,
    three times at most."""
    best, waited, count = math.inf, 0, 0
    for error in errors:
        best, waited = (error, 0) if error < best else (best, waited + 1)
        if waited == patience:
            count, waited = count + 1, 0
    return min(count, MOST_DROPS)


def _decline(recipe: Recipe, progress: float, errors: Sequence[float]) -> float:
    if recipe.schedule == "plateau":
        return float(10.0 ** -drops(errors, recipe.patience))
    if recipe.schedule == "cosine":
        return 0.5 * (1 + math.cos(math.pi * min(progress, 1.0)))
    if recipe.schedule == "dexp250":
        quarter = min(3, max(0, math.ceil(progress * 4) - 1))  # i while progress <= (i + 1) / 4
        return float(250 ** (-quarter / 3))
    return float(10 ** -_passed(recipe.drops, progress))


def _bias_decline(recipe: Recipe, progress: float) -> float:
    return 0.1 if recipe.schedule == "dexp250" and progress > 0.5 else 1.0


def _passed(marks: tuple[float, ...], progress: float) -> int:
    # an epoch's share of the run is rounded, the mark too
    return sum(progress >= mark - 1e-9 for mark in marks)


def _conv1_factor(recipe: Recipe, progress: float) -> str:
    if recipe.conv1_frozen is not None and _passed((recipe.conv1_frozen,), progress):
        return "frozen"
    if recipe.conv1_slow is not None and _passed((recipe.conv1_slow,), progress):
        return "slow"
    return "learning"


def noise_until(recipe: Recipe) -> int:
    """The first epoch without colour noise and without its division by 1.1."""
    return math.ceil(recipe.epochs * recipe.noise_until - 1e-9)
