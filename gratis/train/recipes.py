"""Recipes: everything that decides what a run computes, but its data, seed and mesh. One frozen
dataclass.

Every row on which the paper, the released code, Caffe and torchvision disagree (specification,
section 10) is a field, so either side can be switched alone: `gratis train --recipe released
--lrn-order after`. Imports the standard library alone, so that `--help` is quick."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Literal

from gratis.choices import MeanForm, NoiseForm, Positions
from gratis.errors import GratisError

Layer = Literal["conv1", "conv2", "conv3", "conv4", "conv5", "conv6", "fc6", "fc7", "fc8"]
# of #145
LAYERS: tuple[Layer, ...] = ("conv1", "conv2", "conv3", "conv4", "conv5", "fc6", "fc7", "fc8")
CONVS: tuple[Layer, ...] = LAYERS[:5]  # what another network may begin with; conv6 is new there
# layers whose biases start at `bias_init`
ONES: tuple[Layer, ...] = ("conv2", "conv4", "conv5", "conv6", "fc6", "fc7")
Deviations = tuple[float, float, float, float, float, float, float, float]  # of LAYERS


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """Defaults are `released`: configuration #145, whose logged errors equal the paper's tables
    digit for digit.

    GratisError where a count is below 1, a share of the run outside [0, 1], a rate, scale or
    deviation negative or not finite, or where fields contradict each other."""

    # data path
    image_size: int = 256
    """Pixels per side of the dataset's images."""
    crop: int = 224
    """Pixels per side of what the network sees."""
    crop_area: tuple[float, float] | None = None
    """Train on random parts of this range of the image's area, resized to the crop (torchvision:
    0.08 1)."""
    crop_positions: Positions = "all"
    """33 offsets along each axis, the ten views' corners among them (released), the paper's 32, or
    the central crop alone."""
    flip: float = 0.5
    """Probability of the mirror."""
    crop_chunk: int = 1
    """So many consecutive images share one crop and mirror: 32 in the released code, for speed
    alone."""
    batch: int = 128
    """Images per step, over all devices: the loss curve does not depend on their number."""
    mean: MeanForm = "central"
    """Subtract the mean image's central crop from every crop (released), or its crop at the same
    offset (Caffe)."""
    noise: NoiseForm = "sqrt"
    """Colour noise by standard deviations (released), by eigenvalues as the paper prints, or
    none."""
    noise_until: float = 67 / 90
    """Share of the run after which colour noise and its division by 1.1 stop."""
    input_scale: float = 1.0
    """The network multiplies its 0-255 input by this. He initialisation diverges on raw input; 1/64
    mends that."""

    channel_order: Literal["rgb", "bgr"] = "rgb"
    """In which the network reads colours (Caffe: BGR)."""

    # network
    classes: int | None = None
    """Outputs; default: as many as the dataset has classes. More than that have no examples."""
    towers: Literal[1, 2] = 2
    """Columns that exchange features where `exchange` says; each may have a process of its own."""
    exchange: tuple[Layer, ...] = ("conv3", "conv6", "fc6", "fc7")
    """Layers that read both towers, beside fc8, which always does. No value: the towers meet in the
    softmax alone."""
    conv6: bool = False
    """A sixth convolution after the last pooling, as the authors' networks for larger label sets
    had."""
    without: Literal["none", "conv3", "conv4", "conv5", "fc7"] = "none"
    """Leave this layer out; the next one takes over its exchange."""
    pool: Literal["overlapping", "separate"] = "overlapping"
    """Windows of 3 every 2 pixels; or of 2, with less padding in conv2 and conv5 (#147)."""
    activation: Literal["relu", "tanh"] = "relu"
    """After every layer but the last."""
    channels: tuple[int, int, int, int, int] = (96, 256, 384, 384, 256)
    """Of conv1 to conv5, over all towers."""
    hidden: int = 4096
    """Units of fc6 and of fc7, over all towers."""
    width: float = 1.0
    """Multiplies channels and hidden."""
    conv1_edge: Literal["overhang", "symmetric"] = "overhang"
    """Zeros to the right and below until the last window fits (released), or two on every side
    (torchvision)."""
    lrn: bool = True
    """Layers 1 and 2 normalise over five channels."""
    lrn_order: Literal["before", "after"] = "before"
    """Layer 1 normalises before ReLU, thus signed responses (released), or after it (paper)."""
    lrn_alpha: float = 1e-4
    """Divided by the window of 5, as the code does; 5e-4 is the paper's formula as printed."""
    lrn_k: float = 2.0
    """What is added to the window's sum (Caffe and torch: 1)."""
    lrn_across_towers: bool = False
    """The window of 5 channels crosses from one tower to the other (Caffe)."""
    map_norm: bool = True
    """Layer 2's unpublished normalisation over 5x5 pixels of the same map."""
    init: Literal["gaussian", "he", "uniform"] = "gaussian"
    """`init_std`; or He with zero biases and fc8 x 0.3; or torch's default for weights and
    biases."""
    init_std: Deviations = (0.01, 0.01, 0.03, 0.03, 0.03, 0.01, 0.01, 0.01)
    """Standard deviations of the weights of conv1 to conv5 and fc6 to fc8; conv6 takes conv5's."""
    bias_init: float = 1.0
    """Of conv2, conv4 to conv6, fc6 and fc7; the others start at 0."""
    dropout: Literal["original", "inverted", "off"] = "original"
    """Halve at test (original) or double in training (inverted): not the same dynamics at equal
    rates."""
    dropout_place: Literal["after", "before"] = "after"
    """On the outputs of fc6 and fc7 (original), or on their inputs (torchvision)."""

    compute: Literal["float32", "bfloat16"] = "float32"
    """Of features and gradients of features; weights, velocities, normalisation and loss stay in
    float32."""

    # optimiser
    rate: float = 0.01
    """Of weights, at first, for batches of `rate_batch`."""
    rate_batch: int = 128
    """The batch that `rate` is meant for."""
    scale_rate: Literal["off", "linear", "sqrt"] = "off"
    """Multiply the rates by batch / rate_batch or its root. Linear holds up to about 1024, with a
    warm-up."""
    momentum: float = 0.9
    """Share of the velocity that a step keeps."""
    weight_decay: float = 5e-4
    """Of weights; see `bias_decay`."""
    bias_rate: float = 2.0
    """Rate of biases as a multiple of `rate`."""
    bias_decay: bool = False
    """Biases decay too."""
    init_from: str | None = None
    """Folder of a run, or of its checkpoint, whose conv1 to conv5 this one begins with; the other
    layers are new."""
    conv_rate: float = 1.0
    """Rates of conv1 to conv5 as a multiple of the other layers'; 0.1 with `init_from`: the
    authors' fine-tuning."""
    velocity: Literal["inside", "outside"] = "inside"
    """The rate is inside the velocity (original) or multiplies it at use (torch)."""

    # schedule; marks are shares of the run, so that they stretch with `epochs`
    epochs: int = 90
    """Passes over the training split."""
    # dexp250: #170, the best scheduled run on record; plateau: the paper's, three times at most
    schedule: Literal["steps", "dexp250", "cosine", "plateau"] = "steps"
    """/10 at `drops`; four steps down to 1/250; half a cosine; /10 after `patience` epochs without
    a better error."""
    patience: int = 3
    """Epochs without a better validation error after which `plateau` divides the rate."""
    drops: tuple[float, ...] = (25 / 90, 51 / 90, 79 / 90)
    """Where `steps` divides the rate by ten."""
    bias_follows: bool = False
    """Biases follow the weights' schedule. #145's last configuration still holds their first
    rate."""
    conv1_slow: float | None = 67 / 90
    """Share of the run from which conv1's weights learn at no more than `rate` / 1000."""
    conv1_frozen: float | None = 72 / 90
    """Share of the run from which conv1 stays as it is."""
    warmup_steps: int = 0
    """Steps over which all rates grow linearly from nothing."""

    def __post_init__(self) -> None:
        counts = "image_size crop crop_chunk batch hidden epochs rate_batch patience classes"
        self._check(counts, lambda value: value >= 1, "at least 1")
        self._check("rate width input_scale lrn_k", lambda value: 0 < value < math.inf, "above 0")
        scales = "init_std warmup_steps weight_decay bias_rate lrn_alpha conv_rate"
        self._check(scales, lambda value: 0 <= value < math.inf, "at least 0")
        self._check("bias_init", math.isfinite, "a number")
        self._check("momentum", lambda value: 0 <= value < 1, "in [0, 1)")
        self._check("flip", lambda value: 0 <= value <= 1, "a probability, in [0, 1]")
        marks = "noise_until conv1_slow conv1_frozen drops"
        self._check(marks, lambda value: 0 <= value <= 1, "a share of the run, in [0, 1]")
        if self.crop > self.image_size:
            raise GratisError(f"--crop {self.crop} is larger than --image-size {self.image_size}")
        if self.crop < SMALLEST_CROP:
            needs = f"the network's five windows need at least {SMALLEST_CROP} pixels"
            raise GratisError(f"--crop {self.crop}: {needs}")
        if self.crop_area is not None:
            low, high = self.crop_area
            option = f"--crop-area {low} {high}"
            if not 0 < low <= high <= 1:
                raise GratisError(f"{option} must be two rising shares of the image, in (0, 1]")
            if self.crop_chunk > 1 or self.mean == "offset":
                way_out = "resized crops want --crop-chunk 1 and --mean central"
                raise GratisError(f"{option}: {way_out}")
        if bad := [layer for layer in self.exchange if layer in ("conv1", "fc8")]:
            why = "conv1 reads the image and fc8 always both towers; leave it out"
            raise GratisError(f"--exchange {bad[0]}: {why}")
        for size in (*self.channels, self.hidden):
            if (units := self.units(size)) < 1 or units % self.towers:
                raise GratisError(f"--width {self.width} makes {size} units {units}: not even")

    def _check(self, names: str, holds: Callable[[float], bool], must_be: str) -> None:
        """GratisError for the first of these fields with a value out of its range."""
        for name in names.split():
            field = getattr(self, name)
            for value in field if isinstance(field, tuple) else (field,):
                if value is not None and not holds(value):
                    option = f"--{name.replace('_', '-')}"
                    raise GratisError(f"{option} {value} must be {must_be}")

    def units(self, full: int) -> int:
        """A layer's units at this width."""
        return round(full * self.width)

    @property
    def architecture(self) -> dict[str, object]:
        """What must agree for a checkpoint to fit, as JSON has it: every field that a stored
        weight's shape or meaning depends on."""
        fields = {name: getattr(self, name) for name in ARCHITECTURE}
        return {
            name: list(value) if isinstance(value, tuple) else value
            for name, value in fields.items()
        }


