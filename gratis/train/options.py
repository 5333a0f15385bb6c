"""What users may set: the options of `gratis train`, whose recipe fields begin at a recipe that is
named."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Annotated, Literal, TypeVar, cast

import tyro

from gratis import command_line
from gratis.errors import GratisError
from gratis.train.choices import BadSamples, Choice, Keep, Wire
from gratis.train.launcher.nodes import ALONE, Nodes
from gratis.train.recipes import RECIPES, RELEASED, Recipe, RecipeName

LAST_PORT = 65535
# its fields, without a prefix
Fields = tyro.conf.OmitArgPrefixes[Annotated[Recipe, tyro.conf.arg(name="")]]
Machines = tyro.conf.OmitArgPrefixes[Annotated[Nodes, tyro.conf.arg(name="")]]
Chosen = TypeVar("Chosen")


@dataclass(frozen=True, kw_only=True)
class Options:
    """Trains AlexNet of 2012 on shards made by `gratis shards`."""

    shards: str | None = None
    """Folder of the dataset, or its address (https://, s3://, gs://). Without it a sample is drawn
    under ./sample."""
    gpus: int | None = None
    """Processes on a machine, one per GPU; a pair holds one network. Default: the largest even
    number, else 1."""
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
    """Processes over which one network is spread, where there are that many: 1 is plain data
    parallelism."""
    share_device: bool = False
    """Permits several processes on one GPU (for tests: they are slower than one)."""
    wire: Wire = "float32"
    """What features and gradients travel as between processes; 16 bits halve the traffic."""
    compile: Choice = "auto"
    """Compile the network: on a GPU it pays; on a CPU it takes longer than a short run gains."""
    bad_samples: BadSamples = "raise"
    """A training sample that cannot be decoded ends the run; quarantine: another takes its place,
    with a warning."""
    decoded: Keep = "auto"
    """Keep decoded training images in the GPU's or the machine's memory; auto: where they fit.
    Batches are the same."""
    decoded_gb: float | None = None
    """Most that they may take there, all ranks, in 10**9 bytes. Default: half of a GPU's free, else
    a quarter."""
    save_every: float = 60.0
    """Seconds of training between checkpoints. The last step always gets one."""
    save_probabilities: bool = False
    """At the end, write the ten views' mean probabilities of every validation image beside the
    events."""
    nodes: Machines = ALONE
    fields: Fields = RELEASED

    def __post_init__(self) -> None:
        if self.decoded_gb is not None and not self.decoded_gb > 0:
            raise GratisError(f"--decoded-gb {self.decoded_gb} must be above 0")
        if self.shards == "":
            raise GratisError("--shards is empty; name the dataset, or leave it out for the sample")
        if not 0 <= self.seed < 2**64:
            raise GratisError(f"--seed {self.seed} must be at least 0 and below 2**64")
        if not self.save_every >= 0:
            raise GratisError(f"--save-every {self.save_every} must be at least 0 seconds")
        if self.port is not None and not 0 <= self.port <= LAST_PORT:
            raise GratisError(f"--port {self.port} must be from 0 to {LAST_PORT}")
        if self.runs.exists() and not self.runs.is_dir():
            raise GratisError(f"--runs {self.runs} is not a folder; choose another")


def common_terms(options: Options, local: int) -> dict[str, object]:
    """What has to be the same on every machine."""
    import torch

    said = dataclasses.asdict(options)
    fields, nodes = said.pop("fields"), said.pop("nodes")
    # places may be called differently on each; the rest is node 0's
    own = ("shards", "runs", "port", "tensorboard")
    terms = fields | {name: value for name, value in said.items() if name not in own}
    terms |= {"nnodes": nodes["nnodes"], "max_restarts": nodes["max_restarts"], "gpus": local}
    terms["device"] = "GPU" if torch.cuda.is_available() else "CPU"
    versions = {package: version(package) for package in ("torch", "nvidia-dali-cuda130")}
    found: dict[str, object] = json.loads(json.dumps(terms | versions, default=str))
    return found


def parse(arguments: list[str]) -> Options:
    fallback: RecipeName = "released" if _value(arguments, "--shards") else "sample"
    return read(
        lambda name, recipe: Options(recipe=name, fields=recipe),
        arguments,
        fallback,
        "gratis train",
    )


def read(
    make: Callable[[RecipeName, Recipe], Chosen],
    arguments: list[str],
    fallback: RecipeName,
    program: str,
) -> Chosen:
    """Two passes: the recipe's name decides the defaults that the rest is read against."""
    asked = _value(arguments, "--recipe")
    name = cast(RecipeName, asked or fallback)
    if name not in RECIPES:
        raise GratisError(f"--recipe {name} is none of {', '.join(RECIPES)}")
    default = make(name, RECIPES[name])
    return command_line.parse(type(default), arguments, program, default=default)


def _value(arguments: list[str], flag: str) -> str | None:
    """The flag's last value, as a parser would take it."""
    found = None
    for argument, following in zip(arguments, [*arguments, None][1:], strict=True):
        if argument == flag:
            found = following
        elif argument.startswith(flag + "="):
            found = argument.partition("=")[2]
    return found
