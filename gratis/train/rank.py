"""One rank of a run, as torchrun's agent starts it: `python -m gratis.train.rank '<Launch as JSON>'
AGENT`, the latter its process id, with RANK, WORLD_SIZE and the like set.

Users start `gratis train`. Exit codes: 0 finished, 1 diverged or a defect, 2 user error, 75
preempted, 130 interrupted."""

from __future__ import annotations

import dataclasses
import logging
import os
import signal
import socket
import sys
import traceback
from pathlib import Path

from gratis.errors import INTERRUPTED, PREEMPTED, USER_ERROR, GratisError, Outage
from gratis.signals import StopSignals, end_with_parent, stops_end_at_once

# importing torch takes seconds, and until `StopSignals` is there nothing can be saved
if __name__ == "__main__":
    stops_end_at_once()

import torch

from gratis.events import EventWriter
from gratis.history import attempts
from gratis.loader import Loader, LoaderConfig
from gratis.locks import lock
from gratis.network import log, stop_waiting
from gratis.output import ignore_write_errors
from gratis.records import Outcome, StartRecord
from gratis.train import checkpoint, loop
from gratis.train.launcher.exit_status import report_failure
from gratis.train.mesh.device import lacks_for_compiling
from gratis.train.mesh.mesh import GradientSum, Mesh, connect, disconnect, from_rank_0
from gratis.train.network.alexnet import AlexNet
from gratis.train.network.memory import ran_out, too_large
from gratis.train.optimiser import Optimiser
from gratis.train.pretrained import take_convolutions
from gratis.train.recipes import Recipe
from gratis.train.schedule import noise_until
from gratis.train.settings import Choice, Launch, RunSettings
from gratis.train.training_state import Saver, TrainingState, rank_loader, resume

DECODING = RunSettings(decoded="none")  # of whoever measures: each epoch is decoded anew
EXIT: dict[Outcome, int] = {
    "finished": 0,
    "preempted": PREEMPTED,
    "interrupted": INTERRUPTED,
    "diverged": 1,
    "failed": 1,
}


class CheckpointRefused(GratisError):
    """The run's checkpoint is of other settings than were given."""


def main() -> int:
    signals = StopSignals(stop_waiting)
    ignore_write_errors()
    end_with_parent(int(sys.argv[2]), signal_of_lost_agent())
    launch = Launch.from_json(sys.argv[1])
    outage_s = launch.outage_s if launch.remote else None
    mesh = connect(launch.tower_ranks, share_device=launch.share_device, agree_within_s=outage_s)
    held = lock(launch.folder, os.getppid()) if mesh.rank == 0 else None
    # ranks that torchrun starts again are an attempt of their own
    number = max(launch.attempt, attempts(launch.folder) + 1) if mesh.rank == 0 else 0
    attempt = from_rank_0(number, mesh)
    launch = dataclasses.replace(launch, attempt=attempt)
    path = launch.folder / f"rank-{mesh.rank}.jsonl"
    events = EventWriter(path, attempt=attempt, rank=mesh.rank)
    log.addHandler(NetworkWarnings(events))
    try:
        code = work(launch, mesh, events, signals)
    except CheckpointRefused:  # nothing is on record of this attempt: the run stays what it was
        raise
    except BaseException as error:
        reason = str(error).split("\n")[0] or type(error).__name__
        outcome = "preempted" if isinstance(error, Outage) else "failed"
        events.write("end", {"outcome": outcome, "error": reason})
        raise
    # nobody ends before all have written what they have to: to the agent a preempted rank has
    # failed, and it ends all
    from_rank_0(0, mesh)
    disconnect()
    if held:
        held.close()
    return code


class NetworkWarnings(logging.Handler):
    """What is said of servers becomes an event at once, whatever waits for them, and a line on
    stderr: of every rank, as any may be the only one that waits."""

    def __init__(self, events: EventWriter) -> None:
        super().__init__()
        self._events = events

    def emit(self, record: logging.LogRecord) -> None:
        self._events.write("warning", {"message": record.getMessage()})
        print(f"warning: {record.getMessage()}", file=sys.stderr)


