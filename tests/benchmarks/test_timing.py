"""How time is measured: what is called how often, and what counts."""

from __future__ import annotations

import time

import pytest
import torch

from benchmarks.timing import endless, measure

CPU = torch.device("cpu")


def test_untimed_calls_are_made_and_not_counted() -> None:
    made: list[tuple[float, float]] = []

    def call() -> None:
        begin = time.perf_counter()
        time.sleep(0.01)
        made.append((begin, time.perf_counter()))

    timing = measure(call, CPU, calls=3, untimed=2)
    after = time.perf_counter()
    assert (timing.calls, len(made)) == (3, 5)
    assert made[4][1] - made[2][0] <= timing.wall_s <= after - made[1][1]
    assert timing.call_s == pytest.approx(timing.wall_s / 3)


def test_it_goes_on_for_the_least_time() -> None:
    ends: list[float] = []

    def call() -> None:
        time.sleep(0.01)
        ends.append(time.perf_counter())

    begin = time.perf_counter()
    timing = measure(call, CPU, least_s=0.1)
    assert timing.wall_s >= 0.1
    assert timing.calls == len(ends) <= 11
    assert [begin, *ends][-2] - ends[0] < 0.1  # the last call was due, if not by how much
    assert timing.cpu_s < timing.wall_s


def test_an_endless_loader_begins_anew() -> None:
    batches = endless([1, 2])  # type: ignore[arg-type]
    assert [next(batches) for _ in range(5)] == [1, 2, 1, 2, 1]
