"""What users may set: the options of `python -m train`, whose recipe fields begin at a recipe that is named."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Annotated, Literal, TypeVar, cast

import tyro

from preprocess.arguments import parsed
from preprocess.errors import UserError
from train.choices import BadSamples, Choice, Keep, Wire
from train.nodes import ALONE, Nodes
from train.recipes import RECIPES, RELEASED, Recipe, RecipeName

LAST_PORT = 65535
COMMANDS = {
    "summary": "train.summary",
    "bench": "train.bench",
    "scaling": "train.scaling",
    "figures": "train.paper.figures",
    "predict": "train.paper.predict",
    "export": "train.paper.export",
    "features": "train.paper.features",
    "evaluate-published": "train.paper.published",
    "figure1": "train.paper.figure1",
    "ablate": "train.paper.ablate",
    "ensemble": "train.paper.ensemble",
    "tables": "train.paper.tables",
    "paper": "train.paper.paper",
}  # beside training: the module whose main(arguments) it is; imported on demand, so that --help stays quick
Fields = tyro.conf.OmitArgPrefixes[Annotated[Recipe, tyro.conf.arg(name="")]]  # its fields, without a prefix
Machines = tyro.conf.OmitArgPrefixes[Annotated[Nodes, tyro.conf.arg(name="")]]
Chosen = TypeVar("Chosen")


@dataclass(frozen=True, kw_only=True)
class Options:
    """Trains AlexNet of 2012 on shards made by `python -m preprocess shards`."""

    shards: str | None = None
    """Folder of the dataset, or its address (https://, s3://, gs://). Without it a sample is drawn under ./sample."""
    gpus: int | None = None
    """Processes on a machine, one per GPU; a pair holds one network. Default: the largest even number, else 1."""
    recipe: RecipeName = "released"
    """Where the fields below begin. Default: sample without --shards, else released."""
    run: str | None = None
    """Name of the run. Default: <recipe>-<dataset>-<n>; an unfinished one is resumed."""
    runs: Path = Path("runs")
    """Folder of all runs."""
    port: int | None = None
    """Of the status server. Default: 8000, or the next free one. 0: no server."""
    tensorboard: bool = False
    """Writes a TensorBoard event file beside the run's own records."""
    seed: int = 0
    """Of initial weights, order, augmentation and dropout."""
    tower_ranks: Literal[1, 2] = 2
    """Processes over which one network is spread, where there are that many: 1 is plain data parallelism."""
    share_device: bool = False
    """Permits several processes on one GPU (for tests: they are slower than one)."""
    wire: Wire = "float32"
    """What features and gradients travel as between processes; 16 bits halve the traffic."""
    compile: Choice = "auto"
    """Compile the network: on a GPU it pays; on a CPU it takes longer than a short run gains."""
    bad_samples: BadSamples = "raise"
    """A training sample that cannot be decoded ends the run; quarantine: another takes its place, with a warning."""
    decoded: Keep = "auto"
    """Keep decoded training images in the GPU's or the machine's memory; auto: where they fit. Batches are the same."""
    decoded_gb: float | None = None
    """Most that they may take there, all ranks, in 10**9 bytes. Default: half of a GPU's free, else a quarter."""
    save_every: float = 60.0
    """Seconds of training between checkpoints. The last step always gets one."""
    save_probabilities: bool = False
    """At the end, write the ten views' mean probabilities of every validation image beside the events."""
    nodes: Machines = ALONE
    fields: Fields = RELEASED

    def __post_init__(self) -> None:
        if self.decoded_gb is not None and not self.decoded_gb > 0:
            raise UserError(f"--decoded-gb {self.decoded_gb} must be above 0")
        if self.shards == "":
            raise UserError("--shards is empty; name the dataset, or leave it out for the sample")
        if not 0 <= self.seed < 2**64:
            raise UserError(f"--seed {self.seed} must be at least 0 and below 2**64")
        if not self.save_every >= 0:
            raise UserError(f"--save-every {self.save_every} must be at least 0 seconds")
        if self.port is not None and not 0 <= self.port <= LAST_PORT:
            raise UserError(f"--port {self.port} must be from 0 to {LAST_PORT}")
        if self.runs.exists() and not self.runs.is_dir():
            raise UserError(f"--runs {self.runs} is not a folder; choose another")


def common_terms(options: Options, local: int) -> dict[str, object]:
    """What has to be the same on every machine."""
    import torch

    said = dataclasses.asdict(options)
    fields, nodes = said.pop("fields"), said.pop("nodes")
    own = ("shards", "runs", "port", "tensorboard")  # places may be called differently on each; the rest is node 0's
    terms = fields | {name: value for name, value in said.items() if name not in own}
    terms |= {"nnodes": nodes["nnodes"], "max_restarts": nodes["max_restarts"], "gpus": local}
    terms["device"] = "GPU" if torch.cuda.is_available() else "CPU"
    versions = {package: version(package) for package in ("torch", "nvidia-dali-cuda130")}
    found: dict[str, object] = json.loads(json.dumps(terms | versions, default=str))
    return found


def parse(arguments: list[str]) -> Options:
    fallback: RecipeName = "released" if _value(arguments, "--shards") else "sample"
    beside = f"{Options.__doc__} Beside training: `python -m train NAME`, where NAME is {', '.join(COMMANDS)}."
    return read(
        lambda name, recipe: Options(recipe=name, fields=recipe), arguments, fallback, "python -m train", beside
    )


def read(
    make: Callable[[RecipeName, Recipe], Chosen],
    arguments: list[str],
    fallback: RecipeName,
    prog: str,
    told: str | None = None,
) -> Chosen:
    """Two passes: the recipe's name decides the defaults that the rest is read against. told: in --help, in place of
    the options' docstring."""
    asked = _value(arguments, "--recipe")
    name = cast(RecipeName, asked or fallback)
    if name not in RECIPES:
        raise UserError(f"--recipe {name} is none of {', '.join(RECIPES)}")
    default = make(name, RECIPES[name])
    return parsed(lambda: tyro.cli(type(default), default=default, args=arguments, prog=prog, description=told))


def command(kind: type[Chosen], arguments: list[str], name: str) -> Chosen:
    """The options of `python -m train NAME`."""
    return parsed(lambda: tyro.cli(kind, args=arguments, prog=f"python -m train {name}", description=kind.__doc__))


def _value(arguments: list[str], flag: str) -> str | None:
    """The flag's last value, as a parser would take it."""
    found = None
    for argument, following in zip(arguments, [*arguments, None][1:], strict=True):
        if argument == flag:
            found = following
        elif argument.startswith(flag + "="):
            found = argument.partition("=")[2]
    return found
