"""What a user may choose about batches; every combination is checked where it is made."""

from __future__ import annotations

import math
import operator
from collections.abc import Sequence
from dataclasses import dataclass
from numbers import Integral, Real
from os import PathLike
from typing import Any, Literal, get_args

import torch

from gratis.choices import BadSamples, DecodedOption, MeanForm, NoiseForm, Positions
from gratis.errors import GratisError

Remainder = Literal["pad", "drop"]
Order = Literal["full", "window"]

CHOICES: dict[str, tuple[object, ...]] = {
    "crop_positions": get_args(Positions),
    "mean": get_args(MeanForm),
    "noise": get_args(NoiseForm),
    "remainder": get_args(Remainder),
    "order": get_args(Order),
    "bad_samples": get_args(BadSamples),
    "decoded": get_args(DecodedOption),
    "views": (1, 10),
    "dtype": (torch.float32, torch.float16, torch.bfloat16),
}

MOST = {"batch_size": 1 << 20, "threads": 1024, "crop_chunk": 1 << 40}
WHOLE = "batch_size seed crop crop_chunk window prefetch views threads noise_until".split()
KINDS: dict[str, tuple[tuple[str, ...], tuple[type, ...]]] = {
    "a number": (("cache_gb", "decoded_gb"), (Real,)),
    "True or False": (("augment", "channels_last"), (bool,)),
    "the name of a folder": (("cache",), (str, PathLike)),
}
MAY_BE_NONE = ("threads", "noise_until", "decoded_gb", "cache")


def whole(name: str, value: Any) -> int:
    """A whole number as Python's: NumPy's would overflow, and no JSON holds them. GratisError for
    anything else."""
    if not isinstance(value, Integral) or isinstance(value, bool):
        raise GratisError(f"{name} is {value!r}; it must be a whole number")
    return operator.index(value)


