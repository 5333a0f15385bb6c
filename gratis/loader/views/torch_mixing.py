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
    """In place, images [n,3,h,w] of views by their draw ids."""
    height, width = images.shape[-2:]
    for row in np.flatnonzero(np.diff(erased.first)).tolist():
        for box in range(int(erased.first[row]), int(erased.first[row + 1])):
            y, x, h, w = erased.boxes[box].tolist()
            part = images[row, :, y : y + h, x : x + w]
            if mode == "pixel":
                places = torch.arange(y, y + h, device=images.device)[:, None] * width
                places = places + torch.arange(x, x + w, device=images.device)
                part.copy_(pixel_noise(seed, epoch, int(views[row]), places))
            else:
                color = torch.from_numpy(erased.normals[box] * (mode == "rand")).float()
                part.copy_(color[:, None, None].expand(3, h, w))
    assert height * width <= 1 << 24


def pixel_noise(seed: int, epoch: int, view: int, places: Tensor) -> Tensor:
    """Standard normals, float32 [3,...] for places int64 [...] in a view."""
    counter = [torch.full_like(places, number) for number in (view & LOW, view >> 32, epoch)]
    word = _philox([*counter, places << 8 | ERASE_NOISE], (seed & LOW, seed >> 32))
    bits = [(one >> 8).float() for one in word]
    radius = [torch.sqrt(-2 * torch.log((one + 0.5) * 2.0**-24)) for one in bits[:2]]
    angle = [one * (2 * math.pi * 2.0**-24) for one in bits[2:]]
    return torch.stack([
        radius[0] * torch.cos(angle[0]),
        radius[0] * torch.sin(angle[0]),
        radius[1] * torch.cos(angle[1]),
    ])  # fmt: skip


def _philox(c: list[Tensor], key: tuple[int, int]) -> list[Tensor]:
    """As `gratis.loader.plan.philox`, in int64: the product wraps, and its bits are the same."""
    k0, k1 = key
    for _ in range(10):
        p0, p1 = c[0] * 0xD2511F53, c[2] * 0xCD9E8D57
        c = [(p1 >> 32 & LOW) ^ c[1] ^ k0, p1 & LOW, (p0 >> 32 & LOW) ^ c[3] ^ k1, p0 & LOW]
        k0, k1 = (k0 + 0x9E3779B9) & LOW, (k1 + 0xBB67AE85) & LOW
    return c