def signal_of_lost_agent() -> signal.Signals:
    """What a rank gets when its agent is killed: an orphan would train unseen, and hold the run
    against its successor.

    SIGTERM, so that all save and end; SIGKILL where the other machines go on without this one, as
    after a power cut. Without node 0 nobody goes on."""
    names = ("GROUP_RANK", "TORCHELASTIC_MAX_RESTARTS", "TORCHELASTIC_RESTART_COUNT")
    node, most, begun = (int(os.environ.get(name, "0")) for name in names)
    return signal.SIGKILL if node > 0 and begun < most else signal.SIGTERM


def work(launch: Launch, mesh: Mesh, events: EventWriter, signals: StopSignals) -> int:
    recipe = launch.recipe
    with rank_loader(launch, "train", training_config(recipe, launch), mesh) as loader:
        classes = recipe.classes or len(loader.classes)
        try:
            state = first_state(launch, mesh, loader, events, signals)
            begin(state)
            outcome = loop.run(state)
        except RuntimeError as failed:
            if mesh.device.type != "cuda" or not ran_out(failed):
                raise
            size = torch.cuda.get_device_properties(mesh.device).total_memory
            sharers = -(-mesh.local_world // torch.cuda.device_count())  # ranks on this GPU
            world, towers = mesh.world, mesh.tower.size
            raise GratisError(
                too_large(recipe, classes, size=size, world=world, towers=towers, sharers=sharers)
            ) from None
        state.saver.close()
    lost = state.saver.lost
    error = f"the loss is not finite at step {state.step}" if outcome == "diverged" else None
    if outcome == "finished" and lost:  # such a run is not over: its weights are nowhere
        outcome = "failed"
        error = f"training is done, but {lost}; mend that and give the same command again"
    events.write("end", {"outcome": outcome, "error": error}, epoch=state.epoch, step=state.step)
    if error:
        report_failure(f"error: {error}; {last_good(launch, diverged=outcome == 'diverged')}")
    return EXIT[outcome]


def first_state(
    launch: Launch, mesh: Mesh, loader: Loader, events: EventWriter, signals: StopSignals
) -> TrainingState:
    """The run at its first step."""
    recipe, warnings = launch.recipe, list[str]()
    classes = recipe.classes or len(loader.classes)
    network = AlexNet(recipe, classes, tower=mesh.tower, seed=launch.seed, wire=launch.wire)
    network.to(mesh.device).to(memory_format=torch.channels_last)  # type: ignore[call-overload]

    def warn(why: str) -> str:
        message = f"the network is not compiled, and slower for it: {why}"
        if mesh.rank == 0:  # the others lack what it lacks; each has its event
            print(f"warning: {message}", file=sys.stderr)
        return message

    def record_eager(why: str) -> None:
        events.write("warning", {"message": warn(why)})

    if compiles(launch.compile, mesh.device):
        network.compile_layers(record_eager if launch.compile == "auto" else None)
    elif launch.compile == "auto" and mesh.device.type == "cuda" and mesh.rank == 0:
        warnings.append(warn(f"that takes {lacks_for_compiling()}"))
    return TrainingState(
        launch=launch,
        mesh=mesh,
        network=network,
        optimiser=Optimiser(network, recipe),
        gradients=GradientSum(network.parameters(), mesh.data, launch.wire),
        loader=loader,
        events=events,
        signals=signals,
        saver=Saver(launch.folder, events),
        warnings=warnings,
    )


def begin(state: TrainingState) -> None:
    """Goes to the latest checkpoint, or takes another network's convolutions, and records the
    start. Collective."""
    try:
        resumed = resume(state)
    except GratisError as error:
        raise CheckpointRefused(str(error)) from None
    state.events.write("start", start_record(state))
    if not state.evaluates and state.mesh.rank == 0:
        state.warnings.append("the dataset has no validation split: nothing is evaluated")
    for warning in state.warnings:
        state.events.write("warning", {"message": warning})
    message, init_from = "", state.recipe.init_from
    if resumed:
        message = f"resumed at step {state.step}, epoch {state.epoch + 1}"
    elif init_from:
        message = take_convolutions(Path(init_from), state.network)
    if message and state.mesh.rank == 0:
        print(message)


def compiles(choice: Choice, device: torch.device) -> bool:
    """Compiling takes a minute, which short runs on a CPU never earn back."""
    able = choice == "auto" and device.type == "cuda" and lacks_for_compiling() is None
    return choice == "on" or able


def training_config(recipe: Recipe, settings: RunSettings = DECODING) -> LoaderConfig:
    return LoaderConfig(
        batch_size=recipe.batch,
        seed=settings.seed,
        crop=recipe.crop,
        area=recipe.crop_area,
        crop_positions=recipe.crop_positions,
        crop_chunk=recipe.crop_chunk,
        flip=recipe.flip,
        normalize="mean-image",
        mean=recipe.mean,
        noise=recipe.noise,
        noise_until=noise_until(recipe),
        remainder="pad",
        layout="channels_last",
        dtype=getattr(torch, recipe.compute),
        bad_samples=settings.bad_samples,
        decoded=settings.decoded,
        decoded_gb=settings.decoded_gb,
        outage_s=settings.outage_s,
        read_timeout_s=settings.read_timeout_s,
    )


def start_record(state: TrainingState) -> StartRecord:
    launch, mesh, splits = state.launch, state.mesh, state.loader.manifest.splits
    cuda = mesh.device.type == "cuda"
    config = dataclasses.asdict(launch)
    # version 0.2 refuses a config with a field that it lacks
    command, *_ = (config.pop(name) for name in ("command", "outage_s", "read_timeout_s"))
    return {
        "run": launch.run,
        "recipe": launch.recipe_name,
        "config": config,
        "command": command,
        "mesh": {"data": mesh.data.size, "tower": mesh.tower.size},
        "world": mesh.world,
        "device": str(mesh.device),
        "device_name": torch.cuda.get_device_name(mesh.device) if cuda else "CPU",
        "decoded": state.loader.decoded_place,
        "pid": os.getpid(),
        "host": socket.gethostname(),
        "pid_namespace": os.stat("/proc/self/ns/pid").st_ino,
        "versions": {"torch": torch.__version__, "python": sys.version.split()[0]},
        "dataset": state.loader.manifest.hash,
        "classes": state.network.classes,
        "train_images": splits["train"].samples,
        "val_images": splits["val"].samples if "val" in splits else 0,
        "epochs": launch.recipe.epochs,
        "steps_per_epoch": len(state.loader),
        "batch_size": launch.recipe.batch,
    }


def last_good(launch: Launch, *, diverged: bool) -> str:
    """Which checkpoint is left, and, of a run that diverged, what to do with it."""
    latest = checkpoint.latest(launch.folder / "checkpoints")
    which = f"the last good checkpoint is {latest}" if latest else "there is no good checkpoint"
    if not diverged:
        return which
    resumed = f"--run {launch.run} and a lower --rate go on from it"
    return f"{which}: {resumed if latest else 'begin again with a lower --rate'}"


def main_with_error_file() -> int:
    """main, with its errors left for the parent to print: the others fail too once one has."""
    try:
        return main()
    except GratisError as error:
        report_failure(f"error: {error}")
        return PREEMPTED if isinstance(error, Outage) else USER_ERROR
    except Exception:
        report_failure(traceback.format_exc())
        return 1


if __name__ == "__main__":
    code = main_with_error_file()
    sys.stdout.flush()
    os._exit(code)  # a peer that is gone must not hold up this one's atexit handlers
