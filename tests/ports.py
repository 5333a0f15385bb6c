"""Ports that nobody listens on, for the servers that tests start."""

from __future__ import annotations

import random
import socket
from collections.abc import Iterator


def _free_ports() -> Iterator[int]:
    """Each once, by chance, below those that the kernel gives to connections: nobody takes one
    between this and the server's start."""
    for port in random.SystemRandom().sample(range(20_000, 29_000), 9_000):
        with socket.socket() as probe:
            try:
                probe.bind(("127.0.0.1", port))
            except OSError:
                continue
        yield port


_PORTS = _free_ports()


def free_port() -> int:
    return next(_PORTS)