SMALLEST_CROP = 36
ARCHITECTURE = (
    "crop channel_order input_scale towers exchange conv6 without pool activation channels hidden "
    "width conv1_edge lrn lrn_order lrn_alpha lrn_k lrn_across_towers map_norm dropout "
    "dropout_place velocity"
).split()

RELEASED = Recipe()
"""Source: the Computer History Museum's release of 2012's code, #145. Expected on ILSVRC2012
validation: error of ten views 40.7 / 18.2 %, of the centre about 42.3 / 19.6 %. `make train
SHARDS=shards GPUS=2`"""

PAPER = replace(
    RELEASED,
    crop_positions="printed",
    lrn_order="after",
    lrn_alpha=5e-4,
    map_norm=False,
    init_std=(0.01,) * 8,
    bias_rate=1.0,
    bias_decay=True,
    bias_follows=True,
    noise="printed",
    noise_until=1.0,
    conv1_slow=None,
    conv1_frozen=None,
    schedule="plateau",
)
"""The NIPS 2012 text taken literally; how long the error must stand still before the rate drops it
does not say. Not yet trained to the end. `make train SHARDS=shards RECIPE=paper`

Whether it leaves the plateau at ln(classes), on 100 ImageNet classes (64 px enlarged to 128,
`--crop 112 --width 0.25`, two CPU cores, n = 1 each; `released` beside it): with its deviations as
they are it does not: 4.605 and 1.0 % top-1 after 3,074 steps, the plateau schedule dividing the
rate meanwhile (released: 3.55, 15.1 %). But it is the width: with `--init-std .01 .02 .02 .02 .02
.04 .02 .02`, which gives each layer about the responses that it has at full size, it leaves within
an epoch: 3.88 and 8.0 % after 1,351 steps, under its own schedule, which had not yet acted, and
3.62, 16.7 % after 2,360 at a constant rate; released, its deviations raised alike, 3.45 and 19.6 %
after 2,246."""

