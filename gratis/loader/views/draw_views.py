"""Which views of each sample are taken: crop or resized crop, mirror, colour draw; in evaluation
the centre or the ten views.

The random numbers are those of `gratis.loader.plan`; here the configuration chooses among them."""

from __future__ import annotations

import numpy as np

from gratis.loader.config import LoaderConfig
from gratis.loader.plan import Draws, Ids, boxes, centre_view, draws, of_views, ten_views


def draw_views(
    config: LoaderConfig, image_size: int, epoch: int, ids: Ids, chunks: Ids | None = None
) -> tuple[Draws, Ids | None]:
    """Every view of every sample, len(ids) * views rows with a sample's views adjacent; and, for
    resized crops, height and width of the part that is cut out, int64 [n,2], else None.

    ids: draw ids (`plan.copies`), each of whose views is drawn like a sample of its own. chunks
    int64 [n]: training samples of the same number share crop and mirror; None: each has its own."""
    positions = image_size - config.crop + 1
    if not config.augment:
        views = ten_views(positions) if config.views == 10 else centre_view(positions)
        return Draws(*(np.concatenate([field] * len(ids)) for field in views)), None
    ids = of_views(ids, config.views)
    offsets = max(1, positions - (config.crop_positions == "printed"))
    drawn = draws(config.seed, epoch, ids, offsets, chunks, config.flip)
    if config.area is None:
        return drawn, None
    y, x, height, width = boxes(config.seed, epoch, ids, image_size, config.area, config.ratio)
    return drawn._replace(y=y, x=x), np.stack([height, width], axis=1)
