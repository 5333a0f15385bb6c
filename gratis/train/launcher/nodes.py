"""Which machines train together: the options, and the addresses that they mean."""

from __future__ import annotations

import errno
import math
import re
import socket
import time
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import psutil

from gratis.errors import GratisError

POLL_S = 0.1
NAME_S = 60.0


@dataclass(frozen=True, kw_only=True)
class Nodes:
    """The machines that train together, and which of them this is."""

    nnodes: str = "1"
    """Machines that train together, GPUS each; 2:4 begins with 2 to 4 of them and goes on with as
    many."""
    node_rank: int | None = None
    """Which of them this is, from 0. Node 0 plans the run, serves its status and shows how it
    ended."""
    rdzv: str | None = None
    """host:port of node 0, as every machine reaches it."""
    max_restarts: int = 0
    """How often the ranks begin again, from the last checkpoint, when one of them or a machine is
    lost."""
    join_timeout: float = 300.0
    """Seconds in which all machines must have come."""

    def __post_init__(self) -> None:
        if not re.fullmatch(r"[1-9]\d*(:[1-9]\d*)?", self.nnodes) or self.least > self.most:
            raise GratisError(f"--nnodes {self.nnodes} must be a number of machines, or least:most")
        if self.most > 1 and (self.rdzv is None or self.node_rank is None):
            rdzv, rank = "--rdzv host:port, where all reach node 0", "--node-rank, from 0 on"
            missing = rdzv if self.rdzv is None else rank
            raise GratisError(f"--nnodes {self.nnodes} needs {missing}")
        if not 0 <= self.rank < self.most:
            allowed = f"from 0 to {self.most - 1}, as --nnodes is {self.nnodes}"
            raise GratisError(f"--node-rank {self.rank} must be {allowed}")
        if self.rdzv is not None and not (
            re.fullmatch(r"\S+:\d{1,5}", self.rdzv) and 0 < self.address[1] < 2**16
        ):
            raise GratisError(f"--rdzv {self.rdzv} must be host:port, such as node0:29400")
        if self.max_restarts < 0:
            raise GratisError(f"--max-restarts {self.max_restarts} must be at least 0")
        if not 0 < self.join_timeout < math.inf:
            given = f"--join-timeout {self.join_timeout}"
            raise GratisError(f"{given} must be a number of seconds above 0")

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
        host, _, port = (self.rdzv or "127.0.0.1:0").rpartition(":")
        return host.strip("[]"), int(port)


ALONE = Nodes()


def describe_differences(own: dict[str, object], theirs: dict[str, object]) -> str:
    names = [name for name in own | theirs if own.get(name) != theirs.get(name)]
    return ", ".join(
        f"{name.replace('_', '-')} is {own.get(name)}, on node 0 {theirs.get(name)}"
        for name in names
    )


def check_shared(file: Path, token: str) -> None:
    """Node 0 wrote it a moment ago; network file systems may show it some seconds late."""
    deadline = time.monotonic() + 10
    while not (file.is_file() and file.read_text() == token):
        if time.monotonic() > deadline:
            why = f"{file} is not there or not of this run"
            way_out = "it must be on a file system that all machines share"
            raise GratisError(f"--runs is not the folder that node 0 has: {why}; {way_out}")
        time.sleep(0.2)


def own_address(nodes: Nodes) -> str:
    """This machine's address that --rdzv means; GratisError if it is another's, or the port is
    taken."""
    family, kind, _, _, address = resolve(nodes)
    with socket.socket(family, kind) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(address)
        except OSError as error:
            why = "no address of this machine, and --node-rank 0 must be where it is"
            if isinstance(error, PermissionError):
                why = f"{error.strerror}; take a port above 1023"
            elif error.errno == errno.EADDRINUSE:
                taken = f"port {nodes.address[1]} is taken; choose another"
                why = f"{taken}, and --node-rank 0 must be where it is"
            raise GratisError(f"--rdzv {nodes.rdzv}: {why}") from None
    return str(address[0])


def resolve(nodes: Nodes) -> tuple[int, int, int, str, tuple[str, int]]:
    """What getaddrinfo has of node 0's name. A cluster's DNS may learn the name of a pod after it
    has started."""
    deadline = time.monotonic() + min(nodes.join_timeout, NAME_S)
    while True:
        try:
            return socket.getaddrinfo(*nodes.address, type=socket.SOCK_STREAM)[0]  # type: ignore[return-value]
        except socket.gaierror:
            if time.monotonic() > deadline:
                why = f"nothing is known of a host {nodes.address[0]}"
                raise GratisError(f"--rdzv {nodes.rdzv}: {why}") from None
        time.sleep(POLL_S)


def wait_for_node_0(nodes: Nodes) -> str:
    """This machine's address towards node 0, once that answers; GratisError if it does not in
    time."""
    deadline, why = time.monotonic() + nodes.join_timeout, ""
    print(f"waiting for node 0 at {nodes.rdzv}")
    while time.monotonic() < deadline:
        try:
            with socket.create_connection(nodes.address, timeout=5) as probe:
                return str(probe.getsockname()[0])
        except OSError as error:
            why = error.strerror or str(error)
        time.sleep(POLL_S)
    silent = f"no node 0 answered within {nodes.join_timeout:g} s ({why})"
    raise GratisError(f"--rdzv {nodes.rdzv}: {silent}; is it started there?")


def interface(local: str, host: str) -> str:
    """The network device through which the others reach this machine, whose address towards them is
    `local`.

    A machine's own name is often a loopback address (Debian's 127.0.1.1); then it is where the
    default route goes."""
    if local.startswith("127.") and host != "localhost" and not host.startswith("127."):
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe, suppress(OSError):
            probe.connect(("192.0.2.1", 9))  # sends nothing
            local = probe.getsockname()[0]
    devices = psutil.net_if_addrs().items()
    return next((name for name, has in devices if local in [one.address for one in has]), "lo")
