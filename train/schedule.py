"""Rates as a pure function of the recipe and of how far the run is. Specification, section 4.1."""

from __future__ import annotations

import math
from typing import Literal

from train.recipes import Recipe

Kind = Literal["weights", "biases", "conv1_weights", "conv1_biases"]  # what has a rate of its own
Rates = dict[Kind, float]  # 0 freezes


def rates(recipe: Recipe, step: int, steps_per_epoch: int) -> Rates:
    """The rates of step `step` of the run, counted from 0."""
    progress = step / (recipe.epochs * steps_per_epoch)
    warm = min(1.0, (step + 1) / recipe.warmup_steps) if recipe.warmup_steps else 1.0
    weights = recipe.rate * warm * _decline(recipe, progress)
    biases = recipe.rate * warm * recipe.bias_rate * _bias_decline(recipe, progress)
    conv1 = _conv1_factor(recipe, progress)
    slow = min(weights, recipe.rate / 1000) if conv1 == "slow" else weights
    return {
        "weights": weights,
        "biases": biases,
        "conv1_weights": 0.0 if conv1 == "frozen" else slow,
        "conv1_biases": 0.0 if conv1 == "frozen" else biases,
    }


def _decline(recipe: Recipe, progress: float) -> float:
    if recipe.schedule == "cosine":
        return 0.5 * (1 + math.cos(math.pi * min(progress, 1.0)))
    if recipe.schedule == "dexp250":
        return float(250 ** (-_quarter(progress) / 3))
    return float(10 ** -_passed(recipe.drops, progress))


def _bias_decline(recipe: Recipe, progress: float) -> float:
    if recipe.bias_follows:
        return _decline(recipe, progress)
    return 0.1 if recipe.schedule == "dexp250" and progress > 0.5 else 1.0


def _quarter(progress: float) -> int:
    """0 to 3: step i applies while progress <= (i + 1) / 4."""
    return min(3, max(0, math.ceil(progress * 4) - 1))


def _passed(marks: tuple[float, ...], progress: float) -> int:
    return sum(progress >= mark - 1e-9 for mark in marks)  # an epoch's share of the run is rounded, the mark too


def _conv1_factor(recipe: Recipe, progress: float) -> str:
    if recipe.conv1_frozen is not None and _passed((recipe.conv1_frozen,), progress):
        return "frozen"
    if recipe.conv1_slow is not None and _passed((recipe.conv1_slow,), progress):
        return "slow"
    return "learning"


def noise_until(recipe: Recipe) -> int:
    """The first epoch without colour noise and without its division by 1.1."""
    return math.ceil(recipe.epochs * recipe.noise_until - 1e-9)
