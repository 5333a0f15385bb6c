"""A whole run as its only rank does it, in this process: as `gratis train` has it planned, without
the agent that would start the rank."""

from __future__ import annotations

import os
import signal
from collections.abc import Mapping
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


class Stopping(EventWriter):
    """Sends this process SIGTERM once it has written the record of a step."""

    at: int | None = None

    def write(
        self,
        kind: str,
        fields: Mapping[str, object],
        *,
        epoch: int | None = None,
        step: int | None = None,
    ) -> None:
        super().write(kind, fields, epoch=epoch, step=step)
        if kind == "step" and step == self.at:
            os.kill(os.getpid(), signal.SIGTERM)


def run_alone(launch: Launch, *, stop_at: int | None = None) -> int:
    """The rank's exit code. stop_at: SIGTERM comes before its first step, 0, or behind the record
    of one: the rank ends behind its next record."""
    launch = replace(launch, attempt=attempts(launch.folder) + 1)
    with handlers_restored():
        signals = StopSignals()
        events = Stopping(launch.folder / "rank-0.jsonl", attempt=launch.attempt, rank=0)
        events.at = stop_at
        if stop_at == 0:
            os.kill(os.getpid(), signal.SIGTERM)
        return work(launch, Mesh(), events, signals)
