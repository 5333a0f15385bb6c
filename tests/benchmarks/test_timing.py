"""How time is measured: what is called how often, and what counts."""

from __future__ import annotations

import time

import pytest
import torch

from benchmarks.timing import endless, measure

CPU = torch.device("cpu")


def test_untimed_calls_are_made_and_not_counted() -> None:
    made: list[float] = []

    def call() -> None:
        time.sleep(0.5 if len(made) < 2 else 0.01)
        made.append(0)

    timing = measure(call, CPU, calls=3, untimed=2)
    assert (timing.calls, len(made)) == (3, 5)
    assert 0.03 <= timing.wall_s < 0.5
    assert timing.call_s == pytest.approx(timing.wall_s / 3)


def test_it_goes_on_for_the_least_time() -> None:
    timing = measure(lambda: time.sleep(0.01), CPU, least_s=0.1)
    assert timing.wall_s >= 0.1
    assert 2 <= timing.calls <= 11
    assert timing.cpu_s < timing.wall_s


def test_an_endless_loader_begins_anew() -> None:
    batches = endless([1, 2])  # type: ignore[arg-type]
    assert [next(batches) for _ in range(5)] == [1, 2, 1, 2, 1]
