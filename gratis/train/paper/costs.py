"""What a run cost: wall time, CPU time, and how loaded the machine was, a line for each attempt in
its `costs.jsonl`. An attempt that ended by kill -9, its command with it, has none."""

from __future__ import annotations

import json
import os
import resource
import statistics
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from threading import Event, Thread
from typing import NamedTuple

FILE = "costs.jsonl"
LOOK_S = 10.0  # between two looks at the load


class Cost(NamedTuple):
    """Of one or several attempts. load: the mean of the load averages of one minute."""

    wall_s: float
    cpu_s: float
    load: float


@contextmanager
def recorded(folder: Path) -> Iterator[None]:
    """What the children that end in this block cost is added to the folder's records."""
    began, before, load = time.monotonic(), _cpu_s(), MeanLoad()
    try:
        yield
    finally:
        add(folder, Cost(time.monotonic() - began, _cpu_s() - before, load.end()))


class MeanLoad:
    """The mean of the load averages of one minute from now to the end."""

    def __init__(self) -> None:
        self._loads, self._over = [os.getloadavg()[0]], Event()
        Thread(target=self._look, daemon=True).start()

    def _look(self) -> None:
        while not self._over.wait(LOOK_S):
            self._loads.append(os.getloadavg()[0])

    def end(self) -> float:
        self._over.set()
        return statistics.mean(self._loads)


def add(folder: Path, cost: Cost) -> None:
    """An attempt more at the folder's run."""
    if folder.is_dir():  # it is not where the command refused to begin
        with (folder / FILE).open("a") as file:
            file.write(json.dumps({"t": time.time(), **cost._asdict()}) + "\n")


def cost_of(folders: Iterable[Path]) -> Cost:
    """Of all attempts at these runs, as far as they are on record. A torn line is left out."""
    lines = []
    for path in (folder / FILE for folder in folders):
        for text in path.read_text().splitlines() if path.is_file() else []:
            try:
                line = json.loads(text)
                lines.append((float(line["wall_s"]), float(line["cpu_s"]), float(line["load"])))
            except (ValueError, KeyError, TypeError):
                continue
    wall_s, cpu_s = (sum(line[column] for line in lines) for column in (0, 1))
    load = sum(line[0] * line[2] for line in lines) / wall_s if wall_s else 0.0
    return Cost(wall_s, cpu_s, load)


def words(cost: Cost) -> str:
    hours = f"{cost.wall_s / 3600:.2f} hours, {cost.cpu_s / 3600:.2f} of CPU time"
    return f"{hours}, at a load average of {cost.load:.1f} on {os.cpu_count()} cores"


def _cpu_s() -> float:
    """Of all children that have ended, and theirs."""
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime
