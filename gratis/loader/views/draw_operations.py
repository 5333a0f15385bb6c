"""What `LoaderConfig.operations` does to each sample: drawn by Philox from seed, epoch and id, as
programs for the engine and for torch. The spaces and distributions are torchvision's."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import permutations
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from gratis.loader.augmentations import (
    AugMix,
    ColorJitter,
    GaussianBlur,
    Operation,
    RandAugment,
    RandomAdjustSharpness,
    RandomAutocontrast,
    RandomEqualize,
    RandomGrayscale,
    RandomInvert,
    RandomPosterize,
    RandomSolarize,
    TimmRandAugment,
    TrivialAugmentWide,
)
from gratis.loader.engine.library import VALUES, Op
from gratis.loader.plan import OPERATION, OPERATION_GAMMA, Ids, uniforms

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]
Bools = NDArray[np.bool_]
AugmentSpace = TrivialAugmentWide | RandAugment | TimmRandAugment | AugMix


MOST_ATTEMPTS = 64  # of a gamma; one fails with a probability of 0.05


class Program(NamedTuple):
    """Of n samples: ops int32 [n,steps], an `Op` each, and their numbers, values float32
    [n,steps,VALUES]; what each reads is said in engine.h."""

    ops: NDArray[np.int32]
    values: NDArray[np.float32]


class Step(NamedTuple):
    """One column of a program."""

    ops: NDArray[np.int32]
    values: NDArray[np.float32]


class Stream:
    """Random numbers of one operation, for each sample its own; a number has the place in which it
    was asked for."""

    def __init__(self, seed: int, epoch: int, ids: Ids, place: int) -> None:
        """place: of the operation among the others, below 64."""
        self._key, self.ids, self._first = (seed, epoch), ids, place << 12
        self._block, self._gammas = 0, 0

    def uniform(self, count: int) -> Floats:
        """In (0, 1), float64 [count,n]."""
        blocks = range(self._block, self._block + -(-count // 4))
        self._block = blocks.stop
        drawn = [uniforms(*self._key, self.ids, OPERATION, self._first | b) for b in blocks]
        return np.concatenate(drawn)[:count] if drawn else np.empty((0, len(self.ids)))

    def gamma(self, shape: float) -> Floats:
        """Of Gamma(shape, 1), float64 [n], by Marsaglia and Tsang's method."""
        d = max(shape, shape + 1 if shape < 1 else shape) - 1 / 3
        c, made, todo = 1 / np.sqrt(9 * d), np.empty(len(self.ids)), np.arange(len(self.ids))
        attempt = self._first | self._gammas * MOST_ATTEMPTS
        self._gammas += 1
        while len(todo):
            u = uniforms(*self._key, self.ids[todo], OPERATION_GAMMA, attempt)
            attempt += 1
            x = np.sqrt(-2 * np.log(u[0])) * np.cos(2 * np.pi * u[1])
            v = np.maximum(1 + c * x, 0) ** 3
            with np.errstate(divide="ignore"):
                good = (v > 0) & (np.log(u[2]) < x * x / 2 + d - d * v + d * np.log(v))
            boost = u[3] ** (1 / shape) if shape < 1 else 1.0
            made[todo[good]] = (d * v * boost)[good]
            todo = todo[~good]
        return made

    def dirichlet(self, alpha: float, count: int) -> Floats:
        """float64 [count,n], which sum to 1 over the first axis."""
        parts = np.stack([self.gamma(alpha) for _ in range(count)])
        parts = np.maximum(parts, np.finfo(np.float32).tiny)
        shares: Floats = parts / parts.sum(axis=0)
        return shares


