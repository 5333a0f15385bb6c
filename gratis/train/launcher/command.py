"""Trains AlexNet: `gratis train --shards shards --gpus 2`, or `gratis train` alone for a drawn
sample.

Checks the configuration, prepares what is missing, checks the dataset, starts the status server,
runs one process per device under torch's elastic agent, and closes with a table. Exit codes: 2 user
error, 75 preempted (requeue), 130 interrupted."""

from __future__ import annotations

import dataclasses
import json
import os
import secrets
import subprocess
import sys
from contextlib import ExitStack, nullcontext
from typing import TYPE_CHECKING, TextIO

from gratis.errors import PREEMPTED, GratisError
from gratis.extras import require
from gratis.locks import hold
from gratis.output import ignore_write_errors
from gratis.processes import end
from gratis.signals import Terminated, ignore_stops, terminate_raises
from gratis.train.launcher.checks import (
    check_dataset,
    check_launcher,
    check_world,
    choose_world,
    manifest_of,
)
from gratis.train.launcher.launch import check_available, plan
from gratis.train.launcher.nodes import check_shared, describe_differences
from gratis.train.launcher.result import show
from gratis.train.launcher.sample import SHARDS, prepare_sample
from gratis.train.launcher.status_server import start_server
from gratis.train.launcher.tensorboard import mirror
from gratis.train.options import Options, common_terms, parse
from gratis.train.settings import Launch

if TYPE_CHECKING:  # it imports torch, two seconds that --help need not take
    from gratis.train.launcher.rendezvous import Rendezvous

SERVER_S = 5.0  # for the status server to serve the last events
NODE_LOCKS: list[TextIO] = []  # held while this process lives


def main(arguments: list[str]) -> int:
    try:
        terminate_raises(Terminated)
        options = parse(arguments)
        check_launcher(options.nodes.most, os.environ)
        if options.tensorboard:
            require("tensorboard", "--tensorboard")
        ignore_write_errors()
        with ExitStack() as stack:
            return train(options, stack)
    except subprocess.CalledProcessError as failed:
        return failed.returncode if failed.returncode > 0 else 1
    except Terminated:
        return PREEMPTED


def train(options: Options, stack: ExitStack) -> int:
    """The exit code of this machine's part of the run; what it has beside its ranks ends with the
    stack."""
    nodes = options.nodes
    # torch's C++ warns of every address without a name, and of every peer that is gone
    if nodes.most > 1:
        os.environ.setdefault("TORCH_CPP_LOG_LEVEL", "ERROR")
    import torch

    from gratis.train.launcher.agent import start_ranks
    from gratis.train.launcher.rendezvous import join

    present = torch.cuda.device_count()
    rendezvous = join(nodes)
    published = rendezvous.plan() if nodes.rank else ""
    with rendezvous.errors_shared():
        local = check(options, present)
        if nodes.rank:
            launch = follow(options, local, published)
        else:
            launch = lead(options, local, rendezvous, stack)
    rendezvous.begin()
    if local > 1 and not present:
        one_each = local * nodes.most == options.settings.tower_ranks == options.fields.towers
        towers = ", one tower each" if one_each else ""
        print(f"no GPU: {local} CPU processes over gloo{towers}")
    with mirror(launch.folder) if options.tensorboard and nodes.rank == 0 else nullcontext():
        ended = rendezvous.settle(start_ranks(launch, local, rendezvous))
        ignore_stops()  # how it ended is known
    if ended.message:
        print(ended.message, file=sys.stderr)
    if ended.code == 0 and nodes.rank == 0:
        show(launch)
    return ended.code


def check(options: Options, present: int) -> int:
    """How many ranks this machine of `present` GPUs starts; GratisError for what is wrong with the
    options, whatever the dataset."""
    from gratis.train.mesh.device import check_compiler

    share_device = options.settings.share_device
    local = choose_world(options.gpus, present=present, share_device=share_device)
    check_world(options, local)
    if options.settings.compile == "on":
        check_compiler(present)
    if options.run is not None and not options.nodes.rank:
        check_available(options.runs / options.run)
    return local


def lead(options: Options, local: int, rendezvous: Rendezvous, stack: ExitStack) -> Launch:
    """Node 0: prepares what is missing, plans the run, publishes the plan and serves the status."""
    shards = options.shards
    if shards is None:
        serve(options, stack)  # the page follows the shard stage
        shards = str(prepare_sample(options.fields.image_size, options.runs / "sample-shards"))
    manifest = manifest_of(shards, options.settings.network)
    check_dataset(shards, manifest, options)
    launch = plan(options, shards, manifest)
    token = secrets.token_hex()
    if options.nodes.most > 1:
        launch.folder.mkdir(parents=True, exist_ok=True)
        (launch.folder / "node-0").write_text(token)
    terms = common_terms(options, local)
    agreed = {"launch": launch.to_json(), "terms": terms, "dataset": manifest.hash, "token": token}
    rendezvous.publish(json.dumps(agreed))
    if options.shards is not None:  # last: all that users get wrong is known by now
        serve(options, stack)
    return launch


def serve(options: Options, stack: ExitStack) -> None:
    if server := start_server(options.runs, options.port):
        stack.callback(end, server, SERVER_S)


def follow(options: Options, local: int, published: str) -> Launch:
    """Another node: takes node 0's plan, with its own names of the places. GratisError if it
    differs from this one's."""
    agreed = json.loads(published)
    if differences := describe_differences(common_terms(options, local), agreed["terms"]):
        raise GratisError(f"{differences}; give every machine the same command but for --node-rank")
    shards = options.shards or SHARDS
    manifest = manifest_of(shards, options.settings.network)
    check_dataset(shards, manifest, options)
    if manifest.hash != agreed["dataset"]:
        there = agreed["dataset"][:8]
        raise GratisError(f"{shards} is dataset {manifest.hash[:8]}, node 0 has {there}")
    launch = Launch.from_json(agreed["launch"])
    launch = dataclasses.replace(launch, shards=str(shards), runs=str(options.runs))
    check_shared(launch.folder / "node-0", agreed["token"])
    held = hold(launch.folder / f"node-{options.nodes.rank}")
    if held is None:
        raise GratisError("its --node-rank is in use by another machine; number them from 0 on")
    NODE_LOCKS.append(held)
    print(f"run: {launch.folder}; its status is at node 0")
    return launch
