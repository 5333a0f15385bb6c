"""What a user may choose about batches; every combination is checked where it is made."""

from __future__ import annotations

import math
import operator
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields, replace
from numbers import Integral, Real
from os import PathLike
from textwrap import shorten
from typing import Any, Literal, get_args

import torch

from gratis.choices import (
    BadSamples,
    DecodedOption,
    EngineOption,
    MeanForm,
    NoiseForm,
    Positions,
    ShapeOption,
)
from gratis.errors import GratisError
from gratis.loader.augmentations import Operation, check_operations, fits
from gratis.loader.mixing import CutMix, Mixing, MixUp, RandomErasing, probabilities
from gratis.loader.plain_values import plain_fields
from gratis.network import NetworkLimits

Remainder = Literal["short", "drop", "pad"]
Layout = Literal["nchw", "channels_last", "nhwc"]
Triple = tuple[float, float, float]
Order = Literal["full", "window"]
Interpolation = Literal["bilinear", "bicubic"]

CHOICES: dict[str, tuple[object, ...]] = {
    "crop_positions": get_args(Positions),
    "mean": get_args(MeanForm),
    "noise": get_args(NoiseForm),
    "remainder": get_args(Remainder),
    "order": get_args(Order),
    "interpolation": get_args(Interpolation),
    "shape": get_args(ShapeOption),
    "layout": get_args(Layout),
    "bad_samples": get_args(BadSamples),
    "decoded": get_args(DecodedOption),
    "engine": get_args(EngineOption),
    "dtype": (torch.float32, torch.float16, torch.bfloat16, torch.uint8),
}

MOST = {
    "batch_size": 1 << 20,
    "threads": 1024,
    "crop_chunk": 1 << 40,
    "prefetch": 1 << 20,
    "views": 100,
    "repeats": 100,
    "crop": 1 << 14,
    "resize": 1 << 14,
}
WHOLE = "batch_size seed crop crop_chunk window prefetch views repeats threads".split()
WHOLE += ["noise_until", "resize"]
KINDS: dict[str, tuple[tuple[str, ...], tuple[type, ...]]] = {
    "a number": (("cache_gb", "decoded_gb", "flip", "outage_s", "read_timeout_s"), (Real,)),
    "True or False": (("augment", "antialias"), (bool,)),
    "the name of a folder": (("cache",), (str, PathLike)),
}
MAY_BE_NONE = ("threads", "noise_until", "decoded_gb", "cache", "resize")

# what may change from epoch to epoch
SCHEDULED = "crop area ratio interpolation antialias flip operations mix erasing".split()
# pairs once it is checked, so that it can be hashed
Changes = Mapping[str, Any] | tuple[tuple[str, Any], ...]
Schedule = tuple[tuple[int, Changes], ...]

# mean and standard deviation of ImageNet's channels, as torchvision's networks expect them
IMAGENET: tuple[Triple, Triple] = ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))


def shown(value: object) -> str:
    """A value in a message of one line, whatever it is: arrays are of many, and long."""
    return shorten(repr(value), 200, placeholder=" ...")


def whole(name: str, value: Any) -> int:
    """A whole number as Python's: NumPy's would overflow, and no JSON holds them. GratisError for
    anything else."""
    if not isinstance(value, Integral) or isinstance(value, bool):
        raise GratisError(f"{name} is {shown(value)}; it must be a whole number")
    return operator.index(value)