@dataclass(frozen=True, kw_only=True)
class LoaderConfig:
    """A plain value: picklable, comparable, the same on every rank. GratisError, when it is made,
    for a value of another type or out of its range, or one that contradicts another."""

    batch_size: int = 128
    """Of all ranks together, so that the loss curve does not depend on their number."""
    seed: int = 0
    """Of order and augmentation, 0 <= seed < 2**64."""
    crop: int = 224
    """Side of the square that is cut out of the stored image."""
    area: tuple[float, float] | None = None
    """For other networks than AlexNet: the crop is a random part of the image, of this range of its
    area and of aspect ratios `ratio`, resized to crop x crop (torchvision's RandomResizedCrop;
    usually (0.08, 1)). None: the plain crop."""
    ratio: tuple[float, float] = (3 / 4, 4 / 3)
    """Range of width / height of the parts that `area` asks for."""
    crop_positions: Positions = "all"
    """all: of 224 in 256 pixels 33 offsets along each axis, the ten views' corners among them
    (released code). printed: 32, the paper's 32 x 32 x 2 = 2048."""
    crop_chunk: int = 1
    """So many consecutive samples of the epoch's order share one offset and one mirror. 1: each has
    its own; 32: released code."""
    augment: bool = True
    """True: shuffled, random crop and mirror, colour noise. False: evaluation, in the order of ids,
    the central crop (or ten views), neither noise nor division."""
    mean: MeanForm = "central"
    """central: the central region of the mean image is subtracted from every crop, whatever its
    offset (released code). offset: each pixel loses the mean of its own place (Caffe)."""
    noise: NoiseForm = "sqrt"
    """sqrt: 0.1 * E diag(square root of eigenvalue) z on all pixels, then the whole image divided
    by 1.1 (released code). printed: 0.1 * E diag(eigenvalue) z on [0,1]-scaled pixels, and no
    division (the paper's formula). off: none."""
    noise_until: int | None = None
    """First epoch without noise and without the division. None: never."""
    views: int = 1
    """10: four corners and centre, then their mirrors; decoded once; for augment=False alone."""
    remainder: Remainder = "pad"
    """What becomes of the N mod batch_size last samples of an epoch. pad: they come in a last batch
    filled up with rows of id -1 and label -100. drop: they are left out."""
    order: Order = "full"
    """full: one shuffle of all samples. window: shards are shuffled, then samples within each run
    of `window` shards: nearly sequential reads, for disks on which random ones are slow."""
    window: int = 8
    """Shards that are shuffled together where order is window."""
    dtype: torch.dtype = torch.float32
    """Of the images: torch.float32, float16 or bfloat16."""
    channels_last: bool = False
    """Memory layout of the images; their shape stays [b, 3, crop, crop]."""
    threads: int | None = None
    """Of the decoder. None: this process's share of the cores that it may use."""
    prefetch: int = 1
    """Ready batches kept in advance, beside the two inside the decoder; each costs memory (154 MB
    for 256 images of 224 px)."""
    cache: str | None = None
    """Folder for the shards of datasets on a server. None: `gratis` in the user's cache folder."""
    cache_gb: float = 200.0
    """Most that the cache holds, in units of 10**9 bytes; the shards used longest ago go first."""
    bad_samples: BadSamples = "raise"
    """What becomes of a sample that cannot be decoded. raise: it ends the epoch with an error that
    names it. quarantine (training alone): another sample stands in for it, with a warning
    (`Loader.take_warnings`)."""
    decoded: DecodedOption = "none"
    """Where whole decoded images are kept, so that an epoch decodes only what none before it did:
    on the GPU (device), in this machine's memory (host), or nowhere (none). auto: the first of
    these that they fit into. Batches are the same. (`cache` holds shards, on a disk.)"""
    decoded_gb: float | None = None
    """Most that the decoded images may take of a device's or the machine's memory, in units of
    10**9 bytes, shared by the ranks on it. None: half of what is free on the device when the loader
    is made, or a quarter on the machine. A second loader has a bound of its own: its configuration
    says how much."""

    def __post_init__(self) -> None:
        self._check_kinds()
        for name, allowed in CHOICES.items():
            value = getattr(self, name)
            # an array equals in places
            if not any(isinstance(value, type(one)) and value == one for one in allowed):
                choices = " or ".join(map(repr, allowed))
                raise GratisError(f"{name} is {value!r}; it may be {choices}")
        for name in ("batch_size", "crop", "crop_chunk", "window", "threads", "prefetch"):
            if (number := getattr(self, name)) is not None and number < 1:
                raise GratisError(f"{name} is {number}; it must be at least 1")
            # DALI would end the process
            if number is not None and name in MOST and number > MOST[name]:
                raise GratisError(f"{name} is {number}; it may be at most {MOST[name]:,}")
        for name in ("cache_gb", "decoded_gb"):
            if (size := getattr(self, name)) is not None and not 0 < size < math.inf:
                raise GratisError(f"{name} is {size}; it must be above 0, and finite")
        if not 0 <= self.seed < 2**64:
            raise GratisError(f"seed is {self.seed}; it must be at least 0 and below 2**64")
        if self.noise_until is not None and self.noise_until < 0:
            raise GratisError(f"noise_until is {self.noise_until}; it is an epoch, counted from 0")
        if self.views == 10 and self.augment:
            raise GratisError("views=10 is for evaluation; set augment=False too")
        if self.bad_samples == "quarantine" and not self.augment:
            raise GratisError(
                "bad_samples='quarantine' is for training: an evaluation must see every sample once"
            )
        self._check_resized_crop()

    def _check_kinds(self) -> None:
        """A word where a number belongs would be a TypeError somewhere, or train something else."""
        for name in WHOLE:
            if (value := getattr(self, name)) is not None or name not in MAY_BE_NONE:
                object.__setattr__(self, name, whole(name, value))
        for kind, (names, types) in KINDS.items():
            for name in names:
                value = getattr(self, name)
                if value is None and name in MAY_BE_NONE:
                    continue
                if not isinstance(value, types) or (isinstance(value, bool) and bool not in types):
                    raise GratisError(f"{name} is {value!r}; it must be {kind}")
        for name in ("area", "ratio"):
            pair = getattr(self, name)
            if pair is None and name == "area":
                continue
            two = isinstance(pair, Sequence) and len(pair) == 2
            if not two or not all(isinstance(side, Real) for side in pair):
                advice = "it must be two numbers, the least and the most"
                raise GratisError(f"{name} is {pair!r}; {advice}")

    def _check_resized_crop(self) -> None:
        if self.area is None:
            return
        for name, (low, high), most in (("area", self.area, 1.0), ("ratio", self.ratio, 100.0)):
            if not 0 < low <= high <= most:
                advice = f"it must be a range within (0, {most:g}]"
                raise GratisError(f"{name} is {(low, high)}; {advice}")
        if self.crop_chunk > 1:
            raise GratisError("crop_chunk is for plain crops; with area leave it at 1")
        if not self.augment:
            raise GratisError("area is for training; set augment=True, or area=None")
        if self.mean == "offset":
            raise GratisError(
                "mean='offset' has no meaning for a resized crop; with area choose mean='central'"
            )

    def noisy(self, epoch: int) -> bool:
        """Whether colour noise applies in this epoch, and with it the division by 1.1."""
        before_the_end = self.noise_until is None or epoch < self.noise_until
        return self.augment and self.noise != "off" and before_the_end

    @property
    def order_name(self) -> str:
        """What an order depends on beside seed and epoch; part of the loader's state."""
        if not self.augment:
            return "fixed"
        return f"window:{self.window}" if self.order == "window" else "full"
