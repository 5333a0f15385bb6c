"""The models of time and of memory, against sums done by hand."""

from __future__ import annotations

import dataclasses
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from benchmarks.train.scaling import INFINIBAND, LATENCY_S, NVLINK, PCIE4, Link, predict
from gratis.events import EventWriter
from gratis.train.analysis.summary import FLOAT, exchanges
from gratis.train.network.layers import plan
from gratis.train.network.memory import (
    COPIES,
    RESERVED,
    TRANSIENT,
    fitting_batch,
    kept_bytes,
    ran_out,
    too_large,
)
from gratis.train.recipes import RELEASED
from gratis.train.settings import Launch

ROOT = Path(__file__).resolve().parent.parent.parent


def test_two_towers_of_batch_128_over_pcie() -> None:
    found = predict(RELEASED, gpus=2, towers=2, flops=1e13, inside=PCIE4)
    assert found.compute_s == pytest.approx(64 * 4.13561e9 / 1e13, rel=1e-5)
    # one of the two: half of 2012's rows, of fc7's second direction, images and logits, at 0.8 of
    # 31.5 GB/s
    elements = 2 * 58_624 + 2 * 2_048 + 150_528 + 2 * 1_000
    assert found.towers_s == pytest.approx(elements / 2 * 128 * 4 / 25.2e9 + 11 * LATENCY_S)
    assert found.gradients_s == 0  # one pair: no data axis


def test_gradients_travel_over_the_slowest_link_and_hide_behind_backward() -> None:
    slow = predict(replace(RELEASED, batch=128), gpus=16, towers=1, flops=1e15, inside=NVLINK)
    ring = 2 * 15 / 16 * 60_965_224 * 4 / (0.8 * INFINIBAND.bytes_per_s) + 30 * LATENCY_S
    assert slow.gradients_s == pytest.approx(ring - 0.6 * slow.compute_s)
    assert slow.towers_s == 0
    hidden = predict(
        replace(RELEASED, batch=16 * 4096), gpus=16, towers=1, flops=1e13, inside=NVLINK
    )
    assert hidden.gradients_s == 0


def test_model_parallel_wins_at_small_batches_only() -> None:
    """Specification 3.2: two towers move less than data parallelism up to a batch of about 1,040
    (without images)."""
    # an image, there and back
    pair = 2 * sum(row.original for row in exchanges(RELEASED, 1000)) * FLOAT
    # a step, whatever its batch
    gradients = 2 * sum(own.parameters for own in plan(RELEASED, 1000).values()) * FLOAT
    assert gradients / pair == pytest.approx(1_040, abs=1)


def test_scaling_prints_a_table() -> None:
    command = [sys.executable, "-m", "gratis", "bench", "scaling"]
    shown = subprocess.run(
        command, cwd=ROOT, capture_output=True, text=True, timeout=60, check=True
    ).stdout
    assert shown.count("pairs") == shown.count("data") == 12


def test_a_run_is_compared_with_what_the_model_predicts(tmp_path: Path) -> None:
    """Records written by hand, of a machine that is exactly as the model thinks."""
    recipe = replace(RELEASED, batch=128, classes=1000)
    link = Link(name="link", bytes_per_s=1e9, latency_s=1e-4)
    right = predict(recipe, gpus=2, towers=2, flops=1e12, inside=link)
    # each has a device of its own
    one_s = 2 * predict(recipe, gpus=2, towers=2, flops=1e12, inside=link).compute_s
    for name, world, wall_s, exchange_s in (
        ("one", 1, one_s, 0.0),
        ("two", 2, right.step_s, right.towers_s),
    ):
        launch = Launch(
            runs=str(tmp_path),
            run=name,
            shards="s",
            recipe_name="released",
            recipe=replace(recipe, classes=None),
            seed=0,
            attempt=1,
            tower_ranks=2,
            share_device=False,
        )
        for rank in range(world):
            events = EventWriter(launch.folder / f"rank-{rank}.jsonl", attempt=1, rank=rank)
            config = dataclasses.asdict(launch)
            start = {"config": config, "world": world, "classes": 1000, "device": f"cuda:{rank}"}
            events.write("start", start | {"mesh": {"data": 1, "tower": world}})
            for _ in range(5):
                events.write(
                    "step",
                    {
                        "steps": 10,
                        "wall_s": 10 * wall_s,
                        "exchange_s": 10 * exchange_s * (1 + rank),
                    },
                )
    command = [
        sys.executable,
        *"-m gratis bench scaling --measured".split(),
        str(tmp_path / "one"),
        str(tmp_path / "two"),
    ]
    command += ["--link-gb", "1", "--latency-us", "100"]
    shown = subprocess.run(
        command, cwd=ROOT, capture_output=True, text=True, timeout=60, check=True
    ).stdout
    rows = {row[0].strip(): [float(cell) for cell in row[1:]] for row in cells(shown)}
    assert rows["step"] == pytest.approx([1e3 * right.step_s] * 2, abs=0.01)
    assert rows["of it exchanges"] == pytest.approx([1e3 * right.towers_s] * 2, abs=0.01)
    assert rows["one process"] == pytest.approx([1e3 * one_s] * 2, abs=0.01)
    command[6] = str(tmp_path / "none")
    refused = subprocess.run(
        command, cwd=ROOT, capture_output=True, text=True, timeout=60, check=False
    )
    assert (refused.returncode, refused.stderr.count("\n")) == (2, 1)
    assert "none has no records" in refused.stderr


