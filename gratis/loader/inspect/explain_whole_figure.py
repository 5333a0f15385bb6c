"""The picture that `gratis explain` draws of an image that keeps its shape: where its views are cut
out, how often each place of it is seen, and the views themselves."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib import rc_context
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from numpy.typing import NDArray

from gratis.dataset import class_words
from gratis.loader.config import LoaderConfig
from gratis.loader.epoch.epoch_plan import EpochPlan
from gratis.loader.inspect.pictures import write_picture
from gratis.loader.loader import Loader
from gratis.loader.views.draw_views import Views, draw_views
from gratis.loader.views.operations_reference import apply_program
from gratis.loader.views.resize import resized

SHOWN = 10  # epochs, views
Pixels = NDArray[np.uint8]
Floats = NDArray[np.float64]


def apply_views(plan: EpochPlan, sample: int, image: Pixels) -> Pixels:
    """All views of a sample as the loader makes them, uint8 [v,crop,crop,3], before normalising,
    with the configuration's operations."""
    drawn, extents, targets = plan.draws(np.array([sample]))
    if extents is None:  # crops as they are
        extents = np.full((len(drawn.y), 2), plan.config.crop)
    places = np.column_stack([drawn.y, drawn.x, extents]).tolist()
    if targets is None:
        targets = np.tile([plan.config.crop, plan.config.crop, 0, 0], (len(places), 1))
    parts = [image[y : y + height, x : x + width].copy() for y, x, height, width in places]
    views = resized(parts, targets, plan.config)
    views[drawn.flip] = views[drawn.flip, :, ::-1]
    if (program := plan.program(np.array([sample]))) is None:
        return views
    made = [
        apply_program(view.transpose(2, 0, 1), *numbers).transpose(1, 2, 0)
        for view, *numbers in zip(views, program.ops, program.values, strict=True)
    ]
    return np.stack(made)


def many_views(loader: Loader, image: Pixels, count: int) -> Views:
    """That many draws of training, were all samples images of this size."""
    sizes = np.tile(np.array(image.shape[:2])[:, None], count)
    return draw_views(loader.config, sizes, 0, np.arange(count), whole=True)


def coverage(views: Views, image: Pixels) -> Floats:
    """The share of the draws that see each pixel of the image, float64 [height,width]."""
    assert views.extents is not None
    begins = np.stack([views.draws.y, views.draws.x])
    ends = begins + views.extents.T
    edges = np.zeros((image.shape[0] + 1, image.shape[1] + 1))
    for y, x, sign in (
        (begins, begins, 1),
        (ends, ends, 1),
        (begins, ends, -1),
        (ends, begins, -1),
    ):
        np.add.at(edges, (y[0], x[1]), sign)
    share: Floats = edges.cumsum(axis=0).cumsum(axis=1)[:-1, :-1] / begins.shape[1]
    return share


def report(views: Views, image: Pixels) -> None:
    assert views.extents is not None
    height, width = views.extents.T
    share, seen = height * width / (image.shape[0] * image.shape[1]), coverage(views, image)
    print(
        f"{len(height):,} parts of an image of {image.shape[1]} x {image.shape[0]} px: "
        f"{share.min():.1%} to {share.max():.1%} of its area, {share.mean():.1%} in the mean; "
        f"width / height {(width / height).min():.2f} to {(width / height).max():.2f}; "
        f"a pixel is in {seen.min():.1%} to {seen.max():.1%} of them"
    )


def draw(  # noqa: PLR0917
    loader: Loader, evaluation: LoaderConfig, sample: int, image: Pixels, views: Views, out: Path
) -> None:
    with rc_context({"font.size": 8, "axes.titlesize": 8}):
        figure = Figure(figsize=(13, 7.6), layout="constrained")
        parts: Any = figure.subfigures(2, 1, height_ratios=[1.4, 1])
        _head(parts[0], loader, sample, image, views)
        _strips(parts[1], loader, evaluation, sample, image)
        write_picture(out, lambda path: figure.savefig(path, dpi=110))


def _head(figure: Any, loader: Loader, sample: int, image: Pixels, views: Views) -> None:
    """The stored image with the parts of the first epochs, and how often each pixel is seen."""
    stored, heat = figure.subplots(1, 2)
    label = int(loader.epoch_plan(0).index.label[sample])
    stored.imshow(image)
    for epoch in range(SHOWN):
        drawn, extents, _ = loader.epoch_plan(epoch).draws(np.array([sample]))
        assert extents is not None
        corner, (height, width) = (drawn.x[0] - 0.5, drawn.y[0] - 0.5), extents[0]
        stored.add_patch(Rectangle(corner, width, height, fill=False, edgecolor="white"))
    size = f"{image.shape[1]} x {image.shape[0]} px"
    words = class_words(loader.classes, label)
    stored.set_title(f"id {sample}: {words}\nas stored, {size}; parts of epochs 0 to {SHOWN - 1}")
    drawn = heat.imshow(coverage(views, image), cmap="viridis", vmin=0, interpolation="nearest")
    figure.colorbar(drawn, ax=heat, shrink=0.8)
    heat.set_title(f"share of {len(views.draws.y):,} parts that see a pixel")
    _bare(stored, heat)


def _strips(
    figure: Any, loader: Loader, evaluation: LoaderConfig, sample: int, image: Pixels
) -> None:
    plans = [loader.epoch_plan(epoch) for epoch in range(SHOWN)]
    trained = [apply_views(plan, sample, image)[0] for plan in plans]
    evaluated = apply_views(replace(plans[0], config=evaluation), sample, image)
    grid = figure.subplots(2, SHOWN)
    for row, (name, views) in enumerate(
        (("training:\nepochs 0 to 9", trained), ("evaluation:\nten views", list(evaluated)))
    ):
        for axes, view in zip(grid[row], views, strict=True):
            axes.imshow(view)
        _bare(*grid[row])
        grid[row][0].set_ylabel(name)


def _bare(*all_axes: Any) -> None:
    for axes in all_axes:
        axes.set_xticks([])
        axes.set_yticks([])
