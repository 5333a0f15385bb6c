"""Ten classes of drawn pictures that need shape and texture: colours, place, scale and background
say nothing.

A picture is a background (a random colour with a slope, and noise) and a figure in another random
colour. Coverage, from 0 to 1 with soft edges one pixel wide, comes from the figure's signed
distance in pixels."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.floating]
# signed distance in pixels to a figure's edge, negative inside, of x, y and the figure's radius
Figure = Callable[[Array, Array, float, np.random.Generator], Array]
# least distance of the figure's colour to the background's, in grey levels (RGB, Euclidean)
CONTRAST = 90.0
NOISE = 8.0


def draw(label: int, rng: np.random.Generator) -> NDArray[np.uint8]:
    """A picture of class `label` (0 to 9): uint8 [height,width,3], sides between 128 and 300.

    The figure lies within the central square, that is, in what the crop of the shard stage leaves.
    """
    height, width = (int(side) for side in rng.integers(128, 300, 2))
    side = min(height, width)
    radius = rng.uniform(0.28, 0.5) * side
    room = side / 2 - radius
    cx, cy = (middle + rng.uniform(-1, 1) * room for middle in (width / 2, height / 2))
    y, x = np.mgrid[0:height, 0:width].astype(np.float32)
    distance = CLASSES[label][1](x - np.float32(cx), y - np.float32(cy), float(radius), rng)
    coverage = (0.5 - distance).clip(0, 1)  # the share of a pixel inside the edge
    return _paint(coverage, x / width, y / height, rng)


def _paint(coverage: Array, x: Array, y: Array, rng: np.random.Generator) -> NDArray[np.uint8]:
    back = rng.uniform(30, 225, 3)
    figure = rng.uniform(10, 245, 3)
    while np.linalg.norm(figure - back) < CONTRAST:
        figure = rng.uniform(10, 245, 3)
    angle = rng.uniform(0, 2 * np.pi)
    ramp = (np.cos(angle) * (x - 0.5) + np.sin(angle) * (y - 0.5)).astype(np.float32)
    slope = rng.uniform(-40, 40, 3).astype(np.float32)
    picture = back.astype(np.float32) + ramp[..., None] * slope
    picture += coverage[..., None] * (figure.astype(np.float32) - picture)
    noise = rng.standard_normal((*coverage.shape, 1), np.float32)
    picture += noise * np.float32(rng.uniform(0, NOISE))
    return np.asarray(picture.clip(0, 255).astype(np.uint8))


def _disc(x: Array, y: Array, radius: float) -> Array:
    return np.asarray(np.hypot(x, y) - np.float32(radius))


def _in_disc(figure: Array, x: Array, y: Array, radius: float) -> Array:
    return np.asarray(np.maximum(figure, _disc(x, y, radius)))


def _bars(along: Array, period: float, phase: float, share: float) -> Array:
    """Signed distance to bars across `along`, `share` of each period filled."""
    place = np.abs((along / np.float32(period) + np.float32(phase)) % 1 - np.float32(0.5))
    return np.asarray((place - np.float32(share / 2)) * np.float32(period))


def _turn(x: Array, y: Array, angle: float) -> tuple[Array, Array]:
    c, s = np.float32(np.cos(angle)), np.float32(np.sin(angle))
    return c * x + s * y, c * y - s * x


def _stripes(*degrees: float) -> Figure:
    def figure(x: Array, y: Array, radius: float, rng: np.random.Generator) -> Array:
        angle = np.deg2rad(rng.choice(degrees) + rng.uniform(-8, 8))
        return _bars_in_disc(_turn(x, y, angle)[0], x, y, radius, rng)

    return figure


def _rings(x: Array, y: Array, radius: float, rng: np.random.Generator) -> Array:
    return _bars_in_disc(np.hypot(x, y), x, y, radius, rng)


def _bars_in_disc(
    along: Array, x: Array, y: Array, radius: float, rng: np.random.Generator
) -> Array:
    bars = _bars(along, radius / rng.uniform(2, 4.5), rng.uniform(), rng.uniform(0.4, 0.6))
    return _in_disc(bars, x, y, radius)


def _checkers(x: Array, y: Array, radius: float, rng: np.random.Generator) -> Array:
    x, y = _turn(x, y, rng.uniform(-0.3, 0.3))
    period = radius / rng.uniform(1.2, 2.5)
    a, b = (_bars(v, period, rng.uniform(), 0.5) for v in (x, y))
    squares = np.where(a * b < 0, -1, 1) * np.minimum(np.abs(a), np.abs(b))
    return _in_disc(squares, x, y, radius)


def _dots(x: Array, y: Array, radius: float, rng: np.random.Generator) -> Array:
    u, v = _turn(x, y, rng.uniform(0, np.pi / 2))
    period = np.float32(radius / rng.uniform(1.6, 3.2))
    u, v = ((w / period + np.float32(rng.uniform())) % 1 - np.float32(0.5) for w in (u, v))
    dots = (np.hypot(u, v) - np.float32(rng.uniform(0.24, 0.36))) * period
    return _in_disc(dots, x, y, radius)


def _rays(x: Array, y: Array, radius: float, rng: np.random.Generator) -> Array:
    count, distance = int(rng.integers(5, 10)), np.hypot(x, y)
    turn = np.arctan2(y, x) / np.float32(2 * np.pi)
    bars = _bars(turn, 1 / count, rng.uniform(), 0.5) * np.float32(2 * np.pi) * distance
    return np.asarray(np.maximum(bars, distance - np.float32(radius)))


def _polygon(corners: int) -> Figure:
    def figure(x: Array, y: Array, radius: float, rng: np.random.Generator) -> Array:
        start, inner = rng.uniform(0, 2 * np.pi), radius * np.cos(np.pi / corners)
        sides = [_turn(x, y, start + 2 * np.pi * k / corners)[0] for k in range(corners)]
        return np.asarray(np.maximum.reduce(sides) - np.float32(inner))

    return figure


def _cross(x: Array, y: Array, radius: float, rng: np.random.Generator) -> Array:
    u, v = _turn(x, y, rng.uniform(0, np.pi / 2))
    half = np.float32(radius * rng.uniform(0.16, 0.26))
    u, v, length = np.abs(u), np.abs(v), np.float32(radius)
    arms = np.maximum(u - half, v - length), np.maximum(v - half, u - length)
    return np.asarray(np.minimum(*arms))


CLASSES: tuple[tuple[str, Figure], ...] = (
    ("rings, circles inside circles", _rings),
    ("upright stripes", _stripes(0)),
    ("level stripes", _stripes(90)),
    ("slanting stripes", _stripes(45, 135)),  # both ways: a mirror image must keep its class
    ("checkers, chessboard", _checkers),
    ("dots, polka dots", _dots),
    ("rays, pinwheel", _rays),
    ("triangle", _polygon(3)),
    ("cross, plus", _cross),
    ("disc, filled circle", lambda x, y, radius, rng: _disc(x, y, radius * rng.uniform(0.75, 1))),
)
