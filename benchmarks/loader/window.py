"""What one process measures of an endless stream of batches. Imports nothing of this project, so
that an older checkout of it is measured by the same lines."""

from __future__ import annotations

import json
import os
import resource
import time
from collections.abc import Iterator

import psutil
import torch

WARM = 8  # batches before the window: then the queues are full, as they are at its end

Shape = tuple[int, ...]


def measure(
    stream: Iterator[torch.Tensor], batches: int, images: int, started: float, expected: object
) -> None:
    """Prints a line of JSON: images per second, CPU seconds per 1,000 images, seconds from
    `started` to the first batch, megabytes of the process tree. images: of a batch. expected: its
    (dtype, shape), or None where the stream yields none. Ends the process."""
    batch = next(stream)
    first = time.perf_counter() - started
    if expected is not None:
        assert (batch.dtype, tuple(batch.shape)) == expected, f"{batch.dtype}, {batch.shape}"
        assert batch.is_contiguous(), "yields another layout"
    del batch  # who holds it makes a loader that never writes to a held batch take more memory
    for _ in range(WARM):
        next(stream)
    wall, cpu = time.perf_counter(), tree_cpu_s()
    for _ in range(batches):
        next(stream).view(-1)[::1024].sum()  # touches every page, as a copy to a device would
    wall, cpu = time.perf_counter() - wall, tree_cpu_s() - cpu
    images *= batches
    record = {"rate": images / wall, "cost": 1000 * cpu / images, "first": first}
    print(json.dumps(record | {"megabytes": tree_megabytes()}), flush=True)
    end_tree()


def tree() -> list[psutil.Process]:
    return [psutil.Process(), *psutil.Process().children(recursive=True)]


def tree_cpu_s() -> float:
    """Of children to 10 ms, of this process more finely."""
    times = [process.cpu_times() for process in tree()[1:]]
    return time.process_time() + float(sum(t.user + t.system for t in times))


def tree_megabytes() -> float:
    """Proportional set size of the tree at the end (pages that processes share count once), or the
    peak of this process, whichever is more."""
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    return max(peak, float(sum(process.memory_full_info().pss for process in tree()) / 2**20))


def end_tree() -> None:
    """The streams are endless: ends the workers, which are children of this process, and leaves."""
    for process in tree()[1:]:
        process.kill()
    os._exit(0)
