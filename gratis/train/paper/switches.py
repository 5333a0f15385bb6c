"""What the ablation runner can switch off, each as the authors did it, and what that cost their
network."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

from gratis.train.recipes import Recipe


@dataclass(frozen=True, kw_only=True)
class Switch:
    """One part switched off, and by how many points of error the authors' network then was
    worse."""

    words: str
    off: Callable[[Recipe], Recipe]
    paper: tuple[float | None, float | None]  # top-1, top-5
    measured_on: str


def one_column(recipe: Recipe) -> Recipe:
    """#145-half: half the channels but in the last convolution, one tower."""
    *first, last = recipe.channels
    a, b, c, d = (channels // 2 for channels in first)
    return replace(recipe, towers=1, channels=(a, b, c, d, last))


SWITCHES: dict[str, Switch] = {
    "lrn": Switch(
        words="no normalisation layers",
        off=lambda recipe: replace(recipe, lrn=False, map_norm=False),
        paper=(1.4, 1.2),
        measured_on="2012 val",
    ),
    "overlap": Switch(
        words="pooling 2x2 every 2",
        off=lambda recipe: replace(recipe, pool="separate"),
        paper=(0.4, 0.3),
        measured_on="2012 val",
    ),
    "towers": Switch(
        words="one column of half the channels",
        off=one_column,
        paper=(1.7, 1.2),
        measured_on="2010 test",
    ),
    "color_noise": Switch(
        words="no colour noise",
        off=lambda recipe: replace(recipe, noise="off"),
        paper=(1.0, None),
        measured_on='not stated; "over 1 %"',
    ),
    "dropout": Switch(
        words="no dropout",
        off=lambda recipe: replace(recipe, dropout="off"),
        paper=(None, None),
        measured_on='"substantial overfitting"',
    ),
}
"""Source: specification, sections 0.1 and 5: what the released logs show was switched, and on which
data."""
