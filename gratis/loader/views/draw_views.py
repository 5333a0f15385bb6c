"""Which views of each sample are taken: crop or resized crop, mirror, colour draw; in evaluation
the centre or the ten views.

The random numbers are those of `gratis.loader.plan`; here the configuration chooses among them."""

from __future__ import annotations

from functools import partial
from typing import NamedTuple

import numpy as np

from gratis.loader.config import LoaderConfig
from gratis.loader.plan import Draws, Ids, boxes, centre_view, draws, of_views, ten_views


class Views(NamedTuple):
    """Of n samples with v views each, a sample's adjacent: the draws of all views. Where views are
    resized, or may be, extents int64 [n*v,2]: height and width of what is cut out; else None: it is
    the crop. targets int64 [n*v,4]: height and width that it is resized to, and y, x of the crop's
    corner there; None: it is resized to the crop, all of it."""

    draws: Draws
    extents: Ids | None = None
    targets: Ids | None = None


def draw_views(
    config: LoaderConfig,
    sizes: Ids,
    epoch: int,
    ids: Ids,
    chunks: Ids | None = None,
    *,
    whole: bool = False,
) -> Views:
    """Every view of every sample.

    ids int64 [n]: draw ids (`plan.copies`), each of whose views is drawn like a sample of its own.
    sizes int64 [2,n]: height and width of the images; whole: they keep their shape, and may be
    smaller than the crop. chunks int64 [n]: training samples of the same number share crop and
    mirror; None: each has its own."""
    if (resize := config.shorter_side(whole=whole)) is not None:
        return resized_evaluation(config, sizes, resize)
    if not config.augment:
        positions = int(sizes[0, 0]) - config.crop + 1
        views = ten_views(positions) if config.views == 10 else centre_view(positions)
        return Views(Draws(*(np.concatenate([field] * len(ids)) for field in views)))
    ids, sizes = of_views(ids, config.views), np.repeat(sizes, config.views, axis=1)
    if config.area is not None:
        drawn = draws(config.seed, epoch, ids, 1, chunks, config.flip)
        y, x, height, width = boxes(config.seed, epoch, ids, sizes, config.area, config.ratio)
        return Views(drawn._replace(y=y, x=x), np.stack([height, width], axis=1))
    # of an image smaller than the crop the largest square, which is enlarged
    sides = np.minimum(config.crop, sizes.min(axis=0))
    positions_of = (sizes - sides + 1 - (config.crop_positions == "printed")).clip(1)
    drawn = draws(config.seed, epoch, ids, positions_of, chunks, config.flip)
    if config.crop_positions == "centre":
        y, x = (sizes - sides) // 2  # as a square's in evaluation
        drawn = drawn._replace(y=y, x=x)
    return Views(drawn, np.stack([sides, sides], axis=1) if whole else None)


def resized_evaluation(config: LoaderConfig, sizes: Ids, resize: int) -> Views:
    """Torchvision's Resize(resize), then CenterCrop(crop), or the ten views; of images that have
    that size already the crop alone."""
    crop, views = config.crop, config.views
    made = (resize * sizes / sizes.min(axis=0)).astype(np.int64)  # rounded down
    last = made - crop
    none, centre = np.zeros_like(last), np.rint(last / 2).astype(np.int64)  # halves: to even
    corners = centre[None]
    if views == 10:
        # of y from one row and of x from the other: the four corners, and the centre between them
        right, down = np.stack([none[0], last[1]]), np.stack([last[0], none[1]])
        corners = np.stack([none, right, centre, down, last] * 2)
    places = corners.transpose(2, 0, 1).reshape(-1, 2)  # [n*v,2]
    each = partial(np.repeat, repeats=views, axis=0)
    same = each((made == sizes).all(axis=0))[:, None]
    at = np.where(same, places, 0)
    flip = np.tile(np.arange(views) >= 5, sizes.shape[1])
    drawn = Draws(at[:, 0], at[:, 1], flip, np.zeros((len(flip), 3)))
    extents = np.where(same, crop, each(sizes.T))
    if same.all():
        return Views(drawn, extents)
    targets = np.concatenate([each(made.T), places], axis=1)
    return Views(drawn, extents, np.where(same, [crop, crop, 0, 0], targets))
