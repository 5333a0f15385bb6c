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
    y, x = _places(draws, config.crop, pixels.device)
    sample = ids.to(pixels.device).repeat_interleave(config.views)[:, None, None]
    crops = pixels[sample, y[:, :, None], x[:, None, :]]
    return finish_crops(crops, draws, mean, stats, config, epoch, program)


def finish_crops(  # noqa: PLR0917
    crops: Tensor,
    draws: Draws,
    mean: Tensor,
    stats: Stats,
    config: LoaderConfig,
    epoch: int,
    program: Program | None = None,
) -> Tensor:
    """Programs, mean, colour noise and type of crops uint8 [m,crop,crop,3], which are mirrored
    already, as `apply_views` does."""
    device, count, crop = crops.device, config.views, config.crop
    if program is not None:
        crops = apply_programs(crops.movedim(-1, 1), program).movedim(1, -1)
    images = crops.float()
    if config.mean == "offset":
        y, x = _places(draws, crop, device)
        images -= mean[y[:, :, None], x[:, None, :]]
    else:
        centre = (len(mean) - crop) // 2
        images -= mean[centre : centre + crop, centre : centre + crop]
    if config.augment:
        shift = colour_shift(stats, config, epoch, draws.normals).astype(np.float32)
        images += _there(shift, device)[:, None, None]
    images *= _there(normalisation(stats, config, epoch).factor.astype(np.float32), device)
    images = images.to(config.dtype)
    if config.layout != "nhwc":
        images = images.movedim(-1, 1)
    if config.layout == "nchw":
        images = images.contiguous()
    return images.view(-1, count, *images.shape[1:]) if count > 1 else images


def _places(draws: Draws, crop: int, device: torch.device) -> tuple[Tensor, Tensor]:
    """Row and column of each view's pixels in the stored image, int64 [m,crop] each."""
    span = torch.arange(crop, device=device)
    flip = _there(draws.flip, device)[:, None]
    y = _there(draws.y, device)[:, None] + span
    return y, _there(draws.x, device)[:, None] + torch.where(flip, crop - 1 - span, span)


def _there(values: NDArray[Any], device: torch.device) -> Tensor:
    return torch.from_numpy(np.ascontiguousarray(values)).to(device, non_blocking=True)
