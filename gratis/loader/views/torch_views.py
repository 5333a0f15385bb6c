"""Views of decoded images in a tensor, by torch on the images' device. Equals
`gratis.loader.views.reference`."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from gratis.dataset import Stats
from gratis.loader.config import LoaderConfig
from gratis.loader.plan import Draws
from gratis.loader.views.colour_noise import colour_shift
from gratis.loader.views.normalisation import normalisation


def apply_views(  # noqa: PLR0917
    pixels: Tensor,
    ids: Tensor,
    draws: Draws,
    mean: Tensor,
    stats: Stats,
    config: LoaderConfig,
    epoch: int,
) -> Tensor:
    """Crop, mirror, mean, colour noise and type of images `ids` of pixels uint8 [N,S,S,3], on their
    device; mean float32 [S,S,3] on it too, the normalisation's.

    [n,3,crop,crop] or [n,10,3,crop,crop], in the configuration's type and layout."""
    device, count, crop = pixels.device, config.views, config.crop

    def there(values: NDArray[Any]) -> Tensor:
        return torch.from_numpy(np.ascontiguousarray(values)).to(device, non_blocking=True)

    span = torch.arange(crop, device=device)
    flip = there(draws.flip)[:, None]
    y = there(draws.y)[:, None] + span
    x = there(draws.x)[:, None] + torch.where(flip, crop - 1 - span, span)
    sample = ids.to(device).repeat_interleave(count)[:, None, None]
    images = pixels[sample, y[:, :, None], x[:, None, :]].float()
    if config.mean == "offset":
        images -= mean[y[:, :, None], x[:, None, :]]
    else:
        centre = (len(mean) - crop) // 2
        images -= mean[centre : centre + crop, centre : centre + crop]
    if config.augment:
        shift = colour_shift(stats, config, epoch, draws.normals).astype(np.float32)
        images += there(shift)[:, None, None]
    images *= there(normalisation(stats, config, epoch).factor.astype(np.float32))
    images = images.to(config.dtype)
    if config.layout != "nhwc":
        images = images.movedim(-1, 1)
    if config.layout == "nchw":
        images = images.contiguous()
    return images.view(-1, count, *images.shape[1:]) if count > 1 else images
