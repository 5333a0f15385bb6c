"""One measurement in a process of its own, for `benchmarks.loader.bench`: endless batches of one
peer, as a line of JSON.

python -m benchmarks.loader.measure ours SCRATCH 2 26     # threads, batches
python -m benchmarks.loader.measure ffcv SCRATCH write    # first, where a peer has its own format
"""

from __future__ import annotations

import json
import os
import resource
import sys
import time
from importlib import import_module
from pathlib import Path

import psutil
import torch

from benchmarks.loader.peers.common import BATCH, crop_of
from benchmarks.loader.peers.table import PEERS, STAGES

WARM = 16  # batches before the window: then the queues are full, as they are at its end


def write(name: str, scratch: Path) -> None:
    """Fails where the peer cannot be used here."""
    peer = PEERS[name]
    for module in peer.needs:
        # these load with a little help, in `workers`
        if module not in ("torchvision", "streaming"):
            import_module(module)
    if peer.write:
        (scratch / name).mkdir()
        peer.write(scratch / peer.files, scratch / name)


def measure(name: str, scratch: Path, threads: int, batches: int) -> None:
    """Images per second, CPU seconds per 1,000 images, seconds to the first batch, megabytes of the
    process tree."""
    torch.set_num_threads(1)
    started, peer = time.perf_counter(), (PEERS | STAGES)[name]
    root = scratch / peer.files
    stream = peer.stream(root, threads, scratch / name)
    batch = next(stream)
    first = time.perf_counter() - started
    if name in PEERS:
        assert batch.dtype == torch.float32, f"{name} yields {batch.dtype}"
        expected = (BATCH, 3, crop_of(root), crop_of(root))
        assert batch.shape == expected, f"{name} yields {tuple(batch.shape)}"
        assert batch.is_contiguous(), f"{name} yields another layout"
    for _ in range(WARM):
        next(stream)
    wall, cpu = time.perf_counter(), _tree_cpu_s()
    for _ in range(batches):
        next(stream).view(-1)[::1024].sum()  # touches every page, as a copy to a device would
    wall, cpu = time.perf_counter() - wall, _tree_cpu_s() - cpu
    images = batches * BATCH
    record = {"rate": images / wall, "cost": 1000 * cpu / images, "first": first}
    print(json.dumps(record | {"megabytes": _tree_megabytes()}), flush=True)
    _end_tree()


def _tree() -> list[psutil.Process]:
    return [psutil.Process(), *psutil.Process().children(recursive=True)]


def _tree_cpu_s() -> float:
    times = [process.cpu_times() for process in _tree()]
    return float(sum(t.user + t.system for t in times))


def _tree_megabytes() -> float:
    """Proportional set size of the tree at the end (pages that processes share count once), or the
    peak of this process, whichever is more."""
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    return max(peak, float(sum(process.memory_full_info().pss for process in _tree()) / 2**20))


def _end_tree() -> None:
    """The streams are endless: ends the workers, which are children of this process, and leaves."""
    for process in _tree()[1:]:
        process.kill()
    os._exit(0)


if __name__ == "__main__":
    if sys.argv[3] == "write":
        write(sys.argv[1], Path(sys.argv[2]))
    else:
        measure(sys.argv[1], Path(sys.argv[2]), int(sys.argv[3]), int(sys.argv[4]))