@dataclass(frozen=True, kw_only=True)
class LoaderConfig:
    """A plain value: picklable, comparable, the same on every rank. GratisError, when it is made,
    for a value of another type or out of its range, or one that contradicts another.

    LoaderConfig() is for training: shuffled, a random crop of 224 px, mirrored at random, with
    ImageNet's mean and standard deviation, float32 [b,3,224,224]; the last batch is short. Nothing
    else is done to a pixel. `LoaderConfig.imagenet()`, `.alexnet()` and `.evaluation()` are named
    sets of fields; each takes changes, as `LoaderConfig.imagenet(batch_size=256, crop=176)`."""

    batch_size: int = 128
    """Of all ranks together, so that the loss curve does not depend on their number."""
    seed: int = 0
    """Of order and augmentation, 0 <= seed < 2**64."""
    crop: int = 224
    """Side of the images in pixels. Of images stored with 256 px a side usually 224; in proportion,
    7/8 of the side. A plain crop of square images is at most their side; of whole images that are
    smaller it is the largest square in them, enlarged."""
    area: tuple[float, float] | None = None
    """The crop is a random part of the image, of this range of its area and of aspect ratios
    `ratio`, resized to crop x crop (torchvision's RandomResizedCrop; usually (0.08, 1)). None: the
    plain crop, not resized."""
    resize: int | None = None
    """Of an evaluation: the shorter side that images are resized to before the central crop (or the
    ten views), as torchvision's Resize(resize) and CenterCrop(crop); at least the crop. For a share
    p of the side (timm's crop_pct) it is int(crop / p). None: square images as they are stored; of
    whole ones 8/7 of the crop, 256 for 224."""
    ratio: tuple[float, float] = (3 / 4, 4 / 3)
    """Range of width / height of the parts that `area` asks for."""
    interpolation: Interpolation = "bilinear"
    """Of what is resized, as torchvision's resize of uint8 tensors, to one level."""
    antialias: bool = True
    """The filter widens where it shrinks, as torchvision's default and Pillow's. False: it looks at
    the 2 x 2 (bicubic: 4 x 4) nearest pixels alone."""
    shape: ShapeOption = "any"
    """Of the dataset's images that this is meant for: a dataset of others is an error. square: all
    of one size; whole: with their own shape (`gratis shards --shape whole`)."""
    crop_positions: Positions = "all"
    """all: of 224 in 256 pixels 33 offsets along each axis, the ten views' corners among them
    (released code). printed: 32, the paper's 32 x 32 x 2 = 2048. centre: the central crop alone."""
    crop_chunk: int = 1
    """So many consecutive samples of the epoch's order share one offset and one mirror. 1: each has
    its own; 32: released code."""
    flip: float = 0.5
    """Probability of the mirror in training, in [0, 1]."""
    operations: tuple[Operation, ...] = ()
    """What is done to the pixels of a training sample, in this order, between mirror and
    `normalize`: objects of `gratis`, as (TrivialAugmentWide(),), each torchvision's
    transform of that name. See docs/augmentations.md."""
    augment: bool = True
    """True: shuffled, random crop and mirror, colour noise. False: evaluation, in the order of ids,
    the central crop (or ten views), neither noise nor division."""
    normalize: Literal["imagenet", "mean-image"] | tuple[Triple, Triple] | None = "imagenet"
    """(mean, std), three numbers each, of images scaled to [0, 1]: (x / 255 - mean) / std, as
    torchvision's Normalize. imagenet: those of ImageNet, (0.485, 0.456, 0.406) and (0.229, 0.224,
    0.225). mean-image: the dataset's mean image is subtracted (see `mean`), in grey levels, about
    -150 to 150. None: grey levels, 0 to 255."""
    mean: MeanForm = "central"
    """Of normalize="mean-image". central: the central region of the mean image is subtracted from
    every crop, whatever its offset (released code). offset: each pixel loses the mean of its own
    place (Caffe)."""
    noise: NoiseForm = "off"
    """Colour noise, added to the grey levels before `normalize` divides. sqrt: 0.1 * E diag(square
    root of eigenvalue) z on all pixels, then the whole image divided by 1.1 (released code).
    printed: 0.1 * E diag(eigenvalue) z on [0,1]-scaled pixels, and no division (the paper's
    formula). off: neither."""
    noise_until: int | None = None
    """First epoch without noise and without the division. None: never."""
    views: int = 1
    """In training so many views of each sample, each with draws of its own: images [b,views,3,h,w],
    decoded once (self-supervised training). In evaluation (augment=False) 1, or 10: four corners
    and centre, then their mirrors."""
    repeats: int = 1
    """Each sample comes so many times in an epoch, each time with draws of its own: repeated
    augmentation. Its copies are in the same batch, and on different ranks if there are as many. An
    epoch is as many times as long."""
    mix: tuple[Mixing, ...] = ()
    """MixUp and CutMix, one of them for each batch: MixUp(0.8), CutMix(1.0), as a tuple. Each image
    is mixed with the one before it in the batch of all ranks, after all that is done to single
    images; labels are then float32 [b, classes]."""
    erasing: RandomErasing | None = None
    """Boxes of the normalised images that are overwritten, as timm's: RandomErasing(0.25)."""
    schedule: Schedule = ()
    """What changes from an epoch on, counted from 0, until another entry names it again: as
    ((0, {"crop": 160}), (6, {"crop": 176}), (12, {"crop": 192})), progressive resizing. Of crop,
    area, ratio, interpolation, antialias, flip, operations, mix and erasing."""
    remainder: Remainder = "short"
    """What becomes of the N mod batch_size last samples of an epoch. short: they are the last
    batch, which the ranks share as evenly as they can; if they are fewer than the ranks, making the
    loader is an error. drop: they are left out. pad: the last batch is filled up with rows of zero
    pixels, id -1 and label -100, so that every batch has the same shape."""
    order: Order = "full"
    """full: one shuffle of all samples. window: shards are shuffled, then samples within each run
    of `window` shards: nearly sequential reads, for disks on which random ones are slow."""
    window: int = 8
    """Shards that are shuffled together where order is window."""
    dtype: torch.dtype = torch.float32
    """Of the images: torch.float32, float16, bfloat16, or with normalize=None uint8."""
    layout: Layout = "nchw"
    """nchw: [b,3,crop,crop], contiguous. channels_last: the same shape in torch's memory format
    channels_last. nhwc: [b,crop,crop,3], contiguous (for JAX, Keras, or what expects a picture)."""
    engine: EngineOption = "auto"
    """Who decodes JPEGs. native: the engine, a library in C of this package, which also resizes and
    normalises on the CPU; what it does not read (progressive files, other samplings) DALI does, in
    the same batch. dali: DALI alone, for two to three times the CPU time. auto: native where the
    library was compiled, else dali, with a warning; dali too where an x86-64 CPU has no AVX2.
    Batches are the same to the bit. For a GPU auto is dali, which decodes there; native decodes and
    resizes on the CPU, to bytes that the GPU normalises (neither has been measured on one). Of PPMs
    nothing is decoded; with `decoded` the engine fills the machine's memory, and for a GPU DALI
    does."""
    threads: int | None = None
    """Of the decoder. None: this process's share of the cores that it may use."""
    prefetch: int = 1
    """Ready batches kept in advance, beside the two inside DALI where it decodes; each costs memory
    (154 MB for 256 images of 224 px)."""
    cache: str | None = None
    """Folder for the shards of datasets on a server. None: `gratis` in the user's cache folder."""
    cache_gb: float = 200.0
    """Most that the cache holds, in units of 10**9 bytes; the shards used longest ago go first."""
    outage_s: float = 600.0
    """Seconds for which a server that has answered may be away before reading gives up
    (`gratis.errors.Outage`), 0 to 86400. What cannot get better (403, 404, another length) is an
    error at once."""
    read_timeout_s: float = 30.0
    """Seconds between two bytes of an answer, after which the request is made again; up to 3600."""
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
                raise GratisError(f"{name} is {shown(value)}; it may be {choices}")
        for name in (*MOST, "window"):
            if (number := getattr(self, name)) is not None and number < 1:
                raise GratisError(f"{name} is {number}; it must be at least 1")
            # DALI would end the process
            if number is not None and name in MOST and number > MOST[name]:
                raise GratisError(f"{name} is {number}; it may be at most {MOST[name]:,}")
        _ = self.network  # its ranges
        for name in ("cache_gb", "decoded_gb"):
            if (size := getattr(self, name)) is not None and not 0 < size < math.inf:
                raise GratisError(f"{name} is {size}; it must be above 0, and finite")
        if not 0 <= self.flip <= 1:
            raise GratisError(f"flip is {self.flip}; it is a probability, from 0 to 1")
        # arithmetic of NumPy's half precision would overflow
        object.__setattr__(self, "flip", float(self.flip))
        if not 0 <= self.seed < 2**64:
            raise GratisError(f"seed is {self.seed}; it must be at least 0 and below 2**64")
        if self.noise_until is not None and self.noise_until < 0:
            raise GratisError(f"noise_until is {self.noise_until}; it is an epoch, counted from 0")
        self._check_copies()
        if self.bad_samples == "quarantine" and not self.augment:
            raise GratisError(
                "bad_samples='quarantine' is for training: an evaluation must see every sample once"
            )
        self._check_normalize()
        self._check_resized_crop()
        self._check_mixing()
        self._check_operations()
        self._check_schedule()
        self._check_resize()

    @classmethod
    def imagenet(cls, **changes: Any) -> LoaderConfig:
        """Training as ResNets are trained on ImageNet: a random part of 8 to 100 % of the image,
        resized; mirror; ImageNet's mean and standard deviation."""
        fields: dict[str, Any] = {"area": (0.08, 1.0), "normalize": "imagenet", "noise": "off"}
        return cls(**fields | changes)

    @classmethod
    def alexnet(cls, **changes: Any) -> LoaderConfig:
        """Training as AlexNet's released code: a plain random crop, mirror, minus the mean image,
        colour noise and its division by 1.1, in grey levels; the last batch is padded. With
        augment=False its evaluation."""
        fields: dict[str, Any] = {"normalize": "mean-image", "noise": "sqrt", "remainder": "pad"}
        return cls(**fields | changes)

    @classmethod
    def evaluation(cls, **changes: Any) -> LoaderConfig:
        """Each sample once and nothing else, in the order of ids: the central crop, ImageNet's mean
        and standard deviation, a short last batch. Give it the `crop` and `normalize` of the
        training."""
        fields: dict[str, Any] = {"augment": False, "remainder": "short"}
        return cls(**fields | changes)

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> LoaderConfig:
        """Of plain values, as a JSON or TOML file holds them: each field by its name, lists for
        tuples, "bfloat16" for torch.bfloat16, and for an object of `gratis` its class and
        arguments: {"mix": [{"type": "MixUp", "alpha": 0.2}]}. Fields that are not given are as in
        LoaderConfig(). GratisError for a name or value that does not exist."""
        return cls(**plain_fields(values, [field.name for field in fields(cls)]))

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
                    raise GratisError(f"{name} is {shown(value)}; it must be {kind}")
        for name in ("area", "ratio"):
            pair = getattr(self, name)
            if pair is None and name == "area":
                continue
            two = isinstance(pair, Sequence) and len(pair) == 2
            if not two or not all(map(_is_number, pair)):
                advice = "it must be two numbers, the least and the most"
                raise GratisError(f"{name} is {shown(pair)}; {advice}")
            object.__setattr__(self, name, tuple(pair))

    def _check_normalize(self) -> None:
        if isinstance(self.normalize, (tuple, list)):
            object.__setattr__(self, "normalize", _mean_and_std(self.normalize))
        elif self.normalize is not None and not (
            isinstance(self.normalize, str) and self.normalize in ("imagenet", "mean-image")
        ):
            allowed = "it may be 'imagenet', 'mean-image', None or (mean, std), three numbers each"
            raise GratisError(f"normalize is {shown(self.normalize)}; {allowed}")
        if self.mean != "central" and self.normalize != "mean-image":
            advice = "it is for the mean image; set normalize='mean-image' too"
            raise GratisError(f"mean is {self.mean!r}; {advice}")
        if self.dtype == torch.uint8 and (self.normalize is not None or self.noise != "off"):
            raise GratisError(
                "dtype=torch.uint8 holds grey levels alone; set normalize=None and noise='off'"
            )

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

    def _check_operations(self) -> None:
        operations = check_operations(self.operations)
        object.__setattr__(self, "operations", operations)
        if operations and not self.augment:
            raise GratisError("operations are for training; set augment=True, or operations=()")
        if operations and self.mean == "offset":
            advice = "operations move pixels from their places; choose mean='central'"
            raise GratisError(f"mean='offset' has no meaning here: {advice}")
        for operation in operations:
            if reason := fits(operation, self.crop, self.crop):
                raise GratisError(f"{reason} (crop is {self.crop}); choose a smaller one")

    def _check_copies(self) -> None:
        if not self.augment and self.views not in (1, 10):
            raise GratisError(f"views is {self.views}; in evaluation it may be 1 or 10")
        if not self.augment and self.repeats > 1:
            raise GratisError("repeats is for training: an evaluation must see every sample once")
        if self.crop_chunk > 1 and self.repeats * self.views > 1 and self.augment:
            raise GratisError("crop_chunk is for single views; with views or repeats leave it at 1")

    def _check_mixing(self) -> None:
        mix = list(self.mix) if isinstance(self.mix, (tuple, list)) else [self.mix]
        if not all(isinstance(each, (MixUp, CutMix)) for each in mix):
            advice = "it must be a tuple of MixUp(...) and CutMix(...)"
            raise GratisError(f"mix is {shown(self.mix)}; {advice}")
        object.__setattr__(self, "mix", tuple(mix))
        probabilities(self.mix)
        if self.mix and not self.augment:
            raise GratisError("mix is for training; set augment=True, or mix=()")
        if self.erasing is None:
            return
        if not isinstance(self.erasing, RandomErasing):
            advice = "it must be a RandomErasing(...) or None"
            raise GratisError(f"erasing is {shown(self.erasing)}; {advice}")
        if not self.augment:
            raise GratisError("erasing is for training; set augment=True, or erasing=None")
        if self.erasing.mode != "const" and self.normalize in (None, "mean-image"):
            mode, advice = self.erasing.mode, "set normalize='imagenet', or mode='const'"
            raise GratisError(
                f"erasing in mode {mode!r} is for a standard deviation of 1; {advice}"
            )
        if self.erasing.mode == "pixel" and self.crop > 4096:
            raise GratisError(f"crop is {self.crop}; erasing in mode 'pixel' goes up to 4096")

    def _check_schedule(self) -> None:
        """Brings it to tuples, and makes the configuration of each epoch that is named."""
        advice = 'it must be as ((0, {"crop": 160}), (6, {"crop": 192})), epochs ascending'
        wrong = GratisError(f"schedule is {shown(self.schedule)}; {advice}")
        try:
            entries = tuple(
                (epoch, tuple(changes.items() if isinstance(changes, Mapping) else changes))
                for epoch, changes in self.schedule
            )
            epochs = [whole("epoch", epoch) for epoch, _ in entries]
            names = [name for _, changes in entries for name, _ in changes]
        except (TypeError, ValueError, GratisError):
            raise wrong from None
        if sorted(set(epochs)) != epochs or min(epochs, default=0) < 0:
            raise wrong
        if unknown := [name for name in names if name not in SCHEDULED]:
            allowed = ", ".join(SCHEDULED)
            raise GratisError(f"schedule changes {shown(unknown[0])}; it may change {allowed}")
        pairs = zip(epochs, (changes for _, changes in entries), strict=True)
        object.__setattr__(self, "schedule", tuple(pairs))
        for epoch in epochs:
            if (self.at_epoch(epoch).area is None) != (self.area is None):
                raise GratisError(
                    "schedule turns area on or off; give every epoch a range, or none"
                )

    def at_epoch(self, epoch: int) -> LoaderConfig:
        """As it is in an epoch, without a schedule."""
        changes: dict[str, Any] = {}
        for first, entry in self.schedule:
            changes |= dict(entry) if first <= epoch else {}
        return replace(self, schedule=(), **changes) if self.schedule else self

    @property
    def stages(self) -> tuple[LoaderConfig, ...]:
        """The configurations of all epochs, each once."""
        return tuple(self.at_epoch(epoch) for epoch in sorted({0, *(e for e, _ in self.schedule)}))

    @property
    def soft_labels(self) -> bool:
        """Whether labels are float32 [b, classes]: in all epochs if any is mixed."""
        return any(stage.mix for stage in self.stages)

    @property
    def network(self) -> NetworkLimits:
        """GratisError for a limit out of its range."""
        return NetworkLimits(outage_s=self.outage_s, read_timeout_s=self.read_timeout_s)

    def _check_resize(self) -> None:
        if self.resize is None:
            return
        if self.augment:
            raise GratisError("resize is for evaluation; set augment=False, or resize=None")
        if self.resize < self.crop:
            advice = f"choose at least {self.crop}, or a smaller crop"
            raise GratisError(f"resize is {self.resize}, less than the crop; {advice}")
        if self.mean == "offset":
            raise GratisError(
                "mean='offset' has no meaning for resized images; with resize choose mean='central'"
            )

    def shorter_side(self, *, whole: bool) -> int | None:
        """That images are resized to before views are cut out; None: they are not. whole: they
        keep their shape."""
        if self.augment or self.resize is not None or not whole:
            return self.resize
        return round(self.crop * 8 / 7)

    @property
    def interleaved(self) -> bool:
        """Whether a pixel's three channels lie side by side in memory."""
        return self.layout != "nchw"

    def noisy(self, epoch: int) -> bool:
        """Whether colour noise applies in this epoch, and with it the division by 1.1."""
        before_the_end = self.noise_until is None or epoch < self.noise_until
        return self.augment and self.noise != "off" and before_the_end

    @property
    def order_name(self) -> str:
        """What an order depends on beside seed and epoch; part of the loader's state."""
        if not self.augment:
            return "fixed"
        name = f"window:{self.window}" if self.order == "window" else "full"
        return name if self.repeats == 1 else f"{name}, each {self.repeats} times"


def _is_number(value: Any) -> bool:
    return isinstance(value, Real) and not isinstance(value, bool)


def _mean_and_std(given: Any) -> tuple[Triple, Triple]:
    """Of images scaled to [0, 1], as numbers of Python. GratisError for anything else."""
    what = f"normalize is {shown(given)}; it may be (mean, std)"
    triples = [part for part in given if isinstance(part, (tuple, list)) and len(part) == 3]
    numbers = [number for part in triples for number in part]
    if len(given) != 2 or len(numbers) != 6 or not all(map(_is_number, numbers)):
        raise GratisError(f"{what}, two tuples of three numbers")
    mean, std = (tuple(float(one) for one in part) for part in triples)
    # not so if one is no number
    if not (all(0 <= one <= 1 for one in mean) and all(0 < one <= 1 for one in std)):
        advice = "of images scaled to [0, 1], std above 0; divide grey levels by 255"
        raise GratisError(f"{what} {advice}")
    return (mean[0], mean[1], mean[2]), (std[0], std[1], std[2])
