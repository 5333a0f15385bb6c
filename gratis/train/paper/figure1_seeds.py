"""Figure 1 with several seeds: the first searches the rates, the others take both activations' best
of them; epochs to the same training error, and their ratio with its range."""

from __future__ import annotations

import json
import math
import statistics
from collections.abc import Mapping, Sequence
from pathlib import Path

from gratis.train.paper.figure1 import ACTIVATIONS, Activation, fastest
from gratis.train.paper.four_layers import TrainingCurve
from gratis.train.paper.markdown import table

RATES: tuple[float, ...] = (0.004, 0.032, 0.008, 0.016, 0.064, 0.002)
Curves = Sequence[TrainingCurve]


def read(folder: Path) -> list[TrainingCurve]:
    """What `gratis figure1 --out FOLDER` has trained to its end."""
    try:
        file = json.loads((folder / "figure1.json").read_text())
        return [TrainingCurve(**curve) for curve in file["courses"]]
    except (OSError, ValueError, KeyError, TypeError):
        return []


def best_rates(curves: Curves, target: float) -> tuple[float, ...]:
    """Of the activations, each once."""
    both = [fastest([*curves], activation, target) for activation in ACTIVATIONS]
    return tuple(dict.fromkeys(curve.rate for curve in both if curve))


def common_target(seeds: Mapping[int, Curves], goal: float) -> float | None:
    """The goal, or the nearest whole per cent above it that both activations reach with each seed.
    None where one of them has no training."""
    lowest = []
    for curves in seeds.values():
        for activation in ACTIVATIONS:
            own = [min(one.errors) for one in of(curves, activation)]
            if not own:
                return None
            lowest.append(min(own))
    # 0.3 * 100 is a little above 30
    return max(goal, math.ceil(max(lowest) * 100 - 1e-9) / 100) if lowest else None


def of(curves: Curves, activation: Activation) -> list[TrainingCurve]:
    return [curve for curve in curves if curve.activation == activation and curve.errors]


def summary(seeds: Mapping[int, Curves], goal: float) -> list[str]:
    """Markdown: a row a seed, and the ratio's mean and range."""
    seeds = {seed: curves for seed, curves in seeds.items() if curves}
    target = common_target(seeds, goal)
    if target is None:
        return ["Not yet trained with both."]
    rows, ratios = list[list[str]](), list[float]()
    for seed, curves in seeds.items():
        cells, epochs = [str(seed)], list[float]()
        for activation in ACTIVATIONS:
            curve = fastest([*curves], activation, target)
            reached = curve.epochs_to(target) if curve else None
            assert curve is not None, activation
            assert reached is not None, activation  # by the choice of the target
            cells.append(f"{reached:.1f} (rate {curve.rate:g})")
            epochs.append(reached)
        ratios.append(epochs[1] / epochs[0])
        rows.append([*cells, f"{ratios[-1]:.1f}"])
    nearest = f"{goal:.0%} is not reached by both in each seed; {target:.0%} is the nearest"
    tried = sorted({curve.rate for curves in seeds.values() for curve in curves})
    return [
        f"Epochs to {target:.0%} training error{'' if target == goal else f' ({nearest})'}, each "
        f"at its best rate of {', '.join(f'{rate:g}' for rate in tried)}; seeds after the first "
        "take the two that were best with it.",
        "",
        *table(("seed", "ReLU", "tanh", "ratio"), rows),
        "",
        f"tanh takes {statistics.mean(ratios):.1f} times the epochs of ReLU "
        f"[{min(ratios):.1f}..{max(ratios):.1f}], n = {len(ratios)}; the paper, on CIFAR-10, 6.",
    ]
