"""Parts of images to the crop's side, on the CPU: torchvision's resize of uint8.

The engine (`gratis.loader.engine`) resizes to the same bits while it decodes; this is for what is
decoded already. So a batch does not depend on who decoded its samples."""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np
import torch
from numpy.typing import NDArray

from gratis.loader.config import LoaderConfig
from gratis.loader.plan import Ids

Pixels = NDArray[np.uint8]


def resized(parts: Iterable[Pixels], targets: Ids, config: LoaderConfig) -> Pixels:
    """n parts uint8 [h,w,3] of any size, as uint8 [n,crop,crop,3]. targets int64 [n,4]: height and
    width that each is resized to, and y, x of the crop's corner there."""
    crop = config.crop
    out = np.empty((len(targets), crop, crop, 3), np.uint8)
    for row, part, (height, width, y, x) in zip(out, parts, targets.tolist(), strict=True):
        image = torch.from_numpy(part).permute(2, 0, 1)[None]
        made = torch.nn.functional.interpolate(
            image, size=(height, width), mode=config.interpolation, antialias=config.antialias
        )
        row[:] = made[0, :, y : y + crop, x : x + crop].permute(1, 2, 0).numpy()
    return out
