"""One rank of a run, as torchrun's agent starts it: `python -m gratis.train.rank '<Launch as JSON>'
AGENT`, the latter its process id, with RANK and its kin set.

Users start `gratis train`. Exit codes: 0 finished, 1 diverged or a defect, 2 user error, 75
preempted, 130 interrupted."""

from __future__ import annotations

import ctypes
import dataclasses
import os
import signal
import socket
import sys
import traceback
from dataclasses import replace
from pathlib import Path

from gratis.errors import INTERRUPTED, PREEMPTED, USER_ERROR, GratisError
from gratis.signals import STOPS, heard

# importing torch takes seconds, and until `Signals` is there nothing can be saved
if __name__ == "__main__":
    for number in heard():
        signal.signal(number, lambda number, _: os._exit(STOPS[number]))

import torch

from gratis.events import EventWriter
from gratis.history import attempts
from gratis.loader import Loader, LoaderConfig
from gratis.locks import lock
from gratis.output import lose_unwritable
from gratis.records import Outcome, StartRecord
from gratis.train import checkpoint, loop
from gratis.train.choices import BadSamples, Choice
from gratis.train.job import Job, resume
from gratis.train.launcher.agent import report_failure
from gratis.train.launcher.launch import Launch
from gratis.train.mesh.device import lacks_for_compiling
from gratis.train.mesh.mesh import GradientSum, Mesh, connect, disconnect, sum_over_world
from gratis.train.network.alexnet import AlexNet
from gratis.train.network.memory import ran_out, too_large
from gratis.train.optimiser import Optimiser
from gratis.train.pretrained import take_convolutions
from gratis.train.recipes import Recipe
from gratis.train.saving import Saver
from gratis.train.schedule import noise_until
from gratis.train.telemetry import Signals

PR_SET_PDEATHSIG = 1
EXIT: dict[Outcome, int] = {
    "finished": 0,
    "preempted": PREEMPTED,
    "interrupted": INTERRUPTED,
    "diverged": 1,
    "failed": 1,
}


class Refused(GratisError):
    """The run's checkpoint is of other settings than were given."""


def main() -> int:
    signals = Signals()
    lose_unwritable()
    end_with_parent(int(sys.argv[2]))
    launch = Launch.from_json(sys.argv[1])
    mesh = connect(launch.tower_ranks, share_device=launch.share_device)
    held = lock(launch.folder, os.getppid()) if mesh.rank == 0 else None
    launch = dataclasses.replace(launch, attempt=this_attempt(launch, mesh))
    events = EventWriter(
        launch.folder / f"rank-{mesh.rank}.jsonl", attempt=launch.attempt, rank=mesh.rank
    )
    try:
        code = work(launch, mesh, events, signals)
    except Refused:  # nothing is on record of this attempt: the run stays what it was
        raise
    except BaseException as error:
        events.write(
            "end", {"outcome": "failed", "error": str(error).split("\n")[0] or type(error).__name__}
        )
        raise
    # nobody ends before all have written what they have to: to the agent a preempted rank has
    # failed, and it ends all
    sum_over_world(torch.zeros(1, device=mesh.device)).item()
    disconnect()
    if held:
        held.close()
    return code


def this_attempt(launch: Launch, mesh: Mesh) -> int:
    """The number after the last one on record: ranks that torchrun starts again are an attempt of
    their own."""
    number = max(launch.attempt, attempts(launch.folder) + 1) if mesh.rank == 0 else 0
    return int(sum_over_world(torch.tensor([number], device=mesh.device)).item())