OWT = replace(
    RELEASED,
    towers=1,
    channels=(64, 192, 384, 256, 256),
    lrn=False,
    map_norm=False,
    schedule="dexp250",
    bias_follows=True,
    conv1_slow=None,
    conv1_frozen=None,
    noise_until=1.0,
)
"""Krizhevsky's single column of 2014 ("one weird trick"), with a softmax where he had logistic
units. Published top-1 error 42.3 %. `make train SHARDS=shards RECIPE=owt`"""

TORCHVISION = replace(
    OWT,
    conv1_edge="symmetric",
    init="uniform",
    dropout="inverted",
    dropout_place="before",
    velocity="outside",
    noise="off",
    input_scale=1 / 58,
    bias_rate=1.0,
    bias_decay=True,
    weight_decay=1e-4,
    batch=256,
    rate_batch=256,
    crop_area=(0.08, 1.0),
    schedule="steps",
    drops=(30 / 90, 60 / 90),
)
"""torchvision's layers (61,100,840 parameters), rates and resized crops, these out of 256 pixels;
its per-channel scaling is not reproduced (input / 58 stands for 255 x 0.226). Published centre
accuracy 56.5 / 79.1 %."""

CAFFE = replace(
    RELEASED,
    crop=227,
    batch=256,
    rate_batch=256,
    mean="offset",
    channel_order="bgr",
    noise="off",
    lrn_order="after",
    lrn_k=1.0,
    lrn_across_towers=True,
    map_norm=False,
    init_std=(0.01, 0.01, 0.01, 0.01, 0.01, 0.005, 0.005, 0.01),
    bias_init=0.1,
    dropout="inverted",
    bias_follows=True,
    drops=(20 / 90, 40 / 90, 60 / 90, 80 / 90),
    conv1_slow=None,
    conv1_frozen=None,
)
"""Caffe's bvlc_alexnet. Its window of channels crosses the towers, so it runs with both in one
process. Published centre accuracy 57.1 / 80.2 %. `make train SHARDS=shards RECIPE=caffe GPUS=1`"""

