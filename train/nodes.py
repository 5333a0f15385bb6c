"""Which machines train together, as a user says it."""

from __future__ import annotations

import math
import re
import time
from dataclasses import dataclass
from pathlib import Path

from preprocess.errors import UserError


@dataclass(frozen=True, kw_only=True)
class Nodes:
    """The machines that train together, and which of them this is."""

    nnodes: str = "1"
    """Machines that train together, GPUS each; 2:4 begins with 2 to 4 of them and goes on with as many."""
    node_rank: int | None = None
    """Which of them this is, from 0. Node 0 plans the run, serves its status and shows how it ended."""
    rdzv: str | None = None
    """host:port of node 0, as every machine reaches it."""
    max_restarts: int = 0
    """How often the ranks begin again, from the last checkpoint, when one of them or a machine is lost."""
    join_timeout: float = 300.0
    """Seconds in which all machines must have come."""

    def __post_init__(self) -> None:
        if not re.fullmatch(r"[1-9]\d*(:[1-9]\d*)?", self.nnodes) or self.least > self.most:
            raise UserError(f"--nnodes {self.nnodes} must be a number of machines, or least:most")
        if self.most > 1 and (self.rdzv is None or self.node_rank is None):
            missing = "--rdzv host:port, where all reach node 0" if self.rdzv is None else "--node-rank, from 0 on"
            raise UserError(f"--nnodes {self.nnodes} needs {missing}")
        if not 0 <= self.rank < self.most:
            raise UserError(f"--node-rank {self.rank} must be from 0 to {self.most - 1}, as --nnodes is {self.nnodes}")
        if self.rdzv is not None and not (re.fullmatch(r"\S+:\d{1,5}", self.rdzv) and 0 < self.address[1] < 2**16):
            raise UserError(f"--rdzv {self.rdzv} must be host:port, such as node0:29400")
        if self.max_restarts < 0:
            raise UserError(f"--max-restarts {self.max_restarts} must be at least 0")
        if not 0 < self.join_timeout < math.inf:
            raise UserError(f"--join-timeout {self.join_timeout} must be a number of seconds above 0")

    @property
    def least(self) -> int:
        return int(self.nnodes.split(":")[0])

    @property
    def most(self) -> int:
        return int(self.nnodes.split(":")[-1])

    @property
    def rank(self) -> int:
        return self.node_rank or 0

    @property
    def address(self) -> tuple[str, int]:
        host, _, port = (self.rdzv or "localhost:0").rpartition(":")
        return host.strip("[]"), int(port)


ALONE = Nodes()


def differing(own: dict[str, object], theirs: dict[str, object]) -> str:
    names = [name for name in own | theirs if own.get(name) != theirs.get(name)]
    told = [f"{name.replace('_', '-')} is {own.get(name)}, on node 0 {theirs.get(name)}" for name in names]
    return ", ".join(told)


def check_shared(file: Path, token: str) -> None:
    """Node 0 wrote it a moment ago; network file systems may show it some seconds late."""
    deadline = time.monotonic() + 10
    while not (file.is_file() and file.read_text() == token):
        if time.monotonic() > deadline:
            raise UserError(f"--runs is not the folder that node 0 has: {file} is not there or not of this run; "
                            "it must be on a file system that all machines share")  # fmt: skip
        time.sleep(0.2)
