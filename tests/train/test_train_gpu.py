"""What the GPU tells of itself, and whole runs on one and on two of them."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
import sysconfig
import time
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

import pytest
import torch

from gratis.errors import GratisError
from gratis.history import records
from gratis.train.checkpoint import latest
from gratis.train.mesh.device import GpuMeter, WaitClock, device_of, lacks_for_compiling
from gratis.train.metrics import average_views, share_of_loss
from gratis.train.network.alexnet import AlexNet
from gratis.train.network.dropout import DropoutKey
from gratis.train.recipes import RECIPES

# compiling takes most of so short a run, which others are only held against
EAGER = ("--compile", "off")
ROOT = Path(__file__).resolve().parent.parent.parent


def test_a_cpu_tells_nothing() -> None:
    assert GpuMeter(torch.device("cpu")).read() is None


def test_waiting_on_a_cpu_is_what_the_clock_says() -> None:
    clock, inside, outside = WaitClock(torch.device("cpu")), 0.0, 0.0
    for _ in range(3):
        times = [time.perf_counter()]
        clock.asked()
        times.append(time.perf_counter())
        time.sleep(0.02)
        times.append(time.perf_counter())
        clock.got()
        times.append(time.perf_counter())
        inside, outside = inside + times[2] - times[1], outside + times[3] - times[0]
        time.sleep(0.05)
    assert inside <= clock.take() <= outside
    assert clock.take() == 0


@pytest.mark.gpu
def test_waiting_on_a_gpu_counts_only_while_it_has_nothing_to_do() -> None:
    """The same waits of the host, 10 ms each, beside steps of the device that are longer and
    shorter than them."""
    needs(1)
    clock, found = WaitClock(torch.device("cuda")), {}
    cycles = 2_000_000  # of a clock of 1 to 2 GHz: one to two milliseconds
    for name, length in (("long", 30), ("short", 1)):
        torch.cuda.synchronize()
        clock.forget()
        torch.cuda._sleep(length * cycles)
        for _ in range(10):
            clock.asked()
            time.sleep(0.01)
            clock.got()
            torch.cuda._sleep(length * cycles)
        torch.cuda.synchronize()
        found[name] = clock.take()
    assert found["long"] < 0.01
    assert 0.05 < found["short"] < 0.2


DRIVER = """
#include <string.h>
/* What nvidia-ml-py calls, by nvml.h: percents, milliwatts, bytes;
   0 is success, 3 not supported, 6 not found. */
typedef struct { unsigned gpu, memory; } utilization;
typedef struct { unsigned long long total, free, used; } memory;
static int device;
int nvmlInitWithFlags(unsigned flags) { return flags; }
int nvmlDeviceGetHandleByUUID(const char *uuid, void **out) {
  *out = &device; return strcmp(uuid, "GPU-7f") ? 6 : 0; }
int nvmlDeviceGetUtilizationRates(void *of, utilization *out) {
  out->gpu = 87, out->memory = 40; return of != &device; }
int nvmlDeviceGetPowerUsage(void *of, unsigned *out) { *out = 312345; return of != &device; }
int nvmlDeviceGetMemoryInfo(void *of, memory *out) {
  out->total = 143ULL << 30, out->free = 40ULL << 30, out->used = 103ULL << 30;
  return of != &device;
}
#ifdef JPEG_ENGINE
int nvmlDeviceGetJpgUtilization(void *of, unsigned *out, unsigned *period_us) {
  *out = JPEG_ENGINE, *period_us = 167000;
  return of != &device;
}
#endif
"""
READ = """
import json, sys, torch
from gratis.train.mesh.device import GpuMeter, WaitClock
meter = GpuMeter(torch.device("cpu"))
meter._open(sys.argv[1])
print(json.dumps(meter.read()))
"""
TOLD = {
    "busy": 0.87,
    "nvjpg_busy": 0.25,
    "memory_bytes": 103 << 30,
    "memory_total_bytes": 143 << 30,
    "power_w": 312.345,
}


@pytest.mark.parametrize(
    ("flags", "uuid", "told"),
    [
        (["-DJPEG_ENGINE=25"], "GPU-7f", TOLD),
        ([], "GPU-7f", TOLD | {"nvjpg_busy": None}),  # a driver that does not know the question
        (["-DJPEG_ENGINE=25"], "GPU-80", None),
        (None, "GPU-7f", None),  # no driver at all
    ],
)
@pytest.mark.starts
def test_the_management_librarys_answers_in_our_units(
    tmp_path: Path, flags: list[str] | None, uuid: str, told: object
) -> None:
    """The real nvidia-ml-py over a driver library of a few lines, where it looks for NVIDIA's."""
    pytest.importorskip("pynvml", reason="needs nvidia-ml-py")
    compiler = shutil.which("cc")
    if compiler is None:
        pytest.skip("needs a C compiler")
    if flags is not None:
        (tmp_path / "driver.c").write_text(DRIVER)
        out = ["-o", str(tmp_path / "libnvidia-ml.so.1"), str(tmp_path / "driver.c")]
        subprocess.run([compiler, "-shared", "-fPIC", *flags, *out], check=True)
    elif torch.cuda.is_available():
        pytest.skip("there is a driver here")
    env = os.environ | {"LD_LIBRARY_PATH": str(tmp_path)}
    done = subprocess.run(
        [sys.executable, "-c", READ, uuid], cwd=ROOT, env=env, capture_output=True, text=True
    )
    assert (done.stderr, json.loads(done.stdout)) == ("", told)


