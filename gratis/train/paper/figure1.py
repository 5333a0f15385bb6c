"""Figure 1, ReLU against tanh: `gratis figure1 --shards S`, where S holds 32-pixel images.

    make shards SRC=... OUT=S ARGS='--size 32'

The paper's is CIFAR-10, 25 % training error, ReLU six times as fast. Both nonlinearities get the
same network, initial weights and order of images (`gratis.train.paper.four_layers` says what the
paper leaves open and what was taken), and each the best of --rates: the one that needs the fewest
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
import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal, get_args

from tqdm import tqdm

from gratis.command_line import parse
from gratis.dataset import Manifest, read_manifest, require_split
from gratis.errors import GratisError
from gratis.extras import require
from gratis.written import written

if TYPE_CHECKING:
    from matplotlib.figure import Figure
    from torch import Tensor

    from gratis.train.paper.four_layers import Checkpoint, Course, Training

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
    """Most for each training."""
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
    for line in figure1(options):
        print(line, flush=True)


def figure1(options: Figure1) -> list[str]:
    """Trains, draws and writes; the lines to print: the result and the paths."""
    from gratis.loader import dataset_folder
    from gratis.train.mesh.mesh import full_float32

    full_float32()
    manifest = read_manifest(dataset_folder(options.shards))
    if manifest.image_size != SIZE:
        raise GratisError(
            f"{options.shards} holds {manifest.image_size}-pixel images, figure 1 wants {SIZE}: "
            f"make shards SRC=... OUT=shards{SIZE} ARGS='--size {SIZE}'"
        )
    samples = min(options.images, require_split(options.shards, manifest, "train").samples)
    courses = train_all(options, manifest, samples)
    told = verdict(courses, options.target)
    from gratis.train.analysis.plots import save, styled

    with styled():
        under = (
            f"{samples:,} images of {len(manifest.classes)} classes at {SIZE} px, seed "
            f"{options.seed}"
        )
        png = save(draw(courses, options, under), options.out / "figure1.png")
    return [f"{told}; {under}", str(png), str(options.out / "figure1.json")]


def train_all(options: Figure1, manifest: Manifest, samples: int) -> list[Course]:
    """Every nonlinearity at every rate, as far as the minutes go; the JSON is renewed after each
    that is whole."""
    from gratis.train.paper.four_layers import Checkpoint, Course, Training, whole_split

    terms: dict[str, object] = {"dataset": manifest.hash, "images": samples, "seed": options.seed}
    courses = [
        course for course in stored(options.out / "figure1.json", terms) if ended(options, course)
    ]
    data: tuple[Tensor, Tensor] | None = None
    partial: list[Course] = []
    ends = time.monotonic() + 60 * options.minutes if options.minutes else math.inf
    for rate, activation in itertools.product(options.rates, ACTIVATIONS):
        if any((course.activation, course.rate) == (activation, rate) for course in courses):
            continue
        checkpoint = Checkpoint.read(
            options.out / f"{activation}-{rate:g}.safetensors", json.dumps(terms)
        )
        before = Course(activation=activation, rate=rate, errors=checkpoint.errors)
        if ended(options, before):  # by this call's --target and --epochs
            courses.append(before)
            write(options, terms, courses)
            continue
        if time.monotonic() >= ends:
            print(
                f"{activation} at rate {rate:g}: skipped, --minutes {options.minutes:g} are over",
                flush=True,
            )
            partial += [before] if before.errors else []
            continue
        images, labels = data = data or whole_split(options.shards, samples)
        training = Training(
            activation, images, labels, rate=rate, classes=len(manifest.classes), seed=options.seed
        )
        course, whole = train_one(options, training, checkpoint, ends)
        (courses if whole else partial).append(course)
        write(options, terms, courses)
        # else more --epochs would go on with it
        if whole and (course.diverged or course.epochs_to(options.target)):
            checkpoint.path.unlink(missing_ok=True)
    return courses + partial


def train_one(
    options: Figure1, training: Training, checkpoint: Checkpoint, ends: float
) -> tuple[Course, bool]:
    """Up to the target, the epochs or the end of time; False after the last of these: it goes on
    another day."""
    from gratis.train.paper.four_layers import Course

    if checkpoint.state:
        training.load(checkpoint.state)
    errors, activation, rate = checkpoint.errors, training.activation, training.rate
    name, diverged = f"{activation} at rate {rate:g}", False
    with tqdm(
        total=options.epochs, initial=len(errors), desc=name, leave=False, disable=None
    ) as bar:
        for error in training.epochs():
            errors.append(error)
            bar.update()
            bar.set_postfix_str(f"training error {error:.1%}")
            if error <= options.target:
                break
            checkpoint.write(training.state())
            if len(errors) == options.epochs:
                break
            if time.monotonic() >= ends:
                print(f"{name}: stopped after epoch {len(errors)}, time is over", flush=True)
                return Course(activation=activation, rate=rate, errors=errors), False
        else:  # the loss is no number
            diverged = True
    course = Course(activation=activation, rate=rate, errors=errors, diverged=diverged)
    reached, last = course.epochs_to(options.target), f"{errors[-1]:.1%}" if errors else "no number"
    print(
        f"{name}: " + (f"{reached:.1f} epochs" if reached else f"not reached ({last})"), flush=True
    )
    return course, True


def ended(options: Figure1, course: Course) -> bool:
    """Is nothing left to train? An epoch's error depends on neither --target nor --epochs, so both
    may change."""
    return (
        course.diverged
        or course.epochs_to(options.target) is not None
        or len(course.errors) >= options.epochs
    )


def stored(path: Path, terms: dict[str, object]) -> list[Course]:
    """What an earlier call with the same terms has trained to its end; earlier versions said more
    (--epochs too)."""
    from gratis.train.paper.four_layers import Course

    try:
        said = json.loads(path.read_text())
        return (
            [Course(**course) for course in said["courses"]]
            if said["terms"] | terms == said["terms"]
            else []
        )
    except (OSError, ValueError, KeyError, TypeError):
        return []


def write(options: Figure1, terms: dict[str, object], courses: list[Course]) -> None:
    found = {
        name: (
            best.epochs_to(options.target)
            if (best := fastest(courses, name, options.target))
            else None
        )
        for name in ACTIVATIONS
    }
    relu, tanh = (found[name] for name in ACTIVATIONS)
    said = {
        "terms": terms,
        "target": options.target,
        "epochs": options.epochs,
        "epochs_to_target": found,
        "ratio": tanh / relu if relu and tanh else None,
        "paper": "CIFAR-10, 25 %: ReLU six times as fast; the network is not published, see "
        "gratis.train.paper.four_layers",
        "courses": [dataclasses.asdict(course) for course in courses],
    }
    with written(options.out / "figure1.json", "choose another --out") as draft:
        draft.write_text(json.dumps(said, indent=1) + "\n")


def fastest(courses: list[Course], activation: Activation, target: float) -> Course | None:
    """The training that reached the target first; if none did, the one that ended lowest."""
    own = [course for course in courses if course.activation == activation and course.errors]
    return min(
        own,
        key=lambda course: (course.epochs_to(target) or math.inf, course.errors[-1]),
        default=None,
    )


def verdict(courses: list[Course], target: float) -> str:
    """One line: the epochs of each at its best rate, and the ratio, or why there is none."""
    parts, found = [], []
    for name in ACTIVATIONS:
        best = fastest(courses, name, target)
        reached = best.epochs_to(target) if best else None
        found.append(reached)
        if best is None:
            parts.append(f"{name} was not trained")
        elif reached is None:
            parts.append(
                f"{name} did not reach {target:.0%} training error in {len(best.errors)} epochs "
                f"({best.errors[-1]:.1%})"
            )
        else:
            parts.append(
                f"{name} {reached:.1f} epochs to {target:.0%} training error (rate {best.rate:g})"
            )
    relu, tanh = found
    ratio = f"; ratio {tanh / relu:.1f} (paper, CIFAR-10: 6)" if relu and tanh else "; no ratio"
    return "; ".join(parts) + ratio


def draw(courses: list[Course], options: Figure1, under: str) -> Figure:
    """As in the paper: training error over epochs, ReLU solid and tanh dashed, the target
    dotted."""
    from matplotlib.figure import Figure as Canvas

    from gratis.train.analysis.plots import BLUE, GREY, ORANGE

    figure = Canvas(figsize=(5.6, 4.2), layout="constrained")
    axes = figure.add_subplot()
    for name, colour, line in zip(ACTIVATIONS, (BLUE, ORANGE), ("-", "--"), strict=True):
        if best := fastest(courses, name, options.target):
            numbers = range(1, len(best.errors) + 1)
            axes.plot(
                numbers,
                best.errors,
                line,
                color=colour,
                linewidth=2,
                label=f"{name}, rate {best.rate:g}",
            )
    axes.axhline(options.target, color=GREY, linestyle=":", label=f"{options.target:.0%}")
    axes.set(xlabel="epochs", ylabel="training error", ylim=(0, 1), xlim=(0, None))
    axes.set_title("Four-layer convolutional network, ReLU against tanh")
    axes.legend(loc="upper right")
    figure.text(0.01, 0.005, under, fontsize=6, color=GREY)
    return figure
