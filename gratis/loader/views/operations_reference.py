"""Operations on one view's pixels in plain NumPy: what the engine's pass (`gratis.loader.engine`,
operations.h) and torch's (`torch_operations`) must equal. Itself it equals torchvision's
transforms.v2.functional on tensors of uint8; docs/augmentations.md says to how many levels.

Images are uint8 [3,h,w]. Arithmetic is float32's, of which each product and sum is rounded, but for
sums with a fused product as torch's `add` with alpha and its grid_sample have them."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from gratis.loader.engine.library import Op

Image = NDArray[np.uint8]
Floats = NDArray[np.float32]
Number = Floats | np.float32
Table = NDArray[np.integer[Any]]
F32 = np.float32


def apply_program(image: Image, ops: NDArray[np.int32], values: Floats) -> Image:
    """ops int32 [steps], values float32 [steps,VALUES]."""
    kept: list[Image] = []
    for op, numbers in zip(ops.tolist(), values, strict=True):
        if op == Op.KEEP:
            kept.append(image)
            image = kept[0]
        elif op == Op.MIX:
            image, kept = mixed(kept, numbers), []
        elif op != Op.NOTHING:
            image = apply_operation(image, Op(op), numbers)
    return image


def apply_operation(image: Image, op: Op, v: Floats) -> Image:
    """One that needs nothing but the image."""
    grey = grey_levels(image)
    match op:
        case Op.BRIGHTNESS:
            made = levels(image.astype(F32) * v[0])
        case Op.CONTRAST:
            made = blended(image, F32(np.floor(grey).sum()) / F32(grey.size), v)
        case Op.SATURATION:
            made = blended(image, np.floor(grey), v)
        case Op.GREY:
            made = levels(np.stack([grey] * 3))
        case Op.HUE:
            made = hue_turned(image, v[0])
        case Op.SHARPNESS:
            made = sharpened(image, v[0])
        case Op.BLUR:
            made = blurred(image, v[:2], v[2:4].astype(int))
        case Op.AFFINE:
            made = moved(image, v)
        case _:
            made = np.stack([table(plane, op, v[0])[plane] for plane in image])
    return made


def levels(values: Floats) -> Image:
    """Clamped and rounded down."""
    return np.clip(values, 0, 255).astype(np.uint8)


def fused(a: Floats, b: Number, c: Number) -> Floats:
    """a * b + c, rounded once: exact in float64 for levels times float32."""
    made: Floats = (a.astype(np.float64) * b + c).astype(F32)
    return made


def grey_levels(image: Image) -> Floats:
    """float32 [h,w], not rounded."""
    r, g, b = image.astype(F32)
    return fused(b, F32(0.114), fused(g, F32(0.587), r * F32(0.2989)))


def blended(image: Image, other: Number, v: Floats) -> Image:
    """v: factor, 1 - factor."""
    return levels(fused(np.asarray(other), v[1], image.astype(F32) * v[0]))


def table(plane: Image, op: Op, value: float) -> Image:
    """What becomes of each level of one channel, uint8 [256]."""
    every = np.arange(256)
    made: Table
    match op:
        case Op.POSTERIZE:
            made = every & (0xFF << (8 - int(value)) & 0xFF)
        case Op.SOLARIZE:
            made = np.where(every >= value, 255 - every, every)
        case Op.SOLARIZE_ADD:
            made = np.where(every < 128, np.minimum(every + int(value), 255), every)
        case Op.AUTOCONTRAST:
            made = stretched(int(plane.min()), int(plane.max()))
        case Op.EQUALIZE:
            made = equalized(np.bincount(plane.ravel(), minlength=256))
        case _:
            raise ValueError(f"{op!r} is no table")
    return made.astype(np.uint8)


def stretched(least: int, most: int) -> Table:
    if least == most:
        return np.arange(256)
    scale = F32(most - least) * F32(1 / 255)
    return levels((np.arange(256) - least).astype(F32) / scale)


def equalized(counts: Table) -> Table:
    """Pillow's table, from a histogram [256]."""
    last = np.flatnonzero(counts)[-1]
    step = (counts.sum() - counts[last]) // 255
    if step == 0:
        return np.arange(256)
    before = np.concatenate([[0], np.cumsum(counts)[:-1]])
    made: Table = np.minimum((before + step // 2) // step, 255)
    return made


def hue_turned(image: Image, turn: float) -> Image:
    """turn: of the circle of hues, -0.5 to 0.5."""
    rgb = image.astype(F32) * F32(1 / 255)
    r, g = rgb[:2]
    most, least = rgb.max(axis=0), rgb.min(axis=0)
    spread = most - least
    s = spread / np.where(spread == 0, F32(1), most)
    rc, gc, bc = (most - rgb) / np.where(spread == 0, F32(1), spread)
    h = np.where(most == r, bc - gc, np.where(most == g, rc + 2 - bc, gc + 4 - rc))
    h = np.fmod(h * F32(1 / 6) + 1, F32(1)) + F32(turn)
    h = np.fmod(h, F32(1))
    h = np.where(h < 0, h + 1, h) * 6
    sixth = np.floor(h)
    part, rest = s * (h - sixth), 1 - s
    p, q, t = (np.clip(x * most, 0, 1) for x in (rest, 1 - part, part + rest))
    v, which = most, sixth.astype(int) % 6
    choices = ([v, q, p, p, t, v], [t, v, v, q, p, p], [p, p, t, v, v, q])
    return levels(np.stack([np.choose(which, each) for each in choices]) * F32(255.999))


def sharpened(image: Image, rest: float) -> Image:
    """rest: 1 - factor. The outermost pixels stay."""
    if min(image.shape[1:]) <= 2:
        return image
    wide, (height, width) = image.astype(int), image.shape[1:]
    nine = sum(wide[:, y : height - 2 + y, x : width - 2 + x] for y in range(3) for x in range(3))
    old = image[:, 1:-1, 1:-1].astype(F32)
    blur = np.rint((nine + 4 * wide[:, 1:-1, 1:-1]) / 13).astype(F32)
    made = image.copy()
    made[:, 1:-1, 1:-1] = levels(fused(blur - old, F32(rest), old))
    return made


def blurred(image: Image, sigmas: Floats, taps: NDArray[np.int64]) -> Image:
    """sigmas and taps: across, down."""
    made = image.astype(np.float64)
    for axis, sigma, count in zip((2, 1), sigmas.astype(float), taps.tolist(), strict=True):
        offset = np.arange(count) - count // 2
        factors = np.exp(-0.5 * (offset / sigma) ** 2)
        pads = [(count // 2,) * 2 if a == axis else (0, 0) for a in range(3)]
        windows = np.lib.stride_tricks.sliding_window_view(
            np.pad(made, pads, "reflect"), count, axis=axis
        )
        made = windows @ (factors / factors.sum())
    return np.rint(made).astype(np.uint8)


def moved(image: Image, v: Floats) -> Image:
    """v: as GRATIS_AFFINE has them in engine.h."""
    height, width = image.shape[1:]
    x = (np.arange(width) - (width - 1) / 2).astype(F32)[None]
    y = (np.arange(height) - (height - 1) / 2).astype(F32)[:, None]
    across = fused(x * v[0] + y * v[1] + v[2] + 1, F32(width / 2), F32(-0.5))
    down = fused(x * v[3] + y * v[4] + v[5] + 1, F32(height / 2), F32(-0.5))
    fill = v[8:11, None, None]
    if not v[6]:
        made = sampled(image.astype(F32), np.rint(across), np.rint(down), np.rint(fill))
        return made.astype(np.uint8)
    planes = np.concatenate([image.astype(F32), np.ones((1, height, width), F32)])
    left, top = np.floor(across), np.floor(down)
    w, n = across - left, down - top
    e, s = 1 - w, 1 - n
    corners = ((0, 0, s * e), (0, 1, s * w), (1, 0, n * e), (1, 1, n * w))
    made = np.zeros(planes.shape, F32)
    for below, right, share in corners:
        made = fused(sampled(planes, left + right, top + below, F32(0)), share, made)
    values, mask = made[:3], made[3]
    return np.rint((values - fill) * mask + fill if v[7] else values).astype(np.uint8)


def sampled(planes: Floats, x: Floats, y: Floats, outside: Floats | F32) -> Floats:
    """Pixels [c,h,w] at whole places x, y [h,w]."""
    height, width = planes.shape[1:]
    inside = (x >= 0) & (x < width) & (y >= 0) & (y < height)
    column, row = np.clip(x, 0, width - 1).astype(int), np.clip(y, 0, height - 1).astype(int)
    return np.where(inside, planes[:, row, column], outside)


def mixed(images: list[Image], weights: Floats) -> Image:
    made = images[0].astype(F32) * weights[0]
    for image, weight in zip(images[1:], weights[1:], strict=False):
        made = made + image.astype(F32) * weight
    return levels(made)
