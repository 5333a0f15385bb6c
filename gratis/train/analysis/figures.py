"""The paper's figures from one's own run: `gratis figures --run R`, PNGs in the run's folder
`figures`.

conv1.png       figure 3: the first layer's kernels by tower, and how far the towers have
specialised in colour top5.png        figure 4, left: validation images and the five classes held
most probable neighbours.png  figure 4, right: validation images and the training images nearest to
them in fc7 curves.png      loss, training and validation error over epochs rates.png       the
learning rates, and what happened when"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal, get_args

from gratis.command_line import parse
from gratis.errors import GratisError
from gratis.train.analysis.saved import Saved
from gratis.train.recipes import Layer

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from gratis.train.analysis.trained import Trained

Which = Literal["conv1", "top5", "neighbours", "curves", "rates"]
NAMES: tuple[Which, ...] = get_args(Which)
CAPTIONS: dict[Which, str] = {
    "conv1": "Figure 3: conv1's kernels by tower. In the paper one tower's came out grey, the "
    "other's coloured; right, "
    "the share of colour in each kernel. Kernels that look like noise have hardly been "
    "trained yet.",
    "top5": "Figure 4, left: validation images with their class above and the five guesses below, "
    "the right one red.",
    "neighbours": "Figure 4, right: validation images and the training images nearest to them in "
    "fc7, and by pixels.",
    "curves": "Loss and errors over epochs; training's are means over augmented images with "
    "dropout.",
    "rates": "Learning rates, and what happened when.",
}
"""What a reader of the picture is told."""
GUESSED, QUERIES = 8, 5  # images, as in the paper


@dataclass(frozen=True, kw_only=True)
class Figures(Saved):
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
    for path in draw(options):
        print(path, flush=True)


def draw(options: Figures) -> list[Path]:
    """Writes what was asked for and returns the paths; says what cannot be drawn of this run."""
    from gratis.train.analysis.plots import save, styled
    from gratis.train.analysis.trained import load

    trained, written = load(options), []
    folder = options.out or trained.folder / "figures"
    for name in options.only:
        if name in ("top5", "neighbours") and "val" not in trained.manifest.splits:
            print(f"{name}: {trained.shards} has no validation split, nothing to draw", flush=True)
            continue
        with styled():
            written.append(save(DRAW[name](trained, options), folder / f"{name}.png"))
    return written


def title(trained: Trained) -> str:
    """Which run, how far, on what: under every figure, so that none travels without it."""
    samples, classes = trained.manifest.splits["train"].samples, len(trained.manifest.classes)
    return (
        f"{trained.folder.name}, step {trained.state.step:,} (epoch {trained.state.epoch} of "
        f"{trained.recipe.epochs}), "
        f"trained on {samples:,} images of {classes:,} classes"
    )


def _conv1(trained: Trained, _: Figures) -> Figure:
    from gratis.train.analysis import kernels

    weight = trained.network.get_parameter("conv1.weight").detach().cpu().numpy()
    weight = weight[:, ::-1] if trained.recipe.channel_order == "bgr" else weight
    towers = trained.recipe.towers
    told = ", ".join(
        f"tower {tower} {score:.3f}" for tower, score in enumerate(kernels.scores(weight, towers))
    )
    print(
        f"colour-specialisation score (0 grey, 1 colour, {kernels.RANDOM:.2f} noise): {told}",
        flush=True,
    )
    return kernels.draw(weight, towers, title(trained))


def _top5(trained: Trained, options: Figures) -> Figure:
    from gratis.train.analysis import gallery

    return gallery.draw_guesses(
        trained, gallery.choose(trained, GUESSED, options.seed), title(trained)
    )


def _neighbours(trained: Trained, options: Figures) -> Figure:
    from gratis.train.analysis import gallery

    samples = gallery.choose(trained, QUERIES, options.seed + 1)
    return gallery.draw_nearest(trained, samples, options.layer, options.search, title(trained))


def _curves(trained: Trained, _: Figures) -> Figure:
    from gratis.history import records
    from gratis.train.analysis import curves

    return curves.draw_curves(
        records(trained.folder), trained.recipe, steps_per_epoch(trained), title(trained)
    )


def _rates(trained: Trained, _: Figures) -> Figure:
    from gratis.history import records
    from gratis.train.analysis import curves

    return curves.draw_rates(
        records(trained.folder), trained.recipe, steps_per_epoch(trained), title(trained)
    )


def steps_per_epoch(trained: Trained) -> int:
    return -(-trained.manifest.splits["train"].samples // trained.recipe.batch)


DRAW: dict[Which, Callable[[Trained, Figures], Figure]] = {
    "conv1": _conv1,
    "top5": _top5,
    "neighbours": _neighbours,
    "curves": _curves,
    "rates": _rates,
}
