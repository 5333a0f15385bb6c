"""What the ablation runner can switch off, each as the authors did it, and what that cost their
network."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any, NamedTuple

from gratis.train.recipes import Recipe


class Switch(NamedTuple):
    """One part switched off, and by how many points of error the authors' network then was
    worse."""

    words: str
    off: Callable[[Recipe], Recipe]
    paper: tuple[float | None, float | None]  # top-1, top-5
    measured_on: str


def without(**fields: Any) -> Callable[[Recipe], Recipe]:
    return lambda recipe: replace(recipe, **fields)


def one_column(recipe: Recipe) -> Recipe:
    """#145-half: half the channels but in the last convolution, one tower."""
    *first, last = recipe.channels
    a, b, c, d = (channels // 2 for channels in first)
    return replace(recipe, towers=1, channels=(a, b, c, d, last))


NO_LRN, SEPARATE = without(lrn=False, map_norm=False), without(pool="separate")
SWITCHES = {
    "lrn": Switch("no normalisation layers", NO_LRN, (1.4, 1.2), "2012 val"),
    "overlap": Switch("pooling 2x2 every 2", SEPARATE, (0.4, 0.3), "2012 val"),
    "towers": Switch("one column of half the channels", one_column, (1.7, 1.2), "2010 test"),
    "color_noise": Switch(
        "no colour noise", without(noise="off"), (1.0, None), 'not stated; "over 1 %"'
    ),
    "dropout": Switch(
        "no dropout", without(dropout="off"), (None, None), '"substantial overfitting"'
    ),
}
"""Source: specification, sections 0.1 and 5: what the released logs show was switched, and on which
data."""
