"""A run as one rank holds it, and how it comes and goes: its checkpoints. What it does is
`loop`."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

import torch
from torch import Tensor

from gratis.errors import GratisError
from gratis.events import EventWriter
from gratis.loader import Loader
from gratis.train import checkpoint
from gratis.train.checkpoint import State
from gratis.train.mesh.mesh import GradientSum, Mesh, gather_rows
from gratis.train.network.alexnet import AlexNet
from gratis.train.optimiser import Optimiser
from gratis.train.recipes import Recipe
from gratis.train.saving import Saver, agreed
from gratis.train.telemetry import Signals


@dataclass(kw_only=True)
class Job:
    """One rank's part of a run. step counts the run's steps, epoch its complete epochs."""

    recipe: Recipe
    seed: int
    shards: str
    folder: Path
    mesh: Mesh
    network: AlexNet
    optimiser: Optimiser
    gradients: GradientSum
    loader: Loader
    events: EventWriter
    signals: Signals
    saver: Saver
    save_every_s: float  # of training
    evaluates: bool
    save_probabilities: bool = False
    step: int = 0
    epoch: int = 0
    seen: list[Tensor] = field(default_factory=list)  # this rank's ids of the begun epoch
    # all ranks', before a resume
    seen_before: Tensor = field(default_factory=lambda: torch.zeros(0, dtype=torch.int64))
    # on the validation split, after each complete epoch
    errors: list[float] = field(default_factory=list)
    unsaved_s: float = 0.0
    warnings: list[str] = field(default_factory=list)  # to be recorded once the attempt is


def all_seen(job: Job) -> Tensor:
    """The ids of the begun epoch over all ranks, padding left out. Collective."""
    own = torch.cat(job.seen) if job.seen else torch.zeros(0, dtype=torch.int64)
    own = own.to(job.mesh.device)  # the loader's ids stay on the CPU, of which NCCL sends nothing
    for axis in (job.mesh.tower, job.mesh.data):
        own = gather_rows(own, len(own) * axis.size, axis)
    return torch.cat([job.seen_before, own[own >= 0].cpu()])


def save_if_due(job: Job, *, now: bool = False) -> None:
    job.saver.settle(wait=False)
    if now or job.unsaved_s >= job.save_every_s:  # all ranks agree: it adds up means over them
        save(job)


def save(job: Job) -> None:
    """A checkpoint of this step; a thread writes it. Collective."""
    state = State(
        step=job.step,
        epoch=job.epoch,
        seed=job.seed,
        classes=job.network.classes,
        dataset=job.loader.manifest.hash,
        architecture=job.recipe.architecture,
        loader=dict(job.loader.state_dict()),
        errors=list(job.errors),
    )
    writer = job.mesh.rank == 0
    arrays = checkpoint.collect(job.network, job.optimiser, all_seen(job), writer=writer)
    if writer:
        job.saver.begin(arrays, state)
    job.unsaved_s = 0.0


def resume(job: Job) -> bool:
    """Goes to the latest whole checkpoint's step, if there is one; GratisError if it is of
    something else. Collective."""
    found = agreed(job.folder, job.mesh, job.warnings)
    if found is None:
        return False
    state = checkpoint.read_state(found)
    checkpoint.check_fits(
        found,
        state,
        architecture=job.recipe.architecture,
        classes=job.network.classes,
        dataset=job.loader.manifest.hash,
    )
    job.seen_before = checkpoint.load(found, job.network, job.optimiser)
    try:
        job.loader.load_state_dict(state.loader)
    except GratisError as error:
        raise GratisError(
            f"{found} cannot go on so: {error}; give what it was, or choose another --run"
        ) from None
    job.step, job.epoch, job.errors = state.step, state.epoch, list(state.errors)
    return True
