"""The paper's figures from one's own run: `gratis figures --run R`, PNGs in the run's folder
`figures`.

- conv1.png: figure 3, the first layer's kernels by tower, and how far the towers have specialised
  in colour
- top5.png: figure 4, left, validation images and the five classes held most probable
- neighbours.png: figure 4, right, validation images and the training images nearest to them in fc7
- curves.png: loss, training and validation error over epochs
- rates.png: the learning rates, and what happened when"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal, get_args

from gratis.command_line import parse
from gratis.errors import GratisError
from gratis.extras import require
from gratis.history import records
from gratis.train.analysis.run_options import RunOptions
from gratis.train.recipes import Layer

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from gratis.train.analysis.trained_network import TrainedNetwork

Which = Literal["conv1", "top5", "neighbours", "curves", "rates"]
NAMES: tuple[Which, ...] = get_args(Which)
CAPTIONS: dict[Which, str] = {
    "conv1": "Figure 3: conv1's kernels by tower. In the paper one tower's came out grey, the "
    "other's coloured; right, the share of colour in each kernel. Kernels that look like noise "
    "have hardly been trained yet.",
    "top5": "Figure 4, left: validation images with their class above and the five guesses below, "
    "the right one red.",
    "neighbours": "Figure 4, right: validation images and the training images nearest to them in "
    "fc7, and by pixels.",
    "curves": "Loss and errors over epochs; training's are means over augmented images with "
    "dropout.",
    "rates": "Learning rates, and what happened when.",
}
"""For a reader of the picture."""
GUESSED, QUERIES = 8, 5  # images, as in the paper


@dataclass(frozen=True, kw_only=True)
class Figures(RunOptions):
    """Draws the paper's figures 3 and 4, the training curves and the learning rate of a run."""

    only: tuple[Which, ...] = NAMES
    """Which figures."""
    out: Path | None = None
    """Folder for the PNGs. Default: `figures` in the run's folder."""
    layer: Layer = "fc7"
    """Whose responses decide which training images are the nearest."""
    search: int = 100_000
    """Training images among which the nearest are looked for; each costs a forward pass."""
    seed: int = 0
    """Of the choice of validation images."""

    def __post_init__(self) -> None:
        if not self.only:
            raise GratisError(f"--only needs at least one of {', '.join(NAMES)}")
        if self.search < 1:
            raise GratisError(f"--search {self.search} must be at least 1")


def main(arguments: list[str]) -> None:
    options = parse(Figures, arguments, "gratis figures")
    require("figures", "gratis figures")
    for path in draw(options):
        print(path, flush=True)


def draw(options: Figures) -> list[Path]:
    """Writes what was asked for and returns the paths; prints what cannot be drawn of this run."""
    from gratis.train.analysis.plots import save, style
    from gratis.train.analysis.trained_network import load

    trained, paths = load(options), []
    folder = options.out or trained.folder / "figures"
    for name in options.only:
        if name in ("top5", "neighbours") and "val" not in trained.manifest.splits:
            print(f"{name}: {trained.shards} has no validation split, nothing to draw", flush=True)
            continue
        with style():
            paths.append(save(figure_of(name, trained, options), folder / f"{name}.png"))
    return paths


def title(trained: TrainedNetwork) -> str:
    """Which run, how far, on what: under every figure, so that none travels without it."""
    samples, classes = trained.manifest.splits["train"].samples, len(trained.manifest.classes)
    state, epochs = trained.state, trained.recipe.epochs
    return (
        f"{trained.folder.name}, step {state.step:,} (epoch {state.epoch} of {epochs}), "
        f"trained on {samples:,} images of {classes:,} classes"
    )


def figure_of(name: Which, trained: TrainedNetwork, options: Figures) -> Figure:
    from gratis.train.analysis import curves, figure4, kernels

    below = title(trained)
    if name == "conv1":
        weight = trained.weights["conv1.weight"].numpy()
        weight = weight[:, ::-1] if trained.recipe.channel_order == "bgr" else weight
        scores = enumerate(kernels.scores(weight, trained.recipe.towers))
        by_tower = ", ".join(f"tower {tower} {score:.3f}" for tower, score in scores)
        scale = f"0 grey, 1 colour, {kernels.RANDOM:.2f} noise"
        print(f"colour-specialisation score ({scale}): {by_tower}", flush=True)
        return kernels.draw(weight, trained.recipe.towers, below)
    if name == "top5":
        samples = figure4.choose(trained, GUESSED, options.seed)
        return figure4.draw_guesses(trained, samples, below)
    if name == "neighbours":
        samples = figure4.choose(trained, QUERIES, options.seed + 1)
        return figure4.draw_nearest(trained, samples, options.layer, options.search, below)
    over_epochs = curves.draw_curves if name == "curves" else curves.draw_rates
    per_epoch = -(-trained.manifest.splits["train"].samples // trained.recipe.batch)
    return over_epochs(records(trained.folder), trained.recipe, per_epoch, below)
