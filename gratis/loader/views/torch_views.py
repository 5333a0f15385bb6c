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
from gratis.loader.views.draw_operations import Program
from gratis.loader.views.normalisation import normalisation
from gratis.loader.views.torch_operations import apply_programs


def apply_views(  # noqa: PLR0917
    pixels: Tensor,
    ids: Tensor,
    draws: Draws,
    mean: Tensor,
    stats: Stats,
    config: LoaderConfig,
    epoch: int,
    program: Program | None = None,
) -> Tensor:
    """Crop, mirror, programs, mean, colour noise and type of images `ids` of pixels uint8
    [N,S,S,3], on their device; mean float32 [S,S,3] on it too, the normalisation's.

    [n,3,crop,crop] or [n,10,3,crop,crop], in the configuration's type and layout."""
    device, count, crop = pixels.device, config.views, config.crop

    def there(values: NDArray[Any]) -> Tensor:
        return torch.from_numpy(np.ascontiguousarray(values)).to(device, non_blocking=True)

    span = torch.arange(crop, device=device)
    flip = there(draws.flip)[:, None]
    y = there(draws.y)[:, None] + span
    x = there(draws.x)[:, None] + torch.where(flip, crop - 1 - span, span)
    sample = ids.to(device).repeat_interleave(count)[:, None, None]
    cut = pixels[sample, y[:, :, None], x[:, None, :]]
    if config.mean == "offset":
        images = cut.float() - mean[y[:, :, None], x[:, None, :]]
        return _scaled(images, draws, stats, config, epoch)
    return normalise(cut, draws, mean, stats, config, epoch, program)


def normalise(  # noqa: PLR0917
    cut: Tensor,
    draws: Draws,
    mean: Tensor,
    stats: Stats,
    config: LoaderConfig,
    epoch: int,
    program: Program | None = None,
) -> Tensor:
    """Crops uint8 [n*views,crop,crop,3], mirrored already, changed by their programs; as
    `apply_views`. The mean is the central one."""
    if program is not None:
        cut = apply_programs(cut.movedim(-1, 1), program).movedim(1, -1)
    centre = (len(mean) - config.crop) // 2
    part = slice(centre, centre + config.crop)
    return _scaled(cut.float() - mean[part, part], draws, stats, config, epoch)


def _scaled(images: Tensor, draws: Draws, stats: Stats, config: LoaderConfig, epoch: int) -> Tensor:
    count = config.views

    def there(values: NDArray[np.float64]) -> Tensor:
        return torch.from_numpy(values.astype(np.float32)).to(images.device, non_blocking=True)

    if config.augment:
        images += there(colour_shift(stats, config, epoch, draws.normals))[:, None, None]
    images *= there(normalisation(stats, config, epoch).factor)
    images = images.to(config.dtype)
    if config.layout != "nhwc":
        images = images.movedim(-1, 1)
    if config.layout == "nchw":
        images = images.contiguous()
    return images.view(-1, count, *images.shape[1:]) if count > 1 else images
