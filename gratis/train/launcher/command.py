"""Trains AlexNet: `gratis train --shards shards --gpus 2`, or `gratis train` alone for a drawn
sample.

Checks the configuration, prepares what is missing, checks the dataset, starts the status server,
runs one process per device under torchrun's agent, and closes with a table. Exit codes: 2 user
error, 75 preempted (requeue), 130 interrupted."""

from __future__ import annotations

import dataclasses
import json
import math
import os
import secrets
import shutil
import signal
import subprocess
import sys
from contextlib import nullcontext, suppress
from pathlib import Path
from types import FrameType
from typing import TextIO

from gratis.dataset import Manifest, read_manifest, require_split
from gratis.errors import INTERRUPTED, PREEMPTED, GratisError
from gratis.extras import require
from gratis.locks import hold
from gratis.output import lose_unwritable
from gratis.processes import end
from gratis.train.launcher.agent import start_ranks
from gratis.train.launcher.launch import Launch, choose_world, plan
from gratis.train.launcher.nodes import check_shared, differing
from gratis.train.launcher.rendezvous import Meeting, meet
from gratis.train.launcher.result import show
from gratis.train.launcher.status_server import start_server
from gratis.train.launcher.tensorboard import mirror
from gratis.train.network.layers import plan as plan_layers
from gratis.train.options import Options, common_terms, parse
from gratis.train.recipes import RECIPES

SAMPLE = Path("sample")
# for the stages of a sample to end after ctrl-C before they are asked to; for the status server
STAGE_S = 5.0
SEATS: list[TextIO] = []  # locks that are held while this process lives


class _Terminated(BaseException):
    pass


def main(arguments: list[str]) -> int:
    server: subprocess.Popen[bytes] | None = None
    try:
        signal.signal(signal.SIGTERM, _terminate)
        options = parse(arguments)
        if options.tensorboard:
            require("tensorboard", "--tensorboard")
        lose_unwritable()
        nodes = options.nodes
        # torch's C++ warns of every address without a name, and of every peer that is gone
        if nodes.most > 1:
            os.environ.setdefault("TORCH_CPP_LOG_LEVEL", "ERROR")
        import torch

        present = torch.cuda.device_count()
        meeting = meet(nodes)
        said = meeting.plan() if nodes.rank else ""
        with meeting.told():
            local = choose_world(options.gpus, present=present, share_device=options.share_device)
            check_world(options, local)
            if options.compile == "on":
                check_compiler(present)
            if not (nodes.rank or options.shards):  # the page follows the shard stage
                server = start_server(options.runs, options.port)
            launch = follow(options, local, said) if nodes.rank else lead(options, local, meeting)
            if not (nodes.rank or server):  # last: all that users get wrong is known by now
                server = start_server(options.runs, options.port)
        meeting.begin()
        if local > 1 and not present:
            towers = (
                ", one tower each"
                if local * nodes.most == options.tower_ranks == options.fields.towers
                else ""
            )
            print(f"no GPU: {local} CPU processes over gloo{towers}", flush=True)
        with mirror(launch.folder) if options.tensorboard and nodes.rank == 0 else nullcontext():
            ended = meeting.settle(start_ranks(launch, local, meeting))
        if ended.line:
            print(ended.line, file=sys.stderr)
        if ended.code == 0 and nodes.rank == 0:
            show(launch)
        return ended.code
    except subprocess.CalledProcessError as failed:
        return failed.returncode if failed.returncode > 0 else 1
    except _Terminated:
        return PREEMPTED
    finally:
        if server:
            end(server, STAGE_S)


def check_world(options: Options, local: int) -> None:
    """`local` processes on each machine; GratisError where a mesh of them cannot be built."""
    nodes, batch = options.nodes, options.fields.batch
    spread = min(options.tower_ranks, options.fields.towers)
    if nodes.most > 1 and local % spread:
        raise GratisError(
            f"--gpus {local} on each of --nnodes {nodes.nnodes}: the two towers of a network "
            f"share a machine; "
            "take an even --gpus, or --tower-ranks 1"
        )
    worlds = range(local * nodes.least, local * nodes.most + 1, local)
    for world in worlds:
        if batch % world:
            every = math.lcm(*worlds[:100])
            raise GratisError(
                f"--batch {batch} cannot be split over {world} processes; take a multiple of "
                f"{every}"
            )
    if local > 1 and options.tower_ranks == 2 and options.fields.lrn_across_towers:
        raise GratisError(
            "this recipe normalises across the towers: take --gpus 1 or --tower-ranks 1"
        )


def lead(options: Options, local: int, meeting: Meeting) -> Launch:
    """Node 0: prepares what is missing, plans the run and publishes the plan."""
    shards = options.shards or prepare_sample(
        options.fields.image_size, options.runs / "sample-shards"
    )
    manifest = manifest_of(shards)
    check_dataset(shards, manifest, options)
    launch = plan(options, shards, manifest)
    token = secrets.token_hex()
    if options.nodes.most > 1:
        launch.folder.mkdir(parents=True, exist_ok=True)
        (launch.folder / "node-0").write_text(token)
    terms = common_terms(options, local)
    said = {"launch": launch.to_json(), "terms": terms, "dataset": manifest.hash, "token": token}
    meeting.publish(json.dumps(said))
    return launch


