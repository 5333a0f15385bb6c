"""The five parts, and what they would measure on a GPU, so that a page made without one names what
it lacks."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace

from benchmarks.report import ablations, correctness, free, loading, training
from benchmarks.report.results import Measurement, ResultFile
from benchmarks.report.setting import Setting, sizes

PARTS: dict[int, Callable[[Setting, ResultFile], Iterator[Measurement]]] = {
    1: correctness.measurements,
    2: loading.measurements,
    3: training.measurements,
    4: free.measurements,
    5: ablations.measurements,
}
MANY = 1 << 20  # images, enough for every batch size


def for_a_gpu(setting: Setting) -> dict[str, list[str]]:
    """By part: what it measures on a GPU alone, whatever the batch. Empty on one."""
    if setting.cuda:
        return {}
    missing, gpu = {}, replace(setting, **sizes(cuda=True, images=MANY))
    results = ResultFile(path=setting.out, seconds=0)
    for number, part in PARTS.items():
        here, there = (
            dict.fromkeys(one.name.partition(", batch ")[0] for one in part(each, results))
            for each in (setting, gpu)
        )
        missing[str(number)] = [name for name in there if name not in here]
    return missing
