"""The colour noise of training, along the principal components of the dataset's RGB values
(specification, section 2, step 5)."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from gratis.dataset import Stats
from gratis.loader.config import LoaderConfig

DIVISOR = 1.1  # of images with colour noise: 1 + its coefficient


def colour_matrix(stats: Stats, noise: str) -> NDArray[np.float64]:
    """float64 [3,3]: times three standard normals it is the colour noise in 0-255 units."""
    if noise == "sqrt":
        return 0.1 * stats.eigenvectors * np.sqrt(np.maximum(stats.eigenvalues, 0))
    # eigenvalues / 255**2 on [0,1] pixels, times 255
    return 0.1 * stats.eigenvectors * (stats.eigenvalues / 255)


def colour_shift(
    stats: Stats, config: LoaderConfig, epoch: int, normals: NDArray[np.float64]
) -> NDArray[np.float64]:
    """What colour noise adds to each sample before the division, float64 [n,3], 0-255 units."""
    if not config.noisy(epoch):
        return np.zeros_like(normals)
    shift: NDArray[np.float64] = normals @ colour_matrix(stats, config.noise).T
    return shift


def scale(config: LoaderConfig, epoch: int) -> float:
    """The factor on the whole image at the end: 1 / 1.1 in the released form while there is noise,
    else 1."""
    return 1 / DIVISOR if config.noisy(epoch) and config.noise == "sqrt" else 1.0