SAMPLE = replace(
    RELEASED,
    image_size=128,
    crop=112,
    width=0.5,
    input_scale=1 / 64,
    init="he",
    dropout="inverted",
    batch=32,
    rate_batch=32,
    epochs=30,
    schedule="cosine",
    warmup_steps=50,
    bias_follows=True,
    conv1_slow=None,
    conv1_frozen=None,
    noise_until=1.0,
)
"""For the drawn sample of ten classes on two CPU cores, in minutes. `make train`"""

TINY = replace(SAMPLE, epochs=3, batch=64, rate_batch=64, rate=0.02, warmup_steps=100)
"""For small real data, 100 classes of 500 images at 128 pixels. `make train SHARDS=...
RECIPE=tiny`"""

TINY64 = replace(
    TINY,
    image_size=64,
    crop=56,
    width=0.25,
    lrn_alpha=1e-4 * 64**2,
    batch=128,
    rate_batch=128,
    rate=0.04,
    epochs=20,
)
"""For the paper's comparisons on 64-pixel images, minutes a run (`gratis paper --hours 6`). On 100
classes of 500 images an epoch takes 23 CPU seconds, decoding, evaluation and start-up included
(n = 1, two shared vCPUs), 20 epochs thus about 4 minutes on two quiet cores. The inputs' scale is
taken out of alpha again: else the normalisation's squares vanish beside k. The rate is the best of
.02, .04 and .08 after 3 epochs (top-1 error of ten views 90.5, 87.3 and 86.5 %, n = 1, of which the
last two are not told apart; .04 leaves the variants room)."""

RECIPES: dict[str, Recipe] = {
    "released": RELEASED,
    "paper": PAPER,
    "owt": OWT,
    "torchvision": TORCHVISION,
    "caffe": CAFFE,
    "sample": SAMPLE,
    "tiny": TINY,
    "tiny64": TINY64,
}
# of RECIPES; for options
RecipeName = Literal["released", "paper", "owt", "torchvision", "caffe", "sample", "tiny", "tiny64"]
