"""Does loading cost training anything, and is training itself fast? On one device, in one process:

gratis bench train --shards shards --compute bfloat16 --batch 512
gratis bench train --shards sample/shards --recipe sample

- images/s of the recipe's training step on one batch that stays on the device, and with the
  loader's batches; their quotient is **the free ratio**: 1 means that loading and augmenting cost
  nothing
- images/s of the obvious baseline: torchvision's AlexNet layout at the recipe's width, eager,
  float32, torch.optim.SGD, a resident batch
- achieved FLOP/s of the resident step as a share of what a large matrix product reaches on this
  device
- the original update rule against torch's fused SGD, on the recipe's parameters
  (`benchmarks.train.update`)

Rounds of all of them take turns, so that a machine's drift meets each alike. Medians with the
extremes of n rounds."""

from __future__ import annotations

import functools
import itertools
import statistics
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from benchmarks.timing import endless, measure
from benchmarks.train.update import CLASSES, Step, update_ratios
from gratis.errors import GratisError
from gratis.train.analysis.summary import backward_macs
from gratis.train.network.layers import plan
from gratis.train.options import Fields, read
from gratis.train.recipes import RELEASED, Recipe, RecipeName
from gratis.train.settings import Choice

if TYPE_CHECKING:  # torch takes two seconds, which --help need not
    import torch
    from torch import Tensor, nn


PAIRS = 60  # of updates
LEAST_CROP = 63  # of which torchvision's layout leaves a pixel after its last pool
UNTIMED = 4  # batches that the loader may have ready when its round begins
# rows and columns of the product that stands for the device's speed
MATRIX = {"cuda": 8192, "cpu": 2048}


@dataclass(frozen=True, kw_only=True)
class TrainBench:
    """Measures training with and without the loader, a plain baseline, and the optimiser."""

    shards: Path | None = None
    """Folder of the dataset. Without it the loader is left out."""
    recipe: RecipeName = "released"
    """Where the fields below begin."""
    compile: Choice = "auto"
    """As in training: on for a GPU."""
    steps: int = 20
    """In each round."""
    rounds: int = 5
    fields: Fields = RELEASED

    def __post_init__(self) -> None:
        for name in ("steps", "rounds"):
            if getattr(self, name) < 1:
                raise GratisError(f"--{name} {getattr(self, name)} must be at least 1")
        if self.fields.crop < LEAST_CROP:
            raise GratisError(
                f"--crop {self.fields.crop}: the baseline, torchvision's layout, takes "
                f"{LEAST_CROP} or more"
            )


def main(arguments: list[str]) -> None:
    options = read(TrainBench, arguments, "released", "gratis bench train")
    import torch

    from gratis.train.mesh.mesh import fastest_convolutions, full_float32
    from gratis.train.network.memory import ran_out, too_large

    full_float32()
    fastest_convolutions()
    device = torch.device("cuda", 0) if torch.cuda.is_available() else torch.device("cpu")
    with torch.random.fork_rng(devices=[]):
        try:
            seconds = step_seconds(options, device)
            ratios = update_ratios(options.fields, device, PAIRS)
        except RuntimeError as error:
            if device.type != "cuda" or not ran_out(error):
                raise
            size = torch.cuda.get_device_properties(device).total_memory
            raise GratisError(too_large(options.fields, CLASSES, size=size)) from None
        show(options, device, seconds, ratios)


def step_seconds(options: TrainBench, device: torch.device) -> dict[str, list[float]]:
    """Seconds per step of each contender, by round."""
    from gratis.loader import Loader
    from gratis.train.rank import training_config

    recipe = options.fields
    images, labels = resident_batch(recipe, device)
    scaled = images.float() / 58
    train = training_step(recipe, device, options.compile)
    baseline = baseline_step(recipe, device)
    contenders: dict[str, Step] = {
        "resident": lambda: train(images, labels),
        "baseline": lambda: baseline(scaled, labels),
        "matmul": matmul_step(recipe.compute, device),
    }
    with ExitStack() as stack:
        if options.shards:
            config = replace(training_config(recipe), remainder="drop")
            loader = Loader(options.shards, "train", config, device=device)
            batches = endless(stack.enter_context(loader))
            contenders["loader"] = lambda: train(*next(batches)[:2])
        for step in contenders.values():  # compiles, fills queues and finds the fastest algorithms
            for _ in range(3):
                step()
        rounds = [one_round(contenders, options.steps, device) for _ in range(options.rounds)]
    return {name: [seconds[name] for seconds in rounds] for name in contenders}


def training_step(
    recipe: Recipe, device: torch.device, compile: Choice, *, channels_last: bool = True
) -> Callable[[Tensor, Tensor], None]:
    """The recipe's step as gratis.train.loop takes it, without what it counts."""
    import torch

    from gratis.train.metrics import share_of_loss
    from gratis.train.network.alexnet import AlexNet
    from gratis.train.network.dropout import DropoutKey
    from gratis.train.optimiser import Optimiser
    from gratis.train.rank import compiles
    from gratis.train.schedule import rates

    network = AlexNet(recipe, CLASSES).to(device)
    if channels_last:
        network.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    optimiser, steps = Optimiser(network, recipe), itertools.count()
    if compiles(compile, device):
        # after a step of another batch it would compile for any, which training does not
        torch.compiler.reset()
        network.compile_layers()

    def step(images: Tensor, labels: Tensor) -> None:
        at = next(steps)
        rate = rates(recipe, at, 10_000)
        logits = network(images, DropoutKey(seed=0, step=at, rows=range(len(images))))
        share_of_loss(logits, labels, len(images)).backward()  # type: ignore[no-untyped-call]
        optimiser.step(rate)

    return step