def cells(shown: str) -> list[list[str]]:
    return [line.strip("│").split("│") for line in shown.splitlines() if line.startswith("│")]


def test_memory_kept_for_backward_is_counted() -> None:
    """At least what the large operators must keep: their inputs. At most a few times as much."""
    per_image, parameters = kept_bytes(RELEASED, 1000)
    assert parameters == 60_965_224 * 4
    inputs = 3 * 227**2 + 96 * 27**2 + 256 * 13**2 + 2 * 384 * 13**2 + 9216 + 2 * 4096
    norms = 3 * 96 * 55**2 + 2 * 3 * 256 * 27**2
    assert 4 * inputs < per_image < 3 * 4 * (inputs + norms)


def test_a_batch_that_does_not_fit_is_told_with_one_that_would() -> None:
    def told(gib: float, **fields: int) -> str:
        recipe = replace(RELEASED, batch=fields.pop("batch", 8192))
        return too_large(recipe, 1000, size=int(gib * 2**30), **fields)

    line = told(16, world=1)
    assert line.startswith("--batch 8192 on 1 does not fit into a GPU of 16 GiB: about --batch ")
    assert told(16) == line.replace(" on 1", "")  # of the benchmark, which has one GPU
    fits = int(line.split()[-2])
    per_image, parameters = kept_bytes(RELEASED, 1000)
    assert RESERVED + COPIES * parameters + TRANSIENT * fits * per_image <= 16 * 2**30
    assert int(told(16, sharers=2).split()[-2]) < fits
    assert "on 6 does not fit into a GPU of 16 GiB: about --batch 48 fits" in told(
        16, batch=102, world=6
    )
    assert told(1, world=1).endswith(": take more GPUs, or a smaller --width")
    assert told(1).endswith(": take a smaller --width")


def test_other_libraries_words_for_no_memory_are_known() -> None:
    for words, known in (
        ("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`", True),
        ("CUDA error: out of memory", True),
        (
            "Critical error in pipeline:\nError in GPU operator `nvidia.dali.fn.cast`\nCUDA "
            "allocation failed",
            True,
        ),
        (
            "Critical error when building pipeline:\nCan't allocate 402653184 bytes on device 0.",
            True,
        ),
        ("Can't allocate 402653184 bytes on host.", False),
        ("CUDA error: an illegal memory access was encountered", False),
    ):
        assert ran_out(RuntimeError(words)) is known
    assert ran_out(torch.OutOfMemoryError("Tried to allocate 20.00 GiB"))


def test_a_batch_that_fits() -> None:
    per_image, parameters = kept_bytes(RELEASED, 1000)
    device = int(RESERVED + COPIES * parameters + 1000.5 * TRANSIENT * per_image)
    assert fitting_batch(RELEASED, 1000, world=1, towers=1, device_bytes=device) == 1000
    assert fitting_batch(RELEASED, 1000, world=4, towers=1, device_bytes=device) == 4000
    assert fitting_batch(RELEASED, 1000, world=2, towers=2, device_bytes=device) > 2000
    assert fitting_batch(RELEASED, 1000, world=1, towers=1, device_bytes=RESERVED) == 0