def follow(options: Options, local: int, plan: str) -> Launch:
    """Another node: takes node 0's plan, with its own names of the places. GratisError if it
    differs from this one's."""
    said = json.loads(plan)
    if told := differing(common_terms(options, local), said["terms"]):
        raise GratisError(f"{told}; give every machine the same command but for --node-rank")
    shards = options.shards or SAMPLE / "shards"
    manifest = manifest_of(shards)
    check_dataset(shards, manifest, options)
    if manifest.hash != said["dataset"]:
        raise GratisError(
            f"{shards} is dataset {manifest.hash[:8]}, node 0 has {said['dataset'][:8]}"
        )
    launch = dataclasses.replace(
        Launch.from_json(said["launch"]), shards=str(shards), runs=str(options.runs)
    )
    check_shared(launch.folder / "node-0", said["token"])
    seat = hold(launch.folder / f"node-{options.nodes.rank}")
    if seat is None:
        raise GratisError("its --node-rank is another living machine's; number them from 0 on")
    SEATS.append(seat)
    print(f"run: {launch.folder}; its status is at node 0", flush=True)
    return launch


def check_compiler(present: int) -> None:
    """GratisError where torch could not compile."""
    from gratis.train.mesh.device import lacks_for_compiling

    if not present and not has_cpp_compiler():
        raise GratisError(
            "--compile on needs a C++ compiler on a CPU: apt install g++, or leave it off"
        )
    if present and (lack := lacks_for_compiling()):
        raise GratisError(f"--compile on needs {lack}; or leave it off")


def has_cpp_compiler() -> bool:
    """As torch looks for one to compile for a CPU."""
    return any(shutil.which(name) for name in (os.environ.get("CXX"), "g++", "clang++") if name)


def manifest_of(shards: Path | str) -> Manifest:
    """Of a folder, or of an address: its manifest and indices are fetched here, its shards by the
    ranks."""
    from gratis.loader import dataset_folder

    manifest = read_manifest(dataset_folder(shards))
    for split in manifest.splits:
        dataset_folder(shards, split)
    return manifest


def check_dataset(shards: Path | str, manifest: Manifest, options: Options) -> None:
    require_split(shards, manifest, "train")
    size, recipe = manifest.image_size, options.fields
    if size != recipe.image_size:
        fitting = " or ".join(name for name, other in RECIPES.items() if other.image_size == size)
        way_out = f"take --recipe {fitting}" if fitting else f"set --image-size {size} and a --crop"
        raise GratisError(
            f"{shards} holds {size}-pixel images, recipe {options.recipe} wants "
            f"{recipe.image_size}: {way_out}, "
            f"or make shards with --size {recipe.image_size}"
        )
    if recipe.classes is not None and recipe.classes < len(manifest.classes):
        raise GratisError(
            f"--classes {recipe.classes}: {shards} has {len(manifest.classes)} classes; take at "
            f"least those"
        )
    plan_layers(recipe, recipe.classes or len(manifest.classes))
    for shard in (shard for split in manifest.splits.values() for shard in split.shards):
        if "://" in str(shards):
            break  # they are checked when they come
        # validation comes after an epoch: too late to learn that it cannot
        path = Path(shards, shard.name)
        if not path.is_file() or path.stat().st_size != shard.bytes:
            raise GratisError(
                f"{path} is missing or not as long as published; verify the copy, or make the "
                f"shards again"
            )
    if "val" not in manifest.splits and recipe.schedule == "plateau":
        raise GratisError(
            f"--schedule plateau follows the validation error, and {shards} has no validation split"
        )
    if "val" not in manifest.splits:
        print(
            f"{shards} has no validation split: training only, nothing can be evaluated", flush=True
        )


def prepare_sample(size: int, run: Path) -> Path:
    """Draws and shards the sample dataset, to be watched as `run`; both stages know when there is
    nothing to do."""
    source, shards = SAMPLE / "source", SAMPLE / "shards"
    _stage("sample", "--out", str(source))
    # the whole of it, also where a batch scheduler's variables would make it one task of several
    whole = ("--task-id", "0", "--num-tasks", "1")
    _stage(
        "shards",
        "--src",
        str(source),
        "--out",
        str(shards),
        "--size",
        str(size),
        "--run-dir",
        str(run),
        *whole,
    )
    return shards


def _stage(*arguments: str) -> None:
    """CalledProcessError if it fails; ctrl-C reaches it too, and its word on that is enough."""
    stage = subprocess.Popen([sys.executable, "-m", "gratis", *arguments])
    try:
        code = stage.wait()
    except KeyboardInterrupt:
        with suppress(subprocess.TimeoutExpired):
            stage.wait(STAGE_S)
        end(stage)
        code = INTERRUPTED
    except _Terminated:
        end(stage)
        raise
    if code:
        raise subprocess.CalledProcessError(code, stage.args)


def _terminate(_: int, __: FrameType | None) -> None:
    # what is under way ends undisturbed by a second one
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    raise _Terminated
