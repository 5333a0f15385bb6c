"""One measurement in a process of its own, for `benchmarks.loader.bench`: endless batches of one
peer at one work, as a line of JSON.

python -m benchmarks.loader.measure ours crop SCRATCH 2 26   # threads, batches
python -m benchmarks.loader.measure ffcv write SCRATCH       # first, where it has its own format
"""

from __future__ import annotations

import sys
import time
from importlib import import_module
from pathlib import Path

import torch

from benchmarks.loader import window
from benchmarks.loader.peers.common import Work, expected_of, images_of
from benchmarks.loader.peers.table import PEERS, STAGES


def write(name: str, scratch: Path) -> None:
    """Fails where the peer cannot be used here."""
    peer = PEERS[name]
    for module in peer.needs:
        # these load with a little help, in `workers`
        if module not in ("torchvision", "streaming", "timm"):
            import_module(module)
    if peer.write:
        (scratch / name).mkdir()
        peer.write(scratch / peer.files, scratch / name)


def measure(name: str, work: Work, scratch: Path, threads: int, batches: int) -> None:
    torch.set_num_threads(1)
    started, peer = time.perf_counter(), (PEERS | STAGES)[name]
    root = scratch / peer.files
    stream = peer.streams[work](root, threads, scratch / name)
    expected = expected_of(root, work) if name in PEERS else None
    window.measure(stream, batches, images_of(work), started, expected)


if __name__ == "__main__":
    peer_name, what, folder, *numbers = sys.argv[1:]
    if what == "write":
        write(peer_name, Path(folder))
    else:
        measure(peer_name, what, Path(folder), *map(int, numbers))  # type: ignore[arg-type]
