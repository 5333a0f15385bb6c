"""Figure 3 as a number: has one tower become the one for colour? The gap between the towers' colour
shares, beside the gaps that dealing the same kernels out at random would give."""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from gratis.train.analysis.kernels import colour_shares
from gratis.train.paper.markdown import table

DEALS = 10_000


class Specialisation(NamedTuple):
    """scores: each tower's mean colour share. by_chance: the share of random deals of these kernels
    over the towers with a gap at least as large."""

    scores: tuple[float, float]
    by_chance: float

    @property
    def gap(self) -> float:
        return abs(self.scores[0] - self.scores[1])


def specialisation(weight: NDArray[np.float32]) -> Specialisation:
    """weight [K,3,h,w] of conv1, the first half of them tower 0's."""
    shares = colour_shares(weight)
    half = len(shares) // 2
    first, second = shares[:half].mean(), shares[half:].mean()
    generator = np.random.default_rng(0)
    dealt = generator.permuted(np.tile(shares, (DEALS, 1)), axis=1)
    gaps = abs(dealt[:, :half].mean(axis=1) - dealt[:, half:].mean(axis=1))
    by_chance = float((gaps >= abs(first - second) - 1e-12).mean())
    return Specialisation((float(first), float(second)), by_chance)


def summary(seeds: Mapping[int, tuple[Specialisation, Specialisation]]) -> list[str]:
    """Markdown of each seed's network as it began and as it ended."""
    rows = []
    for seed, (begun, ended) in seeds.items():
        scores = " / ".join(f"{score:.2f}" for score in ended.scores)
        chance = f"{ended.by_chance:.3f}"
        rows.append((str(seed), f"{begun.gap:.2f}", scores, f"{ended.gap:.2f}", chance))
    headings = ("seed", "gap at first", "colour share, tower 0 / 1", "gap", "random deals as far")
    seen = sum(ended.by_chance < 0.05 for _, ended in seeds.values())
    return [
        "Colour share: the part of a first kernel's energy that no grey image excites, the mean "
        "over a tower's kernels (white noise 0.67). Last column: of 10,000 random deals of the "
        "same kernels to two towers the share with a gap as large. The paper's towers: one for "
        "colour, one without, in every run.",
        "",
        *table(headings, rows),
        "",
        f"Seen, at 1 deal in 20 or fewer, in {seen} of {len(seeds)} seeds.",
    ]
