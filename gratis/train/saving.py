"""Checkpoints beside training: arrays are copied off the device at once, the file work is a
thread's.

One is under way at a time. Its event is written by the main thread when that next looks.
"""

from __future__ import annotations

import sys
import time
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path

import torch

from gratis.events import EventWriter
from gratis.train import checkpoint
from gratis.train.checkpoint import Arrays, State
from gratis.train.mesh.mesh import Mesh, sum_over_world


def agreed(run: Path, mesh: Mesh, warnings: list[str]) -> Path | None:
    """The run's latest undamaged checkpoint; a warning for each damaged one. Collective.

    As rank 0 sees it: ranks that read different ones would go on as a chimera.
    """
    folder, step = run / "checkpoints", -1
    if mesh.rank == 0:
        found, damaged = checkpoint.undamaged(folder)
        for line in damaged:
            warnings.append(line)
            print(f"warning: {line}", file=sys.stderr, flush=True)
        step = checkpoint.step_of(found) if found else -1
    step = int(sum_over_world(torch.tensor([step if mesh.rank == 0 else 0], device=mesh.device)))
    return checkpoint.of_step(folder, step) if step >= 0 else None


class NotFinite(Exception):
    """The weights diverged: the checkpoint before stays the latest."""


class Saver:
    """Writes a run's checkpoints; on the one rank that does."""

    def __init__(self, run: Path, events: EventWriter) -> None:
        self._folder, self._events = run / "checkpoints", events
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="checkpoint")
        self._state: State | None = None  # of the one under way
        self._size: Future[tuple[int, float]] | None = None
        self.lost: str | None = None  # why the newest checkpoint asked for is not there

    def begin(self, arrays: Arrays, state: State) -> None:
        """Waits for the one before, which a disk slower than the interval between two makes
        necessary."""
        self.settle()
        self._state, self._size = state, self._thread.submit(self._write, arrays, state)

    def settle(self, *, wait: bool = True) -> None:
        """Reports the one under way, if it is done: `checkpoint`, or `warning` on a failing disk.
        Training goes on."""
        if self._size is None or self._state is None or not (wait or self._size.done()):
            return
        step, epoch = self._state.step, self._state.epoch
        try:
            size, wall_s = self._size.result()
        except (OSError, NotFinite) as error:
            self.lost = f"no checkpoint of step {step}: {error}"
            self._events.write("warning", {"message": self.lost}, epoch=epoch, step=step)
            print(f"warning: {self.lost}", file=sys.stderr, flush=True)
        else:
            self.lost = None
            fields = {"path": f"checkpoints/step-{step:08d}", "bytes": size, "wall_s": wall_s}
            self._events.write("checkpoint", fields, epoch=epoch, step=step)
        self._state = self._size = None

    def close(self) -> None:
        self.settle()
        self._thread.shutdown()

    def _write(self, arrays: Arrays, state: State) -> tuple[int, float]:
        began = time.perf_counter()
        for name, tensor in arrays[
            "network"
        ].items():  # the loss tells only a step later, of a checkpoint then lost
            if not tensor.isfinite().all():
                raise NotFinite(f"{name} is not finite")
        return checkpoint.write(self._folder, arrays, state), time.perf_counter() - began
