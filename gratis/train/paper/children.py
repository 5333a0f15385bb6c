"""Several commands at a time, each on cores of its own, and what each cost."""

from __future__ import annotations

import os
import signal
import subprocess
import time
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

from gratis.train.paper.costs import Cost, MeanLoad, add

LOOK_S = 0.1  # between two looks at whether one has ended


@dataclass(eq=False)
class Child:
    """A process under way. cores: those that it may use; empty: all."""

    folder: Path
    cores: set[int]
    process: subprocess.Popen[bytes]
    began: float = field(default_factory=time.monotonic)
    load: MeanLoad = field(default_factory=MeanLoad)

    @property
    def seconds(self) -> float:
        return time.monotonic() - self.began

    def ended(self, *, wait: bool = False) -> bool:
        """Whether it has. What it cost is then added to its folder's records."""
        if self.process.returncode is None:
            # it alone, with all that it has waited for
            pid, status, used = os.wait4(self.process.pid, 0 if wait else os.WNOHANG)
            if pid:
                self.process.returncode = os.waitstatus_to_exitcode(status)
                cpu_s = used.ru_utime + used.ru_stime
                add(self.folder, Cost(self.seconds, cpu_s, self.load.end()))
        return self.process.returncode is not None


class Children:
    """At most `jobs` at a time. Each has cores of its own: small layers leave a second thread
    little to do, and threads of two that share cores wait for each other."""

    def __init__(self, jobs: int) -> None:
        cores = sorted(os.sched_getaffinity(0))
        jobs = min(jobs, len(cores))
        self._cores = [set(cores[job::jobs]) for job in range(jobs)] if jobs > 1 else [set[int]()]
        self._running: list[Child] = []

    @property
    def full(self) -> bool:
        return len(self._running) == len(self._cores)

    def start(self, command: list[str], folder: Path) -> None:
        """folder: of its run, where its cost is recorded, if it is there at the end."""
        taken = [child.cores for child in self._running]
        cores = next(own for own in self._cores if own not in taken)
        process = subprocess.Popen(command, stdout=subprocess.DEVNULL)
        self._running.append(Child(folder, cores, process))
        if cores:  # it has hardly begun: its threads and children inherit them
            with suppress(ProcessLookupError):
                os.sched_setaffinity(process.pid, cores)

    def next_ended(self) -> Child:
        """Waits until one has ended."""
        while True:
            for child in self._running:
                if child.ended():
                    self._running.remove(child)
                    return child
            time.sleep(LOOK_S)

    def end(self) -> None:
        """They save themselves; back once all are gone."""
        for child in self._running:
            child.process.send_signal(signal.SIGTERM)
        for child in self._running:
            child.ended(wait=True)
