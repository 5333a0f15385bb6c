"""Mixing and erasing by torch on the images' device. Equals `gratis.loader.views.mixing_reference`,
and on the CPU the engine's passes: mixing to the bit in float32, noise to 1e-5."""

from __future__ import annotations

import math

import numpy as np
import torch
from torch import Tensor

from gratis.loader.plan import ERASE_NOISE, Ids
from gratis.loader.views.draw_mixing import Erased, Mix

LOW = 0xFFFFFFFF


def mix_rows(images: Tensor, before: Tensor | None, mix: Mix) -> None:
    """In place, images [n,...,h,w]; before [...,h,w]: what precedes the first; None: the last."""
    first = images[-1] if before is None else before
    others = torch.cat([first[None], images[:-1]])
    if mix.box is None:
        mixed = others.float().mul_(1.0 - mix.lam).add_(images.float().mul_(mix.lam))
        images.copy_(mixed if images.dtype.is_floating_point else mixed.round_())
        return
    y, x, height, width = mix.box
    part = (..., slice(y, y + height), slice(x, x + width))
    images[part] = others[part]


def erase_views(  # noqa: PLR0917
    images: Tensor, erased: Erased, mode: str, seed: int, epoch: int, views: Ids
) -> None:
    """In place, images [n,3,h,w] of views by their draw ids: the first box of all of them at once,
    then the second ones."""
    device, (height, width) = images.device, images.shape[-2:]
    down, across = torch.arange(height, device=device), torch.arange(width, device=device)
    counts = np.diff(erased.first)
    for number in range(int(counts.max(initial=0))):
        with_it = np.flatnonzero(counts > number)
        which = erased.first[with_it] + number
        rows, ids = (
            torch.from_numpy(with_it).to(device),
            torch.from_numpy(views[with_it]).to(device),
        )
        top, left, h, w = torch.from_numpy(erased.boxes[which]).to(device).T[:, :, None]
        inside_y, inside_x = (
            (down >= top) & (down < top + h),
            (across >= left) & (across < left + w),
        )
        box, y, x = (inside_y[:, :, None] & inside_x[:, None]).nonzero(as_tuple=True)
        if mode == "pixel":
            values = pixel_noise(seed, epoch, ids[box], y * width + x).T
        else:
            values = torch.from_numpy(erased.colours[which]).to(device)[box]
        images[rows[box], :, y, x] = values.to(images.dtype)


def pixel_noise(seed: int, epoch: int, views: Tensor, places: Tensor) -> Tensor:
    """Standard normals, float32 [3,m], for places int64 [m] in views, whose draw ids are int64
    [m]."""
    counter = [views & LOW, views >> 32, torch.full_like(places, epoch), places << 8 | ERASE_NOISE]
    word = _philox(counter, (seed & LOW, seed >> 32))
    bits = [(one >> 8).float() for one in word]
    radius = [torch.sqrt(-2 * torch.log((one + 0.5) * 2.0**-24)) for one in bits[:2]]
    angle = [one * (2 * math.pi * 2.0**-24) for one in bits[2:]]
    sine, cosines = (
        radius[0] * torch.sin(angle[0]),
        [r * torch.cos(a) for r, a in zip(radius, angle, strict=True)],
    )
    return torch.stack([cosines[0], sine, cosines[1]])


def _philox(c: list[Tensor], key: tuple[int, int]) -> list[Tensor]:
    """As `gratis.loader.plan.philox`, in int64: the product wraps, and its bits are the same."""
    k0, k1 = key
    for _ in range(10):
        p0, p1 = c[0] * 0xD2511F53, c[2] * 0xCD9E8D57
        c = [(p1 >> 32 & LOW) ^ c[1] ^ k0, p1 & LOW, (p0 >> 32 & LOW) ^ c[3] ^ k1, p0 & LOW]
        k0, k1 = (k0 + 0x9E3779B9) & LOW, (k1 + 0xBB67AE85) & LOW
    return c
