"""Figure 1, ReLU against tanh: `gratis figure1 --shards S`, where S holds 32-pixel images.

    gratis shards --src ... --out S --size 32

The paper's is CIFAR-10, 25 % training error, ReLU six times as fast. Both nonlinearities get the
same network, initial weights and order of images (`gratis.train.paper.four_layers` lists what the
paper leaves open and what was chosen), and each the best of --rates: the one that needs the fewest
epochs. Writes figure1.png and, with every training's errors, figure1.json. What is finished is not
trained again: the JSON is read back. What --minutes, --epochs or an interrupt has ended goes on
after the last of its epochs that was whole, from a file beside them.

On the drawn sample (1,000 images of 10 classes, seed 0, n = 1) ReLU took 21.7 epochs at its best
rate, 0.004, tanh 38.8 at 0.032: 1.8 times. tanh's best rate is far above ReLU's, so a ratio at one
rate (2.9 at 0.004) flatters ReLU."""

from __future__ import annotations

import dataclasses
import itertools
import json
import math
import os
import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, get_args

from tqdm import tqdm

from gratis.atomic import atomic_output
from gratis.command_line import parse
from gratis.dataset import Manifest, read_manifest, require_split, require_square
from gratis.errors import GratisError
from gratis.extras import require
from gratis.processes import bound_spinning

if TYPE_CHECKING:
    from matplotlib.figure import Figure
    from torch import Tensor

    from gratis.train.paper.four_layers import (
        FourLayersCheckpoint,
        FourLayersTraining,
        TrainingCurve,
    )

SIZE = 32
Activation = Literal["relu", "tanh"]
ACTIVATIONS: tuple[Activation, ...] = get_args(Activation)


@dataclass(frozen=True, kw_only=True)
class Figure1:
    """Trains a four-layer network with ReLU and with tanh until a training error, and draws the
    paper's figure 1."""

    shards: str
    """Folder of a dataset of 32-pixel images, or its address."""
    out: Path = Path("figure1")
    """Folder for figure1.png and figure1.json."""
    target: float = 0.25
    """Training error to be reached, a share."""
    epochs: int = 60
    """Most for each training; of a rate that is behind the best so far, fewer."""
    rates: tuple[float, ...] = (0.001, 0.004, 0.016, 0.032, 0.0005)
    """Learning rates, tried in this order, of which each nonlinearity gets its best."""
    images: int = 50_000
    """Of the training split, the first so many (they are kept in memory, 12 kB each)."""
    minutes: float | None = None
    """Stop after so many; what is known by then is drawn, and the same command goes on. Default:
    until it is done."""
    seed: int = 0

    def __post_init__(self) -> None:
        if not 0 < self.target < 1:
            raise GratisError(f"--target {self.target} must be a share between 0 and 1")
        for name in ("epochs", "images"):
            if getattr(self, name) < 1:
                raise GratisError(f"--{name} {getattr(self, name)} must be at least 1")
        if not self.rates:
            raise GratisError(
                "--rates has no value; give learning rates, such as --rates 0.004 0.032"
            )
        if wrong := [rate for rate in self.rates if not (rate > 0 and math.isfinite(rate))]:
            raise GratisError(f"--rates {wrong[0]:g} must be a number above 0")
        if self.minutes is not None and not self.minutes > 0:
            raise GratisError(
                f"--minutes {self.minutes:g} must be above 0; leave it out for as long as it takes"
            )


def main(arguments: list[str]) -> None:
    options = parse(Figure1, arguments, "gratis figure1")
    require("figures", "gratis figure1")
    bound_spinning(os.environ)
    for line in figure1(options):
        print(line, flush=True)


def figure1(options: Figure1) -> list[str]:
    """Trains, draws and writes; the lines to print: the result and the paths."""
    from gratis.loader import dataset_folder
    from gratis.train.mesh.mesh import full_float32

    full_float32()
    manifest = read_manifest(dataset_folder(options.shards))
    require_square(options.shards, manifest, "figure 1")
    if manifest.image_size != SIZE:
        how = f"gratis shards --src ... --out shards{SIZE} --size {SIZE}"
        size = f"{manifest.image_size}-pixel images"
        raise GratisError(f"{options.shards} holds {size}, figure 1 wants {SIZE}: {how}")
    samples = min(options.images, require_split(options.shards, manifest, "train").samples)
    curves = train_all(options, manifest, samples)
    result = verdict(curves, options.target)
    classes = f"{len(manifest.classes)} classes at {SIZE} px"
    data = f"{samples:,} images of {classes}, seed {options.seed}"
    from gratis.train.analysis.plots import save, style

    with style():
        png = save(draw(curves, options, data), options.out / "figure1.png")
    return [f"{result}; {data}", str(png), str(options.out / "figure1.json")]


