"""Operations on the pixels of a batch by torch, on the images' device: for a GPU. Equals
`gratis.loader.views.operations_reference`; held against it on a CPU, and on a GPU yet to be run.

Samples that get the same operation in the same step are changed together. Where the reference fuses
a product with a sum, float64 stands in for it."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor

from gratis.loader.engine.library import Op
from gratis.loader.views.draw_operations import Program


def apply_programs(images: Tensor, program: Program) -> Tensor:
    """images uint8 [n,3,h,w], with a program for each; a tensor of their kind."""
    kept: list[Tensor] = []
    images, values = images.clone(), torch.from_numpy(program.values).to(images.device)
    for step, column in enumerate(program.ops.T):
        for op in np.unique(column).tolist():
            rows = torch.from_numpy(np.flatnonzero(column == op)).to(images.device)
            if op == Op.KEEP:  # of AugMix, which is for all samples
                kept.append(images)
                images = kept[0].clone()
            elif op == Op.MIX:
                images = mixed(kept, values[:, step])
                kept = []
            elif op != Op.NOTHING:
                images[rows] = OPERATIONS[op](images[rows], values[rows, step])
    return images


def level(values: Tensor) -> Tensor:
    return values.clamp(0, 255).to(torch.uint8)


def column(values: Tensor, number: int) -> Tensor:
    """One number of each sample, [m,1,1,1]."""
    return values[:, number, None, None, None]


def fused(a: Tensor, b: Tensor, c: Tensor) -> Tensor:
    return (a.double() * b.double() + c.double()).float()


def grey_levels(images: Tensor) -> Tensor:
    """float32 [m,1,h,w], not rounded."""
    r, g, b = images.float()[:, :, None].unbind(1)
    green, blue = (torch.tensor(x, device=images.device) for x in (0.587, 0.114))
    return fused(b, blue, fused(g, green, r * 0.2989))


def blended(images: Tensor, other: Tensor, v: Tensor) -> Tensor:
    return level(fused(other, column(v, 1), images.float() * column(v, 0)))


def brightness(images: Tensor, v: Tensor) -> Tensor:
    return level(images.float() * column(v, 0))


def contrast(images: Tensor, v: Tensor) -> Tensor:
    grey = grey_levels(images).floor()
    count = grey[0].numel()
    mean = grey.sum(dim=(1, 2, 3), dtype=torch.float64).float() / count
    return blended(images, mean[:, None, None, None], v)


def saturation(images: Tensor, v: Tensor) -> Tensor:
    return blended(images, grey_levels(images).floor(), v)


def grey(images: Tensor, v: Tensor) -> Tensor:
    return level(grey_levels(images)).expand(images.shape)


def hue(images: Tensor, v: Tensor) -> Tensor:
    rgb = images.float() * (1 / 255)
    r, g, _ = rgb.unbind(1)
    most, least = rgb.amax(1), rgb.amin(1)
    spread = most - least
    s = spread / torch.where(spread == 0, 1.0, most)
    rc, gc, bc = ((most[:, None] - rgb) / torch.where(spread == 0, 1.0, spread)[:, None]).unbind(1)
    h = torch.where(most == r, bc - gc, torch.where(most == g, rc + 2 - bc, gc + 4 - rc))
    h = (h * (1 / 6) + 1).fmod(1) + column(v, 0)[:, 0]
    h = h.fmod(1)
    h = torch.where(h < 0, h + 1, h) * 6
    sixth = h.floor()
    part, rest = s * (h - sixth), 1 - s
    p, q, t = ((x * most).clamp(0, 1) for x in (rest, 1 - part, part + rest))
    choices = torch.stack([most, p, q, t], 1)
    which = torch.tensor(
        [[0, 2, 1, 1, 3, 0], [3, 0, 0, 2, 1, 1], [1, 1, 3, 0, 0, 2]], device=images.device
    )
    chosen = which[:, sixth.long() % 6].movedim(0, 1)
    return level(choices.gather(1, chosen) * 255.999)


def posterize(images: Tensor, v: Tensor) -> Tensor:
    mask = 0xFF << (8 - column(v, 0).int()) & 0xFF
    return images & mask.to(torch.uint8)


def solarize(images: Tensor, v: Tensor) -> Tensor:
    return torch.where(images >= column(v, 0), 255 - images, images)


def solarize_add(images: Tensor, v: Tensor) -> Tensor:
    return torch.where(images < 128, level(images.float() + column(v, 0)), images)


def autocontrast(images: Tensor, v: Tensor) -> Tensor:
    wide = images.float()
    least, most = wide.amin((2, 3), keepdim=True), wide.amax((2, 3), keepdim=True)
    scale = (most - least) * torch.tensor(1 / 255, device=images.device)
    made = level((wide - least) / torch.where(most == least, 1.0, scale))
    return torch.where(most == least, images, made)


def equalize(images: Tensor, v: Tensor) -> Tensor:
    planes = images.flatten(0, 1).flatten(1).long()
    begins = torch.arange(len(planes), device=images.device)[:, None] * 256
    counts = torch.bincount((planes + begins).flatten(), minlength=256 * len(planes)).view(-1, 256)
    places = torch.arange(256, device=images.device)
    last = torch.where(counts > 0, places, -1).amax(1, keepdim=True)
    step = (planes.shape[1] - counts.gather(1, last)) // 255
    before = counts.cumsum(1) - counts
    table = ((before + step // 2) // step.clamp(min=1)).clamp(max=255)
    return torch.where(step > 0, table, places).gather(1, planes).to(torch.uint8).view(images.shape)


def sharpness(images: Tensor, v: Tensor) -> Tensor:
    height, width = images.shape[2:]
    if min(height, width) <= 2:
        return images
    wide, old = images.int(), images[:, :, 1:-1, 1:-1]
    nine = torch.zeros_like(old, dtype=torch.int32)
    for y in range(3):
        for x in range(3):
            nine += wide[:, :, y : height - 2 + y, x : width - 2 + x]
    blur = ((nine + 4 * old.int() + 6) // 13).float()  # to the nearest: a 13th is never a half
    made = images.clone()
    made[:, :, 1:-1, 1:-1] = level(fused(blur - old.float(), column(v, 0), old.float()))
    return made


def blur(images: Tensor, v: Tensor) -> Tensor:
    """By rows, then by columns, in float32: sums may round otherwise than the reference's."""
    made = images.float()
    for dim, sigma, taps in ((3, v[:, 0], v[:, 2]), (2, v[:, 1], v[:, 3])):
        count = int(taps[0])  # the same for all: it is the configuration's
        offset = torch.arange(count, device=images.device) - count // 2
        factors = torch.exp(-0.5 * (offset / sigma[:, None].double()) ** 2)
        factors = (factors / factors.sum(1, keepdim=True)).float()
        pads = (count // 2, count // 2, 0, 0) if dim == 3 else (0, 0, count // 2, count // 2)
        padded, size = torch.nn.functional.pad(made, pads, "reflect"), made.shape[dim]
        made = torch.zeros_like(made)
        for k in range(count):
            made += padded.narrow(dim, k, size) * column(factors, k)
    return made.round().to(torch.uint8)


def affine(images: Tensor, v: Tensor) -> Tensor:
    """In two parts: nearest and bilinear, where a batch has both."""
    if not bool((v[:, 6] == v[0, 6]).all()):
        rows, made = v[:, 6] != 0, torch.empty_like(images)
        made[rows], made[~rows] = (affine(images[part], v[part]) for part in (rows, ~rows))
        return made
    height, width = images.shape[2:]
    x = torch.arange(width, device=images.device) - (width - 1) / 2
    y = (torch.arange(height, device=images.device) - (height - 1) / 2)[:, None]
    m = [v[:, k, None, None] for k in range(6)]
    half = torch.tensor(0.5, device=images.device)
    across = fused(x * m[0] + y * m[1] + m[2] + 1, width * half, -half)
    down = fused(x * m[3] + y * m[4] + m[5] + 1, height * half, -half)
    fill, filled = v[:, 8:11, None, None], column(v, 7) != 0
    if not bool(v[0, 6]):
        outside = torch.where(filled, fill.round(), 0.0)
        return sampled(images.float(), across.round(), down.round(), outside).to(torch.uint8)
    planes = torch.cat([images.float(), torch.ones_like(images[:, :1], dtype=torch.float32)], 1)
    left, top = across.floor(), down.floor()
    w, n = across - left, down - top
    e, s = 1 - w, 1 - n
    corners = ((0, 0, s * e), (0, 1, s * w), (1, 0, n * e), (1, 1, n * w))
    made, nothing = torch.zeros_like(planes), torch.zeros_like(fill[:, :1])
    for below, right, share in corners:
        tap = sampled(planes, left + right, top + below, nothing)
        made = fused(tap, share[:, None], made)
    values, mask = made[:, :3], made[:, 3:]
    return torch.where(filled, (values - fill) * mask + fill, values).round().to(torch.uint8)


def sampled(planes: Tensor, x: Tensor, y: Tensor, outside: Tensor) -> Tensor:
    """Pixels [m,c,h,w] at whole places x, y [m,h,w]; outside [m,c,1,1]."""
    height, width = planes.shape[2:]
    inside = (x >= 0) & (x < width) & (y >= 0) & (y < height)
    at = (y.clamp(0, height - 1) * width + x.clamp(0, width - 1)).long().flatten(1)[:, None]
    taken = planes.flatten(2).gather(2, at.expand(-1, planes.shape[1], -1)).view(planes.shape)
    return torch.where(inside[:, None], taken, outside)


def mixed(images: list[Tensor], weights: Tensor) -> Tensor:
    made = images[0].float() * column(weights, 0)
    for number, image in enumerate(images[1:], 1):
        made = made + image.float() * column(weights, number)
    return level(made)


OPERATIONS: dict[int, Callable[[Tensor, Tensor], Tensor]] = {
    Op.BRIGHTNESS: brightness,
    Op.CONTRAST: contrast,
    Op.SATURATION: saturation,
    Op.HUE: hue,
    Op.GREY: grey,
    Op.POSTERIZE: posterize,
    Op.SOLARIZE: solarize,
    Op.SOLARIZE_ADD: solarize_add,
    Op.AUTOCONTRAST: autocontrast,
    Op.EQUALIZE: equalize,
    Op.SHARPNESS: sharpness,
    Op.BLUR: blur,
    Op.AFFINE: affine,
}