def draw_program(  # noqa: PLR0917
    operations: Sequence[Operation], seed: int, epoch: int, ids: Ids, height: int, width: int
) -> Program:
    """The program of each sample (draw ids), for crops of height x width."""
    steps: list[Step] = []
    for place, operation in enumerate(operations):
        stream = Stream(seed, epoch, ids, place)
        steps += _steps(operation, stream, (height, width))
    if not steps:
        steps = [_step(len(ids), Op.NOTHING)]
    ops = np.stack([step.ops for step in steps], axis=1)
    return Program(ops, np.stack([step.values for step in steps], axis=1))


def _steps(operation: Operation, stream: Stream, size: tuple[int, int]) -> list[Step]:
    match operation:
        case ColorJitter():
            steps = _colour_jitter(operation, stream)
        case GaussianBlur():
            steps = [_blur(operation, stream)]
        case TrivialAugmentWide():
            steps = [_trivial(operation, stream, size)]
        case RandAugment():
            steps = _rand_augment(operation, stream, size)
        case TimmRandAugment():
            steps = [_timm(operation, stream, size) for _ in range(operation.num_ops)]
        case AugMix():
            steps = _augmix(operation, stream, size)
        case _:
            op, values = _simple(operation)
            step = _step(len(stream.ids), op, *values)
            steps = [_unless(stream.uniform(1)[0] < operation.p, step)]
    return steps


SIMPLE: dict[type[Operation], Op] = {
    RandomGrayscale: Op.GREY,
    RandomInvert: Op.SOLARIZE,  # from level 0 on
    RandomPosterize: Op.POSTERIZE,
    RandomSolarize: Op.SOLARIZE,
    RandomEqualize: Op.EQUALIZE,
    RandomAutocontrast: Op.AUTOCONTRAST,
    RandomAdjustSharpness: Op.SHARPNESS,
}


def _simple(operation: Operation) -> tuple[Op, tuple[float, ...]]:
    """Of an operation that does the same to each sample that it is done to."""
    numbers: tuple[float, ...] = ()
    match operation:
        case RandomPosterize():
            numbers = (operation.bits,)
        case RandomSolarize():
            numbers = (operation.threshold,)
        case RandomAdjustSharpness():
            numbers = (1 - operation.sharpness_factor,)
    return SIMPLE[type(operation)], numbers


def _step(count: int, op: Op, *values: float | Floats) -> Step:
    numbers = np.zeros((count, VALUES), np.float32)
    for column, value in enumerate(values):
        numbers[:, column] = value
    return Step(np.full(count, op, np.int32), numbers)


def _unless(done: Bools, step: Step) -> Step:
    """NOTHING where it is not done."""
    return step._replace(ops=np.where(done, step.ops, np.int32(Op.NOTHING)))


ORDERS = np.array(list(permutations(range(4))))  # of the four parts of ColorJitter


def _colour_jitter(jitter: ColorJitter, stream: Stream) -> list[Step]:
    count = len(stream.ids)
    u = stream.uniform(6)
    done, order = u[4] < jitter.p, ORDERS[np.floor(u[5] * len(ORDERS)).astype(np.int64)]
    parts = []
    for k, name in enumerate(("brightness", "contrast", "saturation", "hue")):
        low, high = getattr(jitter, name)
        factor = low + (high - low) * u[k]
        op = (Op.BRIGHTNESS, Op.CONTRAST, Op.SATURATION, Op.HUE)[k]
        part = _step(count, op, factor, 1 - factor)
        nothing = low == high == (0 if op == Op.HUE else 1)
        parts.append(_unless(done & (not nothing), part))
    ops, values = (np.stack(column) for column in zip(*parts, strict=True))
    rows = np.arange(count)
    return [Step(ops[order[:, k], rows], values[order[:, k], rows]) for k in range(4)]


def _blur(blur: GaussianBlur, stream: Stream) -> Step:
    u = stream.uniform(2)
    low, high = blur.sigma  # type: ignore[misc]
    sigma = low + (high - low) * u[0]
    across, down = blur.kernel_size  # type: ignore[misc]
    return _unless(u[1] < blur.p, _step(len(stream.ids), Op.BLUR, sigma, sigma, across, down))


