"""One measurement in a process of its own, for `loader.bench`: endless batches of one peer, as a line of JSON.

python -m loader.measure ours shards 2 26 /tmp
"""

from __future__ import annotations

import json
import os
import sys
import time
from pathlib import Path

import psutil
import torch

from loader.peers import BATCH, PEERS, STAGES

WARM = 8  # batches before the window: then the queues are full, as they are at its end


def main(name: str, root: str, threads: str, batches: str, scratch: str) -> None:
    """Images per second, CPU seconds per 1,000 images, seconds to the first batch, megabytes of the process tree."""
    torch.set_num_threads(1)
    started = time.perf_counter()
    stream = (PEERS | STAGES)[name](Path(root), int(threads), Path(scratch))
    next(stream)
    first = time.perf_counter() - started
    for _ in range(WARM):
        next(stream)
    wall, cpu = time.perf_counter(), _tree_cpu_s()
    for _ in range(int(batches)):
        next(stream).view(-1)[::1024].sum()  # touches every page, as a copy to a device would
    wall, cpu = time.perf_counter() - wall, _tree_cpu_s() - cpu
    images = int(batches) * BATCH
    record = {"rate": images / wall, "cost": 1000 * cpu / images, "first": first, "megabytes": _tree_megabytes()}
    print(json.dumps(record), flush=True)
    _end_tree()


def _tree() -> list[psutil.Process]:
    return [psutil.Process(), *psutil.Process().children(recursive=True)]


def _tree_cpu_s() -> float:
    times = [process.cpu_times() for process in _tree()]
    return float(sum(t.user + t.system for t in times))


def _tree_megabytes() -> float:
    """Proportional set size: pages that processes share count once."""
    return float(sum(process.memory_full_info().pss for process in _tree()) / 2**20)


def _end_tree() -> None:
    """The streams are endless: ends the workers, which are children of this process, and leaves."""
    for process in _tree()[1:]:
        process.kill()
    os._exit(0)


if __name__ == "__main__":
    main(*sys.argv[1:])