@pytest.mark.gpu
def test_a_gpu_tells_its_state_in_little_time() -> None:
    if not torch.cuda.is_available():
        pytest.skip("needs a CUDA device")
    pytest.importorskip("pynvml", reason="needs nvidia-ml-py")
    held = torch.zeros(1 << 28, device="cuda")
    meter = GpuMeter(held.device)
    begin = time.process_time()  # what others do meanwhile is not ours
    read = meter.read()
    took = time.process_time() - begin
    assert read is not None
    assert read["memory_bytes"] is not None
    assert read["memory_bytes"] > held.nbytes
    assert read["busy"] is None or 0 <= read["busy"] <= 1
    assert read["power_w"] is None or 1 < read["power_w"] < 2000
    print(f"a look at the GPU: {took * 1e3:.2f} ms")
    assert took < 0.1


def test_what_compiling_for_a_gpu_lacks_is_said(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("CC", raising=False)
    monkeypatch.setenv("PATH", str(tmp_path))
    assert lacks_for_compiling() == "a C compiler (apt install gcc)"
    (tmp_path / "gcc").touch(0o755)
    headers = Path(sysconfig.get_path("include"), "Python.h").exists()
    assert lacks_for_compiling() == (
        None if headers else "Python's headers (apt install python3-dev)"
    )


def test_gpus_that_torch_cannot_use_are_told(monkeypatch: pytest.MonkeyPatch) -> None:
    """As with a driver that is too old, or before NVSwitch is up: the driver's library counts them
    all the same."""
    assert device_of(0).type == ("cuda" if torch.cuda.is_available() else "cpu")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 8)
    with pytest.raises(
        GratisError, match=r"this machine's 8 GPUs cannot be used by torch .*CUDA_VISIBLE_DEVICES="
    ):
        device_of(0)


@pytest.mark.parametrize("compute", ["float32", "bfloat16"])
@pytest.mark.parametrize("name", RECIPES)
def test_a_step_s_tensors_are_all_on_the_network_s_device(
    name: str, compute: Literal["float32", "bfloat16"]
) -> None:
    """On torch's device without values, where an operation with another device's tensor is an error
    as on a GPU. Fused kernels there want gradients in the layout of their parameters."""
    recipe, device = replace(RECIPES[name], width=1 / 16, compute=compute), torch.device("meta")
    network = AlexNet(recipe, 10).to(device)
    network.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    images = torch.empty(8, 3, recipe.crop, recipe.crop, device=device).to(
        memory_format=torch.channels_last
    )
    logits = network(images, DropoutKey(seed=0, step=0, rows=range(8)))
    loss = share_of_loss(logits, torch.zeros(8, dtype=torch.int64, device=device), 8)
    loss.backward()  # type: ignore[no-untyped-call]
    for own in network.parameters():
        assert own.grad is not None
        assert (own.grad.device, own.grad.stride()) == (device, own.stride())
    with torch.inference_mode():
        assert average_views(network(images), 2).device == device


def needs(devices: int) -> None:
    if torch.cuda.device_count() < devices:
        pytest.skip(f"needs {devices} CUDA device(s)")


