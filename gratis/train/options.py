"""What users may set: the options of `gratis train`, whose recipe fields begin at a recipe that is
named."""

from __future__ import annotations

import dataclasses
import json
import re
from collections.abc import Callable
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Annotated, TypeVar, cast

import tyro

from gratis import command_line
from gratis.errors import GratisError
from gratis.train.launcher.nodes import ALONE, Nodes
from gratis.train.recipes import RECIPES, RELEASED, Recipe, RecipeName
from gratis.train.settings import RunSettings

LAST_PORT = 65535
DEFAULTS = RunSettings()
# its fields, without a prefix
Fields = tyro.conf.OmitArgPrefixes[Annotated[Recipe, tyro.conf.arg(name="")]]
Settings = tyro.conf.OmitArgPrefixes[Annotated[RunSettings, tyro.conf.arg(name="")]]
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
    settings: Settings = DEFAULTS
    nodes: Machines = ALONE
    fields: Fields = RELEASED

    def __post_init__(self) -> None:
        if self.shards == "":
            raise GratisError("--shards is empty; name the dataset, or leave it out for the sample")
        if self.run is not None:
            check_name(self.run)
        if self.port is not None and not 0 <= self.port <= LAST_PORT:
            raise GratisError(f"--port {self.port} must be from 0 to {LAST_PORT}")
        if self.runs.exists() and not self.runs.is_dir():
            raise GratisError(f"--runs {self.runs} is not a folder; choose another")


def check_name(run: str) -> None:
    """GratisError for a name that is no plain folder's."""
    if not re.fullmatch(r"[A-Za-z0-9_+-][A-Za-z0-9._+-]{0,127}", run):
        rule = "a plain name of at most 128 letters, digits, '.', '_', '+' and '-'"
        raise GratisError(f"--run {run!r} must be {rule}")


def common_terms(options: Options, local: int) -> dict[str, object]:
    """What has to be the same on every machine, as JSON has it."""
    import torch

    given = dataclasses.asdict(options)
    fields, nodes, settings = given.pop("fields"), given.pop("nodes"), given.pop("settings")
    # places may be called differently on each; the rest is node 0's
    own = ("shards", "runs", "port", "tensorboard")
    terms = fields | settings | {name: value for name, value in given.items() if name not in own}
    terms |= {"nnodes": nodes["nnodes"], "max_restarts": nodes["max_restarts"], "gpus": local}
    terms["device"] = "GPU" if torch.cuda.is_available() else "CPU"
    versions = {package: version(package) for package in ("torch", "nvidia-dali-cuda130")}
    result: dict[str, object] = json.loads(json.dumps(terms | versions, default=str))
    return result


def parse(arguments: list[str]) -> Options:
    fallback: RecipeName = "released" if _value(arguments, "--shards") else "sample"
    return read(Options, arguments, fallback, "gratis train")


def read(
    kind: Callable[..., Chosen],
    arguments: list[str],
    fallback: RecipeName,
    program: str,
    fields: str = "fields",
) -> Chosen:
    """Two passes: the recipe's name decides the defaults that the rest is read against.

    kind: a dataclass with `recipe`, the name, and with the recipe's fields under `fields`."""
    asked = _value(arguments, "--recipe")
    name = cast(RecipeName, asked or fallback)
    if name not in RECIPES:
        raise GratisError(f"--recipe {name} is none of {', '.join(RECIPES)}")
    default = kind(recipe=name, **{fields: RECIPES[name]})
    return command_line.parse(type(default), arguments, program, default=default)


def _value(arguments: list[str], flag: str) -> str | None:
    """The flag's last value, as a parser would take it."""
    value = None
    for argument, following in zip(arguments, [*arguments, None][1:], strict=True):
        if argument == flag:
            value = following
        elif argument.startswith(flag + "="):
            value = argument.partition("=")[2]
    return value
