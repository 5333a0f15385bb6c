"""The picture that `gratis explain` draws: one image's views, epochs, colour draws and inputs.

What is shown was made by the reference that the loader's passes are tested against, from the
loader's own draws."""

from __future__ import annotations

from contextlib import closing
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np
from matplotlib import rc_context
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from numpy.typing import NDArray

from gratis.dataset import class_words
from gratis.loader.inspect.pictures import write_picture
from gratis.loader.loader import Loader
from gratis.loader.plan import Draws, ten_views
from gratis.loader.views import reference
from gratis.loader.views.colour_noise import colour_shift, scale

SHOWN = 10  # epochs, colour draws, views
Pixels = NDArray[np.uint8]
Floats = NDArray[np.float64]
# the caption above a picture; input: it is shown mean-subtracted
Caption = Literal["place", "shift", "input"]


class AppliedView(NamedTuple):
    """One view: input float64 [3,crop,crop] as the network gets it; visible uint8
    [crop,crop,3], the same with mean and division taken back; where it was cut out, and its colour
    draw [3] in gray levels."""

    input: Floats
    visible: Pixels
    place: str
    shift: Floats

    def text(self, caption: Caption) -> str:
        if caption == "shift":
            return "RGB " + " ".join(f"{value:+.0f}" for value in self.shift)
        if caption == "place":
            return self.place
        return f"{self.input.min():.0f} to {self.input.max():.0f}"


def apply_row(
    loader: Loader, image: Pixels, draws: Draws, row: int, *, colour: bool
) -> AppliedView:
    """One row of draws applied to the image as the loader does it."""
    config, stats, crop = loader.config, loader.stats, loader.config.crop
    shift, factor = np.zeros(3), 1.0
    if colour:
        shift = colour_shift(stats, config, 0, draws.normals[row : row + 1])[0]
        factor = scale(config, 0)
    y, x, flip = int(draws.y[row]), int(draws.x[row]), bool(draws.flip[row])
    mean, form = stats.mean, config.mean
    normalised = reference.apply_view(
        image, y=y, x=x, flip=flip, crop=crop, mean=mean, mean_form=form, shift=shift, factor=factor
    )
    cut = image[y : y + crop, x : x + crop].astype(np.float64)
    visible = (cut[:, ::-1] if flip else cut) + shift
    place = f"({y}, {x}){' mirrored' if flip else ''}"
    return AppliedView(normalised, np.rint(visible.clip(0, 255)).astype(np.uint8), place, shift)


def histogram(offsets: NDArray[np.int64], positions: int) -> NDArray[np.int64]:
    """int64 [positions, positions]: how often each offset (y, x) was drawn."""
    flat = np.bincount(offsets[:, 0] * positions + offsets[:, 1], minlength=positions**2)
    return flat.reshape(positions, positions)


def draw(loader: Loader, sample: int, image: Pixels, offsets: NDArray[np.int64], out: Path) -> None:
    with rc_context({"font.size": 8, "axes.titlesize": 8}):
        figure = Figure(figsize=(13, 10.6), layout="constrained")
        parts: Any = figure.subfigures(2, 1, height_ratios=[1.15, 1.75])
        _head(parts[0], loader, sample, image, offsets)
        _strips(parts[1], loader, sample, image)
        write_picture(out, lambda path: figure.savefig(path, dpi=110))


def _head(
    figure: Any, loader: Loader, sample: int, image: Pixels, offsets: NDArray[np.int64]
) -> None:
    """The stored image with the five crops' frames, the mean that is subtracted, and the heat map
    of offsets."""
    stored, mean, heat = figure.subplots(1, 3)
    crop, positions = loader.config.crop, loader.epoch_plan(0).positions
    with closing(loader.shard_reader()) as shards:
        key = shards.key(sample)
    label = int(loader.epoch_plan(0).index.label[sample])
    words = class_words(loader.classes, label)
    stored.imshow(image)
    views = ten_views(positions)
    for y, x in zip(views.y[:5].tolist(), views.x[:5].tolist(), strict=True):
        stored.add_patch(_frame(y, x, crop))
    stored.set_title(
        f"{key}, id {sample}: {words}\nas stored, {len(image)} px; an evaluation's five crops"
    )
    mean.imshow(loader.stats.mean.clip(0, 255) / 255)
    centre = (positions - 1) // 2
    mean.add_patch(_frame(centre, centre, crop))
    central = loader.config.mean == "central"
    form = "its centre is subtracted from every crop" if central else "subtracted by place"
    mean.set_title(f"mean image of the training split:\n{form}")
    _bare(stored, mean)
    counts = histogram(offsets, positions)
    drawn = heat.imshow(counts, cmap="viridis", vmin=0, interpolation="nearest")
    figure.colorbar(drawn, ax=heat, shrink=0.8)
    heat.set_title(
        f"offsets of {len(offsets):,} training crops\n{positions} x {positions} positions"
    )
    heat.set_xlabel("x")
    heat.set_ylabel("y")


def _frame(y: int, x: int, crop: int) -> Any:
    return Rectangle((x - 0.5, y - 0.5), crop, crop, fill=False, edgecolor="white", linewidth=1)


def _strips(figure: Any, loader: Loader, sample: int, image: Pixels) -> None:
    """Ten views; ten epochs; ten colour draws of the central crop; what the network gets of those
    epochs."""
    positions, ids = loader.epoch_plan(0).positions, np.array([sample])
    drawn = [loader.epoch_plan(epoch).draws(ids).draws for epoch in range(SHOWN)]
    epochs = Draws(*(np.concatenate(column) for column in zip(*drawn, strict=True)))
    centre = (positions - 1) // 2
    still = epochs._replace(
        y=np.full(SHOWN, centre), x=np.full(SHOWN, centre), flip=np.zeros(SHOWN, np.bool_)
    )

    def views_of(draws: Draws, *, colour: bool) -> list[AppliedView]:
        return [apply_row(loader, image, draws, row, colour=colour) for row in range(SHOWN)]

    trained = views_of(epochs, colour=True)
    strips: tuple[tuple[str, list[AppliedView], Caption], ...] = (
        ("evaluation:\nten views", views_of(ten_views(positions), colour=False), "place"),
        ("colour draws\nalone, centre", views_of(still, colour=True), "shift"),
        ("training:\nepochs 0 to 9", trained, "place"),
        ("the network's\ninput then", trained, "input"),
    )
    grid = figure.subplots(len(strips), SHOWN)
    for row, (name, views, caption) in enumerate(strips):
        for axes, one in zip(grid[row], views, strict=True):
            axes.imshow(_visible(one.input) if caption == "input" else one.visible)
            axes.set_title(one.text(caption), fontsize=6.5, pad=2)
        _bare(*grid[row])
        grid[row][0].set_ylabel(name)


def _visible(normalised: Floats) -> Floats:
    """[3,c,c] about -150 to 150, zero as middle grey."""
    grey: Floats = (normalised.transpose(1, 2, 0) / 300 + 0.5).clip(0, 1)
    return grey


def _bare(*all_axes: Any) -> None:
    for axes in all_axes:
        axes.set_xticks([])
        axes.set_yticks([])
