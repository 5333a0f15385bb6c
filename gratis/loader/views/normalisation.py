"""What is subtracted from a crop, and what it is multiplied by: one form for all that
`LoaderConfig.normalize` may be."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from gratis.dataset import Stats
from gratis.loader.config import IMAGENET, LoaderConfig
from gratis.loader.views.colour_noise import scale


class Normalisation(NamedTuple):
    """A crop becomes (grey levels - mean + colour noise) * factor.

    mean float32 [S,S,3], of the stored image's places: the mean image; or [crop,crop,3], the same
    everywhere; factor float64 [3], above 0."""

    mean: NDArray[np.float32]
    factor: NDArray[np.float64]


def normalisation(stats: Stats, config: LoaderConfig, epoch: int) -> Normalisation:
    """That of an epoch: in the released form the images with colour noise are divided by 1.1."""
    divided = np.full(3, scale(config, epoch))
    if config.normalize == "mean-image":
        return Normalisation(stats.mean, divided)
    shape = (config.crop, config.crop, 3)
    if config.normalize is None:
        return Normalisation(np.zeros(shape, np.float32), divided)
    mean, std = IMAGENET if config.normalize == "imagenet" else config.normalize
    everywhere = np.broadcast_to(255 * np.array(mean), shape).astype(np.float32)
    return Normalisation(everywhere, divided / (255 * np.array(std)))
