"""Figure 4 of the paper: the network's guesses for single images, and images alike to it.

Left: validation images with the five classes held most probable. Right: validation images and the
training images nearest to them by the Euclidean distance of their fc7 responses; nearest by pixels
too, for contrast."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from matplotlib.figure import Figure
from numpy.typing import NDArray
from torch import Tensor

from gratis.train.analysis.plots import BLUE, DARK, RED, bare, new_figure
from gratis.train.analysis.trained_network import Pixels, TrainedNetwork, read_images, ten_views
from gratis.train.recipes import Layer

Floats = NDArray[np.float64]
COLUMNS, TOP = 4, 5
LETTERS = 24  # of a class's name
NEAREST = 6
CENTRE = 2  # of the ten views


def choose(trained: TrainedNetwork, count: int, seed: int) -> list[int]:
    """Validation samples, one of each class while there are classes left, by the seed."""
    labels = trained.index("val").label
    order = np.random.default_rng(seed).permutation(len(labels))
    _, firsts = np.unique(labels[order], return_index=True)
    rest = np.setdiff1d(np.arange(len(order)), firsts)
    chosen: list[int] = order[np.concatenate([np.sort(firsts), rest])][:count].tolist()
    return chosen


def draw_guesses(trained: TrainedNetwork, samples: Sequence[int], title: str) -> Figure:
    """Figure 4, left: each image with its true class, and five bars, that of the true class in
    red."""
    pixels, labels = read_images(trained, "val", samples)
    rows = -(-len(samples) // COLUMNS)
    heights = [2.2, 1.2] * rows
    size = (2.3 * COLUMNS, 3.9 * rows + 0.4)
    figure, grid = new_figure(*size, 2 * rows, COLUMNS, height_ratios=heights)
    for place, (image, label, probabilities) in enumerate(
        zip(pixels, labels, trained.probabilities(pixels), strict=True)
    ):
        row, column = 2 * (place // COLUMNS), place % COLUMNS
        grid[row][column].imshow(image)
        grid[row][column].set_title(short(trained.name(label)), fontweight="bold")
        _bars(grid[row + 1][column], probabilities, label, trained)
    for axes in grid.flat[:]:
        bare(axes)
    figure.suptitle(title, x=0.01, ha="left", fontsize=10)
    return figure


def _bars(axes: Any, probabilities: Floats, label: int, trained: TrainedNetwork) -> None:
    best = np.argsort(-probabilities, kind="stable")[:TOP]
    colours = [RED if guess == label else BLUE for guess in best]
    axes.barh(range(len(best)), probabilities[best], color=colours, alpha=0.55, height=0.82)
    for place, guess in enumerate(best.tolist()):
        axes.text(0.02, place, short(trained.name(guess)), va="center", fontsize=8)
        share = f"{probabilities[guess]:.0%}"
        axes.text(1.0, place, share, va="center", ha="right", fontsize=7, color=DARK)
    axes.set_xlim(0, 1)
    axes.set_ylim(TOP - 0.5, -0.5)


def short(name: str, letters: int = LETTERS) -> str:
    return name if len(name) <= letters else name[: letters - 1].rstrip() + "…"


@dataclass
class Nearest:
    """The `NEAREST` rows of a stream that lie nearest to each query, by squared Euclidean distance.

    queries [Q, D]; distances [Q, k] ascending and ids [Q, k], k growing to NEAREST.
    """

    queries: Tensor
    distances: Tensor
    ids: Tensor

    @classmethod
    def to(cls, queries: Tensor) -> Nearest:
        empty = queries.new_zeros((len(queries), 0))
        return cls(queries, empty, empty.long())

    def see(self, rows: Tensor, ids: Tensor) -> None:
        """rows [b, D] with their ids [b]. Of equal distances the one seen first stays."""
        distances = torch.cat([self.distances, torch.cdist(self.queries, rows).square()], 1)
        known = torch.cat([self.ids, ids.to(self.ids.device).expand(len(self.queries), -1)], 1)
        self.distances, order = distances.sort(dim=1, stable=True)
        self.ids = known.gather(1, order)[:, :NEAREST]
        self.distances = self.distances[:, :NEAREST]


@torch.inference_mode()
def find(
    trained: TrainedNetwork, queries: Sequence[Pixels], layer: Layer, limit: int
) -> tuple[Nearest, Nearest, int]:
    """The training images nearest to the queries by the layer's responses and by pixels, both of
    the centre view, among the first `limit` samples (a dataset's order is shuffled when it is
    made); and how many those were."""
    views = [ten_views(pixels, trained.recipe, trained.stats)[CENTRE] for pixels in queries]
    images = torch.from_numpy(np.stack(views)).to(trained.device)
    by_layer = Nearest.to(trained.network.responses(layer, images))
    by_pixels = Nearest.to(images.flatten(1))
    count = 0
    for own, ids in trained.images("train", "nearest neighbours", limit):
        by_layer.see(trained.network.responses(layer, own), ids)
        by_pixels.see(own.float().flatten(1), ids)
        count += len(ids)
    return by_layer, by_pixels, count


def draw_nearest(
    trained: TrainedNetwork, samples: Sequence[int], layer: Layer, limit: int, title: str
) -> Figure:
    """Figure 4, right: a row for each query, its nearest by the layer, and its nearest by
    pixels."""
    queries, labels = read_images(trained, "val", samples)
    by_layer, by_pixels, searched = find(trained, queries, layer, limit)
    total = trained.manifest.splits["train"].samples
    widths = [1, 0.1, *[1] * NEAREST, 0.1, *[1] * NEAREST]
    size = (0.95 * sum(widths), 1.15 * len(queries) + 0.7)
    figure, grid = new_figure(*size, len(queries), len(widths), width_ratios=widths)
    for row, (query, label) in enumerate(zip(queries, labels, strict=True)):
        _tile(grid[row][0], query, trained.name(label), BLUE)
        for first, nearest in ((2, by_layer), (3 + NEAREST, by_pixels)):
            tiles, theirs = read_images(trained, "train", nearest.ids[row].tolist())
            for place, (tile, their) in enumerate(zip(tiles, theirs, strict=True)):
                colour = "black" if their == label else RED
                _tile(grid[row][first + place], tile, trained.name(their), colour)
    for axes in grid.flat[:]:
        bare(axes)
    headings = {0: "validation", 2: f"nearest training images by {layer}", 3 + NEAREST: "by pixels"}
    for column, words in headings.items():
        at = ((0, 1), (0, 18), "axes fraction", "offset points")
        heading = grid[0][column].annotate(words, *at, fontsize=9, fontweight="bold")
        heading.set_in_layout(False)  # it reaches over several columns
    part = f"; {searched:,} of them searched" if searched < total else ""
    figure.suptitle(f"{title}{part}; red: another class\n", x=0.01, ha="left", fontsize=10)
    return figure


def _tile(axes: Any, pixels: Pixels, name: str, colour: str) -> None:
    axes.imshow(pixels)
    axes.set_title(short(name, 17), fontsize=6.5, color=colour, pad=2)
