"""Parts of images to the crop's side, on the CPU: torchvision's resize of uint8.

The engine (`gratis.loader.engine`) resizes to the same bits while it decodes; this is for what is
decoded already. So a batch does not depend on who decoded its samples."""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np
import torch
from numpy.typing import NDArray

from gratis.loader.config import LoaderConfig

Pixels = NDArray[np.uint8]


def resized(parts: Iterable[Pixels], count: int, config: LoaderConfig) -> Pixels:
    """`count` parts uint8 [h,w,3] of any size, as uint8 [count,crop,crop,3]."""
    out = np.empty((count, config.crop, config.crop, 3), np.uint8)
    for row, part in zip(out, parts, strict=True):
        image = torch.from_numpy(part).permute(2, 0, 1)[None]
        made = torch.nn.functional.interpolate(
            image, size=out.shape[1:3], mode=config.interpolation, antialias=config.antialias
        )
        row[:] = made[0].permute(1, 2, 0).numpy()
    return out
