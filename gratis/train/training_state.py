"""The state of one rank's part of a run, its checkpoints while it trains, and the resume. `loop`
trains it; `checkpoint` has the files."""

from __future__ import annotations

import sys
import time
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path

import torch
from torch import Tensor

from gratis.errors import GratisError
from gratis.events import EventWriter
from gratis.loader import Loader, LoaderConfig
from gratis.signals import StopSignals
from gratis.train import checkpoint
from gratis.train.checkpoint import Arrays, State
from gratis.train.mesh.mesh import GradientSum, Mesh, from_rank_0, gather_world
from gratis.train.network.alexnet import AlexNet
from gratis.train.optimiser import Optimiser
from gratis.train.recipes import Recipe
from gratis.train.settings import Launch


class NotFinite(Exception):
    """The weights diverged: the checkpoint before stays the latest."""


class Saver:
    """Writes a run's checkpoints beside training, on the one rank that does: arrays are copied off
    the device at once, the file work is a thread's.

    One is under way at a time. Its event is written by the main thread when that next looks."""

    def __init__(self, run: Path, events: EventWriter) -> None:
        self._folder, self._events = run / "checkpoints", events
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="checkpoint")
        self._state: State | None = None  # of the one under way
        self._size: Future[tuple[int, float]] | None = None
        self.lost: str | None = None  # why the newest checkpoint asked for is not there

    def begin(self, arrays: Arrays, state: State) -> None:
        """Waits for the one before, which a disk slower than the interval between two makes
        necessary."""
        self.settle()
        self._state, self._size = state, self._thread.submit(self._write, arrays, state)

    def settle(self, *, wait: bool = True) -> None:
        """Reports the one under way, if it is done: `checkpoint`, or `warning` on a failing disk.
        Training goes on."""
        if self._size is None or self._state is None or not (wait or self._size.done()):
            return
        step, epoch = self._state.step, self._state.epoch
        try:
            size, wall_s = self._size.result()
        except (OSError, NotFinite) as error:
            self.lost = f"no checkpoint of step {step}: {error}"
            self._events.write("warning", {"message": self.lost}, epoch=epoch, step=step)
            print(f"warning: {self.lost}", file=sys.stderr)
        else:
            self.lost = None
            fields = {"path": f"checkpoints/step-{step:08d}", "bytes": size, "wall_s": wall_s}
            self._events.write("checkpoint", fields, epoch=epoch, step=step)
        self._state = self._size = None

    def close(self) -> None:
        self.settle()
        self._thread.shutdown()

    def _write(self, arrays: Arrays, state: State) -> tuple[int, float]:
        began = time.perf_counter()
        # the loss shows only a step later that the weights diverged, when this one were the latest
        for name, tensor in arrays["network"].items():
            if not tensor.isfinite().all():
                raise NotFinite(f"{name} is not finite")
        return checkpoint.write(self._folder, arrays, state), time.perf_counter() - began


@dataclass(kw_only=True)
class TrainingState:
    """step counts the run's steps, epoch its complete epochs."""

    launch: Launch
    mesh: Mesh
    network: AlexNet
    optimiser: Optimiser
    gradients: GradientSum
    loader: Loader
    events: EventWriter
    signals: StopSignals
    saver: Saver
    step: int = 0
    epoch: int = 0
    seen: list[Tensor] = field(default_factory=list)  # this rank's ids of the begun epoch
    # all ranks', before a resume
    seen_before: Tensor = field(default_factory=lambda: torch.zeros(0, dtype=torch.int64))
    # on the validation split, after each complete epoch
    errors: list[float] = field(default_factory=list)
    unsaved_s: float = 0.0
    saved: int = 0  # the step of the newest checkpoint that was asked for
    warnings: list[str] = field(default_factory=list)  # to be recorded once the attempt is

    @property
    def recipe(self) -> Recipe:
        return self.launch.recipe

    @property
    def evaluates(self) -> bool:
        return "val" in self.loader.manifest.splits


def rank_loader(launch: Launch, split: str, config: LoaderConfig, mesh: Mesh) -> Loader:
    """This rank's loader of a split of the run's dataset."""
    return Loader(
        launch.shards,
        split,
        config,
        rank=mesh.rank,
        world_size=mesh.world,
        device=mesh.device,
        local_world_size=mesh.local_world,
    )


def all_seen(state: TrainingState) -> Tensor:
    """The ids of the begun epoch over all ranks, padding left out. Collective."""
    own = torch.cat(state.seen) if state.seen else torch.zeros(0, dtype=torch.int64)
    ids = gather_world(own, state.mesh).cpu()
    return torch.cat([state.seen_before, ids[ids >= 0]])


def save_if_due(state: TrainingState, *, now: bool = False) -> None:
    state.saver.settle(wait=False)
    # all ranks agree: it adds up means over them
    if now or state.unsaved_s >= state.launch.save_every:
        save(state)


def save(state: TrainingState) -> None:
    """A checkpoint of this step; a thread writes it. Collective."""
    saved = State(
        step=state.step,
        epoch=state.epoch,
        seed=state.launch.seed,
        classes=state.network.classes,
        dataset=state.loader.manifest.hash,
        architecture=state.recipe.architecture,
        loader=dict(state.loader.state_dict()) | place_of(state),
        errors=list(state.errors),
    )
    writer = state.mesh.rank == 0
    arrays = checkpoint.collect(state.network, state.optimiser, all_seen(state), writer=writer)
    if writer:
        state.saver.begin(arrays, saved)
    state.unsaved_s, state.saved = 0.0, state.step


def place_of(state: TrainingState) -> dict[str, int]:
    """Epoch and step of what was trained: after an outage a rank may have taken one batch more."""
    return {"epoch": state.epoch, "step": state.step - state.epoch * len(state.loader)}


def resume(state: TrainingState) -> bool:
    """Goes to the latest whole checkpoint's step, if there is one; GratisError if it is of
    something else. Collective."""
    path = latest_undamaged(state.launch.folder, state.mesh, state.warnings)
    if path is None:
        return False
    saved, dataset = checkpoint.read_state(path), state.loader.manifest.hash
    architecture, classes = state.recipe.architecture, state.network.classes
    checkpoint.check_fits(path, saved, architecture=architecture, classes=classes, dataset=dataset)
    state.seen_before = checkpoint.load(path, state.network, state.optimiser)
    try:
        state.loader.load_state_dict(saved.loader)
    except GratisError as error:
        way_out = "give what it was, or choose another --run"
        raise GratisError(f"{path} cannot go on so: {error}; {way_out}") from None
    state.step, state.epoch, state.errors = saved.step, saved.epoch, list(saved.errors)
    state.saved = state.step
    return True


def latest_undamaged(run: Path, mesh: Mesh, warnings: list[str]) -> Path | None:
    """The run's latest undamaged checkpoint; a warning for each damaged one. Collective.

    As rank 0 sees it: ranks that read different ones would train a mixture of both.
    """
    folder, step = run / "checkpoints", -1
    if mesh.rank == 0:
        path, damaged = checkpoint.undamaged(folder)
        for message in damaged:
            warnings.append(message)
            print(f"warning: {message}", file=sys.stderr)
        step = checkpoint.step_of(path) if path else -1
    step = from_rank_0(step, mesh)
    return checkpoint.of_step(folder, step) if step >= 0 else None
