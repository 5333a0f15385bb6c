"""What may be done to a finished batch: MixUp, CutMix, RandomErasing. Plain values, checked when
they are made: `LoaderConfig.mix` and `LoaderConfig.erasing`."""

from __future__ import annotations

import math
from dataclasses import dataclass, fields
from numbers import Integral, Real
from textwrap import shorten
from typing import Any, Literal, get_args

from gratis.errors import GratisError

ErasingMode = Literal["const", "rand", "pixel"]
MOST_BOXES = 100  # of an image that are erased


@dataclass(frozen=True)
class MixUp:
    """Each image of a batch becomes lam * image + (1 - lam) * the image before it, and its label
    likewise; lam is drawn from Beta(alpha, alpha) for each batch. As
    torchvision.transforms.v2.MixUp on the batch of all ranks."""

    alpha: float = 1.0
    """Above 0."""
    p: float | None = None
    """Probability that a batch is mixed so. None: what the others leave, in equal shares."""

    def __post_init__(self) -> None:
        _check_mixing(self)


@dataclass(frozen=True)
class CutMix:
    """A box of each image of a batch, the same in all of them, becomes that of the image before it,
    and the label mixes by area; the box has a share of 1 - lam of the area, lam drawn from
    Beta(alpha, alpha), and is cut at the borders. As torchvision.transforms.v2.CutMix on the batch
    of all ranks."""

    alpha: float = 1.0
    """Above 0."""
    p: float | None = None
    """Probability that a batch is mixed so. None: what the others leave, in equal shares."""

    def __post_init__(self) -> None:
        _check_mixing(self)


@dataclass(frozen=True)
class RandomErasing:
    """Boxes of some images are overwritten, after normalisation, as timm's RandomErasing does. Each
    has a random share of the image's area (divided by the number of boxes) and a random ratio of
    height to width, the logarithm uniform."""

    p: float = 0.5
    """Probability that an image is erased."""
    min_area: float = 0.02
    """Of all boxes of an image together, as a share of its area."""
    max_area: float = 1 / 3
    """At most."""
    min_aspect: float = 0.3
    """Of height to width."""
    max_aspect: float | None = None
    """None: 1 / min_aspect."""
    mode: ErasingMode = "const"
    """const: zeros, which is the mean colour where it was subtracted. rand: of each box a colour
    whose channels are standard normal. pixel: each value standard normal. The two last are for
    images with a standard deviation of about 1, in a type that is no integer."""
    min_count: int = 1
    """Boxes of an image, at least."""
    max_count: int | None = None
    """At most; None: min_count."""

    def __post_init__(self) -> None:
        _check_numbers(self, ("p", "min_area", "max_area", "min_aspect", "max_aspect"), Real)
        _check_numbers(self, ("min_count", "max_count"), Integral)
        if not isinstance(self.mode, str) or self.mode not in get_args(ErasingMode):
            shown = shorten(repr(self.mode), 200, placeholder=" ...")
            raise GratisError(f"mode of RandomErasing is {shown}; it may be const, rand, pixel")
        if not 0 <= self.p <= 1:
            raise GratisError(f"p of RandomErasing is {self.p}; it is a probability, from 0 to 1")
        if self.min_aspect <= 0:
            raise GratisError(
                f"min_aspect of RandomErasing is {self.min_aspect}; it must be above 0"
            )
        if not 0 < self.min_area <= self.max_area <= 1:
            area = (self.min_area, self.max_area)
            raise GratisError(f"area of RandomErasing is {area}; it must be a range within (0, 1]")
        if not 0 < self.min_aspect <= self.aspects[1] < math.inf:
            advice = "it must be a range above 0"
            raise GratisError(f"aspect of RandomErasing is {self.aspects}; {advice}")
        low, high = self.counts
        if not 1 <= low <= high <= MOST_BOXES:
            advice = f"it must be a range from 1 to {MOST_BOXES}"
            raise GratisError(f"count of RandomErasing is {(low, high)}; {advice}")

    @property
    def aspects(self) -> tuple[float, float]:
        most = 1 / self.min_aspect if self.max_aspect is None else self.max_aspect
        return self.min_aspect, most

    @property
    def counts(self) -> tuple[int, int]:
        return self.min_count, self.min_count if self.max_count is None else self.max_count


Mixing = MixUp | CutMix


def probabilities(mix: tuple[Mixing, ...]) -> list[float]:
    """Of each, with the shares of those that name none. GratisError if they are more than 1."""
    named = sum(each.p for each in mix if each.p is not None)
    if named > 1 + 1e-9:
        raise GratisError(f"the probabilities p in mix sum to {named:g}; 1 is the most")
    unnamed = sum(each.p is None for each in mix)
    share = max(0.0, 1 - named) / max(1, unnamed)
    return [share if each.p is None else each.p for each in mix]


def _check_mixing(mixing: Mixing) -> None:
    name = type(mixing).__name__
    _check_numbers(mixing, ("alpha", "p"), Real)
    if not 1e-3 <= mixing.alpha <= 1e3:
        raise GratisError(f"alpha of {name} is {mixing.alpha}; it must be from 0.001 to 1000")
    if mixing.p is not None and not 0 <= mixing.p <= 1:
        raise GratisError(f"p of {name} is {mixing.p}; it is a probability, from 0 to 1")


def _check_numbers(value: Any, names: tuple[str, ...], kind: Any) -> None:
    """And makes them Python's own, which JSON can hold."""
    optional = {field.name for field in fields(value) if field.default is None}
    for name in names:
        number = getattr(value, name)
        if number is None and name in optional:
            continue
        if not isinstance(number, kind) or isinstance(number, bool):
            what = "a number" if kind is Real else "a whole number"
            raise GratisError(f"{name} of {type(value).__name__} is {number!r}; it must be {what}")
        object.__setattr__(value, name, (float if kind is Real else int)(number))
