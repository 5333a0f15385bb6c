"""Figure 3 of the paper: what conv1 has learned, one tower above the other, and how far they have
specialised.

In the two-tower network one tower's kernels end up agnostic to colour and the other's specific to
it, whichever it is; `colour_shares` puts a number to it."""

from __future__ import annotations

from typing import Any

import numpy as np
from matplotlib.figure import Figure
from numpy.typing import NDArray

from gratis.train.analysis.plots import BLUE, GREY, ORANGE, bare, new_figure

Floats = NDArray[np.float32]
COLUMNS = 16  # of 96 kernels in the paper
RANDOM = 2 / 3  # the colour share of white noise: two of its three dimensions are colour
WIDE, STRIP = 10.0, 2.6  # inches of the kernels and of their colour shares
GAP, PLATE = 1, 4  # pixels between kernels, and more between the towers


def colour_shares(weight: Floats) -> NDArray[np.float64]:
    """[K,3,h,w] -> [K] in [0, 1]: the part of each kernel's energy that grey images cannot excite.

    A kernel is the sum of what is equal in R, G and B (their mean at each pixel) and of the rest,
    which is perpendicular to it; the share is the energy (sum of squares) of the rest over the
    whole: 0 for a black-and-white kernel, 1 for one that compares colours of equal brightness, 2/3
    for white noise. A kernel of zeros has 0."""
    kernels = weight.astype(np.float64)
    colour = kernels - kernels.mean(axis=1, keepdims=True)
    energy = (kernels**2).sum(axis=(1, 2, 3))
    shares: NDArray[np.float64] = (colour**2).sum(axis=(1, 2, 3)) / np.maximum(energy, 1e-300)
    return shares


def scores(weight: Floats, towers: int) -> list[float]:
    """The colour-specialisation score of each tower: its kernels' mean colour share."""
    return [float(colour_shares(part).mean()) for part in np.split(weight, towers)]


def mosaic(weight: Floats, towers: int) -> Floats:
    """[rows, columns, 3] in [0, 1], towers one above the other, white between the kernels.

    As the authors showed it: the smallest weight of all kernels becomes 0, the largest 1.
    """
    shown = weight.transpose(0, 2, 3, 1)
    shown = (shown - shown.min()) / max(float(shown.max() - shown.min()), 1e-12)
    plates = [_plate(part) for part in np.split(shown, towers)]
    between = np.ones((PLATE, plates[0].shape[1], 3), np.float32)
    parts = [part for plate in plates for part in (between, plate)]
    return np.concatenate(parts[1:])


def _plate(kernels: Floats) -> Floats:
    count, side = len(kernels), kernels.shape[1] + GAP
    columns = columns_for(count)
    plate = np.ones((-(-count // columns) * side + GAP, columns * side + GAP, 3), np.float32)
    for place, kernel in enumerate(kernels):
        top, left = place // columns * side + GAP, place % columns * side + GAP
        plate[top : top + side - GAP, left : left + side - GAP] = kernel
    return plate


def columns_for(count: int) -> int:
    """16 where that gives whole rows or none does, else the most below that does: 24 kernels make 2
    rows of 12."""
    fitting = [columns for columns in range(COLUMNS, COLUMNS // 2 - 1, -1) if count % columns == 0]
    return min(count, fitting[0] if fitting else COLUMNS)


def draw(weight: Floats, towers: int, title: str) -> Figure:
    """The kernels, and beside them every kernel's colour share with each tower's mean."""
    picture, means = mosaic(weight, towers), scores(weight, towers)
    height, width = picture.shape[:2]
    size = (WIDE + STRIP, WIDE * height / width + 0.9)
    figure, ((left, right),) = new_figure(*size, 1, 2, width_ratios=[WIDE, STRIP])
    left.imshow(picture, interpolation="nearest")
    bare(left)
    middles = [height * (tower + 0.5) / towers for tower in range(towers)]
    labels = [f"tower {tower}\nscore {mean:.2f}" for tower, mean in enumerate(means)]
    left.set_yticks(middles, labels)
    left.tick_params(length=0)
    left.set_title(title, loc="left")
    _strip(right, weight, towers, means)
    return figure


def _strip(axes: Any, weight: Floats, towers: int, means: list[float]) -> None:
    """One dot a kernel, in rows by tower; a bar at the tower's mean."""
    for tower, part in enumerate(np.split(weight, towers)):
        shares, colour = colour_shares(part), (BLUE, ORANGE)[tower]
        # in the order of the kernels: no dot hides another for long
        rows = tower + np.linspace(-0.22, 0.22, len(shares))
        look: Any = {"markersize": 3, "alpha": 0.7, "markeredgewidth": 0}
        axes.plot(shares, rows, "o", color=colour, **look)
        axes.vlines(means[tower], tower - 0.32, tower + 0.32, color=colour, linewidth=2)
    axes.axvline(RANDOM, color=GREY, linewidth=0.8, linestyle=":")
    axes.text(RANDOM, towers - 0.52, " white noise", color=GREY, fontsize=7, va="bottom")
    axes.set_xlim(0, 1)
    axes.set_ylim(towers - 0.5, -0.5)
    axes.set_yticks([])
    axes.spines["left"].set_visible(False)
    axes.set_xlabel("colour share of each kernel")
    if towers > 1:
        axes.set_title(f"gap between the towers {abs(means[0] - means[1]):.2f}", loc="left")
