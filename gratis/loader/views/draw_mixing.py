"""What becomes of a finished batch: which of the mixings, by how much, and the boxes that are
erased. Drawn from `gratis.loader.plan`'s numbers: of mixing by (seed, epoch, step), the same on
every rank; of erasing by (seed, epoch, view)."""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import partial
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from gratis.loader.config import LoaderConfig
from gratis.loader.mixing import CutMix, RandomErasing, probabilities
from gratis.loader.plan import (
    ERASE,
    ERASE_BOX,
    ERASE_COLOUR,
    GAMMA,
    MIX,
    MIX_BOX,
    OTHER_GAMMA,
    TRIES,
    Ids,
    below,
    uniforms,
)

Box = tuple[int, int, int, int]  # y, x, height, width
Again = Callable[[int], NDArray[np.float64]]


class Mix(NamedTuple):
    """How the images of one batch are mixed with those before them. lam: the share of an image's
    own label; box: what is taken of the one before, or None where images are mixed as a whole."""

    lam: float
    box: Box | None


class Erased(NamedTuple):
    """Of n views: boxes int32 [m,4] (y, x, height, width), those of view i from first[i] to
    first[i + 1] (int64 [n+1]), the last one on top; colours float64 [m,3]."""

    first: Ids
    boxes: NDArray[np.int32]
    colours: NDArray[np.float64]


def choices(config: LoaderConfig, epoch: int, steps: Ids) -> Ids:
    """Which of config.mix each step is mixed by, int64 [n]; -1: by none."""
    if not config.mix:
        return np.full(len(steps), -1)
    return _chosen(config, uniforms(config.seed, epoch, steps, MIX)[0])


def _chosen(config: LoaderConfig, drawn: NDArray[np.float64]) -> Ids:
    bounds = np.cumsum(probabilities(config.mix))
    chosen = np.searchsorted(bounds, drawn, side="right")
    return np.where(chosen < len(bounds), chosen, -1).astype(np.int64)


def draw_mix(config: LoaderConfig, epoch: int, step: int) -> Mix | None:
    """Of one global batch; None: it is not mixed."""
    steps = np.array([step])
    drawn = uniforms(config.seed, epoch, np.full(3, step), np.array([MIX, GAMMA, OTHER_GAMMA]))
    if (chosen := int(_chosen(config, drawn[0, :1])[0])) < 0:
        return None
    mixing = config.mix[chosen]
    lam = beta(mixing.alpha, config.seed, epoch, step, drawn[:, 1:])
    if not isinstance(mixing, CutMix):
        return Mix(lam, None)
    y, x = (int(one[0]) for one in below(config.crop, config.seed, epoch, steps, MIX_BOX))
    box = cutmix_box(lam, y, x, config.crop)
    return Mix(1.0 - box[2] * box[3] / config.crop**2, box)


def cutmix_box(lam: float, y: int, x: int, side: int) -> Box:
    """As torchvision's: about (y, x), cut at the image's borders."""
    half = int(0.5 * math.sqrt(1.0 - lam) * side)
    top, left = max(y - half, 0), max(x - half, 0)
    return top, left, min(y + half, side) - top, min(x + half, side) - left


def beta(
    alpha: float, seed: int, epoch: int, step: int, drawn: NDArray[np.float64] | None = None
) -> float:
    """Of Beta(alpha, alpha): of two gammas the share of the first. drawn: the uniform numbers of
    their first attempts, float64 [4,2], where the caller has them."""
    both = (GAMMA, OTHER_GAMMA)
    if drawn is None:
        drawn = uniforms(seed, epoch, np.full(2, step), np.array(both))
    first, second = (
        _log_gamma(alpha, numbers, partial(uniforms, seed, epoch, np.array([step]), purpose))
        for numbers, purpose in zip(drawn.T, both, strict=True)
    )
    return 1 / (1 + math.exp(min(second - first, 700.0)))


