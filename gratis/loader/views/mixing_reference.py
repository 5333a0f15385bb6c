"""Mixing and erasing in plain NumPy: what the engine's passes and torch's (`torch_mixing`) must
equal."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from gratis.loader.plan import ERASE_NOISE, Ids, words
from gratis.loader.views.draw_mixing import Erased, Mix

Images = NDArray[np.float32]


def mix_images(images: Images, mix: Mix) -> Images:
    """A whole global batch [n,3,h,w] or [n,k,3,h,w] with the images before them, rounded as torch
    does it: two products and their sum, in float32."""
    before = np.roll(images, 1, axis=0)
    if mix.box is None:
        return images * np.float32(mix.lam) + before * np.float32(1.0 - mix.lam)
    y, x, height, width = mix.box
    mixed = images.copy()
    part = (..., slice(y, y + height), slice(x, x + width))
    mixed[part] = before[part]
    return mixed


def mix_labels(labels: Ids, mix: Mix | None, classes: int) -> NDArray[np.float32]:
    """A whole global batch's labels int64 [n] as float32 [n,classes], mixed like its images."""
    hot = np.eye(classes, dtype=np.float32)[labels]
    if mix is None:
        return hot
    return hot * np.float32(mix.lam) + np.roll(hot, 1, axis=0) * np.float32(1.0 - mix.lam)


def erase_images(  # noqa: PLR0917
    images: Images, erased: Erased, mode: str, seed: int, epoch: int, views: Ids
) -> Images:
    """Views [n,3,h,w] with their boxes overwritten."""
    done = images.copy()
    for row, view in enumerate(views):
        for box in range(erased.first[row], erased.first[row + 1]):
            y, x, height, width = erased.boxes[box]
            part = (row, slice(None), slice(y, y + height), slice(x, x + width))
            if mode == "pixel":
                done[part] = pixel_noise(seed, epoch, view, images.shape[-2:])[part[1:]]
            else:
                color = erased.normals[box] * (mode == "rand")
                done[part] = color[:, None, None]
    return done


def pixel_noise(seed: int, epoch: int, view: int, shape: tuple[int, ...]) -> NDArray[np.float64]:
    """Standard normals for every place of a view, [3,h,w]: of each pixel one block of four words,
    24 bits of each."""
    pixels = np.arange(shape[0] * shape[1])
    ids = np.full(len(pixels), view)
    word = np.stack([
        np.concatenate([
            words(seed, epoch, ids[some], ERASE_NOISE, pixels[some])[k]
            for some in np.array_split(np.arange(len(pixels)), 1 + len(pixels) // 4096)
        ])
        for k in range(4)
    ])  # fmt: skip
    bits = (word >> np.uint64(8)).astype(np.float64)
    radius, angle = np.sqrt(-2 * np.log((bits[:2] + 0.5) / 2**24)), 2 * np.pi * bits[2:] / 2**24
    normals = (
        radius[0] * np.cos(angle[0]),
        radius[0] * np.sin(angle[0]),
        radius[1] * np.cos(angle[1]),
    )
    return np.stack(normals).reshape(3, *shape)