# ---- spaces of operations with a magnitude: torchvision's _AUGMENTATION_SPACE ----


class Magnitudes(NamedTuple):
    """What an operation's bins are: float64 [bins], and whether the sign is random."""

    bins: Floats
    signed: bool


def _linspace(start: float, end: float, bins: int) -> Floats:
    """torch.linspace in float32, which counts from both ends and rounds product and sum at once: of
    32 pixels in 31 bins the middle is a little less than 16, and moves an image by 15."""
    first, last = np.float32(start), np.float32(end)
    step, i = np.float64((last - first) / np.float32(bins - 1)), np.arange(bins)
    ascending = np.where(i < bins // 2, first + step * i, last - step * (bins - 1 - i))
    magnitudes: Floats = ascending.astype(np.float32).astype(np.float64)
    return magnitudes


def _bits(most: int, fewer: int, bins: int) -> Floats:
    steps = np.arange(bins, dtype=np.float32) / np.float32((bins - 1) / fewer)
    bits: Floats = np.rint(np.float32(most) - steps).astype(np.float64)
    return bits


ENHANCE = ("Brightness", "Color", "Contrast", "Sharpness")
Space = dict[str, Magnitudes]


def _space(  # noqa: PLR0917
    names: Sequence[str],
    bins: int,
    shear: float,
    translate: tuple[float, float],
    rotate: float,
    enhance: float,
    bits: tuple[int, int],
) -> Space:
    """translate: down and across, in pixels."""
    tables = {
        "ShearX": Magnitudes(_linspace(0, shear, bins), True),
        "ShearY": Magnitudes(_linspace(0, shear, bins), True),
        "TranslateX": Magnitudes(_linspace(0, translate[1], bins), True),
        "TranslateY": Magnitudes(_linspace(0, translate[0], bins), True),
        "Rotate": Magnitudes(_linspace(0, rotate, bins), True),
        "Posterize": Magnitudes(_bits(*bits, bins), False),
        "Solarize": Magnitudes(_linspace(1, 0, bins), False),
    }
    tables |= {name: Magnitudes(_linspace(0, enhance, bins), True) for name in ENHANCE}
    nothing = Magnitudes(np.zeros(bins), False)
    return {name: tables.get(name, nothing) for name in names}


GEOMETRY = ("ShearX", "ShearY", "TranslateX", "TranslateY", "Rotate")
TABLES = ("Posterize", "Solarize", "AutoContrast", "Equalize")
ALL = ("Identity", *GEOMETRY, *ENHANCE, *TABLES)


def _trivial(trivial: TrivialAugmentWide, stream: Stream, size: tuple[int, int]) -> Step:
    bins = trivial.num_magnitude_bins
    space = _space(ALL, bins, 0.99, (32.0, 32.0), 135.0, 0.99, (8, 6))
    u = stream.uniform(3)
    return _one_of(space, u[0], np.floor(u[1] * bins).astype(np.int64), u[2], trivial, size)


def _rand_augment(rand: RandAugment, stream: Stream, size: tuple[int, int]) -> list[Step]:
    far = (150.0 / 331.0 * size[0], 150.0 / 331.0 * size[1])
    space = _space(ALL, rand.num_magnitude_bins, 0.3, far, 30.0, 0.9, (8, 4))
    u = stream.uniform(2 * rand.num_ops).reshape(rand.num_ops, 2, len(stream.ids))
    which = np.full(len(stream.ids), rand.magnitude)
    return [_one_of(space, choice, which, sign, rand, size) for choice, sign in u]


def _augmix(mix: AugMix, stream: Stream, size: tuple[int, int]) -> list[Step]:
    names = (*GEOMETRY, *TABLES, *(ENHANCE if mix.all_ops else ()))
    space = _space(names, 10, 0.3, (size[0] / 3.0, size[1] / 3.0), 30.0, 0.9, (4, 4))
    count, fixed = len(stream.ids), mix.chain_depth > 0
    depth = mix.chain_depth if fixed else 3
    of_image, of_variants = stream.dirichlet(mix.alpha, 2).astype(np.float32)
    weights = stream.dirichlet(mix.alpha, mix.mixture_width).astype(np.float32) * of_variants
    steps = [_step(count, Op.KEEP)]
    for _ in range(mix.mixture_width):
        u = stream.uniform(1 + 3 * depth)
        length = np.full(count, depth) if fixed else 1 + np.floor(3 * u[0])
        for k, (choice, magnitude, sign) in enumerate(u[1:].reshape(depth, 3, count)):
            which = np.floor(magnitude * mix.severity).astype(np.int64)
            steps.append(_unless(k < length, _one_of(space, choice, which, sign, mix, size)))
        steps.append(_step(count, Op.KEEP))
    return [*steps, _step(count, Op.MIX, of_image, *weights)]


def _one_of(  # noqa: PLR0917
    space: Space,
    choice: Floats,
    which: Ints,
    sign: Floats,
    augment: AugmentSpace,
    size: tuple[int, int],
) -> Step:
    """Each sample's operation (choice in (0, 1)) at its magnitude (which bin), and sign."""
    chosen, step = np.floor(choice * len(space)).astype(np.int64), _step(len(choice), Op.NOTHING)
    for number, (name, magnitudes) in enumerate(space.items()):
        rows = np.flatnonzero(chosen == number)
        if not len(rows) or name == "Identity":
            continue
        magnitude = magnitudes.bins[which[rows]]
        if magnitudes.signed:
            magnitude = np.where(sign[rows] <= 0.5, -magnitude, magnitude)
        part = named_step(name, magnitude, augment, size)
        step.ops[rows], step.values[rows] = part
    return step


# ---- timm's, of operations that do more at a larger magnitude ----

TIMM = (*GEOMETRY, *ENHANCE, *TABLES, "Invert", "SolarizeAdd")


def _timm(rand: TimmRandAugment, stream: Stream, size: tuple[int, int]) -> Step:
    """One of its operations, where it is done."""
    u = stream.uniform(5)
    chosen, step = np.floor(u[0] * len(TIMM)).astype(np.int64), _step(len(u[0]), Op.NOTHING)
    normal = np.sqrt(-2 * np.log(u[2])) * np.cos(2 * np.pi * u[3])
    level = np.clip(rand.magnitude + rand.magnitude_std * normal, 0, 10) / 10
    sign = np.where(u[4] > 0.5, -1.0, 1.0)
    for number, name in enumerate(TIMM):
        rows = np.flatnonzero(chosen == number)
        if len(rows):
            part = _timm_step(name, level[rows], sign[rows], rand, size)
            step.ops[rows], step.values[rows] = part
    return _unless(u[1] < rand.p, step)


def _timm_step(
    name: str, level: Floats, sign: Floats, rand: TimmRandAugment, size: tuple[int, int]
) -> Step:
    """level: from 0 to 1. timm's functions of the names *_level_to_arg."""
    count = len(level)
    match name:
        case "TranslateX":
            return affine_step(affine_matrix(size, x=-sign * 0.45 * level * size[1]), rand)
        case "TranslateY":
            return affine_step(affine_matrix(size, y=-sign * 0.45 * level * size[0]), rand)
        case "Invert":
            return _step(count, Op.SOLARIZE, 0.0)
        case "SolarizeAdd":
            return _step(count, Op.SOLARIZE_ADD, np.minimum(128, np.floor(level * 110)))
    magnitude = {
        "Rotate": sign * 30 * level,
        "ShearX": sign * 0.3 * level,
        "ShearY": sign * 0.3 * level,
        "Posterize": 4 - np.floor(level * 4),
        "Solarize": (256 - np.floor(level * 256)) / 255,
    }.get(name, np.maximum(0.1, 1 + sign * 0.9 * level) - 1)
    return named_step(name, magnitude, rand, size)


NAMED = {
    "Brightness": Op.BRIGHTNESS,
    "Color": Op.SATURATION,
    "Contrast": Op.CONTRAST,
    "Sharpness": Op.SHARPNESS,
    "Posterize": Op.POSTERIZE,
    "Solarize": Op.SOLARIZE,
    "AutoContrast": Op.AUTOCONTRAST,
    "Equalize": Op.EQUALIZE,
}


def named_step(name: str, magnitude: Floats, augment: AugmentSpace, size: tuple[int, int]) -> Step:
    """As torchvision's _apply_image_or_video_transform."""
    if name in GEOMETRY:
        return _geometric(name, magnitude, augment, size)
    op, count, factor = NAMED[name], len(magnitude), 1 + magnitude
    match op:
        case Op.SHARPNESS:
            return _step(count, op, 1 - factor)
        case Op.POSTERIZE:
            return _step(count, op, magnitude)
        case Op.SOLARIZE:
            return _step(count, op, 255 * magnitude)
        case _:
            return _step(count, op, factor, 1 - factor)


def _geometric(name: str, magnitude: Floats, augment: AugmentSpace, size: tuple[int, int]) -> Step:
    corner = (-size[1] * 0.5, -size[0] * 0.5)
    match name:
        case "ShearX":
            matrix = affine_matrix(size, shear_x=magnitude, centre=corner)
        case "ShearY":
            matrix = affine_matrix(size, shear_y=magnitude, centre=corner)
        case "TranslateX":
            matrix = affine_matrix(size, x=np.trunc(magnitude))
        case "TranslateY":
            matrix = affine_matrix(size, y=np.trunc(magnitude))
        case _:
            matrix = affine_matrix(size, angle=-(magnitude % 360))
    return affine_step(matrix, augment)


def affine_step(matrix: NDArray[np.float32], augment: AugmentSpace) -> Step:
    """matrix float32 [n,6]."""
    levels = augment.fill if isinstance(augment.fill, tuple) else (0.0, 0.0, 0.0)
    modes = augment.interpolation == "bilinear", augment.fill is not None
    return _step(len(matrix), Op.AFFINE, *matrix.T, *map(float, modes), *levels)


def affine_matrix(
    size: tuple[int, int],
    *,
    angle: float | Floats = 0.0,
    shear_x: float | Floats = 0.0,
    shear_y: float | Floats = 0.0,
    x: float | Floats = 0.0,
    y: float | Floats = 0.0,
    centre: tuple[float, float] = (0.0, 0.0),
) -> NDArray[np.float32]:
    """float32 [n,6]: where a pixel of the output comes from, row by row of a 2 x 3 matrix, in
    halves of the image (size: height and width); torchvision's _get_inverse_affine_matrix and
    _affine_grid, step by step. angle in degrees; shears as tangents; x, y: translation in pixels;
    centre (x, y) in pixels from the image's own."""
    angle, shear_x, shear_y, x, y = np.broadcast_arrays(angle, shear_x, shear_y, x, y)
    turn = np.radians(angle)
    skew_x, skew_y = (np.radians(np.degrees(np.arctan(shear))) for shear in (shear_x, shear_y))
    a = np.cos(turn - skew_y) / np.cos(skew_y)
    b = -(a * np.tan(skew_x) + np.sin(turn))
    c = np.sin(turn - skew_y) / np.cos(skew_y)
    d = np.cos(turn) - c * np.tan(skew_x)
    cx, cy = centre
    rows = [d, -b, cx - d * (cx + x) + b * (cy + y), -c, a, cy + c * (cx + x) - a * (cy + y)]
    halves = np.array([0.5 * size[1]] * 3 + [0.5 * size[0]] * 3, np.float32)
    matrix: NDArray[np.float32] = np.stack(rows, axis=1).astype(np.float32) / halves
    return matrix
