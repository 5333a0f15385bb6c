"""The five parts, and what they would measure on a GPU, so that a page made without one names what
it lacks."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace

from benchmarks.report import ablations, correctness, free, loading, training
from benchmarks.report.results import Measurement, ResultFile
from benchmarks.report.setting import Setting, sizes

Part = Callable[[Setting, ResultFile], Iterator[Measurement]]
RATIO = "training from the loader over training from batches that stay on the device"
PARTS: dict[int, tuple[str, Part]] = {
    1: ("Correctness on the device", correctness.measurements),
    2: ("The loader alone", loading.measurements),
    3: ("Training alone", training.measurements),
    4: (f"The free ratio: {RATIO}", free.measurements),
    5: ("Trainings of the whole network, and with one part switched off", ablations.measurements),
}
MANY = 1 << 20  # images, enough for every batch size


def for_a_gpu(setting: Setting) -> dict[str, list[str]]:
    """By part: what it measures on a GPU alone, whatever the batch. Empty on one."""
    if setting.cuda:
        return {}
    missing, gpu = {}, replace(setting, **sizes(cuda=True, images=MANY))
    results = ResultFile(path=setting.out, seconds=0)
    for number, (_, part) in PARTS.items():
        here, there = (
            dict.fromkeys(one.name.partition(", batch ")[0] for one in part(each, results))
            for each in (setting, gpu)
        )
        missing[str(number)] = [name for name in there if name not in here]
    return missing
