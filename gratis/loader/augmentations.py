"""Operations on a training sample's pixels, `LoaderConfig.operations`: between mirror and
normalisation, in the order in which they are given. Named and parameterised as torchvision's
transforms (v2), of which each equals its namesake; see docs/augmentations.md.

Plain values: picklable, comparable, of numbers and words alone. GratisError, when one is made, for
a value out of its range."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from numbers import Integral, Real
from textwrap import shorten
from typing import Any, Literal

from gratis.errors import GratisError

Range = tuple[float, float]
Fill = float | tuple[float, float, float] | None
Sampling = Literal["nearest", "bilinear"]

MOST_TAPS = 127  # of a Gaussian, along each axis
MOST_VARIANTS = 10  # of AugMix
MOST_OPERATIONS = 64


@dataclass(frozen=True)
class ColorJitter:
    """Brightness, contrast, saturation and hue, in random order. Of each the factor's range (least,
    most), or one number for (1 - number, 1 + number), at least 0; of hue the share of a turn,
    within -0.5 and 0.5, or one number for both sides of 0."""

    brightness: float | Range = 0.0
    contrast: float | Range = 0.0
    saturation: float | Range = 0.0
    hue: float | Range = 0.0
    p: float = 1.0
    """Probability that it is done at all (torchvision: RandomApply([ColorJitter(...)], p))."""

    def __post_init__(self) -> None:
        for name in ("brightness", "contrast", "saturation"):
            _set(self, name, _jitter(self, name, 1.0, (0.0, 1e3)))
        _set(self, "hue", _jitter(self, "hue", 0.0, (-0.5, 0.5)))
        _probability(self)


@dataclass(frozen=True)
class RandomGrayscale:
    """All three channels become the grey level, with probability p."""

    p: float = 0.1

    def __post_init__(self) -> None:
        _probability(self)


@dataclass(frozen=True)
class RandomInvert:
    """Levels become 255 minus themselves, with probability p."""

    p: float = 0.5

    def __post_init__(self) -> None:
        _probability(self)


@dataclass(frozen=True)
class RandomPosterize:
    """Of each level only the highest `bits` bits stay, with probability p."""

    bits: int
    p: float = 0.5

    def __post_init__(self) -> None:
        _set(self, "bits", _whole(self, "bits", 0, 8))
        _probability(self)


@dataclass(frozen=True)
class RandomSolarize:
    """Levels from threshold (0 to 255) on are inverted, with probability p."""

    threshold: float
    p: float = 0.5

    def __post_init__(self) -> None:
        _number(self, "threshold", 0, 255)
        _probability(self)


@dataclass(frozen=True)
class RandomEqualize:
    """The histogram of each channel is equalised, with probability p."""

    p: float = 0.5

    def __post_init__(self) -> None:
        _probability(self)


@dataclass(frozen=True)
class RandomAutocontrast:
    """Each channel is stretched from 0 to 255, with probability p."""

    p: float = 0.5

    def __post_init__(self) -> None:
        _probability(self)


@dataclass(frozen=True)
class RandomAdjustSharpness:
    """0 is blurred, 1 the image, 2 twice as sharp; with probability p."""

    sharpness_factor: float
    p: float = 0.5

    def __post_init__(self) -> None:
        _number(self, "sharpness_factor", 0, 1e3)
        _probability(self)


@dataclass(frozen=True)
class GaussianBlur:
    """A Gaussian of kernel_size taps (odd; one number, or across and down), whose sigma in pixels
    is uniform in a range, or fixed."""

    kernel_size: int | tuple[int, int]
    sigma: float | Range = (0.1, 2.0)
    p: float = 1.0
    """Probability that it is done at all (torchvision: RandomApply([GaussianBlur(...)], p))."""

    def __post_init__(self) -> None:
        sizes = self.kernel_size
        pair = sizes if isinstance(sizes, Sequence) else (sizes, sizes)
        good = len(pair) == 2 and all(_is_whole(size) and size % 2 for size in pair)
        if not good or not all(1 <= size <= MOST_TAPS for size in pair):
            raise _error(
                self, "kernel_size", f"must be odd, from 1 to {MOST_TAPS}, or two of these"
            )
        _set(self, "kernel_size", (int(pair[0]), int(pair[1])))
        sigma = self.sigma
        if _is_number(sigma):
            sigma = (sigma, sigma)  # type: ignore[assignment]
        _set(self, "sigma", _range(self, "sigma", sigma, (1e-3, 1e3)))
        _probability(self)


@dataclass(frozen=True)
class TrivialAugmentWide:
    """One of fourteen operations with one of 31 magnitudes, all equally likely (Müller and Hutter,
    2021)."""

    num_magnitude_bins: int = 31
    interpolation: Sampling = "nearest"
    fill: Fill = None
    """Of what comes from outside the image: a level or three. None: 0."""

    def __post_init__(self) -> None:
        _set(self, "num_magnitude_bins", _whole(self, "num_magnitude_bins", 2, 1000))
        _geometry(self)


@dataclass(frozen=True)
class RandAugment:
    """num_ops of fourteen operations one after the other, all at one magnitude, below
    num_magnitude_bins (Cubuk and others, 2020)."""

    num_ops: int = 2
    magnitude: int = 9
    num_magnitude_bins: int = 31
    interpolation: Sampling = "nearest"
    fill: Fill = None
    """Of what comes from outside the image: a level or three. None: 0."""

    def __post_init__(self) -> None:
        _set(self, "num_ops", _whole(self, "num_ops", 0, 64))
        _set(self, "num_magnitude_bins", _whole(self, "num_magnitude_bins", 2, 1000))
        _set(self, "magnitude", _whole(self, "magnitude", 0, self.num_magnitude_bins - 1))
        _geometry(self)


@dataclass(frozen=True)
class TimmRandAugment:
    """timm's RandAugment, of which ViT's and DeiT's recipes write 'rand-m9-mstd0.5-inc1': num_ops
    of its fifteen operations, each done with probability p, at a magnitude from 0 to 10 that is
    normal around `magnitude` (standard deviation magnitude_std). Its draws; torchvision's
    arithmetic, and one interpolation where timm draws bilinear or bicubic."""

    magnitude: float = 9.0
    magnitude_std: float = 0.5
    num_ops: int = 2
    p: float = 0.5
    interpolation: Sampling = "bilinear"
    fill: Fill = (124.0, 116.0, 104.0)
    """Of what comes from outside the image: ImageNet's mean, as timm's loader has it."""

    def __post_init__(self) -> None:
        _number(self, "magnitude", 0, 10)
        _number(self, "magnitude_std", 0, 100)
        _set(self, "num_ops", _whole(self, "num_ops", 0, 64))
        _probability(self)
        _geometry(self)


@dataclass(frozen=True)
class AugMix:
    """The image mixed with mixture_width variants of it, each made by a chain of chain_depth
    operations (below 1: one to three); weights from Dirichlet distributions of alpha (Hendrycks and
    others, 2020)."""

    severity: int = 3
    mixture_width: int = 3
    chain_depth: int = -1
    alpha: float = 1.0
    all_ops: bool = True
    """False: without brightness, saturation, contrast and sharpness, which the paper's test
    corruptions resemble."""
    interpolation: Sampling = "bilinear"
    fill: Fill = None
    """Of what comes from outside the image: a level or three. None: 0."""

    def __post_init__(self) -> None:
        _set(self, "severity", _whole(self, "severity", 1, 10))
        _set(self, "mixture_width", _whole(self, "mixture_width", 1, MOST_VARIANTS))
        _set(self, "chain_depth", _whole(self, "chain_depth", -1, 16))
        _number(self, "alpha", 1e-2, 1e3)
        if not isinstance(self.all_ops, bool):
            raise _error(self, "all_ops", "must be True or False")
        _geometry(self)


Operation = (
    ColorJitter
    | RandomGrayscale
    | RandomInvert
    | RandomPosterize
    | RandomSolarize
    | RandomEqualize
    | RandomAutocontrast
    | RandomAdjustSharpness
    | GaussianBlur
    | TrivialAugmentWide
    | RandAugment
    | TimmRandAugment
    | AugMix
)
OPERATIONS: tuple[type[Operation], ...] = Operation.__args__


def check_operations(operations: Any) -> tuple[Operation, ...]:
    """As a tuple. GratisError where it is none of operations, or of too many."""
    names = ", ".join(kind.__name__ for kind in OPERATIONS)
    if not isinstance(operations, (tuple, list)):
        advice = "it must be a tuple of operations, as (TrivialAugmentWide(),)"
        raise GratisError(f"operations is {_shown(operations)}; {advice}")
    for operation in operations:
        if not isinstance(operation, OPERATIONS):
            advice = f"it may be an object of {names}"
            raise GratisError(f"operations has {_shown(operation)}; {advice}")
    if len(operations) > MOST_OPERATIONS:
        raise GratisError(f"operations are {len(operations)}; at most {MOST_OPERATIONS}")
    return tuple(operations)


def fits(operation: Operation, height: int, width: int) -> str:
    """Why an operation cannot be done on an image of that size; empty where it can."""
    if not isinstance(operation, GaussianBlur):
        return ""
    across, down = operation.kernel_size  # type: ignore[misc]
    if across // 2 < width and down // 2 < height:
        return ""
    return f"GaussianBlur's kernel_size {(across, down)} reaches beyond the crop's reflection"


def _set(operation: Any, name: str, value: object) -> None:
    object.__setattr__(operation, name, value)


def _shown(value: object) -> str:
    return shorten(repr(value), 200, placeholder=" ...")


def _error(operation: Any, name: str, advice: str) -> GratisError:
    kind, value = type(operation).__name__, _shown(getattr(operation, name))
    return GratisError(f"{kind}'s {name} is {value}; it {advice}")


def _is_number(value: object) -> bool:
    return isinstance(value, Real) and not isinstance(value, bool)


def _is_whole(value: object) -> bool:
    return isinstance(value, Integral) and not isinstance(value, bool)


def _number(operation: Any, name: str, low: float, high: float) -> None:
    value = getattr(operation, name)
    if not _is_number(value) or not low <= value <= high:
        raise _error(operation, name, f"must be a number from {low:g} to {high:g}")
    _set(operation, name, float(value))


def _whole(operation: Any, name: str, low: int, high: int) -> int:
    value = getattr(operation, name)
    if not _is_whole(value) or not low <= value <= high:
        raise _error(operation, name, f"must be a whole number from {low} to {high}")
    return int(value)


def _probability(operation: Any) -> None:
    _number(operation, "p", 0, 1)


def _range(operation: Any, name: str, pair: Any, bound: Range) -> Range:
    two = isinstance(pair, Sequence) and len(pair) == 2 and all(map(_is_number, pair))
    if not two or not bound[0] <= pair[0] <= pair[1] <= bound[1]:
        least, most = bound
        advice = f"must be a number, or two, least and most, within {least:g} and {most:g}"
        raise _error(operation, name, advice)
    return float(pair[0]), float(pair[1])


def _jitter(operation: Any, name: str, centre: float, bound: Range) -> Range:
    value = getattr(operation, name)
    if not _is_number(value):
        return _range(operation, name, value, bound)
    if value < 0:
        raise _error(operation, name, "must be at least 0, or two numbers, least and most")
    low = centre - value
    return _range(operation, name, (max(low, 0.0) if centre else low, centre + value), bound)


def _geometry(operation: Any) -> None:
    interpolation = operation.interpolation
    if not isinstance(interpolation, str) or interpolation not in ("nearest", "bilinear"):
        raise _error(operation, "interpolation", "may be 'nearest' or 'bilinear'")
    fill = operation.fill
    if fill is None:
        return
    levels = fill if isinstance(fill, Sequence) else (fill,) * 3
    if len(levels) != 3 or not all(_is_number(one) and 0 <= one <= 255 for one in levels):
        raise _error(operation, "fill", "must be a level from 0 to 255, or three, or None")
    _set(operation, "fill", tuple(float(one) for one in levels))