def baseline_step(
    recipe: Recipe,
    device: torch.device,
    *,
    autocast: bool = False,
    network: nn.Module | None = None,
) -> Callable[[Tensor, Tensor], None]:
    """A step of torchvision's AlexNet layout, or of that network, by torch.optim.SGD, eager, in
    float32. autocast: to bfloat16."""
    import torch
    from torch.nn import functional

    own = network or torchvision_layout(recipe.width, CLASSES).to(device)
    optimiser = torch.optim.SGD(own.parameters(), lr=0.01, momentum=0.9, weight_decay=1e-4)

    def step(images: Tensor, labels: Tensor) -> None:
        optimiser.zero_grad()
        with torch.autocast(device.type, dtype=torch.bfloat16, enabled=autocast):
            loss = functional.cross_entropy(own(images), labels)
        loss.backward()  # type: ignore[no-untyped-call]
        optimiser.step()

    return step


def torchvision_layout(width: float, classes: int) -> nn.Sequential:
    """torchvision's alexnet of torch's own modules: 61,100,840 parameters at full width and 1000
    classes."""
    from torch import nn

    relu, pool = functools.partial(nn.ReLU, inplace=True), functools.partial(nn.MaxPool2d, 3, 2)
    a, b, c, d, e, hidden = (round(size * width) for size in (64, 192, 384, 256, 256, 4096))
    layers: list[nn.Module] = [nn.Conv2d(3, a, 11, 4, 2), relu(), pool()]
    layers += [nn.Conv2d(a, b, 5, padding=2), relu(), pool()]
    layers += [nn.Conv2d(b, c, 3, padding=1), relu(), nn.Conv2d(c, d, 3, padding=1), relu()]
    layers += [nn.Conv2d(d, e, 3, padding=1), relu(), pool(), nn.AdaptiveAvgPool2d(6)]
    layers += [nn.Flatten(), nn.Dropout(), nn.Linear(e * 36, hidden), relu(), nn.Dropout()]
    layers += [nn.Linear(hidden, hidden), relu(), nn.Linear(hidden, classes)]
    return nn.Sequential(*layers)


def matmul_step(compute: str, device: torch.device) -> Step:
    import torch

    size, dtype = MATRIX[device.type], getattr(torch, compute)
    a, b = (torch.randn(size, size, device=device).to(dtype) for _ in range(2))
    return functools.partial(torch.mm, a, b)


def matmul_flops(device: torch.device) -> int:
    return int(2 * MATRIX[device.type] ** 3)


def step_flops(recipe: Recipe) -> int:
    """Floating-point operations of one training step: forward, and backward."""
    layers = plan(recipe, CLASSES)
    return 2 * recipe.batch * (sum(own.macs for own in layers.values()) + backward_macs(layers))


def show(
    options: TrainBench, device: torch.device, seconds: dict[str, list[float]], ratios: list[float]
) -> None:
    """seconds: per step by round; ratios: of single updates, as `update_ratios` measures them."""
    import torch

    recipe = options.fields
    name = f"CPU, {torch.get_num_threads()} threads"
    if device.type == "cuda":
        name = torch.cuda.get_device_name(device)
    print(
        f"{options.recipe}, batch {recipe.batch}, {recipe.compute}, torch {torch.__version__} on "
        f"{name}, n = {options.rounds} rounds of {options.steps} steps"
    )
    for contender in [key for key in ("resident", "loader", "baseline") if key in seconds]:
        rates = [recipe.batch / each for each in seconds[contender]]
        spread = f"[{min(rates):,.1f}..{max(rates):,.1f}]"
        print(f"{contender:>14}: {statistics.median(rates):,.1f} images/s {spread}")
    middle = {key: statistics.median(values) for key, values in seconds.items()}
    achieved = step_flops(recipe) / middle["resident"] / 1e12
    possible = matmul_flops(device) / middle["matmul"] / 1e12
    share = achieved / possible
    print(f"achieved {achieved:.3f} TFLOP/s, {share:.0%} of a matrix product's {possible:.3f}")
    low, update, high = statistics.quantiles(ratios, n=4)
    quartiles = f"[quartiles {low:.3f}..{high:.3f}], {len(ratios)} pairs of steps"
    print(f"original rule {update:.3f} times fused SGD {quartiles}")
    free = middle["resident"] / middle["loader"] if "loader" in middle else float("nan")
    print(
        f"bench free_ratio={free:.4g} speedup={middle['baseline'] / middle['resident']:.4g} "
        f"images_per_s={recipe.batch / middle['resident']:.4g} flops_share={share:.3g} "
        f"update_ratio={update:.4g}",
        flush=True,
    )


def resident_batch(recipe: Recipe, device: torch.device) -> tuple[Tensor, Tensor]:
    import torch

    images = torch.randn(recipe.batch, 3, recipe.crop, recipe.crop, device=device) * 70
    images = images.to(getattr(torch, recipe.compute), memory_format=torch.channels_last)
    return images, torch.randint(CLASSES, (recipe.batch,), device=device)


def one_round(contenders: dict[str, Step], steps: int, device: torch.device) -> dict[str, float]:
    """Seconds per step of each. Batches that were made ready while others had their turn are taken
    first, untimed."""
    return {
        name: measure(step, device, calls=steps, untimed=UNTIMED if name == "loader" else 1).call_s
        for name, step in contenders.items()
    }
