"""A whole run as its only rank does it, in this process: as `gratis train` has it planned, without
the agent that would start the rank."""

from __future__ import annotations

import os
import signal
from dataclasses import replace
from pathlib import Path

from small import command

from gratis.dataset import read_manifest
from gratis.events import EventWriter
from gratis.history import attempts
from gratis.locks import RESERVED
from gratis.signals import StopSignals, handlers_restored
from gratis.train.launcher.launch import plan
from gratis.train.mesh.mesh import Mesh
from gratis.train.options import parse
from gratis.train.rank import work
from gratis.train.settings import Launch


def planned(runs: Path, shards: Path, *arguments: str) -> Launch:
    """The run's name is nobody's afterwards: a starter holds it for as long as it lives."""
    launch = plan(parse(command(runs, shards, *arguments)[4:]), shards, read_manifest(shards))
    RESERVED.pop().close()
    return launch


def run_alone(launch: Launch, *, stopped: bool = False) -> int:
    """The rank's exit code. stopped: SIGTERM comes before its first step, after which it ends."""
    launch = replace(launch, attempt=attempts(launch.folder) + 1)
    with handlers_restored():
        signals = StopSignals()
        events = EventWriter(launch.folder / "rank-0.jsonl", attempt=launch.attempt, rank=0)
        if stopped:
            os.kill(os.getpid(), signal.SIGTERM)
        return work(launch, Mesh(), events, signals)