def _log_gamma(alpha: float, drawn: NDArray[np.float64], again: Again) -> float:
    """The logarithm of a number of Gamma(alpha), which itself may be too small for a float. drawn:
    four uniform numbers; again: those of an attempt, [4,1].

    Marsaglia and Tsang, "A simple method for generating gamma variables", 2000; below 1 by
    Gamma(alpha + 1) times a uniform number to the power of 1 / alpha."""
    d = (alpha if alpha >= 1 else alpha + 1) - 1 / 3
    attempt = 0
    while True:
        one, two, accept, power = (again(attempt)[:, 0] if attempt else drawn).tolist()
        x = math.sqrt(-2 * math.log(one)) * math.cos(2 * math.pi * two)
        v = (1 + x / math.sqrt(9 * d)) ** 3
        if v > 0 and math.log(accept) < x * x / 2 + d - d * v + d * math.log(v):
            break
        attempt += 1
    return math.log(d * v) + (math.log(power) / alpha if alpha < 1 else 0.0)


def draw_erasing(config: LoaderConfig, epoch: int, views: Ids) -> Erased:
    """Of views by their draw ids (`gratis.loader.plan.of_views`), whose images have the
    configuration's crop."""
    erasing, seed, side = config.erasing, config.seed, config.crop
    assert erasing is not None
    whether, number, *_ = uniforms(seed, epoch, views, ERASE)
    low, high = erasing.counts
    counts = np.where(whether < erasing.p, low + np.floor(number * (high - low + 1)), 0)
    rows, boxes, colours = [], [], []
    for box in range(high):
        todo = np.flatnonzero(counts > box)
        for attempt in range(TRIES):
            if not len(todo):
                break
            drawn = uniforms(seed, epoch, views[todo], ERASE_BOX, box * TRIES + attempt)
            made = _erased_boxes(erasing, drawn, counts[todo], side)
            fits = (made[:, 2] < side) & (made[:, 3] < side)
            rows.append(todo[fits])
            boxes.append(made[fits])
            colours.append(_colours(seed, epoch, views[todo[fits]], box, erasing.mode))
            todo = todo[~fits]
    if not rows:
        return Erased(np.zeros(len(views) + 1, np.int64), *_no_boxes())
    row = np.concatenate(rows)
    order = np.argsort(row, kind="stable")  # an image's boxes stay in the order of their numbers
    first = np.searchsorted(row[order], np.arange(len(views) + 1))
    every = np.concatenate(boxes)[order].astype(np.int32)
    return Erased(
        first.astype(np.int64), np.ascontiguousarray(every), np.concatenate(colours)[order]
    )


def _no_boxes() -> tuple[NDArray[np.int32], NDArray[np.float64]]:
    return np.empty((0, 4), np.int32), np.empty((0, 3))


def _erased_boxes(
    erasing: RandomErasing, drawn: NDArray[np.float64], counts: NDArray[np.float64], side: int
) -> NDArray[np.float64]:
    """float64 [n,4]: y, x, height, width; with a side of an image's or more they do not fit."""
    low, high = map(math.log, erasing.aspects)
    share = erasing.min_area + (erasing.max_area - erasing.min_area) * drawn[0]
    pixels, aspect = share * side * side / counts, np.exp(low + (high - low) * drawn[1])
    height, width = np.rint(np.sqrt(pixels * aspect)), np.rint(np.sqrt(pixels / aspect))
    y, x = np.floor(drawn[2] * (side - height + 1)), np.floor(drawn[3] * (side - width + 1))
    return np.stack([y, x, height, width], axis=1)


def _colours(seed: int, epoch: int, views: Ids, box: int, mode: str) -> NDArray[np.float64]:
    """Three standard normals for each view, float64 [n,3]; in another mode than rand zeros."""
    if mode != "rand":
        return np.zeros((len(views), 3))
    uniform = uniforms(seed, epoch, views, ERASE_COLOUR, box)
    radius, angle = np.sqrt(-2 * np.log(uniform[:2])), 2 * np.pi * uniform[2:]
    cosine, sine = radius * np.cos(angle), radius * np.sin(angle)
    return np.stack([cosine[0], sine[0], cosine[1]], axis=1)
