"""The models of time and of memory, against sums done by hand."""

from __future__ import annotations

import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from train.layers import plan
from train.memory import COPIES, RESERVED, TRANSIENT, fitting_batch, kept_bytes
from train.recipes import RELEASED
from train.scaling import INFINIBAND, LATENCY_S, NVLINK, PCIE4, predict
from train.summary import FLOAT, exchanges

ROOT = Path(__file__).resolve().parent.parent.parent


def test_two_towers_of_batch_128_over_pcie() -> None:
    found = predict(RELEASED, gpus=2, towers=2, flops=1e13, inside=PCIE4)
    assert found.compute_s == pytest.approx(64 * 4.13561e9 / 1e13, rel=1e-5)
    # one of the two: half of 2012's rows, of fc7's second direction, images and logits, at 0.8 of 31.5 GB/s
    elements = 2 * 58_624 + 2 * 2_048 + 150_528 + 2 * 1_000
    assert found.towers_s == pytest.approx(elements / 2 * 128 * 4 / 25.2e9 + 11 * LATENCY_S)
    assert found.gradients_s == 0  # one pair: no data axis


def test_gradients_travel_over_the_slowest_link_and_hide_behind_backward() -> None:
    slow = predict(replace(RELEASED, batch=128), gpus=16, towers=1, flops=1e15, inside=NVLINK)
    ring = 2 * 15 / 16 * 60_965_224 * 4 / (0.8 * INFINIBAND.bytes_per_s) + 30 * LATENCY_S
    assert slow.gradients_s == pytest.approx(ring - 0.6 * slow.compute_s)
    assert slow.towers_s == 0
    hidden = predict(replace(RELEASED, batch=16 * 4096), gpus=16, towers=1, flops=1e13, inside=NVLINK)
    assert hidden.gradients_s == 0


def test_model_parallel_wins_at_small_batches_only() -> None:
    """Specification 3.2: two towers move less than data parallelism up to a batch of about 1,040 (without images)."""
    pair = 2 * sum(row.original for row in exchanges(RELEASED, 1000)) * FLOAT  # an image, there and back
    gradients = 2 * sum(own.parameters for own in plan(RELEASED, 1000).values()) * FLOAT  # a step, whatever its batch
    assert gradients / pair == pytest.approx(1_040, abs=1)


def test_scaling_prints_a_table() -> None:
    command = [sys.executable, "-m", "train", "scaling"]
    shown = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=60, check=True).stdout
    assert shown.count("pairs") == shown.count("data") == 12


def test_memory_kept_for_backward_is_counted() -> None:
    """At least what the large operators must keep: their inputs. At most a few times as much."""
    per_image, parameters = kept_bytes(RELEASED, 1000)
    assert parameters == 60_965_224 * 4
    inputs = 3 * 227**2 + 96 * 27**2 + 256 * 13**2 + 2 * 384 * 13**2 + 9216 + 2 * 4096
    norms = 3 * 96 * 55**2 + 2 * 3 * 256 * 27**2
    assert 4 * inputs < per_image < 3 * 4 * (inputs + norms)


def test_a_batch_that_fits() -> None:
    per_image, parameters = kept_bytes(RELEASED, 1000)
    device = int(RESERVED + COPIES * parameters + 1000.5 * TRANSIENT * per_image)
    assert fitting_batch(RELEASED, 1000, world=1, towers=1, device_bytes=device) == 1000
    assert fitting_batch(RELEASED, 1000, world=4, towers=1, device_bytes=device) == 4000
    assert fitting_batch(RELEASED, 1000, world=2, towers=2, device_bytes=device) > 2000
    assert fitting_batch(RELEASED, 1000, world=1, towers=1, device_bytes=RESERVED) == 0
