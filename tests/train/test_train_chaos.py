"""A training under a driver that gets in its way at random: nothing of it is lost, trained twice or
left out, and the weights are to the bit those of a run that nobody disturbed."""

from __future__ import annotations

import random
from collections import Counter
from pathlib import Path

import pytest
from chaos import KINDS, STEPS, chaos, undisturbed

from gratis.history import outcome


def prove(folder: Path, shards: Path, epochs: int, events: list[str], *, away_s: float) -> None:
    with chaos(folder / "runs", shards, epochs, seed=7, away_s=(0.5, away_s)) as driver:
        driver.drive(events)
        run = driver.run
    assert driver.done == Counter(events)
    assert outcome(run.folder) == "finished"
    receipts = run.receipts()
    assert {missing + twice for _, missing, twice in receipts} == {0}
    assert {epoch for epoch, *_ in receipts} == set(range(epochs))
    legs = run.legs()
    print(f"{sum(driver.done.values())} events {dict(driver.done)}, legs (step, ranks) {legs}")
    other = undisturbed(folder / "other", shards, epochs, legs)
    assert other.legs() == legs
    weights = other.weights()
    for name, tensor in run.weights().items():
        assert (weights[name] == tensor).all(), name
    print(f"{len(receipts)} receipts, {epochs * STEPS} steps: weights equal to the bit")


@pytest.mark.slow
def test_a_run_outlives_what_happens_to_it(sample_shards: Path, tmp_path: Path) -> None:
    """One event of each kind but one: a change of ranks is a preemption too."""
    prove(tmp_path, sample_shards, 5, ["page", "kill", "disk", "store", "ranks"], away_s=1.0)


@pytest.mark.prove
def test_a_long_run_outlives_much(sample_shards: Path, tmp_path: Path) -> None:
    """Twenty epochs and thirty events, in which the store is away for up to two minutes."""
    events = [*KINDS] * 5
    random.Random(7).shuffle(events)
    prove(tmp_path, sample_shards, 20, events, away_s=120.0)