def end_with_parent(parent: int) -> None:
    """A signal when the parent dies, kill -9 too: an orphan would train unseen, and hold the run
    against its successor.

    SIGTERM, so that all save and end; SIGKILL where the other machines go on without this one, as
    after a power cut. Linux alone can be asked for that; elsewhere nothing happens."""
    if sys.platform == "linux":
        # without node 0 nobody does
        others_go_on = int(os.environ.get("GROUP_RANK", "0")) > 0 and restarts_left() > 0
        ctypes.CDLL(None).prctl(
            PR_SET_PDEATHSIG, signal.SIGKILL if others_go_on else signal.SIGTERM
        )
        # it died while torch was being imported here, before anybody had asked
        if os.getppid() != parent:
            sys.exit(PREEMPTED)


def restarts_left() -> int:
    """How often torchrun's agents would still begin again."""
    most, begun = (
        os.environ.get(f"TORCHELASTIC_{name}", "0") for name in ("MAX_RESTARTS", "RESTART_COUNT")
    )
    return int(most) - int(begun)


def work(launch: Launch, mesh: Mesh, events: EventWriter, signals: Signals) -> int:
    recipe = launch.recipe
    config = replace(
        training_config(recipe, launch.seed, launch.bad_samples),
        decoded=launch.decoded,
        decoded_gb=launch.decoded_gb,
    )
    loader = Loader(
        launch.shards,
        "train",
        config,
        rank=mesh.rank,
        world_size=mesh.world,
        device=mesh.device,
        local_world_size=mesh.local_world,
    )
    with loader:
        try:
            job = assembled(launch, mesh, loader, events, signals)
            begin(launch, job)
            outcome = loop.run(job)
        except RuntimeError as failed:
            if mesh.device.type != "cuda" or not ran_out(failed):
                raise
            size = torch.cuda.get_device_properties(mesh.device).total_memory
            sharers = -(-mesh.local_world // torch.cuda.device_count())  # ranks on this GPU
            told = too_large(
                recipe,
                recipe.classes or len(loader.classes),
                size=size,
                world=mesh.world,
                towers=mesh.tower.size,
                sharers=sharers,
            )
            raise GratisError(told) from None
        job.saver.close()
    error = f"the loss is not finite at step {job.step}" if outcome == "diverged" else None
    if outcome == "finished" and job.saver.lost:  # such a run is not over: its weights are nowhere
        outcome, error = (
            "failed",
            f"training is done, but {job.saver.lost}; mend that and give the same command again",
        )
    events.write("end", {"outcome": outcome, "error": error}, epoch=job.epoch, step=job.step)
    if error:
        report_failure(f"error: {error}; {last_good(launch, diverged=outcome == 'diverged')}")
    return EXIT[outcome]


def assembled(
    launch: Launch, mesh: Mesh, loader: Loader, events: EventWriter, signals: Signals
) -> Job:
    """The job, at its first step."""
    recipe, warnings = launch.recipe, list[str]()
    network = AlexNet(
        recipe,
        recipe.classes or len(loader.classes),
        tower=mesh.tower,
        seed=launch.seed,
        wire=launch.wire,
    )
    network.to(mesh.device).to(memory_format=torch.channels_last)  # type: ignore[call-overload]

    def slower(why: str) -> str:
        told = f"the network is not compiled, and slower for it: {why}"
        if mesh.rank == 0:  # the others lack what it lacks; each has its event
            print(f"warning: {told}", file=sys.stderr, flush=True)
        return told

    if compiles(launch.compile, mesh.device):
        given_up = (
            (lambda why: events.write("warning", {"message": slower(why)}))
            if launch.compile == "auto"
            else None
        )
        network.compile_layers(given_up)
    elif launch.compile == "auto" and mesh.device.type == "cuda" and mesh.rank == 0:
        warnings.append(slower(f"that takes {lacks_for_compiling()}"))
    return Job(
        recipe=recipe,
        seed=launch.seed,
        shards=launch.shards,
        folder=launch.folder,
        mesh=mesh,
        network=network,
        optimiser=Optimiser(network, recipe),
        gradients=GradientSum(network.parameters(), mesh.data, launch.wire),
        loader=loader,
        events=events,
        signals=signals,
        saver=Saver(launch.folder, events),
        save_every_s=launch.save_every,
        save_probabilities=launch.save_probabilities,
        evaluates="val" in loader.manifest.splits,
        warnings=warnings,
    )


def begin(launch: Launch, job: Job) -> None:
    """Goes to the latest checkpoint, or takes another network's convolutions, and records the
    start. Collective."""
    try:
        resumed = resume(job)
    except GratisError as error:
        raise Refused(str(error)) from None
    job.events.write("start", start_record(launch, job))
    for message in job.warnings:
        job.events.write("warning", {"message": message})
    init_from = launch.recipe.init_from
    if resumed:
        said = f"resumed at step {job.step}, epoch {job.epoch + 1}"
    else:
        said = take_convolutions(Path(init_from), job.network) if init_from else ""
    if said and job.mesh.rank == 0:
        print(said, flush=True)
    if not job.evaluates and job.mesh.rank == 0:
        job.events.write(
            "warning", {"message": "the dataset has no validation split: nothing is evaluated"}
        )


def compiles(choice: Choice, device: torch.device) -> bool:
    """Compiling takes a minute, which short runs on a CPU never earn back."""
    return choice == "on" or (
        choice == "auto" and device.type == "cuda" and lacks_for_compiling() is None
    )


def training_config(recipe: Recipe, seed: int, bad_samples: BadSamples = "raise") -> LoaderConfig:
    return LoaderConfig(
        batch_size=recipe.batch,
        seed=seed,
        crop=recipe.crop,
        area=recipe.crop_area,
        crop_positions=recipe.crop_positions,
        crop_chunk=recipe.crop_chunk,
        mean=recipe.mean,
        noise=recipe.noise,
        noise_until=noise_until(recipe),
        channels_last=True,
        dtype=getattr(torch, recipe.compute),
        bad_samples=bad_samples,
    )


def start_record(launch: Launch, job: Job) -> StartRecord:
    mesh, splits = job.mesh, job.loader.manifest.splits
    cuda = mesh.device.type == "cuda"
    return {
        "run": launch.run,
        "recipe": launch.recipe_name,
        "config": dataclasses.asdict(launch),
        "mesh": {"data": mesh.data.size, "tower": mesh.tower.size},
        "world": mesh.world,
        "device": str(mesh.device),
        "device_name": torch.cuda.get_device_name(mesh.device) if cuda else "CPU",
        "decoded": job.loader.decoded_place,
        "pid": os.getpid(),
        "host": socket.gethostname(),
        "pid_namespace": os.stat("/proc/self/ns/pid").st_ino,
        "versions": {"torch": torch.__version__, "python": sys.version.split()[0]},
        "dataset": job.loader.manifest.hash,
        "classes": job.network.classes,
        "train_images": splits["train"].samples,
        "val_images": splits["val"].samples if "val" in splits else 0,
        "epochs": launch.recipe.epochs,
        "steps_per_epoch": len(job.loader),
        "batch_size": launch.recipe.batch,
    }


def last_good(launch: Launch, *, diverged: bool) -> str:
    """Which checkpoint is left, and, of a run that diverged, what to do with it."""
    found = checkpoint.latest(launch.folder / "checkpoints")
    told = f"the last good checkpoint is {found}" if found else "there is no good checkpoint"
    if not diverged:
        return told
    way_out = (
        f"--run {launch.run} and a lower --rate go on from it"
        if found
        else "begin again with a lower --rate"
    )
    return f"{told}: {way_out}"


def guarded() -> int:
    """main, with its errors left for the parent to print: the others fail too once one has, and
    would talk over it."""
    try:
        return main()
    except GratisError as error:
        report_failure(f"error: {error}")
        return USER_ERROR
    except Exception:
        report_failure(traceback.format_exc())
        return 1


if __name__ == "__main__":
    code = guarded()
    sys.stdout.flush()
    os._exit(code)  # a peer that is gone must not hold up this one's atexit handlers
