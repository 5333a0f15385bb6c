"""The five parts, and what they would measure on a GPU, so that a page made without one names what
it lacks."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

from benchmarks.report import correctness, free, loading, training, whole
from benchmarks.report.book import Book, Result
from benchmarks.report.setting import Setting, sizes

PARTS: dict[int, Callable[[Setting, Book], None]] = {
    1: correctness.run,
    2: loading.run,
    3: training.run,
    4: free.run,
    5: whole.run,
}
MANY = 1 << 20  # images, enough for every batch size


class Names(Book):
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
    """By part: what it measures on a GPU alone, whatever the batch or the seed. Empty on one."""
    if setting.cuda:
        return {}
    here, there = (
        names(each) for each in (setting, replace(setting, **sizes(cuda=True, images=MANY)))
    )
    return {part: [name for name in there[part] if name not in here[part]] for part in there}


def names(setting: Setting) -> dict[str, list[str]]:
    asked = Names(path=setting.out, seconds=0)
    for run in PARTS.values():
        run(setting, asked)
    return {
        part: list(dict.fromkeys(map(kind, entries))) for part, entries in asked.entries.items()
    }


def kind(name: str) -> str:
    """Without batch and seed."""
    return name.partition(", batch ")[0].partition(", seed ")[0]
