"""The five parts, and what they would measure on a GPU, so that a page made without one names what
it lacks."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

from benchmarks.report import ablations, correctness, free, loading, training
from benchmarks.report.results import Result, ResultFile
from benchmarks.report.setting import Setting, sizes

PARTS: dict[int, Callable[[Setting, ResultFile], None]] = {
    1: correctness.run,
    2: loading.run,
    3: training.run,
    4: free.run,
    5: ablations.run,
}
MANY = 1 << 20  # images, enough for every batch size


class NamesOnly(ResultFile):
    """Measures nothing, and notes what it was asked for."""

    def measure(
        self,
        part: int,
        name: str,
        command: str,
        make: Callable[[], Result],
        *,
        needs: float = 10,
        stops: bool = False,
    ) -> None:
        self.entries.setdefault(str(part), {})[name] = {}


def for_a_gpu(setting: Setting) -> dict[str, list[str]]:
    """By part: what it measures on a GPU alone, whatever the batch. Empty on one."""
    if setting.cuda:
        return {}
    gpu = replace(setting, **sizes(cuda=True, images=MANY))
    here, there = names(setting), names(gpu)
    return {part: [name for name in there[part] if name not in here[part]] for part in there}


def names(setting: Setting) -> dict[str, list[str]]:
    asked = NamesOnly(path=setting.out, seconds=0)
    for run in PARTS.values():
        run(setting, asked)
    return {
        part: list(dict.fromkeys(name.partition(", batch ")[0] for name in entries))
        for part, entries in asked.entries.items()
    }