def train_all(options: Figure1, manifest: Manifest, samples: int) -> list[TrainingCurve]:
    """Every nonlinearity at every rate, as far as the minutes go; the JSON is written anew after
    each that is whole."""
    from gratis.train.paper.four_layers import (
        FourLayersCheckpoint,
        FourLayersTraining,
        TrainingCurve,
        whole_split,
    )

    terms: dict[str, object] = {"dataset": manifest.hash, "images": samples, "seed": options.seed}
    curves = read_curves(options.out / "figure1.json", terms)
    curves = [curve for curve in curves if is_complete(options, curve)]
    partial: list[TrainingCurve] = []
    data: tuple[Tensor, Tensor] | None = None
    ends = time.monotonic() + 60 * options.minutes if options.minutes else math.inf
    for rate, activation in itertools.product(options.rates, ACTIVATIONS):
        if any((curve.activation, curve.rate) == (activation, rate) for curve in curves):
            continue
        name, path = f"{activation} at rate {rate:g}", f"{activation}-{rate:g}.safetensors"
        checkpoint = FourLayersCheckpoint.read(options.out / path, json.dumps(terms))
        curve = TrainingCurve(activation=activation, rate=rate, errors=checkpoint.errors)
        own = dataclasses.replace(options, epochs=most_epochs(options, curves, activation))
        whole = is_complete(own, curve)  # by this call's --target and --epochs
        if not whole and time.monotonic() < ends:
            data = data or whole_split(options.shards, samples)
            more: Any = {"classes": len(manifest.classes), "seed": options.seed}
            training = FourLayersTraining(activation, *data, rate=rate, **more)
            curve, whole = train_one(own, training, checkpoint, ends)
        elif not whole:
            print(f"{name}: skipped, --minutes {options.minutes:g} are over", flush=True)
        (curves if whole else partial).append(curve)
        write(options, terms, curves)
        # else more --epochs would go on with it
        if curve.diverged or curve.epochs_to(options.target):
            checkpoint.path.unlink(missing_ok=True)
    return curves + partial


def train_one(
    options: Figure1, training: FourLayersTraining, checkpoint: FourLayersCheckpoint, ends: float
) -> tuple[TrainingCurve, bool]:
    """Up to the target, the epochs or the end of time; False after the last of these: the same
    command goes on."""
    from gratis.train.paper.four_layers import TrainingCurve

    if checkpoint.state:
        training.load(checkpoint.state)
    errors, activation, rate = checkpoint.errors, training.activation, training.rate
    curve = TrainingCurve(activation=activation, rate=rate, errors=errors)
    name, begin = f"{activation} at rate {rate:g}", len(errors)
    with tqdm(total=options.epochs, initial=begin, desc=name, leave=False, disable=None) as bar:
        for error in training.epochs():
            errors.append(error)
            bar.update()
            bar.set_postfix_str(f"training error {error:.1%}")
            if error > options.target:
                checkpoint.write(training.state())
            if is_complete(options, curve):
                break
            if time.monotonic() >= ends:
                print(f"{name}: stopped after epoch {len(errors)}, time is over", flush=True)
                return curve, False
        else:  # the loss is no number
            curve = dataclasses.replace(curve, diverged=True)
    reached, last = curve.epochs_to(options.target), f"{errors[-1]:.1%}" if errors else "no number"
    result = f"{reached:.1f} epochs" if reached else f"not reached ({last})"
    print(f"{name}: {result}", flush=True)
    return curve, True


def most_epochs(options: Figure1, curves: list[TrainingCurve], activation: Activation) -> int:
    """--epochs, or fewer: after as many as the activation's fastest took, another of its rates can
    no longer be the best."""
    own = [curve for curve in curves if curve.activation == activation]
    reached = filter(None, (curve.epochs_to(options.target) for curve in own))
    return min([options.epochs, *map(math.ceil, reached)])


def is_complete(options: Figure1, curve: TrainingCurve) -> bool:
    """Is nothing left to train? An epoch's error depends on neither --target nor --epochs, so both
    may change."""
    reached = curve.epochs_to(options.target) is not None
    return curve.diverged or reached or len(curve.errors) >= options.epochs


def read_curves(path: Path, terms: dict[str, object]) -> list[TrainingCurve]:
    """What an earlier call with the same terms has trained to its end; earlier versions wrote more
    terms (--epochs too)."""
    from gratis.train.paper.four_layers import TrainingCurve

    try:
        file = json.loads(path.read_text())
        same = file["terms"] | terms == file["terms"]
        return [TrainingCurve(**curve) for curve in file["courses"]] if same else []
    except (OSError, ValueError, KeyError, TypeError):
        return []


def write(options: Figure1, terms: dict[str, object], curves: list[TrainingCurve]) -> None:
    epochs = {
        name: own and own.epochs_to(options.target) for name, own in best(curves, options.target)
    }
    relu, tanh = epochs.values()
    content = {
        "terms": terms,
        "target": options.target,
        "epochs": options.epochs,
        "epochs_to_target": epochs,
        "ratio": tanh / relu if relu and tanh else None,
        "paper": "CIFAR-10, 25 %: ReLU six times as fast; the network is not published, see "
        "gratis.train.paper.four_layers",
        "courses": [dataclasses.asdict(curve) for curve in curves],
    }
    with atomic_output(options.out / "figure1.json", "choose another --out") as draft:
        draft.write_text(json.dumps(content, indent=1) + "\n")


def fastest(
    curves: list[TrainingCurve], activation: Activation, target: float
) -> TrainingCurve | None:
    """The training that reached the target first; if none did, the one that ended lowest."""
    own = [curve for curve in curves if curve.activation == activation and curve.errors]
    return min(
        own, key=lambda curve: (curve.epochs_to(target) or math.inf, curve.errors[-1]), default=None
    )


def best(
    curves: list[TrainingCurve], target: float
) -> list[tuple[Activation, TrainingCurve | None]]:
    """Each nonlinearity and its fastest training."""
    return [(name, fastest(curves, name, target)) for name in ACTIVATIONS]


def verdict(curves: list[TrainingCurve], target: float) -> str:
    """The epochs of each at its best rate, and the ratio, or why there is none."""
    parts, epochs = list[str](), list[float]()
    goal = f"{target:.0%} training error"
    for name, curve in best(curves, target):
        if curve is None:
            parts.append(f"{name} was not trained")
        elif (reached := curve.epochs_to(target)) is None:
            last = f"{len(curve.errors)} epochs ({curve.errors[-1]:.1%})"
            parts.append(f"{name} did not reach {goal} in {last}")
        else:
            parts.append(f"{name} {reached:.1f} epochs to {goal} (rate {curve.rate:g})")
            epochs.append(reached)
    both = len(epochs) == len(ACTIVATIONS)
    ratio = f"ratio {epochs[1] / epochs[0]:.1f} (paper, CIFAR-10: 6)" if both else "no ratio"
    return "; ".join([*parts, ratio])


def draw(curves: list[TrainingCurve], options: Figure1, data: str) -> Figure:
    """As in the paper: training error over epochs, ReLU solid and tanh dashed, the target
    dotted."""
    from gratis.train.analysis.plots import BLUE, GREY, ORANGE, new_figure

    figure, axes = new_figure(5.6, 4.2)
    lines = zip(best(curves, options.target), (BLUE, ORANGE), ("-", "--"), strict=True)
    for (name, curve), colour, line in lines:
        if curve:
            numbers, label = range(1, len(curve.errors) + 1), f"{name}, rate {curve.rate:g}"
            axes.plot(numbers, curve.errors, line, color=colour, linewidth=2, label=label)
    axes.axhline(options.target, color=GREY, linestyle=":", label=f"{options.target:.0%}")
    axes.set(xlabel="epochs", ylabel="training error", ylim=(0, 1), xlim=(0, None))
    axes.set_title("Four-layer convolutional network, ReLU against tanh")
    axes.legend(loc="upper right")
    figure.text(0.01, 0.005, data, fontsize=6, color=GREY)
    return figure