def trained(runs: Path, shards: Path, name: str, *arguments: str) -> list[list[dict[str, Any]]]:
    """The records of each rank of one epoch of the sample recipe, checked for what any mesh must
    do."""
    command = [
        sys.executable,
        *"-m gratis train --shards".split(),
        str(shards),
        "--runs",
        str(runs),
        "--run",
        name,
        "--port",
    ]
    command += [
        *"0 --recipe sample --epochs 1 --save-every 0 --save-probabilities".split(),
        *arguments,
    ]
    process = subprocess.run(
        command, cwd=ROOT, capture_output=True, text=True, timeout=500, check=False
    )
    assert process.returncode == 0, process.stderr
    assert process.stdout.splitlines()[-1].startswith("result top1=")
    world = next(record["world"] for record in records(runs / name) if record["kind"] == "start")
    ranks = [records(runs / name, rank) for rank in range(world)]
    receipts = [record for record in ranks[0] if record["kind"] == "receipt"]
    assert [(r["seen"], r["missing"], r["duplicates"]) for r in receipts] == [(1000, 0, 0)]
    assert (
        sum(record["images"] for own in ranks for record in own if record["kind"] == "step") == 1000
    )
    assert latest(runs / name / "checkpoints") is not None
    assert (runs / name / "probabilities.safetensors").exists()
    return ranks


def nll(own: list[dict[str, Any]]) -> float:
    return float(next(record["nll"] for record in own if record["kind"] == "eval"))


@pytest.mark.gpu
@pytest.mark.slow
def test_a_run_on_a_device(tmp_path: Path, sample_shards: Path) -> None:
    needs(1)
    (own,) = trained(tmp_path, sample_shards, "one", "--gpus", "1")
    assert own[0]["device"] == "cuda:0"
    assert any(record["gpu"] for record in own if record["kind"] == "step")


@pytest.mark.gpu
@pytest.mark.slow
def test_a_pair_that_shares_a_device_follows_one_process(
    tmp_path: Path, sample_shards: Path
) -> None:
    needs(1)
    (one,) = trained(tmp_path, sample_shards, "one", "--gpus", "1", *EAGER)
    pair = trained(tmp_path, sample_shards, "pair", "--gpus", "2", "--share-device")
    assert len(pair) == 2
    assert nll(pair[0]) == pytest.approx(nll(one), rel=0.02)


@pytest.mark.gpu
@pytest.mark.slow
@pytest.mark.parametrize("towers", ["1", "2"])
def test_two_devices_follow_one(tmp_path: Path, sample_shards: Path, towers: str) -> None:
    """Over NCCL, which carries the devices' tensors alone: ids, sums and probabilities among
    them."""
    needs(2)
    (one,) = trained(tmp_path, sample_shards, "one", "--gpus", "1", *EAGER)
    two = trained(tmp_path, sample_shards, "two", "--gpus", "2", "--tower-ranks", towers)
    assert [own[0]["device"] for own in two] == ["cuda:0", "cuda:1"]
    assert nll(two[0]) == pytest.approx(nll(one), rel=0.02)


@pytest.mark.gpu
@pytest.mark.slow
def test_out_of_memory_is_a_line_with_a_batch_that_fits(
    tmp_path: Path, sample_shards: Path
) -> None:
    """A batch that no device holds; then the one that the line names, for a step."""
    needs(1)
    size = torch.cuda.get_device_properties(0).total_memory
    # at this width an image keeps 11.7 MB for backward
    batch = 1 << (size // 11_000_000).bit_length()
    command = [
        sys.executable,
        *"-m gratis train --shards".split(),
        str(sample_shards),
        "--runs",
        str(tmp_path),
        "--port",
        "0",
    ]
    command += [*"--recipe sample --width 4 --gpus 1 --epochs 1 --compile off".split()]

    def run(images: int | str) -> subprocess.CompletedProcess[str]:
        given = [*command, "--batch", str(images)]
        return subprocess.run(
            given, cwd=ROOT, capture_output=True, text=True, timeout=500, check=False
        )

    process = run(batch)
    assert process.returncode == 2, process.stderr
    line = (
        rf"error: --batch {batch} on 1 does not fit into a GPU of \d+ GiB: about --batch (\d+) "
        rf"fits\n"
    )
    found = re.fullmatch(line, process.stderr)
    assert found, process.stderr
    assert 1 <= int(found[1]) <= batch // 2
    fitting = run(found[1])
    assert fitting.returncode == 0, fitting.stderr
